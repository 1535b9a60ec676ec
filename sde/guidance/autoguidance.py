r"""Autoguidance: guidance by a worse version of the model itself.

.. math:: D(x_t) = b + w\,(a - b)

with the prediction b of a reference for the same task that is worse: smaller, or trained for less time. Where both
agree nothing changes; where they differ the reference errs more, and the extrapolation leads the other way. It needs no
condition.

Karras et al., Guiding a Diffusion Model with a Bad Version of Itself, 2024, https://arxiv.org/abs/2406.02507,
equation 5.
"""

from __future__ import annotations

__all__ = ["Autoguidance"]

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from ..denoisers import Denoiser, Prediction
from ..processes import check_same
from .base import Number, Weighted

Self = TypeVar("Self", bound="Autoguidance")


class Autoguidance(Weighted):
    r"""Autoguidance: :math:`b + w (a - b)` of the predictions of a denoiser and of a worse reference.

    The condition goes to both, and the calls of both are counted.

    Args:
        inner: the denoiser.
        reference: a worse denoiser of the same process and the same data.
        weight: w, a number or one for each sample, with shape (B,); 1 is the denoiser itself, 0 the reference.
        low: guidance acts where low < sigma/alpha; outside of it, the weight is 1.
        high: guidance acts where sigma/alpha <= high.

    Raises:
        ValueError: if the two have different processes.
    """

    def __init__(
        self,
        inner: Denoiser,
        reference: Denoiser,
        weight: Number = 2.0,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        check_same(inner.process, reference.process, "autoguidance")
        super().__init__(inner, weight, low, high)
        self.reference = reference
        self.calls, self.vjps = inner.calls + reference.calls, inner.vjps + reference.vjps

    def check_names(self, condition: Mapping[str, Tensor]) -> None:
        """Autoguidance needs no condition."""

    def other(self, what: Prediction, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return self.reference.predict(what, x_t, t, **condition)

    def other_cost(self, t: Tensor) -> tuple[int | Tensor, int | Tensor]:
        return self.reference.cost(t)

    def select(self: Self, index: Tensor) -> Self:
        other = super().select(index)
        other.reference = self.reference.select(index)
        return other
