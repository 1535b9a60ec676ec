"""Training a dequantiser for a model: the loss is the library's bound, it gains what there is to gain, and no more."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde.data import Scaling, Split
from sde.evaluation.dequantiser_training import BoundDensity, Density, FlowDensity, Gain, bits, fit
from sde.evaluation.likelihood_job import batch_states
from sde.exact import Mixture
from sde.likelihood.bounds import density_bound
from sde.likelihood.dequantisation import Dequantiser, UniformDequantiser, dequantise
from sde.likelihood.flow import log_prob
from sde.likelihood.variational import VariationalDequantiser
from sde.model import Model
from sde.noise import Noise
from sde.processes import VP
from sde.solvers import Heun
from sde.trace import ExactTrace

F64, LEVELS, BATCH = torch.float64, 4, 64
SCALING = Scaling.interval(LEVELS)
FLOW = FlowDensity(Heun(24), ExactTrace())
DENSITIES = [BoundDensity(4), FLOW]


def target() -> Mixture:
    """Mass at the upper edge of one cell and the lower edge of another."""
    means = torch.tensor([[-0.05, 0.3], [0.3, -0.1]], dtype=F64)
    covs = torch.tensor([[[0.02, 0.012], [0.012, 0.02]], [[0.01, 0.0], [0.0, 0.02]]], dtype=F64)
    return Mixture(torch.tensor([0.5, 0.5], dtype=F64), means, covs)


MODEL = Model(target().denoiser(VP()), SCALING, (2,))
DATA = Split(SCALING.to_data(target().sample(1000, generator=torch.Generator().manual_seed(8))))


def fresh(seed: int = 0) -> VariationalDequantiser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VariationalDequantiser((2,), LEVELS, layers=2, width=16)


@pytest.mark.parametrize("density", DENSITIES, ids=lambda density: type(density).__name__)
def test_a_loss_is_the_library_s_bound_on_the_levels_of_the_batch(density: Density) -> None:
    """Of step 0 and of step 1, with uniform noise, for a learning rate that moves nothing that could be seen."""
    seen: list[Tensor] = []

    class Seen(VariationalDequantiser):
        def draw(self, values: Tensor, noise: Noise, index: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(values)
            return super().draw(values, noise, index, counter)

    run = fit(MODEL, DATA, Seen((2,), LEVELS, width=8), density, batch_size=BATCH, lr=1e-12, seed=5)
    for step, loss in enumerate(itertools.islice(run, 2)):
        made = dequantise(UniformDequantiser(), seen[step], SCALING, seed=5, repeat=step, dtype=F64)
        call: dict[str, Any] = {"seed": 5, "index": step * BATCH + torch.arange(BATCH)}
        if density is FLOW:
            nats = log_prob(MODEL.denoiser, made.x, solver=Heun(24), trace=ExactTrace(), **call).nats
        else:
            nats = density_bound(MODEL.denoiser, made.x, draws=4, **call).nats
        assert loss == pytest.approx(-float((nats + made.log_weight).mean()) / (2 * math.log(2.0)), rel=1e-6)
    assert not torch.equal(seen[0], seen[1])


class Seconds(Density):
    """The log-density 0, in no time; what it is told is kept."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def __call__(self, denoiser: Any, x: Tensor, **call: Any) -> Tensor:
        self.told.append({"x": x.detach(), **call})
        return 0.0 * x.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("density", "steps", "fine"),
    [(BoundDensity(4), 120, BoundDensity(4)), (FLOW, 35, FlowDensity(Heun(20), ExactTrace()))],
    ids=["bound", "flow"],
)
def test_what_it_gains_shows_on_other_data_by_the_true_density(density: Density, steps: int, fine: Density) -> None:
    """Most of what uniform noise loses against the probability of the levels, which is never passed: 5 standard errors.

    The gain that the density itself tells is the true one to 5 standard errors too, for the score is the true one."""
    rule = fresh()
    for _ in itertools.islice(fit(MODEL, DATA, rule, density, batch_size=96, lr=1e-2), steps):
        pass
    other = Split(SCALING.to_data(target().sample(600, generator=torch.Generator().manual_seed(9))))
    axis = (torch.arange(400, dtype=F64) + 0.5) / 100.0
    grid = SCALING.scale * torch.cartesian_prod(axis, axis) + SCALING.shift
    cells = target().log_prob(grid).reshape(4, 100, 4, 100).permute(0, 2, 1, 3).flatten(2).logsumexp(2)
    v = other.values.long()
    truth = (cells + 2.0 * math.log(SCALING.scale / 100.0))[v[:, 0], v[:, 1]]

    def lost(noise: Dequantiser) -> Tensor:
        """Bits/dim of each sample that the noise loses, by the exact density at the data end."""
        batch, _ = batch_states(MODEL, other, torch.arange(len(other)), noise)
        return (truth - target().log_prob(batch.x) - batch.log_weight) / (2 * math.log(2.0))

    uniform, learned = lost(UniformDequantiser()), lost(rule.requires_grad_(False))
    assert float(learned.mean()) < 0.5 * float(uniform.mean())
    assert float(learned.mean()) > -5.0 * float(learned.std()) / 600**0.5
    told = Gain.of(*(bits(MODEL, other, fine, noise, batch_size=300) for noise in (None, rule)))
    true = uniform - learned
    slack = 5.0 * math.hypot(told.paired.standard_error, float(true.std()) / 600**0.5)
    assert abs(told.paired.difference - float(true.mean())) < slack
    assert told.paired.difference > 5.0 * told.paired.standard_error


def test_bits_are_those_of_the_flow() -> None:
    """In batches as at once, with the noise of the job's first repeat."""
    columns = bits(MODEL, DATA, FLOW, n=9, batch_size=4, seed=3)
    batch, _ = batch_states(MODEL, DATA, torch.arange(9), seed=3)
    nats = log_prob(MODEL.denoiser, batch.x, solver=Heun(24), trace=ExactTrace()).nats
    expected = -(nats + batch.log_weight) / (2 * math.log(2.0))
    np.testing.assert_allclose(columns["bits_per_dim"], expected.numpy(), rtol=1e-9)
    assert columns["index"].tolist() == list(range(9))


def test_the_gain_is_a_paired_difference() -> None:
    first, second = np.array([2.0, 3.0, 4.0]), np.array([1.5, 2.0, 3.9])
    columns = [{"index": np.arange(3), "repeat": np.zeros(3, int), "bits_per_dim": b} for b in (first, second)]
    found = Gain.of(*columns)
    difference = first - second
    assert (found.uniform, found.learned) == (first.mean(), second.mean())
    assert found.paired.difference == pytest.approx(difference.mean())
    assert found.paired.standard_error == pytest.approx(difference.std(ddof=1) / math.sqrt(3))
    assert str(found).startswith("3.0000 bits/dim with uniform noise, 2.4667 with learned noise: gain 0.5333 +- ")


def test_training_is_a_function_of_the_seed() -> None:
    losses = []
    for seed in (0, 0, 1):
        rule = fresh()
        run = fit(MODEL, DATA, rule, BoundDensity(2), batch_size=16, seed=seed)
        losses.append([*itertools.islice(run, 3), *(float(p.detach().sum()) for p in rule.parameters())])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0]


def test_a_model_with_classes_is_told_those_of_the_samples() -> None:
    values = torch.arange(12, dtype=torch.uint8).reshape(12, 1)
    split = Split(values, torch.arange(12).flip(0))
    model, density = Model(target().denoiser(VP()), Scaling.interval(12), (1,), classes=12), Seconds()
    rule = VariationalDequantiser((1,), 12, width=8)
    for _ in itertools.islice(fit(model, split, rule, density, batch_size=5), 3):
        pass
    bits(model, split, density, n=12, batch_size=5)
    assert len(density.told) == 3 + 3
    for told in density.told:
        levels = model.scaling.to_data(told["x"])[:, 0].long()
        assert torch.equal(told["condition"]["label"], 11 - levels)


def test_every_sample_is_drawn_as_often_as_any_other() -> None:
    """Of 12, in 12000 draws, within 5 standard errors of 1000: an error below 1e-5."""
    split, density = Split(torch.arange(12, dtype=torch.uint8).reshape(12, 1)), Seconds()
    model = Model(target().denoiser(VP()), Scaling.interval(12), (1,))
    run = fit(model, split, VariationalDequantiser((1,), 12, width=8), density, batch_size=4000)
    for _ in range(3):
        next(run)
    counts = sum(model.scaling.to_data(told["x"]).flatten().bincount(minlength=12) for told in density.told)
    assert bool(((counts - 1000).abs() < 5.0 * math.sqrt(1000.0)).all())


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    class Nowhere(Seconds):
        def __call__(self, denoiser: Any, x: Tensor, **call: Any) -> Tensor:
            return super().__call__(denoiser, x, **call) * math.nan

    rule = fresh()
    before = [parameter.clone() for parameter in rule.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 1.*nan"):
        next(fit(MODEL, DATA, rule, Nowhere()))
    assert all(torch.equal(a, b) for a, b in zip(before, rule.parameters()))


def test_refusals_come_before_any_call() -> None:
    density, rule = Seconds(), fresh()
    continuous = Model(target().denoiser(VP()), Scaling.identity(), (2,))
    with pytest.raises(ValueError, match="continuous"):
        fit(continuous, DATA, rule, density)
    classes = Model(target().denoiser(VP()), SCALING, (2,), classes=3)
    for call in (lambda: fit(classes, DATA, rule, density), lambda: bits(classes, DATA, density)):
        with pytest.raises(ValueError, match="no labels"):
            call()
    for name, value in (("batch_size", 0), ("batch_size", 2.0), ("lr", 0.0), ("lr", math.inf), ("lr", math.nan)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            fit(MODEL, DATA, rule, density, **{name: value})  # type: ignore[arg-type]
    for n in (0, 1, 1001, 2.0):
        with pytest.raises(ValueError, match=f"n={n}"):
            bits(MODEL, DATA, density, n=n)  # type: ignore[arg-type]
    for draws in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"draws={draws}"):
            BoundDensity(draws)  # type: ignore[arg-type]
    assert density.told == []
