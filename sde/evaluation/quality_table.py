r"""The measures of sample quality that a job can compute, by name, and their table.

Of sets of samples against a reference, on features: `frechet`, `kernel`, `mmd`, `energy`, `precision_recall` (with
density and coverage), `sliced_wasserstein`, `classifier_test`, `inception_score` (on class logits), `memorisation`
(against training items and held-out ones), `columns` and `correlations` (of tables, on raw values). Of restorations
against their references, item by item: `psnr`, `ssim`, `ms_ssim`, `perceptual`, `log_spectral`, `stft`. All are
functions of :mod:`sde.metrics`.
"""

from __future__ import annotations

__all__ = ["ITEM_MEASURES", "SET_MEASURES", "Comparison", "Pairs", "quality_table"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from .. import metrics
from ..metrics import Estimate, Memorisation
from ..metrics.features import Extracted, Features
from ..metrics.fidelity import fitting_window

Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Samples against a reference, in features.

    Attributes:
        samples: the features of the samples.
        reference: those of the reference.
        index: the indices of the items of both.
        training: features of the items that the model was trained on, for memorisation; None if there are none.
        held_out: those of items of the same distribution that it was not trained on.
        seed: the seed of groups, splits and permutations.
        groups: the number of groups and random halves.
        permutations: the number of permutations of p-values.
    """

    samples: Extracted
    reference: Extracted
    index: tuple[Tensor, Tensor]
    training: Tensor | None = None
    held_out: Tensor | None = None
    seed: int = 0
    groups: int = 20
    permutations: int = 199

    @property
    def sets(self) -> tuple[Tensor, Tensor]:
        """The features of both sets."""
        return self.samples.features, self.reference.features

    @property
    def keyed(self) -> dict[str, Any]:
        """The arguments of the measures that depend on seed and indices."""
        return {"seed": self.seed, "index": self.index}

    @property
    def permuted(self) -> dict[str, Any]:
        """Likewise, of the measures with groups and permutations."""
        return {**self.keyed, "groups": self.groups, "permutations": self.permutations}

    @cached_property
    def memorisation(self) -> Memorisation:
        """The nearest training items of the samples, against those of held-out data."""
        if self.training is None or self.held_out is None:
            raise ValueError(
                "memorisation compares with training and held-out items: give data=, or leave it out of metrics="
            )
        return metrics.memorisation(self.samples.features, self.training, self.held_out)


def _frechet(c: Comparison) -> Estimates:
    return {"frechet": metrics.frechet_distance(*c.sets, groups=c.groups, **c.keyed)}


def _precision_recall(c: Comparison) -> Estimates:
    return dict(vars(metrics.precision_recall(*c.sets, halvings=c.groups, **c.keyed)))


def _classifier_test(c: Comparison) -> Estimates:
    return {"classifier_test": metrics.classifier_two_sample_test(*c.sets, **c.keyed)}


def _inception_score(c: Comparison) -> Estimates:
    score = metrics.inception_score(c.samples.logits, seed=c.seed, index=c.index[0])
    return {"inception_score": score}


def _memorisation(c: Comparison) -> Estimates:
    return {"distance_ratio": c.memorisation.ratio, "copies": c.memorisation.copies}


def _columns(c: Comparison) -> Estimates:
    estimates = metrics.column_wasserstein(*c.sets, **c.permuted)
    return {f"column {d}": estimate for d, estimate in enumerate(estimates)}


SET_MEASURES: Mapping[str, Callable[[Comparison], Estimates]] = {
    "frechet": _frechet,
    "kernel": lambda c: {"kernel": metrics.kernel_distance(*c.sets, **c.permuted)},
    "mmd": lambda c: {"mmd": metrics.mmd(*c.sets, **c.permuted)},
    "energy": lambda c: {"energy": metrics.energy_distance(*c.sets, **c.permuted)},
    "precision_recall": _precision_recall,
    "sliced_wasserstein": lambda c: {"sliced_wasserstein": metrics.sliced_wasserstein(*c.sets, **c.permuted)},
    "classifier_test": _classifier_test,
    "inception_score": _inception_score,
    "memorisation": _memorisation,
    "columns": _columns,
    "correlations": lambda c: {"correlations": metrics.correlation_distance(*c.sets, **c.permuted)},
}


@dataclass(frozen=True)
class Pairs:
    """Restorations and their references, item by item.

    Attributes:
        x: the restored values, with shape (N, *).
        reference: the true ones.
        data_range: the range of the values.
        features: the features of perceptual distances.
    """

    x: Tensor
    reference: Tensor
    data_range: float | None
    features: Features

    @property
    def ranged(self) -> dict[str, Any]:
        """The range, which continuous data has not."""
        if self.data_range is None:
            raise ValueError("continuous data has no range of values: give data_range=, or leave psnr and ssim out")
        return {"data_range": self.data_range}

    @property
    def unit(self) -> tuple[Tensor, Tensor]:
        """Both as features take them."""
        scale = 1.0 if self.data_range is None else 1.0 / self.data_range
        return self.x.float() * scale, self.reference.float() * scale

    def maps(self, x: Tensor) -> Sequence[Tensor]:
        """The feature maps of items, or their features if the network gives no maps."""
        extracted = self.features(x)
        return extracted.maps or [extracted.features]


def _ssim(p: Pairs) -> Estimate:
    """That of restore.py: with a narrower window in items smaller than 11, as the note says."""
    window = fitting_window(p.x)
    estimate = metrics.ssim(p.x, p.reference, window=window, **p.ranged)
    return estimate if window == 11 else replace(estimate, note=f"a window of {window}, because the items are small")


ITEM_MEASURES: Mapping[str, Callable[[Pairs], Estimate]] = {
    "psnr": lambda p: metrics.psnr(p.x, p.reference, **p.ranged),
    "ssim": _ssim,
    "ms_ssim": lambda p: metrics.ms_ssim(p.x, p.reference, **p.ranged),
    "perceptual": lambda p: metrics.perceptual_distance(*p.unit, p.maps),
    "log_spectral": lambda p: metrics.log_spectral_distance(p.x, p.reference),
    "stft": lambda p: metrics.multi_resolution_stft_distance(p.x, p.reference),
}


def quality_table(results: Mapping[str, Mapping[str, Estimate]]) -> str:
    """The table of estimates by set and measure.

    A value has its standard error. Below are the values of equal distributions, where they are known, and the values
    before correction, as papers print them.
    """
    names = list(results)
    measures = list(dict.fromkeys(m for estimates in results.values() for m in estimates))
    rows = [["", *names]]
    for measure in measures:
        across = [results[name].get(measure) for name in names]
        rows.append([measure, *(_cell(e) for e in across)])
        for label, values in {
            "  uncorrected": [e and e.plain for e in across],
            "  of equal sets": [e and e.null for e in across],
            "  p": [e and e.p_value for e in across],
        }.items():
            if any(value is not None for value in values):
                rows.append([label, *("" if value is None else f"{value:.4g}" for value in values)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(names) + 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    notes = dict.fromkeys(f"{m}: {e.note}" for by_measure in results.values() for m, e in by_measure.items() if e.note)
    return "\n".join([*lines, *notes])


def _cell(e: Estimate | None) -> str:
    if e is None:
        return ""
    return f"{e.value:.5g}" if e.standard_error is None else f"{e.value:.5g} +- {e.standard_error:.2g}"
