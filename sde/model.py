r"""Models: a process, a denoiser and the scaling of its data, in one piece and on the data's own terms."""

from __future__ import annotations

__all__ = ["Model", "load"]

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .data import Scaling
from .denoisers import Denoiser
from .instantiate import MODEL_ROOMS, build
from .interop import read
from .interop.formats import Settings
from .likelihood import ErrorBudget, LogProb, error_budget, log_prob
from .noise import Noise, Stream
from .processes import SDE
from .runtime import exact_float32
from .sampling import sample, state_like
from .solvers import GridSteps, Solver
from .tuning import load_grid, save_grid, tune_grid


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        denoiser: the denoiser, in evaluation mode.
        scaling: the map between data values and the model's range.
        shape: the event shape, (C, *spatial) or (D,).
        classes: the number of classes of a model that is told a `label`; None for others.
    """

    denoiser: Denoiser
    scaling: Scaling
    shape: tuple[int, ...]
    classes: int | None = None

    @property
    def process(self) -> SDE:
        """The process that the model was trained for."""
        return self.denoiser.process

    def sample(
        self,
        n: int,
        *,
        solver: Solver,
        seed: int = 0,
        first: int = 0,
        condition: Mapping[str, Tensor] | None = None,
        denoise: bool = True,
    ) -> Tensor:
        """Draws n samples as data values: levels (uint8 for images) or continuous values, with shape (n, *).

        Args:
            n: how many.
            solver: how to integrate.
            seed: the seed of all noise.
            first: the index of the first sample, as in :func:`sde.sample`.
            condition: as in :func:`sde.sample`; a model with classes draws them in turn where no `label` is given.
            denoise: remove the noise that is left at `t_min` by one more call.
        """
        told = self._labelled(condition, first, n)
        drawn = sample(
            self.denoiser, (n, *self.shape), solver=solver, seed=seed, first=first, condition=told, denoise=denoise
        )
        return self.scaling.to_data(drawn.x.cpu())

    def tuned(
        self,
        solver: GridSteps,
        directory: str | os.PathLike[str] | None = None,
        *,
        pilot: int = 64,
        seed: int = 0,
        seconds: float | None = None,
    ) -> GridSteps:
        """The solver on the grid that a pilot run designs for this model; see :func:`sde.tune_grid`.

        Args:
            solver: a deterministic solver of fixed steps.
            directory: a run directory, which keeps the grid in `grids/`: one that is there for just this solver is
                used as it is.
            pilot: how many samples the pilot run has.
            seed: the seed of the pilot.
            seconds: stop improving the grid after this time.
        """
        if not isinstance(solver, GridSteps):
            raise ValueError(f"a grid is tuned for a solver with steps and a grid, got {type(solver).__name__}")
        grid = None if directory is None else load_grid(directory, solver)
        if grid is None:
            condition = self._labelled(None, 0, pilot)
            shape = (pilot, *self.shape)
            grid = tune_grid(self.denoiser, shape, solver, condition=condition, seed=seed, seconds=seconds)
            if directory is not None:
                save_grid(directory, solver, grid)
        return replace(solver, grid=grid)

    def _labelled(self, condition: Mapping[str, Tensor] | None, first: int, n: int) -> Mapping[str, Tensor] | None:
        """The condition, with the classes in turn where the model has some and no label is given."""
        if self.classes is None or "label" in (condition or {}):
            return condition
        label = torch.arange(first, first + n, device=state_like(self.denoiser).device) % self.classes
        return {**(condition or {}), "label": label}

    def log_prob(
        self, x: Tensor, *, seed: int = 0, index: Tensor | None = None, repeat: int = 0, **settings: Any
    ) -> LogProb:
        r"""The log-density of data in the model's range, in nats; discrete values are dequantised with uniform noise.

        Args:
            x: data values as the data set gives them, with shape (B, \*).
            seed: the seed of probes and dequantisation.
            index: the positions of the samples in their data set, int64 with shape (B,); 0 to B - 1 by default.
            repeat: which draw of the dequantisation noise.
            settings: `solver`, `trace`, `condition`, `prior`, `atol`, `differentiable` as in :func:`sde.log_prob`.
        """
        y, index = self._states(x, seed, index, repeat)
        with exact_float32():
            return log_prob(self.denoiser, y, seed=seed, index=index, **settings)

    def error_budget(
        self,
        x: Tensor,
        *,
        seed: int = 0,
        index: Tensor | None = None,
        repeats: int = 1,
        rows: Tensor | int = 16,
        **settings: Any,
    ) -> ErrorBudget:
        r"""The error budget of :meth:`log_prob`, in nats.

        Args:
            x: as in :meth:`log_prob`, like `seed` and `index`.
            seed: as there.
            index: as there.
            repeats: how many draws of dequantisation noise and probes; with two or more, the budget is that of their
                mean, and knows what they scatter by.
            rows: the samples that are solved again and finer, or how many, as in :func:`sde.error_budget`.
            settings: as in :meth:`log_prob`, without `differentiable`.
        """
        if repeats < 1:
            raise ValueError(f"error_budget needs repeats >= 1, got {repeats}")
        y, keys = self._states(x, seed, index, 0)
        with exact_float32(), torch.no_grad():
            result = log_prob(self.denoiser, y, seed=seed, index=keys, **settings)
            more = [self.log_prob(x, seed=seed, index=index, repeat=k, **settings).nats for k in range(1, repeats)]
            draws = torch.stack([result.nats, *more]) if more else None
            return error_budget(self.denoiser, y, result, seed=seed, index=keys, rows=rows, repeats=draws, **settings)

    def _states(self, x: Tensor, seed: int, index: Tensor | None, repeat: int) -> tuple[Tensor, Tensor]:
        """Data values as states in the model's range, and the keys of their probes."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"this model is for data of shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )
        index = torch.arange(len(x)) if index is None else index.cpu()
        u = None
        if self.scaling.levels is not None:
            counter = torch.full_like(index, repeat)
            u = Noise(seed).uniform(Stream.DEQUANTISE, index, counter, self.shape, torch.float64)
        like = state_like(self.denoiser)
        y = self.scaling.to_model(x.cpu(), u, dtype=like.dtype).to(like.device)
        return y, index + repeat * 2**40  # repeats differ in their probes too: each takes its own range of keys

    def bits_per_dim(self, x: Tensor, **settings: Any) -> Tensor:
        """Bits per dimension of data values, with shape (B,); the arguments are those of :meth:`log_prob`."""
        return self.scaling.bits_per_dim(self.log_prob(x, **settings).nats, math.prod(self.shape))


def load(
    path: str | os.PathLike[str],
    ema: str | None = "default",
    settings: Settings | None = None,
    process: SDE | None = None,
    *,
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
) -> Model:
    """Loads a model from a checkpoint or a run directory of this library, or from another project's checkpoint.

    Nothing that a file holds is run, and a file that asks for it is refused.

    Args:
        path: the checkpoint, or the run directory, whose newest checkpoint is taken.
        ema: the name of the weight average to load; None for the raw weights. Of other projects' checkpoints the
            average is `default`, and where there is one set of weights only, it is both.
        settings: the settings of the network as its project names them, or the path of a JSON file with them; by
            default the JSON file beside the checkpoint with the same name. This library's own checkpoints hold theirs.
        process: a process in place of the one that the model was trained for.
        device: where to put the model.
        trust: packages of your own that the checkpoint may name classes from.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if the file is damaged, no checkpoint of a known kind or one that would run code, if its weights are
            not those of the network that its settings describe, or if it has no such average.
    """
    content = read(path, settings, process)
    return from_checkpoint(content, ema=ema, process=process, device=device, trust=trust)


def from_checkpoint(
    content: Mapping[str, Any],
    *,
    ema: str | None = "default",
    process: SDE | None = None,
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
) -> Model:
    """The model of a checkpoint's content; the arguments are those of :func:`load`."""
    missing = {"model", "weights", "ema"} - content.keys()
    if missing:
        raise ValueError(f"this checkpoint is not of a model: it lacks {', '.join(sorted(missing))}")
    tree = json.loads(content["model"])
    scaling = build(tree["scaling"], rooms=MODEL_ROOMS)
    if process is None:
        process = build(tree["process"], rooms=MODEL_ROOMS, trust=trust)
    network = build(tree["network"], rooms=MODEL_ROOMS, trust=trust)
    denoiser = build(tree["denoiser"], rooms=MODEL_ROOMS, trust=trust, network=network, process=process)
    if ema is not None and ema not in content["ema"]:
        raise ValueError(
            f"this checkpoint has no EMA {ema!r}: it has {', '.join(content['ema']) or 'none'}; "
            "ema=None loads the raw weights"
        )
    denoiser.load_state_dict(content["weights"] if ema is None else content["ema"][ema])
    for wrapper in tree.get("wrappers", ()):
        denoiser = build(wrapper, rooms=MODEL_ROOMS, inner=denoiser)
    return Model(denoiser.to(device).eval().requires_grad_(False), scaling, tuple(tree["shape"]), tree.get("classes"))
