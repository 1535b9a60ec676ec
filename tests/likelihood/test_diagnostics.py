"""Diagnostics: zero on exact solvers and denoisers, and what they say of wrong ones follows from a formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde.denoisers import Denoiser, Prediction, from_score
from sde.dynamics import Reverse
from sde.exact import Gaussian, Mixture
from sde.grids import LogSNR
from sde.likelihood import log_prob
from sde.likelihood.diagnostics import calibration, round_trip
from sde.processes import SDE, VE, VP
from sde.solvers import Heun, RungeKutta
from sde.trace import ExactTrace, Hutchinson


class Louder(Denoiser):
    """A denoiser whose predicted noise is too large by a factor."""

    def __init__(self, inner: Denoiser, factor: float) -> None:
        super().__init__()
        self.inner, self.factor, self.process = inner, factor, inner.process
        self.seen: list[Tensor] = []

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.seen.append(torch.as_tensor(t).expand(len(x_t)))
        return from_score(what, self.process, self.factor * self.inner.score(x_t, t), x_t, t)

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        raise AssertionError("the noise is read from the score")


@pytest.mark.parametrize(
    ("process", "trace"), [(VP(), ExactTrace()), (VE(), Hutchinson(2))], ids=["VP-exact", "VE-hutchinson"]
)
def test_a_close_solver_comes_back_with_the_same_density(process: SDE, mixture: Mixture, trace: object) -> None:
    """One sample's probes are the same on both ways, so that an estimated trace makes no difference either."""
    denoiser = mixture.denoiser(process)
    x = mixture.sample(3, generator=torch.Generator().manual_seed(0))
    solver = RungeKutta(rtol=1e-6, atol=1e-6)
    trip = round_trip(denoiser, x, solver=solver, trace=trace, seed=3)  # type: ignore[arg-type]
    assert trip.error.max() < 1e-4
    assert (trip.forward - trip.backward).abs().max() < 1e-3
    there = log_prob(denoiser, x, solver=solver, trace=trace, seed=3)  # type: ignore[arg-type]
    assert torch.equal(trip.forward, there.nats)
    assert (trip.nfe > there.nfe).all()


def test_a_coarse_solver_is_told_and_the_finer_one_is_better(mixture: Mixture) -> None:
    """Heun's error of a round trip falls at its order, 2, or faster: by 4 and more for twice the steps."""
    denoiser = mixture.denoiser(VP())
    x = mixture.sample(5, generator=torch.Generator().manual_seed(1))
    coarse, fine = (round_trip(denoiser, x, solver=Heun(n, LogSNR()), trace=ExactTrace()) for n in (40, 80))
    assert coarse.error.max() > 1e-4
    assert (coarse.error.mean() / fine.error.mean()) > 3.5
    gaps = [(trip.forward - trip.backward).abs() for trip in (coarse, fine)]
    assert gaps[0].max() > 1e-4
    assert gaps[0].mean() / gaps[1].mean() > 3.5


def test_the_error_is_per_dimension() -> None:
    """Against x' - x of the flow alone, without the log-density, of a solver coarse enough to miss."""
    target = Gaussian(torch.zeros(3, dtype=torch.float64), 0.2 * torch.eye(3, dtype=torch.float64))
    denoiser, process = target.denoiser(VP()), VP()
    x = target.sample(4, generator=torch.Generator().manual_seed(2))
    (z,), solver = _flow(denoiser, (x,), process.t_min, process.t_max), Heun(4)
    (back,) = _flow(denoiser, (z,), process.t_max, process.t_min)
    trip = round_trip(denoiser, x, solver=solver, trace=ExactTrace())
    assert trip.error.min() > 0.01
    torch.testing.assert_close(trip.error, (back - x).norm(dim=1) / math.sqrt(3.0))


def _flow(denoiser: Denoiser, state: tuple[Tensor, ...], start: float, stop: float) -> tuple[Tensor, ...]:
    return Heun(4)(Reverse(denoiser, eta=0.0), state, start=start, stop=stop)


# Calibration


def test_the_exact_denoiser_is_calibrated(process: SDE, mixture: Mixture) -> None:
    """Each z is about standard normal: beyond 5 once in a million; measured and predicted are the same quantity."""
    x0 = mixture.sample(2000, generator=torch.Generator().manual_seed(4))
    rows = list(calibration(mixture.denoiser(process), x0, times=7, seed=1))
    assert [row.t for row in rows[:: len(rows) - 1]] == [process.t_min, process.t_max]
    for row in rows:
        assert abs(row.z) < 5.0
    gaps = torch.tensor([row.log_snr for row in rows]).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(6), rtol=1e-3, atol=0.0)
    # At the noise end nothing of the data is seen: the noise is known, up to what is left of the signal.
    assert rows[0].measured > 0.9
    assert rows[-1].measured < 0.1


def test_a_gaussian_s_error_is_the_closed_form() -> None:
    """For data N(0, v I) the posterior variance of the noise is alpha^2 v / (alpha^2 v + sigma^2)."""
    v, process = 0.4, VP()
    target = Gaussian(torch.zeros(5, dtype=torch.float64), v * torch.eye(5, dtype=torch.float64))
    x0 = target.sample(4000, generator=torch.Generator().manual_seed(5))
    for row in calibration(target.denoiser(process), x0, times=5):
        t = torch.tensor(row.t, dtype=torch.float64)
        signal = (process.alpha(t).square() * v).item()
        exact = signal / (signal + process.var(t).item())
        # Measured: a mean of 20000 squares of normals of this variance, of relative error 1 %; 5 standard errors.
        assert row.measured == pytest.approx(exact, rel=0.05)
        assert row.predicted == pytest.approx(exact, rel=0.05, abs=5.0 * row.standard_error)


@pytest.mark.parametrize("factor", [1.2, 0.8])
def test_a_wrong_scale_is_told_with_its_sign_and_size(gaussian: Gaussian, factor: float) -> None:
    """The gap is 2 c (c - 1) E|eps|^2 / D: positive for a network that answers too much, negative for too little."""
    process = VP()
    x0 = gaussian.sample(4000, generator=torch.Generator().manual_seed(6))
    exact = list(calibration(gaussian.denoiser(process), x0, times=4))
    wrong = list(calibration(Louder(gaussian.denoiser(process), factor), x0, times=4))
    for good, bad in zip(exact, wrong):
        size = 1.0 - good.predicted  # E|eps|^2 / D, as E|z|^2 / D = 1
        assert bad.gap == pytest.approx(2.0 * factor * (factor - 1.0) * size, abs=5.0 * bad.standard_error + 0.02)
    assert min(abs(row.z) for row in wrong[2:]) > 20.0
    assert all(math.copysign(1.0, row.gap) == math.copysign(1.0, factor - 1.0) for row in wrong[2:])


def test_calibration_is_keyed_by_sample_and_lazy(gaussian: Gaussian) -> None:
    louder = Louder(gaussian.denoiser(VP()), 1.0)
    x0 = gaussian.sample(6, generator=torch.Generator().manual_seed(7))
    rows = calibration(louder, x0, times=3, index=torch.arange(6))
    assert louder.seen == []
    next(rows)
    assert len(louder.seen) == 1
    # The mean over six samples is that of two halves under their own indices.
    (whole, *_), (a, *_), (b, *_) = (
        list(calibration(louder, x0[part], times=3, index=torch.arange(6)[part]))
        for part in (slice(0, 6), slice(0, 3), slice(3, 6))
    )
    assert whole.measured == pytest.approx(0.5 * (a.measured + b.measured), rel=1e-12)
    assert math.isnan(next(calibration(louder, x0[:1], times=3)).standard_error)


@pytest.mark.parametrize(("times", "n"), [(1, 3), (0, 3), (2.5, 3), (4, 0)])
def test_bad_requests(gaussian: Gaussian, times: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"times={times}" if n else "0 samples"):
        calibration(gaussian.denoiser(VP()), torch.zeros(n, 2, dtype=torch.float64), times=times)
