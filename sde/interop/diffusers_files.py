r"""Files of a network that Hugging Face diffusers saved: variants, shards, and averages beside raw weights.

The weights of a network are in one file, `diffusion_pytorch_model.safetensors` or `.bin`, or in several with an index,
`diffusion_pytorch_model.safetensors.index.json`, that names the file of each weight. The files of a variant have its
name before the ending, as in `diffusion_pytorch_model.fp16.safetensors`. A checkpoint of diffusers' training scripts
has averaged weights in `unet_ema/` and raw weights in `unet/`.
"""

from __future__ import annotations

__all__ = ["network_folders", "read_weights"]

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .formats import LazyTensor, Source, named_tensors, read_json, read_state

_NAME = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<a>\w+))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>(?:\.(?P<b>\w+))?\.index(?:\.(?P<c>\w+))?\.json)?"
)


def network_folders(root: Path) -> tuple[Path, Path]:
    """The folders of the averaged and of the raw weights, which are the same for a single set of weights."""
    folders = [root / name for name in ("unet_ema", "unet") if (root / name).is_dir()]
    beside = root.parent / "unet"
    if not folders:
        folders = [root, beside] if root.name == "unet_ema" and beside.is_dir() else [root]
    return folders[0], folders[-1]


def read_weights(folder: Path, variant: str | None) -> dict[str, LazyTensor]:
    """The weights in a folder by name.

    Args:
        folder: the folder.
        variant: the name of a variant; by default the weights without one, or the only variant.

    Raises:
        ValueError: if there are no such weights, several variants to choose from, or an index that does not agree with
            its files.
    """
    files: dict[str | None, dict[tuple[str, bool], Path]] = {}
    for path in sorted(folder.iterdir()):
        if (match := _NAME.fullmatch(path.name)) and path.is_file():
            name = match["a"] or match["b"] or match["c"]
            files.setdefault(name, {})[match["kind"], match["index"] is None] = path
    present = ", ".join(f"variant {name!r}" if name else "no variant" for name in files)
    if not files:
        raise ValueError(
            f"{folder} has no weights: expected diffusion_pytorch_model.safetensors or .bin, or an index of either"
        )
    if variant is None and None not in files and len(files) == 1:
        (variant,) = files
    if variant not in files:
        wanted = "weights without a variant" if variant is None else f"weights of the variant {variant!r}"
        raise ValueError(f"{folder} has no {wanted}, but of {present}: choose one with settings={{'variant': NAME}}")
    kinds = files[variant]
    path = kinds[min(kinds, key=lambda kind: (kind[0] != "safetensors", kind[1]))]
    return _shards(path) if path.suffix == ".json" else read_state(path)


def _shards(index: Path) -> dict[str, LazyTensor]:
    """The weights of all files in an index."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} is not an index of weights: expected weight_map, from weights to names of files")
    content: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        path = index.parent / name
        if path.name != name or not path.is_file():
            raise ValueError(f"{index} names the file {name!r}, which is not beside it")
        shard = Source(path).content
        listed = {weight for weight, place in places.items() if place == name}
        if not isinstance(shard, dict) or listed != shard.keys():
            raise ValueError(
                f"{index} does not agree with {name}: it lists {len(listed)} weights in it, and not those it has"
            )
        content |= shard
    state = named_tensors(content)
    if state is None:
        raise ValueError(f"{index} is not an index of weights: its files contain other values")
    return state
