r"""Models: a denoiser with the scaling of its data, which samples, scores and encodes data values."""

from __future__ import annotations

__all__ = ["Model"]

import copy
import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..data import Scaling
from ..data.captions import Encoder
from ..data.scaling import nats_to_bits
from ..denoisers import Denoiser
from ..likelihood import Dequantiser, ErrorBudget, LogProb, PriorDensity, error_budget, log_prob
from ..likelihood.dequantisation import States, states
from ..processes import SDE
from ..runtime import exact_float32
from ..sampling import encode, rehearse, sample
from ..shapes import check_callable, check_condition, check_count, check_event, named_tensors, numbers_of, recording
from ..solvers import Designed, GridSteps, Solver
from ..trace import Trace
from ..tuning import (
    PilotRows,
    choose_solver,
    load_grid,
    load_solver,
    pilot_rows,
    purpose,
    save_grid,
    save_solver,
    tune_grid,
    tune_solver,
)
from .editing import Editing
from .restoring import Restoring


@dataclass(frozen=True)
class Model(Editing, Restoring):
    """A trained model.

    Attributes:
        denoiser: the denoiser, in evaluation mode.
        scaling: the map between data values and the model's range.
        shape: the event shape, (C, *spatial) or (D,).
        classes: the number of classes of a model that is conditioned on a `label`; None for others.
        encoder: the encoder of the texts of a model that is conditioned on `tokens` (:mod:`sde.data.captions`), if it
            has one.

    Raises:
        ValueError: if the scaling is for another number of columns or channels than the shape has.
    """

    denoiser: Denoiser
    scaling: Scaling
    shape: tuple[int, ...]
    classes: int | None = None
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        self.scaling.check_event(self.shape)

    @property
    def process(self) -> SDE:
        """The process that the model was trained for."""
        return self.denoiser.process

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Model:
        """A copy of the model on another device or in another dtype, wrappers included; `to(dtype)` works too."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        return replace(self, denoiser=copy.deepcopy(self.denoiser).to(device=device, dtype=dtype))

    def sample(
        self,
        n: int,
        *,
        solver: Solver | None = None,
        seed: int = 0,
        first: int = 0,
        condition: Mapping[str, Tensor] | None = None,
        batch_size: int | None = None,
        denoise: bool = True,
        trajectory: Callable[[tuple[Tensor, Tensor]], object] | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Tensor:
        """Draws n samples as data values: levels (uint8 for images) or continuous values, with shape (n, *).

        The result is on the CPU. It does not depend on `batch_size`, up to rounding: sample i uses the noise of index
        `first + i`.

        Args:
            n: the number of samples.
            solver: how to integrate; :func:`sde.sampling.default_solver` by default.
            seed: the seed of all noise.
            first: the index of the first sample.
            condition: tensors of leading size n, or scalars, by name. Without a `label`, a model with classes draws
                them in turn: sample i has the class `(first + i) % classes`.
            batch_size: the number of samples in memory at a time; all by default.
            denoise: remove the noise that is left at `t_min` by one more call.
            trajectory: as in :func:`sde.sample`, for one batch after another; its states are in the model's range.
            progress: called after every step with the fraction of the work that is done.
        """
        batch_size = n if batch_size is None else batch_size
        check_count("sample", "n", n)
        check_count("sample", "batch_size", batch_size)
        check_callable(trajectory=trajectory, progress=progress)
        condition = self._labelled(condition, first, n)
        check_condition(condition, n)
        draw = functools.partial(sample, solver=solver, seed=seed, denoise=denoise)
        batches = []
        for start in range(0, n, batch_size):
            rows = slice(start, min(start + batch_size, n))
            part = {name: value[rows] if value.ndim else value for name, value in condition.items()}
            size = rows.stop - start
            done = None if progress is None else functools.partial(_report, progress, start / n, size / n)
            # What a guided denoiser has of its own for each sample goes with the batch.
            denoiser = self.denoiser if size == n else self.denoiser.select(torch.arange(n, device="cpu")[rows])
            result = draw(
                denoiser, (size, *self.shape), first=first + start, condition=part, trajectory=trajectory, progress=done
            )
            batches.append(self.scaling.to_data(result.x.cpu()))
        return torch.cat(batches)

    def rehearse(
        self, n: int = 1, *, solver: Solver | None = None, condition: Mapping[str, Tensor] | None = None
    ) -> None:
        """Tries whether :meth:`sample` can draw n samples, by one prediction.

        Raises:
            ValueError: if the solver cannot serve the model, or a condition does not fit or is missing.
        """
        rehearse(self.denoiser, (n, *self.shape), solver, self._labelled(condition, 0, n))

    def encode(
        self, x: Tensor, *, solver: Solver | None = None, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        r"""The latent of data values at `t_max`, along the probability flow, with shape (B, \*).

        Discrete values are encoded at the centres of their bins, without dequantisation noise. For the way back,
        `sde.sample(model.denoiser, x_T=latent, solver=solver)` gives states in the model's range, and
        `model.scaling.to_data` their data values.

        Args:
            x: data values, with shape (B, \*).
            solver: a deterministic solver; :func:`sde.sampling.default_solver` by default.
            condition: as in :func:`sde.sample`.
        """
        return encode(self.denoiser, self._to_model(x), solver=solver, condition=self._on_device(condition))

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
        progress: Callable[[float], object] | None = None,
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
            progress: as in :func:`sde.tune_grid`.
        """
        if not isinstance(solver, GridSteps):
            raise ValueError(
                f"a grid is tuned for a solver with fixed steps, such as Heun(20), got {type(solver).__name__}"
            )
        grid = None if directory is None else load_grid(directory, solver, data=data is not None)
        if grid is None:
            if data is None:
                start: dict[str, Any] = {"shape": (pilot, *self.shape)}
                condition = self._labelled(condition, 0, pilot)
            else:
                start = {"data": self._states(data, seed=seed).x, "trace": trace}
            condition = self._on_device(condition)
            how: dict[str, Any] = {"condition": condition, "seed": seed, "seconds": seconds, "progress": progress}
            grid = tune_grid(self.denoiser, solver=solver, **how, **start)
            if directory is not None and save:
                save_grid(directory, solver, grid, data=data is not None)
        return replace(solver, grid=grid)

    def designed(
        self,
        steps: int,
        directory: str | os.PathLike[str] | None = None,
        *,
        data: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        trace: Trace | None = None,
        pilot: int = 256,
        seed: int = 0,
        seconds: float | None = None,
        save: bool = True,
        progress: Callable[[float], object] | None = None,
    ) -> Designed:
        r"""A solver of `steps` network calls that a pilot run designs for this model; see :func:`sde.tune_solver`.

        Args:
            steps: the number of network calls.
            directory: a run directory. A solver that was saved in its `grids/` for the same steps, process, denoiser
                and conditions is used again.
            data, condition, trace, pilot, seed, save: as in :meth:`tuned`.
            seconds, progress: as in :func:`sde.tune_solver`.
        """
        start: dict[str, Any] = {"shape": (pilot, *self.shape)}
        condition = self._labelled(condition, 0, pilot) if data is None else self._on_device(condition)
        if data is not None:
            start = {"data": self._states(data, seed=seed).x, "trace": trace}
        made_for, process = purpose(self.denoiser, condition, data=data is not None), repr(self.process)
        solver = None if directory is None else load_solver(directory, steps, made_for, process)
        if solver is None:
            how: dict[str, Any] = {"condition": condition, "seed": seed, "seconds": seconds, "progress": progress}
            solver = tune_solver(self.denoiser, steps=steps, **how, **start)
            if directory is not None and save:
                save_solver(directory, solver, made_for)
        return solver

    def _labelled(self, condition: Mapping[str, Tensor] | None, first: int, n: int) -> dict[str, Tensor]:
        """The condition on the model's device, with the classes in turn as labels if there are classes and no label."""
        named = named_tensors(condition)
        for name in self.process.needs:
            if name in (self.denoiser.takes or {}) and name not in named:
                raise ValueError(
                    f"a model of {type(self.process).__name__} draws given the condition {name!r}, got "
                    f"{', '.join(named) or 'none'}: give condition={{{name!r}: ...}}, on the command line {name}=FILE"
                )
        if self.classes is not None:
            named.setdefault("label", torch.arange(first, first + n, device="cpu") % self.classes)
        return self._on_device(named)

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
        prior: PriorDensity | None = None,
        atol: float | None = None,
        error: float | None = None,
        error_per_image: float | None = None,
        dequantiser: Dequantiser | None = None,
        differentiable: bool = False,
        guided: bool = False,
    ) -> LogProb:
        r"""The log-density of data values in their own units, in nats.

        For continuous data this is the log-density of x. For discrete data it is a lower bound on the log-probability
        of the levels, by one draw of dequantisation noise. In both cases bits/dim are :math:`-\log p / (D \log 2)`. The
        terms of the result are in the model's range: `nats` is `prior` + `divergence` + `log_weight`. The density of
        states, without the weight, is :func:`sde.log_prob`.

        Args:
            x: data values as the data set gives them, with shape (B, \*).
            solver, trace, condition, prior, atol, differentiable, guided: as in :func:`sde.log_prob`.
            seed: the seed of probes and dequantisation.
            index: the positions of the samples in their data set, int64 with shape (B,); 0 to B - 1 by default.
            repeat: the number of the draw of dequantisation noise and probes.
            dequantiser: the noise for discrete data; :class:`sde.likelihood.UniformDequantiser` by default.
            error, error_per_image: in place of `solver` and `atol`, the errors of the integration to accept in
                bits/dim, of the mean and of a sample. A pilot on some of the rows then chooses the solver
                (:func:`sde.tuning.choose_solver`); for fewer than 64 rows it is the adaptive one.
        """
        named = self._on_device(condition)
        flow: dict[str, Any] = {"solver": solver, "trace": trace, "condition": named, "prior": prior, "atol": atol}
        flow["guided"] = guided
        with recording(differentiable), exact_float32():
            s = self._states(x, dequantiser=dequantiser, seed=seed, index=index, repeat=repeat)
            if error is not None or error_per_image is not None:
                if solver is not None or atol is not None:
                    raise ValueError(f"log_prob: error= chooses the solver, got solver={solver}, atol={atol} as well")
                how: dict[str, Any] = {"error": error, "error_per_image": error_per_image, "guided": guided}
                rows = pilot_rows(PilotRows(s.x.detach(), s.keys, named))
                choice = choose_solver(self.denoiser, *rows, len(x), trace=trace, seed=seed, **how)
                flow |= {"solver": choice.solver, "atol": choice.atol}
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
        prior: PriorDensity | None = None,
        atol: float | None = None,
        error: float | None = None,
        error_per_image: float | None = None,
        dequantiser: Dequantiser | None = None,
        differentiable: bool = False,
        guided: bool = False,
    ) -> Tensor:
        """Bits per dimension of data values, with shape (B,); the arguments are those of :meth:`log_prob`."""
        draw: dict[str, Any] = {"seed": seed, "index": index, "repeat": repeat, "dequantiser": dequantiser}
        flow: dict[str, Any] = {"solver": solver, "trace": trace, "condition": condition, "prior": prior, "atol": atol}
        flow |= {"error": error, "error_per_image": error_per_image}
        nats = self.log_prob(x, differentiable=differentiable, guided=guided, **draw, **flow).nats
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
        prior: PriorDensity | None = None,
        atol: float | None = None,
        dequantiser: Dequantiser | None = None,
        guided: bool = False,
        progress: Callable[[float], object] | None = None,
    ) -> ErrorBudget:
        r"""The error budget of :meth:`log_prob`, in nats; `.in_bits(D)` gives bits/dim.

        Args:
            x: data values, with shape (B, \*).
            solver, trace, seed, index, condition, prior, atol, dequantiser, guided: as in :meth:`log_prob`.
            repeats: the number of draws of dequantisation noise and probes. With two or more, the budget is for their
                mean and includes its error over the draws.
            rows: the samples that are solved again, or their number, as in :func:`sde.error_budget`.
            progress: called while they are solved again, with the fraction that is done.
        """
        check_count("error_budget", "repeats", repeats)
        condition = self._on_device(condition)
        flow: dict[str, Any] = {"solver": solver, "trace": trace, "condition": condition, "prior": prior, "atol": atol}
        draw: dict[str, Any] = {"seed": seed, "index": index, "dequantiser": dequantiser}
        results = [self.log_prob(x, repeat=k, guided=guided, **draw, **flow) for k in range(repeats)]
        nats = torch.stack([result.nats for result in results]) if repeats > 1 else None
        with torch.no_grad(), exact_float32():
            s = self._states(x, **draw)
            return error_budget(
                self.denoiser,
                s.x,
                results[0],
                seed=seed,
                index=s.keys,
                rows=rows,
                repeats=nats,
                progress=progress,
                **flow,
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
        """The :func:`states` of data values of the model's shape."""
        x = numbers_of("data values", x)
        check_event(x, self.shape)
        draw: dict[str, Any] = {"dequantiser": dequantiser, "seed": seed, "index": index, "repeat": repeat}
        return states(self.denoiser, self.scaling, x, **draw)


def _report(progress: Callable[[float], object], before: float, share: float, done: float) -> None:
    """Reports the progress of one batch as that of all: `before` is done, and `done` of the batch, a `share` of all."""
    progress(before + share * done)
