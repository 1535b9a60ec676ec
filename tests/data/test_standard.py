"""Standard data sets: downloaded from a server on this machine, checked, and read as they were written."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.published import idx, tar, write_faces

from sde.data import DataSet, celeba, cifar10, downloads, fashion_mnist, mnist, standard

RANDOM = np.random.RandomState(0)
IMAGES = [RANDOM.randint(256, size=(n, 28, 28)).astype(np.uint8) for n in (12, 5)]
LABELS = [RANDOM.randint(10, size=n).astype(np.uint8) for n in (12, 5)]
RECORDS = [RANDOM.randint(256, size=(3, 3073)).astype(np.uint8) for _ in range(6)]
for records in RECORDS:
    records[:, 0] %= 10


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "cut" in self.path:  # fewer bytes than were announced
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"few")
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a directory with the files, whose checksums the library knows."""
    (tmp_path / "served").mkdir()
    contents = {}
    for name in ("mnist", "fashion_mnist"):
        named = zip(standard._FILES[name], [idx(a) for pair in zip(IMAGES, LABELS) for a in pair])
        contents.update({text.split()[0]: content for text, content in named})
    contents["cifar-10-binary.tar.gz"] = tar(RECORDS)
    lines = {}
    for name, content in contents.items():
        (tmp_path / "served" / name).write_bytes(content)
        lines[name] = f"{name} sha256:{hashlib.sha256(content).hexdigest()}"
    known = {name: tuple(lines[text.split()[0]] for text in texts) for name, texts in standard._FILES.items()}
    monkeypatch.setattr(standard, "_FILES", known)
    monkeypatch.setattr(standard, "_CIFAR10", lines["cifar-10-binary.tar.gz"])
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Quiet.asked.clear()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=functools.partial(running.serve_forever, poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def check(data: DataSet, train: np.ndarray, test: np.ndarray, y_train: np.ndarray, y_test: np.ndarray) -> None:
    for split, values, labels in ((data.train, train, y_train), (data.test, test, y_test)):
        index = torch.arange(len(split))
        x, condition = split[index]
        assert np.array_equal(x.numpy(), values)
        assert np.array_equal(condition["label"].numpy(), labels)


def test_data_sets_are_downloaded_once_and_read(server: str, tmp_path: Path) -> None:
    rows = np.concatenate(RECORDS[:5])
    for _ in range(2):
        for load, name in ((mnist, "mnist"), (fashion_mnist, "fashion_mnist")):
            data = load(mirror=server)
            check(data, IMAGES[0][:, None], IMAGES[1][:, None], *LABELS)
            assert (data.name, data.scaling.levels, data.shape) == (name, 256, (1, 28, 28))
        data = cifar10(mirror=f"{server}/", low=0.0)
        images = [r[:, 1:].reshape(-1, 3, 32, 32) for r in (rows, RECORDS[5])]
        check(data, *images, rows[:, 0], RECORDS[5][:, 0])
        assert data.train.classes is not None
        assert (data.train.classes[3], data.scaling.shift) == ("cat", 0.0)
        assert len(Quiet.asked) == 9
    folder = tmp_path / "cache" / "sde" / "data" / "mnist"
    assert sorted(p.name for p in folder.iterdir()) == sorted(text.split()[0] for text in standard._FILES["mnist"])
    offline = mnist(folder, mirror="http://127.0.0.1:9", download=False, holdout=2)
    assert (len(offline.train), len(offline.split("valid"))) == (10, 2)
    with pytest.raises(FileNotFoundError, match=r"none.*train-images.*download=true"):
        mnist(tmp_path / "none", download=False)
    np.savez(tmp_path / "a.npz", x_train=IMAGES[0], x_test=IMAGES[1], y_train=LABELS[0], y_test=LABELS[1])
    assert mnist(tmp_path / "a.npz").fingerprint == mnist(folder).fingerprint


def test_what_is_not_the_published_file_is_refused_and_leaves_nothing(server: str, tmp_path: Path) -> None:
    served = tmp_path / "served" / "train-labels-idx1-ubyte.gz"
    right = served.read_bytes()
    served.write_bytes(right[:-9] + b"\1" + right[-8:])
    folder = tmp_path / "mine"
    with pytest.raises(
        ValueError, match=r"not the published train-labels.*expected sha256 \w{64}, got \w{64}.*mirror="
    ):
        mnist(folder, mirror=server)
    assert [p.name for p in folder.iterdir()] == ["train-images-idx3-ubyte.gz"]
    for name, mirror in (("gone", f"{server}/gone"), ("cut", f"{server}/cut"), ("closed", "http://127.0.0.1:9")):
        with pytest.raises(ConnectionError, match=r"train-labels-idx1-ubyte\.gz cannot be downloaded.*mirror=.*path="):
            mnist(folder, mirror=mirror)
        assert len(list(folder.iterdir())) == 1, name
    served.write_bytes(right)
    check(mnist(folder, mirror=server), IMAGES[0][:, None], IMAGES[1][:, None], *LABELS)


def test_damaged_files_are_named(server: str, tmp_path: Path) -> None:
    mnist(mirror=server)
    cifar10(mirror=server)
    cache = downloads.cache()
    for load, file in ((mnist, "mnist/t10k-images-idx3-ubyte.gz"), (cifar10, "cifar10/cifar-10-binary.tar.gz")):
        content = (cache / file).read_bytes()
        for damaged in (content[: len(content) // 2], b"", b"no archive"):
            (cache / file).write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{file} cannot be read.*delete it"):
                load()
    (cache / "mnist/t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x0d\1\0\0\0\1aaaa"))
    with pytest.raises(ValueError, match="IDX"):
        mnist()


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path)


def test_celeba(faces: Path) -> None:
    data = celeba(faces, memory=0, label="Smiling", attributes=["Young", "Bald"])
    assert data.shape == (3, 64, 64)
    assert [len(split) for split in data.splits.values()] == [3, 3, 3]
    assert data.train.describe(2).endswith("img_align_celeba/000003.jpg")
    valid = data.split("valid")
    assert valid.labels is not None
    assert valid.labels.tolist() == [1, 0, 1]
    assert valid[torch.arange(3)][1]["embedding"].tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    picture = Image.open(faces / "img_align_celeba/000005.jpg").crop((19, 39, 159, 179))
    expected = np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert np.array_equal(valid[torch.tensor([1])][0][0].numpy(), expected)
    assert celeba(faces, size=32).train.whole is not None
    with pytest.raises(ValueError, match=r"'Happy'.*Smiling, Bald, Young"):
        celeba(faces, label="Happy")
    (faces / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(ValueError, match="part 1, valid"):
        celeba(faces)
    with pytest.raises(FileNotFoundError, match=r"list_eval_partition\.txt.*CelebA"):
        celeba(faces / "img_align_celeba")
