r"""Importer of NVlabs EDM networks (Karras et al. 2022): a state dict, and the constructor arguments of its class.

The four classes around a network differ in its prediction and in its noise conditioning c at
:math:`\sigma = \sigma_t/\alpha_t`, the noise level of a process without scale (table 1 of the paper):

============ ================================ ============================ =======================================
class        prediction                       noise conditioning c         process here
============ ================================ ============================ =======================================
VPPrecond    noise                            :math:`(M - 1)\, t`          `VP` with its beta_min, beta_d
VEPrecond    :math:`\sigma_t` times the score :math:`\log(\sigma/2)`       `VE` with its sigma_min, sigma_max
iDDPMPrecond noise                            step of the chain minus 1    `ChainSDE` of the cosine chain of M steps
EDMPrecond   :class:`sde.EDM`                 :math:`\tfrac14 \log \sigma` `VE`, 0.002 to 80, as in its sampler
============ ================================ ============================ =======================================

All of them depend on :math:`\sigma` only, so that `process=` may be any process: c is that of the same
:math:`\sigma`. iDDPMPrecond rounds :math:`\sigma` to the nearest of its M levels. Here c varies continuously between
two levels, as an ODE requires; at the M levels, :math:`t = i/M` of the chain, both agree. Its network has twice as many
output channels, of which the original and this importer use the first half.

Labels are classes here and one-hot vectors in the original; no label, the zero vector in the original, is the class
`label_dim`. The augmentation vector is 0, as in the original's sampling. The network receives pixels v as
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
from .edm_unet import UNETS, network, rename_weights
from .formats import Source, largest_size, tensors
from .matching import Tree, content, image_model, node
from .validated import ValidatedSettings

WHAT = "an EDM network: the state dict of a VPPrecond, VEPrecond, iDDPMPrecond or EDMPrecond, with its arguments"

# The arguments of the classes with their defaults, without those of the inner network.
_CLASSES: dict[str, dict[str, Any]] = {
    "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5, "model_type": "SongUNet"},
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100, "model_type": "SongUNet"},
    "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000, "model_type": "DhariwalUNet"},
    "EDMPrecond": {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5, "model_type": "DhariwalUNet"},
}


def recognises(source: Source) -> bool:
    """Whether the source is the state dict of one of the four classes, judged by its names."""
    return source.state is not None and "model.map_layer0.weight" in source.state


def read(source: Source, process: SDE | None) -> dict[str, Any]:
    """The content of a checkpoint of this library.

    The settings are `class_name` and the arguments of that class, on the same level or in `init_kwargs`.

    Args:
        source: the file of weights.
        process: the process to use the network with, which determines how c is computed.

    Raises:
        ValueError: if a setting or a weight does not fit such a network; the error names it.
    """
    s, state = _settings(source), source.state or {}
    size = s.integer("img_resolution")
    trained, prediction, level = _preconditioning(s)
    try:
        sde = build(trained, rooms=MODEL_ROOMS)
    except ValueError as error:
        raise ValueError(f"{source.path}: its settings do not define a process: {error}") from error
    classes = s.integer("label_dim", largest_size(state)) if s["label_dim"] else None
    shape = [s.integer("img_channels", largest_size(state)), size, size]
    tree = image_model(trained, network(s, state, classes), prediction, level, shape, matched=process is not None)
    weights = tensors(state)
    _check_constants(s, weights, sde)
    return content(source, tree, rename_weights(s, weights, classes))


def _settings(source: Source) -> ValidatedSettings:
    settings = source.need_settings("class_name")
    inner, name = settings.get("init_kwargs", {}), str(settings["class_name"]).rpartition(".")[2]
    if name not in _CLASSES or not isinstance(inner, Mapping):
        raise ValueError(
            f"{source.path}: its settings have class_name={settings['class_name']!r}: expected one of "
            f"{', '.join(_CLASSES)}, and the arguments of that class beside it or as a mapping in init_kwargs"
        )
    arguments = {key: value for key, value in {**settings, **inner}.items() if key not in ("class_name", "init_kwargs")}
    values = {**_CLASSES[name], **arguments}
    kind = ValidatedSettings(source, values).choice("model_type", *UNETS)
    required = {"img_resolution", "img_channels"}
    unknown = values.keys() - required - _CLASSES[name].keys() - UNETS[kind].keys()
    for fault, names in (("are not those of", unknown), ("lack some of", required - values.keys())):
        if names:
            listed = ", ".join(map(repr, sorted(names)))
            raise ValueError(f"{source.path}: its settings {fault} {name} with model_type={kind!r}: {listed}")
    return ValidatedSettings(source, {**UNETS[kind], **values, "class_name": name})


def _preconditioning(s: ValidatedSettings) -> tuple[Tree, Tree, Tree]:
    """The trees of the process, the parametrisation and the noise conditioning."""
    if s["class_name"] == "VPPrecond":
        low = s.number("beta_min")
        betas = {"beta_min": low, "beta_max": low + s.number("beta_d"), "t_min": s.number("epsilon_t")}
        return node("VP", **betas), node("NoisePrediction"), node("TimeLevel", scale=s.integer("M") - 1.0)
    if s["class_name"] == "iDDPMPrecond":
        steps = s.integer("M")
        chain = node("DiscreteChain.cosine", n=steps, offset=s.number("C_2"), largest=1.0 - s.number("C_1"))
        level = node("TimeLevel", scale=float(steps), offset=-1.0)
        return node("ChainSDE", chain=chain), node("NoisePrediction"), level
    if s["class_name"] == "VEPrecond":
        level = node("LogSNRLevel", scale=0.5, offset=-math.log(2.0))
        return _ve(s, 0.0, math.inf), node("ScaledScorePrediction"), level
    prediction = node("EDM", data_std=s.number("sigma_data"))
    return _ve(s, 0.002, 80.0), prediction, node("LogSNRLevel", scale=0.125)


def _ve(s: ValidatedSettings, low: float, high: float) -> Tree:
    for name in ("sigma_min", "sigma_max"):
        if type(s[name]) not in (int, float) or math.isnan(s[name]):
            raise s.error(name, "a number")
    low, high = float(max(s["sigma_min"], low)), float(min(s["sigma_max"], high))
    return node("VE", sigma_min=low, sigma_max=high, t_min=0.0)


def _check_constants(s: ValidatedSettings, weights: dict[str, Tensor], trained: SDE) -> None:
    """Removes the constants from the weights after checking that they agree with the settings."""
    taps = torch.tensor(s.values.get("resample_filter", [1, 1]), dtype=torch.float32, device="cpu")
    fir = taps.outer(taps)[None, None] / taps.sum().square()
    constants = {name: fir for name in weights if name.endswith(".resample_filter")}
    if s["class_name"] == "iDDPMPrecond":
        t = torch.arange(s["M"], 0, -1, dtype=torch.float64, device="cpu") / s["M"]
        constants["u"] = torch.cat([(-0.5 * trained.log_snr(t)).exp(), torch.zeros(1, device="cpu")])
    for name, constant in constants.items():
        stored = weights.pop(name, constant)
        if stored.shape != constant.shape or not torch.allclose(stored.double(), constant.double(), rtol=1e-3):
            settings = "M, C_1 and C_2" if name == "u" else "resample_filter"
            raise ValueError(f"{s.source.path}: {name} does not agree with the settings: check {settings}")
