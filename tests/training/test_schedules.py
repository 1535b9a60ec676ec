"""Learning rates as functions of the step, and the optimiser of two kinds."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import sde
from sde.training import Constant, Cosine, InverseSquareRoot, Muon, Training


def test_factors() -> None:
    cosine = Cosine(steps=8, final=0.2)
    assert [cosine(k) for k in (4, 8, 99)] == pytest.approx([0.6, 0.2, 0.2], rel=1e-12)
    assert cosine(2) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5)), rel=1e-12)
    root = InverseSquareRoot(steps=4)
    assert [root(k) for k in (1, 4, 16, 36)] == pytest.approx([1.0, 1.0, 0.5, 1 / 3], rel=1e-12)
    assert [Constant()(k) for k in (1, 10**6)] == [1.0, 1.0]


@pytest.mark.parametrize("make", [lambda: Cosine(0), lambda: Cosine(1, final=1.5), lambda: InverseSquareRoot(0)])
def test_what_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"steps=0|final=1.5"):
        make()


def test_the_rates_of_a_training_are_warm_up_times_decay() -> None:
    denoiser = sde.NetworkDenoiser(sde.networks.MLP(2, width=4, depth=1), sde.VP())
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.5)
    training = Training(denoiser, [torch.zeros(2, 2)], optimizer=optimizer, warmup=2, decay=Cosine(4))
    rates = [report.learning_rate for report in training.run(4)]
    factors = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.25 * factors[0], *(0.5 * factor for factor in factors[1:])], abs=1e-12)
    assert optimizer.param_groups[0]["lr"] == rates[-1]


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    """Each as alone, and after its state was saved and loaded."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Conv1d(1, 2, 1))
    alone = copy.deepcopy(net)
    both = Muon(net.parameters(), lr=0.1, weight_decay=0.05)
    apart = [
        torch.optim.Muon([alone[0].weight], 0.1, 0.05, 0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([alone[0].bias, *alone[1].parameters()], 0.1, weight_decay=0.05),
    ]
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(both.state_dict())
            both = Muon(net.parameters(), lr=0.1, weight_decay=0.05)
            both.load_state_dict(state)
        x = torch.randn(5, 1, 3)
        for model, optimizers in ((net, [both]), (alone, apart)):
            model.zero_grad()
            model[1](model[0](x)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
        assert all(map(torch.equal, net.parameters(), alone.parameters())), step
    for parameters in ([net[0].weight], [net[0].bias]):
        Muon(parameters)
