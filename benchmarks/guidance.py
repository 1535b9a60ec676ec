"""The distribution that guidance samples, against p(x) p(y|x)^w: `python benchmarks/guidance.py`.

The components of a mixture are its classes, so that all denoisers and classifiers are exact. The tilted distribution is
drawn by rejection. For each weight and dimension, it prints the sliced Wasserstein distance of guidance alone and of
particles, over the floor: that of two draws of the tilted distribution of the same size.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import sde
from sde.denoisers import Denoiser, Prediction
from sde.exact import Gaussian, Mixture
from sde.metrics import sliced_wasserstein

PROCESS = sde.VP()


class Classes(Denoiser):
    """The exact denoiser of a mixture given its component as `label`; K, or none, stands for all of it."""

    def __init__(self, m: Mixture, covs: Tensor) -> None:
        super().__init__()
        self.process = PROCESS
        parts = [Gaussian(mean, cov) for mean, cov in zip(m.means, covs)]
        self.each = torch.nn.ModuleList(target.denoiser(PROCESS) for target in (*parts, m))

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.predict(Prediction.X0, x_t, t, **condition)

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        label = condition.get("label", torch.tensor(len(self.each) - 1))
        return self.each[int(label.reshape(-1)[0])].predict(what, x_t, t)  # type: ignore[operator]


def log_class(m: Mixture, k: int, x_t: Tensor, t: Tensor) -> Tensor:
    """log p(k | x_t)."""
    alpha, var = PROCESS.alpha(t).to(x_t), PROCESS.var(t).to(x_t)
    return m._components(x_t, alpha, var)[0].log_softmax(1)[:, k]


def tilted(m: Mixture, covs: Tensor, k: int, w: float, n: int, seed: int) -> Tensor:
    """n draws of p(x) p(k|x)^w = w_k N_k p(k|x)^(w-1), by rejection from the class."""
    g = torch.Generator().manual_seed(seed)
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        x = Gaussian(m.means[k], covs[k]).sample(4 * n, generator=g)
        u = torch.rand(len(x), generator=g, dtype=x.dtype)
        one = torch.ones((), dtype=x.dtype)
        log = m._components(x, one, 0.0 * one)[0].log_softmax(1)[:, k]
        kept.append(x[u.log() < (w - 1.0) * log])
    return torch.cat(kept)[:n]


def problem(d: int) -> tuple[Mixture, Tensor]:
    """Three classes that overlap, in d dimensions."""
    g = torch.Generator().manual_seed(1)
    means = 1.2 * torch.randn(3, d, generator=g, dtype=torch.float64) / (d / 2.0) ** 0.5
    a = torch.randn(3, d, d, generator=g, dtype=torch.float64)
    covs = 0.3 * torch.eye(d, dtype=torch.float64) + 0.3 * a @ a.mT / d
    return Mixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, covs), covs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=4, help="runs over which the distances are averaged")
    parser.add_argument("--weights", type=float, nargs="*", default=[1.0, 2.0, 3.0])
    args = parser.parse_args()
    print("| D | w | floor | guidance | classifier | particles 16 | particles 64 | over the floor |")
    print("|---|---|---|---|---|---|---|---|")
    for d in (2, 8):
        m, covs = problem(d)
        denoiser, k = Classes(m, covs).eval(), 1
        variance = sde.tune_particles(denoiser, (512, d), dtype=torch.float64)
        for w in args.weights:
            rows = []
            for seed in range(args.repeats):
                target = tilted(m, covs, k, w, args.n, 10 + seed)
                shape, free = (args.n, d), sde.guidance.ClassifierFree(denoiser, w, {"label": 3})
                weighed = sde.guidance.Classifier(denoiser, lambda x, t: log_class(m, k, x, t), w)  # noqa: B023
                label = {"label": torch.tensor(k)}
                flow = sde.solvers.UniPC(40)
                draws = [
                    tilted(m, covs, k, w, args.n, 100 + seed),
                    sde.sample(free, shape, condition=label, solver=flow, seed=seed, dtype=torch.float64).x,
                    sde.sample(weighed, shape, solver=flow, seed=seed, dtype=torch.float64).x,
                ]
                for count in (16, 64):
                    solver = sde.solvers.Particles(50, particles=count, variance=variance)
                    draws.append(sde.sample(weighed, shape, solver=solver, seed=seed, dtype=torch.float64).x)
                rows.append([sliced_wasserstein(x, target, permutations=0, groups=2).value for x in draws])
            floor, *rest = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
            ratios = ", ".join(f"{value / floor:.2f}" for value in rest)
            print(
                f"| {d} | {w:g} | {floor:.4f} | " + " | ".join(f"{v:.4f}" for v in rest) + f" | {ratios} |", flush=True
            )


if __name__ == "__main__":
    main()
