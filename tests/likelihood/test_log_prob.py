"""`log_prob` against the log-densities of exact distributions, with its own parts, errors and refusals."""

from __future__ import annotations

import math
import resource
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde.data.scaling import nats_to_bits
from sde.denoisers import Denoiser, Prediction, Wrapper
from sde.exact import Gaussian, Mixture
from sde.likelihood import log_prob
from sde.likelihood.flow import tolerance
from sde.processes import SDE, VE, VP, SubVP
from sde.sampling import encode
from sde.solvers import DEIS, Euler, EulerMaruyama, Heun, RungeKutta, ScipyODE
from sde.trace import ExactTrace, Hutchinson, Orthogonal, XTrace

FINE = RungeKutta(rtol=1e-7, atol=1e-7)


def data(target: Mixture | Gaussian, process: SDE, n: int) -> Tensor:
    """Points of the marginal at `t_min`, where a model's density stands."""
    return target.at(process, process.t_min).sample(n, generator=torch.Generator().manual_seed(6))


class Network(Denoiser):
    """A small network that counts forwards and products, with a condition, a parameter and a mode."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.process = VP()
        self.layer = nn.Linear(2, 2, dtype=dtype)
        self.dropout = nn.Dropout(0.5)
        self.forwards = self.products = 0
        self.modes: set[bool] = set()
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.6, -0.2], [0.3, 0.4]]))
            self.layer.bias.copy_(torch.tensor([0.1, -0.3]))

    def forward(self, x_t: Tensor, t: Tensor, shift: Tensor | float = 0.0, **condition: Tensor) -> Tensor:
        self.forwards += 1
        self.modes.add(self.training)
        column = shift[:, None] if isinstance(shift, Tensor) and shift.ndim else shift
        value = torch.tanh(self.dropout(self.layer(x_t.to(self.layer.weight.dtype))) + column).to(x_t.dtype)
        if value.requires_grad:
            value.register_hook(self._count)
        return value

    def _count(self, grad: Tensor) -> None:
        self.products += 1


def points(n: int = 4) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# ---- the truth


def test_exact_trace_and_prior_give_the_exact_density(process: SDE, mixture: Mixture) -> None:
    """At the default tolerance, 5e-5 bits/dim a step: to 5e-4 bits/dim on average and 2e-3 for the worst sample."""
    x = data(mixture, process, 32)
    r = log_prob(mixture.denoiser(process), x, trace=ExactTrace(), prior=mixture.at(process, process.t_max))
    bits = nats_to_bits(r.nats - mixture.log_prob(x, process, process.t_min), 2)
    assert abs(float(bits.mean())) < 5e-4
    assert float(bits.abs().max()) < 2e-3
    assert r.standard_error.tolist() == [0.0] * 32


@pytest.mark.parametrize("solver", [FINE, Heun(400), ScipyODE(rtol=1e-7, atol=1e-7)], ids=["RK", "Heun", "SciPy"])
def test_every_ode_solver_agrees(mixture: Mixture, solver: Any) -> None:
    process = VP()
    x = data(mixture, process, 4)
    r = log_prob(
        mixture.denoiser(process), x, trace=ExactTrace(), prior=mixture.at(process, process.t_max), solver=solver
    )
    assert float((r.nats - mixture.log_prob(x, process, process.t_min)).abs().max()) < 2e-3


def test_the_plain_prior_differs_by_its_own_mismatch(process: SDE, mixture: Mixture) -> None:
    """Between the two answers stands the difference of the two priors at the same latent, and nothing else."""
    x, end = data(mixture, process, 8), mixture.at(process, process.t_max)
    d = mixture.denoiser(process)
    solver = RungeKutta(rtol=1e-3, atol=1e-3)
    plain, exact = (log_prob(d, x, trace=ExactTrace(), solver=solver, prior=prior) for prior in (None, end))
    assert torch.equal(plain.latent, exact.latent)
    torch.testing.assert_close(
        plain.nats - exact.nats, process.prior_log_prob(plain.latent) - end.log_prob(plain.latent), rtol=0.0, atol=1e-12
    )
    assert float((plain.nats - exact.nats).abs().max()) < 0.02


@pytest.mark.parametrize("dims", [1, 2, 16])
def test_gaussians_of_any_dimension(dims: int, generator: torch.Generator) -> None:
    process = VP()
    root = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims**0.5
    cov = root @ root.T + 0.05 * torch.eye(dims, dtype=torch.float64)
    target = Gaussian(torch.randn(dims, generator=generator, dtype=torch.float64), cov)
    x = data(target, process, 4)
    r = log_prob(target.denoiser(process), x, trace=ExactTrace(), prior=target.at(process, process.t_max))
    assert float((r.nats - target.log_prob(x, process, process.t_min)).abs().max()) < 1e-3 * dims


def target(kind: str, dims: int) -> Mixture | Gaussian:
    """Well away from a normal, with standard deviations from 0.2 to 1.5."""
    generator = torch.Generator().manual_seed(dims)
    k = 1 if kind == "gaussian" else 3
    means = torch.randn(k, dims, generator=generator, dtype=torch.float64)
    roots = torch.randn(k, dims, dims, generator=generator, dtype=torch.float64) / dims**0.5
    covs = 0.5 * roots @ roots.mT + 0.05 * torch.eye(dims, dtype=torch.float64)
    return Gaussian(means[0], covs[0]) if k == 1 else Mixture(torch.arange(1.0, 4.0, dtype=torch.float64), means, covs)


@pytest.mark.parametrize("continuous", [VP(), SubVP(), VE()], ids=["VP", "SubVP", "VE"])
@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("dims", [1, 8, pytest.param(64, marks=pytest.mark.slow)])
def test_to_1e_5_nats_per_dimension(continuous: SDE, kind: str, dims: int) -> None:
    t = target(kind, dims)
    x, end = data(t, continuous, 3), t.at(continuous, continuous.t_max)
    r = log_prob(t.denoiser(continuous), x, trace=ExactTrace(), prior=end, solver=RungeKutta(rtol=1e-8, atol=1e-8))
    assert float((r.nats - t.log_prob(x, continuous, continuous.t_min)).abs().max()) < 1e-5 * dims


@pytest.mark.parametrize("trace", [Orthogonal(4), XTrace(4)], ids=repr)
def test_the_integrand_is_smooth_for_every_trace(trace: Any) -> None:
    """At a tight tolerance it takes about as many calls as the exact trace does, and it has a limit."""
    t = target("mixture", 8)
    x, d = data(t, VP(), 3), t.denoiser(VP())
    exact, fine, finer = (
        log_prob(d, x, trace=some, solver=RungeKutta(rtol=tolerance, atol=tolerance))
        for some, tolerance in ((ExactTrace(), 1e-6), (trace, 1e-6), (trace, 1e-8))
    )
    assert float(fine.nfe.double().mean()) < 1.3 * float(exact.nfe.double().mean())
    torch.testing.assert_close(fine.nats, finer.nats, rtol=0.0, atol=1e-4)
    assert bool((fine.standard_error > 1e-2).any())


@pytest.mark.parametrize("gaussian_probes", [False, True], ids=["signs", "normals"])
def test_4096_probes(mixture: Mixture, gaussian_probes: bool) -> None:
    """Within 4 standard errors of the exact trace over the same steps, and the standard error falls as n^(-1/2).

    Of 4 samples one is outside by chance with probability 2.5e-4; over a factor of 64 in n, a standard error's own
    error at n = 64 is 9 % for normal estimates, and chi-square ones stay within 40 %.
    """
    x, d, solver = data(mixture, VP(), 4), mixture.denoiser(VP()), DEIS(15)
    r, one = (log_prob(d, x, trace=Hutchinson(n, gaussian_probes, chunk=512), solver=solver) for n in (4096, 64))
    exact = log_prob(d, x, trace=ExactTrace(), solver=solver)
    assert bool(((r.nats - exact.nats).abs() < 4.0 * r.standard_error).all())
    ratio = one.standard_error / r.standard_error
    assert bool(((ratio > 8.0 * 0.6) & (ratio < 8.0 * 1.4)).all())


def test_any_event_shape(mixture: Mixture) -> None:
    x = data(mixture, VP(), 4)
    d = mixture.denoiser(VP())
    flat, image = (log_prob(d, y, trace=ExactTrace()) for y in (x, x.reshape(4, 1, 2, 1)))
    torch.testing.assert_close(image.nats, flat.nats, rtol=1e-9, atol=1e-9)
    assert image.latent.shape == (4, 1, 2, 1)


def test_the_density_integrates_to_one(mixture: Mixture) -> None:
    """The trapezoidal rule on a grid that holds all but 1e-6 of the mass, finer than the narrowest component."""
    axis = torch.arange(-4.0, 4.0, 0.14, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    r = log_prob(mixture.denoiser(VP()), grid, trace=ExactTrace(), solver=RungeKutta(rtol=1e-4, atol=1e-4))
    assert abs(float(r.nats.exp().sum()) * 0.14**2 - 1.0) < 1e-3


@pytest.mark.parametrize(("process", "gaussian_probes"), [(VP(), False), (VE(), True)], ids=["VP-signs", "VE-normals"])
def test_hutchinson_is_unbiased_with_its_standard_error(process: SDE, mixture: Mixture, gaussian_probes: bool) -> None:
    """Within 3 standard errors: on average over samples, and for 95 of 100 of them where the normal law says 99.7."""
    n, probes = 100, 24
    x, end, d = data(mixture, process, n), mixture.at(process, process.t_max), mixture.denoiser(process)
    r = log_prob(d, x, trace=Hutchinson(probes, gaussian_probes), prior=end, solver=RungeKutta(rtol=1e-4, atol=1e-4))
    error = r.nats - mixture.log_prob(x, process, process.t_min)
    # Signs are nearly exact where the Jacobian is nearly diagonal; there the solver's tolerance is left.
    assert float((error.abs() <= 3.0 * r.standard_error + 1e-3).double().mean()) >= 0.95
    size = float(r.standard_error.square().mean().sqrt())
    assert abs(float(error.mean())) < 3.0 * size / math.sqrt(n)
    # The errors are as large as the standard errors say, no smaller and no larger.
    assert 0.7 < float(error.std()) / size < 1.4


@pytest.mark.parametrize("process", [VP(), VE()], ids=["VP", "VE"])
def test_the_gradient_is_the_score(process: SDE, mixture: Mixture) -> None:
    """d log p(x) / dx at `t_min`, through the whole integration, is the exact score there."""
    x = data(mixture, process, 3).requires_grad_()
    d, end = mixture.denoiser(process), mixture.at(process, process.t_max)
    r = log_prob(d, x, trace=ExactTrace(), prior=end, solver=RungeKutta(rtol=1e-7, atol=1e-7), differentiable=True)
    (gradient,) = torch.autograd.grad(r.nats.sum(), x)
    score = d.score(x.detach(), torch.tensor(process.t_min, dtype=torch.float64))
    torch.testing.assert_close(gradient, score, rtol=1e-3, atol=1e-3)


# ---- the parts of the answer


def test_parts(mixture: Mixture) -> None:
    p, x = VP(), data(mixture, VP(), 5)
    d = mixture.denoiser(p)
    r = log_prob(d, x, trace=Hutchinson(3), seed=2)
    assert torch.equal(r.nats, r.prior + r.divergence)
    assert torch.equal(r.prior, p.prior_log_prob(r.latent))
    assert r.latent.shape == x.shape
    assert all(v.shape == (5,) for v in (r.nats, r.prior, r.divergence, r.standard_error, r.nfe))
    assert r.nfe.dtype == torch.int64
    z = encode(d, x, solver=FINE)
    torch.testing.assert_close(r.latent, z, rtol=1e-3, atol=1e-3)


def test_the_standard_error_is_that_of_the_mean_over_probes(mixture: Mixture) -> None:
    """Each probe on its own, at the same fixed steps, gives one estimate; their mean and spread are the answer's."""
    x, d, solver = data(mixture, VP(), 3), mixture.denoiser(VP()), Heun(20)
    together = log_prob(d, x, trace=Hutchinson(8), solver=solver)
    three = log_prob(d, x, trace=Hutchinson(3), solver=solver)
    one = log_prob(d, x, trace=Hutchinson(1), solver=solver)
    assert bool(one.standard_error.isnan().all())
    assert bool((together.standard_error > 0.0).all())
    two = log_prob(d, x, trace=Hutchinson(2), solver=solver)
    second = 2.0 * two.divergence - one.divergence
    third = 3.0 * three.divergence - 2.0 * two.divergence
    estimates = torch.stack([one.divergence, second, third])
    # Where the three estimates are equal, either side is 0 up to the rounding of numbers of order 1 in float64.
    torch.testing.assert_close(three.standard_error, estimates.std(0) / math.sqrt(3.0), rtol=1e-9, atol=1e-12)
    # The standard deviation of two numbers is |a - b| / sqrt(2).
    torch.testing.assert_close(two.standard_error, (one.divergence - second).abs() / 2.0, rtol=1e-9, atol=1e-12)


def test_the_defaults_are_one_sign_probe_and_runge_kutta(mixture: Mixture) -> None:
    d, solver = mixture.denoiser(VP()), RungeKutta(rtol=1e-4, atol=1e-4)
    for dtype in (torch.float64, torch.float32):
        x, nats = data(mixture, VP(), 3).to(dtype), 5e-5 * 2 * math.log(2.0)
        r = log_prob(d, x)
        same = log_prob(d, x, solver=solver, trace=Hutchinson(1), seed=0, index=torch.arange(3), atol=nats)
        assert torch.equal(r.nats, same.nats)
        assert bool(r.standard_error.isnan().all())


def test_at_another_time(process: SDE, mixture: Mixture) -> None:
    t, d = 0.3 * process.t_max, mixture.denoiser(process)
    x = mixture.at(process, t).sample(4, generator=torch.Generator().manual_seed(6))
    r = log_prob(d, x, trace=ExactTrace(), prior=mixture.at(process, process.t_max), t=t)
    torch.testing.assert_close(r.nats, mixture.log_prob(x, process, t), rtol=0.0, atol=2e-3)


@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(2)], ids=repr)
def test_failed_samples_are_marked(mixture: Mixture, trace: Any) -> None:
    """NaN in everything but what was spent; the others are what they are without them."""

    class Broken(Wrapper):
        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            value = self.inner.predict(what, x_t, t, **condition)
            return value + torch.where(x_t[:, :1] > 50.0, math.nan, 0.0)

    d, solver = Broken(mixture.denoiser(VP())), RungeKutta(rtol=1e-3, atol=1e-3, on_failure="mark")
    x = data(mixture, VP(), 4)
    broken = x.clone()
    broken[2] = 100.0
    r, sound = (log_prob(d, y, trace=trace, solver=solver) for y in (broken, x))
    good = torch.tensor([0, 1, 3])
    for name in ("nats", "prior", "divergence", "standard_error", "latent"):
        value = getattr(r, name)
        assert bool(value[2].isnan().all())
        torch.testing.assert_close(value[good], getattr(sound, name)[good], rtol=1e-9, atol=1e-9)
    assert int(r.nfe[2]) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_runs_in_the_dtype_of_the_data(mixture: Mixture, dtype: torch.dtype) -> None:
    x = data(mixture, VP(), 4).to(dtype)
    r = log_prob(mixture.denoiser(VP()), x, trace=ExactTrace(), prior=mixture.at(VP(), 1.0))
    assert {v.dtype for v in (r.nats, r.prior, r.divergence, r.standard_error, r.latent)} == {dtype}
    assert float((r.nats.double() - mixture.log_prob(x.double(), VP(), VP().t_min)).abs().max()) < 2e-3


# ---- probes and batches


def test_probes_belong_to_the_index(mixture: Mixture) -> None:
    """A permuted batch with its index gives the permuted answer; another index or seed gives other probes."""
    x, d = data(mixture, VP(), 6), mixture.denoiser(VP())
    index = torch.tensor([40, 3, 17, 5, 0, 2**40])
    order = torch.tensor([2, 5, 0, 1, 4, 3])
    r = log_prob(d, x, index=index)
    permuted = log_prob(d, x[order], index=index[order])
    torch.testing.assert_close(permuted.nats, r.nats[order], rtol=1e-9, atol=1e-9)
    assert torch.equal(permuted.nfe, r.nfe[order])
    part = log_prob(d, x[3:4], index=index[3:4])
    torch.testing.assert_close(part.nats, r.nats[3:4], rtol=1e-9, atol=1e-9)
    assert not bool(torch.isclose(log_prob(d, x).nats, r.nats)[:3].all())
    assert not bool(torch.isclose(log_prob(d, x, index=index, seed=1).nats, r.nats).all())


def test_a_sample_does_not_depend_on_its_batch(process: SDE, mixture: Mixture) -> None:
    """Alone, among 7 and among 64, to 1e-8; a solver of the whole batch would move by the size of its tolerance."""
    x, d, solver = data(mixture, process, 64), mixture.denoiser(process), RungeKutta(rtol=1e-3, atol=1e-3)
    whole = log_prob(d, x, trace=ExactTrace(), solver=solver)
    for part in (slice(5, 6), slice(3, 10)):
        r = log_prob(d, x[part], trace=ExactTrace(), solver=solver)
        torch.testing.assert_close(r.nats, whole.nats[part], rtol=0.0, atol=1e-8)
        assert torch.equal(r.nfe, whole.nfe[part])


def test_torch_s_generator_is_left_alone(mixture: Mixture) -> None:
    state = torch.random.get_rng_state()
    log_prob(mixture.denoiser(VP()), data(mixture, VP(), 2), trace=Hutchinson(2, gaussian=True))
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- what is spent


@pytest.mark.parametrize(
    ("trace", "differentiable", "products"),
    [(Hutchinson(), False, 1), (Hutchinson(), True, 1), (Hutchinson(3, chunk=2), False, 2), (XTrace(2), False, 2)],
)
def test_a_call_is_one_forward_and_the_products_of_its_trace(trace: Any, differentiable: bool, products: int) -> None:
    d = Network()
    r = log_prob(d, points(), trace=trace, solver=Heun(5), differentiable=differentiable)
    assert r.nfe.tolist() == [10] * 4
    assert (d.forwards, d.products) == (10, 10 * products)


def test_an_adaptive_solver_counts_each_sample(mixture: Mixture) -> None:
    r = log_prob(mixture.denoiser(VE()), data(mixture, VE(), 16))
    assert len(set(r.nfe.tolist())) > 1
    assert int(r.nfe.min()) > 20


def test_a_tighter_tolerance_for_the_log_density_works(mixture: Mixture) -> None:
    """Held to less than the state, the log-density is more exact; held to more, it costs less."""
    p, x = VP(), data(mixture, VP(), 16)
    d, end, truth = mixture.denoiser(p), mixture.at(p, p.t_max), mixture.log_prob(x, p, p.t_min)
    solver = RungeKutta(rtol=1e-2, atol=1e-2)
    loose, own, tight = (
        log_prob(d, x, trace=ExactTrace(), prior=end, solver=solver, atol=a) for a in (10.0, None, 1e-5)
    )
    errors = [float((r.nats - truth).abs().max()) for r in (loose, own, tight)]
    calls = [int(r.nfe.sum()) for r in (loose, own, tight)]
    assert errors[2] < errors[1] < errors[0]
    assert calls[0] <= calls[1] < calls[2]


def test_the_default_tolerance_is_in_bits_per_dim() -> None:
    """5e-5 bits/dim of a sample, or what a tighter solver holds the state to; a number of nats counts as it is."""
    unit = 100 * math.log(2.0)
    assert tolerance(RungeKutta(rtol=1e-4, atol=1e-4), 100) == pytest.approx(5e-5 * unit)
    assert tolerance(RungeKutta(rtol=1e-2, atol=1e-2), 100) == pytest.approx(5e-5 * unit)
    assert tolerance(ScipyODE(rtol=1e-7, atol=1e-7), 100) == pytest.approx(1e-7 * unit)
    assert tolerance(RungeKutta(), 100, 0.5) == 0.5
    assert tolerance(Heun(20), 100) is None


def test_progress_rises_to_the_end(mixture: Mixture) -> None:
    for solver in (Heun(5), RungeKutta(rtol=1e-2, atol=1e-2)):
        done: list[float] = []
        log_prob(mixture.denoiser(VP()), data(mixture, VP(), 3), solver=solver, progress=done.append)
        assert done == sorted(done)
        assert (done[0], done[-1]) == pytest.approx((0.0, 1.0))
        assert any(0.1 < fraction < 0.9 for fraction in done)


def test_memory_does_not_grow_with_the_steps() -> None:
    """Between call 20 and call 100 less than ten states' worth: a graph or a trajectory would keep eighty."""
    kilobytes: list[int] = []

    class Large(Denoiser):
        process = VP()

        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            with open("/proc/self/statm") as file:
                kilobytes.append(int(file.read().split()[1]) * resource.getpagesize() // 1024)
            return torch.tanh(x_t)

    x = torch.zeros(4, 2**17)  # 2 MiB
    log_prob(Large(), x, solver=DEIS(100))
    assert len(kilobytes) == 100
    assert max(kilobytes[20:]) - max(kilobytes[:20]) < 20 * 1024


# ---- gradients and modes


@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(2), Orthogonal(1), XTrace(2)], ids=repr)
@pytest.mark.parametrize("solver", [Heun(3), RungeKutta(rtol=1e-7, atol=1e-7)], ids=["Heun", "RK"])
def test_gradients_are_finite_differences(trace: Any, solver: Any) -> None:
    """With respect to data, condition and parameters, for the adaptive solver along random directions. Its finite
    differences also see its steps change, which is within its tolerance; the process keeps clear of the end, where this
    network's flow is steep."""
    d = Network()
    d.process = VP(t_min=0.1)
    x, shift = points(2).requires_grad_(), torch.tensor([0.1, -0.2], dtype=torch.float64, requires_grad=True)

    def run(y: Tensor, s: Tensor, *parameters: Tensor) -> Tensor:
        return log_prob(d, y, trace=trace, solver=solver, condition={"shift": s}, differentiable=True).nats

    # The parameters are those of the network: what the check does to them, it does to the network.
    inputs = (x, shift, d.layer.weight, d.layer.bias)
    eps, fast = 1e-4 if isinstance(trace, XTrace) else 1e-6, isinstance(solver, RungeKutta)
    assert torch.autograd.gradcheck(run, inputs, eps=eps, atol=1e-4, rtol=1e-4, fast_mode=fast)


def test_gradients_where_the_flow_stands_still() -> None:
    """A standard normal under VP does not move: the gradient is its score, though every error estimate is 0."""
    normal = Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    x = points().requires_grad_()
    r = log_prob(normal.denoiser(VP()), x, trace=ExactTrace(), differentiable=True)
    (gradient,) = torch.autograd.grad(r.nats.sum(), x)
    torch.testing.assert_close(gradient, -x.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("differentiable", [False, True])
def test_a_graph_only_on_request(outside: bool, differentiable: bool) -> None:
    d = Network()
    with torch.set_grad_enabled(outside):
        r = log_prob(d, points(), solver=Euler(2), differentiable=differentiable)
        assert torch.is_grad_enabled() == outside
    assert r.nats.requires_grad == differentiable
    assert not r.nats.is_inference()
    assert not r.standard_error.requires_grad


def test_modes_are_restored() -> None:
    d = Network()
    d.train()
    log_prob(d, points(), solver=Euler(2))
    assert d.modes == {False}
    assert d.training
    assert d.dropout.training


def test_a_condition_reaches_the_network_row_by_row() -> None:
    d, x = Network(), points(3)
    shift = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64)
    solver = RungeKutta(rtol=1e-3, atol=1e-3)
    together = log_prob(d, x, trace=ExactTrace(), solver=solver, condition={"shift": shift})
    for i in range(3):
        alone = log_prob(d, x[i : i + 1], trace=ExactTrace(), solver=solver, condition={"shift": shift[i]})
        torch.testing.assert_close(together.nats[i : i + 1], alone.nats, rtol=1e-8, atol=1e-8)
    assert len(set(together.nats.tolist())) == 3


# ---- refusals, before any call


NAN = torch.tensor([[0.0, 1.0], [2.0, math.nan], [math.inf, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("x", "given", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), {}, r"torch\.int64.*Model\.log_prob"),
        (torch.zeros(3, 2, dtype=torch.uint8), {}, r"got torch\.uint8"),
        (NAN, {}, "not finite at index 1"),
        (NAN[[0, 2]], {}, "not finite at index 1"),
        (torch.zeros(3), {}, r"shape \(B, \*\).*got \(3,\)"),
        (torch.zeros(0, 2), {}, r"B >= 1.*got \(0, 2\)"),
        (torch.zeros(3, 2), {"index": torch.arange(4)}, r"index int64 with shape \(3,\), got torch\.int64 \(4,\)"),
        (torch.zeros(3, 2), {"index": torch.zeros(3)}, r"index int64 with shape \(3,\), got torch\.float32 \(3,\)"),
        (torch.zeros(3, 2), {"solver": EulerMaruyama(3)}, "EulerMaruyama"),
        (torch.zeros(3, 2), {"atol": 0.0}, "got atol=0"),
        (torch.zeros(3, 2), {"atol": 0.1, "solver": Heun(3)}, r"Heun.*atol=0\.1"),
        (torch.zeros(3, 2), {"t": 0.0}, r"\[1e-05, 1\.0\].*start=0\.0"),
        (torch.zeros(3, 2), {"trace": XTrace(3)}, "probes=3"),
        (torch.zeros(3, 2), {"condition": {"shift": torch.zeros(2)}}, "'shift'.*size 3"),
    ],
)
def test_refusals(x: Tensor, given: dict[str, Any], message: str) -> None:
    d = Network()
    with pytest.raises(ValueError, match=message):
        log_prob(d, x, **given)
    assert d.forwards == 0


def test_a_denoiser_without_gradients_is_refused() -> None:
    class Detached(Network):
        def forward(self, x_t: Tensor, t: Tensor, shift: Tensor | float = 0.0, **condition: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x_t, t, shift, **condition)

        def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return self(x_t, t)

    with pytest.raises(ValueError, match="differentiable in x"):
        log_prob(Detached(), points())


class _Counted(torch.autograd.Function):
    """The identity, which counts how often a gradient comes back through it."""

    backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        _Counted.backwards += 1
        return gradient


@pytest.mark.parametrize(
    ("trace", "products"),
    [(ExactTrace(chunk=1), 2), (Hutchinson(3, chunk=1), 3), (Orthogonal(1, chunk=1), 1), (XTrace(2, chunk=1), 4)],
    ids=repr,
)
def test_the_products_that_are_counted_are_those_that_happened(trace: Any, products: int) -> None:
    """Ten predictions of two network calls each, and every product goes back through both."""

    class Twice(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.process, self.calls = VP(), 2

        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return torch.tanh(_Counted.apply(x_t)) + 0.1 * _Counted.apply(x_t)

    _Counted.backwards = 0
    r = log_prob(Twice(), torch.zeros(3, 2), trace=trace, solver=Heun(5))
    assert r.nfe.tolist() == [20] * 3
    assert r.vjps.tolist() == [20 * products] * 3
    assert _Counted.backwards == 20 * products
