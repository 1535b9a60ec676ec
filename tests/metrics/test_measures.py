"""What all measures of sets have in common: order, chunks, seeds, refusals; and what an estimate prints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import t
from support.sets import Nearest, normals
from torch import Tensor

from sde import metrics
from sde.metrics import Estimate, sets
from sde.metrics.estimate import (
    difference,
    halves,
    jackknife,
    mean_estimate,
    permutation_p_value,
    proportion,
    root,
)
from sde.metrics.sets import deal, keyed_order, permuted_labels, squared_distances
from sde.noise import Stream

Measure = Callable[..., Any]
SETS: dict[str, Measure] = {
    "frechet": metrics.frechet_distance,
    "kernel": lambda x, y, **k: metrics.kernel_distance(x, y, permutations=9, **k),
    "mmd": lambda x, y, **k: metrics.mmd(x, y, permutations=9, **k),
    "energy": lambda x, y, **k: metrics.energy_distance(x, y, permutations=9, **k),
    "manifold": metrics.precision_recall,
    "sliced": lambda x, y, **k: metrics.sliced_wasserstein(x, y, directions=5, permutations=9, **k),
    "column": lambda x, y, **k: metrics.column_wasserstein(x, y, permutations=9, **k),
    "correlation": lambda x, y, **k: metrics.correlation_distance(x, y, permutations=9, **k),
    "classifier": lambda x, y, **k: metrics.classifier_two_sample_test(x, y, classifier=Nearest(), **k),
}
CHUNKED = ["frechet", "kernel", "mmd", "energy", "manifold"]


def numbers(result: Any) -> dict[str, float]:
    """Every number of a result, by name."""
    if isinstance(result, Estimate):
        values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        return {name: value for name, value in values.items() if isinstance(value, float)}
    parts = enumerate(result) if isinstance(result, list) else vars(result).items()
    return {f"{part}.{k}": v for part, e in parts if not isinstance(e, Tensor) for k, v in numbers(e).items()}


def plain(result: Any) -> dict[str, float]:
    """The numbers that have no part in groups, splits and permutations."""
    found = numbers(result)
    whole = {key: value for key, value in found.items() if key.endswith("plain")}
    return whole or {key: value for key, value in found.items() if key.endswith("value") and "p_value" not in key}


@pytest.mark.parametrize("name", SETS)
def test_the_order_of_items_does_not_matter(name: str) -> None:
    """Groups, splits and permutations go with the indices; values without them need no indices."""
    x, y = normals(41, 4), 0.3 + normals(37, 4, seed=1)
    keys = torch.arange(41) * 7, torch.arange(37) + 100
    orders = [side.argsort() for side in (normals(41, seed=2), normals(37, seed=3))]
    whole = numbers(SETS[name](x, y, index=keys, seed=5))
    shuffled = [side[order] for side, order in zip((x, y), orders)]
    moved = SETS[name](*shuffled, index=tuple(key[order] for key, order in zip(keys, orders)), seed=5)
    assert numbers(moved) == pytest.approx(whole, rel=1e-10, abs=1e-12)
    assert numbers(SETS[name](x, y, index=keys, seed=6)) != whole
    if name != "classifier":
        assert plain(SETS[name](*shuffled)) == pytest.approx(plain(SETS[name](x, y)), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", SETS)
def test_the_default_device_does_not_matter(name: str) -> None:
    x, y = normals(30, 3), 0.3 + normals(25, 3, seed=1)
    whole = numbers(SETS[name](x, y))
    with torch.device("meta"):
        assert numbers(SETS[name](x, y)) == whole


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_do_not_matter(name: str) -> None:
    """Far from the origin, and with copies of items in both sets, whose distance is 0."""
    x, y = 50 + normals(41, 4), 50.3 + normals(37, 4, seed=1)
    x[:5] = y[:5]
    y[7] = y[8]
    whole = numbers(SETS[name](x, y))
    assert numbers(SETS[name](x, y, chunk_size=7)) == pytest.approx(whole, rel=1e-10, abs=1e-11)


@pytest.mark.parametrize("name", SETS)
def test_what_cannot_be_measured_is_refused_with_the_reason(name: str) -> None:
    measure, x, y = SETS[name], normals(20, 3), normals(20, 3, seed=1)
    nan = x.clone()
    nan[13, 1], nan[17, 0] = torch.nan, torch.inf
    for arguments, words in {
        (x[:1], y): r"least \d+ items, the samples has 1\b",
        (x, y[:1]): r"least \d+ items, the reference has 1\b",
        (nan, y): "item 13 of the samples",
        (y, nan): "item 13 of the reference",
        (x[:1].expand(20, 3), y): "all 20 items of the samples",
        (x, y[:, :2]): r"\b3 for the samples and 2\b",
        (x[:, 0], y): r"\(N, D\).*\(20,\)",
    }.items():
        with pytest.raises(ValueError, match=words):
            measure(*arguments)


@pytest.mark.parametrize("name", ["mmd", "energy", "manifold", "frechet"])
def test_the_origin_does_not_matter(name: str) -> None:
    x, y = normals(30, 3), 0.3 + normals(25, 3, seed=1)
    assert plain(SETS[name](1e5 + x, 1e5 + y)) == pytest.approx(plain(SETS[name](x, y)), rel=1e-6)


def test_fewer_items_than_neighbours_are_refused() -> None:
    x, y = normals(6, 2), normals(30, 2, seed=1)
    with pytest.raises(ValueError, match=r"least 12 items, the samples has 6"):
        metrics.precision_recall(x, y)
    metrics.precision_recall(x, y, neighbours=2, coverage_neighbours=2)
    with pytest.raises(ValueError, match="at least 3 items in both halves"):
        metrics.precision_recall(
            x, y, neighbours=2, coverage_neighbours=2, index=(torch.arange(6) // 5, torch.arange(30))
        )


def test_the_jackknife_of_a_square_removes_its_bias() -> None:
    """Of the squared mean, whose bias is var/n, the jackknife over all items is exactly unbiased."""
    x = normals(12) + 2
    omitted = torch.stack([x[torch.arange(12) != i].mean() ** 2 for i in range(12)])
    estimate = jackknife(x.mean() ** 2, omitted, corrected=True)
    assert estimate.value == pytest.approx(float(x.mean() ** 2 - x.var() / 12))
    assert estimate.plain == float(x.mean() ** 2)
    mean = jackknife(x.mean(), torch.stack([x[torch.arange(12) != i].mean() for i in range(12)]))
    same = mean_estimate(x)
    assert (mean.value, mean.low, mean.high) == pytest.approx((same.value, same.low, same.high))
    assert mean.standard_error == pytest.approx(float(x.std()) / math.sqrt(12))
    assert (mean.high - mean.value) / same.standard_error == pytest.approx(2.200985)  # t with 11 degrees of freedom


def test_differences_are_paired_by_groups_or_items() -> None:
    """The difference of two jackknifes is the jackknife of it; that of two means is the mean of differences."""
    a, b = normals(7), normals(7, seed=1)
    first, second = (jackknife(side[0] * 3, side, corrected=True) for side in (a, b))
    both = jackknife((b - a)[0] * 3, b - a, corrected=True)
    found = difference(first, second)
    assert (found.value, found.standard_error, found.low) == pytest.approx((both.value, both.standard_error, both.low))
    assert found.p_value == pytest.approx(2 * t.sf(abs(found.value) / found.standard_error, 6))
    means = difference(mean_estimate(a), mean_estimate(b))
    assert (means.value, means.standard_error) == pytest.approx((float((b - a).mean()), float((b - a).std()) / 7**0.5))
    assert means.note == ""
    apart = difference(mean_estimate(a), mean_estimate(normals(6)))
    assert apart.note == "not paired"
    assert apart.standard_error == pytest.approx(math.hypot(float(a.std()) / 7**0.5, float(normals(6).std()) / 6**0.5))
    assert difference(first, first).p_value == 1.0
    # Two halves: the statistic of one is 2 s away from that of the other, on average over divisions.
    split = halves(a[0], a, a + 0.5)
    assert split.standard_error == pytest.approx(0.25)
    # The root keeps its deviations to first order.
    assert float(root(Estimate(4.0, 3.0, 5.0, 0.4, deviations=torch.tensor([0.4]))).deviations) == pytest.approx(0.1)


def test_two_sets_of_samples_differ_by_less_than_their_errors_say() -> None:
    """Both have the error of the reference, which cancels; samples of one seed have their own in common too."""
    reference, one = normals(120, 3, seed=9), normals(120, 3)
    for measure in (metrics.frechet_distance, lambda x, y: metrics.precision_recall(x, y).coverage):
        first, second = (measure(samples, reference) for samples in (one, 1.05 * one + 0.02))
        apart = math.hypot(first.standard_error, second.standard_error)
        assert difference(first, second).standard_error < 0.7 * apart


def test_roots_proportions_and_p_values() -> None:
    four = root(Estimate(4.0, -1.0, 9.0, 0.4, null=1.0))
    assert (four.value, four.low, four.high, four.standard_error, four.null) == pytest.approx((2, 0, 3, 0.1, 1))
    half = proportion(5, 10)
    assert (half.low, half.high) == pytest.approx((0.236593, 0.763407), abs=1e-6)  # Wilson 1927
    assert proportion(0, 10).low == 0.0
    values = torch.tensor([1.0, 2.0, 3.0 - 1e-14, 4.0], dtype=torch.float64)
    assert permutation_p_value(torch.tensor(3.0, dtype=torch.float64), values) == 3 / 5
    assert permutation_p_value(torch.tensor(9.0, dtype=torch.float64), values) == 1 / 5
    one = mean_estimate(torch.tensor([2.0]))
    assert (one.value, one.standard_error, one.low) == (2.0, math.inf, -math.inf)


def test_an_estimate_prints_what_it_knows() -> None:
    text = str(Estimate(1.25, 1.0, 1.5, 0.125, plain=2.5, null=0.0, p_value=0.01, note="few items"))
    assert text == "1.25 +- 0.12 (95 %: 1 to 1.5); plain 2.5; equal sets 0; p 0.01; few items"
    assert str(Estimate(1.25, 1.0, 1.5)) == "1.25 (95 %: 1 to 1.5)"


def test_groups_are_even_and_keep_items_of_one_index_together() -> None:
    groups = deal(torch.arange(103) * 3, 10, seed=0)
    assert set(groups.bincount().tolist()) == {10, 11}
    assert not torch.equal(groups, deal(torch.arange(103) * 3, 10, seed=1))
    index = torch.arange(60) % 12
    groups = deal(index, 4, seed=0)
    assert all(len(groups[index == i].unique()) == 1 for i in range(12))
    assert groups.bincount().tolist() == [15] * 4


def test_a_random_order_is_one_of_the_items() -> None:
    """It stays as it is when other items go, and differs between items."""
    index = torch.arange(50) * 3
    order = index[keyed_order(index, 0, Stream.GROUP)]
    part = index[::4]
    assert torch.equal(part[keyed_order(part, 0, Stream.GROUP)], order[order % 12 == 0])
    assert not torch.equal(keyed_order(index, 0, Stream.GROUP), keyed_order(index + 1, 0, Stream.GROUP))
    assert not torch.equal(keyed_order(index, 0, Stream.GROUP), keyed_order(index, 0, Stream.SPLIT))


def test_permutations_are_divisions_of_the_pooled_items() -> None:
    labels = permuted_labels((torch.arange(7), torch.arange(4)), 300, seed=0)
    assert labels.sum(1).tolist() == [7] * 300
    # Each item is in the first set with probability 7/11: 5 standard errors.
    assert torch.allclose(labels.double().mean(0), torch.tensor(7 / 11, dtype=torch.float64), atol=5 * 0.028)
    assert torch.equal(permuted_labels((torch.arange(7), torch.arange(4)), 3, seed=0, first=2), labels[2:5])
    # Items of one index in the two sets are independent: in one set with probability 5/11; 5 standard errors.
    labels = permuted_labels((torch.arange(6), torch.arange(6)), 300, seed=0)
    together = (labels[:, :6] == labels[:, 6:]).double().mean()
    assert together == pytest.approx(5 / 11, abs=5 * 0.5 / (300 * 6) ** 0.5)


def test_distances_of_copies_are_zero() -> None:
    x = normals(30, 100)
    squares = squared_distances(x, torch.cat([x[:3] + 0.0, x[:3] + 1e-3]))
    assert squares[:3, :3].diag().tolist() == [0.0] * 3
    expected = (x[:, None] - (x[:3] + 1e-3)).square().sum(-1)
    assert torch.allclose(squares[:, 3:], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("collisions", [0, 2])
def test_items_that_come_again_are_found(collisions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By comparison with all earlier ones, -0 among them; also if the first hashes cannot tell items apart."""
    hashes = sets._hashes
    monkeypatch.setattr(sets, "_hashes", lambda x, c, seed: hashes(x, c, seed) % (2 if seed < collisions else 2**40))
    for dtype in (torch.float32, torch.float64):
        x = torch.randint(-1, 2, (70, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
        x[::2] *= -1
        x[60:] = normals(10, 3).to(dtype)
        x[65] = x[61]
        expected = [any(torch.equal(x[i], x[j]) for j in range(i)) for i in range(70)]
        assert sets.repeated(x).tolist() == expected
        assert 30 < sum(expected) < 60
