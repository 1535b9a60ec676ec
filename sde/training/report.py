"""Reports of the steps of a training."""

from __future__ import annotations

__all__ = ["NonFiniteLoss", "Report"]

from dataclasses import dataclass


class NonFiniteLoss(FloatingPointError):
    """A loss or gradient that is infinite or NaN; the weights are those of the step before."""


@dataclass(frozen=True)
class Report:
    """Report of one training step.

    Attributes:
        step: its number, counted from 1.
        loss: the mean of the objective over the batch.
        grad_norm: the norm of the gradient before clipping.
        learning_rate: the learning rate.
        skipped: whether the weights stayed as they were, because the loss or its gradient was not finite.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool = False
