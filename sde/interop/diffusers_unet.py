r"""Conversion of the `UNet2DModel` of Hugging Face diffusers to our U-Net: settings and names of the weights."""

from __future__ import annotations

__all__ = ["AVERAGING", "NETWORK", "network", "rename_weights"]

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .formats import LazyTensor, largest_size
from .matching import Tree, node
from .validated import ValidatedSettings

# The arguments of UNet2DModel with their defaults, which a config may omit.
NETWORK: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}


# The settings of the averaging that the settings of averaged weights contain.
AVERAGING = {"decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"}

# Their names of the activations, which are those of the residual blocks, and ours.
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "mish": "mish", "gelu": "gelu", "relu": "relu"}


def network(s: ValidatedSettings, state: Mapping[str, LazyTensor]) -> Tree:
    """The tree of the U-Net, whose sizes do not exceed those in the file."""
    maximum = min(largest_size(state), 2**16)
    channels = s.sequence("block_out_channels", int, len(state))
    levels = len(channels)
    if not 1 <= min(channels) <= max(channels) <= maximum:
        raise s.error("block_out_channels", f"numbers from 1 to {maximum}, the largest size of a weight in the file")
    blocks = s.integer("layers_per_block", len(state) // levels)
    sides = [s.sequence(f"{side}_block_types", str, levels) for side in ("down", "up")]
    down, up = ([kind.removeprefix("UNetRes") for kind in kinds] for kinds in sides)
    if not len(down) == len(up) == levels:
        raise s.error("block_out_channels", "one entry for each of down_block_types and up_block_types")
    groups = s.integer("norm_num_groups", maximum)
    shift = s.choice("resnet_time_scale_shift", "default", "scale_shift") == "scale_shift"
    if s["attn_norm_num_groups"] not in (None, groups):
        raise s.error("attn_norm_num_groups", f"null, or norm_num_groups={groups}")
    s.choice("time_embedding_type", "positional")
    s.choice("mid_block_type", "UNetMidBlock2D")
    s.choice("class_embed_type", None)
    symmetric = s.choice("downsample_padding", 0, 1) == 1
    if not s.number("mid_block_scale_factor") > 0.0:
        raise s.error("mid_block_scale_factor", "a positive number")

    def optional(name: str) -> int | None:
        return None if s[name] is None else s.integer(name, maximum)

    return {
        "_target_": "sde.networks.UNet",
        "channels": s.integer("in_channels", maximum),
        "width": channels[0],
        "multipliers": [c / channels[0] for c in channels],
        "blocks": blocks,
        "attention": [level for level, kind in enumerate(down) if kind == "AttnDownBlock2D"],
        "decoder_attention": [level for level, kind in enumerate(reversed(up)) if kind == "AttnUpBlock2D"],
        "head_channels": optional("attention_head_dim"),
        "dropout": s.number("dropout"),
        "activation": _ACTIVATIONS[s.choice("act_fn", *_ACTIVATIONS)],
        "outer_activation": "silu",
        "embedding": node(
            "networks.Positional",
            dim=channels[0],
            shift=s.choice("freq_shift", 0, 1),
            cosine_first=s.flag("flip_sin_to_cos"),
        ),
        "features": optional("time_embedding_dim"),
        "classes": optional("num_class_embeds"),
        "out_channels": s.integer("out_channels", maximum),
        "null_class": False,
        "norm": node("networks.Normalisation", groups=groups, least=1, eps=s.number("norm_eps")),
        "scale_shift": shift,
        "resampling": _resampling(s, "down_block_types", "downsample_type", down, symmetric),
        "upsampling": _resampling(s, "up_block_types", "upsample_type", up, symmetric),
        "middle": node(
            "networks.Middle",
            attention=s.flag("add_attention"),
            norm=not shift or s["attn_norm_num_groups"] is not None,
            skip_scale=1.0 / s.number("mid_block_scale_factor"),
        ),
        "centre": s.flag("center_input_sample"),
    }


def _resampling(s: ValidatedSettings, types: str, how: str, kinds: Sequence[str], symmetric: bool) -> dict[str, Any]:
    """The layers between the levels: convolutions, or residual blocks that average and repeat."""
    side = "Down" if types.startswith("down") else "Up"
    conv, attention, residual = f"{side}Block2D", f"Attn{side}Block2D", f"Resnet{side}sampleBlock2D"
    if not set(kinds) <= {conv, attention, residual}:
        raise s.error(types, f"{conv}, {attention} and {residual}")
    by_residual = {
        kind == residual or (kind == attention and s.choice(how, "conv", "resnet", None) == "resnet")
        for kind in kinds[:-1]
    }
    if len(by_residual) == 2:
        raise s.error(
            types, f"the same layers between all levels, convolutions or residual blocks, with {how}={s[how]!r}"
        )
    if by_residual == {True}:
        return node("networks.InResidual")
    return node("networks.StridedConv", symmetric=symmetric)


# Their names and ours; the parts of a stacked linear layer are numbered.
_NAMES = (
    (r"^down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.\1.\2.residual."),
    (r"^down_blocks\.(\d+)\.attentions\.(\d+)\.", r"encoder.\1.\2.attention."),
    (r"^up_blocks\.(\d+)\.resnets\.(\d+)\.", r"decoder.\1.\2.residual."),
    (r"^up_blocks\.(\d+)\.attentions\.(\d+)\.", r"decoder.\1.\2.attention."),
    (r"^mid_block\.resnets\.(\d+)\.", r"middle.\1.residual."),
    (r"^mid_block\.attentions\.(\d+)\.", r"middle.\1.attention."),
    (r"^(down|up)_blocks\.(\d+)\.\1samplers\.0\.conv\.", r"\1sample.\2.conv."),
    (r"^(down|up)_blocks\.(\d+)\.\1samplers\.0\.", r"\1sample.\2.residual."),
    (r"^time_embedding\.linear_1\.", "context.inner."),
    (r"^time_embedding\.linear_2\.", "context.outer."),
    (r"^class_embedding\.", "context.table."),
    (r"^conv_in\.", "inlet."),
    (r"^conv_norm_out\.", "outlet.0."),
    (r"^conv_out\.", "outlet.2."),
    (r"\.time_emb_proj\.", ".shift."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_q|query)\.(\w+)$", r".qkv.\1/0"),
    (r"\.(?:to_k|key)\.(\w+)$", r".qkv.\1/1"),
    (r"\.(?:to_v|value)\.(\w+)$", r".qkv.\1/2"),
    (r"\.(?:to_out\.0|proj_attn)\.", ".out."),
)


def rename_weights(state: Mapping[str, LazyTensor]) -> dict[str, Tensor]:
    """The weights by our names; queries, keys and values become one linear layer."""
    parts: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in state.items():
        for theirs, ours in _NAMES:
            name = re.sub(theirs, ours, name)
        name, _, part = name.partition("/")
        parts.setdefault(name, {})[part] = tensor
    return {name: torch.cat([by_part[part].read() for part in sorted(by_part)]) for name, by_part in parts.items()}
