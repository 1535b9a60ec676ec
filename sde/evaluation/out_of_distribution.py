r"""Out-of-distribution detection by the likelihood.

There are two statistics of a sample, both larger for out-of-distribution data: its bits/dim, and its distance from the
typical set, which is the difference of its bits/dim from the mean over in-distribution data. In high dimension a
density can be larger where the model has no mass, so that the second statistic can detect more than the first.

Their quality is the area under the receiver operating characteristic (AUROC), the probability that an
out-of-distribution sample has the larger statistic, with the standard error of DeLong et al.: for statistics
:math:`x_i` of m in-distribution samples and :math:`y_j` of n out-of-distribution samples

.. math::
    A = \frac{1}{mn} \sum_{ij} \psi(x_i, y_j), \qquad \psi = 1_{x < y} + \tfrac12 1_{x = y}, \qquad
    \operatorname{se}^2 = \frac{\operatorname{Var}_i\big[\bar\psi(x_i, \cdot)\big]}{m}
                        + \frac{\operatorname{Var}_j\big[\bar\psi(\cdot, y_j)\big]}{n} .

The norm of the latent is a related statistic. It follows from the prior's log-density, and for in-distribution data it
has the distribution of the norm of a draw from the prior, :math:`\sqrt v\, \chi_D`.

DeLong, DeLong and Clarke-Pearson, Comparing the Areas under Two or More Correlated ROC Curves, 1988,
https://doi.org/10.2307/2531595; Nalisnick et al., Detecting Out-of-Distribution Inputs to Deep Generative Models Using
Typicality, 2019, https://arxiv.org/abs/1906.02994.
"""

from __future__ import annotations

__all__ = ["Detection", "detect", "latent_norm", "norm_of_prior", "sample_means"]

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..processes import SDE
from ..shapes import float64
from .summary import Columns, means_over_repeats

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Detection:
    """The quality of the detection by a statistic.

    Attributes:
        auroc: the probability that an out-of-distribution sample has the larger statistic; 0.5 is chance.
        standard_error: of `auroc`; NaN for a single sample of either kind.
        in_distribution: the number of in-distribution samples.
        out_of_distribution: the number of out-of-distribution samples.
    """

    auroc: float
    standard_error: float
    in_distribution: int
    out_of_distribution: int

    @classmethod
    def of(cls, in_distribution: Values, out_of_distribution: Values) -> Detection:
        """The detection by the statistics of samples of either kind, with shapes (m,) and (n,)."""
        from scipy.stats import rankdata
        from sklearn.metrics import roc_auc_score

        x, y = in_distribution, out_of_distribution
        m, n = len(x), len(y)
        for kind, values in (("in-distribution", x), ("out-of-distribution", y)):
            if len(values) == 0 or not np.isfinite(values).all():
                raise ValueError(f"expected at least one {kind} sample and finite statistics, got {values}")
        area = float(roc_auc_score(np.repeat([0, 1], [m, n]), np.concatenate([x, y])))
        # A rank among all samples minus the rank among the same kind counts the other kind below, ties by half.
        ranks = rankdata(np.concatenate([x, y]))
        above = 1.0 - (ranks[:m] - rankdata(x)) / n  # for each x, the fraction of y above it
        below = (ranks[m:] - rankdata(y)) / m  # for each y, the fraction of x below it
        error = math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n) if min(m, n) > 1 else math.nan
        return cls(area, error, m, n)

    def __str__(self) -> str:
        return f"{self.auroc:.4f} +- {self.standard_error:.4f}"


def detect(in_distribution: Columns, out_of_distribution: Columns) -> dict[str, Detection]:
    """The detection by bits/dim and by typicality, from the columns of two likelihood files.

    Each sample counts once, with its mean over repeats; failed rows are left out.
    """
    x, y = sample_means(in_distribution), sample_means(out_of_distribution)
    if len(x) == 0 or len(y) == 0:
        raise ValueError(
            f"expected finite likelihoods of both kinds, got {len(x)} in-distribution and {len(y)} out-of-distribution "
            "samples"
        )
    centre = x.mean()
    return {"bits/dim": Detection.of(x, y), "typicality": Detection.of(np.abs(x - centre), np.abs(y - centre))}


def sample_means(columns: Columns, name: str = "bits_per_dim") -> Values:
    """The mean of a column over the repeats of each sample, with shape (samples,), without failed rows."""
    good = np.isfinite(columns["bits_per_dim"])
    return means_over_repeats(columns["index"][good], columns[name][good])[1]


def latent_norm(process: SDE, prior_log_prob: Values, dims: int) -> Values:
    r"""The norm of the latent, :math:`\|z\|^2 = -v\, (2 \log p(z) + D \log 2 \pi v)`, from the prior's log-density.

    Args:
        process: the process, whose prior has the variance v.
        prior_log_prob: in nats, with shape (N,).
        dims: D, the number of dimensions of a sample.
    """
    v = _prior_var(process)
    squared = -v * (2.0 * prior_log_prob + dims * math.log(2.0 * math.pi * v))
    return np.sqrt(np.maximum(squared, 0.0))


def norm_of_prior(process: SDE, dims: int) -> tuple[float, float]:
    r"""The mean and standard deviation of the norm of a draw from the prior.

    .. math:: \sqrt{2 v}\, \frac{\Gamma((D + 1)/2)}{\Gamma(D/2)}, \qquad \sqrt{v D - \mathrm{mean}^2}
    """
    v = _prior_var(process)
    ratio = math.sqrt(2.0) * math.exp(math.lgamma(0.5 * (dims + 1)) - math.lgamma(0.5 * dims))
    return math.sqrt(v) * ratio, math.sqrt(v * max(dims - ratio**2, 0.0))


def _prior_var(process: SDE) -> float:
    return process.prior_var(float64(process.t_max)).item()
