"""Names that configs and checkpoints may contain, and the errors for mistakes."""

from __future__ import annotations

import builtins
import copy
import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sde
from sde.instantiate import MODEL_ROOMS, build, describe, find, public


def test_a_tree_becomes_the_objects_it_describes() -> None:
    tree = {
        "_target_": "sde.solvers.Heun",
        "steps": 7,
        "grid": {"_target_": "sde.grids.Karras", "rho": 5.0},
    }
    assert build(tree) == sde.solvers.Heun(7, grid=sde.grids.Karras(5.0))
    assert build({"a": [1, {"_target_": "sde.VP"}], "b": "sde.VP", "c": None}) == {
        "a": [1, sde.VP()],
        "b": "sde.VP",
        "c": None,
    }
    assert build({"_target_": "sde.DiscreteChain.linear", "n": 30}).betas.equal(sde.DiscreteChain.linear(30).betas)
    assert tree["_target_"] == "sde.solvers.Heun"


def test_arguments_go_to_the_outermost_call() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    adam = build({"_target_": "torch.optim.Adam", "lr": 0.5}, params=[weight])
    assert type(adam) is torch.optim.Adam
    assert adam.param_groups[0]["lr"] == 0.5
    assert build({"_target_": "sde.VP", "beta_max": 9.0}, beta_max=5.0) == sde.VP(beta_max=5.0)


def test_a_misspelt_argument_is_an_error_that_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"sde\.VP.*'beta_mix'.*beta_min, beta_max, t_min"):
        build({"_target_": "sde.VP", "beta_mix": 1.0})
    with pytest.raises(ValueError, match=r"Karras.*'roh'.*rho"):
        build({"_target_": "sde.solvers.Heun", "steps": 3, "grid": {"_target_": "sde.grids.Karras", "roh": 1.0}})


def test_a_missing_argument_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"sde\.networks\.MLP.*'features'"):
        build({"_target_": "sde.networks.MLP"})


@pytest.mark.parametrize(
    "name",
    ["sde.VPP", "sde.solver.Heun", "sde.VP.gamma", "VP", "sde", "sde.solvers", "", "sde.", ".VP", "torch.optim.Rprop"],
)
def test_a_misspelt_name_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=rf"_target_ '{re.escape(name)}' .* sde, .*torch\.optim\.Adam"):
        build({"_target_": name})


@pytest.mark.parametrize("name", [None, 3, ["sde.VP"], {"a": 1}])
def test_a_name_is_a_string(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"_target_ {re.escape(repr(name))} "):
        build({"_target_": name})


def test_values_of_a_wrong_type_are_a_value_error_that_names_the_target() -> None:
    with pytest.raises(ValueError, match=r"sde\.VP"):
        build({"_target_": "sde.VP", "beta_min": "abc"})
    with pytest.raises(ValueError, match=r"sde\.Denoiser"):
        build({"_target_": "sde.Denoiser"})


# Trust

ATTACKS = [
    "os.system",
    "sde.storage.files.write_atomically",
    "sde.storage.files.os.system",
    "sde.storage.checkpoint.os.system",
    "sde.storage.checkpoint.save_checkpoint",
    "sde.storage.checkpoint.torch.load",
    "sde.load",
    "sde.model.load",
    "sde.data.arrays",
    "sde.data.arrays.arrays",
    "sde.data.images",
    "sde.data.scaling.math.sqrt",
    "sde.networks.unet.torch.load",
    "sde.networks.layers.nn.Linear",
    "sde.denoisers.dataclass",
    "sde.processes.chain.functools.partial",
    "sde.instantiate.build",
    "sde.instantiate.find",
    "sde.instantiate.importlib.import_module",
    "sde.storage.store.Store.open",
    "sde.training.Training",
    "torch.load",
    "torch.optim.Adam",
    "torch.hub.load",
    "builtins.eval",
    "builtins.open",
    "sde.VP.__class__",
    "sde.VP.__init__.__class__",
    "sde.VP.__reduce__",
    "sde.networks.UNet.load_state_dict",
    "subprocess.run",
    "antigravity.webbrowser.open",
]


@pytest.fixture
def no_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records what must not be called."""
    calls: list[str] = []

    def trap(module: Any, name: str) -> None:
        monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append(name))

    trap(os, "system")
    trap(torch, "load")
    trap(builtins, "eval")
    return calls


@pytest.mark.parametrize("name", ATTACKS)
def test_what_the_tree_of_a_checkpoint_must_not_name(name: str, no_calls: list[str], tmp_path: Path) -> None:
    modules = set(sys.modules)
    for tree in (
        {"_target_": name, "command": "true", "path": str(tmp_path / "x")},
        {"_target_": name},
        {"_target_": "sde.processes.VP", "beta_min": {"_target_": name}},
        [{"deep": {"_target_": name}}],
    ):
        with pytest.raises(ValueError, match=rf"_target_ '{re.escape(name)}' .*sde\.processes"):
            build(tree, rooms=MODEL_ROOMS)
    assert no_calls == []
    assert list(tmp_path.iterdir()) == []
    assert not {"antigravity", "webbrowser"} & (set(sys.modules) - modules)


@pytest.mark.parametrize(
    "name",
    [a for a in ATTACKS if a.partition(".")[0] in {"os", "builtins", "subprocess", "antigravity"} or ".os." in a],
)
def test_a_config_must_not_name_it_either(name: str, no_calls: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"_target_ '{re.escape(name)}' "):
        build({"_target_": name, "command": "true"})
    assert no_calls == []


def test_what_the_tree_of_a_checkpoint_may_name() -> None:
    assert find("sde.VP", rooms=MODEL_ROOMS) is sde.VP
    assert find("sde.networks.UNet", rooms=MODEL_ROOMS) is sde.networks.UNet
    assert find("sde.DiscreteChain.cosine", rooms=MODEL_ROOMS) == sde.DiscreteChain.cosine
    assert find("sde.data.Scaling", rooms=MODEL_ROOMS) is sde.data.Scaling


def test_a_package_of_ones_own_has_to_be_trusted_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ownsde"
    package.mkdir()
    (package / "__init__.py").write_text("from os import system\n")
    (package / "parts.py").write_text("from os import system\n\n\ndef make(size):\n    return ['made', size]\n")
    (tmp_path / "ownsdeother.py").write_text("def make():\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = {"_target_": "ownsde.parts.make", "size": 3}
    with pytest.raises(ValueError, match=r"_target_ 'ownsde\.parts\.make' .*trust="):
        build(tree)
    assert "ownsde" not in sys.modules
    for rooms in (("sde",), MODEL_ROOMS):
        assert build(tree, rooms=rooms, trust=["ownsde"]) == ["made", 3]
        assert build({"a": [tree]}, rooms=rooms, trust=["ownsde.parts"]) == {"a": [["made", 3]]}
        with pytest.raises(ValueError, match=r"_target_ 'ownsde\.parts\.make' .*ownsde\.part\b"):
            build(tree, rooms=rooms, trust=["ownsde.part"])
        for name in ("ownsde.parts.system", "ownsde.system", "ownsdeother.make", "ownsde.gone", "ownsde.parts.gone"):
            with pytest.raises(ValueError, match=rf"_target_ '{re.escape(name)}' "):
                build({"_target_": name}, rooms=rooms, trust=["ownsde"])
    with pytest.raises(ValueError, match=r"ownsde\.parts\.make.*'sise'.*size"):
        build({"_target_": "ownsde.parts.make", "sise": 3}, trust=["ownsde"])


# Trees of objects

U = sde.networks
DESCRIBED = {
    "VP": sde.VP(0.2, 11.0, t_min=1e-3),
    "SubVP": sde.SubVP(),
    "VE": sde.VE(0.02, 40.0),
    "ChainSDE": sde.DiscreteChain.cosine(7).sde(),
    "NoisePrediction": sde.NoisePrediction(None),
    "DataPrediction": sde.DataPrediction(),
    "ScorePrediction": sde.ScorePrediction(2.0),
    "ScaledScorePrediction": sde.ScaledScorePrediction(),
    "VelocityPrediction": sde.VelocityPrediction(),
    "EDM": sde.EDM(0.7),
    "TimeLevel": sde.TimeLevel(999.0, 1.0),
    "LogSNRLevel": sde.LogSNRLevel(),
    "MatchedLevel": sde.MatchedLevel(sde.VE(), sde.LogSNRLevel(0.5)),
    "Scaling": sde.data.Scaling.interval(17),
    "Scaling of columns": sde.data.Scaling((0.5, 2.0), (0.0, -1.0)),
    "Positional": U.Positional(8, scale=2.0, shift=0, cosine_first=True),
    "Fourier": U.Fourier(8, logarithm=True),
    "MLP": U.MLP(3, width=8, depth=1, embedding=U.Fourier(8), classes=4),
    "DiT": U.DiT(1, width=12, depth=1, heads=2, rank=1),
    "UNet": U.UNet(
        3,
        8,
        (1, 2),
        norm=U.Normalisation(groups=2),
        resampling=U.InResidual(U.FIR(), projection=True),
        upsampling=U.FilteredConv((1.0, 1.0)),
        middle=U.Middle(attention=False),
        input_pyramid=U.InputSkip(cat=True),
        output_pyramid=U.OutputResidual(U.FilteredConv()),
    ),
}


@pytest.mark.parametrize("value", DESCRIBED.values(), ids=DESCRIBED)
def test_an_object_is_built_again_from_its_tree(value: Any) -> None:
    """Through JSON, under the public name of its class, and with the same parts inside."""
    tree = json.loads(json.dumps(describe(value)))
    assert tree == public(tree)
    again = build(tree, rooms=MODEL_ROOMS)
    assert type(again) is type(value)
    assert describe(again) == tree
    if isinstance(value, torch.nn.Module):
        shapes = [{name: v.shape for name, v in net.state_dict().items()} for net in (value, again)]
        assert shapes[0] == shapes[1]


def test_an_object_with_equal_numbers_is_equal() -> None:
    values = [v for k, v in DESCRIBED.items() if not isinstance(v, torch.nn.Module) and k != "ChainSDE"]
    assert [build(describe(value)) for value in values] == values
    chain, again = DESCRIBED["ChainSDE"], build(describe(DESCRIBED["ChainSDE"]))
    assert torch.equal(chain.chain.betas, again.chain.betas)


def test_a_tree_leaves_out_what_is_given_later() -> None:
    inner = sde.NetworkDenoiser(DESCRIBED["MLP"], sde.VP())
    clip = sde.Clip(inner, -2.0, 3.0)
    assert describe(clip, without=["inner"]) == {"_target_": "sde.Clip", "low": -2.0, "high": 3.0}
    assert build(describe(clip)).inner.process == sde.VP()


def test_a_copy_of_a_network_knows_its_arguments() -> None:
    net = DESCRIBED["MLP"]
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert describe(again) == describe(net)
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    with pytest.raises(TypeError, match="widht"):
        U.MLP(3, widht=8)


class Own(sde.VP):
    """A class of one's own, of a kind that a checkpoint may name."""


@pytest.mark.parametrize(
    "value",
    [Own(), torch.nn.SiLU(), object(), U.UNet(1, 8, activation=torch.nn.GELU()), sde.MatchedLevel(Own(), Own())],
    ids=lambda value: type(value).__name__,
)
def test_what_a_checkpoint_may_not_name_has_no_tree(value: Any) -> None:
    with pytest.raises(ValueError, match=r"'\w[\w.]*\.(Own|SiLU|object|GELU)'"):
        describe(value)


def test_an_object_that_does_not_record_its_arguments_has_no_tree() -> None:
    d = sde.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(sde.VP())
    with pytest.raises(ValueError, match=r"sde\.Conditioned.*'nfe'"):
        describe(sde.Conditioned(d, None, torch.zeros(1, dtype=torch.int64)), without=["inner", "condition"])


def test_public_names_are_the_shortest_ones() -> None:
    names = {
        "sde.parametrisation.NoisePrediction": "sde.NoisePrediction",
        "sde.wrappers.Clip": "sde.Clip",
        "sde.networks.unet.UNet": "sde.networks.UNet",
        "sde.processes.chain.DiscreteChain.linear": "sde.DiscreteChain.linear",
        "sde.data.scaling.Scaling": "sde.data.Scaling",
        "sde.data.digits": "sde.data.digits",
        "torch.optim.Adam": "torch.optim.Adam",
        "mypackage.Net": "mypackage.Net",
        "sde.nothing": "sde.nothing",
    }
    assert public([{"_target_": name, "a": [1, name]} for name in names]) == [
        {"_target_": expected, "a": [1, name]} for name, expected in names.items()
    ]
