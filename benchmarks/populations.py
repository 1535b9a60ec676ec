r"""One population of particles for many draws of a measurement, against many small ones, on a mixture of digits.

    python benchmarks/populations.py

The prior is a mixture of 10 Gaussians with full covariances, fitted to scikit-learn's digits in units of their standard
deviation, and the measurement is an image of half the size with noise 0.05; of 16, the one whose posterior has the
largest entropy of mode weights. Both ways spend 204 calls on each of 256 draws. The error is the sliced Wasserstein
distance from 256 exact draws of the posterior, in prior standard deviations; that of a second set of exact draws is the
floor. Half a minute of one core.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture

import sde
from sde.measurement import DiffPIR, Downsample, Matrix
from sde.metrics import sliced_wasserstein
from sde.solvers import Particles

NOISE, DRAWS = 0.05, 256
WAYS = {
    "256 systems, Particles(11, 17)": (11, 17, 1),
    "one population, Particles(50, 1024, draws=256)": (50, 1024, 256),
}


def prior() -> sde.exact.Mixture:
    """The mixture, float64."""
    x = load_digits().data / 8.0 - 1.0
    x = (x - x.mean(0)) / x.std()
    fit = GaussianMixture(10, covariance_type="full", reg_covar=2e-3, random_state=0).fit(x)
    return sde.exact.Mixture(*map(torch.from_numpy, (fit.weights_, fit.means_, fit.covariances_)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=6)
    a = parser.parse_args()
    target, process = prior(), sde.VE(sigma_min=0.002, sigma_max=30.0)
    denoiser = target.denoiser(process)
    pilot = target.sample(512, generator=torch.Generator().manual_seed(99))
    variance = sde.tune_particles(denoiser, data=pilot, covariance=True)
    operator = Matrix.of(Downsample(2), (1, 8, 8))
    A = operator.A
    rows: dict[str, list[float]] = {name: [] for name in ("floor", *WAYS)}
    for seed in range(a.problems):
        g = torch.Generator().manual_seed(seed + 50)
        drawn = []
        for _ in range(16):
            y = A @ target.sample(1, generator=g)[0] + NOISE * torch.randn(len(A), generator=g, dtype=torch.float64)
            posterior = target.posterior(A=A, y=y, noise=NOISE)
            drawn.append((float(torch.special.entr(posterior.weights).sum()), y, posterior))
        _, y, posterior = max(drawn, key=lambda one: one[0])
        g = torch.Generator().manual_seed(7)
        truth, floor = (posterior.sample(DRAWS, generator=g) for _ in range(2))
        rows["floor"].append(sliced_wasserstein(floor, truth, permutations=0).value)
        guided = DiffPIR(denoiser, sde.Measurement(Matrix(A), y[None], NOISE), variance)
        for name, (steps, particles, draws) in WAYS.items():
            solver = Particles(steps, particles, draws=draws, variance=variance)
            r = sde.sample(guided, (DRAWS // draws, 64), solver=solver, seed=1000, dtype=torch.float64)
            rows[name].append(sliced_wasserstein(r.x.reshape(DRAWS, 64), truth, permutations=0).value)
            print(seed, name, f"{int(r.nfe[0]) / draws:.0f} calls", f"{rows[name][-1]:.3f}", flush=True)
    for name, errors in rows.items():
        print(f"| {name} | {' | '.join(f'{e:.3f}' for e in errors)} | {sum(errors) / len(errors):.3f} |")


if __name__ == "__main__":
    main()
