"""torch's default device is the user's: with "meta" as a stand-in, nothing on the CPU computes anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import sde
from sde.data import Scaling
from sde.likelihood import chain_bound, continuous_bound, density_bound, discrete_log_prob
from sde.likelihood.diagnostics import calibration, round_trip
from sde.training import validate

HEUN = sde.solvers.Heun(2)
SOLVERS: list[sde.Solver] = [
    sde.solvers.UniPC(4, order=3, variable=sde.solvers.Arcsinh()),
    sde.solvers.DEIS(4),
    HEUN,
    sde.solvers.PredictorCorrector(sde.solvers.Ancestral(2), sde.solvers.Langevin(0.1)),
    sde.solvers.RungeKutta(rtol=1e-1, atol=1e-1),
    sde.solvers.AdaptiveSDE(rtol=0.5, atol=0.5, first_step=0.1),
    sde.solvers.ScipyODE(rtol=1e-1, atol=1e-1),
    sde.solvers.TorchSDE(steps=2),
]
TRACES: list[sde.Trace] = [sde.ExactTrace(), sde.Hutchinson(2), sde.trace.Orthogonal(2), sde.trace.XTrace(2)]
X0 = torch.tensor([[0.1, 0.5, -1.0], [0.7, -0.2, 0.3]])
LEVELS = torch.tensor([[0, 5, 16], [2, 3, 4]], dtype=torch.uint8)
LABELS = {"label": torch.tensor([1, 0])}


def network_model() -> sde.Model:
    torch.manual_seed(0)
    net = sde.networks.MLP(3, width=8, depth=1, classes=2)
    return sde.Model(sde.denoisers.NetworkDenoiser(net, sde.VP()), Scaling.interval(17), (3,), classes=2)


def gaussian_model() -> sde.Model:
    target = sde.exact.Gaussian(torch.zeros(3), torch.eye(3))
    return sde.Model(target.denoiser(sde.VP()), Scaling.identity(), (3,))


def samples(model: sde.Model) -> list[Tensor]:
    results = [
        sde.sample(model.denoiser, (2, 3), solver=solver, condition=LABELS, denoise=True).x for solver in SOLVERS
    ]
    return [*results, model.sample(2, solver=HEUN), model.encode(LEVELS, solver=HEUN, condition=LABELS)]


def log_densities(model: sde.Model) -> list[Tensor]:
    d, process = model.denoiser, model.process
    results = [model.log_prob(X0, solver=HEUN, trace=trace).nats for trace in TRACES]
    results += [model.log_prob(X0, solver=SOLVERS[4]).nats, sde.log_prob(d, X0, solver=HEUN).nats]
    budget = model.error_budget(X0, solver=SOLVERS[4], rows=1)
    way = round_trip(d, X0, solver=HEUN)
    errors = [torch.tensor(c.gap, device="cpu") for c in calibration(d, X0, times=3)]
    target = sde.exact.Mixture(torch.ones(2, device="cpu"), X0, torch.eye(3, device="cpu").expand(2, 3, 3))
    marginal = target.at(process, 0.5)
    draw = marginal.sample(2, generator=torch.Generator().manual_seed(1))
    return [*results, budget.solver, way.backward, *errors, draw, marginal.log_prob(X0)]


def probabilities_of_levels(model: sde.Model) -> list[Tensor]:
    d, s = model.denoiser, model.scaling
    matched = sde.likelihood.TruncatedNormal.matched(model.process, s)
    steps = sde.solvers.Ancestral(3)
    return [
        model.bits_per_dim(LEVELS, solver=HEUN, condition=LABELS, dequantiser=matched),
        discrete_log_prob(d, LEVELS, s, draws=2, solver=HEUN, condition=LABELS).nats,
        continuous_bound(d, LEVELS, s, draws=2, condition=LABELS).nats,
        chain_bound(d, LEVELS, s, solver=steps, condition=LABELS).nats,
        density_bound(d, X0, draws=2, condition=LABELS).nats,
    ]


def training(model: sde.Model) -> list[Tensor]:
    denoiser = model.denoiser
    split = sde.data.Split(LEVELS, LABELS["label"])
    run = sde.Training(denoiser, sde.Batches(split, 2), model.scaling)
    list(run.run(2))
    run.restore(run.state())
    loss = validate(denoiser, run.objective, sde.Batches(split, 2), model.scaling)
    pairs = sde.Training(
        denoiser, [(X0.numpy(), LABELS["label"].numpy())], objective=sde.objective.DenoisingScoreMatching()
    )
    list(pairs.run(1))
    # A loader draws its order, and the seed of its workers, from torch's global generator.
    torch.manual_seed(0)
    items = [(x.numpy(), label) for x, label in zip(X0, LABELS["label"].tolist())]
    loader = DataLoader(items, batch_size=1, shuffle=True)  # type: ignore[arg-type, var-annotated]
    loaded = sde.Training(denoiser, loader)
    list(loaded.run(3))
    loss += loaded.validate(loader).loss
    return [torch.tensor(loss, device="cpu"), *run.ema["default"].weights.values(), *denoiser.state_dict().values()]


def grids(model: sde.Model) -> list[Tensor]:
    tuning = sde.tuning.Gradient(iterations=1, starts=1, order=1)
    grid = sde.tune_grid(model.denoiser, (2, 3), sde.solvers.Euler(2), tuning=tuning)
    chain = sde.DiscreteChain.cosine(4)
    return [
        torch.tensor(grid.points, device="cpu"),
        chain.betas,
        sde.DiscreteChain.quadratic(21).sde().log_alpha(X0.abs()),
    ]


WALKS = [
    (network_model, samples),
    (gaussian_model, log_densities),
    (network_model, probabilities_of_levels),
    (network_model, training),
    (gaussian_model, grids),
]


@pytest.fixture
def default_device() -> Iterator[None]:
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("default_device")
@pytest.mark.parametrize(("make", "walk"), WALKS, ids=[walk.__name__ for _, walk in WALKS])
def test_nothing_depends_on_the_default_device(
    make: Callable[[], sde.Model], walk: Callable[[sde.Model], list[Tensor]]
) -> None:
    expected, model = walk(make()), make()
    torch.set_default_device("meta")
    for value, on_cpu in zip(walk(model), expected, strict=True):
        assert value.device.type == "cpu"
        assert torch.equal(value, on_cpu)


@pytest.mark.usefixtures("default_device")
def test_models_are_saved_and_loaded_on_the_cpu(tmp_path: Path) -> None:
    model = network_model()
    torch.set_default_device("meta")
    sde.save(tmp_path / "model.pt", model)
    loaded = sde.load(tmp_path / "model.pt")
    assert torch.equal(loaded.sample(2, solver=HEUN), model.sample(2, solver=HEUN))
