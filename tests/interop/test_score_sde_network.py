"""The networks of yang-song/score_sde_pytorch, against outputs that the original computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from support.rounding import rounding
from support.score_sde import NAMES, outputs
from support.score_sde import checkpoint as checkpoint_of
from support.score_sde import settings as settings_of
from torch import Tensor, nn

from sde.instantiate import MODEL_ROOMS, build
from sde.interop import score_sde

FIR = {"_target_": "sde.networks.FIR", "taps": [1, 3, 3, 1]}
BOX = {"_target_": "sde.networks.Box"}
CONV = {"_target_": "sde.networks.FilteredConv", "taps": [1, 3, 3, 1]}
SKIP, RESIDUAL = "sde.networks.InputSkip", "sde.networks.InputResidual"


class Recorded:
    """A checkpoint of the original, its settings, and what it computed."""

    def __init__(self, name: str) -> None:
        self.settings, checkpoint = settings_of(name), checkpoint_of(name)
        self.state = {key.removeprefix("module."): value for key, value in checkpoint["model"].items()}
        trained = [key for key in self.state if not score_sde.frozen(key)]
        self.ema = self.state | dict(zip(trained, checkpoint["ema"]["shadow_params"], strict=True))
        self.arrays = outputs(name)

    def network(self, state: Mapping[str, Tensor], **settings: bool) -> nn.Module:
        net = build(score_sde.network(self.settings, **settings), rooms=MODEL_ROOMS)
        net.load_state_dict(score_sde.weights(self.settings, state))
        return net.eval()

    def unscaled(self, output: Tensor) -> Tensor:
        """The output before its division by sigma."""
        if not self.settings["model"]["scale_by_sigma"]:
            return output
        return output * self.arrays["raw_in_label"][:, None, None, None]


@pytest.fixture(params=NAMES)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


@torch.no_grad()
def test_the_output_is_the_original_s(recorded: Recorded) -> None:
    """In float64, to 1e-5 of the largest value: what the record, which is float32, lacks does not depend on where the
    test runs."""
    x, label = recorded.arrays["x"].double(), recorded.arrays["raw_in_label"].double()
    for state, expected in [(recorded.state, "raw_out"), (recorded.ema, "raw_out_ema")]:
        y, y0 = recorded.network(state).double()(x, label), recorded.unscaled(recorded.arrays[expected])
        assert y0.std() > 1e-3
        assert (y - y0).abs().max() <= 1e-5 * y0.abs().max()
    assert (recorded.arrays["raw_out"] - recorded.arrays["raw_out_ema"]).abs().max() > 1e-3


@torch.no_grad()
def test_float32_is_off_by_its_rounding(recorded: Recorded) -> None:
    net, x, label = recorded.network(recorded.state), recorded.arrays["x"], recorded.arrays["raw_in_label"]
    y = net(x, label)
    net.double()
    assert y.dtype == torch.float32
    assert (y - net(x.double(), label.double())).abs().max() <= rounding(lambda: net(x.double(), label.double()))


def test_it_has_the_original_s_number_of_parameters(recorded: Recorded) -> None:
    net = recorded.network(recorded.state)
    # Those never trained are counted there, and a buffer here.
    drawn = sum(value.numel() for key, value in recorded.state.items() if key.endswith(".W") and key.count(".") == 2)
    assert sum(p.numel() for p in net.parameters()) + drawn == recorded.settings["n_params"]


@torch.no_grad()
def test_the_logarithm_may_be_taken_outside(recorded: Recorded) -> None:
    if not any(key.endswith(".0.W") for key in recorded.state):
        return
    x, sigma = recorded.arrays["x"], recorded.arrays["raw_in_label"]
    inside, outside = recorded.network(recorded.state), recorded.network(recorded.state, logarithm=False)
    torch.testing.assert_close(outside(x, sigma.log()), inside(x, sigma), rtol=0, atol=0)


# The formulas of the original's get_act.
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "relu": lambda x: x.clamp(min=0.0),
    "lrelu": lambda x: torch.where(x > 0, x, 0.2 * x),
    "Swish": lambda x: x * x.sigmoid(),
}


@torch.no_grad()
def test_every_nonlinearity_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original has one in all places; those of swish are held to its output above."""
    recorded = Recorded("ncsnpp_256_ve")
    swish = recorded.network(recorded.state).double()
    x, label = recorded.arrays["x"].double(), recorded.arrays["raw_in_label"].double()
    results = []
    for nonlinearity, formula in NONLINEARITIES.items():
        recorded.settings = {**recorded.settings, "model": {**recorded.settings["model"], "nonlinearity": nonlinearity}}
        results.append(recorded.network(recorded.state).double()(x, label))
        with monkeypatch.context() as patch:
            patch.setattr(nn.SiLU, "forward", lambda self, x, formula=formula: formula(x))
            torch.testing.assert_close(results[-1], swish(x, label), rtol=1e-9, atol=1e-9)
    assert all(not torch.allclose(a, b, rtol=0.01) for k, a in enumerate(results) for b in results[:k])


# Refusals


SETTINGS: dict[str, Any] = {
    "model": {
        "name": "ncsnpp",
        "nonlinearity": "swish",
        "conditional": True,
        "embedding_type": "positional",
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "none",
        "progressive_combine": "sum",
        "nf": 16,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
        "dropout": 0.1,
        "fir": True,
        "fir_kernel": [1, 3, 3, 1],
        "resamp_with_conv": True,
        "skip_rescale": True,
        "fourier_scale": 16,
    },
    "image_size": 16,
    "num_channels": 3,
    "centered": True,
}


def settings(**changed: object) -> dict[str, Any]:
    return {**SETTINGS, "model": {**SETTINGS["model"], **changed}}


@pytest.mark.parametrize(
    ("changed", "node"),
    [
        ({}, {"_target_": "sde.networks.InResidual", "filter": FIR, "projection": True}),
        ({"fir": False}, {"_target_": "sde.networks.InResidual", "filter": BOX, "projection": True}),
        ({"resblock_type": "ddpm"}, CONV),
        ({"resblock_type": "ddpm", "fir": False}, {"_target_": "sde.networks.StridedConv"}),
        ({"resblock_type": "ddpm", "resamp_with_conv": False}, {"_target_": "sde.networks.Filtered", "filter": FIR}),
    ],
)
def test_what_stands_between_the_levels(changed: dict[str, object], node: dict[str, object]) -> None:
    tree = score_sde.network(settings(**changed))
    assert tree["resampling"] == node
    assert tree["attention"] == [1]
    build(tree, rooms=MODEL_ROOMS)


@pytest.mark.parametrize(
    ("changed", "name", "node"),
    [
        ({"progressive_input": "input_skip"}, "input_pyramid", {"_target_": SKIP, "filter": FIR, "cat": False}),
        (
            {"progressive_input": "Input_Skip", "progressive_combine": "cat", "fir": False},
            "input_pyramid",
            {"_target_": SKIP, "filter": BOX, "cat": True},
        ),
        ({"progressive_input": "residual"}, "input_pyramid", {"_target_": RESIDUAL, "resampling": CONV}),
        ({"progressive": "output_skip"}, "output_pyramid", {"_target_": "sde.networks.OutputSkip", "filter": FIR}),
        (
            {"progressive": "residual", "fir": False},
            "output_pyramid",
            {"_target_": "sde.networks.OutputResidual", "resampling": {"_target_": "sde.networks.StridedConv"}},
        ),
    ],
)
def test_what_stands_beside_the_features(changed: dict[str, object], name: str, node: dict[str, object]) -> None:
    tree = score_sde.network(settings(**changed))
    assert tree[name] == node
    build(tree, rooms=MODEL_ROOMS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "ncsnv2"}, "name is 'ncsnv2': expected one of 'ddpm', 'ncsnpp'"),
        ({"nonlinearity": "gelu"}, "nonlinearity is 'gelu': expected one of 'swish', 'elu', 'relu', 'lrelu'"),
        ({"conditional": False}, "conditional is False"),
        ({"embedding_type": "none"}, "embedding_type is 'none'"),
        ({"resblock_type": "plain"}, "resblock_type is 'plain'"),
        ({"progressive": "sum"}, "progressive is 'sum'"),
        ({"progressive_input": "sum"}, "progressive_input is 'sum'"),
        ({"progressive_combine": "mean"}, "progressive_combine is 'mean'"),
    ],
)
def test_settings_of_no_such_network_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_sde.network(settings(**changed))


def test_settings_that_are_missing_are_named() -> None:
    lacking = settings()
    del lacking["model"]["nf"]
    with pytest.raises(ValueError, match=r"model .*'nf'"):
        score_sde.network(lacking)


def test_weights_that_do_not_fit_the_settings_are_refused(recorded: Recorded) -> None:
    state, names = recorded.state, list(recorded.state)
    with pytest.raises(ValueError, match=r"all_modules\.99\.weight"):
        score_sde.weights(recorded.settings, {**state, "all_modules.99.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="'extra'"):
        score_sde.weights(recorded.settings, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'weight' in module \d+"):
        score_sde.weights(recorded.settings, {key: state[key] for key in names if key != names[-2]})
    last = names[-1].rpartition(".")[0]
    with pytest.raises(ValueError, match=r"more modules .* \d+"):
        score_sde.weights(recorded.settings, {key: value for key, value in state.items() if not key.startswith(last)})
