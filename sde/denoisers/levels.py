r"""Noise conditioning: the second argument of a network, a function of the noise in its input."""

from __future__ import annotations

__all__ = ["NoiseLevel", "TimeLevel", "LogSNRLevel", "MatchedLevel"]

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..processes import SDE


class NoiseLevel(ABC):
    """The noise conditioning of a network, as a function of the time."""

    @abstractmethod
    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        """The network's second argument, in the shape of `t`."""


@dataclass(frozen=True)
class TimeLevel(NoiseLevel):
    """The label `scale * t + offset`: 1000 t is the step of a chain of 1000 steps."""

    scale: float = 1000.0
    offset: float = 0.0

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return self.scale * t + self.offset


@dataclass(frozen=True)
class LogSNRLevel(NoiseLevel):
    r"""The label :math:`-\mathrm{scale} \cdot \lambda_t + \mathrm{offset}`, which resolves the small times on which a
    likelihood depends.

    Kingma et al. 2021, https://arxiv.org/abs/2107.00630. :math:`-\lambda_t/8` is the :math:`\tfrac14 \log\sigma` of
    EDM.
    """

    scale: float = 0.125
    offset: float = 0.0

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return self.offset - self.scale * process.log_snr(t)


@dataclass(frozen=True)
class MatchedLevel(NoiseLevel):
    r"""The label that another process has at the same :math:`\lambda_t`: for a network used with a process it was not
    trained for. Beyond the ends of that process the label is that of the end.

    Args:
        trained: the process of the training.
        level: the noise conditioning in that process.
    """

    trained: SDE
    level: NoiseLevel

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return self.level(self.trained, self.trained.time(process.log_snr(t)))
