"""Training: a generator of steps, batches, averages of the weights, and run directories."""

__all__ = ["EMA", "Batch", "BatchSource", "Batches", "NonFiniteLoss", "Report", "Run", "Training", "train", "validate"]

from .batches import Batch, Batches, BatchSource
from .ema import EMA
from .loop import NonFiniteLoss, Report, Training, train, validate
from .run import Run
