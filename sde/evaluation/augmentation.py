r"""Augmentation: a data set of new samples, balanced over classes, or of variants of given items.

A row has the index i = k C + c: item k of class c of C. Its candidates are drawn one after another, each with noise of
its own, until one is no near-copy of a training item: with :math:`d_1` the distance to the nearest and :math:`d_2` that
to the second nearest, a candidate counts as copied if :math:`d_1 < \mathrm{copies} \cdot d_2` (Yoon et al. 2023,
https://openreview.net/forum?id=shciCbSk9h). Near-copies are dropped and counted. Of m candidates of a class the file
holds those that are kept, so that a job that was killed goes on where it was.

The new data is as biased as its model: what the model has not seen it does not add. Whether a classifier gains is to be
measured.
"""

from __future__ import annotations

__all__ = ["Augmentation", "Drawn", "nearest"]

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Source
from ..model import Model
from ..noise import Noise, Stream
from ..shapes import event_dims
from ..solvers import Solver
from ..storage.results import Plain
from ..storage.store import Store, read

# The number of candidates per item that are wanted after which a class is given up.
_PATIENCE = 20


@dataclass(frozen=True)
class Drawn:
    """The state of a running augmentation.

    Attributes:
        rows: the number of rows that are kept.
        total: the number of rows that are wanted.
        dropped: the number of near-copies so far.
    """

    rows: int
    total: int
    dropped: int

    @property
    def means(self) -> str:
        """The text of a progress bar beside the rows."""
        return f"near-copies dropped {self.dropped}"


def nearest(x: Tensor, training: Source, model: Model, chunk: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
    """The position of the nearest training item, its distance and that of the second nearest one, each (B,).

    Distances are the root mean square of the differences in the model's range.

    Args:
        x: data values, with shape (B, *).
        training: the training items.
        model: the model, whose scaling is used.
        chunk: the number of training items in memory at a time.
    """
    flat = model.scaling.to_model(x, dtype=torch.float64).flatten(1)
    best = torch.full((len(x), 2), torch.inf, dtype=torch.float64, device="cpu")
    position = torch.full((len(x), 2), -1, dtype=torch.int64, device="cpu")
    for index in torch.arange(len(training), device="cpu").split(chunk):
        items = model.scaling.to_model(training[index][0], dtype=torch.float64).flatten(1)
        distance = torch.cdist(flat, items, compute_mode="donot_use_mm_for_euclid_dist")
        both = torch.cat([best, distance], 1).topk(2, largest=False)
        position = torch.cat([position, index.expand(len(x), -1)], 1).gather(1, both.indices)
        best = both.values
    best = best / event_dims(x) ** 0.5
    return position[:, 0], best[:, 0], best[:, 1]


@dataclass(frozen=True)
class Augmentation:
    """The job that draws an augmented data set.

    Attributes:
        model: the model.
        training: the items that it was trained on, and of which variants are made.
        path: the HDF5 file.
        per_class: the number of rows of each class, or of all rows for a model without classes.
        solver: the solver.
        seed: the seed of all noise.
        strength: None for new samples, else that of variants (:meth:`sde.Model.edit`), in (0, 1].
        copies: the ratio below which a candidate is a near-copy; 0 keeps all.
        batch_size: the number of candidates in memory at a time.
        key: the attributes of the file that must agree when the job is continued.
        metadata: attributes that may differ.

    Raises:
        ValueError: if the solver cannot serve the model; or if the model has classes, variants are asked for, and the
            items have no labels.
    """

    model: Model
    training: Source
    path: Path
    per_class: int
    solver: Solver
    seed: int
    strength: float | None
    copies: float
    batch_size: int
    key: Mapping[str, Plain]
    metadata: Mapping[str, Plain]

    def __post_init__(self) -> None:
        labels, classes = self.training.labels, self.model.classes
        self.model.rehearse(solver=self.solver)  # before the file, which a refusal would leave behind
        if self.strength is not None and classes is not None:
            if labels is None:
                raise ValueError("variants of a class need items with labels, and the data has none")
            if absent := sorted(set(range(classes)) - set(labels.unique().tolist())):
                raise ValueError(f"there is no item of class {absent[0]} of which variants could be made")

    @property
    def classes(self) -> int:
        """C, 1 for a model without classes."""
        return self.model.classes or 1

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of the file beside `index` and `repeat`."""
        kind = torch.empty(0, dtype=self.model.scaling.dtype, device="cpu").numpy().dtype
        numbers: dict[str, Any] = {"label": np.int64, "seed": np.int64, "candidate": np.int64, "source": np.int64}
        numbers |= {"nearest": np.int64, "distance": np.float64, "ratio": np.float64}
        return {"x": np.dtype((kind, self.model.shape)), **numbers}

    def run(self) -> Generator[Drawn, None, None]:
        """Draws and stores the missing rows; yields its state at the start and after every batch.

        Raises:
            ValueError: if a class has twenty times as many near-copies as rows are wanted.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        store = Store.open(self.path, self.columns, key=self.key, metadata=self.metadata, snapshot_every=4096)
        with store:
            store.snapshot()
            stored = read(self.path).columns
            accepted, tried = np.zeros(self.classes, np.int64), np.zeros(self.classes, np.int64)
            for c in range(self.classes):
                own = stored["index"] % self.classes == c
                accepted[c], tried[c] = own.sum(), stored["candidate"][own].max(initial=-1) + 1
            yield self._drawn(accepted, tried)
            for c in range(self.classes):
                while accepted[c] < self.per_class:
                    if tried[c] - accepted[c] > _PATIENCE * self.per_class:
                        raise ValueError(
                            f"class {c}: of {tried[c]} candidates {accepted[c]} are no near-copies of training items: "
                            "the model repeats its data; give a smaller copies=, or 0 to keep all"
                        )
                    rows, count = self._rows(c, int(accepted[c]), int(tried[c]))
                    store.append(rows)
                    accepted[c], tried[c] = accepted[c] + len(rows["index"]), tried[c] + count
                    yield self._drawn(accepted, tried)

    def _drawn(self, accepted: Any, tried: Any) -> Drawn:
        return Drawn(int(accepted.sum()), self.classes * self.per_class, int((tried - accepted).sum()))

    def _rows(self, c: int, accepted: int, tried: int) -> tuple[dict[str, Any], int]:
        """The rows of the next candidates of a class that are kept, and how many candidates they took."""
        candidate = torch.arange(tried, tried + min(self.batch_size, 2 * (self.per_class - accepted)), device="cpu")
        x, source = self._candidates(c, candidate)
        position, first, second = nearest(x, self.training, self.model)
        ratio = (first / second).nan_to_num(nan=0.0)
        places = (ratio >= self.copies).nonzero()[: self.per_class - accepted, 0]
        full = accepted + len(places) == self.per_class
        n = len(places)
        rows: dict[str, Any] = {
            "index": (accepted + np.arange(n)) * self.classes + c,
            "repeat": np.zeros(n, np.int64),
            "x": x[places].to(self.model.scaling.dtype).numpy(),
            "label": np.full(n, c if self.model.classes is not None else -1),
            "seed": np.full(n, self.seed),
            "candidate": candidate[places].numpy(),
            "source": source[places].numpy(),
            "nearest": position[places].numpy(),
            "distance": first[places].numpy(),
            "ratio": ratio[places].numpy(),
        }
        return rows, int(places[-1]) + 1 if full else len(candidate)

    def _candidates(self, c: int, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """The data values of candidates of a class, and the positions of their sources, -1 for new samples."""
        first = c * 2**32 + int(candidate[0])  # the noise of every candidate of every class is its own
        condition = {} if self.model.classes is None else {"label": torch.tensor(c, device="cpu")}
        call: dict[str, Any] = {"solver": self.solver, "seed": self.seed, "first": first, "condition": condition}
        if self.strength is None:
            return self.model.sample(len(candidate), **call), torch.full_like(candidate, -1)
        labels = self.training.labels
        own = torch.arange(len(self.training), device="cpu")
        if self.model.classes is not None and labels is not None:
            own = (labels == c).nonzero()[:, 0]
        # A keyed order, one round after another, so that every item of the class is used equally often.
        order = Noise(self.seed).bits(Stream.ORDER, own, torch.zeros_like(own), 1)[:, 0].argsort(stable=True)
        source = own[order][candidate % len(own)]
        return self.model.edit(self.training[source][0], self.strength, **call), source
