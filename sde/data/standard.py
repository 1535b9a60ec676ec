r"""Standard data sets: MNIST, Fashion-MNIST and CIFAR-10, which are downloaded, and CelebA from a folder.

| data set | shape | train, test | labels |
|---|---|---|---|
| MNIST, LeCun et al. 1998, http://yann.lecun.com/exdb/mnist | (1, 28, 28) | 60,000, 10,000 | 10 digits |
| Fashion-MNIST, Xiao et al. 2017, https://arxiv.org/abs/1708.07747 | (1, 28, 28) | 60,000, 10,000 | 10 garments |
| CIFAR-10, Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html | (3, 32, 32) | 50,000, 10,000 | 10 classes |
| CelebA, Liu et al. 2015, https://arxiv.org/abs/1411.7766 | (3, 64, 64) | 162,770, 19,962 | 40 attributes |

All have 256 levels; CelebA has 19,867 images for validation too. The first three are small enough to be in memory;
CelebA, which has to be asked for from its authors, is read file by file.
"""

from __future__ import annotations

__all__ = ["celeba", "cifar10", "fashion_mnist", "mnist"]

import gzip
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .arrays import arrays
from .dataset import DataSet, Source, Split, hold_out
from .downloads import Remote, cache, fetch
from .files import Files
from .image_files import Pixels
from .scaling import Scaling
from .table import Named

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
_CIFAR = "https://www.cs.toronto.edu/~kriz"
# Images and labels of the training set, then of the test set.
_FILES = {
    "mnist": (
        "train-images-idx3-ubyte.gz sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion_mnist": (
        "train-images-idx3-ubyte.gz md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz md5:bb300cfdad3c16e7a12a480ee83cd310",
    ),
}
_CIFAR10 = "cifar-10-binary.tar.gz sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

_GARMENTS = "T-shirt, trousers, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot"
_OBJECTS = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"


def mnist(
    path: str | os.PathLike[str] | None = None,
    *,
    mirror: str | None = None,
    download: bool = True,
    low: float = -1.0,
    high: float = 1.0,
    holdout: float = 0,
) -> DataSet:
    """MNIST, handwritten digits.

    Args:
        path: the folder of the files, to which they are downloaded; by default one in the user's cache. Or an `.npz`
            file with `x_train`, `y_train`, `x_test` and `y_test`, as Keras has it.
        mirror: the URL of a directory with the same files, instead of their home.
        download: whether files that are not in the folder may be downloaded.
        low: lower end of the model's range.
        high: upper end of the model's range.
        holdout: part of the training set to hold out as `valid`, as in `hold_out`.

    Raises:
        FileNotFoundError: if a file is not there and may not be downloaded.
        ConnectionError: if a file cannot be downloaded.
        ValueError: if a file is damaged, or is not the published one.
    """
    if path is not None and Path(path).suffix == ".npz":
        named = {"train_labels": "y_train", "test_labels": "y_test"}
        return arrays(path, **named, low=low, high=high, holdout=holdout, name="mnist")  # type: ignore[arg-type]
    return _of_idx("mnist", _MNIST, path, mirror, download, low, high, holdout)


def fashion_mnist(
    path: str | os.PathLike[str] | None = None,
    *,
    mirror: str | None = None,
    download: bool = True,
    low: float = -1.0,
    high: float = 1.0,
    holdout: float = 0,
) -> DataSet:
    """Fashion-MNIST, pictures of garments. Arguments and errors as for `mnist`, without `.npz` files."""
    classes = tuple(_GARMENTS.split(", "))
    return _of_idx("fashion_mnist", _FASHION, path, mirror, download, low, high, holdout, classes)


def cifar10(
    path: str | os.PathLike[str] | None = None,
    *,
    mirror: str | None = None,
    download: bool = True,
    low: float = -1.0,
    high: float = 1.0,
    holdout: float = 0,
) -> DataSet:
    """CIFAR-10, photographs of ten classes of objects. Arguments and errors as for `mnist`, without `.npz` files."""
    folder = cache() / "cifar10" if path is None else Path(path)
    file = fetch(_remote(_CIFAR10, _CIFAR), folder, mirror=mirror, download=download)
    # The binary version: the other one is pickled.
    names = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    batches: dict[str, NDArray[np.uint8]] = {}
    try:
        with tarfile.open(file, "r:gz") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None and member.name.endswith(".bin"):
                    batches[os.path.basename(member.name)] = np.frombuffer(content.read(), np.uint8).reshape(-1, 3073)
        rows = {split: np.concatenate([batches[name] for name in parts]) for split, parts in names.items()}
    except (OSError, EOFError, KeyError, ValueError, zlib.error, tarfile.TarError) as error:
        raise _damaged(file, error) from error
    classes = tuple(_OBJECTS.split(", "))

    def split(rows: NDArray[np.uint8]) -> Split:
        values = torch.from_numpy(np.ascontiguousarray(rows[:, 1:])).reshape(-1, 3, 32, 32)
        return Split(values, torch.from_numpy(rows[:, 0].astype(np.int64)), classes=classes)

    return _data_set("cifar10", split(rows["train"]), split(rows["test"]), low, high, holdout)


def celeba(
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int] = 64,
    crop: int | Sequence[int] | None = 140,
    label: str | None = None,
    attributes: Sequence[str] | None = None,
    low: float = -1.0,
    high: float = 1.0,
    memory: float = 1.0,
) -> DataSet:
    """CelebA, faces of celebrities: `img_align_celeba/`, `list_eval_partition.txt` and `list_attr_celeba.txt`.

    The middle of 140 by 140 pixels is resized, as by Song and Ermon (2020, https://arxiv.org/abs/2006.09011).

    Args:
        path: the folder with the three; the attributes are needed only where they are asked for.
        size: H = W, or (H, W).
        crop: the side of the middle, or its (height, width), that is cut out before.
        label: an attribute that is the label, 0 or 1, such as `Smiling`.
        attributes: the attributes that are the condition `embedding`, with entries 0 and 1.
        low: lower end of the model's range.
        high: upper end of the model's range.
        memory: as in :func:`sde.data.images`.

    Raises:
        FileNotFoundError: if a list is missing.
        ValueError: if a list is damaged, or lacks an attribute.
    """
    path, pixels = Path(path), Pixels(3, size, crop)
    lines = [line.split() for line in _lines(path / "list_eval_partition.txt")]
    wanted = [*([] if label is None else [label]), *(attributes or ())]
    known = _attributes(path / "list_attr_celeba.txt", wanted) if wanted else {}
    splits: dict[str, Source] = {}
    for split, number in (("train", "0"), ("valid", "1"), ("test", "2")):
        files = [name for name, part in lines if part == number]
        if not files:
            raise ValueError(f"{path / 'list_eval_partition.txt'} has no image of the part {number}, {split}")
        named = Named()
        if wanted:
            table = torch.tensor([known[name] for name in files], device="cpu")
            labels, others = (None, table) if label is None else (table[:, 0], table[:, 1:])
            named = Named(labels, None, {"embedding": others.float()} if attributes else {})
        source = Files.of(path, [f"img_align_celeba/{name}" for name in files], pixels, named)
        splits[split] = source if source.nbytes > memory * 2**30 else source.in_memory()
    return DataSet("celeba", Scaling.interval(256, low, high), splits["train"], splits["test"], splits["valid"])


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"the file {path} does not exist: expected the folder of CelebA in path=")
    return path.read_text().splitlines()


def _attributes(path: Path, wanted: Sequence[str]) -> dict[str, list[int]]:
    """Whether each image has the attributes, 0 or 1."""
    _, names, *lines = _lines(path)
    for name in wanted:
        if name not in names.split():
            raise ValueError(f"{path} has no attribute {name!r}: it has {', '.join(names.split())}")
    columns = [1 + names.split().index(name) for name in wanted]
    return {(row := line.split())[0]: [int(row[column] == "1") for column in columns] for line in lines}


def _of_idx(
    name: str,
    home: str,
    path: str | os.PathLike[str] | None,
    mirror: str | None,
    download: bool,
    low: float,
    high: float,
    holdout: float,
    classes: tuple[str, ...] | None = None,
) -> DataSet:
    """A data set of four files in the format IDX."""
    folder = cache() / name if path is None else Path(path)
    files = [fetch(_remote(file, home), folder, mirror=mirror, download=download) for file in _FILES[name]]
    x_train, y_train, x_test, y_test = (_read_idx(file) for file in files)

    def split(values: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
        return Split(
            torch.from_numpy(values[:, None].copy()), torch.from_numpy(labels.astype(np.int64)), classes=classes
        )

    return _data_set(name, split(x_train, y_train), split(x_test, y_test), low, high, holdout)


def _data_set(name: str, train: Split, test: Split, low: float, high: float, holdout: float) -> DataSet:
    rest, valid = hold_out(train, holdout)
    return DataSet(name, Scaling.interval(256, low, high), rest, test, valid)


def _remote(text: str, home: str) -> Remote:
    name, checksum = text.split()
    return Remote(name, home, checksum)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of bytes in a compressed file: two zeros, the type 8, the number of axes, their lengths, the bytes."""
    try:
        with gzip.open(path) as file:
            content = file.read()
        if content[:3] != b"\0\0\x08":
            raise ValueError("expected an array of bytes in the format IDX")
        shape = np.frombuffer(content, ">u4", content[3], 4).tolist()
        return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read: {error}; delete it, and it is downloaded again")
