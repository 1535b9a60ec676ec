r"""Weightings of the loss over time."""

from __future__ import annotations

__all__ = ["Weighting", "Simple", "Likelihood"]

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import SDE


class Weighting(ABC):
    """The weight of the squared error of the predicted noise, as a function of time."""

    @abstractmethod
    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        """The weight w(t), in the shape of `t`."""


@dataclass(frozen=True)
class Simple(Weighting):
    """The weighting w(t) = 1 (Ho et al. 2020), which gives the best samples."""

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Likelihood(Weighting):
    r"""The weighting :math:`w(t) = g(t)^2/\sigma_t^2` (Song et al. 2021b), which gives the best likelihoods."""

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return process.g2(t) / process.var(t)
