r"""Weightings: how much the error at each time counts in the loss."""

from __future__ import annotations

__all__ = ["Weighting", "Simple", "Likelihood"]

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import SDE


class Weighting(ABC):
    """How much the error of the predicted noise counts at each time."""

    @abstractmethod
    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        """The weight w(t), in the shape of `t`."""


@dataclass(frozen=True)
class Simple(Weighting):
    """w(t) = 1 (Ho et al. 2020): the best samples."""

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Likelihood(Weighting):
    r""":math:`w(t) = g(t)^2/\sigma_t^2` (Song et al. 2021b): the best likelihoods."""

    def __call__(self, process: SDE, t: Tensor) -> Tensor:
        return process.g2(t) / process.var(t)
