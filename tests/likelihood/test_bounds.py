"""The continuous-time bounds against the truth of exact distributions, in expectation and at every point."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from sde.data import Scaling
from sde.denoisers import Denoiser
from sde.exact import Empirical, Gaussian, Mixture, Uniform
from sde.likelihood.bounds import Bound, continuous_bound, density_bound, mean_error
from sde.noise import Noise, Stream
from sde.objective import UniformLogSNR, UniformTimes
from sde.processes import SDE, VE, VP, DiscreteChain, SubVP

F64 = torch.float64
# Means are compared within 4.5 standard errors: a test of 24 of them fails by chance once in 6000 seeds.
MANY = 4.5


def line(mean: float = 0.4, var: float = 0.3) -> Gaussian:
    return Gaussian(torch.tensor([mean], dtype=F64), torch.tensor([[var]], dtype=F64))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


class Own:
    """The prior of a process as an object that only answers `log_prob`."""

    def __init__(self, process: SDE) -> None:
        self.process = process

    def log_prob(self, x: Tensor) -> Tensor:
        return self.process.prior_log_prob(x)


# ---- the density at t_min


def test_with_exact_score_and_prior_it_is_the_density_at_every_point(process: SDE, mixture: Mixture) -> None:
    x = mixture.at(process, process.t_min).sample(3, generator=torch.Generator().manual_seed(1))
    r = density_bound(
        mixture.denoiser(process), x.repeat_interleave(400, 0), draws=64, prior=mixture.at(process, process.t_max)
    )
    off = r.nats.reshape(3, 400) - mixture.log_prob(x, process, process.t_min)[:, None]
    error = off.std(1) / math.sqrt(400)
    assert bool((off.mean(1).abs() < MANY * error).all())
    assert float(error.max()) < 0.05
    # What each sample says of its error agrees with what repeats show, to 15 percent.
    said = r.standard_error.reshape(3, 400).square().mean(1).sqrt()
    assert bool(((said / off.std(1)).log().abs() < 0.15).all())


def test_the_process_s_own_prior_is_integrated_exactly(process: SDE, mixture: Mixture) -> None:
    x = mixture.sample(2, generator=torch.Generator().manual_seed(1)).repeat_interleave(5_000, 0)
    d = mixture.denoiser(process)
    drawn, exact = density_bound(d, x, draws=2, prior=Own(process)), density_bound(d, x, draws=2)
    torch.testing.assert_close(drawn.diffusion, exact.diffusion, rtol=0.0, atol=0.0)
    off = (drawn.prior - exact.prior).reshape(2, -1)
    assert bool((off.mean(1).abs() < MANY * off.std(1) / math.sqrt(5_000)).all())
    assert bool((exact.prior.reshape(2, -1)[:, :1] == exact.prior.reshape(2, -1)).all())


@pytest.mark.parametrize("process", [VP(t_min=1e-3), SubVP(t_min=0.05), VE(sigma_max=5.0)], ids=str)
def test_what_a_wrong_model_loses_is_its_score_s_error(process: SDE) -> None:
    """On data of one Gaussian under the denoiser of another: Girsanov's integral, by quadrature, and the prior's
    divergence. The bound lies below the truth by that much on average."""
    truth, other = line(), line(0.1, 0.5)
    n, end = 4000, other.at(process, process.t_max)
    x = truth.at(process, process.t_min).sample(n, generator=torch.Generator().manual_seed(1))
    r = density_bound(other.denoiser(process), x, draws=48, prior=end)
    off, error = mean_and_error(truth.log_prob(x, process, process.t_min) - r.nats)
    ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=F64))
    edges = torch.linspace(float(ends[1]), float(ends[0]), 20_001, dtype=F64)
    t = process.time(0.5 * (edges[1:] + edges[:-1]))
    a, v = process.alpha(t), process.var(t)
    mine, theirs = a.square() * 0.3 + v, a.square() * 0.5 + v
    # s_true - s_other = -(x - 0.4 a)/mine + (x - 0.1 a)/theirs under N(0.4 a, mine)
    square = mine * (1.0 / theirs - 1.0 / mine).square() + (0.3 * a / theirs).square()
    lost = 0.5 * float((v * square * edges.diff()).sum())
    high = torch.tensor(process.t_max, dtype=F64)
    a, v = process.alpha(high), process.var(high)
    lost += float(kl_divergence(Normal(0.4 * a, (0.3 * a**2 + v).sqrt()), Normal(0.1 * a, (0.5 * a**2 + v).sqrt())))
    assert lost > 0.05
    assert abs(off - lost) < MANY * error
    assert error < 0.1 * lost + 0.02


# ---- data, through a decoder


def expected_gap(process: SDE, mean: float, var: float) -> float:
    """What the bound loses on Gaussian data on average, in closed form.

    With r = alpha^2/sigma^2 the noise's error is c r/(1 + c r), whose integral over log r is log(1 + c r)."""
    ends = torch.tensor([process.t_min, process.t_max], dtype=F64)
    r0, r1 = process.log_snr(ends).exp().tolist()
    diffusion = 0.5 * (math.log1p(var * r0) - math.log1p(var * r1))
    data = 0.5 * math.log(2.0 * math.pi / r0) + 0.5 * var * r0 / (1.0 + var * r0)
    a, s2 = float(process.alpha(ends[1])), float(process.var(ends[1]))
    ratio = process.prior_var(ends[1]).item()
    prior = 0.5 * (a * a * (mean * mean + var) / ratio + s2 / ratio - 1.0 - math.log(s2 / ratio))
    return prior + diffusion + data - 0.5 * math.log(2.0 * math.pi * math.e * var)


@pytest.mark.parametrize("t_min", [0.2, 0.05, 1e-2, 1e-3])
def test_on_gaussian_data_it_loses_what_it_should(t_min: float) -> None:
    """For 3 processes, and the less the smaller t_min."""
    for process in (VP(t_min=t_min), SubVP(t_min=t_min), VE(sigma_min=t_min, t_min=1e-9)):
        target, n = line(), 3000
        x = target.sample(n, generator=torch.Generator().manual_seed(2))
        r = continuous_bound(target.denoiser(process), x, Scaling.identity(), draws=32, data_draws=4)
        gap, error = mean_and_error(target.log_prob(x) - r.nats)
        expected = expected_gap(process, 0.4, 0.3)
        assert expected > 0.0
        assert abs(gap - expected) < MANY * error
        assert error < 0.045
        said = float(r.standard_error.square().mean().sqrt()) / math.sqrt(n)
        assert error / 3.0 < said < 1.2 * error


def test_the_expected_gap_vanishes_with_t_min() -> None:
    """In the order of the square of the variance that is left at `t_min`, down to the mismatch of the prior."""
    gaps = [expected_gap(VP(t_min=t, beta_max=60.0), 0.4, 0.3) for t in (1e-1, 1e-2, 1e-3, 1e-4)]
    left = [float(VP(t_min=t, beta_max=60.0).var(torch.tensor(t, dtype=F64))) for t in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-4
    assert gaps[3] / gaps[2] == pytest.approx((left[3] / left[2]) ** 2, rel=0.01)


@pytest.mark.parametrize(("levels", "low", "high"), [(2, 0.0, 1.0), (4, -1.0, 1.0), (16, -1.7, 1.7)])
def test_noise_images_lie_above_the_bits_of_a_level_and_come_down_to_them(levels: int, low: float, high: float) -> None:
    """Data uniform on the middles of the cells, under their exact denoiser: down to log2 L bits/dim as t_min falls.

    On average the bound can be no better than log2 L, for no model."""
    scaling = Scaling.interval(levels, low, high)
    middles = scaling.to_model(torch.arange(levels)[:, None], dtype=F64)
    v = torch.arange(levels).repeat_interleave(4000 // levels)[:, None]
    bits = []
    for t_min in (0.2, 0.03, 1e-4):
        d = Empirical(middles).denoiser(VP(t_min=t_min))
        mean, error = mean_and_error(continuous_bound(d, v, scaling, draws=24).bits_per_dim)
        assert mean > math.log2(levels) - MANY * error
        bits.append((mean, error))
    assert bits[0][0] > bits[1][0] > bits[2][0] - MANY * bits[2][1]
    assert abs(bits[2][0] - math.log2(levels)) < MANY * bits[2][1] < 0.2


def test_a_continuous_model_of_noise_images_is_above_too() -> None:
    """Under the exact denoiser of the uniform density the decoder knows nothing within a cell: far above log2 L."""
    scaling, process = Scaling.interval(4, 0.0, 1.0), VP()
    target = Uniform(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
    v = torch.arange(4).repeat(500)[:, None]
    r = continuous_bound(target.denoiser(process), v, scaling, draws=24)
    mean, error = mean_and_error(r.bits_per_dim)
    assert mean > 2.0 + 10.0 * error
    # A decoder as wide as a cell ends the path where the cells end, and costs most of a bit less.
    wide = continuous_bound(target.denoiser(VP(t_min=0.05)), v, scaling, draws=24, std=0.1)
    assert 2.0 < float(wide.bits_per_dim.mean()) < mean - 1.0


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-math.sqrt(3.0), math.sqrt(3.0))], ids=["signed", "standard"])
def test_the_range_of_the_model_changes_no_bits(low: float, high: float) -> None:
    """With the process scaled along, noise for noise the same as on [0, 1] about its middle."""
    v = torch.arange(8)[:, None].expand(8, 3)
    bits = []
    for a, b in ((-0.5, 0.5), (low, high)):
        scaling, process = Scaling.interval(8, a, b), VE(sigma_min=1e-2 * (b - a), sigma_max=20.0 * (b - a))
        points = scaling.to_model(torch.randint(8, (5, 3), generator=torch.Generator().manual_seed(4)), dtype=F64)
        bits.append(continuous_bound(Empirical(points).denoiser(process), v, scaling, draws=4).bits_per_dim)
    torch.testing.assert_close(bits[0], bits[1], rtol=1e-9, atol=0.0)


# ---- times, errors and terms


def test_any_rule_for_the_times_has_the_same_mean() -> None:
    """Evenly in time or in log-SNR, stratified or not; each within the errors of the difference."""
    process, target = VP(t_min=1e-2), line()
    x = torch.full((4000, 1), 0.2, dtype=F64)
    for bound in (density_bound, lambda d, x, **s: continuous_bound(d, x, Scaling.identity(), **s)):
        found = [
            mean_and_error(bound(target.denoiser(process), x, draws=16, times=times, stratified=s, seed=k).diffusion)
            for k, (times, s) in enumerate(
                [(UniformLogSNR(), True), (UniformLogSNR(), False), (UniformTimes(), True), (UniformTimes(), False)]
            )
        ]
        for a, s in found:
            for b, r in found:
                assert abs(a - b) <= MANY * math.hypot(r, s)


class Timed(Denoiser):
    """Remembers the times it is asked at."""

    def __init__(self, process: SDE) -> None:
        super().__init__()
        self.process = process
        self.times: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.times.append(t)
        return x_t


def test_stratified_times_have_one_in_each_part() -> None:
    """Of the interval of time, or of log-SNR; every sample has times of its own, and unstratified ones lie anywhere."""
    process, v = VP(t_min=1e-2), torch.zeros(50, 1)
    ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=F64))
    for times in (UniformTimes(), UniformLogSNR()):
        parts = []
        for stratified in (True, False):
            d = Timed(process)
            continuous_bound(d, v, Scaling.identity(), draws=8, times=times, stratified=stratified, data_draws=1)
            t = torch.stack(d.times[:8])
            share = (t - process.t_min) / (process.t_max - process.t_min)
            if isinstance(times, UniformLogSNR):
                share = (process.log_snr(t) - ends[0]) / (ends[1] - ends[0])
            assert len(share.unique()) == 8 * 50
            parts.append((share * 8).floor().long())
        assert torch.equal(parts[0], torch.arange(8)[:, None].expand(8, 50))
        assert not torch.equal(parts[1].sort(0).values, parts[0])


def test_the_standard_error_of_stratified_draws_is_not_too_small() -> None:
    """Of a slope plus noise: the mean's true error, which knows no slope, is at most what is said, on average.

    With independent draws it is the usual one."""
    n, generator = 16, torch.Generator().manual_seed(0)
    u = (torch.arange(n) + torch.rand(5_000, n, generator=generator, dtype=F64)) / n
    draws = 3.0 * u + 0.1 * torch.randn(5_000, n, generator=generator, dtype=F64)
    true, said = float(draws.mean(1).var()), mean_error(draws, True).square()
    assert true < float(said.mean()) < float(mean_error(draws, False).square().mean())
    expected = (0.01 + 9.0 / 12.0 / n**2 + 0.5 * (3.0 / n) ** 2) / n
    assert float(said.mean()) == pytest.approx(expected, rel=0.02)
    torch.testing.assert_close(mean_error(draws, False), draws.std(1) / 4.0)
    assert bool(mean_error(draws[:, :1], True).isnan().all())
    assert bool(mean_error(draws[:, :1], False).isnan().all())


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), DiscreteChain.linear(30).sde()])
def test_the_prior_s_divergence_is_that_of_two_normals(process: SDE) -> None:
    x0 = torch.tensor([[0.3, -2.0], [5.0, 0.0]], dtype=F64)
    for t in (process.t_max, 0.5):
        mean, std = process.marginal(x0, torch.tensor(t, dtype=F64))
        prior = Normal(torch.zeros_like(mean), process.prior_var(torch.tensor(t, dtype=F64)).sqrt())
        expected = kl_divergence(Normal(mean, std), prior).sum(1)
        torch.testing.assert_close(process.prior_divergence(x0, t), expected, rtol=1e-9, atol=1e-12)


def test_what_goes_with_the_square_of_the_noise_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 64 dimensions the errors are less than half of what they are without, and the means the same."""
    target = Gaussian(torch.zeros(64, dtype=F64), 0.1 * torch.eye(64, dtype=F64))
    d, x = target.denoiser(VP(t_min=1e-3)), target.sample(20, generator=torch.Generator().manual_seed(2))
    for bound in (density_bound, lambda d, x, **s: continuous_bound(d, x, Scaling.identity(), **s)):
        with_it = bound(d, x, draws=50)
        with monkeypatch.context() as m:
            m.setattr("sde.likelihood.bounds._neighbours", torch.zeros_like)
            without = bound(d, x, draws=50)
        errors = [float(mean_error(50 * r.parts, True).square().mean().sqrt()) for r in (with_it, without)]
        assert errors[0] < 0.5 * errors[1]
        assert abs(float((with_it.nats - without.nats).mean())) < MANY * errors[1] / math.sqrt(20)


def test_float32_is_enough(process: SDE, mixture: Mixture) -> None:
    """On the same noise and data, to 1e-2 nats a dimension; near t_min the scores are a thousand times larger."""
    x = mixture.at(process, process.t_min).sample(64, generator=torch.Generator().manual_seed(1))
    d = mixture.denoiser(process)
    wide, narrow = density_bound(d, x, draws=32), density_bound(d, x.float(), draws=32)
    assert narrow.nats.dtype == F64
    assert float((wide.nats - narrow.nats).abs().max()) < 1e-2 * 2


def test_the_terms_add_up(mixture: Mixture) -> None:
    d, scaling, v = mixture.denoiser(VP()), Scaling.interval(8), torch.tensor([[0, 3], [7, 4], [2, 2]])
    x = scaling.to_model(v, dtype=F64)
    r = continuous_bound(d, v, scaling, draws=5, data_draws=3)
    torch.testing.assert_close(r.nats, r.prior + r.diffusion + r.data)
    torch.testing.assert_close(r.parts.sum(1), r.diffusion)
    torch.testing.assert_close(r.bits_per_dim, -r.nats / (2.0 * math.log(2.0)))
    torch.testing.assert_close(r.prior, -VP().prior_divergence(x))
    assert r.parts.shape == (3, 5)
    assert r.nfe.tolist() == [8, 8, 8]
    r = density_bound(d, x, draws=5, scaling=scaling)
    torch.testing.assert_close(r.nats, r.prior + r.diffusion)
    torch.testing.assert_close(r.bits_per_dim, scaling.bits_per_dim(r.nats, 2))
    assert r.data.tolist() == [0.0, 0.0, 0.0]
    assert r.nfe.tolist() == [10, 10, 10]
    torch.testing.assert_close(density_bound(d, x).bits_per_dim, -density_bound(d, x).nats / (2.0 * math.log(2.0)))
    wide = Scaling(0.5, 0.0)
    r = continuous_bound(d, x, wide, draws=5)
    torch.testing.assert_close(r.bits_per_dim, wide.bits_per_dim(r.nats, 2))


# ---- keys, models, refusals


class Network(Denoiser):
    """A network in float32 with a condition, that remembers its modes."""

    def __init__(self) -> None:
        super().__init__()
        self.process = VP()
        self.layer = nn.Linear(2, 2)
        self.modes: set[bool] = set()

    def forward(self, x_t: Tensor, t: Tensor, shift: Tensor | float = 0.0, **condition: Tensor) -> Tensor:
        self.modes.add(self.training)
        column = shift[:, None] if isinstance(shift, Tensor) else shift
        return torch.tanh(self.layer(x_t.float()) + column).to(x_t.dtype)


def both(d: Denoiser, v: Tensor, **settings: Any) -> list[Bound]:
    scaling = Scaling.interval(8)
    x = scaling.to_model(v)
    return [continuous_bound(d, v, scaling, draws=3, **settings), density_bound(d, x, draws=3, **settings)]


def test_a_sample_s_bound_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    d, v = Network(), torch.randint(8, (5, 2), generator=torch.Generator().manual_seed(1))
    shift = torch.linspace(-1.0, 1.0, 5)
    whole = both(d, v, seed=3, condition={"shift": shift})
    part = both(d, v[3:], seed=3, index=torch.tensor([3, 4]), condition={"shift": shift[3:]})
    for a, b in zip(whole, part):
        torch.testing.assert_close(a.nats[3:], b.nats, rtol=1e-5, atol=1e-5)
    for other in ({"seed": 4}, {"seed": 3, "repeat": 1}, {"seed": 3, "index": torch.arange(5) + 1}):
        for a, b in zip(whole, both(d, v, condition={"shift": shift}, **other)):
            assert not torch.isclose(a.nats, b.nats, rtol=1e-3).any()
    assert d.modes == {False}
    assert d.training
    assert not whole[0].nats.requires_grad
    assert not whole[1].nats.requires_grad


def test_no_normals_are_used_twice(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither within a bound, its two ends included, nor by two repeats."""
    d, v, scaling = mixture.denoiser(VP()), torch.tensor([[0, 3]]), Scaling.interval(8)
    drawn = Noise.normal
    counters: list[int] = []

    def normal(self: Noise, stream: Stream, index: Tensor, counter: Tensor, *rest: Any) -> Tensor:
        counters.extend(counter.tolist())
        return drawn(self, stream, index, counter, *rest)

    monkeypatch.setattr(Noise, "normal", normal)
    for repeat in (0, 1):
        continuous_bound(d, v, scaling, draws=5, data_draws=5, repeat=repeat)
    assert len(set(counters)) == len(counters) == 20
    counters.clear()
    for repeat in (0, 1):
        density_bound(d, scaling.to_model(v, dtype=F64), draws=5, prior=Own(VP()), repeat=repeat)
    assert len(set(counters)) == len(counters) == 20


def test_gradients_flow_where_they_are_asked_for() -> None:
    torch.manual_seed(0)
    d, x = Network(), torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=F64, requires_grad=True)
    density_bound(d, x, draws=2, differentiable=True).nats.sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).all())
    assert d.layer.weight.grad is not None


def test_refusals(mixture: Mixture) -> None:
    d, v, scaling = mixture.denoiser(VP()), torch.tensor([[0, 3]]), Scaling.interval(8)
    for name in ("draws", "data_draws"):
        with pytest.raises(ValueError, match=f"{name} >= 1, got {name}=0"):
            continuous_bound(d, v, scaling, **{name: 0})
    with pytest.raises(ValueError, match="got draws=0"):
        density_bound(d, v.double(), draws=0)
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"got std={std}"):
            continuous_bound(d, v, scaling, std=std)
    with pytest.raises(ValueError, match="0 to 7"):
        continuous_bound(d, v + 6, scaling)
    for x in (v, torch.zeros(3), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match=r"floating.*got torch"):
            density_bound(d, x)
    for index in (torch.arange(2), torch.zeros(1)):
        with pytest.raises(ValueError, match=r"index int64.*got torch"):
            continuous_bound(d, v, scaling, index=index)
