"""Training: a generator of steps, batches, averages of the weights, ranks, and run directories."""

__all__ = [
    "DDP",
    "EMA",
    "FSDP2",
    "Average",
    "Batch",
    "BatchSource",
    "Batches",
    "Constant",
    "Cosine",
    "Decay",
    "Execution",
    "InverseSquareRoot",
    "JSONLines",
    "Logger",
    "Muon",
    "NonFiniteLoss",
    "PowerEMA",
    "Ranks",
    "Report",
    "Run",
    "StopSignals",
    "TensorBoard",
    "Training",
    "Validation",
    "WandB",
    "posthoc_ema",
    "train",
    "validate",
]

from collections.abc import Iterator

from .batches import Batch, Batches, BatchSource
from .ema import EMA, Average, PowerEMA
from .execution import Execution
from .loggers import JSONLines, Logger, TensorBoard, WandB
from .loop import Training
from .optimizers import Muon
from .posthoc import posthoc_ema
from .ranks import DDP, FSDP2, Ranks
from .report import NonFiniteLoss, Report
from .run import Run
from .schedules import Constant, Cosine, Decay, InverseSquareRoot
from .signals import StopSignals
from .validation import Validation, validate


def train(training: Training, steps: int) -> Iterator[Report]:
    """The reports of :meth:`Training.run`."""
    return training.run(steps)
