r"""Arrays: data sets from files of NumPy or HDF5 arrays.

**Files.** `.npz` and `.h5`/`.hdf5` files contain named arrays; in HDF5 a name may be a path through groups. A `.npy`
file is treated as an archive with the single array `x_train`. Nothing in a file is executed, and nothing outside of it
is read: pickled objects, soft and external links, and virtual and externally stored HDF5 data sets are refused.

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
"""

from __future__ import annotations

__all__ = ["arrays"]

import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from .dataset import DataSet, Source, Split, hold_out, split_off
from .dataset import standardise as standardised
from .scaling import Scaling

Array = NDArray[Any]
Reader = Callable[[Path, Iterable[str]], dict[str, Array]]  # the arrays of a file with the given names


def arrays(
    path: str | os.PathLike[str],
    *,
    train: str = "x_train",
    test: str | None = "x_test",
    valid: str | None = None,
    train_labels: str | None = None,
    test_labels: str | None = None,
    valid_labels: str | None = None,
    levels: int | None = None,
    low: float = -1.0,
    high: float = 1.0,
    standardise: bool = True,
    test_fraction: float = 0.1,
    seed: int = 0,
    holdout: float = 0,
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
        levels: number of levels of discrete values (see the module).
        low: lower end of the model's range, for discrete values.
        high: upper end of the model's range, for discrete values.
        standardise: whether continuous values are standardised, each column or channel by the mean and standard
            deviation of its training values (:meth:`sde.data.Scaling.standardise`).
        test_fraction: fraction of the training values to split off if `test` is None, between 0 and 1.
        seed: seed of the random splits, as in `split_off`.
        holdout: part of the training values to hold out as `valid`, as in `hold_out`.
        name: name of the data set; the file's name without its suffix by default.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read, lacks an array, or contains values that are refused (see the module
            and `DataSet`).
    """
    path = Path(path)
    if test is None and test_labels is not None:
        raise ValueError(f"expected a test array for test_labels={test_labels!r}, got test=None: set train_labels only")
    if valid is None and valid_labels is not None:
        raise ValueError(f"expected a validation array for valid_labels={valid_labels!r}, got valid=None")
    if valid is not None and holdout != 0:
        raise ValueError(f"expected one validation set, got both valid={valid!r} and holdout={holdout}")
    values = {"train": train, "test": test, "valid": valid}
    labels = {"train": train_labels, "test": test_labels, "valid": valid_labels}
    names = {split: key for split, key in values.items() if key is not None}
    contents = _read(path, [*names.values(), *(key for key in labels.values() if key is not None)])

    levels = _number_of_levels(contents[train], levels, f"{path}: array {train!r}")
    splits: dict[str, Source] = {}
    for split, key in names.items():
        train_dtype, dtype = contents[train].dtype, contents[key].dtype
        if (train_dtype.kind == "f") != (dtype.kind == "f"):
            raise ValueError(
                f"{path}: array {train!r} has dtype {train_dtype} and array {key!r} has dtype {dtype}: expected "
                "integers in both, or floats in both"
            )
        label = labels[split]
        splits[split] = Split(
            _values(contents[key], levels, f"{path}: array {key!r}"),
            None if label is None else _labels(contents[label], len(contents[key]), f"{path}: array {label!r}"),
        )
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
    return DataSet(path.stem if name is None else name, scaling, train_split, splits["test"], valid_split)


def _number_of_levels(array: Array, levels: int | None, name: str) -> int | None:
    """The number of levels of discrete values; None for continuous values."""
    if levels is None and array.dtype == np.uint8:
        return 256
    if levels is None and array.dtype.kind != "f":
        raise ValueError(
            f"{name} has dtype {array.dtype}, which does not determine the number of levels: set levels= to one more "
            "than the largest possible value (65536 for 16-bit images)"
        )
    return levels


def _values(array: Array, levels: int | None, name: str) -> torch.Tensor:
    """The values as a tensor with shape (N, C, *spatial) or (N, D), in the dtype of the scaling."""
    array = _channels_first(array, name)
    scaling = Scaling.identity() if levels is None else Scaling.interval(levels)
    floating = np.float32 if levels is None else np.float64
    dtype = floating if array.dtype.kind == "f" else np.uint8 if array.dtype == np.uint8 else np.int64
    with np.errstate(over="ignore"):  # overflow gives inf, which the check refuses
        values = torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    scaling.check(values, name)
    return values.to(scaling.dtype)


def _labels(array: Array, n: int, name: str) -> torch.Tensor:
    if array.dtype.kind not in "iu" or array.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"{name} has dtype {array.dtype} and shape {array.shape}: expected integer labels with "
            f"shape ({n},) or ({n}, 1), one per sample"
        )
    return torch.from_numpy(array.astype(np.int64).reshape(-1))


def _channels_first(array: Array, name: str) -> Array:
    """The values with their channel axis second, by the rule of the module."""
    if array.ndim < 2:
        raise ValueError(f"{name} has shape {array.shape}: expected (N, ...); store N numbers as (N, 1)")
    if array.ndim == 2:
        return array
    first, last = array.shape[1] <= 4, array.shape[-1] <= 4
    if first != last:
        return array if first else np.moveaxis(array, -1, 1)
    if array.ndim == 3 and not first:
        return array[:, None]
    raise ValueError(
        f"{name} has shape {array.shape}, in which {'two axes' if first else 'no axis'} could be the channels: "
        "expected (N, D), (N, H, W), or at most 4 entries in exactly one of the second and the last axis"
    )


def _read(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """The arrays with the given names."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} has the suffix {path.suffix!r}: expected one of {', '.join(_READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} does not exist")
    try:
        contents = reader(path, names)
    # The readers raise exceptions of any type on damaged bytes: each of them means that the file is unusable.
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for name, array in contents.items():
        if array.dtype.kind not in "biuf" or array.dtype == np.uint64:
            raise ValueError(
                f"{path}: array {name!r} has dtype {array.dtype}: expected floats or integers of up to 63 bits"
            )
        if array.ndim == 0 or array.size == 0:
            raise ValueError(f"{path}: array {name!r} has shape {array.shape}: expected at least one sample")
    return contents


def _missing(name: str, available: Iterable[str]) -> ValueError:
    return ValueError(
        f"there is no array {name!r}; the arrays are {', '.join(map(repr, available)) or 'none'}: set the names of "
        "your arrays, or test=None to split the training values"
    )


def _read_npy(path: Path, names: Iterable[str]) -> dict[str, Array]:
    with path.open("rb") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    for name in names:
        if name != "x_train":
            raise _missing(name, ["x_train"])
    return {"x_train": array}


def _read_npz(path: Path, names: Iterable[str]) -> dict[str, Array]:
    if not zipfile.is_zipfile(path):
        raise ValueError("expected a zip archive of arrays, as written by numpy.savez")
    contents = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in names:
            if name not in archive.files:
                raise _missing(name, archive.files)
            try:
                contents[name] = np.asarray(archive[name])
            except Exception as error:
                raise ValueError(f"array {name!r}: {error}") from error
    return contents


def _read_hdf5(path: Path, names: Iterable[str]) -> dict[str, Array]:
    with h5py.File(path, "r") as file:
        return {name: _read_dataset(file, name) for name in names}


def _read_dataset(file: h5py.File, name: str) -> Array:
    node = file
    for part in name.strip("/").encode().split(b"/"):
        # Link by link, because h5py follows a whole path, even into other files, before the links can be checked.
        links = node.id.links if isinstance(node, h5py.Group) else None
        if links is None or part in (b"", b".") or not links.exists(part):
            raise _missing(name, _dataset_names(file))
        if links.get_info(part).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"array {name!r} is behind a soft or external link, which is not followed: copy the array")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise ValueError(f"{name!r} is a group: set the name of an array in it, {name}/...")
    if node.is_virtual or node.external:
        raise ValueError(f"array {name!r} is stored in other files, which are not read: copy the array")
    array: Array = node[()]
    return np.asarray(array)


def _dataset_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return names


_READERS: dict[str, Reader] = {".npy": _read_npy, ".npz": _read_npz, ".h5": _read_hdf5, ".hdf5": _read_hdf5}
