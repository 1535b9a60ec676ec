r"""Arrays: data sets from files of NumPy or HDF5 arrays.

**Files.** `.npz` and `.h5`/`.hdf5` hold arrays by name; in HDF5 a name may be a path of groups. A `.npy` file
counts as an archive with the one array `x_train`. Nothing in a file is executed or points elsewhere: pickled
objects, soft and external links, and virtual and externally stored HDF5 data sets are refused.

**Kind.** uint8 is discrete with 256 levels unless `levels` says otherwise. Other integers are discrete and
need `levels`, since their largest value does not tell it. Floating values are continuous; with `levels` they
are integers kept as floats.

**Shape.** The first axis counts the samples. (N, D) are vectors. From three axes on, an axis of at most 4
entries next to the first or at the end is the channel axis, and goes next to the first:

| shape | becomes |
|---|---|
| (N, D) | (N, D) |
| (N, H, W) | (N, 1, H, W) |
| (N, H, W, C), (N, C, H, W) with C <= 4 | (N, C, H, W) |
| (N, L, C), (N, C, L) with C <= 4 | (N, C, L) |
| (N, X, Y, Z, C), (N, C, X, Y, Z) with C <= 4 | (N, C, X, Y, Z) |

What has two such axes, or four or more axes and none, could be meant in two ways and is refused.
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

from .dataset import DataSet, Split, hold_out, split_off
from .scaling import Scaling

Array = NDArray[Any]


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
        path: The file.
        train: Name of the array of training values.
        test: Name of the array of test values; None splits them off the training values at random.
        valid: Name of the array of validation values, if there is one.
        train_labels: Name of the array of training labels, with shape (N,) or (N, 1).
        test_labels: Name of the array of test labels; None where `test` is None.
        valid_labels: Name of the array of validation labels.
        levels: Number of levels of discrete values (see the module).
        low: Lower end of the model's range, for discrete values.
        high: Upper end of the model's range, for discrete values.
        standardise: Whether continuous values are standardised by mean and standard deviation of the training
            values.
        test_fraction: The share to split off where `test` is None, between 0 and 1.
        seed: Seed of the random splits, as in `split_off`.
        holdout: Part of the training values to hold out as `valid`, as in `hold_out`.
        name: Name of the data set; by default that of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, lacks an array, or holds values that are refused (see the
            module and `DataSet`).
    """
    path = Path(path)
    if test is None and test_labels is not None:
        raise ValueError(
            f"test_labels={test_labels!r} belong to a test array, but test is None: give train_labels only"
        )
    if valid is None and valid_labels is not None:
        raise ValueError(f"valid_labels={valid_labels!r} belong to a validation array, but valid is None")
    if valid is not None and holdout != 0:
        raise ValueError(f"expected one validation set, got both valid={valid!r} and holdout={holdout}")
    values = {"train": train, "test": test, "valid": valid}
    labels = {"train": train_labels, "test": test_labels, "valid": valid_labels}
    names = {split: key for split, key in values.items() if key is not None}
    found = _read(path, [*names.values(), *(key for key in labels.values() if key is not None)])

    discrete = _levels(found[train], levels, f"{path}: array {train!r}")
    splits = {}
    for split, key in names.items():
        one, other = found[train].dtype, found[key].dtype
        if (one.kind == "f") != (other.kind == "f"):
            raise ValueError(
                f"{path}: array {train!r} has dtype {one} and array {key!r} {other}: expected integers in both, or "
                "floats in both"
            )
        label = labels[split]
        splits[split] = Split(
            _values(found[key], discrete, f"{path}: array {key!r}"),
            None if label is None else _labels(found[label], len(found[key]), f"{path}: array {label!r}"),
        )
    if test is None:
        if not 0 < test_fraction < 1:
            raise ValueError(f"expected 0 < test_fraction < 1, got {test_fraction}")
        splits["train"], splits["test"] = split_off(splits["train"], test_fraction, seed=seed)
    kept, held = hold_out(splits["train"], holdout, seed=seed)
    if discrete is not None:
        scaling = Scaling.interval(discrete, low, high)
    else:
        scaling = Scaling.standardise(kept.values) if standardise else Scaling.identity()
    return DataSet(path.stem if name is None else name, scaling, kept, splits["test"], splits.get("valid", held))


def _levels(array: Array, levels: int | None, what: str) -> int | None:
    """The number of levels of the values, None for continuous ones."""
    if levels is None and array.dtype == np.uint8:
        return 256
    if levels is None and array.dtype.kind != "f":
        raise ValueError(
            f"{what} has dtype {array.dtype}, which does not tell the number of levels: give levels=L, one more "
            "than the largest value there can be (65536 for 16-bit images)"
        )
    return levels


def _values(array: Array, levels: int | None, what: str) -> torch.Tensor:
    """The values as a tensor with shape (N, C, *spatial) or (N, D), in the dtype of its scaling."""
    array = _channels_first(array, what)
    if levels is None:
        with np.errstate(over="ignore"):  # beyond float32 is inf, which is refused like any other
            values = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
        Scaling.identity().check(values, what)
        return values
    wide = np.float64 if array.dtype.kind == "f" else np.uint8 if array.dtype == np.uint8 else np.int64
    scaling = Scaling.interval(levels)
    values = torch.from_numpy(np.array(array, dtype=wide, order="C"))
    scaling.check(values, what)
    return values.to(scaling.dtype)


def _labels(array: Array, n: int, what: str) -> torch.Tensor:
    if array.dtype.kind not in "iu" or array.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"{what} has dtype {array.dtype} and shape {array.shape}: expected the integer labels of {n} samples, "
            f"with shape ({n},) or ({n}, 1)"
        )
    return torch.from_numpy(array.astype(np.int64).reshape(-1))


def _channels_first(array: Array, what: str) -> Array:
    """The values with their channel axis next to the first, by the rule of the module."""
    if array.ndim < 2:
        raise ValueError(f"{what} has shape {array.shape}: expected a first axis of samples; store numbers as (N, 1)")
    if array.ndim == 2:
        return array
    first, last = array.shape[1] <= 4, array.shape[-1] <= 4
    if first != last:
        return array if first else np.moveaxis(array, -1, 1)
    if array.ndim == 3 and not first:
        return array[:, None]
    raise ValueError(
        f"{what} has shape {array.shape}, in which {'two axes' if first else 'no axis'} could be the channels: "
        "expected (N, D), (N, H, W), or exactly one axis of at most 4 entries, next to the first or at the end"
    )


def _read(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """The arrays of those names."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} has the suffix {path.suffix!r}: expected one of {', '.join(_READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        found = reader(path, names)
    # What the readers raise on damaged bytes is not theirs to document: anything means the same here.
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for name, array in found.items():
        if array.dtype.kind not in "biuf" or array.dtype == np.uint64:
            raise ValueError(
                f"{path}: array {name!r} has dtype {array.dtype}: expected floats or integers of up to 63 bits"
            )
        if array.ndim == 0 or array.size == 0:
            raise ValueError(f"{path}: array {name!r} has shape {array.shape}: expected at least one sample")
    return found


def _missing(name: str, there: Iterable[str]) -> ValueError:
    return ValueError(
        f"there is no array {name!r}: there are {', '.join(map(repr, there)) or 'none'}; give the names of your "
        "arrays, or test=None to split the training values"
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
        raise ValueError("it is not a zip archive of arrays as written by numpy.savez")
    found = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in names:
            if name not in archive.files:
                raise _missing(name, archive.files)
            try:
                found[name] = np.asarray(archive[name])
            except Exception as error:
                raise ValueError(f"array {name!r}: {error}") from error
    return found


def _read_hdf5(path: Path, names: Iterable[str]) -> dict[str, Array]:
    with h5py.File(path, "r") as file:
        return {name: _read_dataset(file, name) for name in names}


def _read_dataset(file: h5py.File, name: str) -> Array:
    node = file
    for part in name.strip("/").encode().split(b"/"):
        # Link by link, because h5py follows a path, into other files too, before it says what was on the way.
        links = node.id.links if isinstance(node, h5py.Group) else None
        if links is None or part in (b"", b".") or not links.exists(part):
            raise _missing(name, _dataset_names(file))
        if links.get_info(part).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"array {name!r} is behind a soft or external link, which is not followed: copy the array")
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise ValueError(f"{name!r} is a group: give the name of an array in it, {name}/...")
    if node.is_virtual or node.external:
        raise ValueError(f"array {name!r} is stored in other files, which are not read: copy the array")
    array: Array = node[()]
    return np.asarray(array)


def _dataset_names(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return names


_READERS: dict[str, Callable[[Path, Iterable[str]], dict[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
