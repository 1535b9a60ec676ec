r"""Tables: conditions of samples from the columns of a CSV file.

The first line names the columns; one of them names the file of the sample. A condition takes one column or several:

| condition | column |
|---|---|
| `label` | whole numbers from 0, or names of classes, which are numbered in alphabetical order |
| `caption` | text, which stays text: an encoder makes tensors of it |
| `image` | the path of another image of the sample |
| any other | numbers: float32 with shape (N, E) for E columns |

An empty entry of an `embedding` is not known, and so is an empty caption; the networks have a learned null for both
(:mod:`sde.networks.conditions`). Of the other conditions, every sample needs a value.
"""

from __future__ import annotations

__all__ = ["Named", "Table"]

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .source import NULLABLE

Columns = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, eq=False)
class Named:
    """The entries of a table for some samples.

    Attributes:
        labels: class labels, int64 with shape (N,), or None.
        classes: the names of the classes, or None for numbers.
        condition: tensors of leading size N.
        captions: N texts, or None.
        images: N paths, or None.
    """

    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    captions: tuple[str, ...] | None = None
    images: tuple[str, ...] | None = None


class Table:
    """A CSV file with conditions.

    Args:
        path: the file, in UTF-8.
        columns: the column, or columns, of each condition; by default the column `label` as `label`.
        key: the column with the name of the sample.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it lacks a column, or two lines are for one sample.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Columns | None = None, key: str = "file") -> None:
        self.path, self.columns = Path(path), dict(columns or {"label": "label"})
        wanted = {name: [one] if isinstance(one, str) else list(one) for name, one in self.columns.items()}
        for name in ("label", "caption", "image"):
            if len(wanted.get(name, [""])) != 1:
                raise ValueError(f"expected one column for the condition {name!r}, got {wanted[name]}")
        self._wanted = wanted
        with open(self.path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            there = list(lines.fieldnames or ())
            for column in [key, *(column for several in wanted.values() for column in several)]:
                if column not in there:
                    raise ValueError(f"{self.path} has no column {column!r}: it has {', '.join(map(repr, there))}")
            self._rows: dict[str, tuple[int, dict[str, list[str]]]] = {}
            for line in lines:
                values = {name: [(line[c] or "").strip() for c in several] for name, several in wanted.items()}
                if line[key] in self._rows:
                    raise ValueError(f"{self.path}, line {lines.line_num}: a second line for {line[key]!r}")
                self._rows[line[key]] = lines.line_num, values
        self._classes = self._class_names()

    def of(self, names: Sequence[str]) -> Named:
        """The entries for the samples with these names, in their order.

        Raises:
            ValueError: if a sample has no line, or no value in a column, or one that is no number; the error names the
                first such sample.
        """
        for name in names:
            if name not in self._rows:
                raise ValueError(f"{self.path} has no line for {name!r}: expected one for every sample")
            number, values = self._rows[name]
            for key, entries in values.items():
                if "" in entries and (key == "image" or key not in (*NULLABLE, "caption")):
                    column = self._wanted[key][entries.index("")]
                    raise ValueError(
                        f"{self.path}, line {number}: {name!r} has no value in the column {column!r} for the condition "
                        f"{key!r}: expected one for every sample"
                    )
        rows = [self._rows[name][1] for name in names]
        others = [name for name in self._wanted if name not in ("label", "caption", "image")]
        texts = {name: tuple(row[name][0] for row in rows) for name in ("caption", "image") if name in self._wanted}
        labels = None
        if "label" in self._wanted:
            number_of = None if self._classes is None else {name: i for i, name in enumerate(self._classes)}
            entries = [row["label"][0] for row in rows]
            labels = torch.tensor([int(e) if number_of is None else number_of[e] for e in entries], device="cpu")
        condition = {name: self._numbers(name, names) for name in others}
        return Named(labels, self._classes, condition, texts.get("caption"), texts.get("image"))

    def _class_names(self) -> tuple[str, ...] | None:
        if "label" not in self._wanted:
            return None
        entries = {values["label"][0] for _, values in self._rows.values()} - {""}
        return None if all(entry.isdecimal() for entry in entries) else tuple(sorted(entries))

    def _numbers(self, condition: str, names: Sequence[str]) -> Tensor:
        result = np.empty((len(names), len(self._wanted[condition])), np.float32)
        for row, name in enumerate(names):
            number, values = self._rows[name]
            try:
                numbers = [float(entry) if entry else None for entry in values[condition]]
            except ValueError:
                numbers = [np.nan]
            if not np.isfinite([number for number in numbers if number is not None]).all():
                raise ValueError(
                    f"{self.path}, line {number}: {name!r} has {values[condition]} for the condition {condition!r}: "
                    "expected finite numbers"
                )
            result[row] = [np.nan if number is None else number for number in numbers]
        return torch.from_numpy(result)
