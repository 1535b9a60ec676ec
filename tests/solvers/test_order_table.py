"""The order table that the documentation shows: every claim is measured anew, and the table is not stale."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from orders import CLAIMS, Claim, measure, schedule
from torch import Tensor

from sde.dynamics import Reverse
from sde.exact import Gaussian
from sde.processes import SDE, VE, VP, SubVP

TABLE = Path(__file__).resolve().parents[2] / "docs" / "_generated" / "orders.csv"
ALL = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)


def test_the_documentation_shows_these_claims() -> None:
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["solver"], int(row["claimed order"])) for row in rows] == [(c.name, c.order) for c in CLAIMS]
    for row in rows:
        assert float(row["measured for x"]) > int(row["claimed order"]) - 0.15, row
        assert float(row["measured for log p"]) > int(row["claimed order"]) - 0.15, row


@ALL
def test_order_on_a_mixture(claim: Claim) -> None:
    """At least the order claimed less 0.15, for x and for the log-density; up to order 4 two runs show it."""
    steps, start, stop = schedule(claim.order)
    measured = measure(claim.method, VP(), steps if claim.order > 4 else steps[:2], start, stop)
    assert min(measured.orders) > claim.order - 0.15, measured


@pytest.mark.slow
@pytest.mark.parametrize("process", [VE(), SubVP()], ids=repr)
@ALL
def test_order_on_a_mixture_for_other_processes(process: SDE, claim: Claim) -> None:
    steps, start, stop = ((56, 112, 224), 0.57, 0.33) if claim.order > 4 else schedule(claim.order)
    measured = measure(claim.method, process, steps, start, stop)
    assert min(measured.orders) > claim.order - 0.15, measured


def gaussian_flow(process: SDE, x: Tensor, start: float, stop: float) -> Tensor:
    """In the eigenbasis of the covariance each coordinate is scaled by the ratio of the standard deviations."""
    basis = torch.linalg.eigh(COV)[1]
    scales, means = [], []
    for t in (start, stop):
        at = torch.tensor(t, dtype=torch.float64)
        cov = process.alpha(at) ** 2 * COV + process.var(at) * torch.eye(2, dtype=torch.float64)
        scales.append((basis.T @ cov @ basis).diagonal().sqrt())
        means.append(process.alpha(at) * MEAN)
    return means[1] + ((x - means[0]) @ basis * (scales[1] / scales[0])) @ basis.T


@ALL
def test_order_on_a_gaussian(claim: Claim) -> None:
    """Against the closed form of another process, at errors above 1e-10: so the limit is the right one too."""
    process = VE()
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start, stop = {4: (0.6, 0.3), 5: (0.7, 0.2)}.get(claim.order, (0.5, 0.4))
    truth = gaussian_flow(process, x, start, stop)
    flow = Reverse(Gaussian(MEAN, COV).denoiser(process), 0.0)
    errors = []
    with torch.no_grad():
        for n in (16, 32, 64, 128):
            (y,) = claim.method(n)(flow, (x,), None, start, stop)
            errors.append(float((y - truth).square().mean().sqrt()))
    above = [e for e in errors if e > 1e-10]
    slope = torch.tensor(above).log2().diff().neg()
    assert float(slope[-1]) > claim.order - 0.15, (errors, slope)
