"""Weights fit a module whatever wrapped the module that they were saved from."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from sde.storage.wrappers import fitted, unwrapped

PREFIXES = ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."]
TOGETHER = ["".join(pair) for pair in itertools.permutations(PREFIXES, 2)] + ["".join(PREFIXES), "module.module."]
NAMES = ["inlet.weight", "inlet.bias", "blocks.0.module", "blocks.0.module_list.weight"]


@pytest.mark.parametrize("prefix", PREFIXES + TOGETHER)
def test_prefixes_alone_and_together(prefix: str) -> None:
    plain = {name: number for number, name in enumerate(NAMES)}
    assert unwrapped({prefix + name: number for name, number in plain.items()}) == plain
    around_a_part = {"network." + prefix + name: number for name, number in plain.items()}
    expected = {"network." + name: number for name, number in plain.items()}
    assert fitted(expected, around_a_part) == expected
    assert fitted(around_a_part, expected) == around_a_part
    assert fitted(around_a_part, around_a_part) == around_a_part


def test_modules_of_torch_wrapped_by_torch() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    expected = net.state_dict()
    parallel, averaged = nn.DataParallel(net), torch.optim.swa_utils.AveragedModel(net)
    assert "n_averaged" in averaged.state_dict()
    for wrapped in (parallel, averaged, nn.DataParallel(averaged), torch.optim.swa_utils.AveragedModel(parallel)):
        assert list(unwrapped(wrapped.state_dict())) == list(expected)
        part = nn.ModuleDict({"network": wrapped, "other": nn.Linear(1, 1)}).state_dict()
        assert set(unwrapped(part)) == {f"network.{name}" for name in expected} | {"other.weight", "other.bias"}


@pytest.mark.parametrize(
    "names",
    [
        ["module.weight", "other.weight"],  # a part of the name module
        ["n_averaged", "module"],
        ["weight", "_orig_mod.weight"],  # which would become one
        ["module." * 2**17 + "weight"],  # deeper than any module
    ],
)
def test_names_that_are_no_wrappers_stay(names: list[str]) -> None:
    state = dict.fromkeys(names)
    assert unwrapped(state) == state
    assert list(unwrapped(state)) == names
