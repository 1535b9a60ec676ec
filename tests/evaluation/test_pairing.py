"""Paired comparisons: against SciPy, against what unpaired ones would say, and what is left out or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from sde.evaluation.pairing import Paired, paired
from sde.exact import Mixture
from sde.likelihood import log_prob
from sde.processes import VP
from sde.solvers import RungeKutta
from sde.storage.store import Store
from sde.trace import Hutchinson

Columns = dict[str, Any]


def columns(values: np.ndarray, name: str = "bits_per_dim") -> Columns:
    """A result of shape (repeats, samples) as columns, one repeat after the other."""
    repeats, samples = values.shape
    return {
        "index": np.tile(np.arange(samples), repeats),
        "repeat": np.repeat(np.arange(repeats), samples),
        name: values.reshape(-1),
    }


def shuffled(result: Columns, seed: int) -> Columns:
    order = np.random.default_rng(seed).permutation(len(result["index"]))
    return {name: value[order] for name, value in result.items()}


@pytest.fixture
def two() -> tuple[np.ndarray, np.ndarray]:
    """Two results of 3 repeats and 40 samples, most of whose spread is common."""
    rng = np.random.default_rng(0)
    common = rng.normal(3.0, 1.0, 40) + rng.normal(0.0, 0.2, (3, 40))
    return common, common + rng.normal(0.05, 0.1, (3, 40))


def test_it_is_the_paired_t_interval_over_samples(two: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = two
    r = paired(shuffled(columns(a), 1), shuffled(columns(b), 2))
    x, y = a.mean(0), b.mean(0)
    test = stats.ttest_rel(y, x)
    interval = test.confidence_interval(0.99)
    assert r.difference == pytest.approx((y - x).mean(), rel=1e-12)
    assert r.standard_error == pytest.approx(stats.sem(y - x), rel=1e-12)
    assert (r.low, r.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert r.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    assert (r.samples, r.rows, r.dropped) == (40, 120, 0)
    back = paired(columns(b), columns(a))
    assert (back.difference, back.low, back.high) == pytest.approx((-r.difference, -r.high, -r.low))


def test_the_interval_covers_in_99_of_100() -> None:
    """Over 2000 results of 6 samples: within 4 binomial standard errors."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(2000):
        a = rng.normal(0.0, 5.0, (1, 6))
        r = paired(columns(a), columns(a + rng.normal(0.7, 0.3, (1, 6))))
        covered += r.low <= 0.7 <= r.high
    assert abs(covered / 2000 - 0.99) < 4.0 * math.sqrt(0.99 * 0.01 / 2000)


def test_any_column_and_a_correlation_that_is_not_there() -> None:
    a = np.full((1, 5), 2.0)
    r = paired(columns(a, "log_prob"), columns(a + 1.0, "log_prob"), column="log_prob")
    assert (r.difference, r.standard_error, r.low, r.high) == (1.0, 0.0, 1.0, 1.0)
    assert math.isnan(r.correlation)


def test_rows_without_a_finite_partner_are_dropped_and_counted(two: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (values.copy() for values in two)
    b[0, 3] = math.nan
    first, second = columns(a), columns(b)
    part = {name: np.delete(value, [7, 47]) for name, value in second.items()}  # two repeats of sample 7
    r = paired(first, part)
    assert (r.samples, r.rows, r.dropped) == (40, 117, 4)
    keep = np.ones((3, 40), dtype=bool)
    keep[0, 3] = keep[0, 7] = keep[1, 7] = False
    d = np.array([(b[k, i] - a[k, i]).mean() for i, k in enumerate(keep.T)])
    assert r.difference == pytest.approx(d.mean(), rel=1e-12)


def test_common_probes_cancel(mixture: Mixture) -> None:
    """Two solvers under the same probes differ by a hundredth of what two seeds make of them."""
    x = mixture.at(VP(), 1e-5).sample(60, generator=torch.Generator().manual_seed(6))
    d = mixture.denoiser(VP())

    def run(solver: Any, seed: int) -> Columns:
        r = log_prob(d, x, solver=solver, trace=Hutchinson(), seed=seed)
        return columns(r.nats.numpy()[None], "log_prob")

    fine, coarse = RungeKutta(rtol=1e-6, atol=1e-6), RungeKutta(rtol=1e-3, atol=1e-3)
    same = paired(run(fine, 0), run(coarse, 0), column="log_prob")
    other = paired(run(fine, 0), run(coarse, 1), column="log_prob")
    assert same.standard_error < 0.01 * other.standard_error
    assert same.correlation > 0.9999 > other.correlation


def written(path: Path, values: np.ndarray, data: str) -> Path:
    rows = columns(values)
    with Store.open(path, {"bits_per_dim": np.float64}, key={"data": data}) as store:
        store.append(rows)
    return path


def test_files_are_read(two: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    files = [written(tmp_path / f"{k}.h5", values, "a" * 64) for k, values in enumerate(two)]
    assert paired(*files) == paired(str(files[0]), columns(two[1])) == paired(*(columns(values) for values in two))


def test_files_on_other_data_are_refused(two: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    files = [written(tmp_path / f"{k}.h5", values, str(k) * 64) for k, values in enumerate(two)]
    with pytest.raises(ValueError, match=r"0\.h5.*000000000000.*1\.h5.*111111111111"):
        paired(*files)
    with pytest.raises(FileNotFoundError, match="nothing"):
        paired(files[0], tmp_path / "nothing.h5")


def test_it_reads_well() -> None:
    text = str(Paired(0.01, 0.002, 0.005, 0.015, 0.98765, 100, 100, 0))
    assert text == "+0.01000 +- 0.00200 (99 %: +0.00500 to +0.01500; 100 samples, correlation 0.988)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("repeat"), "no column 'repeat'"),
        (
            lambda r: r.pop("bits_per_dim"),
            "no column 'bits_per_dim': the columns are index, repeat; give another column=",
        ),
        (lambda r: r.update(index=np.zeros(4, dtype=int)), "index and repeat"),
        (lambda r: r.update(index=np.array([0, 11, 12, 13])), "got 1"),
        (lambda r: r.update(repeat=r["repeat"] + 1), "got 0"),
    ],
)
def test_refusals(change: Any, message: str) -> None:
    first, second = columns(np.ones((1, 4))), columns(np.ones((1, 4)))
    change(second)
    with pytest.raises(ValueError, match=message):
        paired(first, second)
