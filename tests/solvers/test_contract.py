"""The contract of all solvers: what each serves and what it refuses, and what a trajectory promises.

A new solver adds an entry to `SOLVERS`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sde.denoisers import Conditioned, Denoiser
from sde.dynamics import Dynamics, Reverse, Semilinear, State, WithLogDensity
from sde.exact import Gaussian, Mixture
from sde.likelihood import log_prob
from sde.noise import Noise, StepNoise
from sde.processes import SDE, VE, VP, DiscreteChain
from sde.sampling import encode, sample
from sde.shapes import expand
from sde.solvers import (
    BOGACKI_SHAMPINE,
    DDIM,
    DEIS,
    DORMAND_PRINCE_8,
    TSITOURAS,
    AdamsBashforth,
    AdaptiveSDE,
    Ancestral,
    Arcsinh,
    Designed,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP,
    DPMSolverPP2S,
    Euler,
    EulerMaruyama,
    GridSteps,
    Heun,
    Langevin,
    Midpoint,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta,
    RungeKuttaStart,
    ScipyODE,
    Solver,
    SongLangevin,
    StochasticRungeKutta,
    TorchSDE,
    UniPC,
)
from sde.trace import ExactTrace

N = 5  # steps


@dataclass(frozen=True)
class Case:
    """A solver and what it promises.

    Attributes:
        solver: the solver.
        etas: the stochasticities it serves, of 0, 0.5 and 1.
        log_density: whether it serves a flow with log-density.
        calls: network calls for N steps, or None where the error decides.
        semilinear: whether it needs the drift in parts.
        alone: whether a sample's result does not depend on its batch mates.
        fitted: for a solver that belongs to its end points, the one for others: (start, stop, steps) -> solver.
    """

    solver: Solver
    etas: tuple[float, ...]
    log_density: bool
    calls: int | None
    semilinear: bool
    alone: bool = True
    fitted: Callable[[float, float, int], Solver] | None = None

    def between(self, start: float, stop: float, steps: int = N) -> Solver:
        """The solver for a run between two times, with so many steps if it has a number of steps."""
        if self.fitted is not None:
            return self.fitted(start, stop, steps)
        return replace(self.solver, steps=steps) if self.calls is not None and steps != N else self.solver


def designed(start: float, stop: float, steps: int = N, *, density: bool = False) -> Designed:
    """The numbers of UniPC, with the network conditioned on slightly other times."""
    plain = Designed.of(UniPC(steps), VP(), start, stop)
    times = [t + 1e-3 / steps * (u - t) for t, u in itertools.pairwise(plain.times)]
    weights = [0.01] * steps if density else None
    return replace(plain, conditioning=times, scales=[1.0 - 1e-4 / steps] * steps, density=weights)


SOLVERS: dict[str, Case] = {
    "EulerMaruyama": Case(EulerMaruyama(N), (0.0, 0.5, 1.0), False, N, True),
    "Ancestral": Case(Ancestral(N), (1.0,), False, N, True),
    "Ancestral(v=1)": Case(Ancestral(N, v=1.0), (1.0,), False, N, True),
    "ReverseDiffusion": Case(ReverseDiffusion(N), (0.0, 0.5, 1.0), False, N, True),
    "PC(EulerMaruyama)": Case(PredictorCorrector(EulerMaruyama(N), Langevin(0.1)), (0.0, 0.5, 1.0), False, 2 * N, True),
    "PC(Ancestral, 2)": Case(PredictorCorrector(Ancestral(N), Langevin(0.1, 2)), (1.0,), False, 3 * N, True),
    "PC(Heun), corrector first": Case(
        PredictorCorrector(Heun(N), Langevin(0.1), corrector_first=True), (0.0,), False, 3 * N, True
    ),
    "PC(ReverseDiffusion), Song": Case(
        PredictorCorrector(ReverseDiffusion(N), Langevin.song(0.1)), (0.0, 0.5, 1.0), False, 2 * N, True, alone=False
    ),
    "Euler": Case(Euler(N), (0.0,), True, N, False),
    "Heun": Case(Heun(N), (0.0,), True, 2 * N, False),
    "Midpoint": Case(Midpoint(N), (0.0,), True, 2 * N, False),
    "DPMSolver2": Case(DPMSolver2(N), (0.0,), True, 2 * N, True),
    "DPMSolver3": Case(DPMSolver3(N), (0.0,), True, 3 * N, True),
    "DDIM": Case(DDIM(N), (0.0, 0.5, 1.0), True, N, True),
    "DPMSolverPP(2)": Case(DPMSolverPP(N, 2), (0.0, 0.5, 1.0), True, N, True),
    "DPMSolverPP(3)": Case(DPMSolverPP(N, 3, RungeKuttaStart()), (0.0,), True, N + 6, True),
    "DPMSolverPP2S": Case(DPMSolverPP2S(N), (0.0,), True, 2 * N, True),
    "UniPC": Case(UniPC(N), (0.0,), True, N, True),
    "UniPC(Arcsinh)": Case(UniPC(N, 3, RungeKuttaStart(), variable=Arcsinh()), (0.0,), True, N + 6, True),
    "DEIS": Case(DEIS(N), (0.0, 0.5, 1.0), True, N, True),
    "Designed": Case(designed(1.0, 1e-5), (0.0,), True, N, True, fitted=designed),
    "Designed(density)": Case(designed(1.0, 1e-5, density=True), (0.0,), True, N, True, fitted=designed),
    "AdamsBashforth": Case(AdamsBashforth(N, 2), (0.0,), True, N, False),
    "RungeKutta(Tsitouras)": Case(RungeKutta(TSITOURAS), (0.0,), True, None, False),
    "RungeKutta(DP8)": Case(RungeKutta(DORMAND_PRINCE_8), (0.0,), True, None, False),
    "RungeKutta": Case(RungeKutta(), (0.0,), True, None, False),
    "RungeKutta(BS)": Case(RungeKutta(BOGACKI_SHAMPINE, 1e-3, 1e-3), (0.0,), True, None, False),
    "StochasticRungeKutta": Case(StochasticRungeKutta(N), (0.0, 0.5, 1.0), False, 2 * N, False),
    "AdaptiveSDE": Case(AdaptiveSDE(0.2, 0.2), (0.0, 0.5, 1.0), False, None, False),
    "TorchSDE": Case(TorchSDE("srk", N), (0.0, 0.5, 1.0), False, 2 * N, False),
    "TorchSDE, adaptive": Case(TorchSDE("srk", rtol=0.5, atol=0.5), (0.0, 0.5, 1.0), False, None, False, alone=False),
    "TorchSDE(per_sample)": Case(
        TorchSDE("euler", rtol=0.5, atol=0.5, per_sample=True), (0.0, 0.5, 1.0), False, None, False
    ),
    "Heun(churn)": Case(Heun(N, churn=1.0), (0.0,), False, 2 * N, False),
    "ScipyODE": Case(ScipyODE(rtol=1e-3, atol=1e-3), (0.0,), True, None, False, alone=False),
    "ScipyODE(per_sample)": Case(ScipyODE("RK23", 1e-3, 1e-3, per_sample=True), (0.0,), True, None, False),
}
CASES = pytest.mark.parametrize("case", list(SOLVERS.values()), ids=list(SOLVERS))
SERVED = [(name, eta) for name, case in SOLVERS.items() for eta in case.etas]
REFUSED = [(name, eta) for name, case in SOLVERS.items() for eta in (0.0, 0.5, 1.0) if eta not in case.etas]
DRAWING = [(name, eta) for name, eta in SERVED if eta > 0.0 or SOLVERS[name].solver.draws]
FLOWING = [name for name, eta in SERVED if (name, eta) not in DRAWING]


def where(**wanted: bool) -> list[str]:
    """The solvers whose promises are these."""
    return [name for name, case in SOLVERS.items() if all(getattr(case, key) == value for key, value in wanted.items())]


class Untouched(Denoiser):
    """No network call may reach it."""

    def __init__(self, process: SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        raise AssertionError("a network call was made")


class Rational(Denoiser):
    """Denoised values by additions, products and quotients of single numbers, which round alike in any batch."""

    def __init__(self, process: SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        alpha, var = expand(self.process.alpha(t), x_t), expand(self.process.var(t), x_t)
        y = alpha * x_t / (alpha * alpha + var)
        return y * (1.0 - 0.5 / (1.0 + y * y))


@dataclass(frozen=True)
class DriftOnly(Dynamics):
    """A dynamics of the user's own: a drift and a diffusion, without the parts."""

    process: SDE
    spread: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.spread > 0.0

    @property
    def tolerances(self) -> tuple[float | None, ...]:
        return (None,)

    def drift(self, state: State, t: Tensor) -> State:
        return tuple(-entry for entry in state)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.spread)

    def select(self, index: Tensor) -> DriftOnly:
        return self


def carried(flow: Reverse, n: int = 3) -> WithLogDensity:
    return WithLogDensity(flow, ExactTrace().bind(Noise(0), torch.arange(n), torch.zeros(n, 2)))


def keyed(n: int, first: int = 0, event: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64) -> StepNoise:
    return Noise(7).batch(torch.arange(first, first + n), event, dtype)


def begin(mixture: Mixture, process: SDE, n: int) -> Tensor:
    return mixture.at(process, process.t_max).sample(n, generator=torch.Generator().manual_seed(1))


# ---- what is served, what is refused


@CASES
def test_the_class_attributes_are_what_is_served(case: Case) -> None:
    solver = case.solver
    assert solver.needs is Dynamics or case.semilinear
    assert issubclass(solver.needs, Semilinear) == case.semilinear
    assert solver.eta in case.etas
    assert (solver.serves_log_density and not solver.draws) == case.log_density
    # A start or a predictor may serve less than the class does.
    assert solver.serves_noise or case.etas == (0.0,)


@CASES
def test_any_event_shape(case: Case, generator: torch.Generator) -> None:
    """An image and the same numbers as a vector: the same result."""
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64) / 4.0
    d = Gaussian(torch.linspace(-1.0, 1.0, 12, dtype=torch.float64), root @ root.T).denoiser(VP())
    x = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    eta = case.etas[-1]
    vector = sample(d, x_T=x, solver=case.solver, eta=eta)
    image = sample(d, x_T=x.reshape(2, 1, 3, 4), solver=case.solver, eta=eta)
    torch.testing.assert_close(image.x, vector.x.reshape(2, 1, 3, 4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "eta"), REFUSED)
def test_a_stochasticity_that_it_does_not_serve_is_refused(name: str, eta: float) -> None:
    solver = SOLVERS[name].solver
    reason = f"eta=1.*got eta={eta}" if "Ancestral" in name else "noise.*(eta=0|Ramp)"
    with pytest.raises(ValueError, match=f"{type(solver).__name__}.*{reason}"):
        solver.bind(Reverse(Untouched(VP()), eta))


def test_a_refusal_comes_before_the_first_network_call() -> None:
    dynamics = Reverse(Untouched(VP()), 1.0)
    for attempt in (
        lambda: Euler(N).trajectory(dynamics, (torch.zeros(3, 2),), keyed(3)),
        lambda: Euler(N)(dynamics, (torch.zeros(3, 2),), keyed(3)),
        lambda: sample(Untouched(VP()), (3, 2), solver=Euler(N), eta=1.0),
        lambda: log_prob(Untouched(VP()), torch.zeros(3, 2), solver=EulerMaruyama(N)),
    ):
        with pytest.raises(ValueError, match=r"Euler.*(noise|log-density)"):
            attempt()


@pytest.mark.parametrize("name", [name for name in where(log_density=True) if SOLVERS[name].calls is not None])
def test_the_log_density_goes_along_without_a_change_of_the_path(mixture: Mixture, name: str) -> None:
    """On a fixed grid. That it is the right one, and for adaptive methods too, the tests of orders and errors say."""
    flow, x = Reverse(mixture.denoiser(VP()), 0.0), begin(mixture, VP(), 3)
    with torch.no_grad():
        y, change = SOLVERS[name].solver(carried(flow), (x, torch.zeros(3, 1, dtype=x.dtype)))
        (alone,) = SOLVERS[name].solver(flow, (x,))
    torch.testing.assert_close(y, alone, rtol=1e-9, atol=1e-9)
    assert bool((change != 0.0).all())


@pytest.mark.parametrize("name", where(log_density=False))
def test_the_log_density_is_refused(name: str) -> None:
    solver = SOLVERS[name].solver
    with pytest.raises(ValueError, match=f"{type(solver).__name__}.*log-density"):
        solver.bind(carried(Reverse(Untouched(VP()), 0.0)))


@pytest.mark.parametrize("name", where(semilinear=True))
def test_a_drift_alone_is_refused(name: str) -> None:
    solver = SOLVERS[name].solver
    with pytest.raises(ValueError, match=f"{type(solver).__name__}.*{solver.needs.__name__}.*DriftOnly"):
        solver.bind(DriftOnly(VP()))


@pytest.mark.parametrize("name", [name for name in where(semilinear=False) if not SOLVERS[name].solver.draws])
def test_a_drift_alone_is_served(name: str) -> None:
    x = torch.ones(3, 2, dtype=torch.float64)
    (y,) = SOLVERS[name].solver(DriftOnly(VP()), (x,), keyed(3))
    assert float((y - math.e * x).abs().max()) < 0.5


@pytest.mark.parametrize("name", [name for name in where(semilinear=False) if SOLVERS[name].etas == (0.0,)])
def test_a_drift_with_noise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"noise.*eta=0"):
        SOLVERS[name].solver.bind(DriftOnly(VP(), spread=1.0))


@pytest.mark.parametrize("name", FLOWING)
def test_encoding_is_served(name: str) -> None:
    """Along the flow of a Gaussian: each coordinate keeps its place, in standard deviations of the marginal."""
    process, case = VP(), SOLVERS[name]
    variance, quantile = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([[1.0, -0.5]]).double()
    d = Gaussian(torch.zeros(2, dtype=torch.float64), variance.diag()).denoiser(process)
    finer = case.between(process.t_min, process.t_max, 200)
    t = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    start, stop = (process.alpha(t)[:, None].square() * variance + process.var(t)[:, None]).sqrt() * quantile
    torch.testing.assert_close(encode(d, start[None], solver=finer), stop[None], rtol=0.0, atol=0.1)


@pytest.mark.parametrize(("name", "eta"), DRAWING)
def test_encoding_with_noise_is_refused(name: str, eta: float) -> None:
    process = VP()
    with pytest.raises(ValueError, match=r"noise.*start=.*stop=.*eta=0"):
        SOLVERS[name].solver.bind(Reverse(Untouched(process), eta), process.t_min, process.t_max)


@pytest.mark.parametrize(
    ("start", "stop"), [(1.0, 1.0), (2.0, 0.5), (1.0, 0.0), (math.nan, 0.5), (1.0, math.nan), (0.5, -1.0), (1.0, 1.001)]
)
def test_times_outside_the_process_are_refused(start: float, stop: float) -> None:
    with pytest.raises(ValueError, match=rf"\[1e-05, 1\.0\].*start={start}, stop={stop}"):
        Heun(N).bind(Reverse(Untouched(VP()), 0.0), start, stop)


@pytest.mark.parametrize(("name", "eta"), DRAWING)
def test_noise_is_asked_for_where_it_is_needed(name: str, eta: float) -> None:
    solver = SOLVERS[name].solver
    with pytest.raises(ValueError, match=f"{type(solver).__name__}.*noise=.*None"):
        solver(Reverse(Untouched(VP()), eta), (torch.zeros(3, 2),))


@pytest.mark.parametrize("name", FLOWING)
def test_noise_is_not_looked_at_where_none_is_needed(mixture: Mixture, name: str) -> None:
    dynamics, x = Reverse(mixture.denoiser(VP()), 0.0), begin(mixture, VP(), 3)
    (with_noise,), (without,) = (SOLVERS[name].solver(dynamics, (x,), noise) for noise in (keyed(3), None))
    assert torch.equal(with_noise, without)


@pytest.mark.parametrize("steps", [0, -3, 2.5, 10.0, True, "10"])
def test_steps_are_a_whole_number(steps: object) -> None:
    with pytest.raises(ValueError, match=f"Euler.*steps={steps!r}"):
        Euler(steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in SOLVERS if isinstance(SOLVERS[name].solver, GridSteps)])
def test_every_method_on_a_grid_checks_its_steps(name: str) -> None:
    with pytest.raises(ValueError, match=r"steps=0"):
        replace(SOLVERS[name].solver, steps=0)  # type: ignore[call-arg]


@pytest.mark.parametrize("v", [-0.1, 1.1, math.nan])
def test_ancestral_variance_is_a_share(v: float) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 1\].*v={v}"):
        Ancestral(3, v=v)


@pytest.mark.parametrize("corrector", [Langevin, SongLangevin])
@pytest.mark.parametrize(("snr", "steps"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (0.1, 0)])
def test_corrector_settings_are_checked(corrector: type, snr: float, steps: int) -> None:
    with pytest.raises(ValueError, match=f"Langevin.*(snr={snr}|steps={steps})"):
        corrector(snr, steps)


def test_a_predictor_has_a_fixed_grid() -> None:
    with pytest.raises(ValueError, match=r"PredictorCorrector.*RungeKutta"):
        PredictorCorrector(RungeKutta(), Langevin(0.1))  # type: ignore[arg-type]


def test_a_predictor_corrector_is_no_predictor() -> None:
    """Both correctors would draw the same normals; more Langevin steps are `Langevin(steps=)`."""
    inner = PredictorCorrector(Ancestral(4), Langevin(0.1))
    with pytest.raises(ValueError, match="got PredictorCorrector"):
        PredictorCorrector(inner, Langevin(0.1))


def test_a_schedule_that_is_no_diffusion_is_refused() -> None:
    @dataclass(frozen=True)
    class Backwards(SDE):
        t_min: float = 1e-3
        t_max: float = 1.0

        def log_alpha(self, t: Tensor) -> Tensor:
            return torch.zeros_like(t)

        def var(self, t: Tensor) -> Tensor:
            return 1.0 / (1.0 + t)

    with pytest.raises(ValueError, match=r"log_snr.*t=0\.0"):
        Heun(N).bind(Reverse(Untouched(Backwards()), 0.0))


@pytest.mark.parametrize("method", [RungeKutta, ScipyODE])
@pytest.mark.parametrize(
    "settings", [{"rtol": 0.0}, {"atol": 0.0}, {"rtol": math.nan}, {"atol": -1.0}, {"max_steps": 0}]
)
def test_tolerances_are_checked(method: type, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{method.__name__}.*{next(iter(settings))}="):
        method(**settings)


def test_scipy_methods_are_named() -> None:
    with pytest.raises(ValueError, match=r"RK23.*LSODA.*'rk4'"):
        ScipyODE("rk4")


# ---- what a trajectory promises


@CASES
def test_a_trajectory_runs_from_start_to_stop(mixture: Mixture, case: Case) -> None:
    process = VP()
    x = begin(mixture, process, 3)
    before = x.clone()
    dynamics = Reverse(mixture.denoiser(process), case.etas[-1])
    start, stop = 0.9 * process.t_max, 2.0 * process.t_min
    solver = case.between(start, stop)
    path = list(solver.trajectory(dynamics, (x,), keyed(3), start, stop))
    assert all(t.shape == (3,) and t.dtype == torch.float64 for t, _ in path)
    assert all(state.shape == x.shape and state.dtype == x.dtype for _, (state,) in path)
    assert path[0][0].tolist() == [start] * 3
    assert path[-1][0].tolist() == [stop] * 3
    for (earlier, _), (later, _) in itertools.pairwise(path):
        assert bool((later <= earlier).all())
    assert torch.equal(path[0][1][0], before)
    assert torch.equal(x, before)
    assert torch.equal(solver(dynamics, (x,), keyed(3), start, stop)[0], path[-1][1][0])
    assert case.calls is None or len(path) == N + 1


@pytest.mark.parametrize("process", [VE(), DiscreteChain.linear(1000).sde()], ids=["VE", "ChainSDE"])
def test_a_trajectory_runs_from_t_max_to_t_min(mixture: Mixture, process: SDE) -> None:
    path = list(Heun(N).trajectory(Reverse(mixture.denoiser(process), 0.0), (begin(mixture, process, 3),)))
    assert path[0][0].tolist() == [process.t_max] * 3
    assert path[-1][0].tolist() == [process.t_min] * 3


@pytest.mark.parametrize(("name", "eta"), [pair for pair in DRAWING if SOLVERS[pair[0]].calls or pair[1] == 1.0])
def test_noise_depends_on_the_seed_alone(mixture: Mixture, name: str, eta: float) -> None:
    solver, dynamics = SOLVERS[name].solver, Reverse(mixture.denoiser(VP()), eta)
    x = begin(mixture, VP(), 3)
    runs = [solver(dynamics, (x,), Noise(seed).batch(torch.arange(3), (2,), x.dtype))[0] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert bool((runs[0] != runs[2]).all())


@CASES
def test_the_grad_mode_is_the_caller_s(mixture: Mixture, case: Case) -> None:
    """Whatever mode the caller sets between two yields stays."""
    dynamics = Reverse(mixture.denoiser(VP()), case.etas[-1])
    steps = case.solver.trajectory(dynamics, (begin(mixture, VP(), 3),), keyed(3))
    for enabled, _ in zip(itertools.cycle([False, True]), range(6)):
        with torch.set_grad_enabled(enabled):
            next(steps, None)
            assert torch.is_grad_enabled() == enabled
    steps.close()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["Euler", "Heun", "RungeKutta"])
def test_the_grad_mode_is_the_caller_s_with_log_density(mixture: Mixture, name: str) -> None:
    x = begin(mixture, VP(), 3)
    dynamics = carried(Reverse(mixture.denoiser(VP()), 0.0))
    steps = SOLVERS[name].solver.trajectory(dynamics, (x, torch.zeros(3, 1, dtype=x.dtype)))
    for enabled, _ in zip(itertools.cycle([False, True]), range(6)):
        with torch.set_grad_enabled(enabled):
            _, state = next(steps)
            assert torch.is_grad_enabled() == enabled
    assert all(bool(entry.isfinite().all()) for entry in state)


@CASES
def test_the_calls_that_are_counted_are_those_that_happened(mixture: Mixture, case: Case) -> None:
    """For each sample, and as many as the method promises; a float32 state stays one."""

    class Seen(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.process, self.inner, self.rows = VP(), mixture.denoiser(VP()), torch.zeros(3, dtype=torch.int64)

        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            self.rows += torch.bincount(condition["row"], minlength=3)
            return self.inner(x_t, t)

    seen, condition = Seen(), {"row": torch.arange(3)}
    drawn = sample(seen, (3, 2), solver=case.solver, eta=case.etas[0], condition=condition, dtype=torch.float32)
    assert torch.equal(drawn.nfe, seen.rows)
    assert case.calls is None or drawn.nfe.tolist() == [case.calls] * 3
    assert drawn.x.dtype == torch.float32


def test_counts_go_to_the_rows_of_the_whole_batch(gaussian: Gaussian) -> None:
    nfe = torch.zeros(4, dtype=torch.int64)
    d = Conditioned(gaussian.denoiser(VP()), None, nfe).select(torch.tensor([3, 1]))
    d.score(torch.zeros(2, 2), torch.tensor(0.5))
    assert nfe.tolist() == [0, 1, 0, 1]
