"""Processes: the published kernels, the moment equations, and closed forms that equal the definitions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sde.exact import Mixture
from sde.processes import (
    SDE,
    VE,
    VP,
    Cosine,
    DiscreteChain,
    KarrasVE,
    LearnedVP,
    RectifiedFlow,
    SubVP,
    propose_beta_max,
    propose_sigma_max,
)
from sde.sampling import sample
from sde.solvers import UniPC


def learned(seed: int = 0, **settings: float) -> LearnedVP:
    """A learned schedule that training has moved."""
    process, generator = LearnedVP(**settings), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in process.interior.values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return process.requires_grad_(False)


LEAVES: dict[str, SDE] = {
    "VP": VP(),
    "SubVP": SubVP(),
    "VE": VE(),
    "ChainSDE": DiscreteChain.linear(1000).sde(),
    "Cosine": Cosine(),
    "KarrasVE": KarrasVE(),
    "RectifiedFlow": RectifiedFlow(),
    "LearnedVP": learned(),
}


@pytest.fixture(params=list(LEAVES.values()), ids=list(LEAVES))
def process(request: pytest.FixtureRequest) -> SDE:
    """Each process in turn."""
    return request.param


def times(process: SDE, n: int = 401) -> Tensor:
    """Times over the whole interval, denser near t_min, in float64."""
    t = torch.logspace(math.log10(max(process.t_min, 1e-5)), math.log10(process.t_max), n, dtype=torch.float64)
    return t.clamp(process.t_min, process.t_max)


@dataclasses.dataclass(frozen=True)
class Trigonometric(SDE):
    """A leaf with the two required methods only: alpha = cos(pi t / 2), var = sin^2(pi t / 2)."""

    t_min: float = 1e-3
    t_max: float = 0.99

    def log_alpha(self, t: Tensor) -> Tensor:
        return (0.5 * math.pi * t).cos().log()

    def var(self, t: Tensor) -> Tensor:
        return (0.5 * math.pi * t).sin().square()


PRECISE = {
    **LEAVES,
    "cosine": DiscreteChain.cosine(1000).sde(),
    "quadratic": DiscreteChain.quadratic(1000).sde(),
}


@pytest.mark.parametrize("process", PRECISE.values(), ids=PRECISE)
@pytest.mark.parametrize("function", ["sigma", "g2", "diffusion", "alpha"])
def test_float32_keeps_its_digits(process: SDE, function: str) -> None:
    # 1 - exp(-u) would be wrong by percents near t_min.
    t = torch.logspace(-6, 0, 4001, dtype=torch.float64).clamp(max=process.t_max).float()
    exact = getattr(process, function)(t.double())
    assert exact.dtype == torch.float64
    value = getattr(process, function)(t)
    assert value.dtype == torch.float32
    assert ((value.double() - exact).abs() / exact).max() < 1e-5


def test_f_is_the_slope_of_log_alpha(process: SDE) -> None:
    t = times(process)
    torch.testing.assert_close(process.f(t), SDE.f(process, t), rtol=1e-9, atol=1e-12)


def test_g2_is_the_definition(process: SDE) -> None:
    t = times(process)
    torch.testing.assert_close(process.g2(t), SDE.g2(process, t), rtol=1e-9, atol=1e-12)


def test_log_snr_is_the_definition(process: SDE) -> None:
    t = times(process)
    torch.testing.assert_close(process.log_snr(t), SDE.log_snr(process, t), rtol=1e-11, atol=1e-11)
    ratio = process.alpha(t).square() / process.var(t)
    torch.testing.assert_close(process.log_snr(t).exp(), ratio, rtol=1e-11, atol=0.0)
    assert bool((process.log_snr(t).diff() < 0).all())


def test_time_is_the_bisection(process: SDE) -> None:
    log_snr = process.log_snr(times(process))
    torch.testing.assert_close(process.time(log_snr), SDE.time(process, log_snr), rtol=1e-9, atol=0.0)


def test_time_inverts_log_snr(process: SDE) -> None:
    t = times(process)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-9, atol=0.0)
    scalar = process.time(process.log_snr(torch.tensor(0.3)))
    assert scalar.shape == ()
    assert scalar.dtype == torch.float32
    assert scalar.item() == pytest.approx(0.3, rel=1e-5)


def test_time_of_a_constant_rate() -> None:
    process = VP(beta_min=5.0, beta_max=5.0)
    t = times(process)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-9, atol=0.0)


def test_moments_move_as_drift_and_diffusion_say(process: SDE) -> None:
    # d mean = f mean dt and d var = (2 f var + g^2) dt, the slopes by autograd of `marginal`.
    t = times(process, 101).requires_grad_()
    x0 = torch.linspace(-2.0, 3.0, 101, dtype=torch.float64)[:, None]
    mean, std = process.marginal(x0, t)
    # VE's mean does not depend on t: the zero keeps it in the graph.
    (mean_slope,) = torch.autograd.grad(mean.sum() + 0.0 * t.sum(), t, retain_graph=True)
    (var_slope,) = torch.autograd.grad(std.square().sum(), t)
    t = t.detach()
    torch.testing.assert_close(process.drift(mean.detach(), t)[:, 0], mean_slope, rtol=1e-6, atol=1e-9)
    expected = 2.0 * process.f(t) * process.var(t) + process.diffusion(t).square()
    torch.testing.assert_close(expected, var_slope, rtol=1e-6, atol=1e-12)


def test_variance_solves_its_equation(process: SDE) -> None:
    # Runge-Kutta of order 4 over d var/dt = 2 f var + g^2, on steps that end at the knots of the chain.
    # Cosine and RectifiedFlow stop where their rate, which is infinite at t = 1, needs no smaller steps.
    h, steps = 1.0 / 4000, 4000 if process.t_max >= 1.0 else 3800
    t = torch.arange(8, 2 * steps + 1, dtype=torch.float64) * (0.5 * h)  # t_0, t_0 + h/2, t_0 + h, ...
    f, g2 = process.f(t).tolist(), process.g2(t).tolist()
    var, solution = process.var(t[0]).item(), []
    for i in range(0, len(t) - 1, 2):
        k1 = 2.0 * f[i] * var + g2[i]
        k2 = 2.0 * f[i + 1] * (var + 0.5 * h * k1) + g2[i + 1]
        k3 = 2.0 * f[i + 1] * (var + 0.5 * h * k2) + g2[i + 1]
        k4 = 2.0 * f[i + 2] * (var + h * k3) + g2[i + 2]
        var += h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        solution.append(var)
    torch.testing.assert_close(torch.tensor(solution, dtype=torch.float64), process.var(t[2::2]), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("t", [1e-3, 0.2, 0.7, 1.0])
@pytest.mark.parametrize(("beta_min", "beta_max"), [(0.1, 20.0), (0.5, 9.0)])
def test_published_vp(t: float, beta_min: float, beta_max: float) -> None:
    # Song et al. 2021, equations 32 and 33.
    p, time = VP(beta_min, beta_max), torch.tensor(t, dtype=torch.float64)
    beta = beta_min + t * (beta_max - beta_min)
    x = torch.tensor([[1.5], [-0.5]], dtype=torch.float64)
    mean, std = p.marginal(x, time)
    scale = math.exp(-0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min)
    torch.testing.assert_close(mean, scale * x)
    assert std.item() ** 2 == pytest.approx(1.0 - math.exp(-0.5 * t**2 * (beta_max - beta_min) - t * beta_min))
    torch.testing.assert_close(p.drift(x, time), -0.5 * beta * x)
    assert p.diffusion(time).item() == pytest.approx(math.sqrt(beta))


@pytest.mark.parametrize("t", [1e-3, 0.2, 0.7, 1.0])
@pytest.mark.parametrize(("beta_min", "beta_max"), [(0.1, 20.0), (0.5, 9.0)])
def test_published_sub_vp(t: float, beta_min: float, beta_max: float) -> None:
    # Song et al. 2021, equations 34 and 35: the kernel's standard deviation is VP's variance.
    p, time = SubVP(beta_min, beta_max), torch.tensor(t, dtype=torch.float64)
    beta = beta_min + t * (beta_max - beta_min)
    integral = 0.5 * t**2 * (beta_max - beta_min) + t * beta_min
    x = torch.tensor([[1.5], [-0.5]], dtype=torch.float64)
    mean, std = p.marginal(x, time)
    torch.testing.assert_close(mean, math.exp(-0.5 * integral) * x)
    assert std.item() == pytest.approx(1.0 - math.exp(-integral))
    torch.testing.assert_close(p.drift(x, time), -0.5 * beta * x)
    assert p.diffusion(time).item() == pytest.approx(math.sqrt(beta * (1.0 - math.exp(-2.0 * integral))))


@pytest.mark.parametrize("t", [1e-3, 0.2, 0.7, 1.0])
@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(0.01, 50.0), (0.1, 3.0)])
def test_published_ve(t: float, sigma_min: float, sigma_max: float) -> None:
    # Song et al. 2021, equations 30 and 31.
    p, time = VE(sigma_min, sigma_max), torch.tensor(t, dtype=torch.float64)
    x = torch.tensor([[1.5], [-0.5]], dtype=torch.float64)
    mean, std = p.marginal(x, time)
    torch.testing.assert_close(mean, x)
    assert std.item() == pytest.approx(sigma_min * (sigma_max / sigma_min) ** t)
    torch.testing.assert_close(p.drift(x, time), torch.zeros_like(x))
    g = sigma_min * (sigma_max / sigma_min) ** t * math.sqrt(2.0 * math.log(sigma_max / sigma_min))
    assert p.diffusion(time).item() == pytest.approx(g)


@pytest.mark.parametrize("t", [1e-3, 0.2, 0.7, 0.99])
def test_published_cosine(t: float) -> None:
    # Nichol and Dhariwal 2021, equation 17: alpha-bar is the square of the signal scale.
    p, time = Cosine(), torch.tensor(t, dtype=torch.float64)
    f = [math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2 for s in (t, 0.0)]
    assert p.alpha(time).item() ** 2 == pytest.approx(f[0] / f[1], rel=1e-10)
    assert p.var(time).item() == pytest.approx(1.0 - f[0] / f[1], rel=1e-10)
    chain = DiscreteChain.cosine(1000)
    i = torch.arange(1, 990)
    torch.testing.assert_close(2.0 * p.log_alpha(i.double() / 1000), chain.log_alphas_bar[i - 1], rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("t", [1e-3, 0.2, 0.7, 0.99])
def test_published_karras_and_rectified_flow(t: float) -> None:
    # Karras et al. 2022, table 1: x_t = x0 + t z; Liu et al. 2023: x_t = (1 - t) x0 + t z, a straight line in t.
    x, time = torch.tensor([[1.5], [-0.5]], dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    for p, scale in ((KarrasVE(), 1.0), (RectifiedFlow(), 1.0 - t)):
        mean, std = p.marginal(x, time)
        torch.testing.assert_close(mean, scale * x)
        assert std.item() == pytest.approx(t)
    assert KarrasVE().diffusion(time).item() == pytest.approx(math.sqrt(2.0 * t))
    assert (KarrasVE(0.1, 3.0).t_min, KarrasVE(0.1, 3.0).t_max) == (0.1, 3.0)
    # The velocity of the path through x0 and z is z - x0 at all times, whatever the score of its kernel says at x_t.
    p, z = RectifiedFlow(), torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    x_t = (1.0 - t) * x + t * z
    velocity = p.drift(x_t, time) + 0.5 * p.g2(time) * z / t
    torch.testing.assert_close(velocity, z - x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("process", [Cosine(), KarrasVE(), RectifiedFlow()], ids=["Cosine", "KarrasVE", "Rectified"])
def test_the_flow_takes_the_prior_to_the_data(process: SDE, mixture: Mixture) -> None:
    """First and second moments within five standard errors of their difference from exact draws: 1e-5 in all."""
    n = 4000
    x = sample(mixture.denoiser(process), (n, 2), solver=UniPC(40, 3), seed=1, dtype=torch.float64).x
    exact = mixture.sample(50 * n, generator=torch.Generator().manual_seed(0))
    for moment in (lambda v: v, lambda v: v.square(), lambda v: v.prod(1, keepdim=True)):
        a, b = moment(x), moment(exact)
        assert bool(((a.mean(0) - b.mean(0)).abs() < 5.0 * (a.var(0) / n + b.var(0) / len(b)).sqrt()).all())


def test_prior_divergence_is_that_of_two_gaussians(process: SDE) -> None:
    x0 = torch.linspace(-2.0, 3.0, 12, dtype=torch.float64).reshape(4, 3)
    for t in (None, 0.7):
        end = torch.tensor(process.t_max if t is None else t, dtype=torch.float64)
        kernel = torch.distributions.Normal(*process.marginal(x0, end))
        prior = torch.distributions.Normal(torch.zeros_like(x0), process.prior_var(end).sqrt())
        expected = torch.distributions.kl_divergence(kernel, prior).sum(1)
        torch.testing.assert_close(process.prior_divergence(x0, t), expected, rtol=1e-9, atol=1e-12)


def test_proposed_ends() -> None:
    x = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0))
    pairs = torch.pdist(x.double().flatten(1))
    for chunk in (7, 1024):
        assert propose_sigma_max(x, chunk=chunk) == pytest.approx(pairs.max().item(), rel=1e-9)
    for start in (VP(), SubVP(beta_min=0.2, t_max=0.9)):
        beta_max = propose_beta_max(x, 1e-3, start)
        reached, less = (dataclasses.replace(start, beta_max=b) for b in (beta_max, 0.99 * beta_max))
        assert float(reached.prior_divergence(x).mean()) <= 1e-3 < float(less.prior_divergence(x).mean())
    # The rate in closed form for one point far away: KL = alpha^2 |x|^2 / 2 up to terms in alpha^4, alpha^2 = e^-B.
    b = propose_beta_max(torch.full((1, 1), 1e4), 1e-2, VP(beta_min=0.1))
    assert math.exp(-0.5 * (b + 0.1)) * 0.5e8 == pytest.approx(1e-2, rel=1e-3)


def test_sub_vp_has_less_noise_than_vp() -> None:
    t = times(VP())
    assert bool((SubVP().var(t) < VP().var(t)).all())
    torch.testing.assert_close(SubVP().log_alpha(t), VP().log_alpha(t))


def test_two_methods_define_a_process() -> None:
    process = Trigonometric()
    t = torch.linspace(process.t_min, process.t_max, 51, dtype=torch.float64)
    tan = (0.5 * math.pi * t).tan()
    torch.testing.assert_close(process.f(t), -0.5 * math.pi * tan)
    torch.testing.assert_close(process.g2(t), math.pi * tan)
    torch.testing.assert_close(process.log_snr(t), -2.0 * tan.log())
    torch.testing.assert_close(process.time(-2.0 * tan.log()), t, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(process.prior_var(t), process.var(t))


def test_transitions_compose(process: SDE) -> None:
    # s -> u and then u -> t is s -> t; and s -> t takes the marginal at s to that at t.
    edges = torch.linspace(process.t_min, process.t_max, 10, dtype=torch.float64)
    s, u, t = edges[:-2], edges[1:-1], edges[2:]
    log_su, var_su = process.transition(s, u)
    log_ut, var_ut = process.transition(u, t)
    log_st, var_st = process.transition(s, t)
    torch.testing.assert_close(log_su + log_ut, log_st, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((2.0 * log_ut).exp() * var_su + var_ut, var_st, rtol=1e-10, atol=0.0)
    expected = process.var(t) - (process.alpha(t) / process.alpha(s)).square() * process.var(s)
    torch.testing.assert_close(var_st, expected, rtol=1e-10, atol=0.0)


def test_transition_over_no_time_is_certain(process: SDE) -> None:
    t = times(process)
    log_alpha, var = process.transition(t, t)
    assert not bool(log_alpha.any())
    assert not bool(var.any())


def test_transition_over_little_time_is_the_sde(process: SDE) -> None:
    t = torch.linspace(0.05, 0.85, 40, dtype=torch.float64) + 3e-4
    h = 1e-7
    log_alpha, var = process.transition(t - 0.5 * h, t + 0.5 * h)
    torch.testing.assert_close(log_alpha / h, process.f(t), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(var / h, process.g2(t), rtol=1e-6, atol=0.0)


def prior_std(process: SDE, t: float | None) -> float:
    """What the papers say."""
    at = process.t_max if t is None else t
    if isinstance(process, VE):
        return 0.01 * 5000.0**at
    return at if isinstance(process, KarrasVE | RectifiedFlow) else 1.0


@pytest.mark.parametrize("t", [None, 0.5])
def test_prior_log_prob(process: SDE, t: float | None, generator: torch.Generator) -> None:
    x = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64) * 4.0
    std = prior_std(process, t)
    expected = torch.distributions.Normal(0.0, std).log_prob(x).sum((1, 2))
    torch.testing.assert_close(process.prior_log_prob(x, t), expected)


@pytest.mark.parametrize("t", [None, 0.5])
def test_prior_sample(process: SDE, t: float | None, generator: torch.Generator) -> None:
    # Five standard errors each way: 6e-7 for each of the two statements.
    n = 200_000
    x = process.prior_sample((n // 2, 2), generator=generator, t=t, dtype=torch.float64)
    assert x.shape == (n // 2, 2)
    std = prior_std(process, t)
    assert abs(x.mean().item()) < 5.0 * std / math.sqrt(n)
    assert abs(x.square().mean().item() / std**2 - 1.0) < 5.0 * math.sqrt(2.0 / n)


def test_prior_sample_is_the_generators(process: SDE) -> None:
    draws = [process.prior_sample((4, 2), generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert draws[0].dtype == torch.float32
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_of_time_answer_in_its_shape_and_dtype(
    process: SDE, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    t = torch.full(shape, 0.4, dtype=dtype)
    values = [getattr(process, name)(t) for name in ("log_alpha", "alpha", "var", "sigma", "f", "g2", "log_snr")]
    values += [process.diffusion(t), process.prior_var(t), process.time(process.log_snr(t)), *process.transition(t, t)]
    for value in values:
        assert value.shape == shape
        assert value.dtype == dtype


def test_time_lies_against_data(process: SDE) -> None:
    x = torch.arange(12.0).reshape(3, 2, 2)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    drift, (mean, std) = process.drift(x, t), process.marginal(x, t)
    assert drift.dtype == mean.dtype == torch.float32
    assert std.shape == (3,)
    for i in range(3):
        assert torch.equal(drift[i : i + 1], process.drift(x[i : i + 1], t[i]))
        assert torch.equal(mean[i : i + 1], process.marginal(x[i : i + 1], t[i])[0])
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        process.drift(x, t[:2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(beta_min=0.0), "beta_min=0.0"),
        (lambda: VP(beta_min=3.0, beta_max=2.0), "beta_max=2.0"),
        (lambda: SubVP(beta_min=-1.0), r"SubVP.*beta_min=-1\.0"),
        (lambda: SubVP(beta_min=3.0, beta_max=2.0), r"SubVP.*beta_min=3\.0.*beta_max=2\.0"),
        (lambda: VE(sigma_min=0.0), "sigma_min=0.0"),
        (lambda: VE(sigma_min=2.0, sigma_max=1.0), "sigma_max=1.0"),
        (lambda: VP(t_min=-0.1), "t_min=-0.1"),
        (lambda: SubVP(t_min=0.5, t_max=0.5), r"SubVP.*t_min=0\.5.*t_max=0\.5"),
        (lambda: VE(t_min=0.7, t_max=0.2), "t_max=0.2"),
        (lambda: Cosine(t_max=1.0), r"Cosine.*t_max=1\.0"),
        (lambda: Cosine(offset=-0.1), r"offset=-0\.1"),
        (lambda: Cosine(t_min=0.5, t_max=0.4), r"t_max=0\.4"),
        (lambda: KarrasVE(sigma_min=0.0), r"KarrasVE.*sigma_min=0\.0"),
        (lambda: KarrasVE(sigma_max=0.001), r"sigma_max=0\.001"),
        (lambda: RectifiedFlow(t_max=1.0), r"RectifiedFlow.*t_max=1\.0"),
        (lambda: RectifiedFlow(t_min=-1.0), r"t_min=-1\.0"),
        (lambda: propose_sigma_max(torch.zeros(1, 2)), r"\(1, 2\)"),
        (lambda: propose_sigma_max(torch.ones(3, 2)), "3 equal"),
        (lambda: propose_sigma_max(torch.tensor([[0.0], [math.nan]])), "item 1"),
        (lambda: propose_beta_max(torch.zeros(3), 0.1), r"\(3,\)"),
        (lambda: propose_beta_max(torch.ones(3, 2), 0.0), r"nats=0\.0"),
        (lambda: propose_beta_max(torch.ones(3, 2), 1e-3, VP(t_max=0.01)), r"nats=0\.001"),
    ],
)
def test_refusals(make: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("process", [VP(), SubVP(), VE()], ids=["VP", "SubVP", "VE"])
def test_a_process_is_a_value(process: SDE) -> None:
    assert (process.t_min, process.t_max) == (1e-5, 1.0)
    assert process == type(process)()
    assert dataclasses.replace(process, t_min=1e-3).t_min == 1e-3  # type: ignore[type-var]
    with pytest.raises(dataclasses.FrozenInstanceError):
        process.t_min = 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (4,)])
def test_defaults_keep_the_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    # Forward-mode derivatives of 0-dimensional float32 tensors would come out in float64.
    process, t = Trigonometric(), torch.full(shape, 0.4, dtype=dtype)
    for value in (process.f(t), process.g2(t), process.log_snr(t), process.time(t), process.prior_var(t)):
        assert value.dtype == dtype
        assert value.shape == shape


@pytest.mark.parametrize("process", [*PRECISE.values(), Trigonometric()], ids=[*PRECISE, "Trigonometric"])
def test_time_has_the_derivative_of_the_inverse(process: SDE) -> None:
    # d lambda / dt = -g^2 / var.
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64) + 3e-4
    log_snr = process.log_snr(t).requires_grad_()
    (slope,) = torch.autograd.grad(process.time(log_snr).sum(), log_snr)
    torch.testing.assert_close(slope, -process.var(t) / process.g2(t), rtol=1e-7, atol=0.0)


@dataclasses.dataclass(frozen=True)
class Wrong(SDE):
    """A leaf with arbitrary functions of time."""

    mean: Callable[[Tensor], Tensor]
    spread: Callable[[Tensor], Tensor]
    t_min: float = 1e-3
    t_max: float = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        return self.mean(t)

    def var(self, t: Tensor) -> Tensor:
        return self.spread(t)


@pytest.mark.parametrize(
    ("mean", "spread", "message"),
    [
        (lambda t: 0.0 * t, lambda t: t - 0.5, r"log_snr .*finite.* t="),
        (lambda t: 0.0 * t, lambda t: (t - 0.7).square() + 0.1, r"log_snr .*decrease.* t="),
        # At the end the signal grows faster than the noise: lambda rises.
        (lambda t: 3.0 * t, lambda t: 0.01 + t.square(), r"log_snr .*decrease.* t="),
    ],
)
def test_a_schedule_that_defines_no_diffusion_is_refused(
    mean: Callable[[Tensor], Tensor], spread: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Wrong(mean, spread).check_schedule()


def test_a_closed_form_with_negative_diffusion_is_refused() -> None:
    class Negative(Trigonometric):
        def g2(self, t: Tensor) -> Tensor:
            return SDE.g2(self, t) - 0.5

    with pytest.raises(ValueError, match=r"g\^2.* t="):
        Negative().check_schedule()


@pytest.mark.parametrize("process", [*PRECISE.values(), Trigonometric()], ids=[*PRECISE, "Trigonometric"])
def test_a_diffusion_is_not_refused(process: SDE) -> None:
    process.check_schedule()
