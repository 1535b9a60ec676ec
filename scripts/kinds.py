"""The kinds of values that keys of scripts have: numbers within limits, files that are written, names of measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from sde.instantiate.annotations import Limit
from sde.runtime import choose_device
from sde.storage.files import check_writable

Count = Annotated[int, Limit(">=", 1)]
Whole = Annotated[int, Limit(">=", 0)]
Positive = Annotated[float, Limit(">", 0)]
Fraction = Annotated[float, Limit(">=", 0), Limit("<", 1)]
Seed = Annotated[int, Limit(">=", -(2**63)), Limit("<", 2**63)]  # the range of torch.manual_seed
Device = Annotated[str, choose_device]


@dataclass(frozen=True)
class Output:
    """A file that is written at the end, with one of these suffixes if there are any, or a directory."""

    suffixes: tuple[str, ...] = ()
    directory: bool = False

    def __call__(self, path: str) -> None:
        check_writable(path, self.suffixes, directory=self.directory)


File = Annotated[str, Output()]
Picture = Annotated[str, Output((".png",))]
Results = Annotated[str, Output((".h5",))]
Directory = Annotated[str, Output(directory=True)]


# The measures of `evaluate.py`: those of sets, and those of restorations.
Metric = Literal[
    "frechet",
    "kernel",
    "mmd",
    "energy",
    "precision_recall",
    "sliced_wasserstein",
    "classifier_test",
    "inception_score",
    "memorisation",
    "columns",
    "correlations",
    "psnr",
    "ssim",
    "ms_ssim",
    "perceptual",
    "log_spectral",
    "stft",
]
