r"""Hugging Face: data sets of the package `datasets`, which has them in Arrow files and reads rows when needed.

A column of images has 256 levels and is treated as image files are (:mod:`sde.data.image_files`); a column of arrays or
lists as arrays are (:mod:`sde.data.arrays`). The package is an extra, `pip install 'score-sde[huggingface]'`, and is
imported when a data set is loaded by its name; :class:`HuggingFaceRows` takes one that you have loaded.
"""

from __future__ import annotations

__all__ = ["HuggingFaceRows", "huggingface"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .arrays import condition_of, values_of
from .dataset import DataSet, Source, check_labels_of, hold_out, split_off
from .dataset import standardise as standardised
from .image_files import Pixels
from .scaling import Scaling
from .source import Item, UnreadableSample, digest_of, evenly


def huggingface(
    path: str,
    *,
    config: str | None = None,
    train: str = "train",
    test: str | None = "test",
    valid: str | None = None,
    column: str = "image",
    label: str | None = None,
    conditions: Mapping[str, str] | None = None,
    caption: str | None = None,
    size: int | Sequence[int] | None = None,
    crop: int | Sequence[int] | None = None,
    channels: int = 3,
    levels: int | None = None,
    low: float = -1.0,
    high: float = 1.0,
    standardise: bool = True,
    test_fraction: float = 0.1,
    seed: int = 0,
    holdout: float = 0,
    classes: int | None = None,
    name: str | None = None,
) -> DataSet:
    """A data set of the package `datasets`.

    Args:
        path: a directory that `save_to_disk` has written, or what `datasets.load_dataset` takes as its path.
        config: the configuration of the data set, `name` of `datasets.load_dataset`.
        train: the split with the training rows.
        test: the split with the test rows; None splits them off the training rows at random.
        valid: the split with the validation rows, if any.
        column: the column of the values, images or arrays.
        label: the column of the class labels.
        conditions: the columns of further conditions by the name of the condition.
        caption: the column of texts.
        size, crop, channels: as in :func:`sde.data.images`, for images.
        levels, standardise: as in :func:`sde.data.arrays`, for arrays.
        low: lower end of the model's range.
        high: upper end of the model's range.
        test_fraction: fraction of the training rows to split off if `test` is None, between 0 and 1.
        seed: seed of the random splits, as in `split_off`.
        holdout: part of the training rows to hold out as `valid`, as in `hold_out`.
        classes: the number of classes, as in :func:`sde.data.arrays`.
        name: name of the data set; the last part of the path by default.

    Raises:
        ImportError: if the package is not installed.
        ValueError: if a split or a column is missing, or the values are refused.
    """
    if valid is not None and holdout != 0:
        raise ValueError(f"expected one validation set, got both valid={valid!r} and holdout={holdout}")
    there = _load(path, config)
    named: dict[str, Any] = {"label": label, "condition": dict(conditions or {}), "caption": caption}
    splits: dict[str, Source] = {}
    for split, key in (("train", train), ("test", test), ("valid", valid)):
        if key is not None:
            if key not in there:
                raise ValueError(f"{path} has no split {key!r}: it has {', '.join(map(repr, there))}; test=null splits")
            pixels = Pixels(channels, size, crop)
            splits[split] = HuggingFaceRows(there[key], column, pixels=pixels, levels=levels, **named)
    if test is None:
        if not 0 < test_fraction < 1:
            raise ValueError(f"expected 0 < test_fraction < 1, got test_fraction={test_fraction}")
        splits["train"], splits["test"] = split_off(splits["train"], test_fraction, seed=seed)
    rest, held_out = hold_out(splits["train"], holdout, seed=seed)
    if rest.first.is_floating_point():
        scaling = standardised(rest) if standardise else Scaling.identity()
    else:
        scaling = Scaling.interval(256 if levels is None else levels, low, high)
    name = os.path.basename(os.path.normpath(path)) if name is None else name
    return DataSet(name, scaling, rest, splits["test"], splits.get("valid", held_out), classes)


def _load(path: str, config: str | None) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this data set needs the package `datasets`: pip install 'score-sde[huggingface]'") from error
    saved = any(os.path.isfile(os.path.join(path, file)) for file in ("state.json", "dataset_dict.json"))
    loaded = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, config)
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


@dataclass(frozen=True, eq=False)
class HuggingFaceRows(Source):
    """The rows of a `datasets.Dataset`.

    Args:
        dataset: the data set.
        column: the column of the values, images or arrays.
        label: the column of the class labels, which is read at once.
        condition: the columns of further conditions by the name of the condition.
        caption: the column of texts.
        pixels: the function from an image to its pixels.
        levels: the number of levels of arrays, as in :func:`sde.data.arrays`.

    Raises:
        ValueError: if a column is missing, or a row has no label or no value of a condition; the error names the first.
    """

    dataset: Any
    column: str = "image"
    label: str | None = None
    condition: Mapping[str, str] = field(default_factory=dict)
    caption: str | None = None
    pixels: Pixels = Pixels()
    levels: int | None = None

    def __post_init__(self) -> None:
        for name in self._columns:
            if name not in self.dataset.column_names:
                there = ", ".join(map(repr, self.dataset.column_names))
                raise ValueError(f"the data set has no column {name!r}: it has {there}")
        for name in self._columns[1:]:
            entries = self._column(name) if self.dataset.data.column(name).null_count else []
            if None in entries:
                raise ValueError(f"row {entries.index(None)} has no value in the column {name!r}: expected one in each")
        check_labels_of(self.labels, len(self))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Tensor) -> Item:
        positions = index.tolist()
        rows, entries = None, []
        for position in positions:
            try:
                rows = self._read_by_rows[position]
                entries.append((self._value(rows[self.column], position), rows))
            except UnreadableSample:
                raise
            # Decoders of any kind raise exceptions of any type on damaged bytes.
            except Exception as error:
                raise UnreadableSample(f"{self.describe(position)} cannot be read: {error}") from error
        values = torch.cat([value for value, _ in entries]) if entries else self.first[:0]
        condition = {} if self.labels is None else {"label": self.labels[index]}
        for name, column in self.condition.items():
            array = np.asarray([row[column] for _, row in entries])
            array = array[:, None] if array.ndim == 1 and array.dtype.kind == "f" else array
            condition[name] = condition_of(array, name, f"condition {name!r} of the column {column!r}")
        return values, condition

    @cached_property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        if self.label is None:
            return None
        return torch.from_numpy(np.asarray(self._column(self.label), dtype=np.int64))

    @property
    def classes(self) -> tuple[str, ...] | None:  # type: ignore[override]
        names = [] if self.label is None else getattr(self.dataset.features[self.label], "names", [])
        return tuple(names) or None

    @cached_property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        return None if self.caption is None else self._column(self.caption)

    def describe(self, position: int) -> str:
        return f"row {position} of the column {self.column!r}"

    @cached_property
    def fingerprint(self) -> str:
        values, condition = self[evenly(len(self))]
        named = [values, *(value for _, value in sorted(condition.items()) if value is not None)]
        facts = f"{len(self)} {self.pixels} {self.levels} {sorted(condition)} {tuple(values.shape)} {values.dtype}"
        labels = [] if self.labels is None else [self.labels]
        texts = "\n".join(self.captions or ()).encode()
        return digest_of([facts.encode(), texts, *(t.contiguous().numpy().tobytes() for t in (*named, *labels))])

    @property
    def _columns(self) -> list[str]:
        names = [self.label, *self.condition.values(), self.caption]
        return [self.column, *(name for name in names if name is not None)]

    @cached_property
    def _read_by_rows(self) -> Any:
        """The data set without the columns that are not read row by row."""
        return self.dataset.select_columns(list(dict.fromkeys([self.column, *self.condition.values()])))

    def _column(self, name: str) -> list[Any]:
        return list(self.dataset.select_columns([name])[:][name])

    def _value(self, entry: Any, position: int) -> Tensor:
        """One value, with shape (1, ...)."""
        if isinstance(entry, Image.Image):
            pixels = torch.from_numpy(self.pixels.of(entry, self.describe(position)).copy())[None]
            if position and pixels.shape != self.first.shape:
                raise ValueError(
                    f"expected images of one size, {tuple(self.first.shape[2:])}, got {tuple(pixels.shape[2:])}: set "
                    "size= to resize and crop them"
                )
            return pixels
        array = np.asarray(entry)
        levels = 256 if self.levels is None and array.dtype == np.uint8 else self.levels
        if levels is None and array.dtype.kind != "f":
            raise ValueError(f"{array.dtype} values do not tell the number of levels: set levels=")
        return values_of(array[None], levels, self.describe(position), len(self))
