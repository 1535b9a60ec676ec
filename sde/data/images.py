r"""Images: a data set from a folder of image files, in memory or read as they are needed.

How files are found is the matter of :mod:`sde.data.files`, what their pixels are and how they are resized that of
:mod:`sde.data.image_files`. Labels come from the names of folders or, like other conditions, from a CSV file
(:mod:`sde.data.table`).
"""

from __future__ import annotations

__all__ = ["images"]

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .dataset import DataSet
from .files import file_splits
from .image_files import Pixels
from .scaling import Scaling


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
    classes: int | None = None,
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
        classes: the number of classes, as in :func:`sde.data.arrays`.
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
    conditions: dict[str, Any] = {"folder_labels": folder_labels, "table": table, "columns": columns}
    parts: dict[str, Any] = {"test_fraction": test_fraction, "seed": seed, "holdout": holdout}
    folders = {"train": train, "test": test, "valid": valid}
    splits = file_splits(path, pixels, folders, **conditions, file_column=file_column, **parts, memory=memory)
    return DataSet(path.resolve().name if name is None else name, Scaling.interval(256, low, high), *splits, classes)
