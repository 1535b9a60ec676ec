r"""The table of bounds: the probability flow and the variational bounds for the same samples, in bits/dim.

There are four measures of the likelihood, each the sum of three terms, in bits/dim, :math:`-\text{nats}/(D \log 2)`:

- `flow`, the density of the probability flow (:func:`sde.log_prob`): the `prior` at the latent, the integral of the
  `divergence`, and the `weight` of the dequantisation (:mod:`sde.likelihood.dequantisation`), or of the scaling for
  continuous data, its log-determinant (:meth:`sde.data.Scaling.log_det`).
- `density`, the bound of the reverse SDE on the density of the same states (:func:`sde.likelihood.density_bound`): the
  `prior`, the `diffusion`, and the same `weight`.
- `continuous`, the bound of the reverse SDE with a decoder (:func:`sde.likelihood.continuous_bound`): the `prior`, the
  `diffusion`, and the decoder of the `data` at the end of the path (:mod:`sde.likelihood.truncation`). For discrete
  data it needs no dequantisation; for continuous data the decoder is a density in the units of the data, which includes
  the same log-determinant.
- `chain`, the bound of DDPM's chain (:func:`sde.likelihood.chain_bound`): the `prior` :math:`L_N`, the `steps`
  :math:`\sum_{i=1}^{N-1} L_i`, and the decoder's :math:`L_0` of the `data`, as in `continuous`.

The SDE and the flow of a network are two models with the same density only for the true score. A bound may therefore be
below the flow. The difference includes the slack of the bound, the difference of the two models, and the cost of
dequantisation for the flow.

Song et al., Maximum Likelihood Training of Score-Based Diffusion Models, 2021, https://arxiv.org/abs/2101.09258,
section 4; Ho et al., Denoising Diffusion Probabilistic Models, 2020, https://arxiv.org/abs/2006.11239, equation 5.
"""

from __future__ import annotations

__all__ = ["MEASURES", "MeasureSummary", "columns_of", "summarise_measures", "table"]

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .pairing import Paired, paired
from .summary import Columns, Summary, mean_and_error, means_over_repeats, nats_and_error, summarise

# The measures, and the three terms of each: the prior, the path, and the data or its weight.
MEASURES: dict[str, tuple[str, str, str]] = {
    "flow": ("prior", "divergence", "weight"),
    "density": ("prior", "diffusion", "weight"),
    "continuous": ("prior", "diffusion", "data"),
    "chain": ("prior", "steps", "data"),
}


def columns_of(measures: Sequence[str]) -> dict[str, type[np.generic]]:
    """The columns of a bounds file beside `index` and `repeat`, name to dtype.

    A measure M has the columns M, M_TERM for each term and `M_standard_error` over draws or probes, all in bits/dim,
    and `M_nfe`.

    Raises:
        ValueError: if there is no measure, one is unknown, or one occurs twice.
    """
    known = ", ".join(MEASURES)
    if isinstance(measures, str) or not measures or len(set(measures)) < len(measures):
        raise ValueError(f"expected measures as a list of some of {known}, each once, got {measures!r}")
    columns: dict[str, type[np.generic]] = {}
    for name in measures:
        if name not in MEASURES:
            raise ValueError(f"unknown measure {name!r}: expected some of {known}")
        terms = (f"{name}_{term}" for term in (*MEASURES[name], "standard_error"))
        columns |= {name: np.float64, **dict.fromkeys(terms, np.float64), f"{name}_nfe": np.int64}
    return columns


@dataclass(frozen=True)
class MeasureSummary:
    """The result of a measure on a data set. Rows in which it is not finite are counted and otherwise left out.

    Attributes:
        name: the measure.
        summary: the mean over samples of each one's mean over repeats, with standard error, calls and failures.
        terms: the same mean for each term, in bits/dim; the terms add up to the measure.
        draws: the root mean square, over rows, of the standard error over draws or probes, in bits/dim; NaN for a
            single draw.
        difference: the paired difference from the flow; None for the flow itself, and for fewer than two samples with
            finite values of both.
    """

    name: str
    summary: Summary
    terms: dict[str, float]
    draws: float
    difference: Paired | None


def summarise_measures(columns: Columns) -> list[MeasureSummary]:
    """The results of the measures in a bounds file, in the order flow, density, continuous, chain."""
    return [_summarise(columns, name) for name in MEASURES if name in columns]


def _summarise(columns: Columns, name: str) -> MeasureSummary:
    keys = {key: columns[key] for key in ("index", "repeat")}
    whole = {**keys, "bits_per_dim": columns[name], "nfe": columns[f"{name}_nfe"]}
    good = np.isfinite(columns[name])
    _, *values = means_over_repeats(keys["index"][good], *(columns[f"{name}_{term}"][good] for term in MEASURES[name]))
    terms = {term: mean_and_error(value)[0] for term, value in zip(MEASURES[name], values)}
    draws = math.sqrt(mean_and_error(np.square(columns[f"{name}_standard_error"][good]))[0])
    difference = None
    if name != "flow" and "flow" in columns:
        flow = {**keys, "bits_per_dim": columns["flow"]}
        if len(np.unique(keys["index"][good & np.isfinite(columns["flow"])])) > 1:
            difference = paired(flow, whole)
    return MeasureSummary(name, summarise(whole), terms, draws, difference)


def table(measures: Sequence[MeasureSummary], dims: int | None = None) -> str:
    """The measures as an aligned table with their terms.

    Args:
        measures: the results, in bits/dim.
        dims: the number of dimensions of a sample of continuous data, whose log-density in nats gets a column too;
            None for levels.
    """
    nats = [] if dims is None else ["log p (nats)"]
    lines = [["", "bits/dim", *nats, "minus flow", "draws", "calls", "prior", "path", "data"]]
    for measure in measures:
        d, s = measure.difference, measure.summary
        difference = "" if d is None else f"{d.difference:+.4f} +- {d.standard_error:.4f}"
        terms = [f"{value:.4f}" for value in measure.terms.values()]
        mean = f"{s.bits_per_dim:.4f} +- {s.standard_error:.4f}"
        draws = "-" if math.isnan(measure.draws) else f"{measure.draws:.4f}"
        if dims is not None:
            nats = ["{:.4f} +- {:.4f}".format(*nats_and_error(s, dims))]
        lines.append([measure.name, mean, *nats, difference, draws, f"{s.nfe:.1f}", *terms])
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = [
        "  ".join(text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    ]
    failed = [
        f"{measure.name}: {measure.summary.failed} of {measure.summary.rows} rows failed and are left out"
        for measure in measures
        if measure.summary.failed
    ]
    legend = [
        "bits/dim = prior + path + data. path: the divergence of the flow, the diffusion of a bound, the steps of the",
        "chain. data: the decoder, or the weight of the dequantisation. draws: the error of one sample by its draws.",
    ]
    return "\n".join([*rows, *failed, "", *legend])
