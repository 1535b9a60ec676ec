r"""Likelihoods side by side: the probability flow and the variational bounds on the same images, in bits/dim.

Four measures, each with the terms that it is the sum of, all in bits/dim, :math:`-\text{nats} / (D \log 2)`:

- `flow`, the density of the probability flow (:func:`sde.log_prob`): the `prior` at the latent, the integral of the
  `divergence`, and the `weight` of the dequantisation (:mod:`sde.likelihood.dequantisation`; of continuous data the
  :math:`D \log a` of their scaling).
- `density`, the bound of the reverse SDE on the density of the same states (:func:`sde.likelihood.density_bound`): the
  `prior`, the `diffusion`, and the same `weight`.
- `continuous`, the bound of the reverse SDE and a decoder (:func:`sde.likelihood.continuous_bound`): the `prior`, the
  `diffusion`, and the decoder at the `data` end, wherever that is (:mod:`sde.likelihood.truncation`). Of discrete data
  it needs no dequantisation; of continuous data the decoder is a density on the scale of the data, :math:`D \log a`
  included.
- `chain`, the bound of DDPM's chain (:func:`sde.likelihood.chain_bound`): the `prior` :math:`L_N`, the `steps`
  :math:`\sum_{i=1}^{N-1} L_i`, and the decoder's :math:`L_0` at the `data` end, as in `continuous`.

The SDE and the flow of a network are two models: only with the true score have they one density. That a bound lies
above the flow is therefore no law, and the difference holds the slack of the bound, the difference of the two models,
and what dequantisation costs the flow.

Song et al., Maximum Likelihood Training of Score-Based Diffusion Models, 2021, https://arxiv.org/abs/2101.09258,
section 4; Ho et al., Denoising Diffusion Probabilistic Models, 2020, https://arxiv.org/abs/2006.11239, equation 5.
"""

from __future__ import annotations

__all__ = ["MEASURES", "Line", "columns_of", "lines", "table"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .likelihood_job import Summary, summarise
from .pairing import Paired, paired

# The measures and the terms that each is the sum of: the noise end, the path, the data end.
MEASURES: dict[str, tuple[str, str, str]] = {
    "flow": ("prior", "divergence", "weight"),
    "density": ("prior", "diffusion", "weight"),
    "continuous": ("prior", "diffusion", "data"),
    "chain": ("prior", "steps", "data"),
}


def columns_of(measures: Sequence[str]) -> dict[str, type[np.generic]]:
    """The columns of the file of some measures beside `index` and `repeat`, name to dtype: for each measure M its
    bits/dim M, its terms M_TERM, `M_standard_error` over draws or probes, in bits/dim too, and `M_nfe`.

    Raises:
        ValueError: if there is none, one is not known, or one comes twice.
    """
    known = ", ".join(MEASURES)
    if isinstance(measures, str) or not measures or len(set(measures)) < len(measures):
        raise ValueError(f"expected measures as a list of some of {known}, each once, got {measures!r}")
    columns: dict[str, type[np.generic]] = {}
    for name in measures:
        if name not in MEASURES:
            raise ValueError(f"measure {name!r} is not known: expected some of {known}")
        terms = (f"{name}_{term}" for term in (*MEASURES[name], "standard_error"))
        columns |= {name: np.float64, **dict.fromkeys(terms, np.float64), f"{name}_nfe": np.int64}
    return columns


@dataclass(frozen=True)
class Line:
    """What a measure gave, over images; rows in which it is not finite are counted and else left out.

    Attributes:
        name: the measure.
        summary: the mean over images of each one's mean over repeats, its standard error, calls and failures.
        terms: the same mean of each term, in bits/dim; they add up to that of the measure.
        draws: the root mean square, over rows, of the standard error over draws or probes, in bits/dim; NaN where
            there is one draw, which cannot tell.
        difference: from the flow, image by image; None for the flow itself, and where two images are not in both.
    """

    name: str
    summary: Summary
    terms: dict[str, float]
    draws: float
    difference: Paired | None


def lines(columns: Mapping[str, NDArray[Any]]) -> list[Line]:
    """What the measures of a file gave, flow, density, continuous, chain in this order."""
    return [_line(columns, name) for name in MEASURES if name in columns]


def _line(columns: Mapping[str, NDArray[Any]], name: str) -> Line:
    keys = {key: columns[key] for key in ("index", "repeat")}
    whole = {**keys, "bits_per_dim": columns[name], "nfe": columns[f"{name}_nfe"]}
    good = np.isfinite(columns[name])
    terms = {
        term: summarise({**whole, "bits_per_dim": np.where(good, columns[f"{name}_{term}"], np.nan)}).bits_per_dim
        for term in MEASURES[name]
    }
    errors = columns[f"{name}_standard_error"][good]
    draws = float(np.sqrt(np.square(errors).mean())) if len(errors) else math.nan
    difference = None
    if name != "flow" and "flow" in columns:
        flow = {**keys, "bits_per_dim": columns["flow"]}
        if len(np.unique(keys["index"][good & np.isfinite(columns["flow"])])) > 1:
            difference = paired(flow, whole)
    return Line(name, summarise(whole), terms, draws, difference)


def table(found: Sequence[Line]) -> str:
    """The measures as an aligned table, with the terms that they are the sum of."""
    head = ["", "bits/dim", "less the flow", "draws", "calls", "prior", "path", "data"]
    cells = [head]
    for line in found:
        d, s = line.difference, line.summary
        difference = "" if d is None else f"{d.difference:+.4f} +- {d.standard_error:.4f}"
        terms = [f"{value:.4f}" for value in line.terms.values()]
        mean = f"{s.bits_per_dim:.4f} +- {s.standard_error:.4f}"
        draws = "-" if math.isnan(line.draws) else f"{line.draws:.4f}"
        cells.append([line.name, mean, difference, draws, f"{s.nfe:.1f}", *terms])
    wide = [max(map(len, column)) for column in zip(*cells)]
    rows = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide))).rstrip()
        for row in cells
    ]
    failed = [
        f"{line.name}: {line.summary.failed} of {line.summary.rows} rows failed and are left out"
        for line in found
        if line.summary.failed
    ]
    legend = [
        "bits/dim = prior + path + data: the path is the flow's divergence, a bound's diffusion or the chain's steps,",
        "the data end a decoder, or the weight of the dequantisation. draws: one image's error by its draws or probes.",
    ]
    return "\n".join([*rows, *failed, "", *legend])
