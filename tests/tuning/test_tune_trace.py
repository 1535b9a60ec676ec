"""Control variates of traces: unbiased whatever the matrix, exact for Gaussian data, and as good as they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sde
from sde.exact import Gaussian, Mixture
from sde.processes import VP
from sde.solvers import RungeKutta, UniPC
from sde.trace import Controlled, Trace

MATRIX = torch.tensor([[0.4, -1.7], [-1.7, 2.0]], dtype=torch.float64)


def nats(target: Mixture | Gaussian, x: Tensor, trace: Trace, **how: object) -> Tensor:
    d = target.denoiser(VP())
    return sde.log_prob(d, x, trace=trace, **{"solver": UniPC(30), **how}).nats  # type: ignore[arg-type]


def test_any_matrix_leaves_the_mean_as_it_is(mixture: Mixture) -> None:
    """In two dimensions a probe of signs has one product, 1 or -1 with equal probability: the mean of both is exact."""
    x = mixture.sample(1, generator=torch.Generator().manual_seed(0)).expand(12, 2).contiguous()
    found = {round(value, 9) for value in nats(mixture, x, Controlled(MATRIX)).tolist()}
    plain = {round(value, 9) for value in nats(mixture, x, sde.Hutchinson()).tolist()}
    assert len(found) == len(plain) == 2
    assert sum(found) / 2 == pytest.approx(float(nats(mixture, x[:1], sde.ExactTrace())), abs=1e-8)
    assert max(found) - min(found) != pytest.approx(max(plain) - min(plain), rel=0.1)


def test_one_probe_is_exact_for_a_gaussian() -> None:
    cov = torch.tensor([[0.3, 0.2, 0.0], [0.2, 0.4, -0.1], [0.0, -0.1, 0.2]], dtype=torch.float64)
    target = Gaussian(torch.tensor([0.5, 0.0, -0.2], dtype=torch.float64), cov)
    rows = target.sample(24, generator=torch.Generator().manual_seed(0))
    trace = sde.tune_trace(target.denoiser(VP()), rows[:3], steps=30)
    assert trace.variance_ratio == pytest.approx(0.0, abs=1e-9)
    exact, found, plain = (nats(target, rows[3:], t) for t in (sde.ExactTrace(), trace, sde.Hutchinson()))
    assert float((found - exact).abs().max()) < 1e-3
    assert float((plain - exact).abs().max()) > 0.1


def test_the_spread_falls_by_what_it_says(mixture: Mixture) -> None:
    """On 300 rows that the pilot did not see the variance falls to what the pilot found, to a half of it."""
    skewed = Mixture(mixture.weights, mixture.means, torch.tensor([[0.1, 0.07], [0.07, 0.1]]).double().expand(3, 2, 2))
    rows = skewed.sample(364, generator=torch.Generator().manual_seed(0))
    trace = sde.tune_trace(skewed.denoiser(VP()), rows[:64], steps=20)
    assert trace.variance_ratio is not None
    exact, found, plain = (nats(skewed, rows[64:], t) for t in (sde.ExactTrace(), trace, sde.Hutchinson()))
    ratio = float((found - exact).square().mean() / (plain - exact).square().mean())
    assert ratio == pytest.approx(trace.variance_ratio, rel=0.5)
    assert ratio < 0.5


def test_it_goes_with_its_rows(mixture: Mixture) -> None:
    """The adaptive solver drops rows that have arrived; the estimates of two probes have a standard error."""
    x = mixture.sample(4, generator=torch.Generator().manual_seed(0))
    trace, how = Controlled(MATRIX, probes=2), {"solver": RungeKutta(rtol=1e-4, atol=1e-4)}
    d = mixture.denoiser(VP())
    together = sde.log_prob(d, x, trace=trace, **how)  # type: ignore[arg-type]
    alone = [sde.log_prob(d, x[i : i + 1], trace=trace, index=torch.tensor([i]), **how) for i in range(4)]  # type: ignore[arg-type]
    torch.testing.assert_close(together.nats, torch.cat([r.nats for r in alone]))
    torch.testing.assert_close(together.standard_error, torch.cat([r.standard_error for r in alone]))
    assert torch.equal(together.vjps, 2 * together.nfe)


def test_what_is_refused(mixture: Mixture) -> None:
    d, x = mixture.denoiser(VP()), torch.zeros(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="of 2 dimensions, got 3"):
        sde.log_prob(d, x, trace=Controlled(MATRIX))
    for matrix in (MATRIX[:1], MATRIX.triu(), MATRIX * math.nan):
        with pytest.raises(ValueError, match="finite symmetric matrix"):
            Controlled(matrix)
    for rows in (x[:2, :2], x[:, :2].long(), x[:, :2] / 0.0):
        with pytest.raises(ValueError, match="3 or more finite rows"):
            sde.tune_trace(d, rows)
