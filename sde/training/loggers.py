"""Loggers: where the numbers and pictures of a training go.

A logger of your own is any class with these three methods; a config names it by `_target_`, in a package that is
trusted. The numbers are those of a line of `metrics.jsonl`, which is always written.
"""

from __future__ import annotations

__all__ = ["JSONLines", "Logger", "TensorBoard", "WandB"]

import contextlib
import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..storage.files import write_atomically


@runtime_checkable
class Logger(Protocol):
    """A destination for the metrics of a training; only rank 0 has one."""

    def open(self, directory: Path, step: int) -> None:
        """Begins, or goes on after a step; what was logged of later steps is of a run that did not come to be.

        Args:
            directory: the run directory.
            step: the steps taken so far.
        """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of a step, by name."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Takes a PNG file."""

    def close(self) -> None:
        """Ends."""


class JSONLines:
    """The file `metrics.jsonl`, one JSON object a line."""

    def open(self, directory: Path, step: int) -> None:
        """Deletes the lines of steps that will be taken again, and what follows a line that a kill cut off."""
        self.path = directory / "metrics.jsonl"
        if not self.path.exists():
            return
        lines, earlier = self.path.read_text().splitlines(), []
        with contextlib.suppress(ValueError):
            for line in lines:
                if json.loads(line)["step"] <= step:
                    earlier.append(line + "\n")
        write_atomically(self.path, lambda file: file.write("".join(earlier).encode()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def picture(self, step: int, name: str, path: Path) -> None:
        """Nothing: the picture is a file already."""

    def close(self) -> None:
        """Nothing: every line is written as it comes."""


class TensorBoard:
    """TensorBoard's event files, in the folder `tensorboard` of the run (`torch.utils.tensorboard`)."""

    def __init__(self) -> None:
        self._tensorboard: Any = _imported("torch.utils.tensorboard", "tensorboard")

    def open(self, directory: Path, step: int) -> None:
        self._writer = self._tensorboard.SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases. The run directory has one run there, which goes on when the training does.

    Args:
        project: the name of the project.
        mode: `online`, `offline` or `disabled`, as `wandb.init` has it.
    """

    def __init__(self, project: str = "score-sde", mode: str = "online") -> None:
        self.project, self.mode = project, mode
        self._wandb: Any = _imported("wandb", "wandb")

    def open(self, directory: Path, step: int) -> None:
        run = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
        settings = {"project": self.project, "mode": self.mode, "dir": str(directory), "name": directory.name}
        self._run = self._wandb.init(id=run, resume="allow", **settings)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


def _imported(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"this logger needs the package {package}: pip install {package}") from error
