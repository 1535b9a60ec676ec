r"""Conversion of the two networks of NVlabs EDM, SongUNet (DDPM++, NCSN++) and DhariwalUNet (ADM), to our U-Net.

Names and settings are those of training/networks.py in https://github.com/NVlabs/edm.
"""

from __future__ import annotations

__all__ = ["UNETS", "network", "rename_weights"]

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..networks.embedding import split
from .formats import LazyTensor, largest_size
from .matching import Tree, node
from .validated import ValidatedSettings

# The arguments of the networks with their defaults.
_COMMON: dict[str, Any] = {"label_dim": 0, "use_fp16": False, "augment_dim": 0, "label_dropout": 0, "dropout": 0.1}
_COMMON |= {"channel_mult_emb": 4}
UNETS: dict[str, dict[str, Any]] = {
    "SongUNet": _COMMON
    | {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": _COMMON
    | {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}


def network(s: ValidatedSettings, state: Mapping[str, LazyTensor], classes: int | None) -> Tree:
    """The tree of the U-Net, whose sizes do not exceed those in the file."""
    maximum = largest_size(state)
    width, size = s.integer("model_channels", maximum), s["img_resolution"]
    multipliers = s.sequence("channel_mult", int, len(state))
    if not 1 <= min(multipliers) <= max(multipliers) <= maximum:
        raise s.error("channel_mult", f"whole numbers from 1 to {maximum}")
    resolutions = s.sequence("attn_resolutions", int, len(state)) if s["attn_resolutions"] else []
    common = {
        "_target_": "sde.networks.UNet",
        "channels": s["img_channels"],
        "width": width,
        "multipliers": multipliers,
        "blocks": s.integer("num_blocks", len(state) // len(multipliers)),
        "attention": [level for level in range(len(multipliers)) if size >> level in resolutions],
        "dropout": s.number("dropout"),
        "features": width * s.integer("channel_mult_emb", maximum),
        "classes": classes,
        "augment": s.integer("augment_dim", maximum) if s["augment_dim"] else 0,
    }
    if s["model_type"] == "DhariwalUNet":
        return common | {
            "inlet": width * multipliers[0],
            "head_channels": 64,
            "norm": node("networks.Normalisation", eps=1e-5),
            "scale_shift": True,
            "resampling": node("networks.InResidual"),
            "embedding": node("networks.Positional", dim=width, shift=0, cosine_first=True),
        }
    taps, dim = s.sequence("resample_filter", int | float, 16), width * s.integer("channel_mult_noise", maximum)
    fir, conv = node("networks.FIR", taps=taps), node("networks.FilteredConv", taps=taps)
    fourier = s.choice("embedding_type", "positional", "fourier") == "fourier"
    inputs = {
        "standard": node("networks.NoInputs"),
        "skip": node("networks.InputSkip", filter=fir),
        "residual": node("networks.InputResidual", resampling=conv),
    }
    outputs = {"standard": node("networks.NoOutputs"), "skip": node("networks.OutputSkip", filter=fir)}
    return common | {
        "attention_last": True,
        "skip_scale": math.sqrt(0.5),
        "resampling": node("networks.InResidual", filter=fir, projection=True),
        "embedding": node("networks.Fourier" if fourier else "networks.Positional", dim=dim),
        "input_pyramid": inputs[s.choice("encoder_type", *inputs)],
        "output_pyramid": outputs[s.choice("decoder_type", *outputs)],
        "label_first": True,
    }


# The names of the modules here; numbers are levels of the encoder or steps of the decoder.
_PLACES = {
    "enc_conv": "inlet",
    "enc_down": "downsample.{before}",
    "enc_block": "encoder.{here}.{index}",
    "enc_aux_skip": "input_pyramid.{before}.conv",
    "enc_aux_residual": "input_pyramid.{before}.resample.conv",
    "dec_in": "middle.{index}",
    "dec_up": "upsample.{before}",
    "dec_block": "decoder.{here}.{index}",
    "dec_aux_norm": "{head}.0",
    "dec_aux_conv": "{head}.2",
}
_RESIDUAL = {"norm0": "norm1", "conv0": "conv1", "affine": "shift", "norm1": "norm2", "conv1": "conv2"}
_RESIDUAL |= {"skip": "shortcut"}
_ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "out"}
_OTHERS = {"map_layer0": "context.inner", "map_layer1": "context.outer", "map_augment": "context.augment"}
_OTHERS |= {"out_norm": "outlet.0", "out_conv": "outlet.2"}
_NAME = re.compile(r"(enc|dec)\.(\d+)x\2_(block|in|[a-z_]+)(\d*)(?:\.(\w+))?")


def rename_weights(s: ValidatedSettings, weights: Mapping[str, Tensor], classes: int | None) -> dict[str, Tensor]:
    """The weights by our names; unknown and duplicate ones keep their names, so that matching refuses them."""
    song, levels = s["model_type"] == "SongUNet", len(s["channel_mult"])
    head = "output_pyramid.{here}.head" if s.values.get("decoder_type") == "skip" else "outlet"
    numbers = {str(s["img_resolution"] >> level): level for level in range(levels)}
    ours: dict[str, Tensor] = {}
    for theirs, tensor in weights.items():
        place, _, last = theirs.removeprefix("model.").rpartition(".")
        match = _NAME.fullmatch(place)
        if place in _OTHERS:
            name = f"{_OTHERS[place]}.{last}"
        elif theirs == "model.map_noise.freqs":
            name, tensor = "context.embedding.parts", split(tensor)
        elif match is not None and match[2] in numbers and f"{match[1]}_{match[3]}" in _PLACES:
            side, size, kind, index, part = match.groups(default="")
            here = numbers[size] if side == "enc" else levels - 1 - numbers[size]
            where = _PLACES[f"{side}_{kind}"].replace("{head}", head).format(here=here, before=here - 1, index=index)
            inner = f".attention.{_ATTENTION[part]}" if part in _ATTENTION else f".residual.{_RESIDUAL.get(part, part)}"
            name = f"{where}{inner if part else ''}.{last}"
            if part in _ATTENTION:
                tensor = _attention(tensor, part, 0 if song else 64)
        else:
            name = theirs
        if s["class_name"] == "iDDPMPrecond" and place.endswith(("aux_conv", "out_conv")) and tensor.ndim:
            tensor = tensor.tensor_split(2)[0]
        ours[theirs if name in ours else name] = tensor
    if classes is not None:
        ours["context.table.weight"] = _table(s, ours, song, classes)
    return ours


def _attention(tensor: Tensor, part: str, channels: int) -> Tensor:
    """An attention layer's weights from convolutions of size 1, whose rows are ordered q, k, v for each channel."""
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    width = len(tensor) // 3 if tensor.ndim else 0
    heads = width // channels if channels else 1
    if part != "qkv" or heads == 0 or len(tensor) % (3 * heads):
        return tensor
    return tensor.unflatten(0, (heads, width // heads, 3)).movedim(2, 0).flatten(0, 2)


def _table(s: ValidatedSettings, weights: dict[str, Tensor], song: bool, classes: int) -> Tensor:
    """The row of each class and of "no label": the output of the linear layer for one-hot vectors."""
    names = ("model.map_label.weight", "model.map_label.bias") if song else ("model.map_label.weight",)
    stored = [weights.pop(name, torch.empty(0, device="cpu")) for name in names]
    if stored[0].ndim != 2 or stored[0].shape[1] != classes or (song and stored[1].shape != stored[0].shape[:1]):
        raise ValueError(
            f"{s.source.path}: label_dim={classes}: expected {' and '.join(names)} for vectors of that length, got "
            + " and ".join(str(tuple(tensor.shape)) if tensor.numel() else "none" for tensor in stored)
        )
    rows = torch.cat([stored[0].T, torch.zeros_like(stored[0].T[:1])])
    return rows * math.sqrt(classes) + stored[1] if song else rows
