"""`sample` and `encode`: shapes, seeds, batches, counts, conditions and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde.denoisers import Denoiser
from sde.exact import Gaussian, Mixture
from sde.noise import Noise, Stream
from sde.processes import SDE, VE, VP
from sde.sampling import encode, sample
from sde.solvers import Ancestral, Euler, EulerMaruyama, Heun, Langevin, PredictorCorrector, RungeKutta, Solver, UniPC

SOLVERS: list[Solver] = [
    EulerMaruyama(6),
    PredictorCorrector(Ancestral(6), Langevin(0.1)),
    Heun(6),
    RungeKutta(rtol=1e-3, atol=1e-3),
]
EACH = pytest.mark.parametrize("solver", SOLVERS, ids=["EulerMaruyama", "PredictorCorrector", "Heun", "RungeKutta"])


class Network(Denoiser):
    """A small network with a condition, a parameter and a mode, which notes what it is called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.process = VP()
        self.layer = nn.Linear(2, 2, dtype=dtype)
        self.dropout = nn.Dropout(0.5)
        self.seen: list[tuple[torch.dtype, int, bool, bool]] = []
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.5, -0.2], [0.1, 0.3]]))
            self.layer.bias.copy_(torch.tensor([0.2, -0.1]))

    def forward(self, x_t: Tensor, t: Tensor, shift: Tensor | float = 0.0, **condition: Tensor) -> Tensor:
        self.seen.append((x_t.dtype, len(x_t), self.training, torch.is_grad_enabled()))
        column = shift[:, None] if isinstance(shift, Tensor) and shift.ndim else shift
        return self.dropout(torch.tanh(self.layer(x_t.to(self.layer.weight.dtype)))).to(x_t.dtype) + column


def latent(n: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(8), dtype=dtype)


# ---- what comes in and goes out


@pytest.mark.parametrize("given", [{}, {"shape": (3, 2), "x_T": torch.zeros(3, 2)}])
def test_either_a_shape_or_a_latent(given: dict[str, Any]) -> None:
    d = Network()
    with pytest.raises(ValueError, match=r"a shape \(B, \*\).*x_T.*x_start"):
        sample(d, solver=Euler(2), **given)
    assert d.seen == []


@EACH
@pytest.mark.parametrize("model", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_the_dtype_is_the_caller_s_or_the_denoiser_s(
    solver: Solver, model: torch.dtype, dtype: torch.dtype | None
) -> None:
    d = Network(model)
    r = sample(d, (3, 2), solver=solver, dtype=dtype, denoise=True)
    assert r.x.dtype == (dtype or model)
    assert {state for state, *_ in d.seen} == {r.x.dtype}
    assert r.nfe.dtype == torch.int64
    assert r.x.device.type == "cpu"


@EACH
def test_a_latent_keeps_its_dtype_unless_told(solver: Solver) -> None:
    for dtype in (torch.float32, torch.float64):
        assert sample(Network(), x_T=latent(dtype=dtype), solver=solver).x.dtype == dtype
    assert sample(Network(), x_T=latent(), solver=solver, dtype=torch.float32).x.dtype == torch.float32


def test_float32_and_float64_are_the_same_sample(gaussian: Gaussian) -> None:
    d = gaussian.denoiser(VP())
    narrow, wide = (
        sample(d, (4, 2), solver=EulerMaruyama(50), dtype=kind).x for kind in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)


# ---- where the noise comes from


@EACH
def test_seeds(solver: Solver) -> None:
    """The seed decides, and torch's global generator is neither used nor moved."""
    d = Network()
    state = torch.random.get_rng_state()
    first, again, other = (sample(d, (3, 2), solver=solver, seed=seed).x for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert bool((first != other).all())
    assert torch.equal(torch.random.get_rng_state(), state)


@EACH
def test_batches_of_a_set_are_the_set(solver: Solver, process: SDE, mixture: Mixture) -> None:
    d = mixture.denoiser(process)
    whole = sample(d, (9, 2), solver=solver, seed=3)
    parts = [sample(d, (n, 2), solver=solver, seed=3, first=first) for first, n in ((0, 4), (4, 1), (5, 4))]
    torch.testing.assert_close(torch.cat([r.x for r in parts]), whole.x, rtol=1e-9, atol=1e-9)
    assert torch.equal(torch.cat([r.nfe for r in parts]), whole.nfe)


@EACH
def test_a_prior_is_drawn_sample_by_sample(solver: Solver, mixture: Mixture) -> None:
    d, prior = mixture.denoiser(VP()), mixture.at(VP(), 1.0)
    whole = sample(d, (6, 2), solver=solver, seed=3, prior=prior).x
    parts = [sample(d, (n, 2), solver=solver, seed=3, prior=prior, first=first).x for first, n in ((0, 2), (2, 4))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-9, atol=1e-9)
    draws = [prior.sample(1, generator=Noise(3).generator(Stream.PRIOR, i)) for i in range(6)]
    given = sample(d, x_T=torch.cat(draws), solver=solver, seed=3).x
    assert torch.equal(given, whole)
    assert bool((sample(d, (6, 2), solver=solver, seed=3).x != whole).all())


def test_the_prior_is_the_process_s_at_the_noise_end(process: SDE, gaussian: Gaussian) -> None:
    d = gaussian.denoiser(process)
    end = torch.tensor(process.t_max, dtype=torch.float64)
    zero = torch.zeros(500, dtype=torch.int64)
    z = Noise(2).normal(Stream.PRIOR, torch.arange(500), zero, (2,), torch.float64)
    start = process.prior_var(end).sqrt() * z
    assert abs(float(start.var() / process.prior_var(end)) - 1.0) < 4.0 * math.sqrt(2.0 / 1000)
    whole = sample(d, (500, 2), solver=Euler(3), seed=2).x
    assert torch.equal(whole, sample(d, x_T=start, solver=Euler(3), seed=2).x)


def test_the_steps_noise_can_be_replaced(gaussian: Gaussian) -> None:
    """`noise` takes the place of the seed in the steps; the prior is drawn by the seed all the same."""
    d, solver = gaussian.denoiser(VP()), EulerMaruyama(5)
    plain = sample(d, (3, 2), solver=solver, seed=1).x
    assert torch.equal(sample(d, (3, 2), solver=solver, seed=1, noise=Noise(1)).x, plain)
    assert bool((sample(d, (3, 2), solver=solver, seed=1, noise=Noise(2)).x != plain).all())
    z = Noise(1).normal(Stream.PRIOR, torch.arange(3), torch.zeros(3, dtype=torch.int64), (2,), torch.float64)
    swapped = sample(d, (3, 2), solver=solver, seed=1, noise=Noise(2)).x
    assert torch.equal(swapped, sample(d, x_T=z, solver=solver, seed=2).x)


# ---- what is spent


@pytest.mark.parametrize(
    ("solver", "calls"),
    [(EulerMaruyama(6), 6), (Heun(6), 12), (PredictorCorrector(Ancestral(6), Langevin(0.1, 2)), 18)],
)
def test_the_last_tweedie_step_is_one_more_call(gaussian: Gaussian, solver: Solver, calls: int) -> None:
    p = VP()
    d = gaussian.denoiser(p)
    plain, denoised = sample(d, (3, 2), solver=solver), sample(d, (3, 2), solver=solver, denoise=True)
    assert plain.nfe.tolist() == [calls] * 3
    assert denoised.nfe.tolist() == [calls + 1] * 3
    torch.testing.assert_close(denoised.x, d(plain.x, torch.tensor(p.t_min, dtype=torch.float64)))
    assert not torch.equal(denoised.x, plain.x)


@EACH
def test_calls_are_counted_where_they_happen(solver: Solver) -> None:
    d = Network()
    r = sample(d, (3, 2), solver=solver, denoise=True)
    assert sum(n for _, n, *_ in d.seen) == int(r.nfe.sum())


# ---- modes


@EACH
def test_modes_are_restored(solver: Solver) -> None:
    d = Network()
    d.train()
    d.layer.eval()
    sample(d, (3, 2), solver=solver)
    encode(d, latent(), solver=Heun(2))
    assert not any(training for *_, training, _ in d.seen)
    assert [d.training, d.layer.training, d.dropout.training] == [True, False, True]


def test_modes_are_restored_after_an_error() -> None:
    d = Network()
    d.train()
    with pytest.raises(RuntimeError, match="size"):
        sample(d, (3, 2), solver=Euler(2), condition={"shift": torch.zeros(3, 5)})
    assert d.training
    assert d.dropout.training
    assert torch.is_grad_enabled()


@EACH
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("differentiable", [False, True])
def test_gradients_only_on_request(solver: Solver, outside: bool, differentiable: bool) -> None:
    d = Network()
    with torch.set_grad_enabled(outside):
        r = sample(d, (3, 2), solver=solver, differentiable=differentiable)
        assert torch.is_grad_enabled() == outside
    assert r.x.requires_grad == differentiable
    assert not r.x.is_inference()
    assert {enabled for *_, enabled in d.seen} == {differentiable}


# ---- conditions


@EACH
def test_a_condition_reaches_the_network_row_by_row(solver: Solver) -> None:
    shift = torch.tensor([0.0, 0.7, -1.5])
    together = sample(Network(), (3, 2), solver=solver, condition={"shift": shift}).x
    for i in range(3):
        alone = sample(Network(), (1, 2), solver=solver, first=i, condition={"shift": shift[i]}).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    plain = sample(Network(), (3, 2), solver=solver).x
    torch.testing.assert_close(together[:1], plain[:1], rtol=1e-4, atol=1e-4)
    assert bool((together[1:] != plain[1:]).all())


def test_a_condition_of_another_length_is_refused() -> None:
    d, condition = Network(), {"shift": torch.zeros(4)}
    message = r"condition 'shift': .* leading size 3.*got shape \(4,\)"
    with pytest.raises(ValueError, match=message):
        sample(d, (3, 2), solver=Euler(2), condition=condition)
    with pytest.raises(ValueError, match=message):
        encode(d, latent(), solver=Euler(2), condition=condition)
    assert d.seen == []


# ---- gradients


@pytest.mark.parametrize(
    "solver",
    [EulerMaruyama(4), PredictorCorrector(Ancestral(4), Langevin(0.1)), Euler(4), Heun(4)],
    ids=["EulerMaruyama", "PredictorCorrector", "Euler", "Heun"],
)
def test_gradients_are_finite_differences(solver: Solver) -> None:
    """With respect to the latent, the condition and the parameters, through every step."""
    d = Network(torch.float64)
    x, shift = latent().requires_grad_(), torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64, requires_grad=True)

    def run(x_T: Tensor, s: Tensor) -> Tensor:
        return sample(d, x_T=x_T, solver=solver, condition={"shift": s}, denoise=True, differentiable=True).x

    assert torch.autograd.gradcheck(run, (x, shift))
    (gradient,) = torch.autograd.grad(run(x, shift).sum(), d.layer.weight)
    ends = []
    for bump in (1e-5, -2e-5):
        with torch.no_grad():
            d.layer.weight[0, 1] += bump
            ends.append(run(x, shift).sum())
    torch.testing.assert_close(gradient[0, 1], (ends[0] - ends[1]).detach() / 2e-5, rtol=1e-6, atol=1e-8)


def test_adaptive_gradients_are_those_of_the_flow(mixture: Mixture) -> None:
    """The sizes of the steps are not differentiated: what remains is the flow's own Jacobian, to the tolerance."""
    p, x = VP(), latent(2)
    d = mixture.denoiser(p)

    def run(y: Tensor, tolerance: float) -> Tensor:
        solver = RungeKutta(rtol=tolerance, atol=tolerance)
        return sample(d, x_T=y, solver=solver, differentiable=True).x[:, 0].sum()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(run(x, 1e-8), x)
    with torch.no_grad():
        for i in range(2):
            bump = torch.zeros_like(x)
            bump[1, i] = 1e-4
            slope = (run(x + bump, 1e-9) - run(x - bump, 1e-9)) / 2e-4
            torch.testing.assert_close(gradient[1, i], slope, rtol=1e-4, atol=1e-6)


def test_gradients_where_the_flow_stands_still() -> None:
    """A standard normal under VP does not move: the Jacobian is 1, though every error estimate is 0."""
    normal = Gaussian(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    x = latent().requires_grad_()
    r = sample(normal.denoiser(VP()), x_T=x, solver=RungeKutta(), differentiable=True)
    (gradient,) = torch.autograd.grad(r.x.sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x), rtol=1e-6, atol=1e-6)


# ---- there and back


@pytest.mark.parametrize("event", [(2,), (1, 1, 2)])
def test_encode_and_back(process: SDE, mixture: Mixture, event: tuple[int, ...]) -> None:
    d, solver = mixture.denoiser(process), RungeKutta(rtol=1e-7, atol=1e-7)
    x = mixture.at(process, process.t_min).sample(4, generator=torch.Generator().manual_seed(1)).reshape(4, *event)
    z = encode(d, x, solver=solver)
    assert z.shape == x.shape
    assert z.dtype == x.dtype
    assert not z.requires_grad
    torch.testing.assert_close(sample(d, x_T=z, solver=solver).x, x, rtol=1e-4, atol=1e-4)


def test_encoding_a_gaussian_is_the_closed_form(process: SDE) -> None:
    """In one dimension the flow keeps the quantile: (z - m_T) / s_T = (x - m_0) / s_0."""
    mean, var = torch.tensor([0.4], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
    x = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)[:, None]
    z = encode(Gaussian(mean, var).denoiser(process), x, solver=RungeKutta(rtol=1e-8, atol=1e-8))
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    m, s = process.alpha(ends) * mean, (process.alpha(ends) ** 2 * var[0] + process.var(ends)).sqrt()
    torch.testing.assert_close(z, m[1] + s[1] / s[0] * (x - m[0]), rtol=2e-5, atol=0.0)


def test_encoding_is_differentiable_on_request() -> None:
    d, x = Network(torch.float64), latent().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: encode(d, y, solver=Heun(3), differentiable=True), (x,))
    assert not encode(d, x, solver=Heun(3)).requires_grad


def test_encoding_with_noise_is_refused_before_any_call() -> None:
    d = Network()
    for solver in (Ancestral(3), PredictorCorrector(Euler(3), Langevin(0.1))):
        with pytest.raises(ValueError, match=r"eta=0|eta=1"):
            encode(d, latent(), solver=solver)
    assert d.seen == []


def test_the_solver_s_own_kind_of_dynamics_is_the_default(gaussian: Gaussian) -> None:
    d, x = gaussian.denoiser(VE()), latent()
    for solver, eta in ((EulerMaruyama(4), 1.0), (Heun(4), 0.0), (PredictorCorrector(Heun(4), Langevin(0.1)), 0.0)):
        assert torch.equal(sample(d, x_T=x, solver=solver).x, sample(d, x_T=x, solver=solver, eta=eta).x)
    flow = sample(d, x_T=x, solver=EulerMaruyama(4), eta=0.0).x
    torch.testing.assert_close(flow, sample(d, x_T=x, solver=Euler(4)).x, rtol=1e-12, atol=1e-12)


def test_a_start_and_a_prior_for_it_are_refused_together() -> None:
    d = Network()
    with pytest.raises(ValueError, match=r"x_T.*prior="):
        sample(d, x_T=latent().float(), prior=object(), solver=Euler(2))


def test_a_prior_is_something_to_draw_from() -> None:
    with pytest.raises(ValueError, match=r"with sample\(n, generator=\), got a Tensor of shape .*x_T="):
        sample(Network(), (4, 2), prior=torch.zeros(4, 2), solver=Euler(2))  # type: ignore[arg-type]


def test_the_times_of_a_solver_are_those_of_a_grid() -> None:
    with pytest.raises(ValueError, match=r"UniPC's grid.*Karras\(\), got 'karras'"):
        UniPC(5, grid="karras")  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [Heun(12), UniPC(12), EulerMaruyama(50), RungeKutta()], ids=repr)
def test_a_run_from_a_later_time_goes_on_from_its_state(gaussian: Gaussian, solver: Solver) -> None:
    """From the exact marginal at t = 0.4 to that at t_min, to the discretisation error; the noise is the seed's."""
    process = VP()
    d = gaussian.denoiser(process)
    x = gaussian.at(process, 0.4).sample(4000, generator=torch.Generator().manual_seed(0))
    r = sample(d, start=0.4, x_start=x, solver=solver, seed=3)
    expected = gaussian.at(process, process.t_min).sample(4000, generator=torch.Generator().manual_seed(1))
    # Five standard errors of the difference of two means and of two deviations, and the solver's own error.
    spread = expected.std(0)
    assert bool(((r.x.mean(0) - expected.mean(0)).abs() < 5.0 * spread * (2.0 / 4000) ** 0.5 + 0.02).all())
    assert bool(((r.x.std(0) / spread - 1.0).abs() < 5.0 / 4000**0.5 + 0.05).all())
    some = sample(d, start=0.4, x_start=x[:7], solver=solver, seed=3)
    torch.testing.assert_close(some.x, r.x[:7], rtol=1e-9, atol=1e-9)
    assert torch.equal(some.nfe, r.nfe[:7])
    whole = sample(d, start=process.t_max, x_start=x, solver=solver, seed=3)
    assert torch.equal(whole.x, sample(d, x_T=x, solver=solver, seed=3).x)


@pytest.mark.parametrize("given", [{"start": 0.4}, {"x_start": torch.zeros(2, 2)}, {"start": 0.4, "shape": (2, 2)}])
def test_start_and_x_start_go_together(gaussian: Gaussian, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"x_start"):
        sample(gaussian.denoiser(VP()), **given)


def test_the_default_solver_takes_18_calls(gaussian: Gaussian) -> None:
    """Against a solve at 1e-8 from the same latents; at 15 calls the published error on a harder target is 0.013."""
    d = gaussian.denoiser(VP())
    r = sample(d, (64, 2), seed=1)
    assert r.nfe.tolist() == [18] * 64
    assert r.vjps.tolist() == [0] * 64
    exact = sample(d, (64, 2), seed=1, solver=RungeKutta(rtol=1e-8, atol=1e-8))
    assert float((r.x - exact.x).square().mean().sqrt()) < 0.013
    assert float((sample(d, x_T=encode(d, exact.x)).x - exact.x).square().mean().sqrt()) < 0.013


@EACH
@pytest.mark.parametrize("denoise", [False, True])
def test_the_states_of_a_run_and_its_progress_are_reported(solver: Solver, denoise: bool) -> None:
    path: list[tuple[Tensor, Tensor]] = []
    done: list[float] = []
    d = Network()
    r = sample(d, (3, 2), solver=solver, denoise=denoise, trajectory=path.append, progress=done.append)
    assert torch.equal(r.x, sample(d, (3, 2), solver=solver, denoise=denoise).x)
    times, states = zip(*path)
    assert times[0].tolist() == [d.process.t_max] * 3
    assert times[-1].tolist() == [d.process.t_min] * 3
    assert torch.equal(states[-1], r.x)
    assert torch.equal(states[-1 - denoise], sample(d, (3, 2), solver=solver).x)
    assert done == sorted(done)
    assert done[0] >= 0.0
    assert done[-1] == 1.0
    steps = getattr(solver, "steps", None)
    if isinstance(steps, int):
        work = steps + denoise
        assert len(path) == work + 1
        assert done == pytest.approx([k / work for k in range(1, work + 1)])


def test_the_progress_of_adaptive_steps_is_that_of_the_angle(gaussian: Gaussian) -> None:
    """Of arctan(sigma/alpha) from `start` to `t_min`, on average over the samples."""
    path: list[tuple[Tensor, Tensor]] = []
    done: list[float] = []
    d, x = gaussian.denoiser(VE()), latent()
    sample(d, start=0.5, x_start=x, solver=RungeKutta(), trajectory=path.append, progress=done.append)
    angles = torch.stack([d.process.sigma(t).atan() for t, _ in path])
    expected = ((angles[0] - angles) / (angles[0] - angles[-1])).mean(1)[1:]
    torch.testing.assert_close(torch.tensor(done[: len(expected)], dtype=torch.float64), expected)
