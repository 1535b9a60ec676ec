r"""Averages of any length after the training, from the power-function averages that it has stored.

An average with the profile :math:`p(s) \propto s^\gamma` on :math:`(0, t]` is approximated by a linear combination of
the stored ones, whose profiles :math:`p_i` end at the steps at which they were stored. The coefficients minimise
:math:`\int (\sum_i x_i p_i(s) - p(s))^2 ds`: they solve :math:`A x = b` with :math:`A_{ij} = \langle p_i, p_j\rangle`,
:math:`b_i = \langle p_i, p\rangle` and

.. math:: \langle p_a, p_b \rangle = \frac{(\gamma_a + 1)(\gamma_b + 1)\, m^{\gamma_a + \gamma_b + 1}}
          {(\gamma_a + \gamma_b + 1)\, t_a^{\gamma_a + 1}\, t_b^{\gamma_b + 1}}, \qquad m = \min(t_a, t_b).

Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024,
https://arxiv.org/abs/2312.02696, section 3.2 and algorithm 3.
"""

from __future__ import annotations

__all__ = ["Snapshots", "coefficients", "posthoc_ema"]

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model import Model
from ..model.files import from_checkpoint
from ..storage.checkpoint import load_checkpoint, write
from .ema import exponent

_NAME = re.compile(r"step_(\d{8})\.pt")


def coefficients(stored: Sequence[tuple[float, int]], target: tuple[float, int]) -> tuple[np.ndarray[Any, Any], float]:
    """The coefficients of the stored averages in the approximation of another one.

    Args:
        stored: the relative standard deviation and the step of each stored average.
        target: those of the average that is wanted.

    Returns:
        The coefficients, and the relative error of the profile, :math:`\\| \\sum_i x_i p_i - p \\| / \\| p \\|`.
    """
    gammas = np.array([exponent(std) for std, _ in (*stored, target)])
    steps = np.array([float(step) for _, step in (*stored, target)])
    t_a, t_b, a, b = steps[:, None], steps[None, :], gammas[:, None], gammas[None, :]
    m = np.minimum(t_a, t_b)
    # Ratios to the two ends, so that no power overflows.
    inner = (a + 1) * (b + 1) / (a + b + 1) * (m / t_a) ** a * (m / t_b) ** b * m / (t_a * t_b)
    # The diagonal is scaled to 1 before the system is solved; its smallest eigenvalues are rounding.
    scale = 1.0 / np.sqrt(np.diag(inner))
    unit = inner * scale[:, None] * scale[None, :]
    x = np.linalg.lstsq(unit[:-1, :-1], unit[:-1, -1], rcond=1e-14)[0]
    error = float(np.sqrt(max(0.0, 1.0 - 2.0 * x @ unit[:-1, -1] + x @ unit[:-1, :-1] @ x)))
    return x * scale[:-1] / scale[-1], error


class Snapshots:
    """The power-function averages of a run, stored in its directory `averages` at intervals.

    Args:
        directory: the directory; created by :meth:`save`.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def save(self, step: int, model: str, averages: Mapping[float, Mapping[str, Tensor]]) -> Path:
        """Writes the averages of a step, by their relative standard deviation; one file, whole or not at all.

        Args:
            step: the number of steps taken.
            model: the description of the model in a checkpoint.
            averages: the weights by name, by relative standard deviation.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"step_{step:08d}.pt"
        content = {"step": step, "model": model, "weights": {}, "ema": {str(std): w for std, w in averages.items()}}
        write(path, content)
        return path

    def paths(self) -> dict[int, Path]:
        """The stored files by step."""
        there = self.directory.iterdir() if self.directory.is_dir() else ()
        by_step = {int(match[1]): path for path in there if (match := _NAME.fullmatch(path.name))}
        return dict(sorted(by_step.items()))

    def model(self, std: float, step: int | None = None, *, trust: Sequence[str] = ()) -> Model:
        """The model with the average of another length, or at another step.

        Args:
            std: the relative standard deviation of the profile that is wanted.
            step: the step at which it ends, one of those at which averages were stored; the last one by default.
            trust: packages of your own from which the files may name classes.

        Raises:
            ValueError: if there is no stored average, or the profile is far from all combinations of the stored ones:
                its relative error is above 0.2, as for a step between two stored ones.
        """
        paths = self.paths()
        if not paths:
            raise ValueError(f"no averages in {self.directory}: train with posthoc=[0.05,0.1]")
        step = max(paths) if step is None else step
        names = {at: list(load_checkpoint(path)["ema"]) for at, path in paths.items()}
        stored = [(float(name), at) for at in paths for name in names[at]]
        x, error = coefficients(stored, (std, step))
        if error > 0.2:
            raise ValueError(
                f"an average with std={std} at step {step} is not a combination of the stored ones, which are of "
                f"{sorted({s for s, _ in stored})} at {len(paths)} steps from {min(paths)} to {max(paths)}: the "
                f"relative error of its profile is {error:.2f}"
            )
        share = dict(zip(stored, x))
        sums: dict[str, Tensor] = {}
        for at, path in paths.items():  # one file after another in memory
            content = load_checkpoint(path)
            for name in names[at]:
                for key, value in content["ema"][name].items():
                    sums[key] = sums.get(key, 0.0) + share[float(name), at] * value.double()
        # Buffers are those of the last file: a combination would not leave a constant what it is.
        last = content["ema"][names[at][0]]
        model = from_checkpoint({"model": content["model"], "weights": {}, "ema": {"default": last}}, trust=trust)
        with torch.no_grad():
            for key, parameter in model.denoiser.named_parameters():
                parameter.copy_(sums[key])
        return model


def posthoc_ema(
    run: str | os.PathLike[str], std: float, step: int | None = None, *, trust: Sequence[str] = ()
) -> Model:
    """The model of a run with the average of any length; the arguments are those of :meth:`Snapshots.model`.

    Args:
        run: the run directory.
        std: the relative standard deviation of the profile.
        step: the step at which it ends.
        trust: packages of your own from which the files may name classes.
    """
    return Snapshots(Path(run) / "averages").model(std, step, trust=trust)
