r"""Images: a data set from a folder of image files, in memory or read as they are needed.

Which files are images, what their pixels are and how they are resized is the matter of :mod:`sde.data.image_files`.
Labels come from the names of folders or, like other conditions, from a CSV file (:mod:`sde.data.table`).
"""

from __future__ import annotations

__all__ = ["ImageFiles", "images"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dataset import DataSet, Source, Split, check_labels_of, hold_out, split_off
from .image_files import Pixels, image_files
from .scaling import Scaling
from .source import Item, UnreadableSample, digest_of, evenly
from .table import Named, Table


def images(
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int] | None = None,
    crop: int | Sequence[int] | None = None,
    channels: int = 3,
    low: float = -1.0,
    high: float = 1.0,
    train: str | None = None,
    test: str | None = None,
    valid: str | None = None,
    folder_labels: bool = False,
    table: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    file_column: str = "file",
    test_fraction: float = 0.1,
    seed: int = 0,
    holdout: float = 0,
    memory: float = 1.0,
    name: str | None = None,
) -> DataSet:
    """A data set of the images below a folder, with event shape (channels, H, W) and 256 levels.

    Args:
        path: the folder.
        size: H = W, or (H, W); None if all images already have the same size.
        crop: the side of the middle, or its (height, width), that is cut out before the size is changed.
        channels: 3 for RGB, 1 for grey.
        low: lower end of the model's range.
        high: upper end of the model's range.
        train: the folder in `path` with the training images; by default `path` itself.
        test: the folder in `path` with the test images; by default they are split off the training images at random.
        valid: the folder in `path` with the validation images.
        folder_labels: whether the first folder below that of the split is the class of an image; the names are numbered
            in alphabetical order.
        table: a CSV file with a line for every image, which gives the conditions of `columns`.
        columns: the column, or columns, of each condition, such as `{"label": "digit", "embedding": ["age", "size"]}`
            (:mod:`sde.data.table`); by default the column `label`.
        file_column: the column with the path of the image relative to `path`.
        test_fraction: fraction of the images in the test set if `test` is None, between 0 and 1.
        seed: seed of the random splits, as in `split_off`.
        holdout: part of the training set to hold out as `valid`, as in `hold_out`.
        memory: the size in GiB up to which all pixels are read into memory at once. Of larger sets, files are read as
            they are needed, and a damaged one is named when it is met; 0 does so for all.
        name: name of the data set; the folder's name by default.

    Raises:
        NotADirectoryError: if the folder does not exist.
        OSError: if a folder below it cannot be listed.
        ValueError: if the folder contains no image; if an image that is read is damaged, has a refused mode, or is so
            large that Pillow takes it for a decompression bomb; if `size` is None and two images differ in size; or if
            an image has no label where labels are asked for, or a condition is missing.
    """
    path, pixels = Path(path), Pixels(channels, size, crop)
    if test is None and not 0 < test_fraction < 1:
        raise ValueError(f"expected 0 < test_fraction < 1, got test_fraction={test_fraction}")
    if train is None and (test is not None or valid is not None):
        raise ValueError(f"expected the folder of the training images too, got train=None with {test=}, {valid=}")
    if valid is not None and holdout != 0:
        raise ValueError(f"expected one validation set, got both valid={valid!r} and holdout={holdout}")
    if folder_labels and table is not None and "label" in (columns or {"label": ""}):
        raise ValueError("expected labels from folders or from the table, got both: give columns= without label")
    given = {"train": train or ".", "test": test, "valid": valid}
    files = {split: image_files(path / part) for split, part in given.items() if part is not None}
    known = None if table is None else Table(table, columns, file_column)
    classes = _folders(path, given, files) if folder_labels else None
    splits: dict[str, Source] = {}
    for split, names in files.items():
        root = os.path.normpath(str(given[split]))
        inside = names if root == "." else [f"{root}/{name}" for name in names]
        named = Named() if known is None else known.of(inside)
        if classes is not None:
            labels = torch.tensor([classes.index(file.split("/")[0]) for file in names], device="cpu")
            named = replace(named, labels=labels, classes=classes)
        source = ImageFiles(path, np.asarray(inside), pixels, named)
        splits[split] = source if source.nbytes > memory * 2**30 else source.in_memory()
    if test is None:
        splits["train"], splits["test"] = split_off(splits["train"], test_fraction, seed=seed)
    rest, held_out = hold_out(splits["train"], holdout, seed=seed)
    scaling = Scaling.interval(256, low, high)
    valid_split = splits.get("valid", held_out)
    return DataSet(path.resolve().name if name is None else name, scaling, rest, splits["test"], valid_split)


def _folders(path: Path, given: Mapping[str, str | None], files: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The names of the classes: the first folders of all files."""
    for split, names in files.items():
        for name in names:
            if "/" not in name:
                raise ValueError(
                    f"{path / (given[split] or '')}: the image {name!r} lies in no folder of its own: expected "
                    "CLASS/... for folder_labels=true"
                )
    return tuple(sorted({name.split("/")[0] for names in files.values() for name in names}))


@dataclass(frozen=True, eq=False)
class ImageFiles(Source):
    """Images in files, which are read as they are needed.

    Args:
        path: the folder.
        files: the paths of the files relative to it, with shape (N,).
        pixels: the function from a file to its pixels.
        named: labels and other conditions.
    """

    path: Path
    files: NDArray[np.str_]
    pixels: Pixels
    named: Named = Named()

    def __post_init__(self) -> None:
        check_labels_of(self.named.labels, len(self))

    @property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        return self.named.labels

    @property
    def classes(self) -> tuple[str, ...] | None:  # type: ignore[override]
        return self.named.classes

    @property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        return self.named.captions

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor) -> Item:
        positions = index.tolist()
        values = self._pixels([str(self.files[i]) for i in positions])
        condition = {} if self.labels is None else {"label": self.labels[index]}
        condition |= {name: value[index] for name, value in self.named.condition.items()}
        if (others := self.named.images) is not None:
            # The middles of 256 bins in [-1, 1].
            condition["image"] = (self._pixels([others[i] for i in positions]).float() + 0.5) / 128.0 - 1.0
        return values, condition

    @property
    def nbytes(self) -> int:
        """The size of all pixels in memory, in bytes."""
        return len(self) * self._example.size

    def in_memory(self) -> Split:
        """All images in memory."""
        values, condition = self[torch.arange(len(self), device="cpu")]
        labels = condition.pop("label", None)
        return Split(values, labels, condition, self.classes, self.captions)

    def describe(self, position: int) -> str:
        return str(self.path / str(self.files[position]))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the names of all files, the content of some, and the settings; not of damage to the others."""
        texts = [str(self.pixels), *map(str, self.files), *(self.captions or ()), *(self.named.images or ())]
        tensors = [self.named.labels, *(value for _, value in sorted(self.named.condition.items()))]
        parts = ["\n".join(texts).encode(), *(t.numpy().tobytes() for t in tensors if t is not None)]
        return digest_of([*parts, *((self.path / str(self.files[i])).read_bytes() for i in evenly(len(self)))])

    @cached_property
    def _example(self) -> NDArray[np.uint8]:
        return self.pixels(self.path / str(self.files[0]))

    def _pixels(self, files: Sequence[str]) -> Tensor:
        first = self._example
        result = np.empty((len(files), *first.shape), dtype=np.uint8)
        for row, file in enumerate(files):
            image = self.pixels(self.path / file)
            if image.shape != first.shape:
                raise UnreadableSample(
                    f"expected images of one size, but {self.path / str(self.files[0])} is "
                    f"{first.shape[1]}x{first.shape[2]} and {self.path / file} is {image.shape[1]}x{image.shape[2]} "
                    "(height x width): set size= to resize and crop them"
                )
            result[row] = image
        return torch.from_numpy(result)
