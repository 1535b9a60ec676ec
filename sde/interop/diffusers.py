r"""Importer of Hugging Face diffusers: image pipelines of a `UNet2DModel` and the scheduler of a discrete chain.

A pipeline is a directory with `model_index.json`, the settings and weights of the network in `unet/` and the settings
of the chain in `scheduler/`, or all of these in one directory, as in google/ddpm-cifar10-32. A checkpoint of diffusers'
training script is a directory with averaged weights in `unet_ema/` and raw weights in `unet/`, and has no chain.
`settings={"variant": "fp16"}` chooses among the variants of the weights. The network is our U-Net under other names.
The scheduler's timestep 0 ... N - 1 is the step i = 1 ... N of the chain, so that the noise conditioning is
:math:`N t - 1` at the time t = i/N of its :class:`sde.ChainSDE`.

We read the parts of the scheduler that define the model: the betas, the prediction of the network, and the limits of
the clean data (`clip_sample`, `thresholding`) that its class has, which become wrappers of the denoiser. Where these
limits are active, they change the probability flow and with it the likelihoods; `settings={"clip_sample": False}`
imports the network without them.

Sampler settings are given to the solver instead. `variance_type` is `v` of :class:`sde.solvers.Ancestral`: 0 for
fixed_small, 1 for fixed_large, None for learned_range, where the network predicts it. The solvers end at `t_min` = 1/N,
step 1 of the chain, and `denoise=True` adds the step to clean data, which the schedulers take from timestep 0. A
`DDIMScheduler` with `set_alpha_to_one=False` ends at step 1, like `denoise=False` here. Its `timestep_spacing` and
`steps_offset` choose among the times i/N, where "leading" begins below i = N: pass these times as
:class:`sde.grids.Explicit`.

The network receives pixels v as :math:`2 v / 255 - 1`, the middle of their quantisation bins.
"""

from __future__ import annotations

__all__ = ["WHAT", "read", "recognises"]

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..processes import SDE
from .diffusers_files import network_folders, read_weights
from .diffusers_unet import AVERAGING, NETWORK, network, rename_weights
from .formats import Source, read_json
from .matching import Tree, content, image_model, node
from .validated import ValidatedSettings

WHAT = "a diffusers pipeline or UNet2DModel: a directory with model_index.json or config.json, and its weights"

# The settings of a scheduler that define the model, with the defaults of DDPMScheduler.
_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
}

# The schedulers of a discrete chain, by the limits of the clean data that they have.
_BOTH = ("DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler")
_CLIPPING = (*_BOTH, "DDIMInverseScheduler", "HeunDiscreteScheduler")
_THRESHOLDING = (
    *_BOTH,
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
)
_CHAINS = (
    *dict.fromkeys([*_CLIPPING, *_THRESHOLDING]),
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
)

# The defaults that differ from those of DDPMScheduler.
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "HeunDiscreteScheduler": {**_LATENT, "clip_sample": False},
    "KDPM2DiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
    "DPMSolverSDEScheduler": _LATENT,
}

_SCHEDULER_FILE = "scheduler_config.json"
_PREDICTIONS = {"epsilon": "NoisePrediction", "sample": "DataPrediction", "v_prediction": "VelocityPrediction"}


def recognises(source: Source) -> bool:
    """Whether the source is a directory of diffusers."""
    names = ("model_index.json", "config.json", "unet/config.json", "unet_ema/config.json")
    return source.path.is_dir() and any((source.path / name).is_file() for name in names)


def read(source: Source, process: SDE | None) -> dict[str, Any]:
    """The content of a checkpoint of this library.

    The keys of `settings=` replace those in the two files of settings. They are required for a network without a
    scheduler, where `{}` means the defaults of `DDPMScheduler`. `variant` is the variant of the weights.

    Args:
        source: the directory.
        process: not used, because the network is conditioned on the steps of its own chain.

    Raises:
        ValueError: if our network or chain does not support a setting; the error names it.
    """
    root = source.path
    if (root / "model_index.json").is_file():
        _check_pipeline(source, read_json(root / "model_index.json"))
    averaged, raw = network_folders(root)
    variant = (source.settings or {}).get("variant")
    variant = variant if variant is None else str(variant)
    state, config = read_weights(averaged, variant), read_json(averaged / "config.json")
    unet = ValidatedSettings(source, _network_settings(source, config))
    if unet.values != _network_settings(source, read_json(raw / "config.json")):
        raise ValueError(f"{root}: the settings of {averaged.name} and of {raw.name} are those of two networks")
    scheduler = ValidatedSettings(source, _scheduler_settings(source))
    size = unet["sample_size"]
    shape = [unet.integer("in_channels"), *(size if isinstance(size, list) else [size, size])]
    if len(shape) != 3 or not all(type(n) is int and 0 < n <= 2**16 for n in shape):
        raise unet.error("sample_size", 'the height and width of the images, for example settings={"sample_size": 32}')
    prediction = scheduler.choice("prediction_type", *_PREDICTIONS)
    tree = image_model(
        _process(scheduler),
        network(unet, state),
        node(_PREDICTIONS[prediction], data_std=None),
        node("TimeLevel", scale=float(scheduler["num_train_timesteps"]), offset=-1.0),
        shape,
        learned_variance=_learns_variance(unet, scheduler),
        wrappers=_wrappers(scheduler),
    )
    average = rename_weights(state)
    step = config.get("optimization_step")
    ema = None if raw == averaged else {"default": average}
    weights = average if ema is None else rename_weights(read_weights(raw, variant))
    return content(source, tree, weights, ema, step if isinstance(step, int) else 0)


def _check_pipeline(source: Source, index: Mapping[str, Any]) -> None:
    parts = {name: value for name, value in index.items() if not name.startswith("_") and value != [None, None]}
    unet = parts.pop("unet", None)
    parts.pop("scheduler", None)
    if parts or not (isinstance(unet, list) and unet[-1:] == ["UNet2DModel"]):
        raise ValueError(
            f"{source.path}: expected a pipeline of a UNet2DModel and a scheduler only, got "
            f"{index.get('_class_name')} with unet={unet!r}" + (f" and {', '.join(map(repr, parts))}" if parts else "")
        )


def _network_settings(source: Source, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the network, by precedence from the user, the file and the defaults."""
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"{source.path}: config.json describes a {kind}: expected a UNet2DModel")
    known = NETWORK.keys() | AVERAGING
    unknown = [name for name, value in config.items() if name[:1] != "_" and name not in known and value]
    if unknown:
        raise ValueError(
            f"{source.path}: the setting {unknown[0]!r} of its network is not known, and may change its output"
        )
    return NETWORK | _known(NETWORK, config) | _known(NETWORK, source.settings or {})


def _scheduler_settings(source: Source) -> dict[str, Any]:
    """The settings of the scheduler, by precedence from the user, the file and the defaults."""
    user, root = source.settings, source.path
    files = [path for path in (root / "scheduler" / _SCHEDULER_FILE, root / _SCHEDULER_FILE) if path.is_file()]
    if not files and user is None:
        raise ValueError(
            f"{root} has no {_SCHEDULER_FILE}, which defines the training of its network: give sde.load or "
            f"scripts/convert.py settings=, a mapping with {', '.join(_SCHEDULER)} where they differ from those "
            "of DDPMScheduler, or {}"
        )
    # The user may pass the whole file of a scheduler, including its sampler settings.
    names = [*_SCHEDULER, *NETWORK, "variant"]
    unknown = [name for name in user or {} if name not in names]
    if user and unknown and "_class_name" not in user:
        known = ", ".join(names)
        raise ValueError(f"{root}: settings= has the unknown name {unknown[0]!r}: expected names among {known}")
    settings = _known(_SCHEDULER, (read_json(files[0]) if files else {}) | (user or {}))
    return _SCHEDULER | _DEFAULTS.get(str(settings.get("_class_name")), {}) | settings


def _known(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in defaults}


def _learns_variance(unet: ValidatedSettings, scheduler: ValidatedSettings) -> bool:
    """Whether a second half of the output channels predicts the variance interpolation coefficient v."""
    if scheduler["variance_type"] == "learned":
        raise scheduler.error("variance_type", "'learned_range' or a fixed variance")
    learned = scheduler["variance_type"] == "learned_range"
    channels = unet.integer("in_channels") * (2 if learned else 1)
    if unet["out_channels"] != channels:
        raise unet.error("out_channels", f"{channels}, for variance_type={scheduler['variance_type']!r}")
    return learned


def _process(s: ValidatedSettings) -> Tree:
    """The tree of the chain's SDE."""
    s.choice("_class_name", *_CHAINS)
    s.choice("rescale_betas_zero_snr", False, None)  # its last beta is 1, which would remove the signal completely
    s.choice("use_flow_sigmas", False, None)
    s.choice("timestep_type", "discrete")
    n = s.integer("num_train_timesteps", 10**5)
    schedule = s.choice("beta_schedule", "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", *_ALPHAS_BAR)
    if s["trained_betas"] is not None:
        chain = node("DiscreteChain", betas=s.sequence("trained_betas", int | float, n))
        if len(chain["betas"]) != n:
            raise s.error("trained_betas", f"as many as num_train_timesteps={n}")
    elif schedule == "squaredcos_cap_v2":
        chain = node("DiscreteChain.cosine", n=n)
    elif schedule in _ALPHAS_BAR:
        alpha_bar = [_ALPHAS_BAR[schedule](i / n) for i in range(n + 1)]
        chain = node("DiscreteChain", betas=[min(1.0 - b / a, 0.999) for a, b in itertools.pairwise(alpha_bar)])
    else:
        low, high = s.number("beta_start"), s.number("beta_end")
        if schedule == "sigmoid":
            rise = torch.linspace(-6.0, 6.0, n, dtype=torch.float64, device="cpu").sigmoid()
            chain = node("DiscreteChain", betas=(low + (high - low) * rise).tolist())
        else:
            name = "linear" if schedule == "linear" else "quadratic"
            chain = node(f"DiscreteChain.{name}", n=n, beta_min=low * n, beta_max=high * n)
    return node("ChainSDE", chain=chain)


def _laplace(t: float) -> float:
    half_log_snr = -0.5 * math.copysign(1.0, 0.5 - t) * math.log(1.0 - 2.0 * abs(0.5 - t) + 1e-6)
    return math.sqrt(1.0 / (1.0 + math.exp(-half_log_snr)))


# The schedules that are defined by alphas_bar as a function of t in [0, 1].
_ALPHAS_BAR: dict[str, Callable[[float], float]] = {"laplace": _laplace, "exp": lambda t: math.exp(-12.0 * t)}


def _wrappers(s: ValidatedSettings) -> list[Tree]:
    """The trees of the wrappers that limit the clean data, from the innermost to the outermost."""
    if s["_class_name"] in _THRESHOLDING and s.flag("thresholding"):
        quantile, maximum = s.number("dynamic_thresholding_ratio"), s.number("sample_max_value")
        if not 0.0 <= quantile <= 1.0:
            raise s.error("dynamic_thresholding_ratio", "a number from 0 to 1")
        if not maximum >= 1.0:
            raise s.error("sample_max_value", "at least 1, the end of the data's range")
        return [node("DynamicThreshold", quantile=quantile, maximum=maximum)]
    if s["_class_name"] in _CLIPPING and s.flag("clip_sample"):
        limit = s.number("clip_sample_range")
        if not limit > 0.0:
            raise s.error("clip_sample_range", "a positive number")
        return [node("Clip", low=-limit, high=limit)]
    return []
