"""Training: a generator of steps, batches in a keyed order, averages of the weights, and run directories."""

__all__ = ["Batches", "EMA", "NonFiniteLoss", "Report", "Run", "Training", "train", "validate"]

from .batches import Batches
from .ema import EMA
from .loop import NonFiniteLoss, Report, Training, train, validate
from .run import Run
