"""Orders of convergence on exact flows, for x and for the log-density, and the order conditions of the tableaus."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from sde.dynamics import Dynamics, Reverse, State, WithLogDensity
from sde.exact import Gaussian, Mixture, Target
from sde.grids import Grid, Karras, LogSNR, Quadratic
from sde.noise import Noise
from sde.processes import SDE, VE, VP, ChainSDE, DiscreteChain, SubVP
from sde.solvers import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    Euler,
    EulerMaruyama,
    Heun,
    ReverseDiffusion,
    ScipyODE,
    Solver,
    Tableau,
)
from sde.trace import ExactTrace

MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)
B = 6

Method = Callable[[int], Solver]
ORDERS: list[tuple[str, Method, int]] = [
    ("Euler", Euler, 1),
    ("Heun", Heun, 2),
    ("EulerMaruyama", EulerMaruyama, 1),
    ("ReverseDiffusion", ReverseDiffusion, 1),
]
CARRY = ORDERS[:2]


def names(table: list[tuple[str, Method, int]]) -> list[str]:
    return [f"{name}-{order}" for name, _, order in table]


def marginal(process: SDE, t: float) -> tuple[Tensor, Tensor]:
    at = torch.tensor(t, dtype=torch.float64)
    return process.alpha(at) * MEAN, process.alpha(at) ** 2 * COV + process.var(at) * torch.eye(2, dtype=torch.float64)


def gaussian_flow(process: SDE, x: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """The closed form: in the eigenbasis of the covariance each coordinate is scaled by the ratio of the stds."""
    (before, cov), (after, wider) = marginal(process, start), marginal(process, stop)
    basis = torch.linalg.eigh(COV)[1]
    ratio = ((basis.T @ wider @ basis).diagonal() / (basis.T @ cov @ basis).diagonal()).sqrt()
    # log p_s(x_s) - log p_t(x_t) of a linear map is minus the log of its determinant.
    return after + ((x - before) @ basis * ratio) @ basis.T, -ratio.log().sum().expand(len(x))


def begin(target: Target, process: SDE, t: float) -> Tensor:
    return target.at(process, t).sample(B, generator=torch.Generator().manual_seed(3))


def carried(flow: Reverse, x: Tensor) -> tuple[Dynamics, State]:
    dynamics = WithLogDensity(flow, ExactTrace().bind(Noise(0), torch.arange(len(x)), x))
    return dynamics, (x, torch.zeros(len(x), 1, dtype=x.dtype))


def slopes(error: Callable[[int], float], steps: tuple[int, ...], order: int) -> None:
    """The error falls with the steps at the order claimed: the last doubling within 0.15 of it."""
    errors = [error(n) for n in steps]
    measured = [math.log(a / b) / math.log(m / n) for a, b, n, m in zip(errors, errors[1:], steps, steps[1:])]
    assert abs(measured[-1] - order) < 0.15, (errors, measured)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize(("name", "method", "order"), ORDERS, ids=names(ORDERS))
@pytest.mark.parametrize("direction", ["down", "up"])
def test_order_on_a_gaussian(process: SDE, name: str, method: Method, order: int, direction: str) -> None:
    start, stop = process.t_max, process.t_min
    if direction == "up":
        start, stop = stop, start
    target = Gaussian(MEAN, COV)
    x = begin(target, process, start)
    truth, _ = gaussian_flow(process, x, start, stop)
    flow = Reverse(target.denoiser(process), 0.0)

    def error(n: int) -> float:
        with torch.no_grad():
            return float((method(n)(flow, (x,), None, start, stop)[0] - truth).norm())

    slopes(error, (100, 200) if order == 1 else (50, 100), order)


@pytest.mark.parametrize(("name", "method", "order"), CARRY, ids=names(CARRY))
@pytest.mark.parametrize("process", [VP(), VE()], ids=["VP", "VE"])
def test_order_of_the_log_density_on_a_gaussian(process: SDE, name: str, method: Method, order: int) -> None:
    target = Gaussian(MEAN, COV)
    x = begin(target, process, process.t_min)
    truth, change = gaussian_flow(process, x, process.t_min, process.t_max)
    dynamics, state = carried(Reverse(target.denoiser(process), 0.0), x)

    @cache
    def run(n: int) -> State:
        with torch.no_grad():
            return method(n)(dynamics, state, None, process.t_min, process.t_max)

    steps = (300, 600) if order == 1 else (50, 100)
    slopes(lambda n: float((run(n)[0] - truth).norm()), steps, order)
    slopes(lambda n: float((run(n)[1][:, 0] - change).norm()), steps, order)


def reference(mixture: Mixture, process: SDE, x: Tensor) -> State:
    """The flow of a mixture from `t_min` to `t_max` by SciPy's method of order 8 at a tolerance of 1e-10.

    The flow between two noise levels is the same for all processes with the same relation of alpha to sigma, so that
    the chain's, whose f has kinks at which a method of high order crawls, is that of VP.
    """
    smooth, ends = process, torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    if isinstance(process, ChainSDE):
        smooth = VP(t_min=0.0, t_max=2.0)
        ends = smooth.time(process.log_snr(ends))
    dynamics, state = carried(Reverse(mixture.denoiser(smooth), 0.0), x)
    with torch.no_grad():
        return ScipyODE("DOP853", rtol=1e-10, atol=1e-10)(dynamics, state, None, *ends.tolist())


@pytest.mark.parametrize(
    ("process", "method", "order"),
    [(DiscreteChain.linear(1000).sde(), Euler, 1), (VE(), Heun, 2)],
    ids=["Euler-chain", "Heun-VE"],
)
def test_order_on_a_mixture(process: SDE, mixture: Mixture, method: Method, order: int) -> None:
    x = begin(mixture, process, process.t_min)
    dynamics, state = carried(Reverse(mixture.denoiser(process), 0.0), x)
    truth = reference(mixture, process, x)
    exact = mixture.log_prob(truth[0], process, process.t_max) - mixture.log_prob(x, process, process.t_min)
    assert float((truth[1][:, 0] - exact).abs().max()) < 1e-8

    @cache
    def run(n: int) -> State:
        with torch.no_grad():
            return method(n)(dynamics, state, None, process.t_min, process.t_max)

    steps = (400, 800) if order == 1 else (200, 400)
    slopes(lambda n: float((run(n)[0] - truth[0]).norm()), steps, order)
    slopes(lambda n: float((run(n)[1] - truth[1]).norm()), steps, order)


@pytest.mark.parametrize("process", [VP(), SubVP(), VE()], ids=repr)
@pytest.mark.parametrize("grid", [LogSNR(), Karras(), Quadratic()], ids=repr)
def test_order_does_not_depend_on_the_grid(process: SDE, grid: Grid) -> None:
    """For processes with a smooth f; the chain's has kinks, which these grids meet in the middle of steps."""
    target = Gaussian(MEAN, COV)
    x = begin(target, process, process.t_max)
    truth, _ = gaussian_flow(process, x, process.t_max, process.t_min)
    flow = Reverse(target.denoiser(process), 0.0)

    def error(n: int) -> float:
        with torch.no_grad():
            return float((Heun(n, grid)(flow, (x,))[0] - truth).norm())

    slopes(error, (100, 200), 2)


# Trees are tuples of trees; () is the single node.
Tree = tuple


def trees(nodes: int) -> set[Tree]:
    """The rooted trees with that many nodes: 1, 1, 2, 4, 9, 20, ... of them."""
    if nodes == 1:
        return {()}
    return {tuple(sorted((*tree, branch))) for n in range(1, nodes) for tree in trees(n) for branch in trees(nodes - n)}


def size(tree: Tree) -> int:
    return 1 + sum(size(branch) for branch in tree)


def density(tree: Tree) -> int:
    """gamma: the product over the nodes of the sizes of the trees that hang from them."""
    return size(tree) * math.prod(density(branch) for branch in tree)


def residuals(tableau: Tableau, b: Tensor, order: int) -> list[float]:
    """What the conditions b . Phi(tree) = 1 / gamma(tree) of one order leave (Hairer et al. 1993, theorem II.2.13)."""
    stages = len(tableau.a) + 1
    a = torch.zeros(stages, stages, dtype=torch.float64)
    for i, row in enumerate(tableau.a, 1):
        a[i, : len(row)] = torch.tensor(row, dtype=torch.float64)

    def weight(tree: Tree) -> Tensor:
        out = torch.ones(stages, dtype=torch.float64)
        for branch in tree:
            out = out * (a @ weight(branch))
        return out

    return [abs(float(b @ weight(tree)) - 1.0 / density(tree)) for tree in trees(order)]


def test_the_trees_are_all_there() -> None:
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("tableau", [BOGACKI_SHAMPINE, DORMAND_PRINCE], ids=lambda t: t.name)
def test_order_conditions(tableau: Tableau) -> None:
    """The solution has the order stated and no more, the embedded one has one less and no more; the error sums to 0."""
    b = torch.tensor([*tableau.a[-1], 0.0], dtype=torch.float64)
    embedded = b - torch.tensor(tableau.e, dtype=torch.float64)
    assert len(tableau.e) == len(tableau.a) + 1
    assert [len(row) for row in tableau.a] == list(range(1, len(tableau.a) + 1))
    assert abs(sum(tableau.e)) < 1e-15
    for order in range(1, tableau.order + 1):
        assert max(residuals(tableau, b, order)) < 1e-14
    assert max(residuals(tableau, b, tableau.order + 1)) > 1e-4
    for order in range(1, tableau.order):
        assert max(residuals(tableau, embedded, order)) < 1e-14
    assert max(residuals(tableau, embedded, tableau.order)) > 1e-4


@pytest.mark.parametrize(
    ("tableau", "nodes"),
    [(BOGACKI_SHAMPINE, (0, 1 / 2, 3 / 4, 1)), (DORMAND_PRINCE, (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1))],
    ids=lambda value: value.name if isinstance(value, Tableau) else "",
)
def test_nodes_are_the_published_ones(tableau: Tableau, nodes: tuple[float, ...]) -> None:
    torch.testing.assert_close(torch.tensor(tableau.c).double(), torch.tensor(nodes).double(), rtol=0.0, atol=1e-7)
    assert max(abs(a - b) for a, b in zip(tableau.c, nodes)) < 1e-15
