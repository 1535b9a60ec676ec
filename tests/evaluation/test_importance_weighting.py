"""The importance-weighted bound of a file's rows: the library's own for the same draws, and what stands in its way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sde.data import Scaling, Split
from sde.denoisers import Denoiser
from sde.evaluation.importance_weighting import is_exact, weighted_bound
from sde.evaluation.likelihood_job import FlowScorer
from sde.evaluation.sharding import BatchPlan
from sde.evaluation.summary import Rows, join, summarise
from sde.likelihood.dequantisation import Dequantiser, TruncatedNormal, UniformDequantiser, discrete_log_prob
from sde.likelihood.variational import VariationalDequantiser
from sde.model import Model
from sde.processes import VP
from sde.solvers import Heun
from sde.trace import ExactTrace, Hutchinson

LEVELS, D, K = 8, 3, 4
SOLVER = Heun(6)


class Wavy(Denoiser):
    """Additions and products of single numbers, which round alike in any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.process = VP()
        self.register_buffer("like", torch.zeros(1, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        y = x_t + 0.3 * x_t.roll(1, dims=1)
        return y / (1.0 + y * y)


MODEL = Model(Wavy(), Scaling.interval(LEVELS), (D,))
VALUES = torch.randint(0, LEVELS, (10, D), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def learned() -> VariationalDequantiser:
    rule = VariationalDequantiser((D,), LEVELS, layers=2, width=8).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for parameter in rule.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return rule


RULES = [UniformDequantiser(), TruncatedNormal.matched(VP(), MODEL.scaling), learned()]


def rows(rule: Dequantiser | None = None, trace: ExactTrace | Hutchinson | None = None) -> Rows:
    scorer = FlowScorer(MODEL, Split(VALUES), 3, SOLVER, trace or ExactTrace(), dequantiser=rule)
    return join(*scorer.score(BatchPlan(10, None, K, 4)))


@pytest.mark.parametrize("draws", [1, 2, K])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_it_is_the_library_s_for_the_same_draws(rule: Dequantiser, draws: int) -> None:
    """Both key noise by (seed, index, repeat), so that they agree to the rounding of nats to bits and back."""
    columns, index = rows(rule), torch.arange(10)
    call = {"solver": SOLVER, "trace": ExactTrace(), "dequantiser": rule, "seed": 3, "index": index}
    expected = discrete_log_prob(MODEL.denoiser, VALUES, MODEL.scaling, draws=draws, weighted=True, **call)
    shuffle = np.random.RandomState(0).permutation(10 * K)
    found = weighted_bound({name: values[shuffle] for name, values in columns.items()}, D, draws)
    np.testing.assert_allclose(found.nats, expected.nats.numpy(), rtol=1e-13)
    np.testing.assert_array_equal(found.index, index.numpy())
    bits = expected.bits_per_dim.numpy()
    assert found.bits_per_dim == pytest.approx(bits.mean(), rel=1e-13)
    assert found.standard_error == pytest.approx(bits.std(ddof=1) / math.sqrt(10), rel=1e-12)
    assert (found.draws, found.incomplete, found.failed) == (draws, 0, 0)
    assert draws == 1 or found.bits_per_dim < summarise(columns).bits_per_dim


def test_by_hand() -> None:
    """log((1 + e^2)/2) in nats, of weights 1 and e^2 in two dimensions; far below 0 nothing underflows."""
    nats = np.array([0.0, -5000.0, 2.0, -4998.0])
    columns = {
        "index": np.array([4, 9, 4, 9]),
        "repeat": np.array([0, 0, 1, 1]),
        "bits_per_dim": -nats / (2 * math.log(2.0)),
        "standard_error": np.zeros(4),
    }
    found, one = weighted_bound(columns, 2, 2), math.log((1.0 + math.e**2) / 2.0)
    np.testing.assert_allclose(found.nats, [one, one - 5000.0], rtol=1e-12)
    assert found.index.tolist() == [4, 9]


def test_samples_that_lack_a_draw_are_counted_and_left_out() -> None:
    columns = rows()
    whole = weighted_bound(columns, D, K)
    keep = ~((columns["index"] == 2) & (columns["repeat"] == 1))
    for name in ("bits_per_dim", "standard_error"):  # as a solver's mark leaves them
        columns[name][(columns["index"] == 5) & (columns["repeat"] == 3)] = math.nan
    columns["bits_per_dim"][(columns["index"] == 7) & (columns["repeat"] <= 1)] = math.inf
    found = weighted_bound({name: values[keep] for name, values in columns.items()}, D, K)
    left = [i for i in range(10) if i not in (2, 5, 7)]
    assert found.index.tolist() == left
    np.testing.assert_array_equal(found.nats, whole.nats[left])
    assert (found.incomplete, found.failed) == (1, 2)
    assert "7 samples; 1 with missing rows left out; 2 with failed rows left out" in str(found)
    # Of the later repeats nothing is asked.
    assert weighted_bound({name: values[keep] for name, values in columns.items()}, D, 1).failed == 1
    columns["bits_per_dim"][:] = math.nan
    none = weighted_bound(columns, D, K)
    assert (len(none.nats), none.failed, math.isnan(none.bits_per_dim)) == (0, 10, True)


@pytest.mark.parametrize("probes", [1, 2])
def test_an_estimated_trace_makes_no_bound(probes: int) -> None:
    columns = rows(trace=Hutchinson(probes))
    assert not is_exact(columns)
    with pytest.raises(ValueError, match="exact trace"):
        weighted_bound(columns, D, K)
    assert is_exact(rows())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="draws=0"):
        weighted_bound(rows(), D, 0)
    with pytest.raises(ValueError, match="0 rows"):
        weighted_bound({name: values[:0] for name, values in rows().items()}, D, 1)
