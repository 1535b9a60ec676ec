r"""Gauss-Newton steps and BFGS for the numbers of a solver, with one step of the solver in memory.

With the errors :math:`e_b \in \mathbb R^m` of sample b and their mean square :math:`s_b`, the objective is

.. math:: \frac1B \sum_b \rho(s_b) + \text{prior}, \qquad \rho(s) = c \log(1 + s / c) .

A few samples start near the border between two modes, where the flow multiplies every error; the mean of the squares
would see these samples alone. :math:`\rho` counts the relative error of a sample beyond c, which is thirty times the
median, and for samples at least the square of 1 % of the standard deviation of the data: smaller errors need no help.
Its weights :math:`w_b = \rho'(s_b)` are those of iteratively reweighted least squares.

**Gauss and Newton's matrix by probes.** :math:`J_b^\top v` for one vector v costs one pass backwards through the solver
for all samples, and gives a gradient for each of them apart. With random signs v the mean of :math:`J_b^\top v v^\top
J_b` is :math:`J_b^\top J_b`, so that

.. math:: H = \frac{2}{B m} \sum_b w_b\, (J_b^\top v_b) (J_b^\top v_b)^\top

is estimated from B products at the cost of another gradient; for a single error, as that of a log-density, it is
exact. A pass backwards computes every step again from its stored state, with the graph of this step alone.

**BFGS in the metric of this matrix.** The noise of the probes ends the progress of Gauss-Newton steps long before the
minimum. From there BFGS goes on with exact gradients, in the coordinates in which the mean of the latest estimates of
H, with the prior, is the unit matrix.

Levenberg 1944; Marquardt 1963; Nocedal and Wright, Numerical Optimization, 2006, sections 6.1 and 10.3; Cauchy's loss:
Barron 2019, https://arxiv.org/abs/1701.03077.
"""

from __future__ import annotations

__all__ = ["Descent", "gradients", "run"]

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..dynamics import Semilinear, State
from ..shapes import expand
from ..solvers.designed import advance, predict
from .design import Design, Numbers
from .pilot import OutOfTime
from .reference import PilotFlow

Vector = np.ndarray[Any, np.dtype[np.float64]]
# The corner of the loss over the median of the squares, its least root in standard deviations of the data, and the
# share of it where held-out samples are judged.
ROBUST, SMALLEST, JUDGED = 30.0, 0.01, 0.1
# The probes of an estimate of H, and the weight of the earlier ones in their running mean.
PROBES, EARLIER = 2, 0.7


def run(
    dynamics: Semilinear, begin: State, numbers: Numbers, deadline: float = math.inf
) -> tuple[list[State], list[State]]:
    """The states of all steps and the predictions, without gradients.

    Raises:
        OutOfTime: after the deadline.
    """
    change, weights, _, factors, density = (entry.tolist() for entry in numbers)
    states, predictions = [begin], list[State]()
    with torch.no_grad():
        for k, t in enumerate(numbers.inputs.unbind()):
            if time.monotonic() > deadline:
                raise OutOfTime
            predictions.append(predict(dynamics, states[-1], t, factors[k]))
            row = weights[k][: k + 1]
            states.append(advance(dynamics, states[-1], predictions, change[k], row, density[k]))
    return states, predictions


def gradients(
    flow: PilotFlow,
    numbers: Numbers,
    states: list[State],
    predictions: list[State],
    directions: list[State],
    deadline: float,
) -> Tensor:
    """The gradients of the products of final states with some directions, by the numbers, for every sample.

    Returns:
        Float64 with shape (M, B, K), K being the numbers of the steps in one row.
    """
    b, n = len(flow), len(predictions)
    adjoints = [list(direction) for direction in directions]
    later = [[[torch.zeros_like(entry) for entry in p] for p in predictions] for _ in directions]
    parts = [[torch.zeros(b, *e.shape, dtype=torch.float64, device="cpu") for e in numbers] for _ in directions]
    for k in reversed(range(n)):
        if time.monotonic() > deadline:
            raise OutOfTime
        with torch.enable_grad():
            state = _leaves(states[k])
            change, row, t, factor, density = (
                (v[k, : k + 1] if v.ndim > 1 else v[k]).expand(b, *v[k, : k + 1].shape if v.ndim > 1 else ()).clone()
                for v in numbers
            )
            for value in (change, row, t, factor, density):
                value.requires_grad_()
            older = [_leaves(p) for p in predictions[:k]]
            newest = predict(flow.dynamics, state, t, expand(factor, state[0]))
            # A step is linear in its predictions: the graph of the call is left out of it, and follows by its own.
            last = _leaves(newest)
            moved = _advance(flow.dynamics, state, [*older, last], change, row, density)
        for i, adjoint in enumerate(adjoints):
            wanted = [*state, *last, *(entry for p in older for entry in p), change, row, density]
            slopes = _grad(moved, wanted, adjoint, retain=i < len(adjoints) - 1)
            size = len(state)
            through, received, slopes = slopes[:size], slopes[size : 2 * size], slopes[2 * size :]
            for p in range(k):
                for entry in range(size):
                    later[i][p][entry] += slopes[p * size + entry]
            *_, d_change, d_row, d_density = slopes
            received = [a + c for a, c in zip(received, later[i][k])]
            more = _grad(newest, [*state, t, factor], received, retain=i < len(adjoints) - 1)
            adjoints[i] = [a + c for a, c in zip(through, more[:size])]
            for kind, value in zip((0, 2, 3, 4), (d_change, more[size], more[size + 1], d_density)):
                parts[i][kind][:, k] = value.double().cpu()
            parts[i][1][:, k, : k + 1] = d_row.double().cpu()
    return torch.stack([torch.cat([entry.flatten(1) for entry in part], 1) for part in parts])


def _leaves(state: State) -> State:
    return tuple(entry.detach().requires_grad_() for entry in state)


def _grad(outputs: State, inputs: list[Tensor], adjoint: list[Tensor], retain: bool) -> list[Tensor]:
    pairs = [(out, a) for out, a in zip(outputs, adjoint) if out.requires_grad]
    outs, grads_out = zip(*pairs)
    grads = torch.autograd.grad(outs, inputs, grads_out, retain_graph=retain, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads)]


def _advance(
    dynamics: Semilinear, state: State, predictions: list[State], change: Tensor, row: Tensor, density: Tensor
) -> State:
    """:func:`advance` with numbers of shape (B,), one for each sample."""
    moved = dynamics.propagate(state, change)
    still = [dynamics.rate(p, 0.0) for p in predictions]
    rate = dynamics.rate(predictions[-1], density)
    terms = [[expand(w, entry) * entry for entry in p] for w, p in zip(row.unbind(1), still)]
    alone = [a - c for a, c in zip(rate, still[-1])]
    return tuple(m + a + sum(entries) for m, a, *entries in zip(moved, alone, *terms))


@dataclass
class Descent:
    """The descent of the numbers of a solver on a pilot.

    Args:
        design: the map from parameters to numbers.
        flow: the solved pilot.
        deadline: when to stop, by `time.monotonic`; :class:`OutOfTime` is raised then.
        generator: for the probes.
        prior: the strengths of the prior on the parameters, relative to the objective; its centre is 0.
    """

    design: Design
    flow: PilotFlow
    deadline: float
    generator: torch.Generator
    prior: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64, device="cpu"))
    damping: float = 1e-2

    def begin(self, parameters: Tensor) -> None:
        """Starts from some parameters; their errors set the corner c of the loss."""
        self.curvature: Tensor | None = None
        self._take(parameters)
        self.corner, self.damping = ROBUST * self.squares.median().item(), 1e-2
        if self.corner and not self.design.density:
            self.corner = max(self.corner, (SMALLEST * self.design.data_std) ** 2)

    def held_out(self, flow: PilotFlow) -> float:
        """The objective of the present parameters on another pilot, with a tenth of the corner: a few samples near a
        border shall not decide."""
        end = run(flow.dynamics, flow.begin, self.numbers, self.deadline)[0][-1]
        return self._loss(flow.errors(end).square().mean(1), JUDGED * self.corner)

    def step(self, free: Tensor) -> None:
        """A step of Levenberg and Marquardt over the parameters where the mask `free` is true, if one helps."""
        slope, h = self._slope(free, PROBES)
        if self.curvature is not None:
            h = EARLIER * self.curvature + (1.0 - EARLIER) * h
        if not bool(slope.isfinite().all() and h.isfinite().all()):
            return
        self.curvature = h
        strengths = self._strengths(free)
        before, parameters = self._objective(free, strengths), self.parameters
        slope = slope + 2.0 * strengths * parameters[free]
        for _ in range(6):
            diagonal = self.damping * (h.diagonal() + 1e-12 * h.diagonal().max() + 1e-300) + 2.0 * strengths
            move = -torch.linalg.lstsq(h + diagonal.diag(), slope[:, None]).solution[:, 0]
            after = self._try(parameters, free, move, strengths)
            if after < before:
                expected = -float(slope @ move + 0.5 * move @ (h @ move) + (strengths * move.square()).sum())
                ratio = (before - after) / expected
                self.damping = max(self.damping * (0.3 if ratio > 0.75 else 1.0 if ratio > 0.25 else 3.0), 1e-9)
                return
            self.damping *= 5.0
        self._take(parameters)

    def refine(self, free: Tensor, iterations: int, progress: Callable[[], object]) -> None:
        """Quasi-Newton iterations from the present parameters in the metric of the last steps.

        Args:
            free: a mask of the parameters that change.
            iterations: at most as many; it ends when the last five gained less than 0.5 %.
            progress: called after each of them.
        """
        from scipy.optimize import minimize

        strengths, h = self._strengths(free), self.curvature
        origin, scale = self.parameters, self._objective(free, strengths)
        if h is None or not scale:
            return
        metric = h + (2.0 * strengths + 1e-2 * h.diagonal() + 1e-10 * h.diagonal().max()).diag()
        factor, failed = torch.linalg.cholesky_ex(metric / scale)
        if failed.item():
            return
        values, latest = [1.0], np.zeros(len(h))

        def place(z: Vector) -> float:
            nonlocal latest
            latest = z.copy()
            move = torch.linalg.solve_triangular(factor.T, torch.from_numpy(z)[:, None], upper=True)
            return self._try(origin, free, move[:, 0], strengths) / scale

        def objective(z: Vector) -> tuple[float, Vector]:
            value = place(z)
            if not math.isfinite(value):
                return 1e3, np.zeros_like(z)  # above any value, so that the line search takes a shorter step
            slope = self._slope(free, 0)[0] + 2.0 * strengths * self.parameters[free]
            gradient = torch.linalg.solve_triangular(factor, slope[:, None] / scale, upper=False)
            return value, gradient[:, 0].numpy()

        def callback(intermediate_result: Any) -> None:
            if not np.array_equal(latest, intermediate_result.x):
                place(intermediate_result.x)
            progress()
            values.append(intermediate_result.fun)
            if len(values) > 5 and values[-1] > (1.0 - 5e-3) * values[-6]:
                raise StopIteration

        options = {"maxiter": iterations, "gtol": 0.0}
        minimize(objective, latest, method="BFGS", jac=True, callback=callback, options=options)

    def _slope(self, free: Tensor, probes: int) -> tuple[Tensor, Tensor]:
        """The gradient of the loss, and the mean of the estimates of H by some probes."""
        flow = self.flow
        with torch.enable_grad():
            end = _leaves(self.states[-1])
            errors = flow.errors(end)
            products = [(errors * errors.detach()).sum()]
            for _ in range(probes):
                v = torch.randint(2, errors.shape, generator=self.generator, dtype=torch.float64, device="cpu")
                products.append((errors * (2.0 * v - 1.0).to(errors)).sum())
            directions = [torch.autograd.grad(product, end, retain_graph=True) for product in products]
        self.numbers, jacobian = self.design.jacobian(self.parameters)
        each = gradients(flow, self.numbers, self.states, self.predictions, directions, self.deadline)
        each = each @ jacobian[:, free]
        w, scale = (1.0 / (1.0 + self.squares / self.corner)).cpu()[:, None], 2.0 / errors.numel()
        h = torch.zeros(each.shape[-1], each.shape[-1], dtype=torch.float64, device="cpu")
        for probe in each[1:]:
            h += scale / probes * (w * probe).T @ probe
        return scale * (w * each[0]).sum(0), h

    def _strengths(self, free: Tensor) -> Tensor:
        """The prior's strengths for the free parameters, in units of the objective."""
        return self._loss(self.squares, self.corner) * self.prior.expand(len(free))[free]

    def _objective(self, free: Tensor, strengths: Tensor) -> float:
        """The loss of the present parameters with the prior."""
        return self._loss(self.squares, self.corner) + float((strengths * self.parameters[free].square()).sum())

    def _try(self, origin: Tensor, free: Tensor, move: Tensor, strengths: Tensor) -> float:
        """Moves the free parameters away from an origin; returns the objective there."""
        trial = origin.clone()
        trial[free] += move
        try:
            self._take(trial)
        except ValueError:  # two times that are equal
            return math.inf
        return self._objective(free, strengths)

    def _take(self, parameters: Tensor) -> None:
        """Sets the parameters, and solves the pilot with them."""
        numbers = self.design.numbers(parameters)[2]
        self.states, self.predictions = run(self.flow.dynamics, self.flow.begin, numbers, self.deadline)
        self.parameters, self.numbers = parameters, numbers
        self.squares = self.flow.errors(self.states[-1]).square().mean(1)

    @staticmethod
    def _loss(squares: Tensor, corner: float) -> float:
        """The mean of rho; infinite where a sample is not finite."""
        value = (corner * torch.log1p(squares / corner)).mean().item() if corner else 0.0
        return value if math.isfinite(value) else math.inf
