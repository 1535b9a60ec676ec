r"""The rows of a comparison and the file that keeps them.

One HDF5 file, one data set per column, one row per cell, with a checksum (:mod:`sde.storage.hdf5`).
It is replaced as a whole after every row, so that a reader sees whole files, and a killed comparison has lost the cell
that it was at. A row is known by what was computed (solver, grid, setting and the solver's whole config): the same
command again computes what is missing, and a longer list of solvers adds to the file. The settings that all rows must
share stand in the attribute `settings`; a file of other settings is refused.
"""

from __future__ import annotations

__all__ = ["Row", "Table", "read_table"]

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from ..storage import hdf5
from ..storage.files import Lock, remove_temporaries, write_atomically
from ..training.run import differences

_KINDS: dict[str, Any] = {"str": h5py.string_dtype(), "int": np.int64, "float": np.float64, "bool": np.bool_}


@dataclass(frozen=True)
class Row:
    """What came out of one cell. What was not measured is NaN; `*_low` and `*_high` are the ends of a 95 % band.

    Attributes:
        solver: the solver's name; `exact` for a second set of exact samples, the level of the distances.
        grid: the grid's name; empty where there is none to choose.
        calls: the budget in network calls; 0 where the setting is a tolerance.
        tolerance: relative and absolute tolerance; 0 where the setting is a budget.
        steps: the steps that the budget bought.
        config: the solver's config as JSON.
        status: `ok`, `too small` (the budget buys no step), `refused` or `failed`.
        reason: why it is not `ok`.
        stochastic: whether the solver draws noise.
        nfe: the network calls that were made, the mean over samples.
        nfe_max: the most that a sample took.
        strong: the strong error, in standard deviations of the data.
        median: the median error of a sample, likewise.
        sliced: the sliced Wasserstein distance, likewise.
        mean: the error of the mean, likewise.
        covariance: the error of the covariance over its size, in Frobenius norms.
        seconds: the median time of a run of `n` samples.
        network_seconds: the part of it spent in the network, the median likewise.
        memory: the most bytes of tensors alive at once.
        own_memory: the most outside the network's calls.
    """

    solver: str
    grid: str = ""
    calls: int = 0
    tolerance: float = 0.0
    steps: int = 0
    config: str = ""
    status: str = "ok"
    reason: str = ""
    stochastic: bool = False
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

    @property
    def key(self) -> tuple[str, str, int, float, str]:
        """What was computed."""
        return self.solver, self.grid, self.calls, self.tolerance, self.config


class Table:
    """The one writer of a comparison's file; used in a `with` statement.

    Args:
        path: the HDF5 file, new or to be continued. Its directory must exist.
        settings: a plain tree of what all rows must share.

    Attributes:
        rows: the rows by their key.

    Raises:
        ValueError: if the file is no comparison's, or one of other settings. Nothing is overwritten.
        BlockingIOError: if another process is writing it.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._settings = json.dumps(settings, sort_keys=True)
        self._lock = Lock(f"{self.path}.lock")
        try:
            remove_temporaries(self.path)
            self.rows: dict[tuple[str, str, int, float, str], Row] = {}
            if self.path.exists():
                rows, there = read_table(self.path)
                for difference in differences(there, json.loads(self._settings), free=()):
                    raise ValueError(
                        f"{self.path} holds a comparison with other settings: {difference}; give another out=, or the "
                        "same settings. Nothing was changed."
                    )
                self.rows = {row.key: row for row in rows}
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def open(cls, out: str | None, name: str, settings: Mapping[str, Any]) -> Table:
        """The table of a directory.

        Args:
            out: the directory, created if there is none; by default one in `runs/compare` for each set of settings.
            name: what its name begins with.
            settings: as in the class.
        """
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        folder = Path(out or f"runs/compare/{name}-{digest[:8]}")
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder / "compare.h5", settings)

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def add(self, row: Row) -> None:
        """Adds a row, in place of one of the same key, and returns when it is on the disk."""
        # By their text, in which one NaN equals another.
        if repr(self.rows.get(row.key)) != repr(row):
            rows = {**self.rows, row.key: row}
            image = _encode([*rows.values()], self._settings)
            write_atomically(self.path, lambda file: file.write(image))
            self.rows = rows


def read_table(path: str | os.PathLike[str]) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a comparison's file in the order in which they were computed, and the settings they share.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file, is truncated or altered.
    """

    def content(file: h5py.File, size: int) -> tuple[list[Row], dict[str, Any]]:
        columns = [
            file[f.name].asstr()[:].tolist() if f.type == "str" else file[f.name][:].tolist() for f in fields(Row)
        ]
        return [Row(*values) for values in zip(*columns, strict=True)], json.loads(file.attrs["settings"])

    return hdf5.decode(Path(path), content)


def _encode(rows: list[Row], settings: str) -> bytes:
    def fill(file: h5py.File) -> None:
        file.attrs["settings"] = settings
        for f in fields(Row):
            file.create_dataset(f.name, data=[getattr(row, f.name) for row in rows], dtype=_KINDS[str(f.type)])

    return hdf5.encode(fill)
