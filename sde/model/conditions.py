r"""Conditions from plain values: what a command line can say, as the tensors that a denoiser takes.

A value for one sample stands for all; of a list of them, each sample has one in its turn, sample i the entry i modulo
their number. A plain value is what it says: a label is a class, and a sample without one has the label `none`. That the
label after the last class means "no label" is for tensors that a denoiser is given by name (:func:`sde.sample`).
"""

from __future__ import annotations

__all__ = ["Labels", "Numbers", "condition_from"]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor

from ..data.captions import Encoder
from ..networks.conditions import Taken, as_labels, as_taken
from ..shapes import numbers_of

# The label of a sample without a class, which a network has a learned null for.
NO_LABEL = "none"

# A number, numbers in lists of any depth, or an array or a tensor of them.
Numbers = float | Tensor | ndarray | Sequence["Numbers"]
# The same, with "none" for a sample without a label.
Labels = Numbers | str | Sequence[int | str]


def condition_from(
    takes: Mapping[str, Taken] | None,
    encoder: Encoder | None,
    n: int,
    first: int = 0,
    *,
    classes: int | None = None,
    prompt: str | Sequence[str] | None = None,
    **values: Labels | None,
) -> dict[str, Tensor]:
    r"""The condition of n samples.

    Args:
        takes: the conditions of the model (:attr:`sde.Denoiser.takes`); None for a model that does not say.
        encoder: the encoder of its texts, if it has one.
        n: the number of samples.
        first: the index of the first sample.
        classes: the number of classes that a label may be of, by default all that the network has.
        prompt: a text or a list of texts, which becomes `tokens` and `tokens_mask`.
        values: values by name, None for those that are left out: `label`, a class, "none" for no label, or a list of
            them, with truth values as the classes 0 and 1; `embedding`, E numbers or a list of such; `image`, values
            (C, \*) or (M, C, \*); and any other name that the model takes.

    Raises:
        ValueError: for a name or a shape that the model does not take, with the list of those that it does, or a label
            that is none of its classes.
    """
    known = {"label": Taken(classes=classes, null=False)} if takes is None and classes is not None else takes or {}
    condition: dict[str, Tensor] = {}
    if prompt is not None:
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if encoder is None or (takes is not None and "tokens" not in takes):
            listed = "; ".join(f"{name}: {taken}" for name, taken in (takes or {}).items()) or "none"
            raise ValueError(f"this model takes no prompt: it has no encoder of texts; its conditions are {listed}")
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"expected prompt to be a text or a list of texts, got {prompt!r}")
        turn = torch.arange(first, first + n, device="cpu") % len(texts)
        condition |= {name: rows[turn] for name, rows in zip(("tokens", "tokens_mask"), encoder(texts))}
    for name, value in values.items():
        if value is None:
            continue
        taken = known.get(name)
        if taken is not None and taken.classes is not None:
            fewer = taken if classes is None else replace(taken, classes=min(classes, taken.classes))
            rows = _labels(name, value, fewer, taken.classes)
        else:
            rows = numbers_of(name, value)
        if rows.dtype == torch.float64 and not isinstance(value, Tensor):
            rows = rows.float()
        if taken is not None and taken.classes is None and not rows.is_floating_point() and rows.dtype != torch.bool:
            rows = rows.float()
        if taken is not None and rows.ndim <= len(taken.shape):
            rows = rows[None]
        if rows.ndim and len(rows):
            rows = rows[torch.arange(first, first + n, device="cpu") % len(rows)]
        condition[name] = rows
    return condition if takes is None else as_taken(takes, condition)


def _labels(name: str, value: Any, taken: Taken, null: int) -> Tensor:
    """Labels as a tensor: classes of `taken`, and `null` in the places of :data:`NO_LABEL`."""
    entries = value if isinstance(value, list | tuple) else [value]
    gone = torch.tensor([isinstance(entry, str) and entry == NO_LABEL for entry in entries], device="cpu")
    if bool(gone.any()):
        value = [0 if absent else entry for entry, absent in zip(entries, gone.tolist())]
    expected = f"expected {name} to be {replace(taken, null=False)}" + f", or {NO_LABEL}" * taken.null
    try:
        labels = as_labels(name, numbers_of(name, value))
    except ValueError as error:
        raise ValueError(f"{expected}, got {value!r}") from error
    wrong = (labels < 0) | (labels >= (taken.classes or 0))
    if bool(wrong.any()):
        raise ValueError(f"{expected}, got {int(labels[wrong][0])}")
    if bool(gone.any()):
        if not taken.null:
            raise ValueError(f"{expected}, got {NO_LABEL}: this network has no null for it")
        labels = labels.masked_fill(gone, null)
    return labels
