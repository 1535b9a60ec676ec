r"""Arrays: data sets from files of NumPy or HDF5 arrays, in memory or read as they are needed.

**Files.** `.npz` and `.h5`/`.hdf5` files contain named arrays; in HDF5 a name may be a path through groups. A `.npy`
file is treated as an archive with the single array `x_train`. Nothing in a file is executed, and nothing outside of it
is read (:mod:`sde.data.rows`, which tells of which files single rows can be read).

**Discrete or continuous.** uint8 values are discrete with 256 levels unless `levels` is given. Other integers are
discrete and need `levels`, because the largest value in the file may be smaller than the largest possible one. Floating
values are continuous; with `levels` they are integers stored as floats.

**Shape.** The first axis counts the samples. (N, D) are vectors. With three or more axes, the second or the last axis
is the channel axis if it has at most 4 entries; it is moved to the second position:

| shape | becomes |
|---|---|
| (N, D) | (N, D) |
| (N, H, W) | (N, 1, H, W) |
| (N, H, W, C), (N, C, H, W) with C <= 4 | (N, C, H, W) |
| (N, L, C), (N, C, L) with C <= 4 | (N, C, L) |
| (N, X, Y, Z, C), (N, C, X, Y, Z) with C <= 4 | (N, C, X, Y, Z) |

A shape with two such axes, or with four or more axes and no such axis, is ambiguous and refused.

**Conditions.** An array with one row for each sample is a condition: integers become int64, floats float32, truth
values stay. Text is not a tensor: encode it once, and store the result. Of the condition `image`, channels are found as
above, and bytes become floats in [-1, 1], the middles of their 256 bins. What is not known is NaN: an entry of
`embedding`, or an `image` as a whole; the networks have a learned null for it (:mod:`sde.networks.conditions`). Other
conditions are finite, and a label is a class.
"""

from __future__ import annotations

__all__ = ["StoredRows", "arrays", "condition_of", "single", "values_of"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import DataSet, Source, Split, check_labels_of, hold_out, split_off
from .dataset import standardise as standardised
from .rows import Array, MissingArray, Rows, rows_of
from .scaling import Scaling, check_entries
from .source import NULLABLE, Item, UnreadableSample, digest_of, evenly


def arrays(
    path: str | os.PathLike[str],
    *,
    train: str = "x_train",
    test: str | None = "x_test",
    valid: str | None = None,
    train_labels: str | None = None,
    test_labels: str | None = None,
    valid_labels: str | None = None,
    train_conditions: Mapping[str, str] | None = None,
    test_conditions: Mapping[str, str] | None = None,
    valid_conditions: Mapping[str, str] | None = None,
    train_captions: str | None = None,
    test_captions: str | None = None,
    valid_captions: str | None = None,
    levels: int | None = None,
    low: float = -1.0,
    high: float = 1.0,
    standardise: bool = True,
    test_fraction: float = 0.1,
    seed: int = 0,
    holdout: float = 0,
    classes: int | None = None,
    memory: float = 1.0,
    name: str | None = None,
) -> DataSet:
    """A data set from one `.npy`, `.npz`, `.h5` or `.hdf5` file.

    Args:
        path: the file.
        train: name of the array of training values.
        test: name of the array of test values; None splits them off the training values at random.
        valid: name of the array of validation values, if any.
        train_labels: name of the array of training labels, with shape (N,) or (N, 1).
        test_labels: name of the array of test labels; None if `test` is None.
        valid_labels: name of the array of validation labels.
        train_conditions: names of arrays of further conditions by the name of the condition, such as
            `{"embedding": "e_train"}`, each with N rows.
        test_conditions: those of the test values.
        valid_conditions: those of the validation values.
        train_captions: name of the array of training texts, which an encoder makes conditions of.
        test_captions: name of the array of test texts.
        valid_captions: name of the array of validation texts.
        levels: number of levels of discrete values (see the module).
        low: lower end of the model's range, for discrete values.
        high: upper end of the model's range, for discrete values.
        standardise: whether continuous values are standardised, each column or channel by the mean and standard
            deviation of its training values (:meth:`sde.data.Scaling.standardise`).
        test_fraction: fraction of the training values to split off if `test` is None, between 0 and 1.
        seed: seed of the random splits, as in `split_off`.
        holdout: part of the training values to hold out as `valid`, as in `hold_out`.
        classes: the number of classes, where some may have no sample; by default, one more than the largest label. A
            conditional model is trained on classes without training samples only if their number is given.
        memory: the size in GiB up to which the arrays are read into memory, and checked, at once. Rows of larger ones
            are read as they are needed, and checked then; 0 does so for all.
        name: name of the data set; the file's name without its suffix by default.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read, lacks an array, or contains values that are refused (see the module
            and `DataSet`).
    """
    path = Path(path)
    if valid is not None and holdout != 0:
        raise ValueError(f"expected one validation set, got both valid={valid!r} and holdout={holdout}")
    values = {"train": train, "test": test, "valid": valid}
    labels = {"train": train_labels, "test": test_labels, "valid": valid_labels}
    others = {"train": train_conditions, "test": test_conditions, "valid": valid_conditions}
    texts = {"train": train_captions, "test": test_captions, "valid": valid_captions}
    for kind, named in (("labels", labels), ("conditions", others), ("captions", texts)):
        for split, key in values.items():
            if key is None and named[split]:
                raise ValueError(f"expected an array for {split}_{kind}={named[split]!r}, got {split}=None")
    conditions = {split: dict(keys or {}) for split, keys in others.items()}
    names = {split: key for split, key in values.items() if key is not None}
    every = [*names.values(), *(key for key in labels.values() if key is not None)]
    try:
        contents = rows_of(path, [*every, *(key for keys in conditions.values() for key in keys.values())])
        captions = rows_of(path, [key for key in texts.values() if key is not None], text=True)
    except MissingArray as error:
        raise MissingArray(
            f"{error}: give the names of your arrays as train=, test= and so on; test=None splits test values off the "
            "training values"
        ) from error

    levels = _number_of_levels(contents[train], levels)
    stream = sum(rows.nbytes for rows in contents.values()) > memory * 2**30
    splits: dict[str, Source] = {}
    for split, key in names.items():
        train_dtype, dtype = contents[train].dtype, contents[key].dtype
        if (train_dtype.kind == "f") != (dtype.kind == "f"):
            raise ValueError(
                f"{path}: array {train!r} has dtype {train_dtype} and array {key!r} has dtype {dtype}: expected "
                "integers in both, or floats in both"
            )
        if conditions[split].keys() != conditions["train"].keys():
            raise ValueError(
                f"{path}: train has the conditions {sorted(conditions['train'])} and {split} has "
                f"{sorted(conditions[split])}: expected the same for every split"
            )
        label = labels[split]
        source = StoredRows(
            contents[key],
            None if label is None else _labels(contents[label].whole(), len(contents[key]), contents[label].name),
            {condition: contents[array] for condition, array in conditions[split].items()},
            levels,
            None if (text := texts[split]) is None else _captions(captions[text]),
        )
        splits[split] = source if stream else source.in_memory()
    if test is None:
        if not 0 < test_fraction < 1:
            raise ValueError(f"expected 0 < test_fraction < 1, got test_fraction={test_fraction}")
        splits["train"], splits["test"] = split_off(splits["train"], test_fraction, seed=seed)
    train_split, held_out = hold_out(splits["train"], holdout, seed=seed)
    if levels is not None:
        scaling = Scaling.interval(levels, low, high)
    else:
        scaling = standardised(train_split) if standardise else Scaling.identity()
    valid_split = splits.get("valid", held_out)
    return DataSet(path.stem if name is None else name, scaling, train_split, splits["test"], valid_split, classes)


def single(path: str | os.PathLike[str], array: str, *, levels: int | None = None, argument: str = "array") -> DataSet:
    """The data set whose splits are all one array of a file, with the values as they are.

    Args:
        path: the file; an `.npy` file has one array, whose name does not count.
        array: the name of the array.
        levels: as in :func:`arrays`.
        argument: the name of the argument, or of the key of a command, that gives `array`, for the error.

    Raises:
        FileNotFoundError, ValueError: as in :func:`arrays`.
    """
    name = "x_train" if Path(path).suffix.lower() == ".npy" else array
    try:
        return arrays(path, train=name, test=name, levels=levels, standardise=False)
    except MissingArray as error:  # whose advice is on the arguments of `arrays`, and whose cause is without
        raise MissingArray(f"{error.__cause__}: give its name as {argument}=") from error


@dataclass(frozen=True, eq=False)
class StoredRows(Source):
    """Rows of arrays in files, read as they are needed.

    Args:
        values: the values.
        labels: class labels, as in :class:`sde.data.Split`.
        condition: other named conditions, one row for each sample.
        levels: the number of levels of discrete values; None for continuous values.
        captions: N texts, or None.

    Raises:
        ValueError: if the shape is ambiguous, or labels, conditions or captions do not have N entries.
    """

    values: Rows
    labels: Tensor | None = None
    condition: Mapping[str, Rows] = field(default_factory=dict)
    levels: int | None = None
    captions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.captions is not None and len(self.captions) != len(self):
            raise ValueError(f"{self.values.name} has {len(self)} rows, and {len(self.captions)} captions")
        _channels_first(np.broadcast_to(np.uint8(0), self.values.shape), self.values.name)
        check_labels_of(self.labels, len(self))
        for name, rows in self.condition.items():
            if len(rows) != len(self):
                raise ValueError(
                    f"condition {name!r}: {rows.name} has {len(rows)} rows: expected {len(self)}, one for every sample "
                    f"of {self.values.name}"
                )

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> Item:
        rows, others = self._read(self.values, index), {n: self._read(r, index) for n, r in self.condition.items()}
        try:
            values, condition = self._parsed(rows, others, self.values.name)
        except ValueError:  # which does not know the position
            for place, position in enumerate(index.tolist()):
                try:
                    one = slice(place, place + 1)
                    self._parsed(rows[one], {name: row[one] for name, row in others.items()}, self.describe(position))
                except ValueError as error:
                    raise UnreadableSample(str(error)) from error
            raise
        return values, condition if self.labels is None else {"label": self.labels[index], **condition}

    def _read(self, rows: Rows, index: Tensor) -> Array:
        try:
            return rows[index.numpy()]
        except (OSError, RuntimeError) as error:  # HDF5's filters raise either
            for position in index.numpy():
                try:
                    rows[np.asarray([position])]
                except (OSError, RuntimeError) as cause:
                    raise UnreadableSample(f"row {position} of {rows.name} cannot be read: {cause}") from cause
            raise UnreadableSample(f"{rows.name} cannot be read: {error}") from error

    def _parsed(self, rows: Array, others: Mapping[str, Array], name: str) -> Item:
        values = values_of(rows, self.levels, name, len(self))
        return values, {key: condition_of(array, key, f"condition {key!r} of {name}") for key, array in others.items()}

    def in_memory(self) -> Split:
        """All samples in memory."""
        others = {name: rows.whole() for name, rows in self.condition.items()}
        values, condition = self._parsed(self.values.whole(), others, self.values.name)
        return Split(values, self.labels, condition, captions=self.captions)

    def describe(self, position: int) -> str:
        return f"row {position} of {self.values.name}"

    @cached_property
    def fingerprint(self) -> str:
        index = evenly(len(self))
        arrays = [self.values, *(rows for _, rows in sorted(self.condition.items()))]
        facts = [f"{rows.dtype} {rows.shape}".encode() for rows in arrays] + [f"{sorted(self.condition)}".encode()]
        labels = [] if self.labels is None else [self.labels.numpy().tobytes()]
        facts += [text.encode() for text in self.captions or ()]
        return digest_of([*facts, *labels, *(rows[index.numpy()].tobytes() for rows in arrays)])


def _number_of_levels(rows: Rows, levels: int | None) -> int | None:
    """The number of levels of discrete values; None for continuous values."""
    if levels is None and rows.dtype == np.uint8:
        return 256
    if levels is None and rows.dtype.kind != "f":
        raise ValueError(
            f"{rows.name} has dtype {rows.dtype}, which does not determine the number of levels: set levels= to one "
            "more than the largest possible value (65536 for 16-bit images)"
        )
    return levels


def values_of(array: Array, levels: int | None, name: str, n: int | None = None) -> Tensor:
    """The values as a tensor with shape (B, C, *spatial) or (B, D), in the dtype of the scaling; B of n samples."""
    array = _channels_first(array, name, n)
    scaling = Scaling.identity() if levels is None else Scaling.interval(levels)
    floating = np.float32 if levels is None else np.float64
    dtype = floating if array.dtype.kind == "f" else np.uint8 if array.dtype == np.uint8 else np.int64
    with np.errstate(over="ignore"):  # overflow gives inf, which the check refuses
        values = torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    scaling.check(values, name)
    return values.to(scaling.dtype)


def condition_of(array: Array, key: str, name: str) -> Tensor:
    """A condition as a tensor with shape (B, ...)."""
    if key == "image":
        array = _channels_first(array, name)
        if array.dtype == np.uint8:
            array = (array.astype(np.float32) + 0.5) / 128.0 - 1.0
    dtype = {"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64)
    values = torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    unknown = values.isnan() if key in NULLABLE else torch.zeros_like(values, dtype=torch.bool)
    allowed = "a finite number" + (", or NaN for what is not known" if key in NULLABLE else "")
    check_entries(name, values, values.isfinite() | unknown, allowed)
    return values


def _captions(rows: Rows) -> list[str]:
    array = rows.whole()
    if array.dtype.kind != "U" or array.ndim != 1:
        raise ValueError(f"{rows.name} has dtype {array.dtype} and shape {array.shape}: expected texts with shape (N,)")
    return [str(text) for text in array]


def _labels(array: Array, n: int, name: str) -> Tensor:
    if array.dtype.kind not in "iub" or array.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"{name} has dtype {array.dtype} and shape {array.shape}: expected whole numbers or truth values with "
            f"shape ({n},) or ({n}, 1), one per sample"
        )
    return torch.from_numpy(array.astype(np.int64).reshape(-1))


def _channels_first(array: Array, name: str, n: int | None = None) -> Array:
    """The values with their channel axis second, by the rule of the module."""
    shape = (len(array) if n is None else n, *array.shape[1:])
    if array.ndim < 2:
        raise ValueError(f"{name} has shape {shape}: expected (N, ...); store N numbers as (N, 1)")
    if array.ndim == 2:
        return array
    first, last = array.shape[1] <= 4, array.shape[-1] <= 4
    if first != last:
        return array if first else np.moveaxis(array, -1, 1)
    if array.ndim == 3 and not first:
        return array[:, None]
    raise ValueError(
        f"{name} has shape {shape}, in which {'two axes' if first else 'no axis'} could be the channels: "
        "expected (N, D), (N, H, W), or at most 4 entries in exactly one of the second and the last axis"
    )
