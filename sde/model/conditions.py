r"""Conditions from plain values: what a command line can say, as the tensors that a denoiser takes.

A value for one sample stands for all; of a list of them, each sample has one in its turn, sample i the entry i modulo
their number.
"""

from __future__ import annotations

__all__ = ["Numbers", "condition_from"]

from collections.abc import Mapping, Sequence

import torch
from numpy import ndarray
from torch import Tensor

from ..data.captions import Encoder
from ..networks.conditions import Taken, check_taken
from ..shapes import as_tensor

# A number, numbers in lists of any depth, or an array or a tensor of them.
Numbers = float | Tensor | ndarray | Sequence["Numbers"]


def condition_from(
    takes: Mapping[str, Taken] | None,
    encoder: Encoder | None,
    n: int,
    first: int = 0,
    *,
    prompt: str | Sequence[str] | None = None,
    **values: Numbers | None,
) -> dict[str, Tensor]:
    r"""The condition of n samples.

    Args:
        takes: the conditions of the model (:attr:`sde.Denoiser.takes`); None for a model that does not say.
        encoder: the encoder of its texts, if it has one.
        n: the number of samples.
        first: the index of the first sample.
        prompt: a text or a list of texts, which becomes `tokens` and `tokens_mask`.
        values: numbers by name, None for those that are left out: `label`, a class or a list of them; `embedding`, E
            numbers or a list of such; `image`, values (C, \*) or (M, C, \*); and any other name that the model takes.

    Raises:
        ValueError: for a name or a shape that the model does not take; it lists those that it does.
    """
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
        taken = None if takes is None else takes.get(name)
        try:
            rows = as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"expected {name} to be numbers, got {value!r}") from error
        whole = taken is not None and taken.classes is not None
        if rows.dtype == torch.float64 and not isinstance(value, Tensor):
            rows = rows.float()
        if taken is not None and not whole and not rows.is_floating_point() and rows.dtype != torch.bool:
            rows = rows.float()
        if taken is not None and rows.ndim <= len(taken.shape):
            rows = rows[None]
        if whole and rows.is_floating_point():
            raise ValueError(f"expected {name} to be {taken}, got {value!r}")
        if rows.ndim and len(rows):
            rows = rows[torch.arange(first, first + n, device="cpu") % len(rows)]
        condition[name] = rows
    if takes is not None:
        check_taken(takes, condition)
    return condition
