r"""Adaptive Runge-Kutta methods that step every sample on its own.

The next step is the one at which the error would just be accepted if it stayed in proportion to :math:`h^p`, with a
margin, and never longer than a step that was rejected just before. On a mixture of Gaussians in 64 dimensions (VP,
Dormand and Prince's 5(4), calls for an error of 1e-3 nats in a log-density, and for one of 1e-4 in samples) that takes
100 and 90 calls; without the rule about rejected steps it takes 102 and 101. The PI controller of Gustafsson (1991,
https://doi.org/10.1145/210232.210242) with exponents 0.85 / p and 0.2 / p takes 109 and 89, with 0.7 / p and 0.4 / p
144 and 79: it saves calls where steps shrink and spends them where they grow, as they do all along a likelihood.
Another variable than t does not help either: 101 and 84 calls with :math:`\sqrt t`, 129 and 75 with
:math:`t^{1/4}`, 158 and 98 with the log-SNR.

The first step has no error behind it that could tell its size. Near `t_min` the score of dequantised data changes where
the noise reaches the distance of a value from the edge of its level, and a slope that is nearly 0 before that makes a
step which no stage of the method sees anything of. So the first step away from the data raises the noise level by a
bounded factor; from the noise, where all is smooth, it is that of Hairer, Norsett and Wanner.

Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, 1993, section II.4.
"""

from __future__ import annotations

__all__ = ["RungeKutta"]

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..shapes import expand
from .adaptive import Adaptive, Attempt, Memory
from .base import linear_combination
from .tableaus import DORMAND_PRINCE, Tableau

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
# Where values stop being finite within this share of t, no shorter step is tried.
_MIN_STEP = 1e-6


@dataclass(frozen=True)
class RungeKutta(Adaptive):
    r"""An embedded Runge-Kutta pair with error control for every sample.

    A step is accepted when, for every entry of the state, the root mean square over the sample of
    error / (atol + rtol max(\|x\|, \|x'\|)) is at most 1. An entry with a tolerance of its own, such as the
    log-density of a likelihood, is held to that instead.

    Args:
        tableau: the pair; Dormand and Prince's by default.
        rtol: the relative tolerance of a step.
        atol: the absolute tolerance of a step.
        max_steps: the largest number of steps, rejected ones included, that any sample may take.
        first_ratio: a first step away from the data raises the noise level :math:`\sigma_t/\alpha_t` by at most this
            factor; with None the starting step of Hairer, Norsett and Wanner is taken as it is, as in version 0.1.0.
        on_failure: what happens to a sample that meets a value that is not finite, or has taken `max_steps`: "raise"
            ends the run with an error that names the sample and its time; "mark" fills its state with NaN, its
            log-density included, leaves its time where it stopped, and goes on with the others.

    Raises:
        FloatingPointError: while it runs, if a sample fails and failures are not marked.
    """

    tableau: Tableau = DORMAND_PRINCE
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000
    on_failure: Literal["raise", "mark"] = "raise"
    first_ratio: float | None = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_ratio is not None and not self.first_ratio > 1.0:
            raise ValueError(f"RungeKutta needs a first_ratio above 1, or None, got first_ratio={self.first_ratio}")

    @property
    def name(self) -> str:
        return self.tableau.name

    def finer(self, calls: int) -> RungeKutta:
        steps = min(self.max_steps, max(1, calls // len(self.tableau.a)))
        return replace(self, rtol=self.rtol / 10.0, atol=self.atol / 10.0, max_steps=steps, on_failure="mark")

    def begin(self, dynamics: Dynamics, t: Tensor, x: State, slope: State, span: float) -> tuple[Tensor, State]:
        """The starting step of Hairer, Norsett and Wanner, section II.4, for each sample, within `first_ratio`."""
        size, speed = self._norm(dynamics, x, x, x).amax(0), self._norm(dynamics, slope, x, x).amax(0)
        guess = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).clamp(max=abs(span))
        direction = 1.0 if span > 0.0 else -1.0
        probe = _advance(x, direction * guess, (1.0,), [slope])
        change = dynamics.drift(probe, t + direction * guess)
        bend = self._norm(dynamics, tuple(b - a for a, b in zip(slope, change)), x, x).amax(0) / guess
        steepest = torch.maximum(speed, bend)
        power = 1.0 / self.tableau.order
        h = torch.where(steepest <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** power)
        # A probe without a finite slope only says that the step should be short.
        h = torch.where(h > 0.0, torch.minimum(100.0 * guess, h), guess)
        if direction > 0.0 and self.first_ratio is not None:
            later = dynamics.process.time(dynamics.process.log_snr(t) - 2.0 * math.log(self.first_ratio)) - t
            # Where the noise level does not tell a step, it does not bound it.
            h = torch.where(later > 0.0, torch.minimum(h, later.detach()), h)
        return direction * h.clamp(max=abs(span)), ()

    def attempt(self, m: Memory, x: State, t: Tensor, h: Tensor, end: Tensor) -> Attempt:
        tableau, slopes, y = self.tableau, [m.slope], x
        for c, row in zip(tableau.c[1:], tableau.a):
            y = _advance(x, h, row, slopes)
            # Where the error does not need the slope at the end, it waits until the step is accepted.
            if len(slopes) < len(tableau.a) or tableau.e[-1]:
                slopes.append(m.dynamics.drift(y, end if c == 1.0 else t + c * h))
        ratio = h.abs() * self._error(m.dynamics, slopes, x, y)
        return y, ratio, slopes[-1] if tableau.e[-1] else None, ()

    def next_step(self, m: Memory, t: Tensor, h: Tensor, ratio: Tensor, span: float) -> Tensor:
        factor = (_SAFETY * ratio ** (-1.0 / self.tableau.order)).clamp(_SHRINK, _GROW)
        # A step after a rejected one is no longer than that one: if it grew at once, it would be rejected too.
        factor = torch.where(m.rejected, factor.clamp(max=1.0), factor).nan_to_num(nan=_SHRINK)
        min_step = _MIN_STEP * t.abs().clamp(min=_MIN_STEP * abs(span))
        return torch.where(ratio.isfinite() | (h.abs() > min_step), h * factor, 0.0)

    def _error(self, dynamics: Dynamics, slopes: list[State], x: State, y: State) -> Tensor:
        """The largest over the entries of the error per unit step, in tolerances, float64 (B,)."""
        error = self._norm(dynamics, _weighted(self.tableau.e, slopes), x, y)
        if self.tableau.guard is not None:
            guard = self._norm(dynamics, _weighted(self.tableau.guard, slopes), x, y)
            error = torch.where(error == 0.0, error, error * (error / torch.hypot(error, 0.1 * guard)))
        return error.amax(0)

    def _norm(self, dynamics: Dynamics, value: State, x: State, y: State) -> Tensor:
        """For each entry the root mean square of `value` over its tolerance, float64 (entries, B)."""
        # Gradients follow the steps that were taken, not the choice of their sizes.
        norms = []
        entries = ([e.detach() for e in state] for state in (value, x, y))
        for v, a, b, tolerance in zip(*entries, dynamics.tolerances):
            scale = self.atol + self.rtol * torch.maximum(a.abs(), b.abs()) if tolerance is None else tolerance
            norms.append((v / scale).double().flatten(1).square().mean(1).sqrt())
        return torch.stack(norms)


def _weighted(weights: tuple[float, ...], slopes: list[State]) -> State:
    """sum_i w_i k_i, entry by entry, without the terms whose weight is 0."""
    return linear_combination(*((w, slope) for w, slope in zip(weights, slopes) if w))


def _advance(x: State, h: Tensor, weights: tuple[float, ...], slopes: list[State]) -> State:
    return tuple(a + expand(h, a) * b for a, b in zip(x, _weighted(weights, slopes)))
