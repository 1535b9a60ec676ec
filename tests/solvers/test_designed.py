"""Designed solvers: the plain methods they can be, what they solve exactly, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sde.denoisers import Denoiser
from sde.dynamics import Reverse
from sde.exact import Mixture
from sde.instantiate import build
from sde.likelihood import log_prob
from sde.likelihood.flow import tolerance
from sde.processes import SDE, VE, VP, RectifiedFlow, SubVP
from sde.sampling import encode, sample
from sde.solvers import DDIM, DEIS, Arcsinh, Designed, DPMSolverPP, Euler, FixedStep, Heun, UniPC
from sde.trace import ExactTrace

ROWS = [[1.0], [-0.5, 1.5], [0.25, -1.0, 1.75]]


class Constant(Denoiser):
    def __init__(self, process: SDE) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return 0.0 * x_t + 0.7


@pytest.mark.parametrize("process", [VP(), VE(), SubVP(), RectifiedFlow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("method", [UniPC(6, 3, variable=Arcsinh()), DEIS(6), DPMSolverPP(6, 2), DDIM(6)], ids=repr)
def test_it_takes_the_path_of_a_plain_method(mixture: Mixture, process: SDE, method: FixedStep) -> None:
    """Any linear exponential method, in either coordinates, with or without a corrector."""
    d, generator = mixture.denoiser(process), torch.Generator().manual_seed(0)
    x = mixture.at(process, process.t_max).sample(4, generator=generator)
    ends = [process.t_max, process.t_min]
    numbers = Designed.of(method, process, *ends)
    torch.testing.assert_close(sample(d, x_T=x, solver=numbers).x, sample(d, x_T=x, solver=method).x)
    y = mixture.sample(4, generator=generator)
    back = Designed.of(method, process, *reversed(ends))
    torch.testing.assert_close(encode(d, y, solver=back), encode(d, y, solver=method), rtol=1e-4, atol=1e-4)


def test_the_log_density_of_a_method_in_the_data(mixture: Mixture) -> None:
    process, method = VP(), UniPC(12)
    d, x = mixture.denoiser(process), mixture.sample(4, generator=torch.Generator().manual_seed(0))
    numbers = Designed.of(method, process, process.t_min, process.t_max)
    results = [log_prob(d, x, solver=s, trace=ExactTrace()).nats for s in (numbers, method)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("density", [None, (5.0, -2.0, 3.0)])
@pytest.mark.parametrize(("process", "ends"), [(VP(), (1.0, 1e-3)), (VE(), (1e-3, 1.0))], ids=["VP", "VE"])
def test_a_constant_denoiser_is_solved_exactly(
    process: SDE, ends: tuple[float, float], density: tuple[float, ...] | None
) -> None:
    """x and its log-density, with any coefficients, times and quadrature: x = alpha m + sigma z with fixed m and z."""
    times = torch.linspace(*ends, 4, dtype=torch.float64)
    solver = Designed(times.tolist(), ROWS, conditioning=[0.3, 0.9, 0.5], scales=[0.5, 1.0, 2.0], density=density)
    d, z = Constant(process), torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = (process.alpha(t) * 0.7 + process.sigma(t) * z for t in times[[0, -1]])
    (end,) = solver(Reverse(d, 0.0), (x,), None, *ends)
    torch.testing.assert_close(end, y, rtol=1e-12, atol=1e-12)
    if ends[0] < ends[1]:
        process = replace(process, t_min=ends[0], t_max=ends[1])  # type: ignore[type-var]
        r = log_prob(Constant(process), x, solver=solver)
        sigma = process.sigma(times)
        torch.testing.assert_close(r.divergence, torch.full((5,), 2.0 * float((sigma[-1] / sigma[0]).log())).double())


def test_gradients_flow_through_it(mixture: Mixture) -> None:
    """In x, against central differences."""
    process = VP()
    solver, d = Designed.of(UniPC(4), process, process.t_max, process.t_min), mixture.denoiser(process)
    x = torch.tensor([[0.3, -0.8]], dtype=torch.float64, requires_grad=True)
    run = lambda y: sample(d, x_T=y, solver=solver, differentiable=True).x  # noqa: E731
    assert torch.autograd.gradcheck(run, (x,))


def test_it_is_data(mixture: Mixture) -> None:
    """It is equal to what its `repr` and its config describe, and says what it is for."""
    process = VP()
    solver = Designed.of(UniPC(3), process, process.t_max, process.t_min, "samples of a model")
    solver = replace(solver, conditioning=[0.9, 0.5, 0.1], scales=[1.0, 1.0, 0.9], density=[0.1, 0.2, 0.3])
    assert eval(repr(solver)) == solver
    assert hash(solver) == hash(replace(solver))
    names = ("times", "coefficients", "conditioning", "scales", "density", "process", "origin")
    assert build({"_target_": "sde.solvers.Designed", **{name: getattr(solver, name) for name in names}}) == solver
    assert "3 calls" in str(solver)
    assert "samples of a model" in str(solver)


def test_what_it_refuses() -> None:
    times = (1.0, 0.5, 0.2, 0.1)
    for wrong, message in (
        ({"times": times[:3]}, "one more than there are rows"),
        ({"times": (1.0, 0.5, 0.5, 0.1)}, "monotonic"),
        ({"times": (1.0, 0.5, math.nan, 0.1)}, "monotonic"),
        ({"coefficients": [[1.0], [0.5, 0.6], [0.0, 0.0, 1.0]]}, r"row 1.*1\.1"),
        ({"coefficients": [[1.0], [1.0], [0.0, 0.0, 1.0]]}, "expected 2 coefficients"),
        ({"coefficients": [[math.nan], [0.0, 1.0], [0.0, 0.0, 1.0]]}, "row 0.*nan"),
        ({"scales": [1.0, 1.0]}, "expected 3 finite numbers scales"),
        ({"conditioning": [1.0, math.inf, 0.5]}, "conditioning"),
    ):
        with pytest.raises(ValueError, match=message):
            Designed(**{"times": times, "coefficients": ROWS, **wrong})  # type: ignore[arg-type]


def test_it_belongs_to_a_process_and_a_direction() -> None:
    solver = Designed.of(UniPC(3), VP(), 1.0, 1e-5)
    with pytest.raises(ValueError, match=r"designed for VP.*VE\(.*tune_solver"):
        solver.bind(Reverse(Constant(VE()), 0.0))
    with pytest.raises(ValueError, match=r"from t=1\.0 to t=1e-05.*tune_solver\(denoiser, data=x"):
        solver.bind(Reverse(Constant(VP()), 0.0), 1e-5, 1.0)
    with pytest.raises(ValueError, match=r"this run is from t=0\.5"):
        solver.bind(Reverse(Constant(VP()), 0.0), 0.5)
    with pytest.raises(ValueError, match="fixed steps"):
        tolerance(solver, 64, 1e-3)


@pytest.mark.parametrize("method", [Euler(4), Heun(4)], ids=repr)
def test_methods_that_it_cannot_be(method: FixedStep) -> None:
    with pytest.raises(ValueError, match="expected a method"):
        Designed.of(method, VP(), 1.0, 1e-5)
