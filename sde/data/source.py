r"""Sources: samples that are read by their positions, in memory or as they are needed.

A source has a length, gives the samples at some positions with their named conditions, and has a fingerprint. Arrays in
memory, arrays in files and folders of images are sources, and so is any class of your own with these three methods:
data that does not fit into memory is data like any other. What is small, the class labels, is in memory for every
source, because labels are checked before any work.

A fingerprint tells data apart without reading all of it: it covers the number of samples, the names and the settings
that change values, and the content of up to :data:`PROBES` samples, evenly spread. These are few, because a sample that
was damaged and is repaired should not make other data of a set.
"""

from __future__ import annotations

__all__ = ["Conditioned", "Item", "NULLABLE", "PROBES", "Source", "Subset", "UnreadableSample", "digest_of", "evenly"]

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..shapes import check_condition
from .scaling import Scaling

Item = tuple[Tensor, dict[str, Tensor]]  # values with shape (B, *) and conditions of leading size B

# The conditions of which values may be NaN, which is "not known" for the networks.
NULLABLE = ("embedding", "image")

# The number of samples whose content is part of a fingerprint.
PROBES = 8


class UnreadableSample(ValueError):
    """A sample that cannot be read: a damaged file, or values that are none of the data's. The message names it."""


class Source(ABC):
    r"""Samples that are read by their positions, in a fixed order.

    Attributes:
        labels: the class labels of all samples, non-negative int64 with shape (N,), or None.
        classes: the names of the classes, where the source names them.
        captions: the texts of all samples, or None. They are no condition themselves: an encoder makes tensors of them,
            which :class:`Conditioned` adds.
    """

    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    captions: Sequence[str] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """N, the number of samples."""

    @abstractmethod
    def __getitem__(self, index: Tensor) -> Item:
        r"""The samples at some positions, on the CPU: a function of the positions alone.

        Args:
            index: the positions, int64 with shape (B,).

        Returns:
            Raw values with shape (B, \*), in one dtype, and the conditions by name, each with leading size B; `label`
            is an entry of `labels`.

        Raises:
            UnreadableSample: if a sample cannot be read; other errors end the work.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of the content, as 64 hexadecimal digits."""

    def describe(self, position: int) -> str:
        """The name of a sample in messages."""
        return f"sample {position}"

    def select(self, index: Tensor) -> Source:
        """The samples at the positions `index`, with shape (M,), in that order."""
        return Subset(self, index)

    @property
    def whole(self) -> Item | None:
        """All samples, if they are in memory."""
        return None

    def check(self, scaling: Scaling, name: str) -> None:
        """Refuses values that are no data values of a scaling: of all samples in memory, or of the first of others.

        Args:
            scaling: the scaling.
            name: the name of the values in the error.

        Raises:
            ValueError: as :meth:`Scaling.check`.
        """
        scaling.check(self.first, name)

    @property
    def extent(self) -> Tensor:
        r"""A tensor with the shape (N, \*) and the dtype of all values, which are those of the first sample."""
        return self.first.expand(len(self), *self.first.shape[1:])

    @property
    def first(self) -> Tensor:
        r"""The values of the first sample, with shape (1, \*)."""
        return self[evenly(len(self), 1)][0]


@dataclass(frozen=True, eq=False)
class Subset(Source):
    """Some samples of a source.

    Args:
        source: the source.
        index: their positions in it, int64 with shape (M,).
    """

    source: Source
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor) -> Item:
        return self.source[self.index[index]]

    def describe(self, position: int) -> str:
        return self.source.describe(int(self.index[position]))

    def select(self, index: Tensor) -> Source:
        return Subset(self.source, self.index[index])

    @cached_property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        return None if self.source.labels is None else self.source.labels[self.index]

    @property
    def classes(self) -> tuple[str, ...] | None:  # type: ignore[override]
        return self.source.classes

    @property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        texts = self.source.captions
        return None if texts is None else [texts[i] for i in self.index.tolist()]

    @cached_property
    def fingerprint(self) -> str:
        return digest_of([self.source.fingerprint.encode(), self.index.numpy().data])


@dataclass(frozen=True, eq=False)
class Conditioned(Source):
    """A source with more conditions, such as the encodings of its captions.

    Args:
        source: the source.
        condition: named tensors of leading size N, which take the place of conditions of the same name.

    Raises:
        ValueError: if a condition does not have N entries.
    """

    source: Source
    condition: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_condition(self.condition, len(self))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Tensor) -> Item:
        values, condition = self.source[index]
        return values, {**condition, **{name: value[index] for name, value in self.condition.items()}}

    def describe(self, position: int) -> str:
        return self.source.describe(position)

    @property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        return self.condition.get("label", self.source.labels)

    @property
    def classes(self) -> tuple[str, ...] | None:  # type: ignore[override]
        return self.source.classes

    @property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        return self.source.captions

    @cached_property
    def fingerprint(self) -> str:
        parts = (
            (name.encode(), value.contiguous().numpy().tobytes()) for name, value in sorted(self.condition.items())
        )
        return digest_of([self.source.fingerprint.encode(), *(part for pair in parts for part in pair)])


def evenly(n: int, count: int = PROBES) -> Tensor:
    """At most `count` of n positions, evenly spread, the first and the last among them; int64."""
    return torch.linspace(0, n - 1, min(n, count), dtype=torch.float64, device="cpu").round().long()


def digest_of(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of parts of known length, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{memoryview(part).nbytes};".encode())
        digest.update(part)
    return digest.hexdigest()
