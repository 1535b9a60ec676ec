"""The variables in which multistep methods interpolate."""

from __future__ import annotations

__all__ = ["Arcsinh", "LogNoise", "Variable"]

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Variable(ABC):
    """The variable in which the readings are interpolated by polynomials."""

    @abstractmethod
    def of(self, half_log_snr: Tensor) -> Tensor:
        r"""The variable at :math:`\lambda`, in its shape: a smooth and strictly monotonic function."""


@dataclass(frozen=True)
class LogNoise(Variable):
    r"""The logarithm of the noise level, :math:`w = -\lambda` (Lu et al. 2022)."""

    def of(self, half_log_snr: Tensor) -> Tensor:
        return -half_log_snr


@dataclass(frozen=True)
class Arcsinh(Variable):
    r"""The variable :math:`w = \operatorname{arcsinh}(e^{-\lambda} / \mathrm{data\_std})`.

    It is the logarithm of the noise level above the spread of the data and the noise level itself below: there
    :math:`x_0` has a limit, which it approaches smoothly in the noise level and not in its logarithm.

    Args:
        data_std: where one turns into the other; the standard deviation of the data is a good choice.
    """

    data_std: float = 0.5

    def __post_init__(self) -> None:
        if not self.data_std > 0.0:
            raise ValueError(f"Arcsinh needs data_std > 0, got data_std={self.data_std}")

    def of(self, half_log_snr: Tensor) -> Tensor:
        return torch.asinh((-half_log_snr).exp() / self.data_std)
