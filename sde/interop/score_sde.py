r"""The networks of yang-song/score_sde_pytorch (Song et al. 2021, arXiv:2011.13456) as networks of this library: DDPM,
DDPM++ and NCSN++ from the `model` section of their settings, and their weights under the names used here.

There a network is one list of modules, whose numbers follow from the settings; it is walked through in its order.
Its maps over channels ("NIN") hold their matrices transposed, and queries, keys and values in three of them. What is
left to the caller, since it is no business of the network:

- with `scale_by_sigma` the original divides its output by sigma: the output here is sigma times the score;
- what the noise level is: sigma for VE, 999 t for VP. The Fourier embedding takes the logarithm of it by itself, or is
  told the logarithm (`logarithm=False`).
"""

from __future__ import annotations

__all__ = ["frozen", "network", "weights"]

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..networks.embedding import split

Settings = Mapping[str, Any]
Tree = dict[str, Any]


def network(settings: Settings, logarithm: bool = True) -> Tree:
    """The tree of the network, to be built by :func:`sde.instantiate.build`.

    Args:
        settings: the section `model` of the original's settings, with `image_size`, `num_channels` and `centered` from
            its section `data` beside it.
        logarithm: whether a Fourier embedding takes the logarithm of the noise level, as in the original, or is given
            it.

    Raises:
        ValueError: if the settings describe no such network.
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
        "resampling": model.resampling(),
        "centre": not settings["centered"],
    }
    if model.plus:
        if model["skip_rescale"]:
            tree["skip_scale"] = math.sqrt(0.5)
        if model.fourier:
            scale = model["fourier_scale"]
            tree["embedding"] = _node("Fourier", dim=2 * model["nf"], scale=scale, logarithm=logarithm)
        pyramids = {"input_pyramid": model.input_pyramid(), "output_pyramid": model.output_pyramid()}
        tree |= {name: pyramid for name, pyramid in pyramids.items() if pyramid is not None}
    else:
        tree["norm"] = _node("Normalisation", groups=32, least=1)
    return tree


def weights(settings: Settings, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under their names in the network of :func:`network`, from those of the original.

    Args:
        settings: as for :func:`network`.
        state: the original's state dict, without the prefix `module.`.

    Raises:
        ValueError: if a weight is missing, or one is there that such a network does not have.
    """
    walk = _Walk(state)
    _rename(_Model(settings), walk)
    unknown = state.keys() - walk.used - {"sigmas"}
    if unknown:
        raise ValueError(f"these weights belong to no module that the settings describe: {sorted(unknown)[:4]}")
    return walk.found


def frozen(name: str) -> bool:
    """Whether an entry of the original's state dict is no trained parameter, so that its list of averaged parameters,
    which names none, passes over it."""
    return name == "sigmas" or (name.endswith(".W") and name.count(".") == 2)


class _Model:
    """The section `model` of the settings, checked."""

    def __init__(self, settings: Settings) -> None:
        self.model: Settings = settings["model"]
        self.plus = self._one_of("name", "ddpm", "ncsnpp") == "ncsnpp"
        self._one_of("nonlinearity", "swish")
        self.fourier = False
        if self.plus:
            self._one_of("conditional", True)
            self.fourier = self._one_of("embedding_type", "positional", "fourier") == "fourier"
        self.big = self.plus and self._one_of("resblock_type", "ddpm", "biggan") == "biggan"
        self.inputs = self._one_of("progressive_input", "none", "input_skip", "residual") if self.plus else "none"
        self.outputs = self._one_of("progressive", "none", "output_skip", "residual") if self.plus else "none"
        self.levels = len(self["ch_mult"])
        sizes = [settings["image_size"] // 2**level for level in range(self.levels)]
        self.attention = [level for level, size in enumerate(sizes) if size in self["attn_resolutions"]]

    def __getitem__(self, key: str) -> Any:
        if key not in self.model:
            raise ValueError(f"the settings' section model lacks {key!r}")
        return self.model[key]

    def _one_of(self, key: str, *known: Any) -> Any:
        value = self[key].lower() if isinstance(self[key], str) else self[key]
        if value not in known:
            raise ValueError(f"{key} is {self[key]!r}: expected one of {', '.join(map(repr, known))}")
        return value

    def filter(self) -> Tree:
        return _node("FIR", taps=list(self["fir_kernel"])) if self.plus and self["fir"] else _node("Box")

    def convolution(self) -> Tree:
        if self.plus and self["fir"]:
            return _node("FilteredConv", taps=list(self["fir_kernel"]))
        return _node("StridedConv")

    def resampling(self) -> Tree:
        if self.big:
            return _node("InResidual", filter=self.filter(), projection=True)
        return self.convolution() if self["resamp_with_conv"] else _node("Filtered", filter=self.filter())

    def input_pyramid(self) -> Tree | None:
        cat = self._one_of("progressive_combine", "sum", "cat") == "cat"
        return {
            "none": None,
            "input_skip": _node("InputSkip", filter=self.filter(), cat=cat),
            "residual": _node("InputResidual", resampling=self.convolution()),
        }[self.inputs]

    def output_pyramid(self) -> Tree | None:
        return {
            "none": None,
            "output_skip": _node("OutputSkip", filter=self.filter()),
            "residual": _node("OutputResidual", resampling=self.convolution()),
        }[self.outputs]


class _Walk:
    """The original's modules that have weights, one after the other, and what has been found in them.

    Args:
        state: the original's state dict.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state
        self.modules: dict[int, dict[str, str]] = {}  # by number: the names of its weights, within it and whole
        for name in state:
            kind, number, inner = [*name.split(".", 2), "", ""][:3]
            if kind == "all_modules" and number.isdecimal():
                self.modules.setdefault(int(number), {})[inner] = name
        self.numbers = iter(sorted(self.modules))
        self.number = -1
        self.found: dict[str, Tensor] = {}
        self.used: set[str] = set()

    def next(self) -> None:
        """Goes on to the next module."""
        number = next(self.numbers, None)
        if number is None:
            raise ValueError(f"the settings describe more modules than there are: the last one is {self.number}")
        self.number = number

    def old(self, inner: str) -> Tensor:
        """A weight of the module."""
        name = self.modules[self.number].get(inner)
        if name is None:
            raise ValueError(f"the settings describe a weight {inner!r} in module {self.number}, which is not there")
        self.used.add(name)
        return self.state[name]

    def copy(self, new: str, part: str = "") -> None:
        """Takes over a layer: the module itself, or a part of it."""
        for leaf in ("weight", "bias"):
            self.found[f"{new}.{leaf}"] = self.old(f"{part}.{leaf}" if part else leaf)

    def layer(self, new: str) -> None:
        """The next module, which is a layer or has one as its only part."""
        self.next()
        self.copy(new, min(self.modules[self.number]).rpartition(".")[0])

    def residual(self, new: str) -> None:
        """The next module, a residual block."""
        self.next()
        for name, part in _RESIDUAL.items():
            self.copy(f"{new}.{name}", part)
        if "Conv_2.weight" in self.modules[self.number]:
            self.copy(f"{new}.shortcut", "Conv_2")
        elif "NIN_0.W" in self.modules[self.number]:
            self.found[f"{new}.shortcut.weight"] = self.old("NIN_0.W").mT[..., None, None]
            self.found[f"{new}.shortcut.bias"] = self.old("NIN_0.b")

    def attention(self, new: str) -> None:
        """The next module, self-attention."""
        self.next()
        self.copy(f"{new}.norm", "GroupNorm_0")
        self.found[f"{new}.qkv.weight"] = torch.cat([self.old(f"NIN_{i}.W").mT for i in range(3)])
        self.found[f"{new}.qkv.bias"] = torch.cat([self.old(f"NIN_{i}.b") for i in range(3)])
        self.found[f"{new}.out.weight"] = self.old("NIN_3.W").mT
        self.found[f"{new}.out.bias"] = self.old("NIN_3.b")


_RESIDUAL = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "shift": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
}


def _rename(model: _Model, walk: _Walk) -> None:
    """Walks through the original's modules in the order in which it lists them."""
    blocks, levels = model["num_res_blocks"], model.levels
    if model.fourier:
        walk.next()
        walk.found["context.embedding.parts"] = split(walk.old("W"))
    for name in ("context.inner", "context.outer", "inlet"):
        walk.layer(name)
    for level in range(levels):
        for block in range(blocks):
            walk.residual(f"encoder.{level}.{block}.residual")
            if level in model.attention:
                walk.attention(f"encoder.{level}.{block}.attention")
        if level < levels - 1:
            _resample(model, walk, f"downsample.{level}")
            if model.inputs != "none":
                walk.layer(f"input_pyramid.{level}." + ("conv" if model.inputs == "input_skip" else "resample.conv"))
    walk.residual("middle.0.residual")
    walk.attention("middle.0.attention")
    walk.residual("middle.1.residual")
    for step in range(levels):
        for block in range(blocks + 1):
            walk.residual(f"decoder.{step}.{block}.residual")
        if levels - 1 - step in model.attention:
            walk.attention(f"decoder.{step}.{blocks}.attention")
        if model.outputs == "output_skip" or (model.outputs == "residual" and step == 0):
            walk.layer(f"output_pyramid.{step}.head.0")
            walk.layer(f"output_pyramid.{step}.head.2")
        elif model.outputs == "residual":
            walk.layer(f"output_pyramid.{step}.resample.conv")
        if step < levels - 1:
            _resample(model, walk, f"upsample.{step}")
    if model.outputs != "output_skip":
        walk.layer("outlet.0")
        walk.layer("outlet.2")


def _resample(model: _Model, walk: _Walk, new: str) -> None:
    if model.big:
        walk.residual(f"{new}.residual")
    elif model["resamp_with_conv"]:
        walk.layer(f"{new}.conv")


def _node(name: str, **arguments: Any) -> Tree:
    return {"_target_": f"sde.networks.{name}", **arguments}
