"""torchsde behind the one interface: the same noise, the same steps, the same limits, and its own rules made plain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde.brownian import BrownianPath
from sde.denoisers import Denoiser
from sde.exact import Gaussian, Mixture
from sde.grids import Grid, Karras, LogSNR, Uniform
from sde.noise import NoiseSource
from sde.processes import SDE, VE, VP
from sde.sampling import Samples, encode, sample
from sde.shapes import expand
from sde.solvers import Euler, EulerMaruyama
from sde.solvers.stochastic_runge_kutta import StochasticRungeKutta
from sde.solvers.torch_sde import TorchSDE

PATH = BrownianPath(0, levels=14)
METHODS = [
    ("euler", "ito", 1),
    ("milstein", "ito", 1),
    ("milstein", "stratonovich", 1),
    ("srk", "ito", 2),
    ("euler_heun", "stratonovich", 1),
    ("heun", "stratonovich", 2),
    ("log_ode", "stratonovich", 2),
    ("midpoint", "stratonovich", 2),
    ("reversible_heun", "stratonovich", 1),
]


@pytest.fixture(scope="module")
def limits() -> tuple[Denoiser, Tensor]:
    """A Gaussian's denoiser, and where eight samples end along the path."""
    mean, cov = torch.tensor([0.7, -0.3]).double(), torch.tensor([[0.6, 0.25], [0.25, 0.3]]).double()
    d = Gaussian(mean, cov).denoiser(VP())
    return d, sample(d, (8, 2), solver=StochasticRungeKutta(150, LogSNR()), noise=PATH, dtype=torch.float64).x


# ---- on a grid


@pytest.mark.parametrize("grid", [Uniform(), LogSNR(), Karras()], ids=repr)
@pytest.mark.parametrize(("eta", "noise"), [(0.0, None), (0.6, None), (1.0, PATH)], ids=["flow", "keyed", "path"])
def test_its_methods_are_ours(mixture: Mixture, grid: Grid, eta: float, noise: NoiseSource | None) -> None:
    """euler is Euler-Maruyama and srk is SRA1, to rounding, on every grid and driven by the same noise."""
    d = mixture.denoiser(VE())
    for method, ours in (("euler", EulerMaruyama), ("srk", StochasticRungeKutta)):
        a, b = (
            sample(d, (3, 2), solver=solver, eta=eta, noise=noise, dtype=torch.float64)
            for solver in (TorchSDE(method, 5, grid), ours(5, grid))
        )
        torch.testing.assert_close(a.x, b.x, rtol=1e-9, atol=1e-9)
        assert torch.equal(a.nfe, b.nfe)


@pytest.mark.parametrize("first", [1, 7, 64])
def test_a_sample_on_a_grid_does_not_depend_on_its_batch(mixture: Mixture, first: int) -> None:
    solver, d = TorchSDE("srk", 10), mixture.denoiser(VP())
    whole = sample(d, (64, 2), solver=solver, dtype=torch.float64).x
    part = sample(d, (first, 2), solver=solver, first=64 - first, dtype=torch.float64).x
    torch.testing.assert_close(part, whole[64 - first :], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("method", "sde_type", "calls"), METHODS)
def test_every_method_converges_along_the_path(
    limits: tuple[Denoiser, Tensor], method: str, sde_type: str, calls: int
) -> None:
    """To one limit, with the calls that the method itself makes: none to look at shapes, none twice."""
    (d, limit), errors = limits, []
    for n in (12, 48):
        r = sample(d, (5, 2), solver=TorchSDE(method, n, LogSNR(), sde_type=sde_type), noise=PATH, dtype=torch.float64)
        errors.append(float((r.x - limit[:5]).square().mean().sqrt()))
        assert r.nfe.tolist() == [calls * n + (method == "reversible_heun")] * 5
    assert errors[1] < 0.45 * errors[0], errors
    assert errors[1] < 0.1, errors


def test_images_and_float32(generator: torch.Generator) -> None:
    root = torch.randn(12, 12, generator=generator) / 4.0
    d = Gaussian(torch.linspace(-1.0, 1.0, 12), root @ root.T).denoiser(VP())
    x = torch.randn(2, 12, generator=generator)
    for ours, theirs in ((EulerMaruyama(9), TorchSDE("euler", 9)), (StochasticRungeKutta(9), TorchSDE("srk", 9))):
        vector, image = sample(d, x_T=x, solver=ours).x, sample(d, x_T=x.reshape(2, 1, 3, 4), solver=theirs).x
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, vector.reshape(2, 1, 3, 4), rtol=1e-4, atol=1e-5)


def test_along_the_flow_it_encodes_too(gaussian: Gaussian) -> None:
    d, x = gaussian.denoiser(VP()), torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs, ours = encode(d, x, solver=TorchSDE("euler", 20)), encode(d, x, solver=Euler(20))
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)
    adaptive = TorchSDE("heun", rtol=1e-3, atol=1e-3)
    back = sample(d, x_T=encode(d, x, solver=adaptive), solver=adaptive, eta=0.0).x
    torch.testing.assert_close(back, x, rtol=0.0, atol=0.02)


def test_gradients_pass_through(gaussian: Gaussian) -> None:
    d = gaussian.denoiser(VP())
    gradients = []
    for solver in (TorchSDE("srk", 5), StochasticRungeKutta(5)):
        x = torch.full((2, 2), 0.3, dtype=torch.float64, requires_grad=True)
        sample(d, x_T=x, solver=solver, differentiable=True).x.sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    assert float(gradients[0].abs().max()) > 0.0


# ---- adaptive


class Rational(Denoiser):
    """Denoised values by additions, products and quotients of single numbers."""

    def __init__(self, process: SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        alpha, var = expand(self.process.alpha(t), x_t), expand(self.process.var(t), x_t)
        y = alpha * x_t / (alpha * alpha + var)
        return y * (1.0 - 0.5 / (1.0 + y * y))


@pytest.mark.parametrize(("method", "sde_type"), [("srk", "ito"), ("euler", "ito"), ("midpoint", "stratonovich")])
def test_adaptive_methods_converge_along_the_path(limits: tuple[Denoiser, Tensor], method: str, sde_type: str) -> None:
    (d, limit), errors = limits, []
    for tolerance in (0.5, 0.015):
        solver = TorchSDE(method, rtol=tolerance, atol=tolerance, sde_type=sde_type)
        x = sample(d, (8, 2), solver=solver, noise=PATH, dtype=torch.float64).x
        errors.append(float((x - limit).square().mean().sqrt()))
    assert errors[1] < 0.6 * errors[0], errors
    assert errors[1] < 0.08, errors


@pytest.mark.parametrize("n", [9, pytest.param(64, marks=pytest.mark.slow)])
def test_per_sample_does_not_depend_on_the_batch(n: int) -> None:
    """Alone, among 7 and among all."""
    d, solver = Rational(VP()), TorchSDE("euler", rtol=1.0, atol=1.0, per_sample=True)

    def run(first: int, n: int) -> Samples:
        return sample(d, (n, 2), solver=solver, first=first, noise=BrownianPath(0, levels=6), dtype=torch.float64)

    whole = run(0, n)
    for first, m in ((n - 7, 7), (n - 1, 1), (0, 1)):
        part = run(first, m)
        torch.testing.assert_close(part.x, whole.x[first : first + m], rtol=1e-10, atol=1e-10)
        assert torch.equal(part.nfe, whole.nfe[first : first + m])


def test_a_whole_batch_is_one_system(gaussian: Gaussian) -> None:
    """What `per_sample` is for: without it one step size serves all, so that batch mates matter."""
    d, solver = gaussian.denoiser(VP()), TorchSDE("srk", rtol=0.1, atol=0.1)
    whole, part = (sample(d, (n, 2), solver=solver, noise=PATH, dtype=torch.float64) for n in (4, 1))
    assert float((whole.x[:1] - part.x).abs().max()) > 1e-6
    assert len(set(whole.nfe.tolist())) == 1
    apart = sample(
        d, (4, 2), solver=TorchSDE("srk", rtol=0.1, atol=0.1, per_sample=True), noise=PATH, dtype=torch.float64
    )
    assert len(set(apart.nfe.tolist())) > 1


def test_keyed_noise_serves_as_the_path_of_its_seed(gaussian: Gaussian) -> None:
    d, solver = gaussian.denoiser(VP()), TorchSDE("srk", rtol=0.5, atol=0.5)
    keyed, path = (
        sample(d, (2, 2), solver=solver, seed=3, noise=n, dtype=torch.float64).x for n in (None, BrownianPath(3))
    )
    assert torch.equal(keyed, path)


# ---- refusals and failures


class Poisoned(Denoiser):
    """Exact for a Gaussian, but not finite for sample 1 below t = 0.5."""

    def __init__(self, gaussian: Gaussian) -> None:
        super().__init__()
        self.process = VP()
        self.inner = gaussian.denoiser(self.process)

    def forward(self, x_t: Tensor, t: Tensor, *, row: Tensor) -> Tensor:
        return torch.where(((row == 1) & (t < 0.5))[:, None], math.nan, self.inner(x_t, t))


@pytest.mark.parametrize(("per_sample", "whose"), [(False, ""), (True, r" \(sample 1\)")])
def test_a_drift_that_is_not_finite_ends_with_the_time(gaussian: Gaussian, per_sample: bool, whose: str) -> None:
    solver = TorchSDE("srk", rtol=0.3, atol=0.3, per_sample=per_sample)
    with pytest.raises(FloatingPointError, match=rf"drift.*t=0\.[1-4]\d*{whose}"):
        sample(Poisoned(gaussian), (3, 2), solver=solver, condition={"row": torch.arange(3)}, dtype=torch.float64)


def test_the_budget_ends_with_an_error(gaussian: Gaussian) -> None:
    d = gaussian.denoiser(VP())
    for per_sample, whose in ((False, ""), (True, r" \(sample 0\)")):
        solver = TorchSDE("srk", rtol=1e-3, atol=1e-3, max_steps=5, per_sample=per_sample)
        message = rf"srk .*t=0\..*{whose} .*max_steps=5 "
        with pytest.raises(FloatingPointError, match=message):
            sample(d, (2, 2), solver=solver, dtype=torch.float64)


class Rough(Denoiser):
    """Answers that have nothing to do with those of a moment later."""

    def __init__(self) -> None:
        super().__init__()
        self.process = VP()

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return 1e12 * torch.sin(1e30 * t).to(x_t) * torch.ones_like(x_t)


def test_a_tolerance_that_cannot_be_met_ends_with_an_error() -> None:
    """An error, and not torchsde's warning about its smallest step."""
    solver = TorchSDE("euler", rtol=1e-6, atol=1e-6, max_steps=200)
    with pytest.raises(FloatingPointError, match=r"euler .*t=[01].*no step"):
        sample(Rough(), (1, 2), solver=solver, dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rk4"}, "euler.*'rk4'"),
        ({"method": "adjoint_reversible_heun"}, "euler.*'adjoint_reversible_heun'"),
        ({"method": "srk", "sde_type": "stratonovich"}, "srk.*'ito', got 'stratonovich'"),
        ({"method": "heun", "sde_type": "ito"}, "heun.*'stratonovich', got 'ito'"),
        ({"sde_type": "Ito"}, "got 'Ito'"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.0}, "steps=2.0"),
        ({"steps": True}, "steps=True"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"max_steps": 0}, "max_steps=0"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"TorchSDE.*{message}"):
        TorchSDE(**settings)  # type: ignore[arg-type]


def test_the_global_generator_is_left_alone(gaussian: Gaussian) -> None:
    before = torch.get_rng_state()
    for solver in (TorchSDE("srk", 3), TorchSDE("log_ode", 3), TorchSDE("srk", rtol=0.5, atol=0.5)):
        sample(gaussian.denoiser(VP()), (2, 2), solver=solver)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_grids_on_one_path_agree_to_the_solvers_order(gaussian: Gaussian) -> None:
    """torchsde's euler and our Euler-Maruyama on different grids meet at order 1."""
    d = gaussian.denoiser(VP())
    gaps = []
    for n in (40, 160):
        a, b = (
            sample(d, (20, 2), solver=s, noise=PATH, dtype=torch.float64).x
            for s in (TorchSDE("euler", n), EulerMaruyama(n + n // 2))
        )
        gaps.append(float((a - b).square().mean().sqrt()))
    assert 0.75 < math.log(gaps[0] / gaps[1]) / math.log(4.0) < 1.25, gaps
