"""Inference mode: results do not depend on which of the steps were made under it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.data import Scaling
from sde.evaluation import fit_noise_classifier
from sde.guidance import NoiseClassifier
from sde.likelihood import VariationalDequantiser, density_bound
from sde.likelihood.diagnostics import round_trip
from sde.likelihood.variational import train_dequantiser
from sde.metrics.features import ClassifierNetwork, fit_classifier
from sde.objective import LearnedUncertainty
from sde.tuning import Gradient

SOLVER = sde.solvers.Heun(3)
Mode = Callable[[], AbstractContextManager[None]]


class Labelled(nn.Module):
    """A network with an embedding of labels, whose gradient needs the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.embedding = nn.Linear(2, 2), nn.Embedding(3, 2)

    def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(self.inlet(x) + self.embedding(label))


@pytest.fixture
def model() -> sde.Model:
    torch.manual_seed(0)
    return sde.Model(sde.denoisers.NetworkDenoiser(Labelled(), sde.VP()), Scaling.identity(), (2,), classes=3)


def scores(model: sde.Model, x: Tensor, label: Tensor) -> list[Tensor]:
    """All that takes gradients with respect to states or inputs."""
    d, condition = model.denoiser, {"label": label}
    differentiable = [
        density_bound(d, x, draws=2, condition=condition, differentiable=True).nats,
        sde.encode(d, x, solver=SOLVER, condition=condition, differentiable=True),
    ]
    assert all(value.requires_grad for value in differentiable)
    return [
        *differentiable,
        model.log_prob(x, solver=SOLVER, condition=condition).nats,
        sde.log_prob(d, x, solver=SOLVER, condition=condition).nats,
        round_trip(d, x, solver=SOLVER, condition=condition).backward,
    ]


def inside(work: Callable[[], list[Tensor]]) -> list[Tensor]:
    with torch.inference_mode():
        return work()


def drawn(model: sde.Model) -> tuple[Tensor, Tensor]:
    label = torch.tensor([2, 0, 1])
    return model.sample(3, solver=SOLVER, condition={"label": label}), label


def test_sampling_and_scoring_under_inference_mode_in_any_order(model: sde.Model) -> None:
    expected = scores(model, *drawn(model))
    with torch.inference_mode():
        x, label = drawn(model)
        assert x.is_inference()
        assert label.is_inference()
        both = scores(model, x, label)
    for result in (scores(model, x, label), both, inside(lambda: scores(model, *(v.clone() for v in drawn(model))))):
        assert not any(value.is_inference() for value in result)
        assert all(torch.equal(a, b) for a, b in zip(result, expected))


def test_grids_are_tuned_under_inference_mode(model: sde.Model) -> None:
    with torch.inference_mode():
        condition = {"label": torch.tensor([2, 0])}
        tuning = Gradient(iterations=1, starts=1, order=1)
        assert (
            len(sde.tune_grid(model.denoiser, (2, 2), sde.solvers.Euler(2), condition=condition, tuning=tuning).points)
            == 3
        )


def test_batches_made_under_inference_mode_train(model: sde.Model) -> None:
    with torch.inference_mode():
        batch = drawn(model)
    report = next(sde.Training(model.denoiser, [batch]).run(1))
    assert report.grad_norm > 0.0


def test_a_model_loaded_under_inference_mode_scores(model: sde.Model, tmp_path: Path) -> None:
    flat = sde.Model(
        sde.denoisers.NetworkDenoiser(sde.networks.MLP(2, width=4, depth=1), sde.VP()), Scaling.identity(), (2,)
    )
    sde.save(tmp_path / "model.pt", flat)
    with torch.inference_mode():
        loaded = sde.load(tmp_path / "model.pt")
    x = torch.zeros(2, 2)
    assert torch.equal(loaded.log_prob(x, solver=SOLVER).nats, flat.log_prob(x, solver=SOLVER).nats)


X = torch.zeros(2, 2)
MEASUREMENT = sde.Measurement(sde.measurement.Identity(), X, noise=0.5)
RECORDED: dict[str, Callable[[sde.Denoiser], object]] = {
    "log_prob": lambda d: sde.log_prob(d, X, solver=SOLVER),
    "sample": lambda d: sde.sample(d, (2, 2), solver=SOLVER, differentiable=True),
    "encode": lambda d: sde.encode(d, X, solver=SOLVER, differentiable=True),
    "density_bound": lambda d: density_bound(d, X, draws=1, differentiable=True),
    "round_trip": lambda d: round_trip(d, X, solver=SOLVER),
    "guidance": lambda d: sde.sample(sde.measurement.DPS(d, MEASUREMENT), (2, 2), solver=SOLVER),
    "tune_grid": lambda d: sde.tune_grid(d, (2, 2), SOLVER, tuning=Gradient(iterations=1, starts=1, order=1)),
    "training": lambda d: next(sde.Training(d, [X]).run(1)),
}


def test_a_denoiser_made_under_inference_mode_is_refused_and_its_copy_is_not() -> None:
    """By all that needs gradients, before the first step; what needs none takes it."""
    with torch.inference_mode():
        d = sde.denoisers.NetworkDenoiser(sde.networks.MLP(2, width=4, depth=1), sde.VP())
    assert sde.sample(d, (2, 2), solver=SOLVER).x.isfinite().all()
    for work in RECORDED.values():
        with pytest.raises(ValueError, match=r"inference_mode.*copy\.deepcopy\(denoiser\)"):
            work(d)
        work(copy.deepcopy(d))


def test_other_networks_made_under_inference_mode_are_not_trained() -> None:
    process, x, label = sde.VP(), torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    with torch.inference_mode():
        classifier = NoiseClassifier(sde.networks.Encoder((2,), 2, width=4, depth=1), process, 2)
        network, learned = ClassifierNetwork((2,), 2), VariationalDequantiser((2,), 4, layers=1, width=4)
        objective = LearnedUncertainty()
    adam, scaling = torch.optim.Adam(learned.parameters()), Scaling.interval(4)
    d = sde.denoisers.NetworkDenoiser(sde.networks.MLP(2, width=4, depth=1), process)
    batches = sde.Batches(sde.data.Split(x, label), 4)
    for what, losses in (
        ("classifier", fit_noise_classifier(classifier, batches, Scaling.identity(), steps=1)),
        ("network", fit_classifier(network, x, label, steps=1)),
        ("dequantiser", train_dequantiser(learned, lambda x, step: x.sum(1), [label[:, None]], scaling, adam)),
    ):
        with pytest.raises(ValueError, match=rf"inference_mode.*cannot be trained.*deepcopy\({what}\)"):
            next(losses)
    with pytest.raises(ValueError, match=r"inference_mode.*cannot be trained.*deepcopy\(objective\)"):
        sde.Training(d, [x], objective=objective)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_training_in_the_modes_of_the_caller(model: sde.Model, mode: Mode) -> None:
    """A training that is set up, run, restored or copied in them is the same."""
    x, label = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 1])

    def trained(*modes: Mode) -> tuple[list[float], Tensor]:
        denoiser = copy.deepcopy(model.denoiser)
        with modes[0]():
            training = sde.Training(denoiser, sde.Batches(sde.data.Split(x, label), 4), ema=0.5)
            training.check()
        with modes[1]():
            losses = [report.loss for report in training.run(2)]
        with modes[2]():
            training.restore(training.state())
            copied = training.model()
        losses += [report.loss for report in training.run(4)]
        losses.append(training.validate([(x, label)]).loss)
        return losses, copied.log_prob(x, solver=SOLVER, condition={"label": label}).nats

    losses, nats = trained(*[nullcontext] * 3)
    assert len(set(losses)) == 5
    for modes in ((mode, nullcontext, nullcontext), (nullcontext, mode, mode), (mode, mode, mode)):
        again, same = trained(*modes)
        assert again == losses
        assert torch.equal(same, nats)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_other_trainings_in_the_modes_of_the_caller(mode: Mode) -> None:
    x, label = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    classifier = NoiseClassifier(sde.networks.Encoder((2,), 2, width=4, depth=1), sde.VP(), 2)
    network, learned = ClassifierNetwork((2,), 2), VariationalDequantiser((2,), 4, layers=1, width=4)
    with mode():
        batches = sde.Batches(sde.data.Split(x, label), 4)
        adam, levels = torch.optim.Adam(learned.parameters()), torch.tensor([[0, 1], [2, 3]])
        for losses in (
            fit_noise_classifier(classifier, batches, Scaling.identity(), steps=2),
            fit_classifier(network, x.clone(), label.clone(), steps=2),
            train_dequantiser(learned, lambda x, step: x.sum(1), [levels] * 2, Scaling.interval(4), adam),
        ):
            assert len(set(losses)) == 2
