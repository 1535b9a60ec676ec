r"""Learning rates as a function of the step.

The rate of step k is the optimiser's rate times :math:`\min(1, k / w)`, with a warm-up of w steps, times the factor
of a decay. A decay is a function of the step alone: one that depends on an end has its number of steps as an argument,
so that a run that is continued beyond does not change what was.
"""

from __future__ import annotations

__all__ = ["Constant", "Cosine", "Decay", "InverseSquareRoot"]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Decay(ABC):
    """The factor of the learning rate after warm-up."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The factor of a step, counted from 1."""


@dataclass(frozen=True)
class Constant(Decay):
    """The factor 1."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(Decay):
    r"""Half a cosine from 1 to `final`, which stays after the last step:
    :math:`f + (1 - f) (1 + \cos(\pi k / n)) / 2` (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983).

    Args:
        steps: n, the step at which the factor is `final`.
        final: f, the last factor.
    """

    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0.0 <= self.final <= 1.0:
            raise ValueError(f"Cosine needs steps >= 1 and final in [0, 1], got steps={self.steps}, final={self.final}")

    def __call__(self, step: int) -> float:
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.steps)))


@dataclass(frozen=True)
class InverseSquareRoot(Decay):
    r"""The factor :math:`1 / \sqrt{\max(k / n, 1)}` (Karras et al. 2024, https://arxiv.org/abs/2312.02696).

    Args:
        steps: n, the step after which the rate decays.
    """

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"InverseSquareRoot needs steps >= 1, got steps={self.steps}")

    def __call__(self, step: int) -> float:
        return 1.0 / math.sqrt(max(step / self.steps, 1.0))
