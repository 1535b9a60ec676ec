r"""Data sets: raw values in train, test and validation splits, with the scaling to the model's range.

A data set stores the values as the source gives them (pixels as integers), never scaled: bits/dim are a property of
the raw values, and the fingerprint of a data set does not depend on its scaling. All values are checked once, here,
so that training and likelihoods can rely on them.

Random splits come from `numpy.random.RandomState`, whose streams are frozen (NEP 19): a split is the same under every
version of NumPy.
"""

from __future__ import annotations

__all__ = ["DataSet", "Split", "check_labels", "hold_out", "split_off"]

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .scaling import Scaling, check_entries


@dataclass(frozen=True, eq=False)
class Split:
    """The samples of one split, in a fixed order.

    Args:
        values: raw values on the CPU, with shape (N, C, *spatial) or (N, D): uint8 or int32 for discrete data,
            floating for continuous data.
        labels: class labels, non-negative int64 with shape (N,), or None.

    Raises:
        ValueError: if the labels are not N non-negative int64; the error names the first negative label.
    """

    values: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        labels, n = self.labels, len(self)
        if labels is None:
            return
        if labels.dtype != torch.int64 or labels.shape != (n,):
            raise ValueError(
                f"labels have dtype {labels.dtype} and shape {tuple(labels.shape)}: expected torch.int64 and "
                f"({n},), one label per sample"
            )
        check_entries("labels", labels, labels >= 0, "0 or more")

    def __len__(self) -> int:
        return self.values.shape[0]

    def select(self, index: Tensor) -> Split:
        """The samples at the positions `index`, with shape (M,), in that order."""
        return Split(self.values[index], None if self.labels is None else self.labels[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the dtype, shape and bytes of the values and labels, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for tensor in (self.values, self.labels):
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class DataSet:
    """A named data set: its splits and the scaling of its values.

    Args:
        name: the name used in messages and files.
        scaling: the map from raw values to the model's range.
        train: training samples.
        test: test samples.
        valid: samples held out of the training set, or None.

    Raises:
        ValueError: if a split has no sample or no event dimension; if the splits have different event shapes, or only
            some of them have labels; or if values have a dtype that does not fit the scaling, are not finite, or are
            not levels of the scaling. The error names the split and the first such index.
    """

    name: str
    scaling: Scaling
    train: Split
    test: Split
    valid: Split | None = None

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            self._check_values(name, split.values)
            if (split.labels is None) != (self.train.labels is None):
                raise ValueError(
                    f"{self.name}: only one of train and {name} has labels: expected labels for every split or none"
                )

    @property
    def splits(self) -> dict[str, Split]:
        """The available splits by name."""
        splits = {"train": self.train, "test": self.test}
        return splits if self.valid is None else {**splits, "valid": self.valid}

    def split(self, name: str) -> Split:
        """The split with the given name.

        Raises:
            ValueError: if there is no split of that name; the error lists the available ones.
        """
        if name not in self.splits:
            hint = "; set holdout= to hold out a part of train" if name == "valid" else ""
            raise ValueError(f"{self.name} has no split {name!r}: expected one of {', '.join(self.splits)}{hint}")
        return self.splits[name]

    @property
    def shape(self) -> tuple[int, ...]:
        """The event shape: (C, *spatial) or (D,)."""
        return tuple(self.train.values.shape[1:])

    @property
    def classes(self) -> int | None:
        """The number of classes: one more than the largest label of any split; None without labels."""
        labels = [split.labels for split in self.splits.values() if split.labels is not None]
        return 1 + max(int(each.max()) for each in labels) if labels else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names and fingerprints of all splits, without the scaling."""
        lines = [f"{name} {split.fingerprint}" for name, split in self.splits.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _check_values(self, name: str, values: Tensor) -> None:
        if values.ndim < 2 or values.numel() == 0:
            raise ValueError(
                f"{self.name}: {name} has shape {tuple(values.shape)}: expected (N, D) or (N, C, *spatial) with "
                "at least one sample and one dimension"
            )
        if tuple(values.shape[1:]) != self.shape:
            raise ValueError(
                f"{self.name}: expected one event shape for all splits, but train has {self.shape} and {name} has "
                f"{tuple(values.shape[1:])}"
            )
        continuous = self.scaling.levels is None
        if values.dtype != self.scaling.dtype and not (continuous and values.is_floating_point()):
            raise ValueError(
                f"{self.name}: {name} has dtype {values.dtype}: expected "
                f"{'a floating dtype' if continuous else self.scaling.dtype} for levels={self.scaling.levels}"
            )
        self.scaling.check(values, f"{self.name}: {name}")


def check_labels(name: str, labels: Tensor, classes: int, *, null: bool = False) -> None:
    """Checks labels against the classes of a network, whose label `classes` means "no label".

    Args:
        name: the name of the labels in the error.
        labels: int64, with shape (N,).
        classes: the number of classes.
        null: whether "no label" is valid.

    Raises:
        ValueError: if a label is none of 0 to `classes` - 1; the error names the first one.
    """
    valid = f"a class from 0 to {classes - 1}" + (f", or {classes} for no label" if null else "")
    allowed = (labels >= 0) & (labels < classes + null)
    check_entries(name, labels, allowed, f"{valid}: count labels from 0, or give more classes")


def split_off(split: Split, part: float, *, seed: int = 0) -> tuple[Split, Split]:
    """Splits off a random part; both parts keep the order of the samples.

    Args:
        split: N samples.
        part: how much to split off: a fraction of the samples if it is less than 1, else their number.
        seed: the part is the first entries of `numpy.random.RandomState(seed).permutation(N)`.

    Returns:
        The rest, and the part.

    Raises:
        ValueError: if `part` is neither a fraction nor a whole number, or leaves one of the two empty.
    """
    n = len(split)
    count = 0
    if 0 < part < n:
        count = round(part * n) if part < 1 else int(part)
    if not 0 < count < n or (part >= 1 and part != count):
        raise ValueError(
            f"cannot split {part} off {n} samples: expected a fraction between 0 and 1 or a whole number below "
            f"{n}, with at least one sample on either side"
        )
    permutation = torch.from_numpy(np.random.RandomState(seed).permutation(n))
    return split.select(permutation[count:].sort().values), split.select(permutation[:count].sort().values)


def hold_out(train: Split, holdout: float, *, seed: int = 0) -> tuple[Split, Split | None]:
    """Splits a validation set off the training set; the validation set is None if `holdout` is 0.

    Args:
        train: N training samples.
        holdout: the part to hold out, as in `split_off`, or 0 for none.
        seed: as in `split_off`.

    Returns:
        The remaining training set, and the validation set.

    Raises:
        ValueError: as in `split_off`.
    """
    return (train, None) if holdout == 0 else split_off(train, holdout, seed=seed)
