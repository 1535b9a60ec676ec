r"""Conversion of the networks of yang-song/score_sde_pytorch (Song et al. 2021, arXiv:2011.13456) to our U-Net.

Supported are DDPM, DDPM++ and NCSN++, from the section `model` of their settings. In the original a network is a list
of modules, whose numbers follow from the settings; we process it in this order. Its linear layers over channels ("NIN")
store transposed matrices, with queries, keys and values in three separate layers. Two conventions are left to the
caller:

- with `scale_by_sigma` the original divides its output by sigma: the output here is sigma times the score;
- the noise level is sigma for VE and 999 t for VP. The Fourier embedding takes the logarithm of the noise level, or
  expects the logarithm as its input (`logarithm=False`).
"""

from __future__ import annotations

__all__ = ["frozen", "network", "weights"]

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..networks.embedding import split
from .matching import Tree, node

Settings = Mapping[str, Any]


def network(settings: Settings, logarithm: bool = True) -> Tree:
    """The tree of the network, to be built by :func:`sde.instantiate.build`.

    Args:
        settings: the original's section `model`, together with `image_size`, `num_channels` and `centered` from its
            section `data`.
        logarithm: whether a Fourier embedding takes the logarithm of the noise level, as in the original, or expects it
            as its input.

    Raises:
        ValueError: if the settings do not describe such a network.
    """
    model = _Model(settings)
    tree = {
        "_target_": "sde.networks.UNet",
        "channels": settings["num_channels"],
        "width": model["nf"],
        "multipliers": list(model["ch_mult"]),
        "blocks": model["num_res_blocks"],
        "attention": model.attention,
        "attention_last": True,
        "dropout": model["dropout"],
        "activation": model.activation,
        "resampling": model.resampling(),
        "centre": not settings["centered"],
    }
    if model.plus:
        if model["skip_rescale"]:
            tree["skip_scale"] = math.sqrt(0.5)
        if model.fourier:
            scale = model["fourier_scale"]
            tree["embedding"] = node("networks.Fourier", dim=2 * model["nf"], scale=scale, logarithm=logarithm)
        pyramids = {"input_pyramid": model.input_pyramid(), "output_pyramid": model.output_pyramid()}
        tree |= {name: pyramid for name, pyramid in pyramids.items() if pyramid is not None}
    else:
        tree["norm"] = node("networks.Normalisation", groups=32, least=1)
    return tree


def weights(settings: Settings, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's weights under their names in the network of :func:`network`.

    Args:
        settings: as for :func:`network`.
        state: the original's state dict, without the prefixes of wrappers.

    Raises:
        ValueError: if a weight is missing, or belongs to no module of such a network.
    """
    convert = _Converter(state)
    _convert_all(_Model(settings), convert)
    unknown = state.keys() - convert.converted - {"sigmas"}
    if unknown:
        raise ValueError(f"these weights belong to no module that the settings describe: {sorted(unknown)[:4]}")
    return convert.weights


def frozen(name: str) -> bool:
    """Whether an entry of the original's state dict is not trained, and so not in its unnamed list of averages."""
    return name == "sigmas" or (name.endswith(".W") and name.count(".") == 2)


# Their names of the activations and ours.
_ACTIVATIONS = {"swish": "silu", "elu": "elu", "relu": "relu", "lrelu": "lrelu"}


class _Model:
    """The validated section `model` of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.model: Settings = settings["model"]
        self.plus = self._one_of("name", "ddpm", "ncsnpp") == "ncsnpp"
        self.activation = _ACTIVATIONS[self._one_of("nonlinearity", *_ACTIVATIONS)]
        if self.plus:
            self._one_of("conditional", True)
        self.fourier = self.plus and self._one_of("embedding_type", "positional", "fourier") == "fourier"
        self.big = self.plus and self._one_of("resblock_type", "ddpm", "biggan") == "biggan"
        self.inputs = self._one_of("progressive_input", "none", "input_skip", "residual") if self.plus else "none"
        self.outputs = self._one_of("progressive", "none", "output_skip", "residual") if self.plus else "none"
        self.levels = len(self["ch_mult"])
        sizes = [settings["image_size"] // 2**level for level in range(self.levels)]
        self.attention = [level for level, size in enumerate(sizes) if size in self["attn_resolutions"]]

    def __getitem__(self, key: str) -> Any:
        if key not in self.model:
            raise ValueError(f"the section model of the settings lacks {key!r}")
        return self.model[key]

    def _one_of(self, key: str, *allowed: Any) -> Any:
        value = self[key].lower() if isinstance(self[key], str) else self[key]
        if value not in allowed:
            raise ValueError(f"{key} is {self[key]!r}: expected one of {', '.join(map(repr, allowed))}")
        return value

    def filter(self) -> Tree:
        if self.plus and self["fir"]:
            return node("networks.FIR", taps=list(self["fir_kernel"]))
        return node("networks.Box")

    def convolution(self) -> Tree:
        if self.plus and self["fir"]:
            return node("networks.FilteredConv", taps=list(self["fir_kernel"]))
        return node("networks.StridedConv")

    def resampling(self) -> Tree:
        if self.big:
            return node("networks.InResidual", filter=self.filter(), projection=True)
        return self.convolution() if self["resamp_with_conv"] else node("networks.Filtered", filter=self.filter())

    def input_pyramid(self) -> Tree | None:
        cat = self._one_of("progressive_combine", "sum", "cat") == "cat"
        skip = node("networks.InputSkip", filter=self.filter(), cat=cat)
        residual = node("networks.InputResidual", resampling=self.convolution())
        return {"input_skip": skip, "residual": residual}.get(self.inputs)

    def output_pyramid(self) -> Tree | None:
        skip = node("networks.OutputSkip", filter=self.filter())
        residual = node("networks.OutputResidual", resampling=self.convolution())
        return {"output_skip": skip, "residual": residual}.get(self.outputs)


class _Converter:
    """Conversion of weights module by module, in the order of the original's list.

    Args:
        state: the original's state dict.

    Attributes:
        weights: the converted weights, by our names.
        converted: the original's names of the converted weights.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state
        self.modules: dict[int, dict[str, str]] = {}  # number -> name within the module -> full name
        for name in state:
            kind, number, inner = [*name.split(".", 2), "", ""][:3]
            if kind == "all_modules" and number.isdecimal():
                self.modules.setdefault(int(number), {})[inner] = name
        self.numbers = iter(sorted(self.modules))
        self.number = -1
        self.weights: dict[str, Tensor] = {}
        self.converted: set[str] = set()

    def next(self) -> None:
        """Moves to the next module with weights."""
        number = next(self.numbers, None)
        if number is None:
            raise ValueError(f"the settings describe more modules than there are: the last one is {self.number}")
        self.number = number

    def original(self, inner: str) -> Tensor:
        """A weight of the current module."""
        name = self.modules[self.number].get(inner)
        if name is None:
            raise ValueError(f"the settings describe a weight {inner!r} in module {self.number}, which is missing")
        self.converted.add(name)
        return self.state[name]

    def copy(self, new: str, part: str = "") -> None:
        """Copies a layer: the current module, or a part of it."""
        for leaf in ("weight", "bias"):
            self.weights[f"{new}.{leaf}"] = self.original(f"{part}.{leaf}" if part else leaf)

    def layer(self, new: str) -> None:
        """Converts the next module, which is a layer or contains a single layer."""
        self.next()
        self.copy(new, min(self.modules[self.number]).rpartition(".")[0])

    def residual(self, new: str) -> None:
        """Converts the next module, a residual block."""
        self.next()
        for name, part in _RESIDUAL.items():
            self.copy(f"{new}.{name}", part)
        if "Conv_2.weight" in self.modules[self.number]:
            self.copy(f"{new}.shortcut", "Conv_2")
        elif "NIN_0.W" in self.modules[self.number]:
            self.weights[f"{new}.shortcut.weight"] = self.original("NIN_0.W").mT[..., None, None]
            self.weights[f"{new}.shortcut.bias"] = self.original("NIN_0.b")

    def attention(self, new: str) -> None:
        """Converts the next module, self-attention."""
        self.next()
        self.copy(f"{new}.norm", "GroupNorm_0")
        self.weights[f"{new}.qkv.weight"] = torch.cat([self.original(f"NIN_{i}.W").mT for i in range(3)])
        self.weights[f"{new}.qkv.bias"] = torch.cat([self.original(f"NIN_{i}.b") for i in range(3)])
        self.weights[f"{new}.out.weight"] = self.original("NIN_3.W").mT
        self.weights[f"{new}.out.bias"] = self.original("NIN_3.b")


_RESIDUAL = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "shift": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}


def _convert_all(model: _Model, convert: _Converter) -> None:
    """Converts the modules in the order of the original's list."""
    blocks, levels = model["num_res_blocks"], model.levels
    if model.fourier:
        convert.next()
        convert.weights["context.embedding.parts"] = split(convert.original("W"))
    for name in ("context.inner", "context.outer", "inlet"):
        convert.layer(name)
    for level in range(levels):
        for block in range(blocks):
            convert.residual(f"encoder.{level}.{block}.residual")
            if level in model.attention:
                convert.attention(f"encoder.{level}.{block}.attention")
        if level < levels - 1:
            _convert_resampling(model, convert, f"downsample.{level}")
            if model.inputs != "none":
                layer = "conv" if model.inputs == "input_skip" else "resample.conv"
                convert.layer(f"input_pyramid.{level}.{layer}")
    convert.residual("middle.0.residual")
    convert.attention("middle.0.attention")
    convert.residual("middle.1.residual")
    for step in range(levels):
        for block in range(blocks + 1):
            convert.residual(f"decoder.{step}.{block}.residual")
        if levels - 1 - step in model.attention:
            convert.attention(f"decoder.{step}.{blocks}.attention")
        if model.outputs == "output_skip" or (model.outputs == "residual" and step == 0):
            convert.layer(f"output_pyramid.{step}.head.0")
            convert.layer(f"output_pyramid.{step}.head.2")
        elif model.outputs == "residual":
            convert.layer(f"output_pyramid.{step}.resample.conv")
        if step < levels - 1:
            _convert_resampling(model, convert, f"upsample.{step}")
    if model.outputs != "output_skip":
        convert.layer("outlet.0")
        convert.layer("outlet.2")


def _convert_resampling(model: _Model, convert: _Converter, new: str) -> None:
    if model.big:
        convert.residual(f"{new}.residual")
    elif model["resamp_with_conv"]:
        convert.layer(f"{new}.conv")
