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
from .data.scaling import nats_to_bits
from .denoisers import Denoiser
from .instantiate import MODEL_ROOMS, build
from .interop import read
from .interop.formats import Settings
from .likelihood import Dequantiser, ErrorBudget, LogProb, error_budget, log_prob
from .likelihood.dequantisation import States, states
from .processes import SDE
from .runtime import exact_float32
from .sampling import sample, state_like
from .shapes import check_count, check_event
from .solvers import GridSteps, Solver
from .trace import Trace
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
        data: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        trace: Trace | None = None,
        pilot: int = 64,
        seed: int = 0,
        seconds: float | None = None,
        save: bool = True,
    ) -> GridSteps:
        r"""The solver with a time grid that a pilot run designs for this model; see :func:`sde.tune_grid`.

        Args:
            solver: a deterministic solver with steps and a grid.
            directory: a run directory. A grid that was saved in its `grids/` for this solver is used again.
            data: data values with shape (B, \*) for the pilot run, which then designs a grid for likelihoods; by
                default the grid is for sampling.
            condition: as in :meth:`sample`, for the pilot run.
            trace: as in :meth:`log_prob`, for likelihoods.
            pilot: the number of samples in the pilot run for sampling.
            seed: the seed of the pilot run.
            seconds: stop improving the grid after this time.
            save: save a new grid in the directory.
        """
        if not isinstance(solver, GridSteps):
            raise ValueError(f"a grid is tuned for a solver with fixed steps, such as Heun(20), got {solver}")
        grid = None if directory is None else load_grid(directory, solver, data=data is not None)
        if grid is None:
            if data is None:
                start: dict[str, Any] = {"shape": (pilot, *self.shape)}
                condition = self._labelled(condition, 0, pilot)
            else:
                start = {"data": self._states(data, seed=seed).x, "trace": trace}
            grid = tune_grid(self.denoiser, solver=solver, condition=condition, seed=seed, seconds=seconds, **start)
            if directory is not None and save:
                save_grid(directory, solver, grid, data=data is not None)
        return replace(solver, grid=grid)

    def _labelled(self, condition: Mapping[str, Tensor] | None, first: int, n: int) -> Mapping[str, Tensor] | None:
        """The condition, with the classes in turn where the model has some and no label is given."""
        if self.classes is None or "label" in (condition or {}):
            return condition
        label = torch.arange(first, first + n, device=state_like(self.denoiser).device) % self.classes
        return {**(condition or {}), "label": label}

    def log_prob(
        self,
        x: Tensor,
        *,
        solver: Solver | None = None,
        trace: Trace | None = None,
        seed: int = 0,
        index: Tensor | None = None,
        repeat: int = 0,
        condition: Mapping[str, Tensor] | None = None,
        prior: Any = None,
        atol: float | None = None,
        dequantiser: Dequantiser | None = None,
        differentiable: bool = False,
    ) -> LogProb:
        r"""The log-density of data values in their own units, in nats.

        For continuous data this is the log-density of x. For discrete data it is a lower bound on the log-probability
        of the levels, by one draw of dequantisation noise. In both cases bits/dim are :math:`-\log p / (D \log 2)`. The
        terms of the result are in the model's range: `nats` is `prior` + `divergence` + `log_weight`. The density of
        states, without the weight, is :func:`sde.log_prob`.

        Args:
            x: data values as the data set gives them, with shape (B, \*).
            solver, trace, condition, prior, atol, differentiable: as in :func:`sde.log_prob`.
            seed: the seed of probes and dequantisation.
            index: the positions of the samples in their data set, int64 with shape (B,); 0 to B - 1 by default.
            repeat: the number of the draw of dequantisation noise and probes.
            dequantiser: the noise for discrete data; :class:`sde.likelihood.UniformDequantiser` by default.
        """
        flow: dict[str, Any] = {"solver": solver, "trace": trace, "condition": condition, "prior": prior, "atol": atol}
        with torch.set_grad_enabled(differentiable), exact_float32():
            s = self._states(x, dequantiser=dequantiser, seed=seed, index=index, repeat=repeat)
            r = log_prob(self.denoiser, s.x, seed=seed, index=s.keys, differentiable=differentiable, **flow)
            log_weight = s.log_weight.to(r.nats)
            return replace(r, nats=r.nats + log_weight, log_weight=log_weight)

    def bits_per_dim(
        self,
        x: Tensor,
        *,
        solver: Solver | None = None,
        trace: Trace | None = None,
        seed: int = 0,
        index: Tensor | None = None,
        repeat: int = 0,
        condition: Mapping[str, Tensor] | None = None,
        prior: Any = None,
        atol: float | None = None,
        dequantiser: Dequantiser | None = None,
        differentiable: bool = False,
    ) -> Tensor:
        """Bits per dimension of data values, with shape (B,); the arguments are those of :meth:`log_prob`."""
        draw: dict[str, Any] = {"seed": seed, "index": index, "repeat": repeat, "dequantiser": dequantiser}
        flow: dict[str, Any] = {"solver": solver, "trace": trace, "condition": condition, "prior": prior, "atol": atol}
        nats = self.log_prob(x, differentiable=differentiable, **draw, **flow).nats
        return nats_to_bits(nats, math.prod(self.shape))

    def error_budget(
        self,
        x: Tensor,
        *,
        solver: Solver | None = None,
        trace: Trace | None = None,
        seed: int = 0,
        index: Tensor | None = None,
        repeats: int = 1,
        rows: Tensor | int = 16,
        condition: Mapping[str, Tensor] | None = None,
        prior: Any = None,
        atol: float | None = None,
        dequantiser: Dequantiser | None = None,
    ) -> ErrorBudget:
        r"""The error budget of :meth:`log_prob`, in nats; `.in_bits(D)` gives bits/dim.

        Args:
            x: data values, with shape (B, \*).
            solver, trace, seed, index, condition, prior, atol, dequantiser: as in :meth:`log_prob`.
            repeats: the number of draws of dequantisation noise and probes. With two or more, the budget is for their
                mean and includes its error over the draws.
            rows: the samples that are solved again, or their number, as in :func:`sde.error_budget`.
        """
        check_count("error_budget", "repeats", repeats)
        flow: dict[str, Any] = {"solver": solver, "trace": trace, "condition": condition, "prior": prior, "atol": atol}
        draw: dict[str, Any] = {"seed": seed, "index": index, "dequantiser": dequantiser}
        results = [self.log_prob(x, repeat=k, **draw, **flow) for k in range(repeats)]
        nats = torch.stack([result.nats for result in results]) if repeats > 1 else None
        with torch.no_grad(), exact_float32():
            s = self._states(x, **draw)
            return error_budget(
                self.denoiser, s.x, results[0], seed=seed, index=s.keys, rows=rows, repeats=nats, **flow
            )

    def _states(
        self,
        x: Tensor,
        *,
        dequantiser: Dequantiser | None = None,
        seed: int = 0,
        index: Tensor | None = None,
        repeat: int = 0,
    ) -> States:
        """Data values of the model's shape as states, log-weights and keys."""
        check_event(x, self.shape)
        return states(self.denoiser, self.scaling, x, dequantiser=dequantiser, seed=seed, index=index, repeat=repeat)


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
