r"""The job of sample quality: the features of samples and of a reference, and the measures that compare them.

Features are extracted into files (:mod:`sde.evaluation.feature_files`), which several processes share and which stay
for the next job. The measures follow when all features are there. Several sets of samples are compared with the first
one by paired differences: they have the reference in common, and with the same indices their groups.
"""

from __future__ import annotations

__all__ = ["QualityJob"]

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..metrics import Estimate, Memorisation, difference
from ..metrics.estimate import mean_estimate
from ..metrics.features import Extracted
from .feature_files import FeatureFiles
from .job import Progress
from .quality import Quality
from .quality_table import ITEM_MEASURES, SET_MEASURES, Comparison, Pairs
from .summary import means_over_repeats


@dataclass(frozen=True)
class QualityJob:
    """Sets of samples, the reference, and the measures to compute.

    Attributes:
        samples: the features of every set.
        reference: those of the reference.
        metrics: the names of the measures.
        training: those of the training items, for memorisation.
        held_out: those of held-out items.
        truths: the true items of a set of restorations, by its name.
        settings: seed, groups and permutations.
        data_range: the range of the values, for restorations.
    """

    samples: Sequence[FeatureFiles]
    reference: FeatureFiles
    metrics: Sequence[str]
    training: FeatureFiles | None = None
    held_out: FeatureFiles | None = None
    truths: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data_range: float | None = None

    @property
    def files(self) -> list[FeatureFiles]:
        """All files of features that the measures need, each set of items once."""
        extra = [files for files in (self.training, self.held_out) if files is not None]
        compared = any(name in SET_MEASURES for name in self.metrics)
        return list({f.directory: f for f in [*self.samples, self.reference, *extra]}.values()) if compared else []

    def extract(self) -> Generator[Progress, None, None]:
        """Extracts the missing features of this process; yields its progress at the start and after every piece."""
        rows, total = 0, sum(files.own for files in self.files)
        yield Progress(rows, total, "")
        for files in self.files:
            for number in files.run():
                rows += number
                yield Progress(rows, total, files.items.name)

    def waiting(self) -> str | None:
        """The number of items that other processes have not finished, as text; None if all features are there."""
        missing, shard = sum(files.missing() for files in self.files), self.reference.shard
        text = f"process {shard.rank} of {shard.world} has finished; {missing} items of other processes are missing"
        return text if missing else None

    @property
    def steps(self) -> int:
        """The number of results of :meth:`measure`."""
        return len(self.samples) * len(self.metrics) + 1

    @property
    def facts(self) -> dict[str, Any]:
        """The fingerprints of items and features, and the numbers of items."""
        items = [files.items for files in (*self.samples, self.reference)]
        features = self.reference.features
        return {
            "features": {"name": features.name, "fingerprint": features.fingerprint},
            "items": {one.name: {"number": len(one.index), "fingerprint": one.fingerprint} for one in items},
        }

    def measure(self) -> Iterator[tuple[str, str, Quality]]:
        """Computes the measures one after another; yields the set, the measure, and the result so far.

        A measure that refuses its input is among the refused ones of the result, and takes no other with it.
        """
        sets = [name for name in self.metrics if name in SET_MEASURES]
        known: dict[Path, Extracted] = {}

        def loaded(files: FeatureFiles) -> Extracted:
            if files.directory not in known:
                known[files.directory] = files.load()
            return known[files.directory]

        estimates: dict[str, dict[str, Estimate]] = {files.items.name: {} for files in self.samples}
        nearest: dict[str, Memorisation] = {}
        refused: dict[str, str] = {}
        for files in self.samples:
            name, by_measure = files.items.name, estimates[files.items.name]
            if sets:
                both = (files.items.index, self.reference.items.index)
                training, held_out = (None if f is None else loaded(f).features for f in (self.training, self.held_out))
                how = dict(self.settings)
                comparison = Comparison(loaded(files), loaded(self.reference), both, training, held_out, **how)
            for measure in self.metrics:
                try:
                    if measure in SET_MEASURES:
                        by_measure |= SET_MEASURES[measure](comparison)
                    else:
                        everything = torch.arange(len(files.items.index), device="cpu")
                        pairs = Pairs(
                            files.items.values(everything), self.truths[name], self.data_range, files.features
                        )
                        by_measure[measure] = _over_repeats(ITEM_MEASURES[measure](pairs), files.items.index)
                    if measure == "memorisation":
                        nearest[name] = comparison.memorisation
                except ValueError as error:
                    refused[f"{name}: {measure}"] = str(error)
                yield name, measure, Quality(estimates, {}, nearest)
            if files.directory != self.reference.directory:
                known.pop(files.directory, None)
        first, *others = estimates
        differences = {
            name: {m: difference(estimates[first][m], e) for m, e in estimates[name].items() if m in estimates[first]}
            for name in others
        }
        yield "", "", Quality(estimates, differences, nearest, self.facts, refused)


def _over_repeats(estimate: Estimate, index: Tensor) -> Estimate:
    """The estimate from the mean of every item over its draws, which are not independent."""
    if estimate.per_item is None or len(index.unique()) == len(index):
        return estimate
    _, means = means_over_repeats(index.numpy(), estimate.per_item.cpu().numpy())
    return replace(mean_estimate(torch.from_numpy(means)), note=estimate.note)
