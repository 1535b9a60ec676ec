r"""Data sets: raw values in train, test and validation splits, with the scaling to the model's range.

A data set has the values as its source gives them (pixels as integers), never scaled: bits/dim are a property of the
raw values, and the fingerprint of a data set does not depend on its scaling. Values in memory are checked once, here;
others are checked whenever they are read (:mod:`sde.data.source`).

Random splits come from `numpy.random.RandomState`, whose streams are frozen (NEP 19): a split is the same under every
version of NumPy.
"""

from __future__ import annotations

__all__ = ["DataSet", "Split", "check_labels", "check_labels_of", "hold_out", "some_of", "split_off", "standardise"]

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..networks.conditions import as_labels
from ..shapes import check_condition, check_count, check_kind, named_tensors, numbers_of
from .scaling import Scaling, check_entries
from .source import Item, Source, evenly


@dataclass(frozen=True, eq=False)
class Split(Source):
    """Samples in memory, in a fixed order.

    Args:
        values: raw values on the CPU, with shape (N, C, *spatial) or (N, D): uint8 or int32 for discrete data,
            floating for continuous data.
        labels: class labels, whole numbers from 0 or truth values with shape (N,), or None; the condition `label`.
        condition: other named conditions, tensors of leading size N.
        classes: the names of the classes, if they have any.
        captions: N texts, or None.

    Raises:
        ValueError: if the labels are not N whole numbers from 0, and the error names the first negative label; or if a
            condition does not have N entries.
    """

    values: Tensor
    labels: Tensor | None = None
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    captions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", numbers_of("the values of a split", self.values))
        if self.labels is not None:
            object.__setattr__(self, "labels", as_labels("labels", numbers_of("labels", self.labels)))
        object.__setattr__(self, "condition", named_tensors(self.condition))
        check_labels_of(self.labels, len(self))
        check_condition(self.condition, len(self))

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, index: Tensor) -> Item:
        labels = {} if self.labels is None else {"label": self.labels[index]}
        return self.values[index], labels | {name: value[index] for name, value in self.condition.items()}

    def select(self, index: Tensor) -> Split:
        """The samples at the positions `index`, with shape (M,), in that order."""
        labels = None if self.labels is None else self.labels[index]
        condition = {name: value[index] for name, value in self.condition.items()}
        captions = None if self.captions is None else [self.captions[i] for i in index.tolist()]
        return Split(self.values[index], labels, condition, self.classes, captions)

    @property
    def whole(self) -> Item:
        labels = {} if self.labels is None else {"label": self.labels}
        return self.values, {**labels, **self.condition}

    def check(self, scaling: Scaling, name: str) -> None:
        scaling.check(self.values, name)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the dtype, shape and bytes of the values, labels and conditions, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        named = [("", self.values), ("", self.labels), *sorted(self.condition.items())]
        for name, tensor in named:
            if tensor is not None:
                digest.update(f"{name}{tensor.dtype} {tuple(tensor.shape)};".encode())
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if self.captions is not None:
            digest.update("\n".join(self.captions).encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class DataSet:
    """A named data set: its splits and the scaling of its values.

    Args:
        name: the name used in messages and files.
        scaling: the map from raw values to the model's range.
        train: training samples: a :class:`Split` in memory, or another :class:`sde.data.Source`.
        test: test samples.
        valid: samples held out of the training set, or None.
        declared_classes: the number of classes, where some may have no sample; by default, one more than the largest
            label.

    Raises:
        ValueError: if a split has no sample or no event dimension; if the splits have different event shapes, only some
            of them have labels, or there are fewer declared classes; or if values have a dtype that does not fit the
            scaling, are not finite, or are not levels of the scaling. The error names the split and the first such
            index. Of a split that is not in memory, the first sample is checked here and each of the others when it is
            read.
    """

    name: str
    scaling: Scaling
    train: Source
    test: Source
    valid: Source | None = None
    declared_classes: int | None = None

    def __post_init__(self) -> None:
        check_count(self.name, "classes", 1 if self.declared_classes is None else self.declared_classes)
        for name, split in self.splits.items():
            check_kind(name, split, Source, "sde.data.Split(values, labels)")
            self._check_values(name, split)
            if split.labels is not None and self.declared_classes is not None:
                self._check_labels(name, split.labels, self.declared_classes)
            if split.labels is None and self.declared_classes is not None:
                raise ValueError(f"{self.name}: {name} has no labels, got classes={self.declared_classes}")
            if (split.labels is None) != (self.train.labels is None):
                raise ValueError(
                    f"{self.name}: only one of train and {name} has labels: expected labels for every split or none"
                )

    @property
    def splits(self) -> dict[str, Source]:
        """The available splits by name."""
        splits = {"train": self.train, "test": self.test}
        return splits if self.valid is None else {**splits, "valid": self.valid}

    def split(self, name: str) -> Source:
        """The split with the given name.

        Raises:
            ValueError: if there is no split of that name; the error lists the available ones.
        """
        if name not in self.splits:
            hint = "; set holdout= to hold out a part of train" if name == "valid" else ""
            raise ValueError(f"{self.name} has no split {name!r}: expected one of {', '.join(self.splits)}{hint}")
        return self.splits[name]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The event shape: (C, *spatial) or (D,)."""
        return tuple(self.train.first.shape[1:])

    @property
    def classes(self) -> int | None:
        """The number of classes: one more than the largest label of any split, unless it is declared; None without
        labels."""
        labels = [split.labels for split in self.splits.values() if split.labels is not None]
        if self.declared_classes is not None:
            return self.declared_classes
        return 1 + max(int(each.max()) for each in labels) if labels else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names and fingerprints of all splits, without the scaling."""
        lines = [f"{name} {split.fingerprint}" for name, split in self.splits.items()]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check_classes(self, classes: int) -> None:
        """Refuses labels that are none of a network's classes, and, unless the number of classes is declared, classes
        without a training sample, of which a network would learn nothing and a model draw samples all the same.

        Raises:
            ValueError: it names the first such label, or the classes that lack samples.
        """
        for name, split in self.splits.items():
            if split.labels is not None:
                self._check_labels(name, split.labels, classes)
        if self.train.labels is None or self.classes is None or self.declared_classes is not None:
            return
        present = set(self.train.labels.unique().tolist())
        if len(present) < self.classes:
            absent = itertools.islice((c for c in itertools.count() if c not in present), 5)
            named = self.train.classes or ()
            shown = [f"{c} ({named[c]})" if c < len(named) else f"{c}" for c in absent if c < self.classes]
            more = self.classes - len(present) - len(shown)
            raise ValueError(
                f"{self.name}: no training sample is of class {', '.join(shown)}{f' and {more} more' if more else ''}, "
                f"and labels go up to {self.classes - 1}: number the classes from 0 without gaps, or declare how "
                f"many there are, data.classes={self.classes}, in Python declared_classes={self.classes} of the DataSet"
            )

    def _check_labels(self, name: str, labels: Tensor, classes: int) -> None:
        check_labels(f"{self.name}: {name} labels", labels, classes, describe=self.splits[name].describe)

    def _check_values(self, name: str, split: Source) -> None:
        values = split.extent
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
        split.check(self.scaling, f"{self.name}: {name}")


def check_labels_of(labels: Tensor | None, n: int) -> None:
    """Refuses labels of n samples that are not n non-negative int64."""
    if labels is None:
        return
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise ValueError(
            f"labels have dtype {labels.dtype} and shape {tuple(labels.shape)}: expected torch.int64 and "
            f"({n},), one label per sample"
        )
    check_entries("labels", labels, labels >= 0, "0 or more")


def check_labels(
    name: str,
    labels: Tensor,
    classes: int,
    *,
    null: bool = False,
    describe: Callable[[int], str] | None = None,
) -> None:
    """Checks labels against the classes of a network, whose label `classes` means "no label".

    Args:
        name: the name of the labels in the error.
        labels: int64, with shape (N,).
        classes: the number of classes.
        null: whether "no label" is valid.
        describe: the name of a sample in the error, by its position.

    Raises:
        ValueError: if a label is none of 0 to `classes` - 1; the error names the first one, and the range of them all.
    """
    wrong = torch.nonzero((labels < 0) | (labels >= classes + null))
    if len(wrong):
        first, (low, high) = int(wrong[0, 0]), (int(extreme) for extreme in labels.aminmax())
        sample = "" if describe is None or describe(first) == f"sample {first}" else f" ({describe(first)})"
        raise ValueError(
            f"{name}[{first}] is {int(labels[first])}{sample}: expected a class from 0 to {classes - 1}"
            + (f", or {classes} for no label" if null else "")
            + f": count labels from 0, or give more classes; the labels go from {low} to {high}"
        )


def split_off(split: Source, part: float, *, seed: int = 0) -> tuple[Source, Source]:
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


def hold_out(train: Source, holdout: float, *, seed: int = 0) -> tuple[Source, Source | None]:
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


# The memory that samples of a source may take from which its standard deviations are computed, in bytes.
_MEMORY = 2**28


def some_of(source: Source, count: int) -> Tensor:
    """Values of a source, with shape (n, *): of all samples in memory, else of up to `count` evenly spread ones, or
    256 MiB of them."""
    if (whole := source.whole) is not None:
        return whole[0]
    count = min(count, max(1, _MEMORY // (source.first.numel() * source.first.element_size())))
    return torch.cat([source[index][0] for index in evenly(len(source), count).split(256)])


def standardise(train: Source) -> Scaling:
    """:meth:`Scaling.standardise` of a source: of all samples in memory, else of up to 65,536 of them.

    That many tell a standard deviation to 0.3 % of itself, and more would not change what a network learns.
    """
    return Scaling.standardise(some_of(train, 2**16))
