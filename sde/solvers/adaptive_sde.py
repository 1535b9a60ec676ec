r"""An adaptive method for SDEs whose samples each take their own steps, along their own Brownian paths.

Jolicoeur-Martineau, Li, Piche-Taillefer, Kachman and Mitliagkas, Gotta Go Fast When Generating Data with Score-Based
Models, 2021, https://arxiv.org/abs/2105.14080, algorithm 1.
"""

from __future__ import annotations

__all__ = ["AdaptiveSDE"]

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..brownian import along_path
from ..dynamics import Dynamics, State
from ..noise import StepNoise, Stream
from ..shapes import expand
from .base import Progress, Run, Solver, drawn, rows
from .euler_maruyama import one_entry
from .runge_kutta import check_on_failure, check_tolerances

# Theta and r of the paper, and the bounds on what a step may be of the one before.
_SAFETY, _POWER, _SHRINK, _GROW = 0.9, 0.9, 0.2, 10.0


@dataclass(frozen=True)
class AdaptiveSDE(Solver):
    r"""Euler-Maruyama and the stochastic improved Euler method as a pair, extrapolated, with error control by sample.

    .. math::
        x' &= x_t + h\, \tilde f(x_t, t) + g(t)\, \Delta W, \\
        x'' &= x_t + \tfrac12 h \big(\tilde f(x_t, t) + \tilde f(x', s)\big) + \tfrac12 \big(g(t) + g(s)\big) \Delta W

    with h = s - t. The step is accepted, and x'' taken, when the root mean square over the sample of
    :math:`(x' - x'')/\max(\mathrm{atol}, \mathrm{rtol} \max(|x'|, |x'_{\mathrm{prev}}|))`, E, is at most 1; the next
    one is :math:`0.9\, E^{-0.9}` times as long. Of strong order 1; two calls for a step, one for a rejected one.

    A rejected step tells something about the noise, and fresh noise for the shorter step would be biased towards what
    is easily accepted (Gaines and Lyons 1997). Every step here gets the increment of one path
    (:mod:`sde.brownian`): noise keyed by a seed serves as that seed's path. Steps are rounded down to five binary
    digits, since a path is rough: a time that is off by rounding, as the sums in another batch may make it, would have
    increments that are off by its root, and times that are off by more and more. Along the flow it is an adaptive
    Heun method.

    Args:
        rtol: the relative tolerance of a step; the paper's is 0.01 to 0.1.
        atol: the absolute tolerance of a step, in units of the data; the paper's is one step of an 8-bit image,
            2/256 for data in [-1, 1].
        first_step: the first step, as a share of the time from start to stop.
        max_steps: the most steps, rejected ones included, that any sample may take.
        on_failure: what becomes of a sample that cannot go on: "raise" ends the run with an error that names the
            sample and the time; "mark" makes it NaN and goes on with the others.
    """

    rtol: float = 0.02
    atol: float = 2.0 / 256.0
    first_step: float = 0.01
    max_steps: int = 10_000
    on_failure: Literal["raise", "mark"] = "raise"

    eta: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_tolerances(type(self).__name__, self.rtol, self.atol, self.max_steps)
        check_on_failure(type(self).__name__, self.on_failure)
        if not 0.0 < self.first_step <= 1.0:
            raise ValueError(f"AdaptiveSDE needs a first_step in (0, 1], got first_step={self.first_step}")

    def refusal(self, dynamics: Any) -> str | None:
        return one_entry(dynamics)

    def prepare(self, dynamics: Dynamics, start: float, stop: float) -> Run:
        return _AdaptiveRun(self, dynamics, start, stop)


@dataclass(frozen=True)
class _Memory:
    """What the run carries, for the samples that are still on their way.

    Attributes:
        active: which samples they are, int64.
        dynamics: the dynamics of these samples.
        path: their Brownian paths, or None along the flow.
        h: their next steps, signed.
        slope: the drift where they are.
        previous: the x' of their last step that was accepted.
    """

    active: Tensor
    dynamics: Dynamics
    path: StepNoise | None
    h: Tensor
    slope: Tensor
    previous: Tensor

    def select(self, mask: Tensor) -> _Memory:
        """What is carried for some of these samples."""
        if bool(mask.all()):
            return self
        index = mask.nonzero()[:, 0]
        return _Memory(
            self.active[index],
            self.dynamics.select(index),
            None if self.path is None else self.path.select(index),
            self.h[index],
            self.slope[index],
            self.previous[index],
        )


@dataclass(frozen=True)
class _AdaptiveRun(Run):
    solver: AdaptiveSDE
    dynamics: Dynamics
    start: float
    stop: float

    def init(self, x: State, noise: StepNoise | None) -> Progress:
        t = torch.full((len(x[0]),), self.start, dtype=torch.float64, device=x[0].device)
        path = along_path(drawn(noise)) if self.dynamics.stochastic else None
        h = torch.full_like(t, self.solver.first_step * (self.stop - self.start))
        (slope,) = self.dynamics.drift(x, t)
        memory = _Memory(torch.arange(len(t), device=t.device), self.dynamics, path, h, slope, x[0])
        return self._weed(Progress(t, x, 0, memory, noise))

    def finished(self, progress: Progress) -> bool:
        return len(progress.memory.active) == 0

    def step(self, progress: Progress) -> Progress:
        m: _Memory = progress.memory
        t, (x,) = progress.t[m.active], rows(progress.x, m.active)
        remaining = self.stop - t
        # A step that would leave less than a hundredth of itself goes to the end.
        last = m.h.abs() * 1.01 >= remaining.abs()
        h = torch.where(last, remaining, m.h)
        end = torch.where(last, self.stop, t + h)

        euler, average, change = x + expand(h, x) * m.slope, x, torch.zeros_like(x)
        if m.path is not None:
            z = m.path.normal(Stream.STEP, 0, t, end)
            g_t, g_s = (m.dynamics.diffusion(time) * h.abs().sqrt() for time in (t, end))
            euler = euler + expand(g_t, x) * z
            average, change = x + expand(0.5 * (g_t + g_s), x) * z, expand(0.5 * (g_s - g_t), x) * z
        (slope,) = m.dynamics.drift((euler,), end)
        improved = average + expand(0.5 * h, x) * (m.slope + slope)
        ratio = self._error(change + expand(0.5 * h, x) * (slope - m.slope), euler, m.previous)
        accepted = (ratio <= 1.0) & _finite(improved)

        factor = (_SAFETY * ratio**-_POWER).nan_to_num(nan=_SHRINK).clamp(_SHRINK, _GROW)
        factor = torch.where(accepted, factor, factor.clamp(max=_SAFETY))
        mask = accepted.reshape(-1, *(1,) * (x.ndim - 1))
        x, t = torch.where(mask, improved, x), torch.where(accepted, end, t)
        going = t != self.stop
        m = replace(m, h=_rounded(h * factor), previous=torch.where(mask, euler, m.previous)).select(going)
        # Only samples that go on from a new place need the drift there.
        new = accepted[going].nonzero()[:, 0]
        if len(new):
            there = m.dynamics if len(new) == len(m.active) else m.dynamics.select(new)
            (slope,) = there.drift((x[going][new],), t[going][new])
            m = replace(m, slope=m.slope.index_copy(0, new, slope))
        active = progress.memory.active
        new_x = progress.x[0].index_copy(0, active, x)
        return self._weed(Progress(progress.t.index_copy(0, active, t), (new_x,), progress.k + 1, m, progress.noise))

    def _error(self, difference: Tensor, x: Tensor, previous: Tensor) -> Tensor:
        """The root mean square of a difference over its tolerance, float64 (B,)."""
        # Gradients follow the steps that were taken, not the choice of their sizes.
        difference, x, previous = difference.detach(), x.detach(), previous.detach()
        scale = (self.solver.rtol * torch.maximum(x.abs(), previous.abs())).clamp(min=self.solver.atol)
        return (difference / scale).double().flatten(1).square().mean(1).sqrt()

    def _weed(self, progress: Progress) -> Progress:
        """The run without the samples that cannot go on, which end it or become NaN."""
        m: _Memory = progress.memory
        t = progress.t[m.active]
        broken, stuck = ~_finite(m.slope), t + 0.01 * m.h == t
        failed = broken | stuck | (progress.k >= self.solver.max_steps)
        if not bool(failed.any()):
            return progress
        if self.solver.on_failure == "mark":
            x = progress.x[0].index_fill(0, m.active[failed], math.nan)
            return replace(progress, x=(x,), memory=m.select(~failed))
        i = int(failed.nonzero()[0])
        where = f"AdaptiveSDE: sample {int(m.active[i])} is {{}} t={t[i].item():.6g}"
        if bool(broken[i]):
            raise FloatingPointError(
                f"{where.format('stuck at')}: the drift is not finite there; check the denoiser at this time"
            )
        if bool(stuck[i]):
            raise FloatingPointError(
                f"{where.format('stuck at')}: no step is small enough for the tolerance, or the drift is not finite "
                "just beyond; check the denoiser at this time, or raise rtol and atol"
            )
        raise FloatingPointError(
            f"{where.format('still near')} after max_steps={self.solver.max_steps} steps; raise max_steps, or rtol "
            "and atol"
        )


def _rounded(h: Tensor) -> Tensor:
    """Steps rounded towards 0 to five binary digits, 16 of them between one power of 2 and the next."""
    mantissa, exponent = torch.frexp(h)
    return torch.ldexp((mantissa * 32.0).trunc(), exponent - 5)


def _finite(x: Tensor) -> Tensor:
    """Whether a sample is finite, bool (B,)."""
    return x.detach().isfinite().flatten(1).all(1)
