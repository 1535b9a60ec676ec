"""Brownian paths: their distribution, consistency of a path, and dependence on seed, sample and time only."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import sde.brownian
from sde.brownian import BrownianNoise, BrownianPath, along_path
from sde.noise import Noise, StepNoise, Stream

TIMES = [0.0, 1e-5, 0.013, 0.2, 1.0 / 3.0, 0.71, 1.0, 1.7, 2.0, 5.3, 80.0]


def paths(n: int, seed: int = 0, event: tuple[int, ...] = (2,), levels: int = 24) -> BrownianNoise:
    return BrownianPath(seed, levels).batch(torch.arange(n), event, torch.float64)


def increments(noise: StepNoise, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """W_stop - W_start, and the integral of W - W_start from start to stop."""
    h = abs(stop - start)
    w = noise.normal(Stream.STEP, 0, start, stop) * math.sqrt(h)
    mean = 0.5 * w + noise.normal(Stream.AREA, 0, start, stop) * math.sqrt(h / 12.0)
    return w, (stop - start) * mean


# ---- the distribution


@pytest.mark.parametrize("levels", [1, 4, 24])
def test_increments_and_areas_are_independent_standard_normals(levels: int) -> None:
    """Over intervals whose ends lie in different leaves, for trees of any depth; the family-wise error is 1e-3."""
    leaf = 2.0**-levels
    times = [t for t in TIMES if levels > 4 or t == 0.0 or math.sqrt(t) > leaf]
    if levels == 1:  # the leaves of the first tree are [0, 1/4] and [1/4, 1], of the second [1, 5/4] and [5/4, 2]
        times = [0.0, 0.2, 0.6, 1.0, 1.1, 1.9, 2.0, 2.3]
    n = 20_000
    noise = paths(n, 1, (1,), levels)
    draws = [
        noise.normal(stream, 0, b, a)[:, 0]
        for a, b in itertools.pairwise(times)
        for stream in (Stream.STEP, Stream.AREA)
    ]
    z = torch.stack(draws, 1)
    m = z.shape[1]
    deviations = math.sqrt(n) * torch.cat(
        [z.mean(0), (z.T @ z / n - torch.eye(m)).fill_diagonal_(0.0).flatten(), (z.var(0) - 1.0) / math.sqrt(2.0)]
    )
    checks = m + m * (m - 1) // 2 + m
    bound = torch.special.ndtri(torch.tensor(1.0 - 1e-3 / (2 * checks), dtype=torch.float64))
    assert float(deviations.abs().max()) < float(bound)
    kurtosis = math.sqrt(n / 96.0) * (z.pow(4).mean(0) - 3.0)  # Var z^4 = 96
    assert float(kurtosis.abs().max()) < 5.0


def test_intermediate_times_do_not_change_the_distribution() -> None:
    """A time within a leaf is a bridge between the ends of the leaf; both parts have the right joint distribution."""
    n, a, t, b = 60_000, 0.25, 0.5, 1.0  # [1/4, 1] is a leaf
    noise = paths(n, 2, (1,), levels=1)
    (w1, u1), (w2, u2) = increments(noise, a, t), increments(noise, t, b)
    z = torch.cat([w1 / 0.25**0.5, (u1 / 0.25 - w1 / 2) * (12 / 0.25) ** 0.5], 1)
    z = torch.cat([z, w2 / 0.5**0.5, (u2 / 0.5 - w2 / 2) * (12 / 0.5) ** 0.5], 1)
    assert float((z.T @ z / n - torch.eye(4)).abs().max()) < 4.5 * math.sqrt(2.0 / n)


# ---- one path


@pytest.mark.parametrize(("a", "b", "c"), [(0.1, 0.37, 0.9), (1e-5, 2e-5, 1.0), (0.5, 1.0, 1.5), (0.0, 3.3, 70.0)])
def test_increments_and_integrals_add_up(a: float, b: float, c: float) -> None:
    noise = paths(50)
    (w1, u1), (w2, u2), (w, u) = (increments(noise, *ends) for ends in ((a, b), (b, c), (a, c)))
    torch.testing.assert_close(w1 + w2, w, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(u1 + u2 + (c - b) * w1, u, rtol=1e-12, atol=1e-12)


def test_the_integral_is_that_of_the_path() -> None:
    """Against the trapezoid rule on 100 intervals, whose error is the sum of their areas."""
    noise, m = paths(40), 100
    times = torch.linspace(0.2, 0.9, m + 1, dtype=torch.float64).tolist()
    h = 0.7 / m
    w = torch.stack([torch.zeros(40, 2, dtype=torch.float64), *(increments(noise, 0.2, t)[0] for t in times[1:])])
    error = h * (w[1:] + w[:-1]).sum(0) / 2.0 - increments(noise, 0.2, 0.9)[1]
    spread = math.sqrt(m * h**3 / 12.0)
    assert float(error.abs().max()) < 4.5 * spread
    assert 0.7 * spread < float(error.std()) < 1.3 * spread


def test_backwards_and_forwards_are_one_path() -> None:
    noise = paths(20)
    for stream, sign in ((Stream.STEP, -1.0), (Stream.AREA, 1.0)):
        there, back = noise.normal(stream, 0, 0.2, 0.7), noise.normal(stream, 0, 0.7, 0.2)
        torch.testing.assert_close(back, sign * there, rtol=1e-13, atol=1e-13)


def test_the_path_is_continuous() -> None:
    """Across the ends of leaves, trees and blocks: |W_t+h - W_t| is of the size sqrt(h), and 0 far below the leaves."""
    noise = paths(200, levels=6)
    for t in (0.25, 1.0, 2.0, 4.0, (17 / 64) ** 2):
        for h in (1e-6, 1e-12):
            w, _ = increments(noise, t - h, t + h)
            assert float(w.abs().max()) < 8.0 * math.sqrt(2.0 * h)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [(0.25, 0.5625, True), (49 / 1024, 1.0, True), (1.0625, 2.125, True), (0.25, 0.5, False), (1.0625, 3.0, False)],
)
def test_a_finer_tree_continues_the_same_path(a: float, b: float, same: bool) -> None:
    """At the ends of the leaves of the coarser tree, at squares of j/32 within the root cell."""
    coarse, fine = paths(20, levels=5), paths(20, levels=9)
    for stream in (Stream.STEP, Stream.AREA):
        x, y = coarse.normal(stream, 0, a, b), fine.normal(stream, 0, a, b)
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-9) == same


# ---- seed, sample and time


def test_the_order_of_evaluations_does_not_matter() -> None:
    intervals = [(0.9, 0.5), (0.5, 0.1), (0.9, 0.7), (0.7, 0.5), (1.0, 0.0), (0.5, 0.9), (0.5, 0.1)]
    noise = paths(10)
    for start, stop in intervals:
        for stream in (Stream.AREA, Stream.STEP):
            increment = noise.normal(stream, 0, start, stop)
            assert torch.equal(increment, paths(10).normal(stream, 5, start, stop))


def test_samples_have_times_of_their_own() -> None:
    noise = paths(5)
    t = torch.tensor([0.9, 0.9, 0.4, 3.0, 1.0], dtype=torch.float64)
    s = torch.tensor([0.1, 0.8, 0.2, 2.5, 0.3], dtype=torch.float64)
    for stream in (Stream.STEP, Stream.AREA):
        together = noise.normal(stream, 0, t, s)
        for i in range(5):
            alone = paths(5).normal(stream, 0, float(t[i]), float(s[i]))[i]
            torch.testing.assert_close(together[i], alone, rtol=1e-12, atol=1e-12)
    # A rejected step begins where the last one began, an accepted one where it ended.
    mixed = torch.where(torch.tensor([True, False, True, False, True]), t, s)
    answer = noise.normal(Stream.STEP, 0, mixed, 0.5 * s)
    assert torch.equal(answer, paths(5).normal(Stream.STEP, 0, mixed, 0.5 * s))


def test_batches_do_not_matter() -> None:
    whole = paths(64).normal(Stream.STEP, 0, 0.8, 0.3)
    for first, n in ((0, 7), (63, 1)):
        part = BrownianPath(0).batch(torch.arange(first, first + n), (2,), torch.float64)
        assert torch.equal(part.normal(Stream.STEP, 0, 0.8, 0.3), whole[first : first + n])
    index = torch.tensor([5, 60, 5])
    selected = paths(64)
    selected.normal(Stream.STEP, 0, 1.0, 0.8)  # the stored last interval is that of the whole batch
    assert torch.equal(selected.select(index).normal(Stream.STEP, 0, 0.8, 0.3), whole[index])


def test_seeds_and_samples_are_independent() -> None:
    a, b = paths(3000, 0, (1,)), paths(3000, 1, (1,))
    x, y = a.normal(Stream.STEP, 0, 0.8, 0.3), b.normal(Stream.STEP, 0, 0.8, 0.3)
    assert abs(float((x * y).mean())) < 4.0 / math.sqrt(3000)
    assert abs(float((x[1:] * x[:-1]).mean())) < 4.0 / math.sqrt(3000)


def test_events_of_any_size_are_drawn_in_blocks_of_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = paths(3, event=(2, 5)).normal(Stream.AREA, 0, 0.8, 0.3)
    assert whole.shape == (3, 2, 5)
    for block in (1, 30 * 7):
        monkeypatch.setattr(sde.brownian, "_BLOCK", block)
        assert torch.equal(paths(3, event=(2, 5)).normal(Stream.AREA, 0, 0.8, 0.3), whole)


def test_float32_is_float64_rounded() -> None:
    single = BrownianPath(0).batch(torch.arange(50), (3,), torch.float32).normal(Stream.AREA, 0, 0.8, 0.79)
    double = BrownianPath(0).batch(torch.arange(50), (3,), torch.float64).normal(Stream.AREA, 0, 0.8, 0.79)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


def test_memory_is_that_of_the_last_interval() -> None:
    noise = paths(2)
    for start, stop in itertools.pairwise(torch.linspace(1.0, 0.1, 30).tolist()):
        noise.normal(Stream.STEP, 0, start, stop)
        assert len(noise._recent) == 2


# ---- other draws


def test_the_noise_of_correctors_is_that_without_a_path() -> None:
    keyed = Noise(3).batch(torch.arange(4), (2,), torch.float64)
    noise = BrownianPath(3).batch(torch.arange(4), (2,), torch.float64)
    for k in (0, 7):
        assert torch.equal(noise.normal(Stream.CORRECTOR, k, 0.5, 0.5), keyed.normal(Stream.CORRECTOR, k, 0.5, 0.5))


def test_keyed_noise_becomes_the_path_of_its_seed() -> None:
    keyed = Noise(3).batch(torch.arange(4), (2,), torch.float64)
    path = along_path(keyed)
    expected = BrownianPath(3).batch(torch.arange(4), (2,), torch.float64).normal(Stream.STEP, 0, 0.8, 0.3)
    assert path.one_path
    assert not keyed.one_path
    assert torch.equal(path.normal(Stream.STEP, 0, 0.8, 0.3), expected)
    assert along_path(path) is path


def test_keyed_noise_has_an_independent_area_for_each_draw() -> None:
    keyed = Noise(3).batch(torch.arange(20_000), (1,), torch.float64)
    z = torch.cat([keyed.normal(s, k, 1.0, 0.5) for s in (Stream.STEP, Stream.AREA) for k in (0, 1)], 1)
    assert float((z.T @ z / len(z) - torch.eye(4)).abs().max()) < 4.0 * math.sqrt(2.0 / len(z))


def test_keyed_draws_of_many_numbers_at_once() -> None:
    keyed = Noise(3).batch(torch.tensor([4, 9]), (3,), torch.float64)
    k = torch.tensor([[0, 5, 2], [1, 7, 7]])
    z = keyed.normal(Stream.PATH, k, 0.0, 0.0)
    assert z.shape == (2, 3, 3)
    for j in range(3):
        assert torch.equal(z[:, j], keyed.normal(Stream.PATH, k[:, j], 0.0, 0.0))
    assert torch.equal(keyed.normal(Stream.PATH, k[:1], 0.0, 0.0)[1, 1], keyed.normal(Stream.PATH, 5, 0.0, 0.0)[1])


@pytest.mark.parametrize("t", [-1e-9, math.nan, math.inf])
def test_times_without_a_path_are_refused(t: float) -> None:
    with pytest.raises(ValueError, match=r"t >= 0.*t=\[.*(-1e-09|nan|inf)"):
        paths(2).normal(Stream.STEP, 0, 1.0, t)


@pytest.mark.parametrize("levels", [0, 41])
def test_the_depth_is_checked(levels: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 40.*levels={levels}"):
        BrownianPath(0, levels)
