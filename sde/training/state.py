"""The state of a training in whole tensors, whatever part of them each rank has."""

from __future__ import annotations

__all__ = ["checked", "head_of", "load", "restore_optimizer", "whole_state"]

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..shapes import recording
from ..storage.checkpoint import misfits
from ..storage.wrappers import fitted
from .loss import Loss
from .ranks import full, sharded_as

Weights = dict[str, Tensor]


def head_of(loss: Loss) -> Weights:
    """The weights that are the objective's, by their names in the module of the loss."""
    return {name: value for name, value in loss.state_dict().items() if name.startswith("objective.")}


def checked(state: Mapping[str, Any], loss: Loss, ema: Iterable[str]) -> tuple[Weights, dict[str, Weights], Weights]:
    """The weights, averages and weights of the objective of a state, under the names of these modules.

    Raises:
        ValueError: if they are of another network or objective, or an average is missing.
    """
    for name in ema:
        if name not in state["ema"]:
            raise ValueError(f"this state has no EMA {name!r}: it has {', '.join(state['ema']) or 'none'}")
    shapes = {name: value.shape for name, value in loss.denoiser.state_dict().items()}
    raw, averages = fitted(shapes, state["weights"]), {name: fitted(shapes, state["ema"][name]) for name in ema}
    for weights in (raw, *averages.values()):
        if difference := misfits(shapes, weights):
            raise ValueError(f"this state is of another network: {difference}")
    head = state.get("objective", {})
    if difference := misfits({name: value.shape for name, value in head_of(loss).items()}, head):
        raise ValueError(f"this state is of another objective: {difference}")
    return dict(raw), {name: dict(weights) for name, weights in averages.items()}, dict(head)


def load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies whole weights into a module, all of its own or some."""
    now = module.state_dict()
    module.load_state_dict({**now, **{name: sharded_as(value, now[name]) for name, value in weights.items()}})


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser with whole tensors; a call of all ranks."""
    state = optimizer.state_dict()
    return {**state, "state": {i: {k: full(v) for k, v in each.items()} for i, each in state["state"].items()}}


@recording(True)
def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restores the state of an optimiser from whole tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(value: Any, parameter: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        # A copy, because the optimiser changes its state in place.
        return sharded_as(value.clone(), parameter) if value.shape == parameter.shape else value.clone()

    parts = {i: {k: part(v, parameters[i]) for k, v in each.items()} for i, each in state["state"].items()}
    optimizer.load_state_dict({**state, "state": parts})
