r"""Audio: a data set from a folder of WAV files, in memory or read as they are needed.

A file has samples of 8, 16, 24 or 32 bits, whole numbers of which the largest become 1: float32 in [-1, 1), with event
shape (channels, length). A longer recording is cut to its middle; a shorter one has silence after it. All recordings
have one rate: nothing is resampled. Files are found and labelled as images are (:mod:`sde.data.files`).
"""

from __future__ import annotations

__all__ = ["Recording", "audio"]

import os
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..shapes import check_count
from .dataset import DataSet
from .dataset import standardise as standardised
from .files import file_splits
from .scaling import Scaling
from .source import UnreadableSample


def audio(
    path: str | os.PathLike[str],
    *,
    length: int,
    rate: int,
    channels: int = 1,
    standardise: bool = True,
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
    """A data set of the WAV files below a folder, with event shape (channels, length), continuous.

    Args:
        path: the folder.
        length: the number of samples of a recording, to which it is cut or filled up.
        rate: the samples per second, which every file must have.
        channels: 1, to which the channels of a file are averaged, or their number.
        standardise: whether values are standardised, each channel by its mean and standard deviation over the training
            values (:meth:`sde.data.Scaling.standardise`).
        train, test, valid, folder_labels, table, columns, file_column: as in :func:`sde.data.images`.
        test_fraction, seed, holdout, classes, memory, name: likewise.

    Raises:
        NotADirectoryError: if the folder does not exist.
        ValueError: if the folder contains no WAV file, or one that is read is damaged or has another rate or number of
            channels; or as in :func:`sde.data.images`.
    """
    path, decode = Path(path), Recording(length, rate, channels)
    conditions: dict[str, Any] = {"folder_labels": folder_labels, "table": table, "columns": columns}
    parts: dict[str, Any] = {"test_fraction": test_fraction, "seed": seed, "holdout": holdout}
    folders = {"train": train, "test": test, "valid": valid}
    splits = file_splits(path, decode, folders, **conditions, file_column=file_column, **parts, memory=memory)
    scaling = standardised(splits[0]) if standardise else Scaling.identity()
    return DataSet(path.resolve().name if name is None else name, scaling, *splits, classes)


@dataclass(frozen=True)
class Recording:
    """The function from a WAV file to its values, float32 with shape (channels, length).

    Args:
        length: the number of samples.
        rate: the samples per second.
        channels: 1, to which the channels of a file are averaged, or their number.

    Raises:
        ValueError: if a number is not positive.
    """

    length: int
    rate: int
    channels: int = 1

    def __post_init__(self) -> None:
        for name in ("length", "rate", "channels"):
            check_count("audio", name, getattr(self, name))

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (".wav",)

    @property
    def advice(self) -> str:
        return "set length="

    def __call__(self, file: str | os.PathLike[str]) -> NDArray[np.float32]:
        """The values of a file.

        Raises:
            UnreadableSample: if it is missing or damaged, or has another rate or number of channels.
        """
        try:
            with wave.open(os.fspath(file), "rb") as opened:
                rate, channels, width, count = opened.getframerate(), *opened.getparams()[:2], opened.getnframes()
                content = opened.readframes(count)
            if rate != self.rate:
                raise ValueError(f"it has {rate} samples per second: expected rate={self.rate}, nothing is resampled")
            if self.channels not in (1, channels):
                raise ValueError(f"it has {channels} channels: expected channels={self.channels}")
            if len(content) != count * channels * width or count == 0:
                raise ValueError(f"it ends after {len(content)} of {count * channels * width} bytes")
        # The parser raises exceptions of several types on damaged bytes: each means that the file is unusable.
        except Exception as error:
            raise UnreadableSample(f"the recording {file} cannot be read: {error}; repair or remove it") from error
        values = _numbers(content, width).reshape(count, channels).T
        values = values.mean(0, keepdims=True) if self.channels == 1 else values
        start = max(0, (count - self.length) // 2)
        values = values[:, start : start + self.length]
        return np.pad(values, ((0, 0), (0, self.length - values.shape[1]))).astype(np.float32)


def _numbers(content: bytes, width: int) -> NDArray[np.float64]:
    """The samples of `width` bytes each, in [-1, 1)."""
    if width == 1:
        return (np.frombuffer(content, np.uint8).astype(np.float64) - 128.0) / 128.0
    # Little endian: the bytes are the upper ones of a number of 32 bits.
    padded = np.zeros((len(content) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
    return padded.view("<i4")[:, 0].astype(np.float64) / 2.0**31
