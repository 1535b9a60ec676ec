r"""Networks of NVlabs EDM (Karras et al. 2022): a state dict, and the arguments that its class was made with.

The four classes around a network differ in what it predicts and is told at :math:`\sigma = \sigma_t/\alpha_t`, the
noise of a process without scale (table 1 of the paper):

============ ================================ ============================ =========================================
class        prediction                       label                        process here
============ ================================ ============================ =========================================
VPPrecond    noise                            :math:`(M - 1)\, t`          `VP` with its beta_min, beta_d
VEPrecond    :math:`\sigma_t` times the score :math:`\log(\sigma/2)`       `VE` with its sigma_min, sigma_max
iDDPMPrecond noise                            step of the chain less 1     `ChainSDE` of the cosine chain of M steps
EDMPrecond   :class:`sde.EDM`                 :math:`\tfrac14 \log \sigma` `VE`, 0.002 to 80, as in its sampler
============ ================================ ============================ =========================================

All of them are functions of :math:`\sigma` alone, so that `process=` may be any process: the label is that of the same
:math:`\sigma`. iDDPMPrecond rounds :math:`\sigma` to the nearest of its M levels. Here the label goes on evenly
between two levels, which an ODE needs; at the M levels, :math:`t = i/M` of the chain, both are the same. Its network
has twice the channels, of which the original uses the first half, and so does this importer.

Labels are classes here and one-hot vectors there; no label, the vector 0 there, is the class `label_dim`. The
augmentation of the training data is left at 0, as when the original samples. Pixels v are shown to the network as
:math:`2 v/255 - 1`.

Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
https://arxiv.org/abs/2206.00364; names and settings as in training/networks.py of https://github.com/NVlabs/edm.
"""

from __future__ import annotations

__all__ = ["WHAT", "read", "recognises"]

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..instantiate import MODEL_ROOMS, build
from ..processes import SDE
from .edm_unet import UNETS, largest, network, renamed
from .formats import Source, tensors
from .matching import content
from .validated import Checked

WHAT = "an EDM network: the state dict of a VPPrecond, VEPrecond, iDDPMPrecond or EDMPrecond, with its arguments"

# The arguments of the classes with their defaults, next to those of the network inside.
_CLASSES: dict[str, dict[str, Any]] = {
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "model_type": "SongUNet"},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100, "model_type": "SongUNet"},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000, "model_type": "DhariwalUNet"},
    "EDMPrecond": {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5, "model_type": "DhariwalUNet"},
}


def recognises(source: Source) -> bool:
    """Whether a source is the state dict of one of the four classes, by its names."""
    return source.state is not None and "model.map_layer0.weight" in source.state


def read(source: Source, process: SDE | None) -> dict[str, Any]:
    """The content of a checkpoint of this library.

    The settings are `class_name` and the arguments of that class, beside it or in `init_kwargs`.

    Args:
        source: the file of weights.
        process: the process to use the network with, which decides how its label is found.

    Raises:
        ValueError: if a setting or a weight is not that of such a network; it is named.
    """
    s, state = _settings(source), source.state or {}
    size = s.whole("img_resolution")
    trained, prediction, level = _preconditioning(s)
    if process is not None:
        level = {"_target_": "sde.MatchedLevel", "trained": trained, "level": level}
    classes = s.whole("label_dim", largest(state)) if s["label_dim"] else None
    tree = {
        "process": trained,
        "network": network(s, state, classes),
        "denoiser": {"_target_": "sde.NetworkDenoiser", "parametrisation": prediction, "level": level},
        "scaling": {"_target_": "sde.data.Scaling", "scale": 2 / 255, "shift": -1.0 - 1 / 255, "levels": 256},
        "shape": [s.whole("img_channels", largest(state)), size, size],
        "classes": classes,
    }
    weights = tensors(state)
    _check_constants(s, weights, build(trained, rooms=MODEL_ROOMS))
    return content(source, tree, renamed(s, weights, classes))


def _settings(source: Source) -> Checked:
    given = source.need_settings("class_name")
    inner, name = given.get("init_kwargs", {}), str(given["class_name"]).rpartition(".")[2]
    if name not in _CLASSES or not isinstance(inner, Mapping):
        raise ValueError(
            f"{source.path}: its settings say class_name={given['class_name']!r}: expected one of "
            f"{', '.join(_CLASSES)}, and the arguments of that class beside it or as a mapping in init_kwargs"
        )
    arguments = {key: value for key, value in {**given, **inner}.items() if key not in ("class_name", "init_kwargs")}
    values = {**_CLASSES[name], **arguments}
    kind = Checked(source, values).choice("model_type", *UNETS)
    known = {"img_resolution", "img_channels", *_CLASSES[name], *UNETS[kind]}
    for fault, names in (
        ("are not those of", values.keys() - known),
        ("lack some of", {"img_resolution", "img_channels"} - values.keys()),
    ):
        if names:
            listed = ", ".join(map(repr, sorted(names)))
            raise ValueError(f"{source.path}: its settings {fault} {name} with model_type={kind!r}: {listed}")
    return Checked(source, {**UNETS[kind], **values, "class_name": name})


def _preconditioning(s: Checked) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The trees of the process, of what the network predicts in it and of what it is told."""
    trees: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
    noise = {"_target_": "sde.NoisePrediction"}
    label = "sde.TimeLevel"
    log_label = "sde.LogSNRLevel"
    if s["class_name"] == "VPPrecond":
        low = s.number("beta_min")
        betas = {"beta_min": low, "beta_max": low + s.number("beta_d"), "t_min": s.number("epsilon_t")}
        trees = {"_target_": "sde.VP", **betas}, noise, {"_target_": label, "scale": s.whole("M") - 1.0}
    elif s["class_name"] == "iDDPMPrecond":
        steps = s.whole("M")
        chain = {"n": steps, "offset": s.number("C_2"), "largest": 1.0 - s.number("C_1")}
        process = {"_target_": "sde.ChainSDE", "chain": {"_target_": "sde.DiscreteChain.cosine", **chain}}
        trees = process, noise, {"_target_": label, "scale": float(steps), "offset": -1.0}
    elif s["class_name"] == "VEPrecond":
        level = {"_target_": log_label, "scale": 0.5, "offset": -math.log(2.0)}
        trees = _ve(s, 0.0, math.inf), {"_target_": "sde.ScaledScorePrediction"}, level
    else:
        prediction = {"_target_": "sde.EDM", "data_std": s.number("sigma_data")}
        trees = _ve(s, 0.002, 80.0), prediction, {"_target_": log_label, "scale": 0.125}
    try:
        build(trees[0], rooms=MODEL_ROOMS)
    except ValueError as error:
        raise ValueError(f"{s.source.path}: the settings of its {s['class_name']} make no process: {error}") from error
    return trees


def _ve(s: Checked, low: float, high: float) -> dict[str, Any]:
    for name in ("sigma_min", "sigma_max"):
        if type(s[name]) not in (int, float) or math.isnan(s[name]):
            raise s.error(name, "a number")
    ends = {"sigma_min": float(max(s["sigma_min"], low)), "sigma_max": float(min(s["sigma_max"], high))}
    return {"_target_": "sde.VE", **ends, "t_min": 0.0}


def _check_constants(s: Checked, weights: dict[str, Tensor], trained: SDE) -> None:
    """Takes the constants out of the weights, once they have been found to be what the settings say."""
    taps = torch.tensor(s.values.get("resample_filter", [1, 1]), dtype=torch.float32)
    fir = taps.outer(taps)[None, None] / taps.sum().square()
    constants = {name: fir for name in weights if name.endswith(".resample_filter")}
    if s["class_name"] == "iDDPMPrecond":
        t = torch.arange(s["M"], 0, -1, dtype=torch.float64) / s["M"]
        constants["u"] = torch.cat([(-0.5 * trained.log_snr(t)).exp(), torch.zeros(1)])
    for name, constant in constants.items():
        found = weights.pop(name, constant)
        if found.shape != constant.shape or not torch.allclose(found.double(), constant.double(), rtol=1e-3):
            raise ValueError(
                f"{s.source.path}: {name} is not what the settings say: check "
                + ("M, C_1 and C_2" if name == "u" else "resample_filter")
            )
