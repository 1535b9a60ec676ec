r"""Conditions at training: which of them a model takes, their dropout, and the encodings of captions.

For guidance, and for combinations that are never seen, each condition is left out for some of the samples, each name
independently with a probability of its own (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598). What is left out
is what a network takes for "not known" (:mod:`sde.networks.conditions`): its null class for a label, NaN for values, no
token. Whether it is left out is a function of (seed, step, place in the batch), so that a run that was stopped and
continued, or is shared by several ranks, drops the same.
"""

from __future__ import annotations

__all__ = [
    "Dropout",
    "captioned",
    "conditions_of",
    "dropout_of",
    "dropouts",
    "dropped",
    "encoded",
    "first_condition",
    "null_of",
    "sizes_of",
]

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Conditioned, DataSet, Source
from ..data.captions import Encoder
from ..data.source import evenly
from ..denoisers import Denoiser
from ..noise import Noise, Stream, repeat_key
from ..storage.files import write_atomically

# The probability with which each condition is left out, by name.
Dropout = Mapping[str, float]


def dropped(
    denoiser: Denoiser, condition: Mapping[str, Tensor], dropout: Dropout, noise: Noise, step: int, first: int, n: int
) -> dict[str, Tensor]:
    r"""The condition of the rows of a batch, each name of each sample left out with its probability.

    Args:
        denoiser: the model, which knows its null class.
        condition: named tensors of leading size B.
        dropout: the probability of each name; a mask `NAME_mask` goes with its name. Names without one are kept.
        noise: the source of the draws.
        step: the training step.
        first: the place of the first row in the batch of the step.
        n: B, the number of rows.

    Raises:
        ValueError: if a label is to be left out, and the denoiser has no null class.
    """
    result = dict(condition)
    for name, probability in dropout.items():
        if name not in condition or not probability:
            continue
        values = condition[name]
        place = torch.arange(first, first + n, device=values.device)
        counter = torch.tensor(repeat_key(step, 1 + zlib.crc32(name.encode()) % 2**20), device=values.device)
        gone = noise.uniform(Stream.CONDITION, place, counter, (), torch.float64) < probability
        value = values.expand(n, *values.shape[1:])
        if f"{name}_mask" in condition or name == "tokens":
            mask = condition.get(f"{name}_mask", torch.ones_like(value[..., 0], dtype=torch.bool))
            result[f"{name}_mask"] = mask & ~gone[:, None]
        else:
            rows = gone.reshape(-1, *(1,) * (value.ndim - 1))
            result[name] = value.masked_fill(rows, null_of(denoiser, name, value))
    return result


def null_of(denoiser: Denoiser, name: str, value: Tensor) -> float:
    """The value of an entry of a condition that is not known."""
    if value.is_floating_point():
        return torch.nan
    taken = None if denoiser.takes is None else denoiser.takes.get(name)
    if taken is None or taken.classes is None or not taken.null:
        raise ValueError(
            f"condition {name!r} cannot be left out: the network has no null for it; give it a dropout of 0"
        )
    return taken.classes


def dropout_of(denoiser: Denoiser, conditions: Sequence[str] | Dropout | None) -> Dropout:
    """The dropout of conditions that are given with one; refuses one that is out of range, or without a null."""
    if isinstance(conditions, str):
        raise ValueError(f"expected conditions to be a list of names, got {conditions!r}: give [{conditions!r}]")
    dropout = conditions if isinstance(conditions, Mapping) else {}
    for name, probability in dropout.items():
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"expected a dropout in [0, 1) for each condition, got {probability} for {name!r}")
        if probability and name == "label":
            null_of(denoiser, name, torch.zeros(1, dtype=torch.int64, device="cpu"))
    return dropout


def dropouts(denoiser: Denoiser, names: Sequence[str], dropout: float | Dropout | None) -> dict[str, float]:
    """The dropout of each of a model's conditions: what is asked for, by default 0.1 where there is a null.

    Args:
        denoiser: the model.
        names: its conditions; a mask goes with its name.
        dropout: one probability for all, some by name, or None.

    Raises:
        ValueError: for a name that is none of the conditions, or a probability that cannot be.
    """
    takes = denoiser.takes or {}
    by_name = dropout if isinstance(dropout, Mapping) else {}
    if unknown := [name for name in by_name if name not in names]:
        raise ValueError(f"condition_dropout of {unknown[0]!r}: the conditions are {', '.join(names) or 'none'}")
    default = 0.1 if dropout is None or isinstance(dropout, Mapping) else dropout
    result = {}
    for name in names:
        null = takes[name].null if name in takes else name != "label"
        result[name] = by_name.get(name, default if null and not name.endswith("_mask") else 0.0)
    return dict(dropout_of(denoiser, result))


def first_condition(data: DataSet, conditional: bool | Sequence[str]) -> dict[str, Tensor]:
    """The conditions of the first sample of a data set that a model is to take, with shape (1, *).

    Args:
        data: the data set.
        conditional: True for all that there are, False for none, or their names; `tokens_mask` goes with `tokens`.

    Raises:
        ValueError: if the data has none of them, or only some of its splits have.
    """
    if conditional is False:
        return {}
    firsts = {split: source[evenly(1)][1] for split, source in data.splits.items()}
    first = firsts["train"]
    names = list(first) if conditional is True else list(conditional)
    if not first or not names:
        raise ValueError(
            f"conditional=true needs labels or others, and {data.name} has none: give data with some, or false"
        )
    if missing := [name for name in names if name not in first]:
        raise ValueError(f"{data.name} has no condition {missing[0]!r}: it has {', '.join(first)}")
    for split, there in firsts.items():
        if missing := [name for name in names if name not in there]:
            raise ValueError(
                f"{data.name}: train has the condition {missing[0]!r} and {split} has not: give it to each"
            )
    names += [f"{name}_mask" for name in names if f"{name}_mask" in first and f"{name}_mask" not in names]
    return {name: first[name] for name in names}


def conditions_of(denoiser: Denoiser, source: Source, n: int) -> dict[str, Tensor]:
    """The conditions of n samples that a model draws: those of the first samples of a source, in turn.

    Those are left out that the model does not take, the label, of which :meth:`sde.Model.sample` draws each class in
    turn, and the vector of an augmentation, which is 0.
    """
    names = (denoiser.takes or {}).keys() - {"label", "augment"}
    condition = source[torch.arange(n, device="cpu") % len(source)][1] if names else {}
    return {name: value for name, value in condition.items() if name in names}


def sizes_of(condition: Mapping[str, Tensor], flat: bool) -> dict[str, int]:
    """The arguments of :class:`sde.networks.Conditions` for the conditions of a data set.

    Args:
        condition: named tensors of leading size B.
        flat: whether the data, and so an image, is flattened.

    Raises:
        ValueError: for a name that the networks of this library do not take, or another shape.
    """
    sizes = {}
    for name, value in condition.items():
        axes = {"embedding": 2, "tokens": 3}.get(name, value.ndim if name == "image" else 0)
        if name in ("label", "tokens_mask"):
            continue
        if value.ndim != axes or not value.is_floating_point():
            expected = "label, embedding (N, E), tokens (N, L, E) with tokens_mask, and image (N, C, *), of floats"
            raise ValueError(
                f"condition {name!r} of {value.dtype} with shape (N, {', '.join(map(str, value.shape[1:]))}): the "
                f"networks of this library take {expected}"
            )
        sizes[name] = value[0].numel() if name == "image" and flat else value.shape[2 if name == "tokens" else 1]
    return sizes


def captioned(captions: Sequence[str], encoder: Encoder, folder: Path | None) -> dict[str, Tensor]:
    """The tokens and the mask of captions, from the file in which they are stored, or computed once and stored there.

    Args:
        captions: N texts.
        encoder: the encoder.
        folder: the directory beside the data; None stores nothing.

    Returns:
        `tokens`, with shape (N, L, E), and `tokens_mask`, with shape (N, L).
    """
    texts = sorted(set(captions))
    digest = hashlib.sha256(repr((encoder, texts)).encode()).hexdigest()[:16]
    path = None if folder is None else folder / f"captions-{digest}.npz"
    stored = None if path is None else _stored(path)
    if stored is None:
        parts = [encoder(texts[i : i + 256]) for i in range(0, len(texts), 256)]
        stored = torch.cat([tokens for tokens, _ in parts]), torch.cat([mask for _, mask in parts])
        if path is not None:
            arrays: dict[str, Any] = {"tokens": stored[0].numpy(), "mask": stored[1].numpy()}
            write_atomically(path, lambda file: np.savez(file, **arrays))
    place = {text: i for i, text in enumerate(texts)}
    index = torch.tensor([place[text] for text in captions], device="cpu")
    return {"tokens": stored[0][index], "tokens_mask": stored[1][index]}


def _stored(path: Path) -> tuple[Tensor, Tensor] | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            return torch.from_numpy(archive["tokens"]), torch.from_numpy(archive["mask"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def encoded(data: DataSet, encoder: Encoder, folder: Path | None) -> DataSet:
    """A data set with the encodings of its captions as conditions, as in :func:`captioned`.

    Raises:
        ValueError: if a split has no captions.
    """
    splits: dict[str, Any] = {}
    for name, split in data.splits.items():
        if split.captions is None:
            raise ValueError(f"an encoder needs captions, and {data.name}: {name} has none: give encoder=null")
        splits[name] = Conditioned(split, captioned(split.captions, encoder, folder))
    return replace(data, **splits)
