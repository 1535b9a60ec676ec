"""Dequantisers: their densities, and that what they give are bounds on the probabilities of levels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from sde.data import Scaling, Split
from sde.evaluation.likelihood_job import batch_states
from sde.exact import Empirical, Mixture, Target, Uniform
from sde.likelihood.dequantisation import (
    Dequantiser,
    TruncatedNormal,
    UniformDequantiser,
    dequantise,
    discrete_log_prob,
    importance_weighted,
)
from sde.likelihood.flow import log_prob
from sde.model import Model
from sde.noise import Noise, Stream
from sde.processes import SDE, VE, VP
from sde.solvers import Heun
from sde.trace import ExactTrace

F64 = torch.float64
STDS = [0.01, 0.1, 0.3, 1.0, 50.0]
RULES = [UniformDequantiser(), UniformDequantiser(alpha=0.6), TruncatedNormal(0.2), TruncatedNormal(0.5, alpha=0.6)]


def pointed() -> Mixture:
    """A density on the line that varies within the cells of 8 levels on [-1, 1]."""
    weights, means = torch.tensor([0.6, 0.4], dtype=F64), torch.tensor([[-0.36], [0.4]], dtype=F64)
    return Mixture(weights, means, torch.tensor([[[0.01]], [[0.004]]], dtype=F64))


def log_cells(target: Target, scaling: Scaling, alpha: float) -> Tensor:
    """log P(v) of each level by quadrature, with cells scaled by alpha."""
    u = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    v = torch.arange(scaling.levels or 0, dtype=F64)
    x = alpha * (scaling.scale * (v[:, None] + u) + scaling.shift)
    log_p = target.log_prob(x.reshape(-1, 1)).reshape(x.shape)
    return log_p.logsumexp(1) + math.log(alpha * scaling.scale / 4000)


# ---- the truncated normal


@pytest.mark.parametrize("std", STDS)
def test_its_density_integrates_to_one_and_its_entropy_is_the_integral(std: float) -> None:
    q = TruncatedNormal(std)

    def density(u: float) -> float:
        return math.exp(float(q.log_density(torch.tensor(u, dtype=F64))))

    def surprise(u: float) -> float:
        log_q = float(q.log_density(torch.tensor(u, dtype=F64)))
        return -log_q * math.exp(log_q)

    for f, expected in ((density, 1.0), (surprise, q.entropy(1))):
        half, _ = integrate.quad(f, 0.5, min(1.0, 0.5 + 12.0 * std), epsabs=1e-12)
        assert abs(2.0 * half - expected) < 1e-9
    assert q.entropy(7) == pytest.approx(7 * q.entropy(1))


@pytest.mark.parametrize("std", STDS)
def test_its_draws_follow_its_density(std: float) -> None:
    """Kolmogorov and Smirnov at p > 1e-4, and the mean of log q within 5 standard errors: an error of 1e-4 per case."""
    q, n = TruncatedNormal(std), 20_000
    index = torch.arange(n)
    u, log_q = q.draw(torch.zeros(n, 1), Noise(3), index, torch.zeros_like(index))
    reference = stats.truncnorm(-q.tau, q.tau, loc=0.5, scale=std)
    assert stats.kstest(u[:, 0].numpy(), reference.cdf).pvalue > 1e-4
    torch.testing.assert_close(log_q, torch.from_numpy(reference.logpdf(u[:, 0].numpy())), rtol=1e-9, atol=1e-9)
    assert abs(float(log_q.mean()) + q.entropy(1)) < 5.0 * float(log_q.std()) / math.sqrt(n) + 1e-12
    assert bool(((u >= 0.0) & (u <= 1.0)).all())


def test_its_limits() -> None:
    """Wide noise is uniform; narrow noise is a normal, with that one's entropy."""
    assert abs(TruncatedNormal(1e4).entropy(1)) < 1e-8
    assert TruncatedNormal(1e-3).entropy(1) == pytest.approx(0.5 * math.log(2.0 * math.pi * math.e * 1e-6), abs=1e-12)


def test_extreme_uniforms_stay_in_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mass rounds to 1, a uniform of 0 would be at minus infinity."""
    monkeypatch.setattr(Noise, "uniform", lambda self, *address: torch.tensor([[0.0], [1.0 - 2.0**-53]], dtype=F64))
    index = torch.zeros(2, dtype=torch.int64)
    for std in (1e-3, 0.05, 0.3, 10.0):
        u, log_q = TruncatedNormal(std).draw(torch.zeros(2, 1), Noise(0), index, index)
        assert bool(((u >= 0.0) & (u <= 1.0) & log_q.isfinite()[:, None]).all())


def test_matched_noise_is_that_of_the_process_at_t_min(process: SDE) -> None:
    """On the states, cells scaled by alpha, it has the process's own standard deviation."""
    scaling = Scaling.interval(256, -1.0, 1.0)
    q, low = TruncatedNormal.matched(process, scaling), torch.tensor(process.t_min, dtype=F64)
    assert q.alpha == pytest.approx(float(process.alpha(low)))
    assert q.std * q.alpha * scaling.scale == pytest.approx(float(process.sigma(low)), rel=1e-12)
    # The paper's tau for 256 levels on [-1, 1].
    assert q.tau == pytest.approx(float(process.alpha(low) / process.sigma(low)) / 256.0, rel=1e-12)


# ---- bounds


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_draw_is_a_bound_and_many_weighted_ones_are_the_truth(rule: Dequantiser) -> None:
    """For each level and K draws, on average: below log P(v), growing with K, and at the truth with many.

    Means of 2000 repeats stand against each other within 5 standard errors: an error below 1e-4 over all levels."""
    target, scaling, n, most = pointed(), Scaling.interval(8, -1.0, 1.0), 2000, 64
    truth = log_cells(target, scaling, rule.alpha)
    v = torch.arange(8)[:, None]
    weights = []
    for k in range(most):
        made = dequantise(
            rule, v.repeat_interleave(n, 0), scaling, seed=2, index=torch.arange(8 * n), repeat=k, dtype=F64
        )
        weights.append(target.log_prob(made.x) + made.log_weight)
    each = torch.stack(weights)  # (K, 8 n)
    bounds = {}
    for k in (1, 4, 16, 64):
        nats = importance_weighted(each[:k]).reshape(8, n)
        bounds[k] = (nats.mean(1), nats.std(1) / math.sqrt(n))
    for mean, error in bounds.values():
        assert bool((mean < truth + 5.0 * error).all())
    for few, many in ((1, 4), (4, 16), (16, 64)):
        slack = (bounds[few][1].square() + bounds[many][1].square()).sqrt()
        assert bool((bounds[many][0] > bounds[few][0] - 5.0 * slack).all())
        assert float(bounds[many][0].sum()) > float(bounds[few][0].sum())
    # The mean of the weights themselves is P(v), whatever the rule.
    share = (each.reshape(most, 8, n) - truth[None, :, None]).exp().movedim(1, 0).flatten(1)
    assert bool(((share.mean(1) - 1.0).abs() < 5.0 * share.std(1) / math.sqrt(most * n)).all())


def test_a_rule_that_matches_the_density_is_tighter() -> None:
    """A normal density within one cell: the truncated normal of its width loses nothing, uniform noise the divergence
    of the two, within 5 standard errors (an error of 1e-6)."""
    scaling = Scaling(1.0, 0.0, 3)
    target = Mixture(torch.ones(1, dtype=F64), torch.tensor([[1.5]], dtype=F64), torch.tensor([[[0.04]]], dtype=F64))
    v, index = torch.ones(500, 1, dtype=torch.int64), torch.arange(500)
    truth = float(log_cells(target, scaling, 1.0)[1])
    gaps = []
    for rule in (TruncatedNormal(0.2), UniformDequantiser()):
        made = dequantise(rule, v, scaling, index=index, dtype=F64)
        gaps.append(truth - (target.log_prob(made.x) + made.log_weight))
    assert float(gaps[0].abs().max()) < 1e-6
    divergence = (1.0 / 12.0) / (2.0 * 0.04) + math.log(math.sqrt(2.0 * math.pi) * 0.2 * TruncatedNormal(0.2).mass)
    assert abs(float(gaps[1].mean()) - divergence) < 5.0 * float(gaps[1].std()) / math.sqrt(500)


def test_matched_noise_is_exact_for_a_model_of_the_middles_of_the_cells(process: SDE) -> None:
    """Of 8 equal levels every single draw gives log 1/8; uniform noise is nats away from it."""
    scaling = Scaling.interval(8, -1.0, 1.0)
    target = Empirical(scaling.to_model(torch.arange(8)[:, None], dtype=F64))
    v = torch.arange(8).repeat(50)[:, None]
    found = []
    for rule in (TruncatedNormal.matched(process, scaling), UniformDequantiser()):
        made = dequantise(rule, v, scaling, dtype=F64)
        found.append(target.log_prob(made.x, process, process.t_min) + made.log_weight)
    torch.testing.assert_close(found[0], torch.full((400,), -math.log(8.0), dtype=F64), rtol=0.0, atol=1e-9)
    assert float(found[1].mean()) < -math.log(8.0) - 1.0


def test_importance_weighted_is_the_log_of_the_mean() -> None:
    w = torch.tensor([[-900.0, 0.0], [-901.0, 2.0], [-902.0, -math.inf]], dtype=F64)
    expected = torch.tensor([-900.0 + math.log((1 + math.exp(-1) + math.exp(-2)) / 3), math.log((1 + math.e**2) / 3)])
    torch.testing.assert_close(importance_weighted(w), expected.double(), rtol=1e-6, atol=0.0)
    assert torch.equal(importance_weighted(w[:1]), w[0])


# ---- through the flow


@pytest.mark.parametrize("levels", [4, 256])
def test_noise_images_score_the_bits_of_a_level_in_any_scaling(levels: int) -> None:
    """Uniform data under its exact denoiser has log2 L bits/dim to 0.01; the process is scaled with the range, and the
    number is the same for all."""
    v = torch.randint(levels, (32, 2), generator=torch.Generator().manual_seed(5))
    bits = []
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (-math.sqrt(3.0), math.sqrt(3.0))):
        width, scaling = high - low, Scaling.interval(levels, low, high)
        process = VE(sigma_min=2e-4 * width, sigma_max=20.0 * width)
        target = Uniform(torch.full((2,), low, dtype=F64), torch.full((2,), high, dtype=F64))
        end = target.at(process, process.t_max)
        r = discrete_log_prob(target.denoiser(process), v, scaling, trace=ExactTrace(), prior=end)
        assert abs(float(r.bits_per_dim.mean()) - math.log2(levels)) < 0.01
        bits.append(r.bits_per_dim)
    for other in bits[1:]:
        torch.testing.assert_close(other, bits[0], rtol=0.0, atol=1e-3)


def test_draws_through_the_flow_are_those_made_by_hand() -> None:
    target, scaling, process = pointed(), Scaling.interval(8, -1.0, 1.0), VP()
    rule, v, index = TruncatedNormal(0.3, alpha=0.99), torch.tensor([[2], [5], [6]]), torch.tensor([7, 1, 900])
    settings: dict[str, Any] = {"trace": ExactTrace(), "prior": target.at(process, process.t_max), "atol": 1e-6}
    r = discrete_log_prob(
        target.denoiser(process), v, scaling, dequantiser=rule, draws=3, seed=4, index=index, repeat=2, **settings
    )
    assert r.draws.shape == (3, 3)
    for k in range(3):
        made = dequantise(rule, v, scaling, seed=4, index=index, repeat=6 + k, dtype=F64)
        expected = target.log_prob(made.x, process, process.t_min) + made.log_weight
        torch.testing.assert_close(r.draws[k], expected, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(r.nats, importance_weighted(r.draws))
    torch.testing.assert_close(r.bits_per_dim, -r.nats / math.log(2.0))
    torch.testing.assert_close(r.standard_error, r.draws.std(0) / math.sqrt(3.0))
    assert bool((r.nfe >= 3).all())
    plain = discrete_log_prob(
        target.denoiser(process),
        v,
        scaling,
        dequantiser=rule,
        draws=3,
        weighted=False,
        seed=4,
        index=index,
        repeat=2,
        **settings,
    )
    torch.testing.assert_close(plain.nats, r.draws.mean(0))
    assert bool((plain.nats < r.nats).all())
    one = discrete_log_prob(target.denoiser(process), v[1:2], scaling, index=index[1:2], **settings)
    assert math.isnan(one.standard_error.item())


def test_every_draw_has_probes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a call and between repeats; the first draw has the model's."""
    asked: list[Tensor] = []

    def recording(denoiser: Any, x: Tensor, *, index: Tensor, **settings: Any) -> Any:
        asked.append(index)
        return log_prob(denoiser, x, index=index, **settings)

    monkeypatch.setattr("sde.likelihood.dequantisation.log_prob", recording)
    target, index = pointed(), torch.tensor([3, 8])
    for repeat in (0, 1):
        settings: dict[str, Any] = {"index": index, "repeat": repeat, "solver": Heun(2)}
        discrete_log_prob(target.denoiser(VP()), torch.tensor([[1], [2]]), Scaling.interval(4), draws=3, **settings)
    assert len(torch.cat(asked).unique()) == 12
    assert torch.equal(asked[0], index)


# ---- keys and refusals


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_noise_is_that_of_seed_index_and_repeat(rule: Dequantiser) -> None:
    scaling, v = Scaling.interval(16), torch.randint(16, (6, 2, 3), generator=torch.Generator().manual_seed(1))
    whole = dequantise(rule, v, scaling, seed=1)
    part = dequantise(rule, v[4:], scaling, seed=1, index=torch.tensor([4, 5]))
    assert torch.equal(part.x, whole.x[4:])
    assert torch.equal(part.log_weight, whole.log_weight[4:])
    assert whole.x.dtype == torch.float32
    assert torch.equal(scaling.to_data(whole.x / rule.alpha), v.to(torch.uint8))
    for other in ({"seed": 2}, {"seed": 1, "repeat": 1}, {"seed": 1, "index": torch.arange(6) + 1}):
        assert not torch.isclose(dequantise(rule, v, scaling, **other).x, whole.x).any()  # type: ignore[arg-type]


def test_uniform_noise_is_the_model_s() -> None:
    """The draw and the states are those of `Model.log_prob`."""
    scaling, v, index = Scaling.interval(256), torch.tensor([[3, 200]]), torch.tensor([12])
    u = Noise(5).uniform(Stream.DEQUANTISE, index, torch.tensor([3]), (2,), F64)
    made = dequantise(UniformDequantiser(), v, scaling, seed=5, index=index, repeat=3)
    assert torch.equal(made.x, scaling.to_model(v, u))
    assert made.log_weight.item() == pytest.approx(scaling.log_det(2))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"continuous.*UniformDequantiser"):
        dequantise(UniformDequantiser(), torch.zeros(2, 1), Scaling.identity())
    with pytest.raises(ValueError, match="0 to 3"):
        dequantise(UniformDequantiser(), torch.tensor([[4]]), Scaling.interval(4))
    for std in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"got std={std}"):
            TruncatedNormal(std)
    with pytest.raises(ValueError, match="alpha=0"):
        TruncatedNormal(1.0, alpha=0.0)
    d = pointed().denoiser(VP())
    with pytest.raises(ValueError, match="got draws=0"):
        discrete_log_prob(d, torch.tensor([[1]]), Scaling.interval(4), draws=0)


def test_a_job_s_noise_is_drawn_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32, which a GPU may use for the networks of learned noise, is off while it is drawn."""
    seen = []

    class Watching(UniformDequantiser):
        def draw(self, values: Tensor, noise: Noise, index: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return super().draw(values, noise, index, counter)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model = Model(pointed().denoiser(VP()), Scaling.interval(8), (1,))
    batch_states(model, Split(torch.zeros(2, 1, dtype=torch.uint8)), torch.arange(2), Watching())
    assert seen == [(False, False)]
    assert torch.backends.cudnn.allow_tf32
