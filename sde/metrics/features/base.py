r"""Features: a map from items to vectors (N, D), in which sets of items are compared.

A measure sees what its features show. So features have a name and a fingerprint, and numbers are compared only where
both agree. Items come as data values: discrete ones in [0, 1] (:func:`as_items`), continuous ones as they are.

**Blocks.** Rounding in a network depends on the size of its batch. :func:`extract` therefore always gives it the same
number of items, `block`, the last block filled up with copies of its last item: the features of item i are those of
position i, however many items come at a time and however many processes share them. Different blocks, or numbers of
threads, differ by rounding: 1e-16 of a float64 network, 1e-7 of a float32 one.
"""

from __future__ import annotations

__all__ = ["Extracted", "Features", "as_items", "digest", "extract"]

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sets import slices


@dataclass(frozen=True)
class Extracted:
    r"""The features of items.

    Attributes:
        features: with shape (N, D).
        logits: the unnormalised log-probabilities of the classes with shape (N, C); None without classes.
        maps: the feature maps of the layers, each with shape (N, C, \*), for perceptual distances; empty if there are
            none.
    """

    features: Tensor
    logits: Tensor | None = None
    maps: Sequence[Tensor] = ()


class Features(ABC):
    """A map from items to vectors."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name, for tables and files."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """64 hexadecimal digits that are the same for the same map only."""

    @property
    @abstractmethod
    def block(self) -> int:
        """The number of items of every call."""

    @abstractmethod
    def __call__(self, x: Tensor, /) -> Extracted:
        r"""The features of items (B, \*), on any device; the result may be on another one."""


def as_items(values: Tensor, levels: int | None = None) -> Tensor:
    """Data values as features take them: levels 0, ..., L - 1 become [0, 1], continuous values stay as they are."""
    if levels is None:
        return values if values.is_floating_point() else values.float()
    return values.float() / (levels - 1)


def extract(features: Features, x: Tensor) -> Extracted:
    r"""The features of items (N, \*) without gradients, block by block, on the CPU; without maps.

    Raises:
        ValueError: if the features are not vectors of one length, or not finite; the error names the first item.
    """
    if not len(x):
        raise ValueError(f"{features.name}: expected at least one item, got none")
    vectors: list[Tensor] = []
    logits: list[Tensor] = []
    with torch.no_grad():
        for part in slices(len(x), features.block):
            rows, n = x[part], part.stop - part.start
            if n < features.block:
                rows = torch.cat([rows, rows[-1:].expand(features.block - n, *rows.shape[1:])])
            extracted = features(rows)
            if extracted.features.ndim != 2 or len(extracted.features) != features.block:
                raise ValueError(
                    f"{features.name}: expected features with shape ({features.block}, D), got "
                    f"{tuple(extracted.features.shape)}"
                )
            finite = extracted.features[:n].isfinite().all(1)
            if not bool(finite.all()):
                first = part.start + int((~finite).nonzero()[0])
                raise ValueError(f"{features.name}: the features of item {first} are not finite; look at this item")
            vectors.append(extracted.features[:n].cpu())
            logits += [] if extracted.logits is None else [extracted.logits[:n].cpu()]
    return Extracted(torch.cat(vectors), torch.cat(logits) if logits else None)


def digest(*parts: str | Tensor) -> str:
    """SHA-256 of texts and tensors, as 64 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype} {tuple(part.shape)};".encode())
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            sha.update(f"{len(part)} {part};".encode())
    return sha.hexdigest()
