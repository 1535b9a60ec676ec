"""Designed solvers: better than a tuned grid on samples that no pilot saw, within their time, and honest about both."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from support.classes import Classes
from support.fixtures import DIGITS_MIXTURE, arrays
from torch import Tensor, nn

import sde
from sde import tune_grid, tune_solver
from sde.denoisers import Denoiser, NetworkDenoiser, Prediction, Wrapper
from sde.exact import Gaussian, Mixture
from sde.grids import Karras, LogSNR, Quadratic, Uniform
from sde.guidance import ClassifierFree
from sde.networks import MLP
from sde.noise import Noise, Stream
from sde.processes import SDE, VE, VP
from sde.sampling import sample
from sde.solvers import DORMAND_PRINCE_8, Arcsinh, Designed, RungeKutta, Solver, UniPC
from sde.tuning import load_solver, purpose
from sde.tuning.design import Design
from sde.tuning.gauss_newton import Descent, gradients, run
from sde.tuning.hard_starts import with_hard_starts
from sde.tuning.reference import pilot_flow, solved


def error(mixture: Mixture, process: SDE, solver: Solver) -> float:
    """The root mean square distance from the exact flow, for 64 starts that no pilot has."""
    d, index = mixture.denoiser(process), torch.arange(64)
    x = Noise(1).normal(Stream.PRIOR, index, torch.zeros_like(index), (2,), torch.float64)
    x = process.prior_var(torch.tensor(process.t_max, dtype=torch.float64)).sqrt() * x
    exact = sample(d, x_T=x, solver=RungeKutta(DORMAND_PRINCE_8, 1e-9, 1e-9)).x
    return float((sample(d, x_T=x, solver=solver).x - exact).square().mean().sqrt())


@pytest.mark.parametrize("process", [VP(), pytest.param(VE(), marks=pytest.mark.slow)], ids=repr)
def test_it_is_better_than_the_best_standard_grid(process: SDE, mixture: Mixture) -> None:
    """For samples that are not among those of the pilot. All seeds are fixed."""
    solver = tune_solver(mixture.denoiser(process), (48, 2), 4)
    assert solver.steps == 4
    assert (solver.times[0], solver.times[-1]) == (process.t_max, process.t_min)
    grids = (LogSNR(), Karras(), Quadratic(), Uniform())
    plain = [error(mixture, process, UniPC(4, 3, variable=Arcsinh(), grid=grid)) for grid in grids]
    assert error(mixture, process, solver) < 0.5 * min(plain), plain


def test_a_gaussian_is_learned_to_three_digits() -> None:
    """Of a Gaussian with one standard deviation the flow is linear: numbers that solve it exactly exist."""
    target = Gaussian(torch.zeros(2, dtype=torch.float64), 0.25 * torch.eye(2, dtype=torch.float64))
    solver = tune_solver(target.denoiser(VP()), (16, 2), 2, tolerance=1e-6)
    assert error(target, VP(), solver) < 1e-3


def test_a_solver_for_likelihoods(mixture: Mixture) -> None:
    """Designed on 24 points, scored on 64 others against the exact log-density."""
    process, steps = VP(), 6
    d, generator = mixture.denoiser(process), torch.Generator().manual_seed(0)
    pilot, x = mixture.at(process, process.t_min).sample(96, generator=generator).split([32, 64])
    solver = tune_solver(d, data=pilot, steps=steps, trace=sde.ExactTrace())
    assert solver.density is not None
    exact = mixture.log_prob(x, process, process.t_min)
    prior = mixture.at(process, process.t_max)

    def mean_error(solver: Solver) -> float:
        return float((sde.log_prob(d, x, solver=solver, trace=sde.ExactTrace(), prior=prior).nats - exact).abs().mean())

    assert mean_error(solver) < 0.3 * mean_error(UniPC(steps, 3, variable=Arcsinh()))


@pytest.mark.parametrize("likelihood", [False, True])
def test_the_gradients_of_every_number(mixture: Mixture, likelihood: bool) -> None:
    """One step at a time, for each sample, against central differences of whole runs."""
    process = VP()
    generator = torch.Generator().manual_seed(0)
    data = mixture.sample(3, generator=generator) if likelihood else None
    flow = pilot_flow(mixture.denoiser(process), None if likelihood else (3, 2), data, trace=sde.ExactTrace())
    times = LogSNR().times(process, 4, flow.start, flow.stop)
    design = Design(UniPC(4), process, times, 0.7, density=likelihood)
    theta = 0.1 * torch.randn(sum(design.sizes), generator=generator, dtype=torch.float64)
    numbers, jacobian = design.jacobian(theta)
    v = tuple(torch.randn(e.shape, generator=generator, dtype=torch.float64) for e in flow.begin)

    def product(theta: Tensor) -> Tensor:
        end = run(flow.dynamics, flow.begin, design.numbers(theta)[2])[0][-1]
        return sum((a * e).flatten(1).sum(1) for a, e in zip(v, end))  # type: ignore[return-value]

    states, predictions = run(flow.dynamics, flow.begin, numbers)
    (found,) = gradients(flow, numbers, states, predictions, [v], math.inf)
    unit = 1e-5 * torch.eye(len(theta), dtype=torch.float64)
    expected = torch.stack([(product(theta + e) - product(theta - e)) / 2e-5 for e in unit], 1)
    torch.testing.assert_close(found @ jacobian, expected, rtol=1e-5, atol=1e-6)


def test_it_starts_at_the_plain_method(mixture: Mixture) -> None:
    process, plain = VP(), UniPC(4, 3, variable=Arcsinh(0.7))
    design = Design(plain, process, LogSNR().times(process, 4, 1.0, 1e-5), 0.7)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = mixture.denoiser(process)
    both = (sample(d, x_T=x, solver=s).x for s in (design.solver(design.start(), ""), plain))
    torch.testing.assert_close(*both)


def test_bfgs_goes_on_where_gauss_newton_steps_end(mixture: Mixture) -> None:
    """Its objective never rises, and the parameters that remain are those of its last report."""
    process = VP()
    flow = solved(pilot_flow(mixture.denoiser(process), (48, 2), None), 1e-6)
    design = Design(UniPC(4, 3, variable=Arcsinh()), process, LogSNR().times(process, 4, flow.start, flow.stop), 1.0)
    prior = torch.tensor([1e-4], dtype=torch.float64)
    descent = Descent(design, flow, math.inf, torch.Generator().manual_seed(0), prior)
    descent.begin(design.start())
    free = torch.ones(sum(design.sizes), dtype=torch.bool)
    for _ in range(5):
        descent.step(free)
    begun, values = descent.held_out(flow), list[float]()
    descent.refine(free, 20, lambda: values.append(descent.held_out(flow)))
    assert values[-1] < 0.5 * begun
    assert values[-1] == descent.held_out(flow)
    errors = flow.errors(run(flow.dynamics, flow.begin, design.numbers(descent.parameters)[2])[0][-1])
    torch.testing.assert_close(errors.square().mean(1), descent.squares)


class Moved(Wrapper):
    """The data moved by 4 for the label 1."""

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        by = 4.0 * condition["label"].to(x_t)[:, None]
        return self.inner.predict(what, x_t - by, t) + by


def test_half_of_a_pilot_starts_near_a_border() -> None:
    """Two modes, with the border between them where the label says: the hardest starts of eight are near it."""
    half, means = torch.tensor([0.5, 0.5]).double(), torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    inner = Mixture(half, means, 0.01 * torch.ones(2, 1, 1, dtype=torch.float64)).denoiser(VE(sigma_max=4.0))
    d, label = Moved(inner), torch.arange(128) % 2
    flow = pilot_flow(d, (128, 1), None, condition={"label": label})
    harder = with_hard_starts(flow, 0)
    before, after = (f.begin[0] for f in (flow, harder))
    moved = (before != after)[:, 0]
    assert moved.sum() == 64

    def stretch(x: Tensor) -> Tensor:
        ends = (
            sample(d, x_T=each, condition={"label": label}, solver=UniPC(64, 3, variable=Arcsinh())).x
            for each in (x - 1e-3, x + 1e-3)
        )
        return torch.sub(*ends).abs()[:, 0]

    # The hardest of eight in half of the cases are about a twelfth of all starts.
    assert stretch(after)[moved].median() > stretch(before).quantile(0.9)
    near, typical = ((x[:, 0] - 4.0 * label).abs() for x in (after, before))
    for each in (0, 1):
        assert near[moved & (label == each)].median() < 0.25 * typical[label == each].median()
    assert torch.equal(with_hard_starts(flow, 0, deadline=-math.inf).begin[0], before)


class Clocked(Wrapper):
    """A network whose calls take 0.05 s by a clock of its own."""

    clock = 0.0

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        Clocked.clock += 0.05
        return self.inner.predict(what, x_t, t, **condition)


def test_its_time_bounds_everything(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accurate solution as well: 20 s end within 25 s. Without any solution, there is a plain solver."""
    monkeypatch.setattr(time, "monotonic", lambda: Clocked.clock)
    d = Clocked(mixture.denoiser(VP()))
    Clocked.clock = 0.0
    solver = tune_solver(d, (4000, 2), 4, seconds=20.0)
    assert 6.0 < Clocked.clock < 25.0
    assert "pilot samples" in solver.origin
    Clocked.clock = 0.0
    tune_grid(d, (64, 2), UniPC(4), tolerance=1e-2, seconds=20.0)
    assert Clocked.clock < 25.0
    with pytest.warns(UserWarning, match=r"seconds=0\.05"):
        plain = tune_solver(d, (64, 2), 4, seconds=0.05)
    assert "nothing" in plain.origin
    with pytest.warns(UserWarning, match="not tuned"):
        tune_grid(d, (64, 2), UniPC(4), seconds=0.05)


def test_a_network_in_float32_and_its_condition() -> None:
    """The pilot gets the condition, the network keeps its mode and flags, and the solver names what it was made for."""
    torch.manual_seed(0)
    seen: list[Tensor] = []

    class Labelled(NetworkDenoiser):
        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            seen.append(condition.pop("label"))
            return super().predict(what, x_t, t)

    network = MLP(2, width=16, depth=1)
    nn.init.normal_(network.outlet[2].weight, std=0.3)
    d = Labelled(network, VP()).train()
    d.takes = None
    label = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    solver = tune_solver(d, (8, 2), 4, condition={"label": label}, tolerance=1e-2)
    assert {len(part) for part in seen} >= {8, 6, 2}
    assert d.training
    assert all(p.requires_grad and p.grad is None for p in d.parameters())
    for part in ("samples of Labelled", "given label", "8 pilot samples", "VP("):
        assert part in f"{solver} {solver.process}"
    assert solver.conditions == (("label", (0, 1)),)
    sample(d, (2, 2), solver=solver, condition={"label": torch.tensor([1, 0])})
    for other in ({"label": torch.tensor([1, 7])}, {"label": 7}):
        with pytest.warns(UserWarning, match="label 7, for which its error is not known"):
            sample(d, (2, 2), solver=solver, condition=other)


def test_guided_and_conditional_models(mixture: Mixture) -> None:
    """For samples with other labels in turn than the pilot's, along the flow of the guided score."""
    model = Classes(mixture, VP())
    d = ClassifierFree(model, 2.0, {"label": 3})
    solver = tune_solver(d, (12, 2), 2, condition={"label": torch.arange(12) % 3}, tolerance=1e-2)
    label, x = torch.arange(30) // 10, torch.randn(30, 2, generator=torch.Generator().manual_seed(0)).double()
    runs = {}
    for name, s in (("exact", RungeKutta(rtol=1e-5, atol=1e-5)), ("plain", UniPC(2)), ("designed", solver)):
        runs[name] = sample(d, x_T=x, solver=s, condition={"label": label}).x
    plain, designed = (float((runs[name] - runs["exact"]).square().mean().sqrt()) for name in ("plain", "designed"))
    assert designed < 0.7 * plain
    assert solver.origin.startswith("samples of ClassifierFree(weight=2.0, ")
    assert "given label 0 to 2, from 12" in solver.origin
    others = [(ClassifierFree(model, w, {"label": 3}, high=h), torch.arange(n)) for w, h, n in CASES]
    assert len({purpose(d, {"label": label}) for d, label in others}) == len(CASES)  # each has a file of its own


CASES = ((2.0, None, 3), (3.0, None, 3), (2.0, 1.0, 3), (2.0, None, 2))


def test_a_condition_that_the_model_does_not_know_is_refused_before_the_first_call() -> None:
    class Untouched(MLP):
        def forward(self, *args: Tensor, **condition: Tensor) -> Tensor:
            raise AssertionError("called")

    d = NetworkDenoiser(Untouched(2, width=8, depth=1, classes=3), VP())
    for name, value in (("label", torch.tensor([0, 1, 2, 7])), ("text", torch.zeros(4)), ("label", torch.ones(3))):
        with pytest.raises(ValueError, match=r"label|text"):
            tune_solver(d, (4, 2), 3, condition={name: value})


def test_the_same_seed_gives_the_same_solver(mixture: Mixture) -> None:
    d = mixture.denoiser(VP())
    solvers = [tune_solver(d, (16, 2), 2, seed=seed) for seed in (0, 0, 1)]
    assert solvers[0].times == pytest.approx(solvers[1].times, rel=1e-6)
    assert solvers[0].times[1] != pytest.approx(solvers[2].times[1], rel=1e-2)


def test_a_model_keeps_it(mixture: Mixture, tmp_path: Path) -> None:
    """In its run directory, by its public name, for one number of steps, process and denoiser."""
    model = sde.Model(mixture.denoiser(VP()), sde.data.Scaling(1.0, 0.0), (2,))
    solver = model.designed(2, tmp_path, pilot=8)
    (path,) = tmp_path.glob("grids/Designed-2-*.json")
    assert json.loads(path.read_text())["solver"]["_target_"] == "sde.solvers.Designed"
    assert load_solver(tmp_path, 2, purpose(model.denoiser), repr(VP())) == solver
    assert model.sample(3, solver=solver).shape == (3, 2)
    for steps, process in ((3, VP()), (2, VE())):
        assert load_solver(tmp_path, steps, purpose(model.denoiser), repr(process)) is None
    path.write_text("{")
    with pytest.raises(ValueError, match=r"delete it to design it again"):
        model.designed(2, tmp_path, pilot=8)


def test_what_is_refused(mixture: Mixture) -> None:
    d = mixture.denoiser(VP())
    with pytest.raises(ValueError, match=r"at least 4 samples.*got 1"):
        tune_solver(d, (1, 2), 5)
    with pytest.raises(ValueError, match=r"shape=.*data=.*neither"):
        tune_solver(d)
    with pytest.raises(ValueError, match="steps=0"):
        tune_solver(d, (8, 2), 0)
    with pytest.raises(ValueError, match=r"a shape \(B, \*\) of the pilot.*got 8"):
        tune_solver(d, 8, 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite at index 2"):
        tune_solver(d, data=torch.zeros(8, 2).index_fill(0, torch.tensor([2]), math.nan), steps=2)
    for seconds in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"seconds > 0.*{seconds}"):
            tune_solver(d, (8, 2), 5, seconds=seconds)
        with pytest.raises(ValueError, match=f"seconds > 0.*{seconds}"):
            tune_grid(d, (8, 2), UniPC(5), seconds=seconds)


class Broken(Denoiser):
    """Not finite for positive states beyond a bound, at some times."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.process, self.bound = VP(), bound

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        bad = (x_t[:, :1] > self.bound).expand_as(x_t)
        return torch.where(bad, math.nan, 0.5 * x_t)


def test_marked_failures_are_left_out() -> None:
    with pytest.warns(UserWarning, match="samples of the pilot failed"):
        flow = solved(pilot_flow(Broken(1.0), (32, 2), None), 1e-2)
    assert 0 < len(flow) < 32
    assert bool(flow.truth[0].isfinite().all())
    with pytest.raises(FloatingPointError, match="every solution"):
        tune_solver(Broken(-math.inf), (8, 2), 3)


@pytest.mark.slow
@pytest.mark.parametrize(("calls", "bound"), [(5, 0.050), (8, 0.020), (10, 0.015), (20, 0.0012)])
def test_on_the_digits_mixture(calls: int, bound: float) -> None:
    """RMS distance to the exact ends for 128 starts, in standard deviations of the data."""
    content = arrays(DIGITS_MIXTURE)
    target = Mixture(*(content[name] for name in ("weights", "means", "covs")))
    d = target.denoiser(VE(sigma_min=0.0104, sigma_max=152.0))
    solver: Designed = tune_solver(d, (384, 64), calls)
    difference = sample(d, x_T=content["start"], solver=solver).x - content["end"]
    assert float(difference.square().mean().sqrt() / content["data_std"]) < bound
