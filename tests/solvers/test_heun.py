"""Heun with churn: the noise that is added is the process's own, and the moments are right."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sde.brownian import BrownianPath
from sde.denoisers import Denoiser
from sde.dynamics import Reverse
from sde.exact import Gaussian, Mixture
from sde.grids import Karras, LogSNR
from sde.likelihood import log_prob
from sde.noise import StepNoise, Stream
from sde.processes import SDE, VE, VP
from sde.sampling import encode, sample
from sde.solvers import Heun, Langevin, PredictorCorrector

MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)


@dataclass
class Probe(StepNoise):
    """Row 0 gets no noise, rows 3 and 4 the basis vectors."""

    asked: list[tuple[Stream, float, float]]

    def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
        self.asked.append((stream, start, stop))
        z = torch.zeros(5, 2, dtype=torch.float64)
        z[3:] = torch.eye(2, dtype=torch.float64)
        return z

    def select(self, index: Tensor) -> StepNoise:
        raise AssertionError("a fixed-step solver keeps its batch")


def marginal(process: SDE, t: float) -> tuple[Tensor, Tensor]:
    at = torch.tensor(t, dtype=torch.float64)
    return process.alpha(at) * MEAN, process.alpha(at) ** 2 * COV + process.var(at) * torch.eye(2, dtype=torch.float64)


def propagate(solver: Heun, process: SDE, noise: Probe) -> tuple[Tensor, Tensor]:
    """The exact mean and covariance of the samples that start from the exact marginal at `t_max`."""
    basis = torch.zeros(5, 2, dtype=torch.float64)
    basis[1:3] = torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        run = solver.bind(Reverse(Gaussian(MEAN, COV).denoiser(process), 0.0))
        progress = run.init((basis,), noise)
        mean, cov = marginal(process, process.t_max)
        while not run.finished(progress):
            progress = run.step(replace(progress, x=(basis,)))
            (x,) = progress.x
            columns = (x[1:] - x[0]).T
            a, c = columns[:, :2], columns[:, 2:]
            mean, cov = a @ mean + x[0], a @ cov @ a.T + c @ c.T
    return mean, cov


def bias(solver: Heun, process: SDE) -> Tensor:
    (mean, cov), (true_mean, true_cov) = propagate(solver, process, Probe([])), marginal(process, process.t_min)
    return torch.cat([mean - true_mean, (cov - true_cov)[[0, 0, 1], [0, 1, 1]]])


def test_moments_are_right_with_churn(process: SDE) -> None:
    """The bias of the exact moments falls at order 2, and Richardson's limit is the truth, for a fixed S_churn."""
    errors = [bias(Heun(n, LogSNR(), churn=8.0), process) for n in (80, 160)]
    sizes = [float(e.norm()) for e in errors]
    assert math.log2(sizes[0] / sizes[1]) > 1.8, sizes
    assert float(((4.0 * errors[1] - errors[0]) / 3.0).norm()) < 0.3 * sizes[1] + 1e-5


def test_the_noise_that_is_added_is_the_process_s(process: SDE) -> None:
    """q(x_u | x_t) takes the marginal at t to that at u, where the noise level is (1 + gamma) times as high."""
    solver, probe = Heun(30, churn=6.0), Probe([])
    propagate(solver, process, probe)
    times = solver.times(Reverse(Gaussian(MEAN, COV).denoiser(process), 0.0), process.t_max, process.t_min)
    assert 26 <= len(probe.asked) <= 29  # no room at t_max
    for stream, t, u in probe.asked:
        assert stream is Stream.CORRECTOR
        assert t in times.tolist()
        assert t < u <= process.t_max
        before, after = (torch.tensor(x, dtype=torch.float64) for x in (t, u))
        raised = math.exp(0.5 * float(process.log_snr(before) - process.log_snr(after)))
        if u < process.t_max:
            assert raised == pytest.approx(1.2, rel=1e-6)
        else:
            assert 1.0 < raised <= 1.2 + 1e-9
        # One step of no length from t: the state is the kernel's mean and noise, drawn at u.
        scale = float(process.alpha(after) / process.alpha(before))
        spread = float(process.var(after) - scale**2 * process.var(before))
        (mean, cov), (next_mean, next_cov) = marginal(process, t), marginal(process, u)
        torch.testing.assert_close(scale * mean, next_mean)
        torch.testing.assert_close(scale**2 * cov + spread * torch.eye(2, dtype=torch.float64), next_cov)


@dataclass(frozen=True)
class Given(StepNoise):
    z: Tensor

    def normal(self, stream: Stream, k: int, start: float, stop: float) -> Tensor:
        return self.z

    def select(self, index: Tensor) -> StepNoise:
        return self


@pytest.mark.parametrize(("churn", "gamma"), [(0.25, 0.25), (9.0, math.sqrt(2.0) - 1.0)])
def test_a_step_is_algorithm_2(mixture: Mixture, churn: float, gamma: float) -> None:
    """Of Karras et al. for VE, in their variable sigma and with their names, S_noise included; gamma is capped."""
    process, t, s, S_noise = VE(sigma_max=100.0), 0.7, 0.6, 1.003
    d = mixture.denoiser(process)

    def sigma(u: float) -> Tensor:
        return process.sigma(torch.tensor(u, dtype=torch.float64))

    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    high = (1.0 + gamma) * sigma(t)
    raised = x + (high**2 - sigma(t) ** 2).sqrt() * S_noise * z
    u = process.time(-2.0 * high.log())
    dynamics = Reverse(d, 0.0)
    (first,) = dynamics.drift((raised,), u)
    (second,) = dynamics.drift((raised + (s - u) * first,), torch.tensor(s, dtype=torch.float64))
    wanted = raised + 0.5 * (s - u) * (first + second)
    (y,) = Heun(1, churn=churn, churn_noise=S_noise)(dynamics, (x,), Given(z), t, s)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)


def test_churn_is_kept_between_its_bounds() -> None:
    """In units of sigma / alpha, both bounds included."""
    process, probe = VP(), Probe([])
    solver = Heun(40, Karras(), churn=4.0, churn_min=0.05, churn_max=2.0)
    times = solver.times(Reverse(Gaussian(MEAN, COV).denoiser(process), 0.0), process.t_max, process.t_min)[:-1]
    level = process.sigma(times) / process.alpha(times)
    propagate(solver, process, probe)
    assert [t for _, t, _ in probe.asked] == times[(level >= 0.05) & (level <= 2.0)].tolist()
    assert 0 < len(probe.asked) < 30


def test_without_churn_it_draws_nothing(mixture: Mixture) -> None:
    x = mixture.at(VP(), 1.0).sample(3, generator=torch.Generator().manual_seed(0))
    d = mixture.denoiser(VP())
    assert not Heun(5).draws
    assert Heun(5, churn=1.0).draws
    (y,) = Heun(5)(Reverse(d, 0.0), (x,))
    assert torch.equal(y, sample(d, x_T=x, solver=Heun(5, churn_min=1.0), seed=4).x)
    assert not torch.equal(y, sample(d, x_T=x, solver=Heun(5, churn=1.0)).x)


def test_churn_is_no_part_of_a_path(mixture: Mixture) -> None:
    """Intervals of churn overlap: their noise is independent, whatever the source."""
    d = mixture.denoiser(VP())
    keyed, path = (sample(d, (3, 2), solver=Heun(6, churn=2.0), seed=3, noise=n).x for n in (None, BrownianPath(3)))
    assert torch.equal(keyed, path)


class Untouched(Denoiser):
    """No network call may reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.process = VP()

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        raise AssertionError("a network call was made")


def test_what_does_not_go_with_churn_is_refused() -> None:
    solver, d = Heun(5, churn=1.0), Untouched()
    with pytest.raises(ValueError, match=r"Heun.*noise.*start=.*stop="):
        encode(d, torch.zeros(2, 2), solver=solver)
    with pytest.raises(ValueError, match=r"Heun.*log-density"):
        log_prob(d, torch.zeros(2, 2), solver=solver)
    with pytest.raises(ValueError, match=r"Heun.*noise.*eta=0"):
        sample(d, (2, 2), solver=solver, eta=1.0)
    with pytest.raises(ValueError, match=r"Heun.*noise=.*None"):
        solver(Reverse(d, 0.0), (torch.zeros(2, 2),))
    with pytest.raises(ValueError, match=r"PredictorCorrector.*Heun"):
        PredictorCorrector(solver, Langevin(0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"churn": -1.0}, "churn=-1.0"),
        ({"churn": math.nan}, "churn=nan"),
        ({"churn": math.inf}, "churn=inf"),
        ({"churn_min": 2.0, "churn_max": 1.0}, "churn_min=2.0, churn_max=1.0"),
        ({"churn_min": -1.0}, "churn_min=-1.0"),
        ({"churn_noise": -1.0}, "churn_noise=-1.0"),
        ({"churn_noise": math.nan}, "churn_noise=nan"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"Heun.*{message}"):
        Heun(5, **settings)


def test_samples_do_not_depend_on_their_batch(mixture: Mixture) -> None:
    d, solver = mixture.denoiser(VP()), Heun(8, churn=3.0)
    whole = sample(d, (64, 2), solver=solver, dtype=torch.float64)
    assert whole.nfe.tolist() == [16] * 64
    for first, n in itertools.product((0, 57), (1, 7)):
        part = sample(d, (n, 2), solver=solver, first=first, dtype=torch.float64)
        torch.testing.assert_close(part.x, whole.x[first : first + n], rtol=1e-10, atol=1e-10)
