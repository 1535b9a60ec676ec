r"""Checkpoints of Hugging Face diffusers: image pipelines of a `UNet2DModel` and the scheduler of a discrete chain.

A pipeline is a directory with `model_index.json`, the network's settings and weights in `unet/` and the chain's in
`scheduler/`, or all of these in one place, as google/ddpm-cifar10-32 has them. The network is this library's U-Net
under other names. The scheduler's timestep t = 0 ... N - 1 is the step i = t + 1 of the chain, so that the network is
told :math:`N t - 1` at the time t = i/N of its :class:`sde.ChainSDE`.

What of a scheduler belongs to the model is read: the betas, what the network predicts, and the limits of the clean
data (`clip_sample`, `thresholding`), which become wrappers of the denoiser. They change its flow where they cut, and
its likelihoods with it; `settings={"clip_sample": False}` gives the network's own.

The rest chooses a sampler, and is said to a solver. `variance_type` is `v` of :class:`sde.solvers.Ancestral`: 0 for
fixed_small, 1 for fixed_large, None for learned_range, where it is the network's own. The solvers go down to `t_min` =
1/N, step 1 of the chain, and `denoise=True` adds the step to the clean end, which the schedulers take from timestep 0.
A `DDIMScheduler` with `set_alpha_to_one=False` ends at step 1, as `denoise=False` does here. Its `timestep_spacing` and
`steps_offset` choose among the times i/N: leading begins below i = N, and both leave the grid to
:class:`sde.grids.Explicit`.

Pixels v are shown to the network as :math:`2 v / 255 - 1`, the middle of their cells here.
"""

from __future__ import annotations

__all__ = ["WHAT", "read", "recognises"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..instantiate import MODEL_ROOMS, build
from ..processes import SDE
from .diffusers_unet import NETWORK, network, renamed
from .formats import LazyTensor, Source, read_json, read_state
from .matching import content
from .validated import Checked

WHAT = "a diffusers pipeline or UNet2DModel: a directory with model_index.json or config.json, and its weights"

# What a scheduler says of the model, with the defaults of DDPMScheduler.
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
}

# The schedulers of a discrete chain, and of these the ones that clip.
_CLIPPING = ("DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler")
_CHAINS = (
    *_CLIPPING,
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)

_SCHEDULER_FILE = "scheduler_config.json"
_PREDICTIONS = {"epsilon": "NoisePrediction", "sample": "DataPrediction", "v_prediction": "VelocityPrediction"}


def recognises(source: Source) -> bool:
    """Whether a source is a directory of diffusers."""
    return source.path.is_dir() and any((source.path / name).is_file() for name in ("model_index.json", "config.json"))


def read(source: Source, process: SDE | None) -> dict[str, Any]:
    """The content of a checkpoint of this library.

    The keys of `settings=` replace those of the two files of settings. A network alone has no scheduler; there they
    have to be given, `{}` standing for the defaults of `DDPMScheduler`.

    Args:
        source: the directory.
        process: not needed: the labels of the chain's steps are what the network knows.

    Raises:
        ValueError: if a setting stands for what this library's network or chain cannot do; it is named.
    """
    root = source.path
    if (root / "model_index.json").is_file():
        _check_pipeline(source, read_json(root / "model_index.json"))
    folder = root / "unet" if (root / "unet").is_dir() else root
    state = _weights_file(source, folder)
    unet = Checked(source, _of_network(source, read_json(folder / "config.json")))
    scheduler = Checked(source, _of_scheduler(source))
    size = unet["sample_size"]
    shape = [unet.whole("in_channels"), *(size if isinstance(size, list) else [size, size])]
    if len(shape) != 3 or not all(type(n) is int and 0 < n <= 2**16 for n in shape):
        raise unet.error("sample_size", 'the height and width of the images; settings={"sample_size": 32} gives it')
    prediction = scheduler.choice("prediction_type", *_PREDICTIONS)
    learned = _learns_variance(unet, scheduler)
    tree = {
        "process": _process(scheduler),
        "network": network(unet, state),
        "denoiser": {
            "_target_": "sde.LearnedVarianceDenoiser" if learned else "sde.NetworkDenoiser",
            "parametrisation": {"_target_": f"sde.{_PREDICTIONS[prediction]}", "data_std": None},
            "level": {"_target_": "sde.TimeLevel", "scale": float(_steps(scheduler)), "offset": -1.0},
        },
        "wrappers": _wrappers(scheduler),
        "scaling": {"_target_": "sde.data.Scaling", "scale": 2 / 255, "shift": -1.0 - 1 / 255, "levels": 256},
        "shape": shape,
        "classes": unet["num_class_embeds"],
    }
    return content(source, tree, renamed(state))


def _check_pipeline(source: Source, index: Mapping[str, Any]) -> None:
    parts = {name: value for name, value in index.items() if not name.startswith("_") and value != [None, None]}
    unet = parts.pop("unet", None)
    parts.pop("scheduler", None)
    if parts or not (isinstance(unet, list) and unet[-1:] == ["UNet2DModel"]):
        raise ValueError(
            f"{source.path}: expected a pipeline of a UNet2DModel and a scheduler alone, got "
            f"{index.get('_class_name')} with unet={unet!r}" + (f" and {', '.join(map(repr, parts))}" if parts else "")
        )


def _of_network(source: Source, config: Mapping[str, Any]) -> dict[str, Any]:
    """The network's settings: the user's, those of the file, and the defaults."""
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"{source.path}: config.json describes a {kind}: expected a UNet2DModel, the one network read")
    unknown = [name for name, value in config.items() if name[:1] != "_" and name not in NETWORK and value]
    if unknown:
        raise ValueError(
            f"{source.path}: the setting {unknown[0]!r} of its network is not known, and may change what it computes"
        )
    return NETWORK | _known(NETWORK, config) | _known(NETWORK, source.settings or {})


def _of_scheduler(source: Source) -> dict[str, Any]:
    """The scheduler's settings: the user's, those of the file, and the defaults."""
    given, root = source.settings, source.path
    files = [path for path in (root / "scheduler" / _SCHEDULER_FILE, root / _SCHEDULER_FILE) if path.is_file()]
    if not files and given is None:
        raise ValueError(
            f"{root} has no {_SCHEDULER_FILE} to say what its network was trained for: give settings=, a mapping with "
            f"{', '.join(_SCHEDULER)} where they differ from the defaults of DDPMScheduler, or {{}}"
        )
    # A whole scheduler's file may be given, with the settings of its sampler.
    unknown = [name for name in given or {} if name not in NETWORK and name not in _SCHEDULER]
    if given and unknown and "_class_name" not in given:
        raise ValueError(f"{root}: settings= has {unknown[0]!r}, which is none of {', '.join([*_SCHEDULER, *NETWORK])}")
    return _SCHEDULER | (_known(_SCHEDULER, read_json(files[0])) if files else {}) | _known(_SCHEDULER, given or {})


def _known(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in defaults}


def _weights_file(source: Source, folder: Path) -> dict[str, LazyTensor]:
    names = [f"diffusion_pytorch_model{kind}.{end}" for kind in ("", ".fp16") for end in ("safetensors", "bin")]
    for name in names:
        if (folder / name).is_file():
            return read_state(folder / name)
    raise ValueError(f"{folder} has no weights in one file: expected {' or '.join(names[:2])}")


def _learns_variance(unet: Checked, scheduler: Checked) -> bool:
    """Whether the network answers the fraction of the reverse variance too, in as many channels again."""
    if scheduler["variance_type"] == "learned":
        raise scheduler.error("variance_type", "'learned_range', or a fixed one")
    learned = scheduler["variance_type"] == "learned_range"
    channels = unet.whole("in_channels") * (2 if learned else 1)
    if unet["out_channels"] != channels:
        raise unet.error("out_channels", f"{channels}, for variance_type={scheduler['variance_type']!r}")
    return learned


def _steps(s: Checked) -> int:
    return s.whole("num_train_timesteps", 10**5)


def _process(s: Checked) -> dict[str, Any]:
    """The tree of the chain's SDE."""
    s.choice("_class_name", *_CHAINS)
    s.choice("rescale_betas_zero_snr", False, None)  # its last beta is 1, where the chain's signal ends
    n, schedule = _steps(s), s.choice("beta_schedule", "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
    chain: dict[str, Any] = {"_target_": "sde.DiscreteChain"}
    if s["trained_betas"] is not None:
        chain["betas"] = s.several("trained_betas", int | float, n)
        if len(chain["betas"]) != n:
            raise s.error("trained_betas", f"as many as num_train_timesteps={n}")
    elif schedule == "squaredcos_cap_v2":
        chain = {"_target_": "sde.DiscreteChain.cosine", "n": n}
    else:
        low, high = s.number("beta_start"), s.number("beta_end")
        if schedule == "sigmoid":
            rise = torch.linspace(-6.0, 6.0, n, dtype=torch.float64).sigmoid()
            chain["betas"] = (low + (high - low) * rise).tolist()
        else:
            name = "linear" if schedule == "linear" else "quadratic"
            chain = {"_target_": f"sde.DiscreteChain.{name}", "n": n, "beta_min": low * n, "beta_max": high * n}
    tree = {"_target_": "sde.ChainSDE", "chain": chain}
    try:
        build(tree, rooms=MODEL_ROOMS)
    except ValueError as error:
        raise ValueError(f"{s.source.path}: the betas of its scheduler make no chain: {error}") from error
    return tree


def _wrappers(s: Checked) -> list[dict[str, Any]]:
    """The trees of what holds the clean data to its range, from the inside to the outside."""
    if s.flag("thresholding"):
        quantile, most = s.number("dynamic_thresholding_ratio"), s.number("sample_max_value")
        if not 0.0 <= quantile <= 1.0:
            raise s.error("dynamic_thresholding_ratio", "a number from 0 to 1")
        if not most >= 1.0:
            raise s.error("sample_max_value", "at least 1, the end of the data's range")
        return [{"_target_": "sde.DynamicThreshold", "quantile": quantile, "maximum": most}]
    if s.flag("clip_sample") and s["_class_name"] in _CLIPPING:
        most = s.number("clip_sample_range")
        if not most > 0.0:
            raise s.error("clip_sample_range", "a positive number")
        return [{"_target_": "sde.Clip", "low": -most, "high": most}]
    return []
