"""Measures of sets against closed forms, transcriptions of the papers' formulas, and their null distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, wasserstein_distance
from support.sets import Nearest, normals
from torch import Tensor

from sde import metrics
from sde.metrics import Estimate, Gaussian, NegativeDistance, Polynomial
from sde.metrics.manifold import _squared_radii
from sde.metrics.sets import deal, permuted_labels
from sde.noise import Stream

# ---- kernels


def u_statistic(xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> float:
    n, m = xy.shape
    return float((xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean())


def by_definition(x: Tensor, y: Tensor, kernel: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """All pairs by a double loop."""
    return u_statistic(
        *(np.array([[kernel(a, b) for b in t.numpy()] for a in s.numpy()]) for s, t in ((x, x), (x, y), (y, y)))
    )


KERNELS = {
    "polynomial": (Polynomial(), lambda a, b: (a @ b / len(a) + 1) ** 3),
    "quadratic": (Polynomial(2, 0.5), lambda a, b: (a @ b / len(a) + 0.5) ** 2),
    "gaussian": (Gaussian(1.5), lambda a, b: np.exp(-((a - b) ** 2).sum() / 4.5)),
    "distance": (NegativeDistance(), lambda a, b: -np.linalg.norm(a - b)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_distance_and_its_jackknife_by_definition(name: str) -> None:
    kernel, formula = KERNELS[name]
    x, y = normals(13, 3), 0.4 + normals(11, 3, seed=1)
    y[2] = x[4]
    estimate = metrics.kernel_distance(x, y, kernel=kernel, groups=4, chunk_size=5)
    assert estimate.value == pytest.approx(by_definition(x, y, formula))
    of_x, of_y = (deal(torch.arange(len(side)), 4, 0) for side in (x, y))
    omitted = np.array([by_definition(x[of_x != g], y[of_y != g], formula) for g in range(4)])
    assert estimate.standard_error == pytest.approx(np.sqrt(3 / 4 * ((omitted - omitted.mean()) ** 2).sum()))


def test_the_default_bandwidth_is_the_mean_distance() -> None:
    x, y = 7 + normals(12, 3), 7.5 + normals(9, 3, seed=1)
    squares = torch.pdist(torch.cat([x, y])).square()
    expected = metrics.kernel_distance(x, y, kernel=Gaussian(math.sqrt(squares.mean() / 2)))
    assert metrics.mmd(x, y, permutations=0).value == pytest.approx(expected.value)


def test_the_p_value_counts_permutations() -> None:
    """Against the statistic of every permutation, computed on its own."""
    x, y = normals(9, 2), 0.5 + normals(7, 2, seed=1)
    estimate = metrics.energy_distance(x, y, permutations=20, chunk_size=4)
    pooled, labels = torch.cat([x, y]), permuted_labels((torch.arange(9), torch.arange(7)), 20, 0)
    values = [metrics.energy_distance(pooled[k], pooled[~k], permutations=0).value for k in labels]
    assert estimate.p_value == (1 + sum(v >= estimate.value for v in values)) / 21
    assert 1 / 21 < estimate.p_value < 1


def test_the_kernel_distance_is_that_of_torch_fidelity() -> None:
    """Its `polynomial_mmd` of one subset with all items, n = m, transcribed."""
    x, y = normals(60, 20), 0.2 + normals(60, 20, seed=1)
    a, b = x.numpy(), y.numpy()
    kernels = [(np.matmul(s, t.T) * (1 / 20) + 1) ** 3 for s, t in ((a, a), (b, b), (a, b))]
    without_diagonal = [(k.sum(axis=1) - np.diagonal(k)).sum() for k in kernels[:2]]
    theirs = sum(without_diagonal) / (60 * 59) - 2 * kernels[2].sum(axis=0).sum() / (60 * 60)
    assert metrics.kernel_distance(x, y).value == pytest.approx(theirs, rel=1e-8)


def cubic_mean(a: float, s: float, b: float, t: float, d: int) -> float:
    """E (x.y/d + 1)^3 for independent x ~ N(a, s^2), y ~ N(b, t^2) in d dimensions, by the cumulants of x.y/d."""
    moments = [p * q for p, q in zip(*([m, m * m + v * v, m**3 + 3 * m * v * v] for m, v in ((a, s), (b, t))))]
    k1, k2 = moments[0], (moments[1] - moments[0] ** 2) / d
    k3 = (moments[2] - 3 * moments[1] * moments[0] + 2 * moments[0] ** 3) / d**2
    return 1 + 3 * k1 + 3 * (k2 + k1**2) + k3 + 3 * k2 * k1 + k1**3


def kernel_study(repetitions: int, n: int, m: int) -> tuple[float, Tensor]:
    """The true cubic kernel distance of N(0, 1) and N(0.3, 1.44), and (value, error, covered) of the estimates."""
    true = cubic_mean(0, 1, 0, 1, 8) + cubic_mean(0.3, 1.2, 0.3, 1.2, 8) - 2 * cubic_mean(0, 1, 0.3, 1.2, 8)
    sets = ((normals(n, 8, seed=2 * r), 0.3 + 1.2 * normals(m, 8, seed=2 * r + 1)) for r in range(repetitions))
    found = (metrics.kernel_distance(x, y) for x, y in sets)
    return true, torch.tensor([[e.value, e.standard_error, e.low <= true <= e.high] for e in found])


def test_the_kernel_distance_is_unbiased() -> None:
    true, found = kernel_study(40, 60, 40)
    assert abs(found[:, 0].mean() - true) < 4 * found[:, 0].std() / 40**0.5
    assert 0.7 < found[:, 1].mean() / found[:, 0].std() < 1.4
    assert found[:, 2].mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(100, 100), (300, 200)])
def test_bias_and_coverage_of_the_kernel_distance(n: int, m: int) -> None:
    true, found = kernel_study(400, n, m)
    assert abs(found[:, 0].mean() - true) < 3 * found[:, 0].std() / 20
    assert 0.90 <= found[:, 2].mean() <= 0.99


# ---- p-values

TESTS: dict[str, Callable[[Tensor, Tensor, int], Estimate]] = {
    "mmd": lambda x, y, r: metrics.mmd(x, y, permutations=19, groups=2, seed=r),
    "energy": lambda x, y, r: metrics.energy_distance(x, y, permutations=19, groups=2, seed=r),
    "sliced": lambda x, y, r: metrics.sliced_wasserstein(x, y, directions=4, permutations=19, groups=2, seed=r),
    "correlation": lambda x, y, r: metrics.correlation_distance(x, y, permutations=19, groups=2, seed=r),
}


def chi_square(test: Callable[[Tensor, Tensor, int], Estimate], repetitions: int) -> float:
    """Of the p-values of equal distributions, which are 1/20, ..., 20/20 with equal probability."""
    sets = ((normals(12, 2, seed=2 * r), normals(14, 2, seed=2 * r + 1), r) for r in range(repetitions))
    p = torch.tensor([test(*s).p_value for s in sets])
    expected = repetitions / 20
    return float(((torch.bincount((20 * p).round().long() - 1, minlength=20) - expected) ** 2).sum() / expected)


def test_p_values_are_uniform() -> None:
    """A chi-square with 19 degrees of freedom is above 43.8 in one case of 1000."""
    assert chi_square(TESTS["energy"], 60) < 43.8


@pytest.mark.parametrize("name", TESTS)
def test_p_values_of_different_distributions_are_small(name: str) -> None:
    x = normals(40, 2)
    assert TESTS[name](x, (1.0 + 2.0 * x.flip(0)) @ torch.tensor([[1.0, 0.9], [0.0, 0.5]]).double(), 0).p_value == 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_p_values_are_uniform_in_many_cases(name: str) -> None:
    """As above, for every test."""
    assert chi_square(TESTS[name], 1000) < 43.8


def test_the_classifier_test_has_its_level() -> None:
    """Of equal distributions at most 5 % have p <= 0.05: 100 cases, 5 expected, 13 in one of 1000. Of a shift, few have
    a larger one; the error is binomial."""
    found = [
        metrics.classifier_two_sample_test(
            normals(40, 2, seed=2 * r), normals(50, 2, seed=2 * r + 1), classifier=Nearest()
        )
        for r in range(100)
    ]
    assert sum(e.p_value <= 0.05 for e in found) < 13
    assert abs(np.mean([e.value for e in found]) - 0.5) < 4 * 0.5 / math.sqrt(100 * 40)
    assert found[0].p_value == pytest.approx(binomtest(round(40 * found[0].value), 40, alternative="greater").pvalue)
    shifted = metrics.classifier_two_sample_test(normals(400, 2), 1.0 + normals(400, 2, seed=1), classifier=Nearest())
    # The best rule is right with probability Phi(sqrt(2)/2) = 0.760; the standard error is 0.0214.
    assert shifted.value == pytest.approx(0.760, abs=0.065)
    assert shifted.standard_error == pytest.approx(math.sqrt(shifted.value * (1 - shifted.value) / 400))


def test_the_default_classifier_sees_what_means_do_not_show() -> None:
    x = normals(300, 2)
    y = normals(300, 2, seed=1) @ torch.tensor([[1.0, 0.95], [0.0, 0.31]]).double()
    found = metrics.classifier_two_sample_test(x, y)
    assert found.p_value < 0.01
    assert metrics.classifier_two_sample_test(x, y) == found


# ---- Inception score


def test_the_inception_score_of_the_two_extremes() -> None:
    classes = torch.arange(60) % 6
    sure = torch.eye(6)[classes].log()
    for score in (
        metrics.inception_score(sure, splits=1),
        metrics.inception_score(100 * torch.eye(6)[classes], splits=1),
    ):
        assert score.value == pytest.approx(6.0)
        assert math.isinf(score.standard_error)
    constant = metrics.inception_score(torch.tensor([1.0, 0.0, -2.0]).expand(40, 3))
    assert (constant.value, constant.plain) == pytest.approx((1.0, 1.0))
    assert constant.standard_error == pytest.approx(0.0, abs=1e-12)


def test_the_inception_score_by_definition() -> None:
    logits = 2 * normals(90, 5)
    p = logits.softmax(1).numpy()
    score = metrics.inception_score(logits, splits=4, seed=2)
    assert score.plain == pytest.approx(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))
    of = deal(torch.arange(90), 4, 2, Stream.SPLIT).numpy()
    parts = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in (p[of == s] for s in range(4))]
    assert (score.value, score.standard_error) == pytest.approx((np.mean(parts), np.std(parts, ddof=1) / 2))
    assert metrics.inception_score(logits, splits=4, seed=3).value != score.value
    assert metrics.inception_score(logits, splits=4, seed=2) == score


def test_bad_logits_are_refused() -> None:
    logits = normals(12, 3)
    with pytest.raises(ValueError, match="logits"):
        metrics.inception_score(None)
    with pytest.raises(ValueError, match=r"10 splits.*\(9, 3\)"):
        metrics.inception_score(logits[:9])
    logits[4, 1] = torch.nan
    with pytest.raises(ValueError, match="item 4"):
        metrics.inception_score(logits)


# ---- precision, recall, density, coverage


def four_numbers(real: np.ndarray, fake: np.ndarray, k: int, c: int) -> list[float]:
    """The formulas of Kynkaanniemi et al. 2019 and Naeem et al. 2020, item by item, with closed balls."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(((a - b) ** 2).sum()))

    def radius(i: int, items: np.ndarray, k: int) -> float:
        return sorted(distance(items[i], items[j]) for j in range(len(items)) if j != i)[k - 1]

    n, m = len(real), len(fake)
    radii, wide, fakes = ([radius(i, s, q) for i in range(len(s))] for s, q in ((real, k), (real, c), (fake, k)))
    between = [[distance(x, y) for y in fake] for x in real]
    return [
        sum(any(between[i][j] <= radii[i] for i in range(n)) for j in range(m)) / m,
        sum(any(between[i][j] <= fakes[j] for j in range(m)) for i in range(n)) / n,
        sum(between[i][j] <= wide[i] for i in range(n) for j in range(m)) / (c * m),
        sum(any(between[i][j] <= wide[i] for j in range(m)) for i in range(n)) / n,
    ]


@pytest.mark.parametrize("case", range(50))
def test_precision_recall_density_and_coverage_by_definition(case: int) -> None:
    """Integers on a grid have many equal distances and copies; the other cases have copies within and between sets."""
    draw = np.random.RandomState(case)
    (n, m), (d, k), c = draw.randint(12, 17, 2), draw.randint(1, 4, 2), draw.randint(1, 6)
    if case % 2:
        real, fake = draw.randint(0, 4, (n, d)).astype(float), draw.randint(0, 5, (m, d)).astype(float)
    else:
        real, fake = draw.randn(n, d), draw.randn(m, d)
        fake[:3], real[3], fake[4] = real[:3], real[4], fake[5]
    real[0], real[1] = 0.0, 3.0
    fake[0], fake[1] = 0.0, 2.0
    x, y = torch.from_numpy(fake), torch.from_numpy(real)
    found = metrics.precision_recall(x, y, neighbours=int(k), coverage_neighbours=int(c), halvings=3)
    assert [e.value for e in vars(found).values()] == pytest.approx(four_numbers(real, fake, k, c))
    divisions = [[deal(torch.arange(len(s)), 2, 0, Stream.HALF, r).numpy() for s in (x, y)] for r in range(3)]
    parts = [[four_numbers(real[b == h], fake[a == h], k, c) for h in (0, 1)] for a, b in divisions]
    errors = np.sqrt((np.diff(parts, axis=1) ** 2).mean((0, 1)) / 4)
    assert [e.standard_error for e in vars(found).values()] == pytest.approx(errors.tolist())


def test_neighbours_of_an_item_whose_nearest_are_all_in_the_other_half() -> None:
    x = torch.cat([1e-3 * normals(16, 2), normals(30, 2, seed=1)])
    half = torch.cat([torch.tensor([0] + [1] * 15), torch.arange(30) % 2])
    (radii,) = _squared_radii(x, torch.zeros(2, dtype=torch.float64), half[None], (1,), 7)
    squares = torch.cdist(x, x).square() + torch.where(half[:, None] == half, 0, torch.inf)
    assert torch.allclose(radii[0], squares.fill_diagonal_(torch.inf).min(1).values, rtol=1e-8)


def test_the_interval_of_a_proportion_has_a_width_at_its_ends() -> None:
    x = normals(40, 2)
    found = metrics.precision_recall(x, x)
    assert (found.precision.value, found.precision.standard_error, found.precision.high) == (1.0, 0.0, 1.0)
    assert found.precision.low == pytest.approx(1 / (1 + 1.959964**2 / 40))  # Wilson 1927


def test_density_and_coverage_of_equal_distributions() -> None:
    """The expected coverage 1 - prod (n - i)/(n + m - i) and density 1, within 4 standard errors of 40 pairs."""
    found = [metrics.precision_recall(normals(60, 4, seed=2 * r), normals(40, 4, seed=2 * r + 1)) for r in range(40)]
    expected = 1 - math.prod((40 - i) / (100 - i) for i in range(1, 6))
    assert found[0].coverage.null == pytest.approx(expected)
    for values, null in (([f.coverage.value for f in found], expected), ([f.density.value for f in found], 1.0)):
        assert abs(np.mean(values) - null) < 4 * np.std(values, ddof=1) / 40**0.5
    # The error of a standard deviation from 40 pairs is 11 %: 4 of them. Those of the jackknife are twice as large.
    for name in ("precision", "recall", "density", "coverage"):
        values, errors = zip(*((getattr(f, name).value, getattr(f, name).standard_error) for f in found))
        assert 0.6 < np.mean(errors) / np.std(values, ddof=1) < 1.45


@pytest.mark.slow
@pytest.mark.parametrize(("d", "shift"), [(2, 0.3), (8, 0.0), (32, 0.1)])
def test_the_errors_of_neighbours_are_their_standard_deviations(d: int, shift: float) -> None:
    """400 pairs of sets of 200: the error of a standard deviation is 3.5 %, and half-samples are not exact."""
    sets = ((shift + normals(200, d, seed=2 * r), normals(200, d, seed=2 * r + 1)) for r in range(400))
    found = [list(vars(metrics.precision_recall(x, y)).values()) for x, y in sets]
    values = torch.tensor([[e.value for e in four] for four in found])
    squares = torch.tensor([[e.standard_error**2 for e in four] for four in found])
    ratios = squares.mean(0).sqrt() / values.std(0)
    assert ((ratios > 0.8) & (ratios < 1.25)).all(), ratios
    covered = torch.tensor([[e.low <= v <= e.high for e, v in zip(four, values.mean(0))] for four in found])
    assert (covered.double().mean(0) > 0.9).all(), covered.double().mean(0)


# ---- transport and tables


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 20), (31, 17)])
def test_column_distances_are_those_of_scipy(n: int, m: int) -> None:
    x, y = normals(n, 3), 0.3 + normals(m, 3, seed=1)
    found = metrics.column_wasserstein(x, y, permutations=0)
    expected = [wasserstein_distance(x[:, d].numpy(), y[:, d].numpy()) for d in range(3)]
    assert [e.value for e in found] == pytest.approx(expected)


def test_transport_to_a_shift_and_its_errors() -> None:
    x = normals(40, 3)
    for order in (1, 2):
        (first, _, _) = metrics.column_wasserstein(x, x + torch.tensor([2.0, 0.0, -1.0]), order=order)
        assert (first.low, first.value, first.high) == pytest.approx((2.0, 2.0, 2.0))
    # Along a unit vector a shift v is |theta.v|; over directions of the plane its mean square is |v|^2 / 2.
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 8
    lines = torch.stack([angles.cos(), angles.sin()])
    found = metrics.sliced_wasserstein(x[:, :2], x[:, :2] + torch.tensor([3.0, 4.0]), directions=lines)
    assert found.value == pytest.approx(5 / math.sqrt(2))


def test_the_floor_is_the_distance_of_two_sets_of_one_distribution() -> None:
    """The mean of the floors of 12 pairs is that of their distances, within 5 standard errors."""
    sets = [(normals(50, 3, seed=2 * r), normals(50, 3, seed=2 * r + 1)) for r in range(12)]
    for measure in (
        lambda x, y: metrics.sliced_wasserstein(x, y, directions=8, permutations=19),
        lambda x, y: metrics.correlation_distance(x, y, permutations=19),
    ):
        found = [measure(x, y) for x, y in sets]
        values, floors = np.array([e.value for e in found]), np.array([e.null for e in found])
        assert abs((values**2).mean() - (floors**2).mean()) < 5 * (values**2).std(ddof=1) / 12**0.5


def test_the_correlation_distance_by_definition() -> None:
    x, y = normals(50, 4), normals(40, 4, seed=1) @ normals(4, 4, seed=2)
    difference = np.corrcoef(x.numpy(), rowvar=False) - np.corrcoef(y.numpy(), rowvar=False)
    found = metrics.correlation_distance(x * torch.tensor([1.0, 10.0, 0.1, 3.0]) + 100, y)
    assert found.value == pytest.approx(np.sqrt((difference[np.triu_indices(4, 1)] ** 2).mean()))
    y[:, 2] = 7.0
    with pytest.raises(ValueError, match="column 2 of the reference"):
        metrics.correlation_distance(x, y)
    with pytest.raises(ValueError, match="two columns"):
        metrics.correlation_distance(x[:, :1], y[:, :1])
    with pytest.raises(ValueError, match="order"):
        metrics.column_wasserstein(x, y, order=3)
    with pytest.raises(ValueError, match=r"\(4, L\).*\(3, 4\)"):
        metrics.sliced_wasserstein(x, y, directions=torch.ones(3, 4))


# ---- memorisation


def test_memorised_items_are_found() -> None:
    training = normals(80, 10)
    training[70] = training[3]
    samples, held_out = normals(30, 10, seed=1), normals(50, 10, seed=2)
    samples[:6] = training[:6] + 1e-3 * normals(6, 10, seed=3)
    samples[3] = training[3]  # a copy of an item that is there twice
    training[71], samples[5] = training[5] * (1 + 1e-9), training[5]  # and once more up to rounding
    found = metrics.memorisation(samples, training, held_out, chunk_size=7)
    assert found.copies.value == 6 / 30
    assert found.copies.null == 0.0
    assert found.copies.p_value < 0.01
    assert found.nearest[:5].tolist() == list(range(5))
    assert found.distance[3] == 0.0
    assert found.ratio.per_item[[3, 5]].tolist() == [0.0, 0.0]
    assert found.ratio.p_value < 0.01
    distances = (samples[:, None] - training).norm(dim=-1).sort(dim=1).values
    assert torch.allclose(found.ratio.per_item[6:], distances[6:, 0] / distances[6:, 1])
    assert torch.allclose(found.distance[6:], distances[6:, 0])
    fresh = metrics.memorisation(normals(60, 10, seed=4), training, held_out)
    assert fresh.copies.value == 0.0
    assert fresh.ratio.p_value > 0.01
    assert abs(fresh.ratio.value - fresh.ratio.null) < 5 * fresh.ratio.standard_error
    with pytest.raises(ValueError, match="threshold"):
        metrics.memorisation(samples, training, held_out, threshold=2.0)
    with pytest.raises(ValueError, match="held-out"):
        metrics.memorisation(samples, training, held_out[:1])
