r"""The result of a quality job: estimates of every set of samples, and their differences from the first set.

The HDF5 file has a row for every set and measure, with a column for each number of an estimate (NaN for none):
`samples`, `measure`, `value`, `standard_error`, `low`, `high`, `plain` (before correction), `null` (of equal
distributions), `p_value`, `note`, and `difference_from`, the first set in the rows of differences. The groups
`items NUMBER` have the values of single items, and the nearest training item of every sample. The attributes are the
settings, the facts, and the reasons why measures were refused. The JSON file beside it has the same rows.
"""

from __future__ import annotations

__all__ = ["Quality"]

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..metrics import Estimate, Memorisation
from ..storage.files import write_atomically
from ..storage.hdf5 import encode

Estimates = Mapping[str, Estimate]

# The numbers of an estimate, in the order of the columns.
NUMBERS = ("value", "standard_error", "low", "high", "plain", "null", "p_value")


@dataclass(frozen=True)
class Quality:
    """The result of a job.

    Attributes:
        estimates: the measures, by name of the set and measure.
        differences: those of every set but the first, minus those of the first.
        memorisation: the nearest training items of every set, where they were computed.
        facts: what else is stored: the numbers of items and the fingerprints.
        refused: the reasons why measures could not be computed, by name of the set and measure.
    """

    estimates: Mapping[str, Estimates]
    differences: Mapping[str, Estimates]
    memorisation: Mapping[str, Memorisation] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Writes the HDF5 file and, beside it, the same as JSON."""
        rows = [
            {"samples": name, "measure": measure, **_numbers(e), "note": e.note, "difference_from": base}
            for base, table in (("", self.estimates), (next(iter(self.estimates)), self.differences))
            for name, estimates in table.items()
            for measure, e in estimates.items()
        ]
        text = json.dumps(settings, sort_keys=True)

        def fill(file: h5py.File) -> None:
            file.attrs["settings"], file.attrs["facts"] = text, json.dumps(self.facts, sort_keys=True)
            file.attrs["refused"] = json.dumps(self.refused, sort_keys=True)
            for column in rows[0]:
                values = [row[column] for row in rows]
                if column in NUMBERS:
                    file.create_dataset(column, data=np.array([np.nan if v is None else v for v in values]))
                else:
                    file.create_dataset(column, data=np.array([str(v).encode() for v in values]))
            for number, (name, estimates) in enumerate(self.estimates.items()):
                group = file.create_group(f"items {number}")
                group.attrs["samples"] = name
                for measure, e in estimates.items():
                    if e.per_item is not None:
                        group.create_dataset(measure, data=e.per_item.cpu().numpy())
                if (nearest := self.memorisation.get(name)) is not None:
                    group.create_dataset("nearest", data=nearest.nearest.cpu().numpy())
                    group.create_dataset("distance", data=nearest.distance.cpu().numpy())

        image = encode(fill)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(image))
        tree = {"settings": settings, "facts": self.facts, "estimates": rows, "refused": self.refused}
        finite = json.dumps(_finite(tree), indent=1, sort_keys=True, allow_nan=False)
        write_atomically(path.with_suffix(".json"), lambda file: file.write(finite.encode()))


def _numbers(e: Estimate) -> dict[str, float | None]:
    return {f.name: getattr(e, f.name) for f in fields(e) if f.name in NUMBERS}


def _finite(tree: Any) -> Any:
    """The tree with texts for infinite numbers and NaN, which JSON does not have."""
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return str(tree) if isinstance(tree, float) and not np.isfinite(tree) else tree
