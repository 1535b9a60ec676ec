"""What users give for tensors, conditions, solvers and functions: arrays are taken, all else is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sde
from sde.data import Scaling
from sde.solvers import Heun


class Untouched(sde.Denoiser):
    """A denoiser that is not to be called."""

    classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.process, self.takes = sde.VP(), {"label": sde.networks.conditions.Taken(classes=3)}
        self.network = torch.nn.Linear(1, 1)

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        raise AssertionError("a network call before a check")


D: Any = Untouched()
MODEL: Any = sde.Model(D, Scaling.identity(), (2,), 3)
X = torch.zeros(4, 2)
LABELS = torch.tensor([0, 1, 2, 0])
CALLS: dict[str, Callable[..., Any]] = {
    "Model.sample": lambda **how: MODEL.sample(4, **how),
    "Model.log_prob": lambda **how: MODEL.log_prob(X, **how),
    "Model.encode": lambda **how: MODEL.encode(X, **how),
    "Model.edit": lambda **how: MODEL.edit(X, 0.5, **how),
    "Model.restore": lambda **how: MODEL.restore(X, sde.measurement.Identity(), 0.1, **how),
    "sample": lambda **how: sde.sample(D, (4, 2), **how),
    "log_prob": lambda **how: sde.log_prob(D, X, **how),
    "encode": lambda **how: sde.encode(D, X, **how),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"condition": LABELS}, r"named tensors, such as \{'label': y\}.*got a Tensor of shape \(4,\)"),
        ({"condition": 7}, "named tensors.*got 7"),
        ({"condition": {"label": "seven"}}, "condition 'label' to be numbers.*got 'seven'"),
        ({"condition": {"label": LABELS.float()}}, "'label' to be classes, whole numbers, got torch.float32"),
        ({"condition": {"label": LABELS + 2}}, "a class 0 ... 2, or 3 for none, got labels from 2 to 4"),
        ({"condition": {"label": LABELS[:3]}}, "'label'.*4"),
        ({"solver": "heun"}, r"solver to be of the class Solver, such as sde.solvers.Heun\(20\), got 'heun'"),
        ({"solver": Heun}, "solver to be of the class Solver.*got the class Heun"),
    ],
    ids=lambda value: None if isinstance(value, dict) else "",
)
def test_conditions_and_solvers_that_are_none(call: Callable[..., Any], given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(**given)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MODEL.sample(4, trajectory=True), "trajectory to be a function.*got True"),
        (lambda: MODEL.sample(4, progress=True), "progress to be a function.*got True"),
        (lambda: sde.sample(D, (4, 2), trajectory="x"), "trajectory to be a function.*got 'x'"),
        (lambda: sde.log_prob(D, X, progress=1), "progress to be a function.*got 1"),
        (lambda: MODEL.edit(X, 0.5, progress=1), "progress to be a function.*got 1"),
        (
            lambda: sde.sample(MODEL, (4, 2)),
            "the denoiser to be of the class Denoiser, such as model.denoiser.*a Model",
        ),
        (lambda: sde.log_prob(MODEL, X), "the denoiser to be of the class Denoiser.*got a Model"),
        (lambda: sde.sample(D, 4), r"a shape \(B, \*\), such as \(16, 2\), got 4"),
        (lambda: sde.sample(D, "42"), r"a shape \(B, \*\)"),
        (lambda: sde.log_prob(D, "data"), "x to be numbers.*got 'data'"),
        (lambda: MODEL.log_prob(["data"]), r"data values to be numbers.*got \['data'\]"),
        (lambda: MODEL.restore("y", sde.measurement.Identity(), 0.1), "y to be numbers"),
        (lambda: MODEL.restore(X, "mask", 0.1), "the operator to be of the class Operator.*got 'mask'"),
        (lambda: MODEL.restore(X, sde.measurement.Identity(), "small"), "noise to be numbers.*got 'small'"),
        (lambda: MODEL.sample(4, seed="a"), "seed to be a whole number, got 'a'"),
        (lambda: MODEL.sample(4, seed=1.5), r"seed to be a whole number, got 1\.5"),
        (lambda: MODEL.edit(X, "half"), "0 < strength <= 1.*got strength='half'"),
        (
            lambda: MODEL.translate(X, D),
            r"the other model to be of the class Model, .*, got a Untouched",
        ),
        (
            lambda: sde.sample(D, (4, 2), dtype="float64"),
            r"class dtype, such as torch\.float64, got 'float64'",
        ),
        (
            lambda: sde.log_prob(D, X, trace="exact"),
            r"class Trace, such as sde\.ExactTrace\(\), got 'exact'",
        ),
        (lambda: sde.log_prob(D, X, index="1"), "index to be numbers.*got '1'"),
        (
            lambda: sde.Training(MODEL, [X]),
            r"the denoiser to be of the class Denoiser.*got a Model",
        ),
        (lambda: sde.Training(D.network, [X]), "the denoiser to be of the class Denoiser.*got a Linear"),
        (lambda: sde.Training(D, [X], conditions="label"), r"conditions to be a list of names, got 'label'"),
        (lambda: sde.Batches(X, 2, condition=LABELS), "named tensors"),
    ],
)
def test_functions_denoisers_and_data_that_are_none(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


class Shifted(sde.Denoiser):
    """The denoiser of points at their labels, for data of variance 0."""

    def __init__(self) -> None:
        super().__init__()
        self.process = sde.VP()

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return torch.ones_like(x_t) * condition["label"].to(x_t).reshape(-1, 1)


def test_arrays_are_data() -> None:
    """Of any layout, byte order and dtype of numbers; one that may not be written is neither changed nor warned of."""
    model, n = sde.Model(Shifted(), Scaling.identity(), (2,), 3), 4
    values = np.random.default_rng(0).normal(size=(n, 2))
    label = torch.arange(n) % 3
    how: dict[str, Any] = {"solver": Heun(2)}
    arrays = [values, values[::-1][::-1], values[:, ::-1][:, ::-1], values.astype(">f8"), values.astype("f4")]
    arrays[0].flags.writeable = False
    tensor = torch.tensor(values)
    expected = model.log_prob(tensor, condition={"label": label}, **how).nats
    for array in arrays:
        for labels in (label.numpy(), label.numpy().astype(np.uint16), label.tolist()):
            found = model.log_prob(array, condition={"label": labels}, **how).nats
            assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item())
    condition = {"label": label.numpy()}
    assert torch.equal(model.encode(values, condition=condition), model.encode(tensor, condition={"label": label}))
    assert torch.equal(model.edit(values, condition=condition), model.edit(tensor, condition={"label": label}))
    assert torch.equal(model.sample(n, condition=condition, **how), model.sample(n, **how))
    latent = np.zeros((n, 2))
    r = sde.sample(model.denoiser, x_T=latent, condition=condition, **how)
    assert torch.equal(r.x, sde.sample(model.denoiser, x_T=torch.tensor(latent), condition=condition, **how).x)
    nats = sde.log_prob(model.denoiser, values, condition=condition, **how).nats
    assert torch.equal(nats, sde.log_prob(model.denoiser, tensor, condition=condition, **how).nats)
