r"""An adaptive method for SDEs whose samples each take their own steps, along their own Brownian paths.

Jolicoeur-Martineau, Li, Piche-Taillefer, Kachman and Mitliagkas, Gotta Go Fast When Generating Data with Score-Based
Models, 2021, https://arxiv.org/abs/2105.14080, algorithm 1.
"""

from __future__ import annotations

__all__ = ["AdaptiveSDE"]

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..dynamics import Dynamics, State
from ..noise import Stream
from ..shapes import expand
from .adaptive import Adaptive, Attempt, Memory
from .base import SDESolver

# Theta and r of the paper, and the bounds on the ratio of two consecutive steps.
_SAFETY, _POWER, _SHRINK, _GROW = 0.9, 0.9, 0.2, 10.0


@dataclass(frozen=True)
class AdaptiveSDE(SDESolver, Adaptive):
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
        max_steps: the largest number of steps, rejected ones included, that any sample may take.
        on_failure: what happens to a sample that cannot go on: "raise" ends the run with an error that names the
            sample and the time; "mark" makes it NaN and goes on with the others.
    """

    rtol: float = 0.02
    atol: float = 2.0 / 256.0
    first_step: float = 0.01
    max_steps: int = 10_000
    on_failure: Literal["raise", "mark"] = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.first_step <= 1.0:
            raise ValueError(f"AdaptiveSDE needs a first_step in (0, 1], got first_step={self.first_step}")

    def begin(self, dynamics: Dynamics, t: Tensor, x: State, slope: State, span: float) -> tuple[Tensor, State]:
        return torch.full_like(t, self.first_step * span), x

    def attempt(self, m: Memory, x: State, t: Tensor, h: Tensor, end: Tensor) -> Attempt:
        (x_t,), (before,), (previous,) = x, m.slope, m.previous
        euler, average, change = x_t + expand(h, x_t) * before, x_t, torch.zeros_like(x_t)
        if m.path is not None:
            z = m.path.normal(Stream.STEP, 0, t, end)
            g_t, g_s = (m.dynamics.diffusion(time) * h.abs().sqrt() for time in (t, end))
            euler = euler + expand(g_t, x_t) * z
            average, change = x_t + expand(0.5 * (g_t + g_s), x_t) * z, expand(0.5 * (g_s - g_t), x_t) * z
        (after,) = m.dynamics.drift((euler,), end)
        improved = average + expand(0.5 * h, x_t) * (before + after)
        ratio = self._error(change + expand(0.5 * h, x_t) * (after - before), euler, previous)
        # Only samples that go on from a new place need the drift there.
        return (improved,), ratio, None, (euler,)

    def next_step(self, m: Memory, t: Tensor, h: Tensor, ratio: Tensor, span: float) -> Tensor:
        factor = (_SAFETY * ratio**-_POWER).clamp(_SHRINK, _GROW).nan_to_num(nan=_SHRINK)
        # Rounded towards 0 to five binary digits, 16 steps between one power of 2 and the next.
        mantissa, exponent = torch.frexp(h * factor)
        return torch.ldexp((mantissa * 32.0).trunc(), exponent - 5)

    def _error(self, difference: Tensor, x: Tensor, previous: Tensor) -> Tensor:
        """The root mean square of a difference over its tolerance, float64 (B,)."""
        # Gradients follow the steps that were taken, not the choice of their sizes.
        difference, x, previous = difference.detach(), x.detach(), previous.detach()
        scale = (self.rtol * torch.maximum(x.abs(), previous.abs())).clamp(min=self.atol)
        return (difference / scale).double().flatten(1).square().mean(1).sqrt()
