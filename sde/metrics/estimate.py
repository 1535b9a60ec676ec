r"""Estimates: a number with its standard error and its 95 % interval.

**Jackknife over groups.** The items are dealt into G groups, and the statistic :math:`\theta` is computed again without
each group, :math:`\theta_{(g)}`, in a comparison of two sets without the group in both. With
:math:`\bar\theta = \frac1G \sum_g \theta_{(g)}`,

.. math::
    \theta_J = G\,\theta - (G - 1)\,\bar\theta, \qquad
    \mathrm{se}^2 = \frac{G - 1}{G} \sum_g \big(\theta_{(g)} - \bar\theta\big)^2 .

:math:`\theta_J` has no bias of order 1/N. The interval is :math:`\pm t_{G-1}\,\mathrm{se}`. The bootstrap would not do
here: a resample has ties, and its distance from the other set counts the bias twice.

**Random halves.** A statistic of neighbours depends on pairs of items, and the jackknife counts the variance of what
pairs contribute twice (Efron and Stein 1981, https://doi.org/10.1214/aos/1176345462). Its variance is estimated from R
random divisions of the items into two halves instead, with the statistics :math:`\theta_{r1}` and :math:`\theta_{r2}`
of the halves: if the variance is proportional to 1/N, then without bias by

.. math::
    \mathrm{se}^2 = \frac1R \sum_r \Big(\frac{\theta_{r1} - \theta_{r2}}{2}\Big)^2 .

**Differences.** Both errors are the norm of a vector of deviations, one for each group or division. Two estimates
with the same groups, such as those of two sets of samples against one reference, differ by the norm of the difference
of their deviations: what they have in common cancels.

Quenouille 1956, https://doi.org/10.1093/biomet/43.3-4.353; Shao and Wu 1989, https://doi.org/10.1214/aos/1176347263;
McCarthy 1969 on half-samples, https://doi.org/10.2307/1402116.
"""

from __future__ import annotations

__all__ = [
    "Estimate",
    "difference",
    "halves",
    "jackknife",
    "mean_estimate",
    "permutation_p_value",
    "proportion",
    "root",
    "t_quantile",
]

import math
from dataclasses import dataclass, field, replace

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error and its 95 % confidence interval.

    Attributes:
        value: the number.
        low: the lower end of the interval.
        high: the upper end of the interval.
        standard_error: the standard error; infinite where it cannot be known (one item), None where only the interval
            was computed.
        plain: the estimate without correction of its bias, as papers print it; for an Inception score, that of all
            items in one split.
        null: the expected value if both sets came from one distribution.
        p_value: the probability under that hypothesis of a value at least as extreme.
        note: what a reader must know before using the number.
        per_item: the values of the items, in their order, where the number is their mean, with shape (N,).
        deviations: the vector whose norm is the standard error, with an entry for each group, division or split; None
            where the error does not come from them.
    """

    value: float
    low: float
    high: float
    standard_error: float | None = None
    plain: float | None = None
    null: float | None = None
    p_value: float | None = None
    note: str = ""
    per_item: Tensor | None = field(default=None, repr=False, compare=False)
    deviations: Tensor | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" +- {self.standard_error:.2g}"
        parts = [f"{self.value:.5g}{error} (95 %: {self.low:.5g} to {self.high:.5g})"]
        names = {"plain": self.plain, "equal sets": self.null, "p": self.p_value}
        parts += [f"{name} {value:.4g}" for name, value in names.items() if value is not None]
        return "; ".join([*parts, *([self.note] if self.note else [])])


def t_quantile(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def jackknife(
    whole: Tensor, omitted: Tensor, *, corrected: bool = False, null: float | None = None, note: str = ""
) -> Estimate:
    """The estimate from a statistic and its values without one group each.

    Args:
        whole: the statistic of all items, with shape ().
        omitted: those without one group, with shape (G,), G >= 2.
        corrected: whether the value is the jackknife's, with the statistic as `plain`; otherwise it is the statistic.
    """
    groups, value, mean = len(omitted), float(whole), float(omitted.mean())
    deviations = (omitted - omitted.mean()) * math.sqrt((groups - 1) / groups)
    plain = value if corrected else None
    value = groups * value - (groups - 1) * mean if corrected else value
    return replace(_with_error(value, deviations), plain=plain, null=null, note=note)


def halves(whole: Tensor, first: Tensor, second: Tensor, *, null: float | None = None) -> Estimate:
    """The estimate from a statistic and its values of two random halves.

    Args:
        whole: the statistic of all items, with shape ().
        first: those of the first half in each of R divisions, with shape (R,), R >= 2.
        second: those of the second half.
    """
    deviations = (first - second) / (2.0 * math.sqrt(len(first)))
    return replace(_with_error(float(whole), deviations), null=null)


def _with_error(value: float, deviations: Tensor) -> Estimate:
    """The estimate whose standard error is the norm of deviations."""
    error = float(deviations.norm())
    half = t_quantile(len(deviations) - 1) * error
    return Estimate(value, value - half, value + half, error, deviations=deviations)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """The second estimate minus the first, with its error and the p-value of no difference, by Student's distribution.

    Estimates with values of the same items, or with deviations of the same groups, are compared pairwise, for the same
    seed, reference and indices. Otherwise the errors are those of independent estimates, as the note says.
    """
    ones, others = ([e.per_item, e.deviations] if e.value != math.inf else [None, None] for e in (first, second))
    pairs = [b - a if a is not None and b is not None and len(a) == len(b) else None for a, b in zip(ones, others)]
    value, note = second.value - first.value, ""
    if pairs[0] is not None and len(pairs[0]) > 1:
        estimate, degrees = mean_estimate(pairs[0]), len(pairs[0]) - 1
    elif pairs[1] is not None:
        estimate, degrees = _with_error(value, pairs[1]), len(pairs[1]) - 1
    else:
        errors = [math.nan if e.standard_error is None else e.standard_error for e in (first, second)]
        error, note, degrees = math.hypot(*errors), "not paired", 10**6
        half = t_quantile(degrees) * error
        estimate = Estimate(value, value - half, value + half, error)
    return replace(estimate, p_value=_two_sided(estimate, degrees), note=note)


def _two_sided(estimate: Estimate, degrees: int) -> float:
    from scipy.special import stdtr

    if not estimate.standard_error:
        return float(estimate.value == 0.0)
    return float(2.0 * stdtr(degrees, -abs(estimate.value) / estimate.standard_error))


def mean_estimate(values: Tensor, note: str = "") -> Estimate:
    """The mean of independent values (N,) with its standard error and the interval of Student's t distribution."""
    n, mean = len(values), float(values.mean())
    error = float(values.std()) / math.sqrt(n) if n > 1 else math.inf
    half = t_quantile(n - 1) * error if n > 1 else math.inf
    return Estimate(mean, mean - half, mean + half, error, note=note, per_item=values)


def proportion(successes: int, n: int) -> Estimate:
    """The proportion of successes with its binomial standard error and Wilson's interval.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    z, p = 1.959963984540054, successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), math.sqrt(p * (1 - p) / n))


def root(square: Estimate) -> Estimate:
    """The square root of an estimate; an end below 0 becomes 0, and the standard error is that of the delta method."""
    value, low, high = (math.sqrt(max(0.0, end)) for end in (square.value, square.low, square.high))
    error, deviations = square.standard_error, square.deviations
    if error is not None:
        error = error / (2 * value) if value else math.sqrt(error)
    if deviations is not None:
        deviations = deviations / (2 * value) if value else None
    null = None if square.null is None else math.sqrt(max(0.0, square.null))
    return replace(square, value=value, low=low, high=high, standard_error=error, null=null, deviations=deviations)


def permutation_p_value(value: Tensor, permuted: Tensor) -> float:
    """The p-value of a statistic that is large for different sets, (1 + number of permuted >= value) / (1 + P).

    It is exact: under the null hypothesis P(p <= a) <= a for every a. Values that differ by rounding are equal.

    Args:
        value: the statistic, with shape ().
        permuted: the statistic under P permutations of the pooled items, with shape (P,).
    """
    slack = 1e-10 * max(float(value.abs()), float(permuted.abs().max()))
    return (1 + int((permuted >= value - slack).sum())) / (1 + len(permuted))
