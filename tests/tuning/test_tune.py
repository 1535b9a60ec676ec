"""Tuned grids: better than standard grids, also for samples outside the pilot, for samples and for likelihoods."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sde import tune_grid
from sde.denoisers import Denoiser, NetworkDenoiser, Prediction
from sde.exact import Mixture
from sde.grids import Explicit, Grid, Karras, LogSNR, Quadratic, Uniform
from sde.likelihood import log_prob
from sde.measurement import PilotVariance
from sde.networks import MLP
from sde.noise import Noise, Stream
from sde.processes import SDE, VE, VP
from sde.sampling import sample
from sde.shapes import expand
from sde.solvers import (
    DEIS,
    DORMAND_PRINCE_8,
    AdamsBashforth,
    Arcsinh,
    EulerMaruyama,
    GridSteps,
    Langevin,
    PredictorCorrector,
    RungeKutta,
    UniPC,
)
from sde.trace import ExactTrace
from sde.tuning import EqualError, Gradient, load_grid, save_grid, save_variance


def errors(mixture: Mixture, process: SDE, solver: GridSteps, grids: Sequence[Grid]) -> list[float]:
    """The root mean square distance from the exact flow, for 64 starts and each grid."""
    d, index = mixture.denoiser(process), torch.arange(64)
    x = Noise(1).normal(Stream.PRIOR, index, torch.zeros_like(index), (2,), torch.float64)
    x = process.prior_var(torch.tensor(process.t_max, dtype=torch.float64)).sqrt() * x
    exact = sample(d, x_T=x, solver=RungeKutta(DORMAND_PRINCE_8, 1e-9, 1e-9)).x
    ends = [sample(d, x_T=x, solver=replace(solver, grid=grid)).x for grid in grids]
    return [float((end - exact).square().mean().sqrt()) for end in ends]


@pytest.mark.parametrize(
    ("process", "solver"), [(VP(), UniPC(8, 3, variable=Arcsinh())), (VE(), DEIS(8))], ids=["VP-UniPC", "VE-DEIS"]
)
def test_a_tuned_grid_is_better_than_the_standard_grids(process: SDE, solver: GridSteps, mixture: Mixture) -> None:
    """For samples that are not among those of the pilot. All seeds are fixed."""
    grid = tune_grid(mixture.denoiser(process), (64, 2), solver, tuning=Gradient(20))
    assert (grid.points[0], grid.points[-1]) == (process.t_max, process.t_min)
    assert len(grid.points) == 9
    tuned, *usual = errors(mixture, process, solver, [grid, LogSNR(), Karras(), Quadratic(), Uniform()])
    assert tuned < 0.8 * min(usual), usual


@pytest.mark.parametrize("process", [VP(), VE()], ids=repr)
def test_equal_errors_without_gradients(process: SDE, mixture: Mixture) -> None:
    """Better than the grids that do not depend on the model."""
    solver = DEIS(24)
    grid = tune_grid(mixture.denoiser(process), (32, 2), solver, tuning=EqualError())
    assert (grid.points[0], grid.points[-1]) == (process.t_max, process.t_min)
    tuned, *usual = errors(mixture, process, solver, [grid, LogSNR(), Karras(), Uniform()])
    assert tuned < min(usual), usual


def test_a_grid_for_likelihoods(mixture: Mixture) -> None:
    """Tuned on 24 points, scored on 64 others against the exact log-density."""
    process, solver = VP(), DEIS(12, 3)
    d, generator = mixture.denoiser(process), torch.Generator().manual_seed(0)
    pilot, x = mixture.at(process, process.t_min).sample(88, generator=generator).split([24, 64])
    prior = mixture.at(process, process.t_max)
    grid = tune_grid(d, data=pilot, solver=solver, trace=ExactTrace(), tuning=Gradient(10), tolerance=1e-6)
    exact = mixture.log_prob(x, process, process.t_min)

    def mean_error(solver: GridSteps) -> float:
        return float((log_prob(d, x, solver=solver, trace=ExactTrace(), prior=prior).nats - exact).abs().mean())

    standard = [mean_error(replace(solver, grid=g)) for g in (LogSNR(), Uniform(), Quadratic(), Karras())]
    assert mean_error(replace(solver, grid=grid)) < 0.5 * min(standard), standard


def test_the_pilot_is_not_the_sample(mixture: Mixture) -> None:
    """The pilot starts from other draws of the prior than `sample` with the same seed."""
    states: list[Tensor] = []

    class Recorder(NetworkDenoiser):
        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            states.append(x_t)
            return mixture.denoiser(VP())(x_t, t)

        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return Denoiser.predict(self, what, x_t, t, **condition)

    d = Recorder(nn.Identity(), VP())
    tune_grid(d, (4, 2), DEIS(3), tuning=EqualError(3, 20), dtype=torch.float64, seed=5)
    start = states[0]
    states.clear()
    sample(d, (4, 2), solver=DEIS(3), seed=5, dtype=torch.float64)
    assert not bool(torch.isclose(start, states[0]).any())


def test_a_network_in_float32_is_tuned_and_left_as_it_was() -> None:
    """The gradient goes through a network; its parameters get none, and its mode and their flags stay."""
    torch.manual_seed(0)
    network = MLP(2, width=16, depth=1)
    nn.init.normal_(network.outlet[2].weight, std=0.3)
    d = NetworkDenoiser(network, VP()).train()
    d.network.inlet.weight.requires_grad_(False)
    flags = [p.requires_grad for p in d.parameters()]
    grid = tune_grid(d, (8, 2), UniPC(5), tuning=Gradient(8))
    assert len(grid.points) == 6
    assert [p.requires_grad for p in d.parameters()] == flags
    assert all(p.grad is None for p in d.parameters())
    assert d.training


def test_tuning_stops_after_its_time(mixture: Mixture) -> None:
    """When the time is up after a few iterations, the best grid so far is returned."""
    start = time.monotonic()
    grid = tune_grid(mixture.denoiser(VP()), (4, 2), DEIS(5), tuning=Gradient(10**6), seconds=2.0)
    assert len(grid.points) == 6
    assert time.monotonic() - start < 3.0


def test_the_same_seed_gives_the_same_grid(mixture: Mixture) -> None:
    d = mixture.denoiser(VP())
    grids = [tune_grid(d, (8, 2), DEIS(4), tuning=Gradient(8), seed=seed) for seed in (0, 0, 1)]
    assert grids[0] == grids[1]
    assert grids[0] != grids[2]


def test_one_step_has_nothing_to_tune(mixture: Mixture) -> None:
    assert tune_grid(mixture.denoiser(VP()), (4, 2), DEIS(1)).points == (1.0, 1e-5)


def test_conditions_reach_the_denoiser(mixture: Mixture) -> None:
    class Labelled(NetworkDenoiser):
        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            assert condition["label"].shape == (len(x_t),)
            return mixture.denoiser(VP())(x_t, t)

        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return Denoiser.predict(self, what, x_t, t, **condition)

    d = Labelled(nn.Identity(), VP())
    label = torch.tensor([0, 1, 1, 0])
    tune_grid(d, (4, 2), DEIS(3), tuning=EqualError(3, 20), condition={"label": label}, dtype=torch.float64)


@pytest.mark.parametrize(
    "solver", [EulerMaruyama(5), DEIS(5, eta=1.0), PredictorCorrector(EulerMaruyama(5), Langevin(0.1))]
)
def test_a_solver_with_noise_is_refused(mixture: Mixture, solver: GridSteps) -> None:
    with pytest.raises(ValueError, match=f"got {type(solver).__name__}"):
        tune_grid(mixture.denoiser(VP()), (4, 2), solver)


def test_what_else_is_refused(mixture: Mixture) -> None:
    d = mixture.denoiser(VP())
    with pytest.raises(ValueError, match="RungeKutta"):
        tune_grid(d, (4, 2), RungeKutta())  # type: ignore[arg-type]
    for arguments in ({}, {"shape": (4, 2), "data": torch.zeros(4, 2)}):
        with pytest.raises(ValueError, match=r"shape=.*data="):
            tune_grid(d, solver=DEIS(3), **arguments)  # type: ignore[arg-type]
    for settings, quantity in (({"iterations": 0}, "iterations=0"), ({"starts": 0}, "starts=0")):
        with pytest.raises(ValueError, match=quantity):
            Gradient(**settings)
    for settings, quantity in (({"order": 0}, "order=0"), ({"points": 5}, "points=5")):
        with pytest.raises(ValueError, match=quantity):
            EqualError(**settings)


def test_a_denoiser_that_is_not_finite_is_an_error() -> None:
    class Broken(NetworkDenoiser):
        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return x_t * expand(torch.where(t < 0.5, math.nan, 1.0), x_t)

    with pytest.raises(FloatingPointError):
        tune_grid(Broken(MLP(2, 8, 1), VP()), (4, 2), DEIS(4))


def test_a_pilot_run_is_not_lost_where_nothing_can_be_written(tmp_path: Path) -> None:
    """What follows it goes on, with a warning."""
    (tmp_path / "grids").touch()
    words = r"grids.UniPC.*cannot be written, and the next run needs a pilot of its own: .*grids"
    with pytest.warns(UserWarning, match=words):
        save_grid(tmp_path, UniPC(1), Explicit([1.0, 1e-5]))
    with pytest.warns(UserWarning, match="cannot be written"):
        save_variance(tmp_path, "pilot", PilotVariance([0.0, 1.0], [1.0, 0.5]))
    assert (tmp_path / "grids").read_bytes() == b""


def test_grids_are_saved(tmp_path: Path) -> None:
    """A grid is saved for all settings of a solver except its grid, and for one purpose."""
    solver, grid = UniPC(4, grid=Uniform()), Explicit([1.0, 0.5, 0.3, 0.1, 1e-5])
    assert load_grid(tmp_path, solver) is None
    path = save_grid(tmp_path, solver, grid)
    assert path.parent == tmp_path / "grids"
    assert load_grid(tmp_path, UniPC(4, grid=Karras())) == grid
    for other in (UniPC(5), UniPC(4, 2), UniPC(4, variable=Arcsinh()), AdamsBashforth(4)):
        assert load_grid(tmp_path, other) is None
    assert load_grid(tmp_path, solver, data=True) is None
    # Another order has a file of its own, and a file of version 0.1.0 had no digest in its name.
    save_grid(tmp_path, UniPC(4, 2), Explicit([1.0, 0.4, 0.2, 0.1, 1e-5]))
    assert load_grid(tmp_path, solver) == grid
    path = path.rename(path.with_name("UniPC-4-sample.json"))
    assert load_grid(tmp_path, solver) == grid
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"{re.escape(path.name)}.*delete"):
        load_grid(tmp_path, solver)
