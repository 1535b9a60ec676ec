"""Small files in the formats of published data sets."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def idx(array: np.ndarray) -> bytes:
    """A compressed file of MNIST's format."""
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), mtime=0)


def tar(parts: Sequence[np.ndarray]) -> bytes:
    """CIFAR-10's archive of five parts and the test set, each with shape (n, 3073)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        names = ["readme.html", *(f"data_batch_{i}.bin" for i in (3, 1, 2, 5, 4)), "test_batch.bin"]
        for name in names:
            number = 6 if name.startswith("test") else int(name[11]) if name.startswith("data") else 0
            content = parts[number - 1].tobytes() if number else b"text"
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_faces(folder: Path) -> Path:
    """A folder like that of CelebA, with three faces in each part."""
    (folder / "img_align_celeba").mkdir()
    names, random = [f"{i:06}.jpg" for i in range(1, 10)], np.random.RandomState(0)
    for name in names:
        pixels = random.randint(256, size=(218, 178, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
    partition = "".join(f"{name} {i // 3}\n" for i, name in enumerate(names))
    (folder / "list_eval_partition.txt").write_text(partition)
    lines = "".join(f"{name}  {'1' if i % 2 else '-1'} -1  {'1' if i < 4 else '-1'}\n" for i, name in enumerate(names))
    (folder / "list_attr_celeba.txt").write_text(f"9\nSmiling Bald Young\n{lines}")
    return folder
