"""How far it is from a model to its network: Python frames of this package, each of them once to be read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.data import Scaling
from sde.solvers import Heun, RungeKutta, Solver, UniPC

PACKAGE = str(Path(sde.__file__).parent)


class Network(nn.Module):
    """A small network that lists the frames of the package above every one of its calls, the innermost first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.calls: list[list[str]] = []

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        frames, frame = [], sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                frames.append(f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}")
            frame = frame.f_back  # type: ignore[assignment]
        self.calls.append(frames)
        y: Tensor = self.layer(x)
        return y


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def model(network: Network) -> sde.Model:
    return sde.Model(sde.NetworkDenoiser(network, sde.VP()), Scaling(1.0, 0.0), (2,))


SOLVERS = pytest.mark.parametrize("solver", [Heun(3), UniPC(4), RungeKutta(rtol=1e-2, atol=1e-2)], ids=repr)


@SOLVERS
def test_from_sample_to_the_network(model: sde.Model, network: Network, solver: Solver) -> None:
    model.sample(2, solver=solver)
    longest = max(network.calls, key=len)
    assert longest[-1] == "model.py: sample"
    assert len(longest) <= 9, longest


@SOLVERS
def test_from_log_prob_to_the_network(model: sde.Model, network: Network, solver: Solver) -> None:
    model.log_prob(torch.zeros(2, 2), solver=solver)
    longest = max(network.calls, key=len)
    assert longest[-1] == "model.py: log_prob"
    assert len(longest) <= 14, longest
