r"""Sets of items that are compared: files, splits of a data set, and samples that a model draws.

Every item has an index, which groups and draws are keyed by: that of the file, or its position.
"""

from __future__ import annotations

__all__ = ["DrawnItems", "ItemSet", "StoredItems", "items_of_file"]

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import DataSet, Source
from ..data.arrays import single
from ..data.rows import rows_of
from ..metrics.features.base import digest
from ..model import Model
from ..solvers import Solver


class ItemSet(Protocol):
    """A set of N items, data values of one shape.

    Attributes:
        name: the name, for tables.
        index: the index of every item, int64 with shape (N,).
        shape: the shape of an item.
        levels: the number of levels of discrete values; None for continuous ones.
        fingerprint: 64 hexadecimal digits that are the same for the same items only, whatever their number.
        stored: whether the values are in memory, so that no file of features has to keep them.
    """

    @property
    def name(self) -> str: ...

    @property
    def index(self) -> Tensor: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def levels(self) -> int | None: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def stored(self) -> bool: ...

    def values(self, index: Tensor) -> Tensor:
        """The values of the items at some positions, int64 with shape (M,); of items to be drawn, consecutive ones."""


@dataclass(frozen=True)
class StoredItems:
    """Items of a source, in memory or in files.

    Args:
        name: the name.
        source: the items.
        levels: the number of levels of discrete values.
        n: the number of items to use, the first ones; all by default.
        keys: the index of every item of the source; its position by default.
    """

    name: str
    source: Source
    levels: int | None = None
    n: int | None = None
    keys: Tensor | None = None
    stored: bool = True

    @classmethod
    def of_split(cls, data: DataSet, name: str) -> StoredItems:
        """The items of a split of a data set."""
        return cls(f"{data.name} {name}", data.split(name), data.scaling.levels)

    @property
    def index(self) -> Tensor:
        n = len(self.source) if self.n is None else self.n
        return torch.arange(n, device="cpu") if self.keys is None else self.keys[:n]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.extent.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        return digest(f"levels {self.levels} {self.source.fingerprint}")

    def values(self, index: Tensor) -> Tensor:
        return self.source[index][0]


@dataclass(frozen=True)
class DrawnItems:
    """Items that a model draws when they are asked for.

    Args:
        name: the name.
        model: the model.
        n: the number of items.
        solver: the solver.
        seed: the seed of all noise; item i is that of index i.
        source: the digest of the checkpoint.
        batch_size: the number of items that are drawn at a time.
    """

    name: str
    model: Model
    n: int
    solver: Solver
    seed: int
    source: str
    batch_size: int = 256
    stored: bool = False

    @property
    def index(self) -> Tensor:
        return torch.arange(self.n, device="cpu")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.model.shape

    @property
    def levels(self) -> int | None:
        return self.model.scaling.levels

    @property
    def fingerprint(self) -> str:
        return digest(f"{self.source} {self.solver!r} {self.seed}")

    def values(self, index: Tensor) -> Tensor:
        how: dict[str, Any] = {"solver": self.solver, "seed": self.seed, "batch_size": self.batch_size}
        return self.model.sample(len(index), first=int(index[0]), **how)


def items_of_file(
    path: Path, *, array: str = "x", levels: int | None = None, n: int | None = None, name: str | None = None
) -> StoredItems:
    """The items of a `.npy`, `.npz` or HDF5 file, such as those of sample.py.

    Args:
        path: the file.
        array: the name of the array of items. Arrays `index` (N,) and `levels` (1,) are used, if there are any.
        levels: the number of levels of discrete values; by default that in the file, or 256 of uint8.
        n: the number of items to use, all by default.
        name: the name; that of the file without its suffix by default.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it has no such array, or values that are refused (:func:`sde.data.arrays`).
    """
    index, said = (_optional(path, name) for name in ("index", "levels"))
    if levels is None and said is not None:
        levels = int(said[0])
    data = single(path, array, levels=levels)
    keys = None if index is None else torch.from_numpy(index.astype(np.int64))
    if keys is not None and keys.shape != (len(data.train),):
        raise ValueError(f"{path}: expected one index for each of {len(data.train)} items, got {tuple(keys.shape)}")
    if n is not None and n > len(data.train):
        raise ValueError(f"{path} has {len(data.train)} items, fewer than n={n}: give a smaller n=, or null for all")
    return StoredItems(path.stem if name is None else name, data.train, data.scaling.levels, n, keys)


def _optional(path: Path, name: str) -> NDArray[Any] | None:
    """An array that a file may have; what else is wrong with the file is found with its items."""
    try:
        return rows_of(path, [name])[name].whole() if path.suffix.lower() != ".npy" else None
    except (ValueError, OSError):
        return None
