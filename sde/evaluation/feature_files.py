r"""Files of features: the features of a set of items, extracted once, by any number of processes, in pieces.

A set of items and features have fingerprints, which name a directory. Its files have the features of 256 consecutive
items each, and of items that a model draws their values too. A file is written atomically and has a checksum
(:mod:`sde.storage.hdf5`). So a killed job loses at most one piece of work; the next job, or another one that compares
with the same items, computes only what is missing; and several processes share the pieces without waiting. A damaged
file counts as missing.
"""

from __future__ import annotations

__all__ = ["FeatureFiles"]

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from torch import Tensor

from ..metrics.features import Extracted, Features, as_items, extract
from ..metrics.sets import slices
from ..storage.files import write_atomically
from ..storage.hdf5 import decode, encode
from .item_sets import ItemSet
from .sharding import WHOLE, Shard

# Items of a file. Blocks of networks begin anew with each file, so that the number is a part of what is computed.
PIECE = 256


@dataclass(frozen=True)
class FeatureFiles:
    """The features of a set of items in files.

    Args:
        features: the features.
        items: the items.
        cache: the directory of all features.
        shard: this process.
    """

    features: Features
    items: ItemSet
    cache: Path
    shard: Shard = WHOLE

    @property
    def directory(self) -> Path:
        """The directory of the files."""
        name = self.features.name.replace(" ", "-").replace("/", "-")
        return self.cache / f"{name}-{self.features.fingerprint[:16]}" / self.items.fingerprint[:32]

    def run(self) -> Iterator[int]:
        """Extracts the missing features of this process; yields the number of items of each of its pieces."""
        for number, part in enumerate(self._parts()):
            if number % self.shard.world != self.shard.rank:
                continue
            if self._read(part) is None:
                self._write(part)
            yield part.stop - part.start

    @property
    def own(self) -> int:
        """The number of items of this process."""
        parts = enumerate(self._parts())
        return sum(p.stop - p.start for number, p in parts if number % self.shard.world == self.shard.rank)

    def missing(self) -> int:
        """The number of items without features, of all processes."""
        return sum(part.stop - part.start for part in self._parts() if not self._path(part).exists())

    def load(self) -> Extracted:
        """The features of all items.

        Raises:
            ValueError: if some are missing.
        """
        vectors: Tensor | None = None
        logits: Tensor | None = None
        for part in self._parts():
            if (stored := self._read(part)) is None:
                raise ValueError(f"{self._path(part)} is missing or damaged: give the same command again")
            if vectors is None:
                # In place, because two copies of the features of many items would not fit.
                vectors = stored.features.new_empty(len(self.items.index), stored.features.shape[1])
                logits = (
                    None if stored.logits is None else stored.logits.new_empty(len(vectors), stored.logits.shape[1])
                )
            vectors[part] = stored.features
            if logits is not None and stored.logits is not None:
                logits[part] = stored.logits
        assert vectors is not None
        return Extracted(vectors, logits)

    def values(self, index: Tensor) -> Tensor:
        """The values of the items at some positions, int64 with shape (M,)."""
        if self.items.stored:
            return self.items.values(index)
        rows = []
        for i in index.tolist():
            part = slice(i - i % PIECE, min(i - i % PIECE + PIECE, len(self.items.index)))
            stored = decode(self._path(part), lambda file, size: torch.from_numpy(file["values"][:]))
            rows.append(stored[i % PIECE])
        return torch.stack(rows)

    def _parts(self) -> Iterator[slice]:
        return slices(len(self.items.index), PIECE)

    def _path(self, part: slice) -> Path:
        return self.directory / f"{part.start:08d}-{part.stop:08d}.h5"

    def _write(self, part: slice) -> None:
        values = self.items.values(torch.arange(part.start, part.stop, device="cpu"))
        try:
            extracted = extract(self.features, as_items(values, self.items.levels))
        except ValueError as error:
            raise ValueError(f"{self.items.name}, from item {part.start} on: {error}") from error
        named = {
            "features": extracted.features,
            "logits": extracted.logits,
            "values": None if self.items.stored else values,
        }
        arrays = {name: array.numpy() for name, array in named.items() if array is not None}

        def fill(file: h5py.File) -> None:
            file.attrs["features_fingerprint"] = self.features.fingerprint
            file.attrs["items_fingerprint"] = self.items.fingerprint
            for name, array in arrays.items():
                file.create_dataset(name, data=array)

        image = encode(fill)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(part), lambda file: file.write(image))

    def _read(self, part: slice) -> Extracted | None:
        """The features in a file, None if it is missing, damaged or of other items."""
        n, facts = part.stop - part.start, (self.features.fingerprint, self.items.fingerprint)

        def arrays(file: h5py.File, size: int) -> Extracted | None:
            if (file.attrs["features_fingerprint"], file.attrs["items_fingerprint"]) != facts:
                return None
            columns = {key: torch.from_numpy(file[key][:]) for key in ("features", "logits") if key in file}
            ok = all(len(rows) == n for rows in columns.values()) and (self.items.stored or "values" in file)
            return Extracted(columns["features"], columns.get("logits")) if ok else None

        try:
            return decode(self._path(part), arrays)
        except (FileNotFoundError, ValueError):
            return None
