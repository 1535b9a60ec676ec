"""DataSet: splits by name, a fingerprint of the content, and the refusal of what could not be trained on."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from sde.data import DataSet, Scaling, Split, hold_out, split_off


def pixels(n: int, seed: int = 0, levels: int = 17) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (n, 1, 3, 2), generator=g, dtype=torch.uint8)


def discrete(train: Split, test: Split | None = None, valid: Split | None = None) -> DataSet:
    return DataSet("pixels", Scaling.interval(17), train, test or Split(pixels(3, seed=1)), valid)


def test_splits_by_name() -> None:
    train, test, valid = Split(pixels(5)), Split(pixels(3)), Split(pixels(2))
    data = discrete(train, test, valid)
    assert data.split("train") is train
    assert data.split("test") is test
    assert data.split("valid") is valid
    assert (len(train), len(test), len(valid)) == (5, 3, 2)
    assert data.shape == (1, 3, 2)
    with pytest.raises(ValueError, match=r"'dev'.*train, test, valid$"):
        data.split("dev")
    with pytest.raises(ValueError, match=r"'valid'.*train, test;.*holdout="):
        discrete(train, test).split("valid")


def test_classes() -> None:
    def labelled(*labels: int) -> Split:
        return Split(pixels(len(labels)), torch.tensor(labels))

    assert discrete(Split(pixels(5))).classes is None
    assert discrete(labelled(0, 1, 1), labelled(3, 0)).classes == 4


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        discrete(Split(pixels(5))).name = "other"  # type: ignore[misc]


def test_fingerprint_follows_the_content() -> None:
    values, labels = pixels(5), torch.arange(5)
    base = Split(values, labels).fingerprint
    assert len(base) == 64
    assert Split(values.clone(), labels.clone()).fingerprint == base
    changed = values.clone()
    changed[4, 0, 2, 1] ^= 1
    others = [
        Split(changed, labels),
        Split(values.flip(0), labels),
        Split(values.reshape(5, 1, 2, 3), labels),
        Split(values.to(torch.int32), labels),
        Split(values, labels.flip(0)),
        Split(values),
        Split(values[:4], labels[:4]),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_fingerprint_of_the_whole() -> None:
    train, test, valid = Split(pixels(5)), Split(pixels(3, 1)), Split(pixels(3, 2))
    base = discrete(train, test).fingerprint
    assert discrete(Split(pixels(5)), Split(pixels(3, 1))).fingerprint == base
    others = [
        discrete(test, train),
        discrete(train, valid),
        discrete(train, test, valid),
        discrete(train, valid, test),
    ]
    assert len({base, *(other.fingerprint for other in others)}) == 1 + len(others)
    rescaled = DataSet("other name", Scaling.interval(17, 0.0, 1.0), train, test)
    assert rescaled.fingerprint == base


def test_fingerprint_ignores_strides() -> None:
    values = pixels(4)
    transposed = values.transpose(2, 3).contiguous().transpose(2, 3)
    assert transposed.stride() != values.stride()
    assert Split(transposed).fingerprint == Split(values).fingerprint


def test_values_outside_the_levels_are_named() -> None:
    bad = pixels(4)
    bad[2, 0, 1, 1] = 17
    with pytest.raises(ValueError, match=r"pixels: test\[2, 0, 1, 1\] .*17.*16"):
        discrete(Split(pixels(4)), Split(bad))
    with pytest.raises(ValueError, match=r"valid\[2, 0, 1, 1\] .*17"):
        discrete(Split(pixels(4)), Split(pixels(4)), Split(bad))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("split", ["train", "test"])
def test_non_finite_values_are_named(split: str, wrong: float) -> None:
    values = {"train": torch.zeros(5, 2), "test": torch.zeros(4, 2)}
    values[split][3, 1] = wrong
    with pytest.raises(ValueError, match=rf"points: {split}\[3, 1\] .*{wrong}.*finite"):
        DataSet("points", Scaling.identity(), Split(values["train"]), Split(values["test"]))


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (3,), (3, 0, 2)])
def test_empty_splits_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"train.*{re.escape(str(shape))}.*\(N, D\)"):
        DataSet("points", Scaling.identity(), Split(torch.zeros(shape)), Split(torch.zeros(3, 2)))
    if shape[0] == 0:
        with pytest.raises(ValueError, match=r"test.*\(0, 2\)"):
            DataSet("points", Scaling.identity(), Split(torch.zeros(3, 2)), Split(torch.zeros(shape)))


def test_differing_event_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train.*\(1, 3, 2\).*test.*\(1, 2, 3\)"):
        discrete(Split(pixels(4)), Split(pixels(4).transpose(2, 3)))


def test_wrong_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train.*torch\.float32.*torch\.uint8"):
        discrete(Split(pixels(4).float()))
    with pytest.raises(ValueError, match=r"train.*torch\.int64.*float.*levels=None"):
        DataSet("points", Scaling.identity(), Split(torch.ones(3, 2, dtype=torch.int64)), Split(torch.ones(3, 2)))
    double = Split(torch.ones(3, 2, dtype=torch.float64))
    assert DataSet("points", Scaling.identity(), double, double).train.values.dtype == torch.float64


def test_labels_for_all_splits_or_none() -> None:
    with pytest.raises(ValueError, match=r"train.*test.*labels"):
        discrete(Split(pixels(4), torch.arange(4)), Split(pixels(3)))
    with pytest.raises(ValueError, match=r"train.*valid.*labels"):
        discrete(Split(pixels(4)), Split(pixels(3)), Split(pixels(3), torch.arange(3)))


def test_labels_are_whole_numbers_of_any_dtype_or_truth_values() -> None:
    values = np.zeros((4, 2), np.float32)
    for labels in (np.array([1, 0, 1, 1]), torch.tensor([1, 0, 1, 1], dtype=torch.uint8), [True, False, True, True]):
        split: Any = Split(values, labels)  # type: ignore[arg-type]
        assert (split.values.shape, split.labels.dtype, split.labels.tolist()) == ((4, 2), torch.int64, [1, 0, 1, 1])
    with pytest.raises(ValueError, match=r"train to be of the class Source, such as sde\.data\.Split.*got a Tensor"):
        DataSet("tensors", Scaling.identity(), torch.zeros(4, 2), Split(values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.arange(3), r"\(3,\).*torch\.int64.*\(4,\)"),
        (torch.arange(5), r"\(5,\)"),
        (torch.arange(4.0), r"whole numbers, got torch\.float32"),
        (torch.arange(4)[:, None], r"\(4, 1\)"),
        (torch.tensor([0, 1, -2, -3]), r"labels\[2\].*-2"),
    ],
)
def test_wrong_labels_are_refused(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Split(pixels(4), labels)


@pytest.mark.parametrize(("part", "count"), [(0.25, 5), (5, 5), (5.0, 5), (1, 1), (19, 19), (0.95, 19)])
def test_split_off_is_the_stated_permutation(part: float, count: int) -> None:
    split = Split(torch.arange(20.0).reshape(20, 1), torch.arange(20))
    rest, taken = split_off(split, part, seed=3)
    expected = sorted(np.random.RandomState(3).permutation(20)[:count].tolist())
    assert taken.labels is not None
    assert rest.labels is not None
    assert taken.labels.tolist() == expected
    assert taken.values[:, 0].tolist() == expected
    assert rest.labels.tolist() == [i for i in range(20) if i not in expected]
    assert rest.values[:, 0].tolist() == rest.labels.tolist()


@pytest.mark.parametrize("part", [-1, -0.5, 0, 0.01, 0.99, 20, 21, 2.5, math.inf, math.nan])
def test_split_off_refuses(part: float) -> None:
    with pytest.raises(ValueError, match=rf"{part}.* 20 samples"):
        split_off(Split(torch.zeros(20, 1)), part)


def test_hold_out() -> None:
    train = Split(torch.arange(20.0).reshape(20, 1))
    assert hold_out(train, 0) == (train, None)
    rest, valid = hold_out(train, 4)
    assert valid is not None
    assert (len(rest), len(valid)) == (16, 4)
    again = hold_out(train, 4)[1]
    other = hold_out(train, 4, seed=1)[1]
    assert again is not None
    assert other is not None
    assert again.fingerprint == valid.fingerprint != other.fingerprint
