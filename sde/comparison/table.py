r"""The rows of a comparison and their file.

The file is in HDF5 and has one data set per column, one row per experiment, and a checksum (:mod:`sde.storage.hdf5`).
After every row the whole file is replaced, so that readers see complete files, and a killed comparison loses only the
current experiment. The key of a row is the solver, the grid, the budget or tolerance, and the config of the solver: the
same command computes only missing rows, and a longer list of solvers adds rows. The attribute `settings` has the
settings that all rows share; a file with other settings is refused.
"""

from __future__ import annotations

__all__ = ["Row", "Table", "read_table"]

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..storage import hdf5
from ..storage.files import Lock, remove_temporaries, write_atomically
from ..training.run import differences
from .plan import Entry

_KINDS: dict[str, Any] = {"str": h5py.string_dtype(), "int": np.int64, "float": np.float64, "bool": np.bool_}


@dataclass(frozen=True)
class Row(Entry):
    """The results of one experiment. Missing results are NaN; `*_low` and `*_high` are the ends of a 95 % band.

    The other columns are those of :class:`Entry`. The row of the solver `exact` has the distances
    of a second set of exact samples, the Monte-Carlo floor.

    Attributes:
        nfe: the mean number of network calls of a sample.
        nfe_max: the largest number of network calls of a sample.
        strong: the strong error, in standard deviations of the data.
        median: the median error of a sample, in standard deviations of the data.
        sliced: the sliced Wasserstein distance, in standard deviations of the data.
        mean: the error of the mean, in standard deviations of the data.
        covariance: the relative error of the covariance, in the Frobenius norm.
        seconds: the median time of a run of `n` samples.
        network_seconds: the median time of a run that is spent in the network.
        memory: the peak memory of tensors, in bytes.
        own_memory: the peak memory outside network calls, in bytes.
        pilot_samples: the samples of the pilot run that designed the solver; 0 for others.
        pilot_seconds: the time of this run, its accurate solution included.
        pilot_calls: its network calls, each for one sample.
    """

    nfe: float = math.nan
    nfe_max: int = 0
    strong: float = math.nan
    strong_low: float = math.nan
    strong_high: float = math.nan
    median: float = math.nan
    median_low: float = math.nan
    median_high: float = math.nan
    sliced: float = math.nan
    sliced_low: float = math.nan
    sliced_high: float = math.nan
    mean: float = math.nan
    mean_low: float = math.nan
    mean_high: float = math.nan
    covariance: float = math.nan
    covariance_low: float = math.nan
    covariance_high: float = math.nan
    seconds: float = math.nan
    network_seconds: float = math.nan
    memory: int = 0
    own_memory: int = 0
    pilot_samples: int = 0
    pilot_seconds: float = 0.0
    pilot_calls: int = 0


class Table:
    """The single writer of the file of a comparison; used in a `with` statement.

    Args:
        path: the HDF5 file, new or existing. Its directory must exist.
        settings: a plain tree of the settings that all rows share.

    Attributes:
        rows: the rows by their key.

    Raises:
        ValueError: if the file is not that of a comparison, or has other settings. Nothing is overwritten.
        BlockingIOError: if another process writes the file.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._settings = json.dumps(settings, sort_keys=True)
        self._lock = Lock(f"{self.path}.lock")
        try:
            remove_temporaries(self.path)
            self.rows: dict[tuple[str, str, int, float, str], Row] = {}
            if self.path.exists():
                rows, stored = read_table(self.path)
                for difference in differences(stored, json.loads(self._settings), free=()):
                    raise ValueError(
                        f"{self.path} is a comparison with other settings: {difference}; choose another out= or the "
                        "same settings. Nothing was changed."
                    )
                self.rows = {row.key: row for row in rows}
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def open(cls, out: str | None, name: str, settings: Mapping[str, Any]) -> Table:
        """The table in a directory.

        Args:
            out: the directory, created if necessary; by default a subdirectory of `runs/compare` for these settings.
            name: the first part of the name of the default directory.
            settings: as in the class.
        """
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        folder = Path(out or f"runs/compare/{name}-{digest[:8]}")
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder / "compare.h5", settings)

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def add(self, row: Row) -> None:
        """Adds a row, or replaces the row with the same key, and returns when the file is on disk."""
        # Compared as text, because NaN is not equal to NaN.
        if repr(self.rows.get(row.key)) != repr(row):
            rows = {**self.rows, row.key: row}
            image = _encode([*rows.values()], self._settings)
            write_atomically(self.path, lambda file: file.write(image))
            self.rows = rows


def read_table(path: str | os.PathLike[str]) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a comparison, in the order in which they were computed, and the settings that they share.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is truncated, altered, or not that of a comparison.
    """

    def content(file: h5py.File, size: int) -> tuple[list[Row], dict[str, Any]]:
        known = [f for f in fields(Row) if f.name in file or f.default is MISSING]  # older files lack some
        columns = [file[f.name].asstr() if f.type == "str" else file[f.name] for f in known]
        names = [f.name for f in known]
        values = zip(*(column[:].tolist() for column in columns), strict=True)
        rows = [Row(**dict(zip(names, row))) for row in values]
        return rows, json.loads(file.attrs["settings"])

    return hdf5.decode(Path(path), content)


def _encode(rows: list[Row], settings: str) -> bytes:
    def fill(file: h5py.File) -> None:
        file.attrs["settings"] = settings
        for f in fields(Row):
            file.create_dataset(f.name, data=[getattr(row, f.name) for row in rows], dtype=_KINDS[str(f.type)])

    return hdf5.encode(fill)
