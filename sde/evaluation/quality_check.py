r"""The sample quality of a model while it is trained: a fixed number of samples against a fixed subset of the data.

Every check draws the same noise and compares with the same items, so that numbers differ from check to check by what
the model has learned. Their errors are those of any other draw: a trend that is smaller than its errors may still be
real, because the noise is common to both.
"""

from __future__ import annotations

__all__ = ["QualityCheck"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data import DataSet
from ..metrics.features import Extracted, Features, as_items, extract
from ..model import Model
from ..noise import Noise, Stream
from ..shapes import check_count
from ..solvers import Solver
from ..training.conditions import conditions_of
from .quality_table import SET_MEASURES, Comparison


@dataclass(frozen=True)
class QualityCheck:
    """The measures of a model's samples against the first items of the training split.

    Args:
        data: the data set.
        features: the features in which samples and items are compared.
        metrics: names of measures of sets (:mod:`sde.evaluation.quality_table`); `memorisation` compares with the test
            or validation split too.
        n: the number of samples.
        items: the largest number of items of every split.
        solver: the solver of the samples; the library's default if None.
        seed: the seed of the samples and of the groups.

    Raises:
        ValueError: if a measure is unknown, or a number is not positive.
    """

    data: DataSet
    features: Features
    metrics: Sequence[str] = ("frechet", "precision_recall")
    n: int = 256
    items: int = 2000
    solver: Solver | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n", "items"):
            check_count("QualityCheck", name, getattr(self, name), 2)
        if unknown := [name for name in self.metrics if name not in SET_MEASURES]:
            raise ValueError(f"QualityCheck: expected measures among {', '.join(SET_MEASURES)}, got {unknown[0]!r}")

    @cached_property
    def reference(self) -> Extracted:
        """The features of the first training items."""
        return self._of_split("train")

    @cached_property
    def held_out(self) -> Extracted:
        """The features of the first items of the validation split, or of the test split."""
        return self._of_split("test" if self.data.valid is None else "valid")

    def _of_split(self, name: str) -> Extracted:
        split = self.data.split(name)
        values, _ = split[torch.arange(min(self.items, len(split)), device="cpu")]
        return extract(self.features, as_items(values, self.data.scaling.levels))

    def __call__(
        self, model: Model, *, batch_size: int | None = None, progress: Callable[[float], object] | None = None
    ) -> dict[str, float]:
        """The measures of samples of a model, and their standard errors as `NAME_error`.

        Classes are drawn in turn; other conditions are those of the first training items.

        Args:
            model: the model.
            batch_size: the number of samples that are drawn at a time; all by default.
            progress: called after every step of the solver with the fraction of the samples that is drawn.
        """
        how: dict[str, Any] = {"solver": self.solver, "seed": self.seed, "batch_size": batch_size}
        how["condition"] = conditions_of(model.denoiser, self.data.train, self.n)
        return self._measured(model.sample(self.n, progress=progress, **how), model)

    def rehearse(self, model: Model) -> None:
        """Measures noise in place of samples, which raises if features and measures do not fit the data."""
        index = torch.arange(self.n, device="cpu")
        noise = Noise(self.seed).normal(Stream.PRIOR, index, torch.zeros_like(index), model.shape, torch.float32)
        self._measured(model.scaling.to_data(noise), model)

    def _measured(self, x: Tensor, model: Model) -> dict[str, float]:
        samples = extract(self.features, as_items(x, model.scaling.levels))
        index = [torch.arange(len(side.features), device="cpu") for side in (samples, self.reference)]
        copied = "memorisation" in self.metrics
        training, held_out = (self.reference.features, self.held_out.features) if copied else (None, None)
        comparison = Comparison(
            samples, self.reference, (index[0], index[1]), training, held_out, self.seed, permutations=0
        )
        line: dict[str, float] = {}
        for measure in self.metrics:
            for name, estimate in SET_MEASURES[measure](comparison).items():
                line[name] = estimate.value
                if estimate.standard_error is not None:
                    line[f"{name}_error"] = estimate.standard_error
        return line
