"""Folders of images that are read as they are needed, with labels from folders or conditions from a table."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sde
from sde.data import UnreadableSample, images

KINDS = ["cow", "ant", "bee"]


def save(file: Path, value: int, shape: tuple[int, ...] = (6, 5, 3)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.random.RandomState(value).randint(200, size=shape) + value).astype(np.uint8)).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 images of three kinds."""
    for i in range(12):
        save(tmp_path / "set" / KINDS[i % 3] / f"{i:02}.png", i)
    return tmp_path / "set"


CSV = "name,kind,age,size,text,other\n" + "".join(
    f'{k}/{i:02}.png,{k},{i},0.5,"a {k}, of {i}",{k}/{i:02}.png\n' for i, k in ((i, KINDS[i % 3]) for i in range(12))
)
COLUMNS = {"label": "kind", "embedding": ["age", "size"], "caption": "text", "image": "other"}


@pytest.mark.parametrize("kind", ["plain", "folders", "table"])
def test_a_stream_has_the_samples_of_the_whole(folder: Path, kind: str) -> None:
    (folder.parent / "a.csv").write_text(CSV)
    table = {"table": folder.parent / "a.csv", "columns": COLUMNS, "file_column": "name"}
    named: dict[str, Any] = {"plain": {}, "folders": {"folder_labels": True}, "table": table}[kind]
    settings: dict[str, Any] = {"size": 4, "channels": 1, "test_fraction": 0.25, "holdout": 2, **named}
    stream, whole = images(folder, memory=0, **settings), images(folder, **settings)
    for name, split in whole.splits.items():
        other = stream.split(name)
        index = torch.arange(len(split)).flip(0)
        (x, condition), (expected, conditions) = other[index], split[index]
        assert torch.equal(x, expected)
        assert (
            condition.keys()
            == conditions.keys()
            == ({"label", "embedding", "image"} if kind == "table" else {"label"} if kind == "folders" else set())
        )
        assert all(torch.equal(condition[key], conditions[key]) for key in conditions)
        assert (other.captions, other.classes) == (split.captions, split.classes)
        for i in range(len(split)):
            file = Path(other.describe(i))
            number = int(file.stem)
            pixels = Image.fromarray(other[torch.tensor([i])][0][0, 0].numpy())
            assert file.parent.parent == folder
            assert pixels.size == (4, 4)
            if kind != "plain":
                assert split.classes == ("ant", "bee", "cow")
                assert split.labels is not None
                assert split.classes[int(split.labels[i])] == file.parent.name
            if kind == "table":
                assert split.captions is not None
                assert split.captions[i] == f"a {file.parent.name}, of {number}"
                assert conditions["embedding"][len(split) - 1 - i].tolist() == [number, 0.5]
                image = split[torch.tensor([i])][1]["image"]
                assert torch.equal((image + 1.0) * 128.0 - 0.5, split[torch.tensor([i])][0].float())
    assert images(folder, memory=0, **settings).fingerprint == stream.fingerprint
    assert images(folder, memory=0, **{**settings, "size": 5}).fingerprint != stream.fingerprint
    copied = pickle.loads(pickle.dumps(stream))
    assert torch.equal(copied.train[torch.arange(3)][0], whole.train[torch.arange(3)][0])


def test_a_renamed_file_is_other_data(folder: Path) -> None:
    before = images(folder, memory=0).train.source  # type: ignore[attr-defined]
    second = Path(before.describe(1))
    second.rename(second.with_name("05.png"))  # whose place stays
    after = images(folder, memory=0).train.source  # type: ignore[attr-defined]
    assert (before.files != after.files).any()
    assert before.fingerprint != after.fingerprint
    assert len(before) == len(after)


def test_names_of_any_kind(tmp_path: Path) -> None:
    """Beyond ASCII, and those that are no text at all."""
    for i, name in enumerate(("ä – ö.png", "b.png", os.fsdecode(b"c\xff.png"))):
        save(tmp_path / name, i)
    data = images(tmp_path, memory=0, test_fraction=0.4)
    whole = images(tmp_path, test_fraction=0.4)
    assert torch.equal(data.train[torch.arange(2)][0], whole.train[torch.arange(2)][0])
    assert len(data.fingerprint) == 64


def test_splits_from_folders(tmp_path: Path) -> None:
    for i in range(9):
        save(tmp_path / ("train" if i < 5 else "val" if i < 7 else "test/deep") / "ba"[i % 2] / f"{i}.png", i)
    data = images(tmp_path, train="train", test="test/deep", valid="val", folder_labels=True, memory=0)
    assert [len(split) for split in (data.train, data.split("valid"), data.test)] == [5, 2, 2]
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [0, 1]
    assert data.test.describe(1) == str(tmp_path / "test/deep/b/8.png")
    part = images(tmp_path, train="train", test_fraction=0.4)
    assert (len(part.train), len(part.test)) == (3, 2)
    for wrong, message in (
        ({"test": "test"}, "train=None.*test='test'"),
        ({"train": "train", "valid": "val", "holdout": 1}, "valid='val'.*holdout=1"),
        ({"train": "train", "test": "none"}, "none does not exist"),
        ({"train": "train/a", "folder_labels": True}, r"train/a: the file '1\.png' lies in no folder"),
    ):
        with pytest.raises((ValueError, NotADirectoryError), match=message):
            images(tmp_path, **wrong)  # type: ignore[arg-type]


def test_the_middle_is_cut_out_before_the_size_changes(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1, (20, 30, 3))
    save(tmp_path / "b.png", 2, (20, 30, 3))
    middle = np.asarray(Image.open(tmp_path / "a.png"))[5:15, 10:20].transpose(2, 0, 1)
    pixels = sde.data.image_files.Pixels(3, crop=10)
    assert np.array_equal(pixels(tmp_path / "a.png"), middle)
    assert images(tmp_path, crop=(12, 8), size=4, test_fraction=0.5).shape == (3, 4, 4)
    with pytest.raises(ValueError, match=r"a\.png.*20x30 pixels are less than crop=25x25"):
        images(tmp_path, crop=25)


def test_a_damaged_file_is_named_at_its_step_only(folder: Path) -> None:
    good = sde.Batches(images(folder, test_fraction=0.25).train, 4)
    bad = sorted(folder.rglob("*.png"))[7]
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    data = images(folder, test_fraction=0.25, memory=0)
    batches = sde.Batches(data.train, 4, workers=1)
    names = [[data.train.describe(i) for i in good[step].index.tolist()] for step in range(3)]
    (step,) = [i for i, files in enumerate(names) if str(bad) in files] or [0]
    for i in range(step):
        assert torch.equal(batches[i].values, good[i].values)
    if any(str(bad) in files for files in names):
        with pytest.raises(UnreadableSample, match=rf"^the image {bad} cannot be read"):
            batches[step]
        bad.write_bytes(content)
        assert torch.equal(batches[step].values, good[step].values)
    save(bad, 3, (7, 5, 3))
    with pytest.raises(UnreadableSample, match=rf"one size.*{bad} is 7x5"):
        [batches.data[torch.tensor([i])] for i in range(9)]
    with pytest.raises(ValueError, match="one size"):
        images(folder)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("file,label\na.png,1\n", None, r"no line for 'b\.png'"),
        ("file,label\na.png,1\nb.png,\n", None, r"line 3: 'b\.png' has no value in the column 'label'.*'label'"),
        ("file,label\na.png,1\nb.png\n", None, r"line 3: 'b\.png' has no value"),
        ("file,label\na.png,1\nb.png,1\na.png,1\n", None, r"line 4: a second line for 'a\.png'"),
        ("file,kind\na.png,1\n", None, r"no column 'label'.*'file', 'kind'"),
        ("name,label\na.png,1\n", None, r"no column 'file'"),
        ("file,e\na.png,1\nb.png,x\n", {"embedding": "e"}, r"line 3: 'b\.png' has \['x'\].*'embedding'.*finite"),
        ("file,e\na.png,1\nb.png,nan\n", {"embedding": "e"}, r"line 3.*nan.*finite"),
        ("file,e\na.png,1\n", {"label": ["e", "e"]}, r"one column.*'label'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, text: str, columns: Any, message: str) -> None:
    save(tmp_path / "set" / "a.png", 0)
    save(tmp_path / "set" / "b.png", 1)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        images(tmp_path / "set", table=tmp_path / "a.csv", columns=columns, test_fraction=0.5)


def test_what_a_table_does_not_know_is_not_known(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "set" / f"{name}.png", 0)
    (tmp_path / "a.csv").write_text("file,age,height,text\na.png,,1.5,\nb.png,2,0,a seven\n")
    columns = {"embedding": ["age", "height"], "caption": "text"}
    data = images(tmp_path / "set", table=tmp_path / "a.csv", columns=columns, test_fraction=0.5)
    found = [(split[torch.tensor([0])][1]["embedding"][0], split.captions) for split in data.splits.values()]
    known = {str(captions): embedding.tolist() for embedding, captions in found}
    assert known["['a seven']"] == [2.0, 0.0]
    assert np.allclose(known["['']"], [np.nan, 1.5], equal_nan=True)


def test_labels_that_are_numbers_stay_the_same(tmp_path: Path) -> None:
    save(tmp_path / "set" / "a.png", 0)
    save(tmp_path / "set" / "b.png", 1)
    (tmp_path / "a.csv").write_text("\ufefffile,label\nb.png,12\na.png,7\nc.png,9\n", encoding="utf-8")
    data = images(tmp_path / "set", table=tmp_path / "a.csv", test_fraction=0.5)
    labels = {int(split.labels[0]) for split in data.splits.values() if split.labels is not None}
    assert (labels, data.train.classes, data.classes) == ({7, 12}, None, 13)
    with pytest.raises(ValueError, match="both"):
        images(tmp_path / "set", table=tmp_path / "a.csv", folder_labels=True)


def test_encoded_captions_are_conditions() -> None:
    x = torch.zeros(3, 2)
    split = sde.data.Split(x, captions=["a", "bb", "ccc"])
    tokens = torch.tensor([[len(text)] for text in split.captions or ()])
    data = sde.data.Conditioned(split, {"tokens": tokens})
    rest, part = sde.data.split_off(data, 1)
    for source in (rest, part):
        for i, text in enumerate(source.captions or ()):
            assert int(source[torch.tensor([i])][1]["tokens"]) == len(text)
    assert (
        len({split.fingerprint, data.fingerprint, sde.data.Conditioned(split, {"tokens": tokens + 1}).fingerprint}) == 3
    )
    with pytest.raises(ValueError, match=r"'tokens'.*3"):
        sde.data.Conditioned(split, {"tokens": tokens[:2]})
