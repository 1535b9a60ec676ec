r"""Adaptive Runge-Kutta methods that step every sample on its own.

The step size of a sample follows from its own error alone, so that its result does not depend on its batch, and a
sample that has arrived leaves the batch: no network call is spent on it while others go on.

Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, 1993, section II.4.
"""

from __future__ import annotations

__all__ = ["RungeKutta"]

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import StepNoise
from ..shapes import expand
from .base import Progress, Run, Solver, combine
from .euler import no_noise
from .tableaus import DORMAND_PRINCE, Tableau

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


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
    """

    tableau: Tableau = DORMAND_PRINCE
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    eta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_tolerances(type(self).__name__, self.rtol, self.atol, self.max_steps)

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
    """

    active: Tensor
    dynamics: Dynamics
    h: Tensor
    slope: State


@dataclass(frozen=True)
class _AdaptiveRun(Run):
    solver: RungeKutta
    dynamics: Dynamics
    start: float
    stop: float

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        t = torch.full((len(x[0]),), self.start, dtype=torch.float64, device=x[0].device)
        slope = self.dynamics.drift(x, t)
        active = torch.arange(len(t), device=t.device)
        return Progress(t, x, 0, _Memory(active, self.dynamics, self._first_step(t, x, slope), slope), noise)

    def finished(self, progress: Progress) -> bool:
        return len(progress.memory.active) == 0

    def step(self, progress: Progress) -> Progress:
        m: _Memory = progress.memory
        t, x = progress.t[m.active], _rows(progress.x, m.active)
        remaining = self.stop - t
        # A step that would leave less than a hundredth of itself goes to the end.
        last = m.h.abs() * 1.01 >= remaining.abs()
        h = torch.where(last, remaining, m.h)
        slopes = [m.slope]
        for c, row in zip(self.solver.tableau.c[1:], self.solver.tableau.a):
            y = _advance(x, h, row, slopes)
            at = torch.where(last, self.stop, t + h) if c == 1.0 else t + c * h
            slopes.append(m.dynamics.drift(y, at))
        error = _weighted(self.solver.tableau.e, slopes)
        ratio = h.abs() * self._norm(error, x, y)
        accepted = ratio <= 1.0

        factor = (_SAFETY * ratio ** (-1.0 / self.solver.tableau.order)).clamp(_SHRINK, _GROW)
        factor = torch.where(accepted, factor, factor.clamp(max=1.0)).nan_to_num(nan=_SHRINK)
        self._check(progress, m, t, h, accepted, last)
        x = _where(accepted, y, x)
        slope = _where(accepted, slopes[-1], m.slope)
        t = torch.where(accepted, torch.where(last, self.stop, t + h), t)
        # A step cut short by the end says little about the next one, of which there is none.
        h = h * factor

        new_t = progress.t.index_copy(0, m.active, t)
        new_x = tuple(a.index_copy(0, m.active, b) for a, b in zip(progress.x, x))
        going = (t != self.stop).nonzero()[:, 0]
        memory = _Memory(m.active, m.dynamics, h, slope)
        if len(going) < len(t):
            dynamics = m.dynamics.select(going) if len(going) else m.dynamics
            memory = _Memory(m.active[going], dynamics, h[going], _rows(slope, going))
        return Progress(new_t, new_x, progress.k + 1, memory, progress.noise)

    def _first_step(self, t: Tensor, x: State, slope: State) -> Tensor:
        """The starting step of Hairer, Norsett and Wanner, section II.4, for each sample."""
        size, speed = self._norm(x, x, x), self._norm(slope, x, x)
        guess = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed)
        guess = guess.clamp(max=abs(self.stop - self.start))
        direction = 1.0 if self.stop > self.start else -1.0
        probe = _advance(x, direction * guess, (1.0,), [slope])
        change = self.dynamics.drift(probe, t + direction * guess)
        bend = self._norm(tuple(b - a for a, b in zip(slope, change)), x, x) / guess
        steepest = torch.maximum(speed, bend)
        power = 1.0 / self.solver.tableau.order
        h = torch.where(steepest <= 1e-15, (guess * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** power)
        return direction * torch.minimum(100.0 * guess, h).clamp(max=abs(self.stop - self.start))

    def _norm(self, value: State, x: State, y: State) -> Tensor:
        """The largest over the entries of the root mean square of `value` over its tolerance, float64 (B,)."""
        # Gradients follow the steps that were taken, not the choice of their sizes.
        norms = []
        entries = ([e.detach() for e in state] for state in (value, x, y))
        for v, a, b, own in zip(*entries, self.dynamics.tolerances):
            scale = self.solver.atol + self.solver.rtol * torch.maximum(a.abs(), b.abs()) if own is None else own
            norms.append((v / scale).double().flatten(1).square().mean(1).sqrt())
        return torch.stack(norms).amax(0)

    def _check(self, progress: Progress, m: _Memory, t: Tensor, h: Tensor, accepted: Tensor, last: Tensor) -> None:
        stuck = (~h.isfinite() | (t + 0.01 * h == t)) & ~accepted
        if bool(stuck.any()):
            i = int(stuck.nonzero()[0])
            raise FloatingPointError(
                f"{self.solver.tableau.name}: sample {int(m.active[i])} is stuck at t={t[i].item():.6g}: no "
                "step is small enough for the tolerance, or the drift is not finite there; check the denoiser at this "
                "time, or raise rtol and atol"
            )
        going = ~(accepted & last)
        if progress.k + 1 >= self.solver.max_steps and bool(going.any()):
            i = int(going.nonzero()[0])
            raise FloatingPointError(
                f"{self.solver.tableau.name}: sample {int(m.active[i])} is still near t={t[i].item():.6g} after "
                f"max_steps={self.solver.max_steps} steps; raise max_steps, or rtol and atol"
            )


def check_tolerances(name: str, rtol: float, atol: float, max_steps: int) -> None:
    """Refuses tolerances and budgets with which no step could be accepted."""
    if not (rtol > 0.0 and atol > 0.0):
        raise ValueError(f"{name} needs rtol > 0 and atol > 0, got rtol={rtol}, atol={atol}")
    if max_steps < 1:
        raise ValueError(f"{name} needs max_steps >= 1, got max_steps={max_steps}")


def _rows(x: State, index: Tensor) -> State:
    return tuple(entry[index] for entry in x)


def _where(mask: Tensor, yes: State, no: State) -> State:
    return tuple(torch.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(yes, no))


def _weighted(weights: tuple[float, ...], slopes: list[State]) -> State:
    """sum_i w_i k_i, entry by entry; the weights that are 0 are passed over."""
    return combine(*((w, slope) for w, slope in zip(weights, slopes) if w))


def _advance(x: State, h: Tensor, weights: tuple[float, ...], slopes: list[State]) -> State:
    return tuple(a + expand(h, a) * b for a, b in zip(x, _weighted(weights, slopes)))
