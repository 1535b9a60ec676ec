"""Data sets of Hugging Face's package through the protocol; skipped where the package is not installed."""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sde
from sde.data import HuggingFaceRows, UnreadableSample, huggingface

RANDOM = np.random.RandomState(0)
PIXELS = RANDOM.randint(256, size=(20, 6, 5, 3)).astype(np.uint8)
TABLE = {
    "image": [Image.fromarray(p) for p in PIXELS],
    "kind": [i % 3 for i in range(20)],
    "text": [f"number {i}" for i in range(20)],
    "age": [float(i) for i in range(20)],
    "vector": [[0.5 * i, 1.0, -2.0 * i] for i in range(20)],
    "levels": [[i % 5, 4, 0] for i in range(20)],
}


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets", reason="the extra `huggingface` is not installed")


@pytest.fixture
def rows(datasets: Any) -> Any:
    found = datasets.Dataset.from_dict(TABLE)
    return found.cast_column("kind", datasets.ClassLabel(names=["ant", "bee", "cow"]))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"score-sde\[huggingface\]"):
        huggingface("anywhere")


def test_rows_are_samples(rows: Any) -> None:
    source = HuggingFaceRows(rows, label="kind", condition={"age": "age", "embedding": "vector"}, caption="text")
    index = torch.tensor([7, 0, 19])
    values, condition = source[index]
    assert np.array_equal(values.numpy(), PIXELS[index.numpy()].transpose(0, 3, 1, 2))
    assert condition["label"].tolist() == [1, 0, 1]
    assert condition["age"].tolist() == [[7.0], [0.0], [19.0]]
    assert condition["embedding"][0].tolist() == [3.5, 1.0, -14.0]
    assert (source.classes, list(source.captions or ())[3]) == (("ant", "bee", "cow"), "number 3")
    assert (
        source.fingerprint
        == HuggingFaceRows(rows, label="kind", condition=source.condition, caption="text").fingerprint
    )
    assert source.fingerprint != HuggingFaceRows(rows, label="kind").fingerprint
    ahead, here = sde.Batches(source, 6, workers=1), sde.Batches(pickle.loads(pickle.dumps(source)), 6)
    for number in range(4):
        assert torch.equal(ahead[number].values, here[number].values)


def test_saved_data_sets_are_loaded(datasets: Any, rows: Any, tmp_path: Path) -> None:
    rows.save_to_disk(str(tmp_path / "one"))
    data = huggingface(str(tmp_path / "one"), test=None, label="kind", holdout=3, size=4, channels=1)
    assert (data.name, data.shape, data.classes) == ("one", (1, 4, 4), 3)
    assert [len(split) for split in data.splits.values()] == [15, 2, 3]
    datasets.DatasetDict({"train": rows, "test": rows.select(range(4))}).save_to_disk(str(tmp_path / "two"))
    data = huggingface(str(tmp_path / "two"), column="vector")
    assert (data.shape, data.scaling.levels, len(data.test)) == ((3,), None, 4)
    data = huggingface(str(tmp_path / "two"), column="levels", levels=5)
    assert (data.scaling.levels, data.train.first.dtype) == (5, torch.uint8)
    for wrong, message in (
        ({"valid": "dev"}, "no split 'dev': it has 'train', 'test'"),
        ({"column": "pixels"}, "no column 'pixels'.*'image'"),
        ({"label": "class"}, "no column 'class'"),
        ({"column": "levels"}, "levels="),
        ({"valid": "test", "holdout": 2}, "valid='test'.*holdout=2"),
        ({"test": None, "test_fraction": 2}, "test_fraction=2"),
    ):
        with pytest.raises(ValueError, match=message):
            huggingface(str(tmp_path / "two"), **wrong)  # type: ignore[arg-type]


def test_missing_and_damaged_entries_are_named(datasets: Any) -> None:
    table = {"x": [[1.0, 2.0]] * 4, "y": [0, 1, None, 1], "e": [1.0, 2.0, 3.0, None]}
    found = datasets.Dataset.from_dict(table)
    for wrong in ({"label": "y"}, {"condition": {"embedding": "e"}}):
        with pytest.raises(ValueError, match=r"row [23] has no value in the column '[ye]'"):
            HuggingFaceRows(found, "x", **wrong)
    assert HuggingFaceRows(found.select([0, 1]), "x", label="y").labels is not None
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(buffer, "PNG")
    images = [{"bytes": buffer.getvalue()[: None if i != 2 else 60], "path": None} for i in range(4)]
    found = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    source = HuggingFaceRows(found)
    assert len(source[torch.tensor([0, 1, 3])][0]) == 3
    with pytest.raises(UnreadableSample, match="row 2 of the column 'image' cannot be read"):
        source[torch.tensor([0, 2])]
    sizes = {"image": [Image.fromarray(PIXELS[0]), Image.fromarray(PIXELS[0][:4])]}
    with pytest.raises(UnreadableSample, match=r"row 1.*one size, \(6, 5\), got \(4, 5\).*size="):
        HuggingFaceRows(datasets.Dataset.from_dict(sizes))[torch.tensor([0, 1])]
