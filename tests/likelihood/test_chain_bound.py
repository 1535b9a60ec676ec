"""DDPM's bound: its terms against torch's divergences, closed forms, and numbers recorded from OpenAI's programs."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fixtures import recorded
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import sde
from sde.data import Scaling
from sde.denoisers import Denoiser
from sde.exact import Empirical, Gaussian, Mixture, Uniform
from sde.grids import Explicit, Grid, LogSNR
from sde.likelihood.bounds import continuous_bound
from sde.likelihood.chain_bound import chain_bound
from sde.likelihood.decoder import log_decoder
from sde.noise import Noise
from sde.objective.bounds import decoder_variance, step_divergence
from sde.processes import SDE, VE, VP, ChainSDE, DiscreteChain
from sde.shapes import expand
from sde.solvers import Ancestral

F64 = torch.float64
MANY = 4.5


def line() -> Gaussian:
    return Gaussian(torch.tensor([0.4], dtype=F64), torch.tensor([[0.3]], dtype=F64))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


# ---- the terms


@pytest.mark.parametrize("v", [0.0, 1.0, 0.3])
def test_a_step_s_term_is_the_divergence_of_two_normals(v: float) -> None:
    """Of the chain's posterior from the reverse step of `Ancestral`."""
    chain = DiscreteChain.linear(50)
    process, i = chain.sde(), 17
    generator = torch.Generator().manual_seed(0)
    x0, z, guess = (torch.randn(3, 2, generator=generator, dtype=F64) for _ in range(3))
    s, t = torch.tensor((i - 1) / 50, dtype=F64), torch.tensor(i / 50, dtype=F64)
    x_t = process.alpha(t) * x0 + process.sigma(t) * z
    mean, var = chain.posterior(x0, x_t, i)
    guessed = (x_t - process.sigma(t) * guess) / process.alpha(t)
    model, _ = chain.posterior(guessed, x_t, i)
    beta = chain.betas[i - 1]
    wide = (v * beta.log() + (1.0 - v) * var.log()).exp()
    expected = kl_divergence(Normal(mean, var.sqrt()), Normal(model, wide.sqrt()))
    torch.testing.assert_close(step_divergence(process, s, t, (guess - z).square(), v), expected, rtol=1e-9, atol=0.0)
    found = step_divergence(process, s, t, (guess - z).square(), torch.full((3, 2), v, dtype=F64))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)


def test_the_decoder_s_variance_is_that_of_the_second_step() -> None:
    chain = DiscreteChain.linear(50)
    times = torch.arange(1, 51, dtype=F64) / 50
    _, second = chain.posterior(torch.zeros(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64), 2)
    torch.testing.assert_close(decoder_variance(chain.sde(), times), second, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(decoder_variance(chain.sde(), times, 1.0), chain.betas[0], rtol=1e-9, atol=0.0)
    v = torch.tensor([[0.25, 0.5]], dtype=F64)
    expected = second ** (1.0 - v) * chain.betas[0] ** v
    torch.testing.assert_close(decoder_variance(chain.sde(), times, v), expected, rtol=1e-9, atol=0.0)


# ---- truth


def expected_terms(process: SDE, times: Tensor, v: float, std: float | None = None) -> tuple[float, float, float]:
    """-E L_N, -E sum L_i and -E L_0 on Gaussian data of mean 0.4 and variance 0.3 under its exact denoiser.

    The noise's squared error is c r/(1 + c r) on average, with r = alpha^2/sigma^2."""
    r = 0.3 * process.log_snr(times).exp()
    error = (r / (1.0 + r)).reshape(-1, 1, 1)
    steps = [step_divergence(process, s, t, e, v) for s, t, e in zip(times[:-1], times[1:], error[1:])]
    var = float(decoder_variance(process, times)) if std is None else std**2
    first = process.log_snr(times[0]).exp()
    data = -0.5 * (math.log(2.0 * math.pi * var) + float(0.3 / (1.0 + 0.3 * first)) / var)
    x0 = torch.tensor([[0.4 - math.sqrt(0.3)], [0.4 + math.sqrt(0.3)]], dtype=F64)  # two points with these moments
    prior = -float(process.prior_divergence(x0, float(times[-1])).mean())
    return prior, -float(torch.stack(steps).sum()), data


ENTROPY = 0.5 * math.log(2.0 * math.pi * math.e * 0.3)


@pytest.mark.parametrize("v", [0.0, 1.0])
@pytest.mark.parametrize(
    ("process", "grid"),
    [(DiscreteChain.linear(25).sde(), sde.grids.Uniform()), (VP(t_min=1e-2), LogSNR()), (VE(), LogSNR())],
    ids=["chain", "VP", "VE"],
)
def test_on_gaussian_data_every_term_is_what_it_should_be(process: SDE, grid: Grid, v: float) -> None:
    target, solver = line(), Ancestral(24, grid, v=v)
    x = target.sample(4000, generator=torch.Generator().manual_seed(2))
    r = chain_bound(target.denoiser(process), x, Scaling.identity(), solver=solver)
    times = grid.times(process, 24, process.t_min, process.t_max)
    for found, expected in zip((r.prior, r.diffusion, r.data), expected_terms(process, times, v)):
        mean, error = mean_and_error(found)
        assert abs(mean - expected) < MANY * error
    assert sum(expected_terms(process, times, v)) < -ENTROPY


def test_the_bound_approaches_the_truth_at_first_order_in_the_steps() -> None:
    """The expected gap of VP on Gaussian data falls as 1/N to that of continuous time, and that one with t_min."""

    def gap(n: int, t_min: float) -> float:
        process = VP(t_min=t_min, beta_max=60.0)
        times = LogSNR().times(process, n, process.t_min, process.t_max)
        low = torch.tensor(t_min, dtype=F64)
        return -sum(expected_terms(process, times, 0.0, float(process.sigma(low) / process.alpha(low)))) - ENTROPY

    r0 = 0.3 * float(VP(t_min=1e-3, beta_max=60.0).log_snr(torch.tensor(1e-3, dtype=F64)).exp())
    limit = 0.5 * math.log1p(1.0 / r0) - 0.5 / (1.0 + r0)
    gaps = [gap(n, 1e-3) - limit for n in (125, 250, 500, 1000)]
    rates = [a / b for a, b in itertools.pairwise(gaps)]
    assert gaps[-1] > 0.0
    assert all(abs(rate - 2.0) < 0.2 for rate in rates)
    assert abs(rates[-1] - 2.0) < 0.05
    together = [gap(20, 0.1), gap(200, 1e-2), gap(2000, 1e-3)]
    assert together == sorted(together, reverse=True)
    assert 0.0 < together[-1] < 0.05


@pytest.mark.parametrize(("levels", "low", "high"), [(2, 0.0, 1.0), (4, -1.0, 1.0), (16, -1.7, 1.7)])
def test_noise_images_lie_above_the_bits_of_a_level_and_come_down_to_them(levels: int, low: float, high: float) -> None:
    """Under their exact denoiser, with 4, 60 and 400 steps, for every scaling; with 400 within 0.12 bits/dim."""
    scaling = Scaling.interval(levels, low, high)
    target = Empirical(scaling.to_model(torch.arange(levels)[:, None], dtype=F64))
    v = torch.arange(levels).repeat_interleave(3200 // levels)[:, None]
    process = VP(t_min=1e-4)
    bits = []
    for n in (4, 60, 400):
        r = chain_bound(target.denoiser(process), v, scaling, solver=Ancestral(n, LogSNR()))
        mean, error = mean_and_error(r.bits_per_dim)
        assert mean > math.log2(levels) - MANY * error
        bits.append(mean)
    assert bits[0] > bits[1] > bits[2]
    assert bits[2] < math.log2(levels) + 0.12 + MANY * error


def test_a_continuous_model_of_noise_images_is_above_too() -> None:
    scaling, process = Scaling.interval(4, 0.0, 1.0), DiscreteChain.linear(100).sde()
    target = Uniform(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
    r = chain_bound(target.denoiser(process), torch.arange(4).repeat(300)[:, None], scaling, solver=Ancestral(99))
    mean, error = mean_and_error(r.bits_per_dim)
    assert mean > 2.0 + MANY * error


def test_many_steps_are_the_continuous_bound(mixture: Mixture) -> None:
    """300 steps even in log-SNR against the integral, on the same data, in expectation."""
    process, scaling = VP(t_min=1e-2), Scaling.interval(32, -2.5, 2.5)
    v = scaling.to_data(mixture.sample(300, generator=torch.Generator().manual_seed(3)))
    d = mixture.denoiser(process)
    low = torch.tensor(process.t_min, dtype=F64)
    std = float(process.sigma(low) / process.alpha(low))
    steps = chain_bound(d, v, scaling, solver=Ancestral(300, LogSNR()), std=std)
    times = continuous_bound(d, v, scaling, draws=300, data_draws=1, seed=1)
    mean, error = mean_and_error(steps.nats - times.nats)
    assert error < 0.1
    assert abs(mean) < MANY * error + 0.03


# ---- recorded numbers


def original_decoder(scaling: Scaling, values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """OpenAI's decoder, in float32: a hyperbolic tangent for the normal's distribution, no probability below 1e-12."""
    x, mean, std = scaling.to_model(values), mean.float(), std.float()

    def cdf(y: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y**3)))

    above, below = cdf((x - mean + 1.0 / 255.0) / std), cdf((x - mean - 1.0 / 255.0) / std)
    mass = torch.where(values == 0, above, torch.where(values == 255, 1.0 - below, above - below))
    return mass.clamp(min=1e-12).log().double().flatten(1).sum(1)


CASES = [("openai_improved", "respaced_10"), ("openai_guided", "respaced_ddim25"), ("openai_fixed", "full")]


@pytest.mark.parametrize(("name", "key"), CASES)
def test_the_bound_is_the_original_s(name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recorded term in bits/dim to 1e-5, learned and fixed variances, respaced chains; the first one with the
    original's decoder to 1e-4, and with ours to the error of its approximation."""
    r = recorded(name)
    torch.save(r.state, tmp_path / "model.pt")
    model = sde.load(tmp_path / "model.pt", settings=r.settings)
    model.denoiser.double()
    kept, n = r[f"{key}/timestep_map"].tolist(), r.settings["diffusion_steps"]
    solver = Ancestral(
        len(kept) - 1, Explicit([(k + 1) / n for k in reversed(kept)]), v=1.0 if name == "openai_fixed" else None
    )
    values = ((r["x_start"].double() + 1.0) * 127.5).round().to(torch.uint8)
    condition = {"label": r["label"]} if "label" in r.arrays else None
    monkeypatch.setattr(Noise, "normal", lambda self, *address: r["noise"])

    def bound() -> Any:
        start = (kept[-1] + 1) / n
        return chain_bound(model.denoiser, values, model.scaling, solver=solver, start=start, condition=condition)

    ours = bound()
    monkeypatch.setattr(sys.modules["sde.likelihood.chain_bound"], "log_decoder", original_decoder)
    theirs, bits = bound(), 192.0 * math.log(2.0)
    for t in (1, len(kept) // 2, len(kept) - 1):
        torch.testing.assert_close(-ours.parts[:, t - 1] / bits, r[f"{key}/{t}/vb"].double(), rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(-ours.prior / bits, r[f"{key}/prior_bpd"].double(), rtol=3e-4, atol=1e-9)
    torch.testing.assert_close(-theirs.data / bits, r[f"{key}/0/vb"].double(), rtol=1e-4, atol=0.0)
    assert ours.nfe.tolist() == [len(kept)] * 2
    if name != "openai_fixed":  # whose first term consists of probabilities that the original cuts
        torch.testing.assert_close(ours.data, theirs.data, rtol=1e-3, atol=0.0)
    else:
        assert bool((ours.data < 10.0 * theirs.data).all())


# ---- the network, keys, refusals


class Learned(Denoiser):
    """A denoiser with a learned fraction, and one condition."""

    def __init__(self, process: SDE, fraction: float | None) -> None:
        super().__init__()
        self.process = process
        self.fraction = fraction
        self.layer = nn.Linear(2, 2)
        self.modes: set[bool] = set()

    def forward(self, x_t: Tensor, t: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        self.modes.add(self.training)
        column = shift[:, None] if isinstance(shift, Tensor) else shift
        return torch.tanh(self.layer(x_t.float()) + column).to(x_t.dtype)

    def score_and_variance(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        score = self.score(x_t, t, **condition)
        return score, None if self.fraction is None else torch.full_like(x_t, self.fraction)


def network(fraction: float | None) -> Learned:
    torch.manual_seed(0)
    return Learned(DiscreteChain.linear(25).sde(), fraction)


V = torch.tensor([[0, 3], [7, 4], [2, 2]])


def test_a_learned_fraction_is_used_unless_a_variance_is_given() -> None:
    scaling = Scaling.interval(8)

    def bound(fraction: float | None, v: float | None, **settings: Any) -> Any:
        return chain_bound(network(fraction), V, scaling, solver=Ancestral(24, v=v), **settings)

    torch.testing.assert_close(bound(0.6, None).diffusion, bound(None, 0.6).diffusion, rtol=1e-5, atol=0.0)
    for given in (0.0, 1.0, 0.4):
        assert torch.equal(bound(0.6, given).nats, bound(None, given).nats)
        assert torch.equal(bound(0.6, given).data, bound(None, 0.0).data)
    assert torch.equal(bound(None, None).nats, bound(None, 0.0).nats)
    assert not torch.isclose(bound(0.6, None).data, bound(None, None).data, rtol=1e-3).any()
    # The decoder's variance: the learned one, that of the second step, or one's own.
    d, process = network(0.6), network(0.6).process
    assert isinstance(process, ChainSDE)
    first = torch.tensor(process.t_min, dtype=F64)
    x0 = scaling.to_model(V)
    z = Noise(0).normal(sde.noise.Stream.PERTURB, torch.arange(3), torch.zeros(3, dtype=torch.int64), (2,))
    mean, sigma = process.marginal(x0, first)
    with torch.no_grad():
        clean = d(mean + expand(sigma, x0) * z, first)
    times = torch.arange(1, 26, dtype=F64) / 25
    for r, std in (
        (bound(0.6, None), decoder_variance(process, times, 0.6).sqrt()),
        (bound(None, 1.0), decoder_variance(process, times).sqrt()),
        (bound(0.6, None, std=0.3), torch.tensor(0.3)),
    ):
        torch.testing.assert_close(r.data, log_decoder(scaling, V, clean, std), rtol=1e-4, atol=1e-4)


def test_terms_draws_and_calls() -> None:
    d, scaling = network(0.6), Scaling.interval(8)
    r = chain_bound(d, V, scaling, solver=Ancestral(24), draws=3)
    assert r.parts.shape == (3, 24)
    assert r.nfe.tolist() == [75] * 3
    torch.testing.assert_close(r.nats, r.prior + r.parts.sum(1) + r.data)
    torch.testing.assert_close(r.bits_per_dim, -r.nats / (2.0 * math.log(2.0)))
    alone = [chain_bound(d, V, scaling, solver=Ancestral(24), repeat=k) for k in range(3)]
    each = torch.stack([one.nats for one in alone])
    torch.testing.assert_close(r.nats, each.mean(0))
    torch.testing.assert_close(r.standard_error, each.std(0) / math.sqrt(3.0))
    assert len(each.unique()) == 9
    assert bool(alone[0].standard_error.isnan().all())
    again = chain_bound(d, V, scaling, solver=Ancestral(24), draws=3, repeat=1)
    assert not torch.isclose(again.nats, r.nats).any()
    y = torch.tensor([[0.3, -1.0]], dtype=F64)
    wide = chain_bound(d, y, Scaling(0.5, 0.0), solver=Ancestral(24))
    torch.testing.assert_close(wide.bits_per_dim, Scaling(0.5, 0.0).bits_per_dim(wide.nats, 2))
    assert d.modes == {False}
    assert d.training
    assert not r.nats.requires_grad


def test_a_shorter_chain_has_its_prior_at_its_start() -> None:
    d, scaling = network(None), Scaling.interval(8)
    r = chain_bound(d, V, scaling, solver=Ancestral(9), start=0.4)
    expected = -d.process.prior_divergence(scaling.to_model(V), 0.4)
    torch.testing.assert_close(r.prior, expected)
    assert r.parts.shape == (3, 9)


def test_a_sample_s_bound_does_not_depend_on_its_batch() -> None:
    d, scaling, shift = network(0.3), Scaling.interval(8), torch.tensor([0.1, -0.7, 1.0])

    def bound(v: Tensor, shift: Tensor, **settings: Any) -> Tensor:
        return chain_bound(d, v, scaling, solver=Ancestral(24), condition={"shift": shift}, **settings).nats

    whole = bound(V, shift, seed=3)
    part = bound(V[1:], shift[1:], seed=3, index=torch.tensor([1, 2]))
    torch.testing.assert_close(whole[1:], part, rtol=1e-5, atol=1e-5)
    others = [bound(V, shift, seed=4), bound(V, shift, seed=3, index=torch.arange(3) + 5), bound(V, -shift, seed=3)]
    for other in others:
        assert not torch.isclose(whole, other, rtol=1e-4).any()


def test_refusals() -> None:
    d, scaling = network(None), Scaling.interval(8)
    with pytest.raises(ValueError, match="got draws=0"):
        chain_bound(d, V, scaling, solver=Ancestral(24), draws=0)
    with pytest.raises(ValueError, match="got std=0"):
        chain_bound(d, V, scaling, solver=Ancestral(24), std=0.0)
    with pytest.raises(ValueError, match="0 to 7"):
        chain_bound(d, V + 1, scaling, solver=Ancestral(24))
    with pytest.raises(ValueError, match=r"index int64.*\(2,\)"):
        chain_bound(d, V, scaling, solver=Ancestral(24), index=torch.arange(2))
