r"""Importer of OpenAI's improved-diffusion and guided-diffusion networks: a state dict, and the flags of its training.

The flags are those of script_util.py in both projects, as a mapping by name; missing flags have their default there.
With `learn_sigma` the network also predicts the variance of the reverse step, and becomes a
:class:`sde.LearnedVarianceDenoiser`: `sde.solvers.Ancestral(steps)` then samples like the originals. Without it, the
originals sample with `v=1` by default and, in improved-diffusion with `sigma_small`, with `v=0`.

Their timestep 0 ... N - 1 is the step i = 1 ... N of the chain, at t = i/N of :class:`sde.ChainSDE`. The noise
conditioning is therefore :math:`N t - 1`, and with `rescale_timesteps` 1000/N times that. A respaced chain is a grid of
times i/N, whose longer steps have the betas of the original. Its last step, from i = 1 to clean data, is without noise:
it is the step that `denoise=True` adds. Their `clip_denoised` is :class:`sde.Clip`.

The network receives pixels v as :math:`2 v/255 - 1`.

Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, https://arxiv.org/abs/2102.09672;
Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, https://arxiv.org/abs/2105.05233; names and
flags as in https://github.com/openai/improved-diffusion and https://github.com/openai/guided-diffusion.
"""

from __future__ import annotations

__all__ = ["WHAT", "read", "recognises"]

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..processes import SDE
from .formats import LazyTensor, Source, largest_size
from .matching import Tree, content, image_model, node
from .validated import ValidatedSettings

WHAT = "a U-Net of improved-diffusion or guided-diffusion: its state dict, with the flags of its training"

# The flags of both projects with their defaults; those in the last two lines do not affect the model.
_FLAGS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "learn_sigma": False,
    "class_cond": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": None,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    **dict.fromkeys(("timestep_respacing", "sigma_small", "use_kl", "rescale_learned_sigmas")),
    **dict.fromkeys(("use_checkpoint", "use_fp16")),
}

# The channels of the levels by the size of the images, for an empty `channel_mult`.
_MULTIPLIERS: dict[int, list[float]] = {
    512: [0.5, 1, 1, 2, 2, 4, 4],
    256: [1, 1, 2, 2, 4, 4],
    128: [1, 1, 2, 3, 4],
    64: [1, 2, 3, 4],
    32: [1, 2, 2, 2],
}


def recognises(source: Source) -> bool:
    """Whether the source is the state dict of such a U-Net, judged by its names."""
    return source.state is not None and {"time_embed.0.weight", "input_blocks.0.0.weight"} <= source.state.keys()


def read(source: Source, process: SDE | None) -> dict[str, Any]:
    """The content of a checkpoint of this library.

    Args:
        source: the file of weights.
        process: the process to use the network with, which determines how the noise conditioning is computed.

    Raises:
        ValueError: if a flag or a weight does not fit such a network; the error names it.
    """
    flags, state = source.need_settings("image_size"), source.state or {}
    unknown = sorted(flags.keys() - _FLAGS.keys())
    if unknown:
        raise ValueError(f"{source.path}: {unknown[0]!r} is not a flag of a model: expected {', '.join(_FLAGS)}")
    s = ValidatedSettings(source, {**_FLAGS, **flags})
    trained, level = _process(s)
    table = state.get("label_emb.weight")
    if s.flag("class_cond") and table is None:
        raise s.error("class_cond", "false for a file without label_emb.weight")
    prediction = node("DataPrediction" if s.flag("predict_xstart") else "NoisePrediction")
    network = _network(s, state, table.shape[0] if table is not None and table.shape else None)
    shape = [network["channels"], s["image_size"], s["image_size"]]
    learned, matched = s.flag("learn_sigma"), process is not None
    tree = image_model(trained, network, prediction, level, shape, matched=matched, learned_variance=learned)
    return content(source, tree, _rename_weights(s, state, network))


def _process(s: ValidatedSettings) -> tuple[Tree, Tree]:
    """The trees of the process and of the noise conditioning."""
    steps = s.integer("diffusion_steps", 10**5)
    if s["rescale_timesteps"] is None and steps != 1000:
        defaults = "true (the default of improved-diffusion) or false (of guided-diffusion)"
        raise s.error("rescale_timesteps", f"{defaults} for diffusion_steps={steps}")
    scale = 1000.0 / steps if s.flag("rescale_timesteps") else 1.0
    schedule = s.choice("noise_schedule", "linear", "cosine")
    if schedule == "linear" and steps <= 20:
        raise s.error("diffusion_steps", "more than 20 for the linear schedule, whose betas otherwise reach 1")
    chain = node(f"DiscreteChain.{schedule}", n=steps)
    return node("ChainSDE", chain=chain), node("TimeLevel", scale=steps * scale, offset=-scale)


def _network(s: ValidatedSettings, state: Mapping[str, LazyTensor], classes: int | None) -> dict[str, Any]:
    """The tree of the U-Net, whose sizes do not exceed those in the file."""
    maximum = largest_size(state)
    width, size, heads = s.integer("num_channels", maximum), s.integer("image_size"), s.integer("num_heads", maximum)
    multipliers = _numbers(s, "channel_mult", len(state)) or _MULTIPLIERS.get(size, [])
    if not multipliers:
        raise s.error("image_size", f"one of {', '.join(map(str, _MULTIPLIERS))}, or channel_mult")
    factors = {size // resolution for resolution in _numbers(s, "attention_resolutions", len(state))}
    by_channels = s["num_head_channels"] != -1
    if s["num_heads_upsample"] not in (-1, heads) and not by_channels:
        raise s.error("num_heads_upsample", f"num_heads={heads}, or -1 for that number")
    channels = state["input_blocks.0.0.weight"].shape[1:2] or (1,)
    convolution = node("networks.StridedConv", symmetric=True)
    return {
        "_target_": "sde.networks.UNet",
        "channels": channels[0],
        "out_channels": channels[0] * (2 if s["learn_sigma"] else 1),
        "width": width,
        "inlet": int(multipliers[0] * width),
        "multipliers": multipliers,
        "blocks": s.integer("num_res_blocks", len(state) // len(multipliers)),
        "attention": [level for level in range(len(multipliers)) if 2**level in factors],
        "heads": heads,
        "head_channels": s.integer("num_head_channels", maximum) if by_channels else None,
        "dropout": s.number("dropout"),
        "norm": node("networks.Normalisation", groups=32, least=1, eps=1e-5),
        "scale_shift": s.flag("use_scale_shift_norm"),
        "resampling": node("networks.InResidual") if s.flag("resblock_updown") else convolution,
        "embedding": node("networks.Positional", dim=width, shift=0, cosine_first=True),
        "classes": classes if s["class_cond"] else None,
        "null_class": False,
    }


def _numbers(s: ValidatedSettings, name: str, maximum: int) -> list[Any]:
    """The positive numbers in a flag: a comma-separated text of whole numbers, or a list of at most `maximum`."""
    text = s[name]
    if isinstance(text, str) and re.fullmatch(r"(\d{1,6}(,\d{1,6})*)?", text):
        s = ValidatedSettings(s.source, {name: [int(number) for number in text.split(",") if text]})
    elif isinstance(text, str):
        raise s.error(name, "whole numbers separated by commas")
    values = s.sequence(name, int | float, maximum) if s[name] else []
    if not all(0 < value <= 2**16 for value in values):
        raise s.error(name, f"positive numbers up to {2**16}")
    return values


_RESIDUAL = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "shift", "out_layers.0": "norm2"}
_RESIDUAL |= {"out_layers.3": "conv2", "skip_connection": "shortcut"}
_PARTS = {theirs: f"residual.{ours}" for theirs, ours in _RESIDUAL.items()}
_PARTS |= {"norm": "attention.norm", "qkv": "attention.qkv", "proj_out": "attention.out", "op": "conv", "conv": "conv"}
_OTHERS = {"time_embed.0": "context.inner", "time_embed.2": "context.outer", "label_emb": "context.table"}
_OTHERS |= {"input_blocks.0.0": "inlet", "out.0": "outlet.0", "out.2": "outlet.2"}
_NAME = re.compile(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(?:(\d+)\.)?([a-z_]+(?:\.\d)?)\.(\w+)")


def _rename_weights(
    s: ValidatedSettings, state: Mapping[str, LazyTensor], network: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The weights by our names; unknown and duplicate ones keep their names, so that matching refuses them."""
    row, levels = network["blocks"] + 1, len(network["multipliers"])
    renamed: dict[str, Tensor] = {}
    for theirs, lazy in state.items():
        tensor, ours = lazy.read(), theirs
        place, _, last = theirs.rpartition(".")
        match = _NAME.fullmatch(theirs)
        if place in _OTHERS:
            ours = f"{_OTHERS[place]}.{last}"
        elif match is not None and match[4] in _PARTS:
            number, part = int(match[2]), _PARTS[match[4]]
            if match[1] == "middle_block":
                where = f"middle.{number // 2}"
            elif match[1] == "input_blocks":
                level, block = divmod(number - 1, row)
                where = f"downsample.{level}" if block == row - 1 else f"encoder.{level}.{block}"
            else:
                step, block = divmod(number, row)
                # The module after the last block of a level and its attention, if any, upsamples to the next level.
                last_part = "2" if levels - 1 - step in network["attention"] else "1"
                where = f"upsample.{step}" if block == row - 1 and match[3] == last_part else f"decoder.{step}.{block}"
            ours = f"{where}.{part}.{last}"
            if part in ("attention.qkv", "attention.out"):
                tensor = _attention(s, tensor, part, network)
        renamed[theirs if ours in renamed else ours] = tensor
    return renamed


def _attention(s: ValidatedSettings, tensor: Tensor, part: str, network: Mapping[str, Any]) -> Tensor:
    """An attention layer's weights from convolutions of size 1. In the old order, q, k and v of a head are adjacent; in
    the new order, as here, the heads of each of q, k and v are adjacent."""
    if tensor.ndim == 3 and tensor.shape[2] == 1:
        tensor = tensor[:, :, 0]
    width = len(tensor) // 3 if tensor.ndim else 0
    heads = width // network["head_channels"] if network["head_channels"] else network["heads"]
    if part != "attention.qkv" or s.flag("use_new_attention_order") or heads == 0 or len(tensor) % (3 * heads):
        return tensor
    return tensor.unflatten(0, (heads, 3, width // heads)).transpose(0, 1).flatten(0, 2)
