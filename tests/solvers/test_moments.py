r"""The moments that samplers reach, against the truth and against exact recursions.

Three kinds of proof.

- With a Gaussian target every step is affine in the state and in its noise, :math:`x' = A x + a + C z`, so that mean
  and covariance follow :math:`m' = A m + a`, :math:`S' = A S A^\top + C C^\top` without any sampling. A, a and C are
  read off by pushing basis vectors through the solver, one step at a time. The result differs from the truth by the
  bias of the discretisation alone, whose order is measured.
- With a mixture samples are drawn. Bounds follow from the Monte-Carlo standard errors of means and covariances, which
  the fourth moments of the truth give, at a family-wise error of 1e-3 over all numbers compared in a test; what a
  finite number of steps adds is measured on the same noise with twice as many.
- Single steps are held to the formulas of the papers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sde.dynamics import Reverse
from sde.exact import Gaussian, Mixture
from sde.noise import Noise, StepNoise, Stream
from sde.processes import SDE, VE, VP, DiscreteChain, SubVP
from sde.solvers import (
    Ancestral,
    Corrector,
    Euler,
    EulerMaruyama,
    FixedStep,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta,
    ScipyODE,
    Solver,
    SongLangevin,
)

MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)
FAMILY_WISE = 1e-3

Moments = tuple[Tensor, Tensor]


def marginal(process: SDE, t: float) -> Moments:
    at = torch.tensor(t, dtype=torch.float64)
    return process.alpha(at) * MEAN, process.alpha(at) ** 2 * COV + process.var(at) * torch.eye(2, dtype=torch.float64)


# ---- exact recursions on a Gaussian


@dataclass
class Probe(StepNoise):
    """The noise of a batch that reads a step off: row 0 gets none, the rows of draw m the basis vectors, one each."""

    draws: int
    used: int = 0

    @property
    def rows(self) -> int:
        return 1 + 2 + 2 * self.draws

    def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
        z = torch.zeros(self.rows, 2, dtype=torch.float64)
        z[3 + 2 * self.used : 5 + 2 * self.used] = torch.eye(2, dtype=torch.float64)
        self.used += 1
        return z

    def select(self, index: Tensor) -> StepNoise:
        raise AssertionError("a fixed-step solver keeps its batch")


def propagate(solver: Solver, process: SDE, eta: float, draws: int) -> Moments:
    """The exact mean and covariance of the samples that start from the exact marginal at `t_max`."""
    noise = Probe(draws)
    basis = torch.zeros(noise.rows, 2, dtype=torch.float64)
    basis[1:3] = torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        run = solver.bind(Reverse(Gaussian(MEAN, COV).denoiser(process), eta))
        progress = run.init((basis,), noise)
        mean, cov = marginal(process, process.t_max)
        while not run.finished(progress):
            noise.used = 0
            progress = run.step(replace(progress, x=(basis,)))
            assert noise.used == (draws if eta > 0.0 else min(noise.used, draws))
            (x,) = progress.x
            columns = (x[1:] - x[0]).T  # A, then a block of C for each draw, (2, 2 + 2 draws)
            a, c = columns[:, :2], columns[:, 2:]
            mean, cov = a @ mean + x[0], a @ cov @ a.T + c @ c.T
    return mean, cov


def bias(solver: Solver, process: SDE, eta: float, draws: int) -> Tensor:
    """How far mean and covariance end from the truth, five numbers."""
    (mean, cov), (true_mean, true_cov) = propagate(solver, process, eta, draws), marginal(process, process.t_min)
    return torch.cat([mean - true_mean, (cov - true_cov)[[0, 0, 1], [0, 1, 1]]])


AFFINE: list[tuple[type[FixedStep], float, int]] = [
    (EulerMaruyama, 0.0, 1),
    (EulerMaruyama, 0.5, 1),
    (EulerMaruyama, 1.0, 1),
    (Ancestral, 1.0, 1),
    (ReverseDiffusion, 0.0, 1),
    (ReverseDiffusion, 0.5, 1),
    (ReverseDiffusion, 1.0, 1),
    (Euler, 0.0, 1),
    (Heun, 0.0, 2),
]


@pytest.mark.parametrize(
    ("method", "eta", "order"), AFFINE, ids=lambda v: v.__name__ if isinstance(v, type) else str(v)
)
def test_weak_order(process: SDE, method: type[FixedStep], eta: float, order: int) -> None:
    """The bias of mean and covariance falls at the method's weak order, and Richardson's limit is the truth."""
    n = 200 if order == 1 else 50
    draws = 1 if eta > 0.0 else 0
    errors = [bias(method(m), process, eta, draws) for m in (n, 2 * n)]  # type: ignore[call-arg]
    sizes = [float(e.norm()) for e in errors]
    # At least: Euler-Maruyama for VE has order 2 in the moments, since its noise has the variance that Heun's would.
    assert math.log2(sizes[0] / sizes[1]) > order - 0.15, sizes
    limit = (2**order * errors[1] - errors[0]) / (2**order - 1)
    assert float(limit.norm()) < max(0.15 * sizes[1], 3e-4), (limit, sizes)


@pytest.mark.parametrize(
    ("predictor", "eta", "steps"), [(EulerMaruyama, 1.0, 2), (Heun, 0.0, 1)], ids=["EulerMaruyama-1.0", "Heun-0.0"]
)
def test_langevin_keeps_the_marginals_up_to_its_step(
    process: SDE, predictor: type[FixedStep], eta: float, steps: int
) -> None:
    """A corrector's bias comes from its own step: it falls with the predictor's step and with snr^2."""

    def size(n: int, snr: float) -> float:
        solver = PredictorCorrector(predictor(n), Langevin(snr, steps))  # type: ignore[call-arg]
        return float(bias(solver, process, eta, steps + (eta > 0.0)).norm())

    coarse, fine = size(200, 0.1), size(400, 0.05)
    assert coarse < 0.01
    assert fine < 0.6 * coarse


# ---- samples from a mixture


@dataclass(frozen=True)
class Coupled(StepNoise):
    """Noise of a run of 2 N steps, or its sums over pairs of steps, for the run of N steps on the same noise."""

    fine: StepNoise
    pairs: bool

    def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
        if not self.pairs:
            return self.fine.normal(stream, k, start, stop)
        draws = [self.fine.normal(stream, 2 * k + i, start, stop) for i in (0, 1)]
        return (draws[0] + draws[1]) / math.sqrt(2.0)

    def select(self, index: Tensor) -> StepNoise:
        return Coupled(self.fine.select(index), self.pairs)


def truth(mixture: Mixture, process: SDE, t: float) -> tuple[Tensor, Tensor]:
    """The five moments of the marginal at t, two means and three covariances, and the standard deviations of one draw.

    With component k off by d and of covariance S, E[u_i^2 u_j^2] is the sum of its Gaussian fourth moments.
    """
    at = torch.tensor(t, dtype=torch.float64)
    basis = mixture.basis
    covs = process.alpha(at) ** 2 * basis @ torch.diag_embed(mixture.eigenvalues) @ basis.mT
    covs = covs + process.var(at) * torch.eye(2, dtype=torch.float64)
    means, w = process.alpha(at) * mixture.means, mixture.weights
    mean = w @ means
    d = means - mean
    cov = torch.einsum("k,kij->ij", w, covs + d[:, :, None] * d[:, None, :])
    moments, variances = [*mean], [*cov.diagonal()]
    for i, j in ((0, 0), (0, 1), (1, 1)):
        a, b, s, u, v = d[:, i], d[:, j], covs[:, i, j], covs[:, i, i], covs[:, j, j]
        fourth = w @ (a**2 * b**2 + a**2 * v + b**2 * u + 4 * a * b * s + u * v + 2 * s**2)
        moments.append(cov[i, j])
        variances.append(fourth - cov[i, j] ** 2)
    return torch.stack(moments), torch.stack(variances).sqrt()


def moments(x: Tensor) -> Tensor:
    """Two means and three covariances, in the order of `truth`."""
    return torch.cat([x.mean(0), torch.cov(x.T)[[0, 0, 1], [0, 1, 1]]])


SAMPLERS: dict[str, tuple[type[FixedStep], float]] = {
    "EulerMaruyama": (EulerMaruyama, 1.0),
    "EulerMaruyama, eta=0.5": (EulerMaruyama, 0.5),
    "EulerMaruyama, eta=0": (EulerMaruyama, 0.0),
    "Ancestral": (Ancestral, 1.0),
    "ReverseDiffusion": (ReverseDiffusion, 1.0),
    "ReverseDiffusion, eta=0.5": (ReverseDiffusion, 0.5),
    "ReverseDiffusion, eta=0": (ReverseDiffusion, 0.0),
    "Euler": (Euler, 0.0),
    "Heun": (Heun, 0.0),
}
CORRECTORS: dict[str, Corrector | None] = {
    "alone": None,
    "Langevin": Langevin(0.05),
    "SongLangevin": SongLangevin(0.05),
}
ALL = [(name, corrector) for corrector in CORRECTORS for name in SAMPLERS]
QUICK = [(name, corrector) for name, corrector in ALL if corrector == "alone" or name in ("EulerMaruyama", "Heun")]


def fixed_step(name: str, corrector: str, steps: int) -> Solver:
    predictor = SAMPLERS[name][0](steps)  # type: ignore[call-arg]
    chain = CORRECTORS[corrector]
    return predictor if chain is None else PredictorCorrector(predictor, chain)


def check_fixed_step(process: SDE, mixture: Mixture, name: str, corrector: str, n: int, steps: int, cap: float) -> None:
    goal, spread = truth(mixture, process, process.t_min)
    x = mixture.at(process, process.t_max).sample(n, generator=torch.Generator().manual_seed(11))
    dynamics = Reverse(mixture.denoiser(process), SAMPLERS[name][1])
    found = []
    for m in (steps, 2 * steps):
        noise = Coupled(Noise(5).batch(torch.arange(n), (2,), x.dtype), pairs=m == steps)
        with torch.no_grad():
            (y,) = fixed_step(name, corrector, m)(dynamics, (x,), noise)
        assert bool(y.isfinite().all())
        found.append(moments(y))
    # At order 1 the bias at 2 N steps is what the doubling changed; 1.5 times that serves an order of 0.74.
    allowance = 1.5 * (found[0] - found[1]).abs()
    assert float((allowance / spread).max()) < cap, allowance
    quantile = torch.special.ndtri(torch.tensor(1.0 - FAMILY_WISE / (2 * len(goal)), dtype=torch.float64))
    bound = quantile * spread / math.sqrt(n) + allowance
    assert bool(((found[1] - goal).abs() < bound).all()), (found[1] - goal, bound)


@pytest.mark.parametrize("process", [VP(), VE()], ids=["VP", "VE"])
@pytest.mark.parametrize(("name", "corrector"), QUICK)
def test_fixed_step_samplers_reach_a_mixture(process: SDE, mixture: Mixture, name: str, corrector: str) -> None:
    check_fixed_step(process, mixture, name, corrector, n=1000, steps=60, cap=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "corrector"), [pair for pair in ALL if pair not in QUICK])
def test_every_predictor_with_every_corrector_reaches_a_mixture(
    process: SDE, mixture: Mixture, name: str, corrector: str
) -> None:
    check_fixed_step(process, mixture, name, corrector, n=3000, steps=120, cap=0.3)


@pytest.mark.parametrize("process", [SubVP(), VE()], ids=["SubVP", "VE"])
@pytest.mark.parametrize("solver", [RungeKutta(), ScipyODE(), ScipyODE("LSODA")], ids=["RungeKutta", "RK45", "LSODA"])
def test_adaptive_solvers_reach_a_mixture(process: SDE, mixture: Mixture, solver: Solver) -> None:
    """Their bias is their tolerance, 1e-5 a step, which is no more than 1e-3 over all steps."""
    n = 2000
    goal, spread = truth(mixture, process, process.t_min)
    x = mixture.at(process, process.t_max).sample(n, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        (y,) = solver(Reverse(mixture.denoiser(process), 0.0), (x,))
    quantile = torch.special.ndtri(torch.tensor(1.0 - FAMILY_WISE / (2 * len(goal)), dtype=torch.float64))
    bound = quantile * spread / math.sqrt(n) + 1e-3
    assert bool(((moments(y) - goal).abs() < bound).all())


def test_the_truth_is_the_truth(process: SDE, mixture: Mixture) -> None:
    """The closed-form moments and their errors, against plain draws of the marginal."""
    n = 100_000
    x = mixture.at(process, process.t_min).sample(n, generator=torch.Generator().manual_seed(2))
    goal, spread = truth(mixture, process, process.t_min)
    assert bool(((moments(x) - goal).abs() < 4.0 * spread / math.sqrt(n)).all())
    u = x - x.mean(0)
    one = torch.stack([u[:, 0], u[:, 1], u[:, 0] ** 2, u[:, 0] * u[:, 1], u[:, 1] ** 2], 1)
    torch.testing.assert_close(one.std(0), spread, rtol=0.02, atol=0.0)


# ---- single steps in closed form


def one_step(solver: Solver, process: SDE, start: float, stop: float, x: Tensor, z: Tensor) -> Tensor:
    @dataclass(frozen=True)
    class Given(StepNoise):
        def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
            return z

        def select(self, index: Tensor) -> StepNoise:
            return self

    return solver(Reverse(Gaussian(MEAN, COV).denoiser(process), 1.0), (x,), Given(), start, stop)[0]


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 2, generator=generator, dtype=torch.float64)


@pytest.fixture
def z(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("chain", [DiscreteChain.linear(1000), DiscreteChain.cosine(50)], ids=["linear", "cosine"])
@pytest.mark.parametrize("i", [2, 3, 20, 49])
def test_ancestral_is_the_chain_s_posterior(chain: DiscreteChain, i: int, x: Tensor, z: Tensor) -> None:
    """On the grid i/N a step draws from q(x_{i-1} | x_i, x_0), x_0 denoised; at v = 1 with variance beta_i."""
    p, n = chain.sde(), len(chain)
    x0 = Gaussian(MEAN, COV).denoiser(p)(x, torch.tensor(i / n, dtype=torch.float64))
    mean, variance = chain.posterior(x0, x, i)
    y = one_step(Ancestral(1), p, i / n, (i - 1) / n, x, z)
    torch.testing.assert_close(y, mean + variance.sqrt() * z, rtol=1e-9, atol=1e-9)
    y = one_step(Ancestral(1, v=1.0), p, i / n, (i - 1) / n, x, z)
    torch.testing.assert_close(y, mean + chain.betas[i - 1].sqrt() * z, rtol=1e-9, atol=1e-9)
    y = one_step(Ancestral(1, v=0.5), p, i / n, (i - 1) / n, x, z)
    torch.testing.assert_close(y, mean + (variance * chain.betas[i - 1]).sqrt().sqrt() * z, rtol=1e-9, atol=1e-9)


def test_ancestral_is_song_s_for_ve(x: Tensor, z: Tensor) -> None:
    """Song et al. 2021, equation 47: x + (s_i^2 - s_{i-1}^2) score + sqrt(s_{i-1}^2 (s_i^2 - s_{i-1}^2) / s_i^2) z."""
    p, t, s = VE(), 0.5, 0.45
    high, low = (p.var(torch.tensor(u, dtype=torch.float64)) for u in (t, s))
    score = Gaussian(MEAN, COV).denoiser(p).score(x, torch.tensor(t, dtype=torch.float64))
    wanted = x + (high - low) * score + (low * (high - low) / high).sqrt() * z
    torch.testing.assert_close(one_step(Ancestral(1), p, t, s, x, z), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("i", [2, 20, 50])
def test_reverse_diffusion_is_song_s(i: int, x: Tensor, z: Tensor) -> None:
    """Song et al. 2021, appendix E: (2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z for VP, NCSN's step for VE."""
    chain = DiscreteChain.linear(50)
    beta = chain.betas[i - 1]
    score = Gaussian(MEAN, COV).denoiser(chain.sde()).score(x, torch.tensor(i / 50, dtype=torch.float64))
    wanted = (2.0 - (1.0 - beta).sqrt()) * x + beta * score + beta.sqrt() * z
    y = one_step(ReverseDiffusion(1), chain.sde(), i / 50, (i - 1) / 50, x, z)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
    p, t, s = VE(), torch.tensor(i / 50, dtype=torch.float64), torch.tensor((i - 1) / 50, dtype=torch.float64)
    step = p.var(t) - p.var(s)
    wanted = x + step * Gaussian(MEAN, COV).denoiser(p).score(x, t) + step.sqrt() * z
    torch.testing.assert_close(one_step(ReverseDiffusion(1), p, float(t), float(s), x, z), wanted)


def test_euler_maruyama_is_the_reverse_sde(process: SDE, x: Tensor, z: Tensor) -> None:
    t, h = torch.tensor(0.6, dtype=torch.float64), 0.1
    score = Gaussian(MEAN, COV).denoiser(process).score(x, t)
    drift = process.drift(x, t) - process.g2(t) * score
    wanted = x - h * drift + process.diffusion(t) * math.sqrt(h) * z
    torch.testing.assert_close(one_step(EulerMaruyama(1), process, 0.6, 0.5, x, z), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [False, True])
def test_langevin_is_the_rule_with_expected_norms(process: SDE, first: bool, x: Tensor, z: Tensor) -> None:
    """x + eps s + sqrt(2 eps) z with eps = 2 (snr sigma)^2, after the predictor at its new time, or before it."""
    d = Gaussian(MEAN, COV).denoiser(process)

    def correct(y: Tensor, t: float) -> Tensor:
        at = torch.tensor(t, dtype=torch.float64)
        epsilon = 2.0 * 0.2**2 * process.var(at)
        return y + epsilon * d.score(y, at) + (2.0 * epsilon).sqrt() * z

    solver = PredictorCorrector(EulerMaruyama(1), Langevin(0.2, 2), corrector_first=first)
    y = one_step(solver, process, 0.6, 0.5, x, z)
    if first:
        wanted = one_step(EulerMaruyama(1), process, 0.6, 0.5, correct(correct(x, 0.6), 0.6), z)
    else:
        wanted = correct(correct(one_step(EulerMaruyama(1), process, 0.6, 0.5, x, z), 0.5), 0.5)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("i", [1, 30])
def test_song_s_langevin_is_the_original(i: int, x: Tensor, z: Tensor) -> None:
    """eps = 2 alpha (snr |z| / |s|)^2 with norms averaged over the batch; alpha = 1 - beta_i, for VE 1."""
    chain = DiscreteChain.linear(50)
    for process, alpha in ((chain.sde(), 1.0 - chain.betas[i]), (VE(), torch.tensor(1.0))):
        t, s = (i + 1) / 50, i / 50
        solver = PredictorCorrector(ReverseDiffusion(1), Langevin.song(0.2), corrector_first=True)
        score = Gaussian(MEAN, COV).denoiser(process).score(x, torch.tensor(t, dtype=torch.float64))
        epsilon = 2.0 * alpha * (0.2 * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
        corrected = x + epsilon * score + (2.0 * epsilon).sqrt() * z
        wanted = one_step(ReverseDiffusion(1), process, t, s, corrected, z)
        torch.testing.assert_close(one_step(solver, process, t, s, x, z), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("corrector", [Langevin(0.1, 2), SongLangevin(0.1, 2)], ids=repr)
def test_correctors_draw_noise_of_their_own(corrector: Corrector) -> None:
    """The draws of a run: one per predictor step, `steps` per correction, each with its own number."""
    seen: list[tuple[Stream, int]] = []

    @dataclass(frozen=True)
    class Log(StepNoise):
        def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
            seen.append((stream, k))
            return torch.ones(1, 2, dtype=torch.float64)

        def select(self, index: Tensor) -> StepNoise:
            return self

    x = torch.zeros(1, 2, dtype=torch.float64)
    solver = PredictorCorrector(EulerMaruyama(3), corrector)
    solver(Reverse(Gaussian(MEAN, COV).denoiser(VP()), 1.0), (x,), Log())
    assert len(seen) == len(set(seen)) == 3 + 6
    assert sum(stream == Stream.STEP for stream, _ in seen) == 3
