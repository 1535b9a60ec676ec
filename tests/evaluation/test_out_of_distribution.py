"""Out-of-distribution detection: areas and their errors against definitions and repetition, norms against the prior."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi

from sde.evaluation.out_of_distribution import Detection, detect, latent_norm, norm_of_prior, sample_means
from sde.processes import SDE


def test_the_area_is_a_probability_and_its_error_the_definition() -> None:
    """With ties, against the double sum."""
    rng = np.random.RandomState(0)
    x, y = rng.randint(0, 6, 17).astype(float), rng.randint(2, 9, 11).astype(float)
    psi = (x[:, None] < y) + 0.5 * (x[:, None] == y)
    found = Detection.of(x, y)
    assert found.auroc == pytest.approx(psi.mean(), rel=1e-12)
    error = math.sqrt(psi.mean(1).var(ddof=1) / 17 + psi.mean(0).var(ddof=1) / 11)
    assert found.standard_error == pytest.approx(error, rel=1e-12)
    assert (found.in_distribution, found.out_of_distribution) == (17, 11)
    assert str(found) == f"{psi.mean():.4f} +- {error:.4f}"


def test_the_error_is_the_spread_of_repeated_experiments() -> None:
    """N(0, 1) against N(1, 1): the area is Phi(1/sqrt 2). The spread over 400 runs is known to 3.5 %: 4 times that."""
    rng = np.random.RandomState(1)
    runs = [Detection.of(rng.normal(size=80), 1.0 + rng.normal(size=50)) for _ in range(400)]
    areas = np.array([run.auroc for run in runs])
    exact = 0.5 * (1.0 + math.erf(0.5))
    assert areas.mean() == pytest.approx(exact, abs=5.0 * areas.std() / 20.0)
    assert np.mean([run.standard_error for run in runs]) == pytest.approx(areas.std(ddof=1), rel=0.15)


def test_extremes() -> None:
    apart = Detection.of(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    assert (apart.auroc, apart.standard_error) == (1.0, 0.0)
    assert math.isnan(Detection.of(np.array([1.0]), np.array([3.0, 4.0])).standard_error)
    for x, y, kind in (
        ([], [1.0], "in"),
        ([1.0], [], "out-of"),
        ([1.0, math.nan], [1.0], "in"),
        ([1.0], [math.inf], "out-of"),
    ):
        with pytest.raises(ValueError, match=f" {kind}-distribution"):
            Detection.of(np.array(x), np.array(y))


def columns(bits: list[float], repeats: int = 1) -> dict[str, np.ndarray]:
    return {"index": np.tile(np.arange(len(bits) // repeats), repeats), "bits_per_dim": np.array(bits)}


def test_samples_count_once_and_failed_rows_do_not() -> None:
    rows = columns([1.0, math.nan, 5.0, 3.0, math.nan, math.nan], repeats=2)
    rows["norm"] = np.array([1.0, 9.0, 2.0, 4.0, 9.0, 9.0])
    assert sample_means(rows).tolist() == [2.0, 5.0]
    assert sample_means(rows, "norm").tolist() == [2.5, 2.0]


def test_typicality_sees_what_is_too_likely() -> None:
    """Other data that is far too likely: the density takes it for the model's own, its distance does not."""
    found = detect(columns([4.0, 5.0, 6.0, 5.5, 4.5]), columns([1.0, 1.5]))
    assert found["bits/dim"].auroc == 0.0
    assert found["typicality"].auroc == 1.0
    with pytest.raises(ValueError, match=r"5 in-.* 0 out-"):
        detect(columns([4.0, 5.0, 6.0, 5.5, 4.5]), columns([math.nan]))


def test_the_norm_is_that_of_the_latent(process: SDE) -> None:
    z = 3.0 * torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nats = process.prior_log_prob(z).numpy()
    np.testing.assert_allclose(latent_norm(process, nats, 6), z.flatten(1).norm(dim=1).numpy(), rtol=1e-6)
    mean, std = norm_of_prior(process, 6)
    v = process.prior_var(torch.tensor(process.t_max, dtype=torch.float64)).item()
    assert mean == pytest.approx(math.sqrt(v) * chi(6).mean(), rel=1e-9)
    assert std == pytest.approx(math.sqrt(v) * chi(6).std(), rel=1e-6)
    assert np.isnan(latent_norm(process, np.array([math.nan]), 6)).all()
    for dims in (1, 3072, 196608):
        assert norm_of_prior(process, dims)[1] == pytest.approx(math.sqrt(v) * chi(dims).std(), rel=1e-3)
