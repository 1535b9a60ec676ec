"""Inference mode: results do not depend on which of the steps were made under it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.data import Scaling
from sde.likelihood import density_bound
from sde.likelihood.diagnostics import round_trip
from sde.tuning import Gradient

SOLVER = sde.solvers.Heun(3)


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


def test_a_denoiser_made_under_inference_mode_is_refused_and_its_copy_is_not() -> None:
    with torch.inference_mode():
        d = sde.denoisers.NetworkDenoiser(sde.networks.MLP(2, width=4, depth=1), sde.VP())
    with pytest.raises(ValueError, match=r"inference_mode.*deepcopy"):
        sde.log_prob(d, torch.zeros(2, 2))
    assert sde.log_prob(copy.deepcopy(d), torch.zeros(2, 2), solver=SOLVER).nats.isfinite().all()
