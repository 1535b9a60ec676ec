"""Rows that are read as they are needed: the samples of the whole in memory, row by row, from every kind of file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import sde
from sde.data import DataSet, UnreadableSample, arrays
from sde.data.rows import Rows

RANDOM = np.random.RandomState(0)
VALUES = {
    "pixels": RANDOM.randint(256, size=(40, 6, 5, 3)).astype(np.uint8),
    "wide": RANDOM.randint(65536, size=(40, 6, 5)).astype(">u2"),
    "signals": RANDOM.normal(size=(40, 30, 2)).astype(np.float64),
    "table": RANDOM.normal(size=(40, 7)).astype(np.float16),
    "volumes": RANDOM.randint(256, size=(40, 5, 6, 7, 1)).astype(np.uint8),
}
CONDITIONS = {
    "y": np.arange(40) % 7,
    "e": RANDOM.normal(size=(40, 3)),
    "tokens": RANDOM.randint(9, size=(40, 5)).astype(np.int16),
    "tokens_mask": np.arange(200).reshape(40, 5) % 3 > 0,
    "image": RANDOM.randint(256, size=(40, 6, 5, 3)).astype(np.uint8),
}
NAMES = {"embedding": "e", "tokens": "tokens", "tokens_mask": "tokens_mask", "image": "image"}


def save(path: Path, **members: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, members["x_train"])
    elif path.suffix == ".npz":
        (np.savez_compressed if path.stem == "compressed" else np.savez)(path, **members)
    else:
        with h5py.File(path, "w") as file:
            for name, member in members.items():
                chunks = {"chunks": (3, *member.shape[1:]), "compression": "gzip"} if path.stem == "compressed" else {}
                file.create_dataset(name, data=member, **chunks)
    return path


@pytest.fixture(autouse=True)
def _nothing_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """But labels, and arrays in memory."""
    whole = Rows.whole

    def refuse(rows: Rows) -> Any:
        assert rows.memory or "'y'" in rows.name
        return whole(rows)

    monkeypatch.setattr(Rows, "memory", False, raising=False)
    monkeypatch.setattr(Rows, "whole", refuse)


def both(path: Path, **settings: Any) -> tuple[DataSet, DataSet]:
    stream = arrays(path, test=None, holdout=5, memory=0, **settings)
    Rows.memory = True  # type: ignore[attr-defined]
    return stream, arrays(path, test=None, holdout=5, **settings)


@pytest.mark.parametrize("file", ["a.npy", "a.npz", "a.h5", "compressed.npz", "compressed.h5"])
def test_a_stream_has_the_samples_of_the_whole(tmp_path: Path, file: str) -> None:
    for kind, values in VALUES.items():
        named: dict[str, Any] = {}
        if file != "a.npy":
            named = {"train_labels": "y", "train_conditions": NAMES}
        Rows.memory = False  # type: ignore[attr-defined]
        (tmp_path / kind).mkdir()
        path = save(tmp_path / kind / file, x_train=values, **CONDITIONS)
        stream, whole = both(path, levels=65536 if kind == "wide" else None, **named)
        Rows.memory = file == "compressed.npz"  # type: ignore[attr-defined]
        assert stream.scaling == whole.scaling
        assert stream.shape == whole.shape
        for name, split in whole.splits.items():
            index = torch.arange(len(split)).flip(0)[1:]
            (x, condition), (expected, others) = stream.split(name)[index], split[index]
            assert torch.equal(x, expected)
            assert x.dtype == expected.dtype
            assert condition.keys() == others.keys()
            assert all(torch.equal(condition[key], others[key]) for key in others)
        assert stream.classes == whole.classes
        again = arrays(path, test=None, holdout=5, memory=0, levels=65536 if kind == "wide" else None, **named)
        assert again.fingerprint == stream.fingerprint != whole.fingerprint
    assert stream.split("valid").describe(0).startswith("row ")
    if named:
        embedding, image = others["embedding"], others["image"]
        assert (embedding.dtype, others["tokens"].dtype) == (torch.float32, torch.int64)
        assert others["tokens_mask"].dtype == torch.bool
        assert image.shape[1:] == (3, 6, 5)
        assert ((image + 1.0) * 128.0 - 0.5).min() >= 0
        assert image.abs().max() < 1.0


@pytest.mark.parametrize("file", ["a.npz", "a.h5"])
def test_captions(tmp_path: Path, file: str) -> None:
    texts, bytes_too = [f"number {i} – ä" for i in range(40)], file.endswith("h5")
    path = tmp_path / file
    if bytes_too:
        with h5py.File(path, "w") as target:
            target["x_train"] = VALUES["table"]
            target.create_dataset("text", data=texts, dtype=h5py.string_dtype())
            target["number"] = np.arange(40)
    else:
        np.savez(path, x_train=VALUES["table"], text=np.array(texts), number=np.arange(40))
    Rows.memory = True  # type: ignore[attr-defined]
    for memory in (0, 1.0):
        data = arrays(path, test=None, train_captions="text", memory=memory)
        both = [*(data.train.captions or ()), *(data.test.captions or ())]
        assert sorted(both) == sorted(texts)
    with pytest.raises(ValueError, match=r"'number'.*int64.*texts"):
        arrays(path, test=None, train_captions="number")


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    prints = set()
    for change in range(6):
        x, e = VALUES["table"].copy(), CONDITIONS["e"].copy()
        if change == 1:
            x[39, 3] += 1
        if change == 2:
            e[0, 0] += 1
        x = x[:39] if change == 3 else x.astype(np.float32) if change == 4 else x
        path = save(tmp_path / "a.npz", x_train=x, e=e[: len(x)])
        data = arrays(path, test=None, memory=0, train_conditions={"other" if change == 5 else "embedding": "e"})
        prints.add(data.fingerprint)
    assert len(prints) == 6


@pytest.mark.parametrize("file", ["a.npy", "a.npz", "a.h5"])
def test_every_process_opens_the_file_for_itself(tmp_path: Path, file: str) -> None:
    """Also one that gets the data by pickle."""
    data = arrays(save(tmp_path / file, x_train=VALUES["pixels"]), test=None, memory=0)
    here, ahead = sde.Batches(data.train, 8), sde.Batches(data.train, 8, workers=2)
    for number in range(6):
        assert torch.equal(ahead[number].values, here[number].values)
    copied = pickle.loads(pickle.dumps(data))
    assert torch.equal(copied.train[torch.arange(5)][0], data.train[torch.arange(5)][0])


def test_bad_rows_are_named_when_they_are_met(tmp_path: Path) -> None:
    x, e = VALUES["pixels"] % 16, CONDITIONS["e"].copy()
    x[31, 2, 1, 0], e[33, 2], e[34, 0] = 17, np.nan, np.inf
    path = save(tmp_path / "a.npz", x_train=x, e=e)
    named = {"embedding": "e", "mass": "e"}
    data = arrays(path, test=None, levels=16, memory=0, train_conditions=named, test_fraction=0.05)
    train = data.train.source  # type: ignore[attr-defined]
    good = torch.tensor([30, 32, 0, 39])
    assert torch.equal(train[good][0], torch.from_numpy(x[good.numpy()].transpose(0, 3, 1, 2)))
    with pytest.raises(UnreadableSample, match=r"row 31 of .*a\.npz: array 'x_train'\[0, 0, 2, 1\] is 17.*15"):
        train[torch.tensor([4, 31, 2])]
    with pytest.raises(UnreadableSample, match=r"'mass' of row 33 of .*\[0, 2\] is nan: expected a finite number$"):
        train[torch.tensor([4, 33, 2])]
    with pytest.raises(UnreadableSample, match=r"'embedding' of row 34 of .*\[0, 0\] is inf.*or NaN for what is not"):
        train[torch.tensor([34])]
    known = arrays(path, test=None, levels=16, memory=0, train_conditions={"embedding": "e"}, test_fraction=0.05)
    found = known.train.source[torch.tensor([33])][1]["embedding"]  # type: ignore[attr-defined]
    assert found.isnan().tolist() == [[i == 2 for i in range(found.shape[1])]]
    for suffix in (".npy", ".h5"):
        path = save(tmp_path / f"cut{suffix}", x_train=np.zeros((4000, 100)))
        data = arrays(path, test=None, memory=0, standardise=False)
        last = data.train.source  # type: ignore[attr-defined]
        path.write_bytes(path.read_bytes()[:1_000_000])
        with pytest.raises(UnreadableSample, match=rf"row 3999 of .*cut\{suffix}.*cannot be read"):
            last[torch.tensor([7, 3999])]


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "compressed.h5", x_train=VALUES["table"])
    with h5py.File(path) as file:
        chunk = file["x_train"].id.get_chunk_info(5)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 10] ^= 255
    path.write_bytes(content)
    data = arrays(path, test=None, memory=0, standardise=False).train.source  # type: ignore[attr-defined]
    with pytest.raises(UnreadableSample, match=r"row 1[567] of .*compressed\.h5.*cannot be read"):
        data[torch.tensor([0, 15, 16, 17])]
    assert len(data[torch.tensor([0, 20])][0]) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_conditions": {"embedding": "short"}}, r"'embedding'.*'short' has 39 rows: expected 40"),
        ({"test": "x_train", "train_conditions": {"embedding": "e"}}, r"\['embedding'\].*test has \[\]"),
        ({"test_conditions": {"embedding": "e"}}, r"test_conditions=.*test=None"),
        ({"valid_conditions": {"embedding": "e"}}, r"valid_conditions=.*valid=None"),
        ({"train_conditions": {"embedding": "text"}}, r"'text'.*dtype"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    named = {"short": np.zeros((39, 2)), "text": np.array(["a"] * 40), **CONDITIONS}
    path = save(tmp_path / "a.npz", x_train=VALUES["table"], **named)
    with pytest.raises(ValueError, match=message):
        arrays(path, memory=0, **{"test": None, **settings})
