r"""Importer of yang-song/score_sde_pytorch checkpoints: a dictionary of `optimizer`, `model`, `ema` and `step`.

The checkpoint does not contain the settings: the user passes them, or they are in a JSON file beside it. The averages
are an unnamed list of the trained parameters, in the order of the network's modules, which is also the order of the raw
weights. Untrained entries (the Fourier frequencies) are taken from the raw weights.

The original's conventions in terms of this library, with c the noise conditioning and h the output of the network:

- VP and sub-VP: c is 999 t, and h is the noise. For VP with `training.continuous=False`, c is (N - 1) t for N levels.
- VE: c is sigma. With `scale_by_sigma`, h is sigma times the score, which is minus the noise, so that we change the
  sign of the last layer; without it, h is the score. With positional embeddings, c is the number of the noise level,
  counted down from the largest: (N - 1)(1 - t) for N levels.
- Data is in [-1, 1] if it is `centered`, else in [0, 1].

Song et al. 2021, https://arxiv.org/abs/2011.13456; https://github.com/yang-song/score_sde_pytorch.
"""

from __future__ import annotations

__all__ = ["WHAT", "read", "recognises"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..processes import SDE
from ..shapes import float64
from .formats import Source, named_tensors, tensors
from .matching import Tree, content, node
from .score_sde import frozen, network, weights

WHAT = "a checkpoint of yang-song/score_sde_pytorch (a .pth with optimizer, model, ema and step)"


def recognises(source: Source) -> bool:
    """Whether the source is a dictionary with the four keys."""
    return isinstance(source.content, dict) and {"optimizer", "model", "ema", "step"} <= source.content.keys()


def read(source: Source, process: SDE | None) -> dict[str, Any]:
    """The content of the checkpoint.

    Args:
        source: the checkpoint and the original's settings: the section `model`, and `image_size`, `num_channels` and
            `centered` in the section `data` or at the top level; `sde` and `continuous` of the section `training`, if
            there is one.
        process: the process of training. By default that of the section `training` if there is one, else VE with
            `scale_by_sigma` and VP without it.
    """
    settings = source.need_settings("model")
    try:
        settings = {**settings.get("data", {}), **settings}
        raw = _state(source)
        # The weights come first, so that settings of an arbitrarily large network fail before it is built.
        renamed = weights(settings, raw)
        average = weights(settings, raw | _average(source, raw))
        tree, sign = _tree(settings, process)
    except (KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError, ValueError) as error:
        message = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        reason = message if isinstance(error, KeyError | ValueError) else f"{type(error).__name__}: {message}"
        prefix = "" if reason.startswith(str(source.path)) else f"{source.path}: its settings do not fit: "
        raise ValueError(prefix + reason) from error
    step = source.content["step"]
    averages = {"default": _with_sign(average, sign)}
    return content(source, tree, _with_sign(renamed, sign), averages, step if isinstance(step, int) else 0)


def _state(source: Source) -> dict[str, Tensor]:
    """The raw weights."""
    state = named_tensors(source.content["model"])
    if state is None:
        raise ValueError(f"{source.path}: model does not contain weights: expected a mapping of names to tensors")
    return tensors(state)


def _average(source: Source, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights, with the names of the raw weights in their order."""
    names = [name for name in raw if not frozen(name)]
    shadow = source.content["ema"]["shadow_params"]
    if len(shadow) != len(names):
        raise ValueError(f"{source.path}: ema lists {len(shadow)} parameters, and model has {len(names)} trained ones")
    for name, value in zip(names, shadow):
        shape = tuple(raw[name].shape)
        if value.shape != shape:
            raise ValueError(f"{source.path}: ema has a parameter of shape {value.shape} for {name}: expected {shape}")
    return {name: value.read() for name, value in zip(names, shadow)}


_KINDS = {"vpsde": "VP", "subvpsde": "SubVP", "vesde": "VE"}


def _tree(settings: Mapping[str, Any], process: SDE | None) -> tuple[Tree, float]:
    """The tree of the model, and the sign of its output."""
    model = settings["model"]
    scaled = bool(model["scale_by_sigma"])
    name = settings.get("training", {}).get("sde", "vesde" if scaled else "vpsde")
    if name not in _KINDS:
        raise ValueError(f"training.sde is {name!r}: expected one of {', '.join(_KINDS)}")
    rates = ("sigma_min", "sigma_max") if name == "vesde" else ("beta_min", "beta_max")
    exploding = name == "vesde" if process is None else _explodes(process)
    if scaled and not exploding:
        raise ValueError(
            "expected process=sde.VE(...) or None for a network with scale_by_sigma, which predicts the VE score"
        )
    unet = network(settings, logarithm=not exploding)
    fourier = "embedding" in unet
    prediction = node("NoisePrediction" if scaled or not exploding else "ScorePrediction", data_std=None)
    discrete = settings.get("training", {}).get("continuous") is False and name == "vpsde"
    level = node("TimeLevel", scale=float(model["num_scales"] - 1) if discrete else 999.0)
    if exploding and fourier:
        level = node("LogSNRLevel", scale=0.5)  # log sigma
    elif exploding:
        last = float(model["num_scales"] - 1)
        level = node("TimeLevel", scale=-last, offset=last)
    low = -1.0 if settings["centered"] else 0.0
    tree = {
        "process": node(_KINDS[name], **{key: float(model[key]) for key in rates}),
        "network": unet,
        "denoiser": node("NetworkDenoiser", parametrisation=prediction, level=level),
        "scaling": node("data.Scaling", scale=(1.0 - low) / 256, shift=low, levels=256),
        "shape": [settings["num_channels"], settings["image_size"], settings["image_size"]],
        "classes": None,
    }
    return tree, -1.0 if scaled else 1.0


def _explodes(process: SDE) -> bool:
    """Whether the signal keeps its scale, as in VE."""
    return not process.log_alpha(float64(process.t_max)).any()


def _with_sign(state: Mapping[str, Tensor], sign: float) -> dict[str, Tensor]:
    """The weights of the network with its output multiplied by `sign`, in its last layer or in the summed heads."""
    last = "outlet.2." if "outlet.2.weight" in state else ".head.2."
    return {**state, **{name: sign * value for name, value in state.items() if last in name}}
