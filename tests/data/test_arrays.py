"""Arrays: what the values and labels of a file become, and which of them are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support.tables import rows

from sde.data import Scaling, arrays


def pixels(*shape: int, levels: int = 256, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(levels, size=shape).astype(dtype)


def points(*shape: int, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    return (5.0 + 2.0 * np.random.RandomState(seed).normal(size=shape)).astype(dtype)


def save(path: Path, **members: Any) -> Path:
    if path.suffix.lower() == ".npz":
        with path.open("wb") as stream:
            np.savez(stream, **members)
    else:
        with h5py.File(path, "w") as file:
            for name, member in members.items():
                file[name] = member
    return path


def equal(values: torch.Tensor, expected: np.ndarray) -> bool:
    return values.shape == expected.shape and np.array_equal(values.numpy(), expected)


@pytest.fixture(params=[".npz", ".h5", ".hdf5", ".NPZ"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"set{request.param}"


def test_mnist_like_file_works_straight(archive: Path) -> None:
    train, test = pixels(20, 28, 28), pixels(6, 28, 28, seed=1)
    y_train, y_test = np.arange(20, dtype=np.uint8) % 10, pixels(6, levels=10, seed=1)
    path = save(archive, x_train=train, x_test=test, y_train=y_train, y_test=y_test)
    data = arrays(path)
    assert data.name == "set"
    assert data.shape == (1, 28, 28)
    assert data.scaling == Scaling.interval(256)
    assert data.train.values.dtype == torch.uint8
    assert equal(data.train.values, train[:, None])
    assert equal(data.test.values, test[:, None])
    assert data.train.labels is None
    assert data.valid is None
    data = arrays(path, train_labels="y_train", test_labels="y_test", low=0.0, name="mine")
    assert data.train.labels is not None
    assert data.test.labels is not None
    assert equal(data.train.labels, y_train.astype(np.int64))
    assert equal(data.test.labels, y_test.astype(np.int64))
    assert data.scaling == Scaling.interval(256, 0.0, 1.0)
    assert data.classes == 10
    assert data.name == "mine"


def test_validation_array(archive: Path) -> None:
    members = {f"x_{split}": pixels(n, 8, 8, seed=n) for split, n in (("train", 9), ("test", 4), ("val", 3))}
    labels = {f"y_{split}": pixels(n, 1, levels=2) for split, n in (("train", 9), ("test", 4), ("val", 3))}
    path = save(archive, **members, **labels)
    data = arrays(path, valid="x_val", train_labels="y_train", test_labels="y_test", valid_labels="y_val")
    for split, key in (("train", "train"), ("test", "test"), ("valid", "val")):
        part = data.split(split)
        assert equal(part.values, members[f"x_{key}"][:, None])
        assert part.labels is not None
        assert equal(part.labels, labels[f"y_{key}"][:, 0].astype(np.int64))


def test_nested_hdf5_names(tmp_path: Path) -> None:
    path = save(tmp_path / "set.h5", **{"a/b/train": pixels(5, 8), "a/test": pixels(2, 8)})
    data = arrays(path, train="a/b/train", test="/a/test")
    assert (len(data.train), len(data.test)) == (5, 2)


def test_npy_is_split(tmp_path: Path) -> None:
    values = points(50, 3, dtype=np.float32)
    np.save(tmp_path / "points.npy", values)
    data = arrays(tmp_path / "points.npy", test=None, test_fraction=0.2, seed=4)
    chosen = np.zeros(50, dtype=bool)
    chosen[np.random.RandomState(4).permutation(50)[:10]] = True
    assert data.name == "points"
    assert equal(data.test.values, values[chosen])
    assert equal(data.train.values, values[~chosen])
    again = arrays(tmp_path / "points.npy", test=None, test_fraction=0.2, seed=4)
    other = arrays(tmp_path / "points.npy", test=None, test_fraction=0.2, seed=5)
    assert again.fingerprint == data.fingerprint != other.fingerprint
    with pytest.raises(ValueError, match=r"'x_test'.*'x_train'.*test=None"):
        arrays(tmp_path / "points.npy")
    with pytest.raises(ValueError, match=r"'points'.*'x_train'"):
        arrays(tmp_path / "points.npy", train="points", test=None)
    for fraction in (0.0, 1.0, 5, math.nan):
        with pytest.raises(ValueError, match=f"test_fraction={fraction}"):
            arrays(tmp_path / "points.npy", test=None, test_fraction=fraction)


def test_labels_are_split_with_their_values(tmp_path: Path) -> None:
    path = save(tmp_path / "set.npz", x_train=np.arange(40.0).reshape(40, 1), y=np.arange(40))
    data = arrays(path, test=None, train_labels="y", holdout=5)
    for split in data.splits.values():
        assert split.labels is not None
        assert equal(split.labels, split.values[:, 0].numpy().astype(np.int64))
    assert [len(split) for split in data.splits.values()] == [31, 4, 5]


def test_holdout_leaves_the_test_set_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "set.npz", x_train=points(40, 2), x_test=points(10, 2, seed=1))
    whole, data = arrays(path), arrays(path, holdout=0.25)
    assert (len(data.train), len(data.split("valid"))) == (30, 10)
    assert data.test.fingerprint == whole.test.fingerprint
    both = torch.cat([data.train.values, data.split("valid").values])
    assert torch.equal(both.sort(0).values, whole.train.values.sort(0).values)


@pytest.mark.parametrize(
    ("shape", "event", "axes"),
    [
        ((5, 3), (3,), None),
        ((5, 64), (64,), None),
        ((5, 8, 9), (1, 8, 9), "nhw->n1hw"),
        ((5, 8, 9, 1), (1, 8, 9), "last"),
        ((5, 8, 9, 3), (3, 8, 9), "last"),
        ((5, 8, 9, 4), (4, 8, 9), "last"),
        ((5, 3, 8, 9), (3, 8, 9), None),
        ((5, 1, 8, 9), (1, 8, 9), None),
        ((5, 1, 100), (1, 100), None),
        ((5, 100, 2), (2, 100), "last"),
        ((5, 6, 7, 8, 1), (1, 6, 7, 8), "last"),
        ((5, 2, 6, 7, 8), (2, 6, 7, 8), None),
    ],
)
def test_channel_axis(tmp_path: Path, shape: tuple[int, ...], event: tuple[int, ...], axes: str | None) -> None:
    values = pixels(*shape)
    data = arrays(save(tmp_path / "set.npz", x_train=values, x_test=values[:2]))
    assert data.shape == event
    expected = np.moveaxis(values, -1, 1) if axes == "last" else values.reshape(5, *event)
    assert equal(data.train.values, expected)
    assert data.train.values.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5,), r"'x_train'.*\(5,\).*\(N, 1\)"),
        ((5, 3, 4), r"\(5, 3, 4\).*two axes"),
        ((5, 3, 8, 3), r"\(5, 3, 8, 3\).*two axes"),
        ((5, 8, 8, 8), r"\(5, 8, 8, 8\).*no axis"),
        ((5, 8, 8, 6, 8), r"\(5, 8, 8, 6, 8\).*no axis"),
    ],
)
def test_ambiguous_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arrays(save(tmp_path / "set.npz", x_train=pixels(*shape), x_test=pixels(*shape)))


@pytest.mark.parametrize(
    ("dtype", "levels", "stored"),
    [
        (np.uint8, 17, torch.uint8),
        (np.int64, 17, torch.uint8),
        (np.int8, 100, torch.uint8),
        (np.float32, 17, torch.uint8),
        (np.bool_, 2, torch.uint8),
        (np.uint16, 65536, torch.int32),
        (">u2", 65536, torch.int32),
        (np.uint32, 1000, torch.int32),
    ],
)
def test_levels(archive: Path, dtype: Any, levels: int, stored: torch.dtype) -> None:
    values = pixels(30, 8, levels=levels, dtype=np.int64)
    values[0, 0] = levels - 1
    path = save(archive, x_train=values.astype(dtype), x_test=values[:2].astype(dtype))
    data = arrays(path, levels=levels)
    assert data.scaling == Scaling.interval(levels)
    assert data.train.values.dtype == stored
    assert np.array_equal(data.train.values.numpy(), values)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.int32, np.int64, np.bool_])
def test_integers_need_levels(tmp_path: Path, dtype: Any) -> None:
    path = save(tmp_path / "set.npz", x_train=pixels(5, 8, levels=2, dtype=dtype), x_test=pixels(5, 8))
    with pytest.raises(ValueError, match=rf"'x_train'.*{np.dtype(dtype)}.*levels="):
        arrays(path)


@pytest.mark.parametrize(
    ("dtype", "value", "shown"),
    [(np.uint8, 17, "17"), (np.int16, 300, "300"), (np.int64, -1, "-1"), (np.float32, 0.5, "0.5")],
)
def test_values_outside_the_levels_are_named(tmp_path: Path, dtype: Any, value: float, shown: str) -> None:
    train, test = pixels(5, 8, 8, levels=17, dtype=dtype), pixels(5, 8, 8, levels=17, dtype=dtype)
    test[3, 2, 1] = value
    path = save(tmp_path / "set.npz", x_train=train, x_test=test)
    with pytest.raises(ValueError, match=rf"'x_test'\[3, 0, 2, 1\] .*{shown}.*16"):
        arrays(path, levels=17)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_floats_are_continuous(archive: Path, dtype: Any) -> None:
    train, test = points(40, 2, dtype=dtype), points(7, 2, seed=1, dtype=dtype)
    path = save(archive, x_train=train, x_test=test)
    data = arrays(path)
    assert data.train.values.dtype == torch.float32
    assert equal(data.train.values, train.astype(np.float32))
    assert equal(data.test.values, test.astype(np.float32))
    assert data.scaling == Scaling.standardise(data.train.values)
    assert arrays(path, standardise=False).scaling == Scaling.identity()
    held = arrays(path, holdout=10)
    assert held.scaling == Scaling.standardise(held.train.values) != data.scaling


def test_every_column_of_a_table_is_standardised(tmp_path: Path) -> None:
    """With one scale for all, these columns had standard deviations from 0.0004 to 1.5 in the model's range."""
    path = save(tmp_path / "power.npz", x_train=rows(400).numpy(), x_test=rows(9, seed=1).numpy())
    data = arrays(path)
    y = data.scaling.to_model(data.train.values, dtype=torch.float64)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e39])
def test_non_finite_values_are_named(tmp_path: Path, wrong: float) -> None:
    train, test = points(5, 2), points(5, 2)
    test[4, 1] = wrong
    path = save(tmp_path / "set.npz", x_train=train, x_test=test)
    with pytest.raises(ValueError, match=r"set\.npz.*'x_test'\[4, 1\] .*(nan|inf)"):
        arrays(path)


@pytest.mark.parametrize(
    ("members", "settings", "message"),
    [
        ({"x_test": points(5, 8)}, {}, "uint8.*'x_test'.*float64"),
        ({"x_test": pixels(5, 9)}, {}, r"train.*\(8,\).*test.*\(9,\)"),
        ({}, {"test": None, "test_labels": "y"}, "test_labels='y'.*test=None"),
        ({"x_test": pixels(5, 8)}, {"valid_labels": "y"}, "valid_labels='y'.*valid=None"),
        ({"x_test": pixels(5, 8)}, {"valid": "x_test", "holdout": 2}, "valid='x_test'.*holdout=2"),
        (
            {"x_test": pixels(5, 8), "y": pixels(6, levels=3)},
            {"train_labels": "y"},
            r"'y'.*\(6,\).*\(5,\)",
        ),
        ({"y": pixels(9, levels=3)}, {"test": None, "train_labels": "y"}, r"'y'.*\(9,\).*\(5,\)"),
        ({"y": points(5)}, {"test": None, "train_labels": "y"}, "'y'.*float64"),
        ({"y": -np.arange(5)}, {"test": None, "train_labels": "y"}, r"labels\[1\].*-1"),
        (
            {"x_test": pixels(5, 8), "y": pixels(5)},
            {"train_labels": "y"},
            "train.*test.*labels",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, members: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    path = save(tmp_path / "set.npz", x_train=pixels(5, 8), **members)
    with pytest.raises(ValueError, match=message):
        arrays(path, **settings)
