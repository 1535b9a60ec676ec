r"""Does the likelihood tell other data from the model's own?

Two statistics of a sample, both larger for what is foreign: its bits/dim, and its distance from the typical set, the
difference of its bits/dim from the mean over data of the model's own kind. In high dimension a density may be larger
where the model puts no mass at all, so that the second can tell what the first cannot.

Each is judged by the area under the receiver operating characteristic, the probability that a foreign sample has the
larger statistic, with the standard error of DeLong et al.: for statistics :math:`x_i` of m own samples and
:math:`y_j` of n foreign ones

.. math::
    A = \frac{1}{mn} \sum_{ij} \psi(x_i, y_j), \qquad \psi = 1_{x < y} + \tfrac12 1_{x = y}, \qquad
    \operatorname{se}^2 = \frac{\operatorname{Var}_i\big[\bar\psi(x_i, \cdot)\big]}{m}
                        + \frac{\operatorname{Var}_j\big[\bar\psi(\cdot, y_j)\big]}{n} .

The norm of the latent belongs to the same picture. It follows from the prior's log-density, and for data of the
model's own kind it is that of a draw of the prior, :math:`\sqrt v\, \chi_D`.

DeLong, DeLong and Clarke-Pearson, Comparing the Areas under Two or More Correlated ROC Curves, 1988,
https://doi.org/10.2307/2531595; Nalisnick et al., Detecting Out-of-Distribution Inputs to Deep Generative Models Using
Typicality, 2019, https://arxiv.org/abs/1906.02994.
"""

from __future__ import annotations

__all__ = ["Detection", "detect", "latent_norm", "norm_of_prior", "sample_means"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..processes import SDE

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Detection:
    """How well a statistic tells foreign samples from own ones.

    Attributes:
        auroc: the probability that a foreign sample has the larger statistic; 0.5 is chance.
        standard_error: of it; NaN where one side has a single sample.
        own: how many own samples.
        foreign: how many foreign samples.
    """

    auroc: float
    standard_error: float
    own: int
    foreign: int

    @classmethod
    def of(cls, own: Values, foreign: Values) -> Detection:
        """The detection by the statistics of own samples, with shape (m,), and foreign ones, with shape (n,)."""
        from scipy.stats import rankdata
        from sklearn.metrics import roc_auc_score

        m, n = len(own), len(foreign)
        for name, values in (("own", own), ("foreign", foreign)):
            if len(values) == 0 or not np.isfinite(values).all():
                raise ValueError(f"expected at least one {name} sample, and finite statistics of all of them")
        area = float(roc_auc_score(np.repeat([0, 1], [m, n]), np.concatenate([own, foreign])))
        # A rank among all less the rank among one's own kind counts the others below, ties by half.
        ranks = rankdata(np.concatenate([own, foreign]))
        above = 1.0 - (ranks[:m] - rankdata(own)) / n  # for each x, the share of y above it
        below = (ranks[m:] - rankdata(foreign)) / m  # for each y, the share of x below it
        error = math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n) if min(m, n) > 1 else math.nan
        return cls(area, error, m, n)

    def __str__(self) -> str:
        return f"{self.auroc:.4f} +- {self.standard_error:.4f}"


def detect(own: Mapping[str, NDArray[Any]], foreign: Mapping[str, NDArray[Any]]) -> dict[str, Detection]:
    """The detection by bits/dim and by typicality, of the rows of two likelihood files.

    A sample counts once, with its mean over repeats; rows that failed are left out.
    """
    x, y = sample_means(own), sample_means(foreign)
    if len(x) == 0 or len(y) == 0:
        raise ValueError(f"there is nothing to compare: {len(x)} own and {len(y)} foreign samples have a likelihood")
    centre = x.mean()
    return {"bits/dim": Detection.of(x, y), "typicality": Detection.of(np.abs(x - centre), np.abs(y - centre))}


def sample_means(columns: Mapping[str, NDArray[Any]], name: str = "bits_per_dim") -> Values:
    """A column's mean over the repeats of each sample, with shape (samples,), over rows that did not fail."""
    good = np.isfinite(columns["bits_per_dim"])
    _, place = np.unique(columns["index"][good], return_inverse=True)
    means: Values = np.bincount(place, weights=columns[name][good]) / np.bincount(place)
    return means


def latent_norm(process: SDE, prior_log_prob: Values, dims: int) -> Values:
    r"""The norm of the latent, :math:`\|z\|^2 = -v\, (2 \log p(z) + D \log 2 \pi v)`, from the prior's log-density.

    Args:
        process: whose prior it is, with variance v.
        prior_log_prob: in nats, with shape (N,).
        dims: D.
    """
    v = _prior_var(process)
    squared = -v * (2.0 * prior_log_prob + dims * math.log(2.0 * math.pi * v))
    return np.sqrt(np.maximum(squared, 0.0))


def norm_of_prior(process: SDE, dims: int) -> tuple[float, float]:
    r"""Mean and standard deviation of the norm of a draw of the prior.

    .. math:: \sqrt{2 v}\, \frac{\Gamma((D + 1)/2)}{\Gamma(D/2)}, \qquad \sqrt{v D - \mathrm{mean}^2}
    """
    v = _prior_var(process)
    ratio = math.sqrt(2.0) * math.exp(math.lgamma(0.5 * (dims + 1)) - math.lgamma(0.5 * dims))
    return math.sqrt(v) * ratio, math.sqrt(v * max(dims - ratio**2, 0.0))


def _prior_var(process: SDE) -> float:
    return process.prior_var(torch.tensor(process.t_max, dtype=torch.float64)).item()
