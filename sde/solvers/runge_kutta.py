r"""Adaptive Runge-Kutta methods that step every sample on its own.

The step size of a sample follows from its own error alone, so that its result does not depend on its batch, and a
sample that has arrived leaves the batch: no network call is spent on it while others go on.

The next step is the one at which the error would just be accepted if it stayed in proportion to :math:`h^p`, with a
margin, and never longer than a step that was rejected just before. On a mixture of Gaussians in 64 dimensions (VP,
Dormand and Prince's 5(4), calls for an error of 1e-3 nats in a log-density, and for one of 1e-4 in samples) that takes
100 and 90 calls; without the rule about rejected steps it takes 102 and 101. The PI controller of Gustafsson (1991,
https://doi.org/10.1145/210232.210242) with exponents 0.85 / p and 0.2 / p takes 109 and 89, with 0.7 / p and 0.4 / p
144 and 79: what it saves where steps shrink, it spends where they grow, which is all the way of a likelihood. Another
clock than t is no gain either: 101 and 84 calls with :math:`\sqrt t`, 129 and 75 with :math:`t^{1/4}`, 158 and 98 with
the log-SNR.

Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, 1993, section II.4.
"""

from __future__ import annotations

__all__ = ["RungeKutta"]

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import StepNoise
from ..shapes import expand
from .base import Progress, Run, Solver, combine, rows
from .euler import no_noise
from .tableaus import DORMAND_PRINCE, Tableau

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
# Where values stop being finite within this share of t, no shorter step is tried.
_WALL = 1e-6


@dataclass(frozen=True)
class RungeKutta(Solver):
    r"""An embedded Runge-Kutta pair with per-sample error control.

    A step is accepted when, for every entry of the state, the root mean square over the sample of
    error / (atol + rtol max(\|x\|, \|x'\|)) is at most 1. An entry with a tolerance of its own, such as the
    log-density of a likelihood, is held to that instead.

    Args:
        tableau: the pair; Dormand and Prince's by default.
        rtol: the relative tolerance of a step.
        atol: the absolute tolerance of a step.
        max_steps: the most steps, rejected ones included, that any sample may take.
        on_failure: what becomes of a sample that meets a value that is not finite, or has taken `max_steps`: "raise"
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

    eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_tolerances(type(self).__name__, self.rtol, self.atol, self.max_steps)
        check_on_failure(type(self).__name__, self.on_failure)

    def refusal(self, dynamics: Any) -> str | None:
        return no_noise(dynamics)

    def prepare(self, dynamics: Dynamics, start: float, stop: float) -> Run:
        return _AdaptiveRun(self, dynamics, start, stop)


@dataclass(frozen=True)
class _Memory:
    """What an adaptive run carries, for the samples that are still on their way.

    Attributes:
        active: which samples they are, int64.
        dynamics: the dynamics of these samples.
        h: their next steps, signed.
        slope: the drift where they are.
        rejected: whether their last step was rejected.
    """

    active: Tensor
    dynamics: Dynamics
    h: Tensor
    slope: State
    rejected: Tensor

    def select(self, mask: Tensor) -> _Memory:
        """What is carried for some of these samples."""
        if bool(mask.all()):
            return self
        index = mask.nonzero()[:, 0]
        return _Memory(
            self.active[index],
            self.dynamics.select(index) if len(index) else self.dynamics,
            self.h[index],
            rows(self.slope, index),
            self.rejected[index],
        )


@dataclass(frozen=True)
class _AdaptiveRun(Run):
    solver: RungeKutta
    dynamics: Dynamics
    start: float
    stop: float

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        t = torch.full((len(x[0]),), self.start, dtype=torch.float64, device=x[0].device)
        slope = self.dynamics.drift(x, t)
        active, none = torch.arange(len(t), device=t.device), torch.zeros_like(t, dtype=torch.bool)
        m = _Memory(active, self.dynamics, self._first_step(t, x, slope), slope, none)
        return self._weed(Progress(t, x, 0, m, noise))

    def finished(self, progress: Progress) -> bool:
        return len(progress.memory.active) == 0

    def step(self, progress: Progress) -> Progress:
        tableau, m = self.solver.tableau, progress.memory
        t, x = progress.t[m.active], rows(progress.x, m.active)
        remaining = self.stop - t
        # A step that would leave less than a hundredth of itself goes to the end.
        last = m.h.abs() * 1.01 >= remaining.abs()
        h = torch.where(last, remaining, m.h)
        end = torch.where(last, self.stop, t + h)
        slopes, y = [m.slope], x
        for c, row in zip(tableau.c[1:], tableau.a):
            y = _advance(x, h, row, slopes)
            # Where the error does not ask for the slope at the end, it waits until the step is accepted.
            if len(slopes) < len(tableau.a) or tableau.e[-1]:
                slopes.append(m.dynamics.drift(y, end if c == 1.0 else t + c * h))
        ratio = torch.where(finite(y), h.abs() * self._error(slopes, x, y), math.nan)
        accepted = ratio <= 1.0

        factor = (_SAFETY * ratio ** (-1.0 / tableau.order)).clamp(_SHRINK, _GROW)
        # A step that follows a rejected one is no longer than that: growing at once, it would be rejected in its turn.
        factor = torch.where(accepted & ~m.rejected, factor, factor.clamp(max=1.0)).nan_to_num(nan=_SHRINK)
        shortest = _WALL * t.abs().clamp(min=_WALL * abs(self.stop - self.start))
        step = torch.where(ratio.isfinite() | (h.abs() > shortest), h * factor, 0.0)
        x, t = _where(accepted, y, x), torch.where(accepted, end, t)
        new_t = progress.t.index_copy(0, m.active, t)
        new_x = tuple(a.index_copy(0, m.active, b) for a, b in zip(progress.x, x))
        slope = _where(accepted, slopes[-1], m.slope)
        m = _Memory(m.active, m.dynamics, step, slope, ~accepted).select(t != self.stop)
        if not tableau.e[-1]:
            m = _renewed(m, rows(new_x, m.active), new_t[m.active])
        return self._weed(Progress(new_t, new_x, progress.k + 1, m, progress.noise))

    def _weed(self, progress: Progress) -> Progress:
        """The run without the samples that cannot go on: they become NaN, or the first of them is an error."""
        m: _Memory = progress.memory
        t = progress.t[m.active]
        unsound = ~(finite(m.slope) & m.h.isfinite())
        stuck = unsound | (t + 0.01 * m.h == t)
        failed = stuck | (progress.k >= self.solver.max_steps)
        which = failed.nonzero()[:, 0]
        if not len(which):
            return progress
        if self.solver.on_failure == "mark":
            x = tuple(entry.index_fill(0, m.active[which], math.nan) for entry in progress.x)
            return replace(progress, x=x, memory=m.select(~failed))
        i = int(which[0])
        who, when = f"{self.solver.tableau.name}: sample {int(m.active[i])} is", f"t={t[i].item():.6g}"
        if bool(stuck[i]):
            why = "no step is small enough for the tolerance, or the drift is not finite just ahead"
            raise FloatingPointError(
                f"{who} stuck at {when}: {'the drift is not finite there' if bool(unsound[i]) else why}; check the "
                "denoiser at this time, or raise rtol and atol"
            )
        raise FloatingPointError(
            f"{who} still near {when} after max_steps={self.solver.max_steps} steps; raise max_steps, or rtol and atol"
        )

    def _first_step(self, t: Tensor, x: State, slope: State) -> Tensor:
        """The starting step of Hairer, Norsett and Wanner, section II.4, for each sample."""
        size, speed = self._norm(x, x, x).amax(0), self._norm(slope, x, x).amax(0)
        guess = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
        guess = guess.clamp(max=abs(self.stop - self.start))
        direction = 1.0 if self.stop > self.start else -1.0
        probe = _advance(x, direction * guess, (1.0,), [slope])
        change = self.dynamics.drift(probe, t + direction * guess)
        bend = self._norm(tuple(b - a for a, b in zip(slope, change)), x, x).amax(0) / guess
        steepest = torch.maximum(speed, bend)
        power = 1.0 / self.solver.tableau.order
        h = torch.where(steepest <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** power)
        # A probe that has no finite slope says nothing but that the step should be a short one.
        h = torch.where(h > 0.0, torch.minimum(100.0 * guess, h), guess)
        return direction * h.clamp(max=abs(self.stop - self.start))

    def _error(self, slopes: list[State], x: State, y: State) -> Tensor:
        """The largest over the entries of the error per unit step, in tolerances, float64 (B,)."""
        error = self._norm(_weighted(self.solver.tableau.e, slopes), x, y)
        if self.solver.tableau.guard is not None:
            guard = self._norm(_weighted(self.solver.tableau.guard, slopes), x, y)
            error = torch.where(error == 0.0, error, error * (error / torch.hypot(error, 0.1 * guard)))
        return error.amax(0)

    def _norm(self, value: State, x: State, y: State) -> Tensor:
        """For each entry the root mean square of `value` over its tolerance, float64 (entries, B)."""
        # Gradients follow the steps that were taken, not the choice of their sizes.
        norms = []
        entries = ([e.detach() for e in state] for state in (value, x, y))
        for v, a, b, own in zip(*entries, self.dynamics.tolerances):
            scale = self.solver.atol + self.solver.rtol * torch.maximum(a.abs(), b.abs()) if own is None else own
            norms.append((v / scale).double().flatten(1).square().mean(1).sqrt())
        return torch.stack(norms)


def check_tolerances(name: str, rtol: float, atol: float, max_steps: int) -> None:
    """Refuses tolerances and budgets with which no step could be accepted."""
    if not (rtol > 0.0 and atol > 0.0):
        raise ValueError(f"{name} needs rtol > 0 and atol > 0, got rtol={rtol}, atol={atol}")
    if max_steps < 1:
        raise ValueError(f"{name} needs max_steps >= 1, got max_steps={max_steps}")


def check_on_failure(name: str, on_failure: str) -> None:
    """Refuses what is no way to deal with a sample that fails."""
    if on_failure not in ("raise", "mark"):
        raise ValueError(f"{name}: on_failure is 'raise' or 'mark', got {on_failure!r}")


def _renewed(m: _Memory, x: State, t: Tensor) -> _Memory:
    """The memory with the slopes at `x` and `t` of the samples whose last step was accepted."""
    new = (~m.rejected).nonzero()[:, 0]
    if not len(new):
        return m
    dynamics = m.dynamics if len(new) == len(t) else m.dynamics.select(new)
    slope = dynamics.drift(rows(x, new), t[new])
    return replace(m, slope=tuple(a.index_copy(0, new, b) for a, b in zip(m.slope, slope)))


def finite(x: State) -> Tensor:
    """Whether a sample is finite in all its entries, bool (B,)."""
    return torch.stack([entry.detach().isfinite().flatten(1).all(1) for entry in x]).all(0)


def _where(mask: Tensor, yes: State, no: State) -> State:
    return tuple(torch.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(yes, no))


def _weighted(weights: tuple[float, ...], slopes: list[State]) -> State:
    """sum_i w_i k_i, entry by entry; the weights that are 0 are passed over."""
    return combine(*((w, slope) for w, slope in zip(weights, slopes) if w))


def _advance(x: State, h: Tensor, weights: tuple[float, ...], slopes: list[State]) -> State:
    return tuple(a + expand(h, a) * b for a, b in zip(x, _weighted(weights, slopes)))
