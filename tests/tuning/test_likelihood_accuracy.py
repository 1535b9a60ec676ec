"""Likelihoods at a stated error: what is chosen holds it on other rows, or it is the adaptive solver, and says so."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde.denoisers import Prediction, Wrapper
from sde.exact import Mixture
from sde.grids import LogSNR
from sde.likelihood.flow import step_error
from sde.noise import Noise, Stream
from sde.processes import SDE, VE, VP
from sde.solvers import Arcsinh, Designed, RungeKutta, UniPC
from sde.tuning import Choice, PilotRows, choose_solver, pilot_rows
from sde.tuning.design import Design
from sde.tuning.likelihood import CONFIRMED, PILOT, _Runs, _runs, _times


@pytest.fixture(scope="module")
def gentle() -> Mixture:
    """Two modes that overlap, so that no sample has an error far above the others'."""
    means = torch.tensor([[-0.6, 0.3], [0.5, -0.2]], dtype=torch.float64)
    return Mixture(torch.tensor([0.6, 0.4]).double(), means, 0.3 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2))


def rows(mixture: Mixture, process: SDE, n: int, seed: int) -> PilotRows:
    x = mixture.at(process, process.t_min).sample(n, generator=Noise(seed).generator(Stream.PERTURB, 0))
    return PilotRows(x, torch.arange(n), {})


def errors(mixture: Mixture, process: SDE, choice: Choice, x: Tensor) -> Tensor:
    """Of other rows, in bits/dim, against a tight solution with the same probes."""
    d, how = mixture.denoiser(process), {"seed": 3}
    nats = sde.log_prob(d, x, solver=choice.solver, atol=choice.atol, **how).nats  # type: ignore[arg-type]
    exact = sde.log_prob(d, x, solver=RungeKutta(rtol=1e-5, atol=1e-5), atol=1e-4, **how).nats  # type: ignore[arg-type]
    return (nats - exact) / (x.shape[1] * math.log(2.0))


def choose(mixture: Mixture, process: SDE, seed: int = 0, n: int = 1000, **error: Any) -> Choice:
    fitted, unseen = (rows(mixture, process, size, 2 * seed + i) for i, size in enumerate((PILOT, CONFIRMED)))
    return choose_solver(mixture.denoiser(process), fitted, unseen, n, **error)


def test_what_is_chosen_holds_the_error(gentle: Mixture) -> None:
    choice = choose(gentle, VP(), error=4e-3, error_per_image=1.6e-2)
    assert isinstance(choice.solver, Designed)
    assert choice.solver.steps <= 64
    assert "confirmed on unseen rows" in str(choice)
    assert choice.calls > 0
    assert choice.confirmation > 0
    left = errors(gentle, VP(), choice, rows(gentle, VP(), 24, 99).x)
    assert float(left.square().mean().sqrt()) < 1.6e-2
    assert abs(float(left.mean())) < 4e-3
    assert Choice.from_json(choice.to_json()) == choice


def test_half_of_the_steps_follow_the_rate_of_the_log_density() -> None:
    """A constant rate leaves the times even in s; a peak draws half of the steps under it."""
    process, n = VP(), 40
    even = LogSNR().times(process, n, process.t_min, process.t_max)
    s = -0.5 * process.log_snr(even)
    torch.testing.assert_close(_times(process, n, (s, torch.ones_like(s))), even)
    peak = _times(process, n, (s, torch.ones_like(s) * ((s > 0.0) & (s < 1.0))))
    places = -0.5 * process.log_snr(peak)
    rise = float(s[1] - s[0])  # of the interpolated rate, on either side
    count = int(((places > -rise) & (places < 1.0 + rise)).sum())
    share = (1.0 + 2.0 * rise) / float(s[-1] - s[0])
    assert abs(count - n * 0.5 * (1.0 + share)) <= 2
    assert torch.equal(peak[[0, -1]], even[[0, -1]])


@pytest.mark.slow
@pytest.mark.parametrize("process", [VP(), VE()], ids=repr)
def test_errors_are_as_stated_in_95_of_100_cases(gentle: Mixture, process: SDE) -> None:
    """In at least 38 of 40 pilots; the errors of 64 other rows each. All seeds are fixed."""
    held, x = 0, rows(gentle, process, 64, 99).x
    for seed in range(40):
        left = errors(gentle, process, choose(gentle, process, seed, error=4e-3, error_per_image=1.6e-2), x)
        held += float(left.square().mean().sqrt()) <= 1.6e-2 and abs(float(left.mean())) <= 4e-3
    assert held >= 38


def test_where_no_pilot_pays(mixture: Mixture) -> None:
    """For a few rows, and for errors that no number of calls on the ladder meets: the adaptive solver."""
    few = choose(mixture, VP(), n=63, error=1e-3)
    assert isinstance(few.solver, RungeKutta)
    assert few.calls == 0
    assert "63 rows" in str(few)
    assert few.atol == pytest.approx(step_error(1e-3, None) * 2.0 * math.log(2.0))
    assert Choice.from_json(few.to_json()) == few
    tight = choose(mixture, VP(), error=1e-3)
    assert isinstance(tight.solver, RungeKutta)
    assert "accurate enough" in str(tight) or "not confirmed" in str(tight)


def test_the_reference_doubles_its_steps_until_half_of_them_agrees(gentle: Mixture) -> None:
    loose = choose(gentle, VP(), error=4e-3, error_per_image=1.6e-2)
    assert isinstance(loose.solver, Designed)
    assert loose.confirmation == (128 + loose.solver.steps) * CONFIRMED
    never = choose(gentle, VP(), error=1e-12)
    assert isinstance(never.solver, RungeKutta)
    assert "not even 512" in str(never)
    assert never.confirmation == (128 + 256 + 512) * CONFIRMED
    assert never.calls == (20 + 64 + 128 + 256 + 512) * PILOT


def test_the_reference_agrees_with_an_adaptive_solution(gentle: Mixture) -> None:
    """Ten times closer than the error of a sample for which it is taken."""
    process, some = VP(), rows(gentle, VP(), CONFIRMED, 1)
    times = _times(process, 128, None)
    design = Design(UniPC(128, 3, variable=Arcsinh(1.0)), process, times, 1.0, density=True)
    bits = _runs(gentle.denoiser(process), design, some, None, 0).bits
    exact = sde.log_prob(gentle.denoiser(process), some.x, solver=RungeKutta(rtol=1e-8, atol=1e-8), atol=1e-7).nats
    assert float((bits - exact / (2.0 * math.log(2.0))).square().mean().sqrt()) < 1.6e-3


class Failing(Wrapper):
    """A network that is not finite to the right of 0."""

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return torch.where(x_t[:, :1] > 0.0, math.nan, self.inner.predict(what, x_t, t))


def test_a_pilot_that_fails_goes_back_to_the_adaptive_solver(gentle: Mixture) -> None:
    fitted, unseen = rows(gentle, VP(), PILOT, 0), rows(gentle, VP(), CONFIRMED, 1)
    few = fitted.select(torch.tensor([0, 1, 2, 3]))
    for first in (few.x[:1, 0], few.x[:, 0]):
        first.fill_(1.0)
        choice = choose_solver(Failing(gentle.denoiser(VP())), few, unseen, 1000, error=4e-3)
        assert isinstance(choice.solver, RungeKutta)
        assert "failed on most of its rows" in str(choice)
    few.x[0, 0] = math.nan
    with pytest.raises(ValueError, match="the data is not finite at index 0"):
        choose_solver(gentle.denoiser(VP()), few, unseen, 1000, error=4e-3)


def test_a_rung_that_fails_on_one_row_is_passed_over() -> None:
    """It is not judged by the rows that are left; a row without a reference is no row."""
    some = torch.arange(24, dtype=torch.float64).reshape(6, 4).sin()
    times = (torch.ones(5), torch.ones(5))
    tilt, left = _Runs(some.sum(1), some, times).fit(0.5 * some.sum(1))
    assert float(left.abs().max()) < 0.5
    torch.testing.assert_close(some @ tilt, 0.5 * some.sum(1), atol=0.1, rtol=0.0)
    failed = _Runs(some.sum(1).index_fill(0, torch.tensor(2), math.nan), some, times)
    assert bool(failed.fit(0.5 * some.sum(1))[1].isinf().all())
    marked = (0.5 * some.sum(1)).index_fill(0, torch.tensor(2), math.nan)
    assert failed.fit(marked)[1].shape == (5,)
    assert bool(failed.fit(marked)[1].isfinite().all())


def test_a_guided_denoiser_is_refused_unless_asked_for(gentle: Mixture) -> None:
    denoiser = gentle.denoiser(VP())
    denoiser.guided = True
    some = rows(gentle, VP(), 8, 0)
    with pytest.raises(ValueError, match="guided=True computes the density of the flow"):
        choose_solver(denoiser, some, some, 1000, error=1e-2)


def test_rows_that_are_unlike_the_pilot_go_back_to_the_adaptive_solver(gentle: Mixture) -> None:
    """The unseen rows are far from the data: what fits the pilot fails there, and the choice says so."""
    process = VP()
    fitted, unseen = rows(gentle, process, PILOT, 0), rows(gentle, process, CONFIRMED, 1)
    far = PilotRows(6.0 * unseen.x, unseen.index, {})
    choice = choose_solver(gentle.denoiser(process), fitted, far, 1000, error=4e-3, error_per_image=1.6e-2)
    assert isinstance(choice.solver, RungeKutta)
    assert "not confirmed on unseen rows" in str(choice)
    assert choice.confirmation > 0


def test_what_is_refused(mixture: Mixture) -> None:
    for given in ({}, {"error": 0.0}, {"error": 1e-3, "error_per_image": -1.0}, {"error_per_image": math.nan}):
        with pytest.raises(ValueError, match="expected error > 0 or error_per_image > 0"):
            choose(mixture, VP(), **given)
    d, x = mixture.denoiser(VP()), torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"either atol= or error="):
        sde.log_prob(d, x, atol=1e-3, error=1e-3)


def test_a_log_density_within_an_error(mixture: Mixture) -> None:
    """Without a pilot: the adaptive solver takes more calls for a smaller error."""
    d, x = mixture.denoiser(VP()), rows(mixture, VP(), 4, 0).x
    loose, tight = (sde.log_prob(d, x, error_per_image=e).nfe.sum() for e in (1e-1, 1e-3))
    assert int(loose) < int(tight)


def test_the_rows_of_a_pilot_keep_their_conditions() -> None:
    label = torch.arange(100)
    fitted, unseen = pilot_rows(PilotRows(label[:, None].double(), label, {"label": label, "scale": torch.tensor(2.0)}))
    assert (len(fitted.x), len(unseen.x)) == (PILOT, CONFIRMED)
    for part in (fitted, unseen):
        assert torch.equal(part.x[:, 0].long(), part.index)
        assert torch.equal(part.condition["label"], part.index)
        assert part.condition["scale"].ndim == 0
    assert not set(fitted.index.tolist()) & set(unseen.index.tolist())


def test_a_model_takes_the_errors(gentle: Mixture) -> None:
    model = sde.Model(gentle.denoiser(VP()), sde.data.Scaling(1.0, 0.0), (2,))
    x = rows(gentle, VP(), 64, 5).x
    r = model.log_prob(x, error=4e-3, error_per_image=1.6e-2)
    assert len(set(r.nfe.tolist())) == 1  # the same calls for all: no adaptive solver
    with pytest.raises(ValueError, match="error= chooses the solver"):
        model.log_prob(x, error=2e-2, solver=RungeKutta())
