"""The Frechet distance: closed forms, its two ways, its peers' formula, its bias and its intervals."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from support.sets import normals
from torch import Tensor

from sde.metrics import Estimate, frechet_distance
from sde.metrics.sets import deal


def by_nuclear_norm(x: Tensor, y: Tensor) -> float:
    """From the definition, by singular values: tr (S1^1/2 S2 S1^1/2)^1/2 is the nuclear norm of S1^1/2 S2^1/2."""
    a, b = ((side - side.mean(0)).numpy() / np.sqrt(len(side) - 1) for side in (x, y))
    means = float((x.mean(0) - y.mean(0)).square().sum())
    return means + (a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")


def by_torch_fidelity(x: Tensor, y: Tensor) -> float:
    """The formula of torch-fidelity 0.3, `fid_statistics_to_metric`: eigenvalues of the unsymmetric product."""
    (m1, s1), (m2, s2) = ((s.numpy().mean(0), np.cov(s.numpy(), rowvar=False)) for s in (x, y))
    trace = np.sum(np.sqrt(np.linalg.eigvals(s1.dot(s2)).astype(complex)).real)
    return float((m1 - m2).dot(m1 - m2) + np.trace(s1) + np.trace(s2) - 2 * trace)


@pytest.mark.parametrize(("n", "m", "d"), [(60, 50, 8), (25, 30, 40), (25, 60, 40), (60, 25, 40), (40, 40, 40)])
def test_the_plain_distance_whatever_the_sizes(n: int, m: int, d: int) -> None:
    x, y = 100 + normals(n, d), 100.3 + 1.5 * normals(m, d, seed=1)
    plain = frechet_distance(x, y, groups=2).plain
    assert plain == pytest.approx(by_nuclear_norm(x, y), rel=1e-8)
    if min(n, m) > d:
        assert plain == pytest.approx(by_torch_fidelity(x, y), rel=1e-8)


def test_of_moments_that_are_known() -> None:
    """Two points a side make any mean and variance: (1 - 3)^2 + (s - t)^2 in the first dimension."""
    x = torch.tensor([[0.0, 5.0], [2.0, 5.0]], dtype=torch.float64).repeat(4, 1)
    y = torch.tensor([[0.0, 5.0], [6.0, 5.0]], dtype=torch.float64).repeat(4, 1)
    s, t = (8 / 7) ** 0.5, 3 * (8 / 7) ** 0.5
    # The second column is constant: a singular covariance.
    assert frechet_distance(x, y, groups=2).plain == pytest.approx(4 + (s - t) ** 2)


@pytest.mark.parametrize("n", [20, 60])
def test_equal_sets_and_singular_covariances(n: int) -> None:
    x = normals(n, 3) @ normals(3, 40, seed=1)
    y = 1.1 * normals(n, 5, seed=2) @ normals(5, 40, seed=3)
    scale = float(x.var(0).sum())
    assert frechet_distance(x, x).plain == pytest.approx(0.0, abs=1e-9 * scale)
    assert frechet_distance(x, x.flip(0)).plain == pytest.approx(0.0, abs=1e-9 * scale)
    assert frechet_distance(x, y).plain == pytest.approx(by_nuclear_norm(x, y), rel=1e-8)


@pytest.mark.parametrize("d", [4, 50])
def test_the_jackknife_by_brute_force(d: int) -> None:
    x, y = normals(33, d), 0.5 + normals(41, d, seed=1)
    estimate = frechet_distance(x, y, groups=7, seed=3)
    of_x, of_y = (deal(torch.arange(len(side)), 7, 3) for side in (x, y))
    omitted = np.array([by_nuclear_norm(x[of_x != g], y[of_y != g]) for g in range(7)])
    assert estimate.value == pytest.approx(7 * by_nuclear_norm(x, y) - 6 * omitted.mean())
    assert estimate.standard_error == pytest.approx(np.sqrt(6 / 7 * ((omitted - omitted.mean()) ** 2).sum()))
    assert estimate.high - estimate.value == pytest.approx(2.446912 * estimate.standard_error)  # t_6


def test_too_few_items_for_the_features_are_said() -> None:
    x, y = normals(30, 64), normals(40, 64, seed=1)
    few = frechet_distance(x, y)
    assert "biased upwards" in few.note
    # Equal distributions: the correction goes the right way, and not far enough.
    assert 0 < few.value < few.plain
    assert frechet_distance(normals(100, 4), normals(90, 4, seed=1)).note == ""


# ---- bias and coverage

D = 64


def pair(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and covariances of two Gaussians."""
    zero, spread = torch.zeros(D, dtype=torch.float64), torch.linspace(0.3, 1.7, D, dtype=torch.float64)
    if name == "equal":
        return zero, spread.diag(), zero, spread.diag()
    basis = torch.linalg.qr(normals(D, D, seed=5))[0]
    return zero, spread.diag(), zero + 0.25, basis @ (spread.flip(0) ** 2).diag() @ basis.T


def truth(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """In closed form; the first covariance is diagonal."""
    root = cov_x.sqrt()
    trace = torch.linalg.eigvalsh(root @ cov_y @ root).sqrt().sum()
    return float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * trace)


def study(name: str, n: int, repetitions: int, groups: int = 20) -> tuple[float, float, float, list[Estimate]]:
    """The biases of the plain and the corrected distance, the coverage, and the estimates."""
    mean_x, cov_x, mean_y, cov_y = pair(name)
    true = truth(mean_x, cov_x, mean_y, cov_y)
    root_x, root_y = (torch.linalg.cholesky(cov) for cov in (cov_x, cov_y))
    estimates = []
    for r in range(repetitions):
        x = mean_x + normals(n, D, seed=10**6 * n + 2 * r) @ root_x.T
        y = mean_y + normals(n, D, seed=10**6 * n + 2 * r + 1) @ root_y.T
        estimates.append(frechet_distance(x, y, groups=groups))
    plain = np.mean([e.plain for e in estimates]) - true
    corrected = np.mean([e.value for e in estimates]) - true
    coverage = np.mean([e.low <= true <= e.high for e in estimates])
    return float(plain), float(corrected), float(coverage), estimates


def test_the_correction_removes_the_bias() -> None:
    """The mean of 12 corrected distances is within 5 standard errors (0.36) of the truth, 17.7; the plain one is 9.8
    too large."""
    plain, corrected, _, estimates = study("different", 200, 12, groups=10)
    assert 9 < plain < 11
    assert abs(corrected) < 5 * np.std([e.value for e in estimates], ddof=1) / 12**0.5 < 1.8


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 200, 500])
@pytest.mark.parametrize("name", ["different", "equal"])
def test_bias_and_coverage(name: str, n: int) -> None:
    """The standard error of a coverage of 95 % in 400 repetitions is 1.1 %; seeds are fixed."""
    plain, corrected, coverage, _ = study(name, n, 400)
    assert abs(corrected) < max(0.1, plain / 20)
    assert 0.90 <= coverage <= 0.99


@pytest.mark.slow
def test_the_features_of_an_inception_network_take_a_minute() -> None:
    """2000 items of 2048 features in 10 groups; seconds of the processor, because the machine may have other work."""
    x, y = normals(2000, 2048), normals(2000, 2048, seed=1)
    start = time.process_time()
    frechet_distance(x, y, groups=10)
    assert time.process_time() - start < 120  # two processors for a minute
