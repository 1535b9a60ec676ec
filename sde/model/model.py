r"""Models: a denoiser with the scaling of its data, which samples, scores and encodes data values."""

from __future__ import annotations

__all__ = ["Model"]

import copy
import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..data import Scaling
from ..data.scaling import nats_to_bits
from ..denoisers import Denoiser
from ..likelihood import Dequantiser, ErrorBudget, LogProb, error_budget, log_prob
from ..likelihood.dequantisation import States, states
from ..measurement import Mask, Operator, PilotVariance, Variance
from ..processes import SDE
from ..runtime import exact_float32
from ..sampling import encode, recording, sample, state_like
from ..shapes import check_condition, check_count, check_event
from ..solvers import GridSteps, Solver
from ..trace import Trace
from ..tuning import load_grid, load_variance, save_grid, save_variance, tune_grid, tune_particles
from .restoration import Method, Restored, pixel_mask, restore


@dataclass(frozen=True)
class Model:
    """A trained model.

    Attributes:
        denoiser: the denoiser, in evaluation mode.
        scaling: the map between data values and the model's range.
        shape: the event shape, (C, *spatial) or (D,).
        classes: the number of classes of a model that is conditioned on a `label`; None for others.

    Raises:
        ValueError: if the scaling is for another number of columns or channels than the shape has.
    """

    denoiser: Denoiser
    scaling: Scaling
    shape: tuple[int, ...]
    classes: int | None = None
    _pilots: dict[str, PilotVariance] = field(default_factory=dict, init=False, repr=False, compare=False)

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
        condition = self._labelled(condition, first, n)
        check_condition(condition, n)
        draw = functools.partial(sample, self.denoiser, solver=solver, seed=seed, denoise=denoise)
        batches = []
        for start in range(0, n, batch_size):
            rows = slice(start, min(start + batch_size, n))
            part = {name: value[rows] if value.ndim else value for name, value in condition.items()}
            size = rows.stop - start
            done = None if progress is None else functools.partial(_report, progress, start / n, size / n)
            result = draw(
                (size, *self.shape), first=first + start, condition=part, trajectory=trajectory, progress=done
            )
            batches.append(self.scaling.to_data(result.x.cpu()))
        return torch.cat(batches)

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
        check_event(x, self.shape)
        reference = state_like(self.denoiser)
        y = self.scaling.to_model(x.cpu(), dtype=reference.dtype).to(reference.device)
        return encode(self.denoiser, y, solver=solver, condition=condition)

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
            raise ValueError(f"a grid is tuned for a solver with fixed steps, such as Heun(20), got {solver}")
        grid = None if directory is None else load_grid(directory, solver, data=data is not None)
        if grid is None:
            if data is None:
                start: dict[str, Any] = {"shape": (pilot, *self.shape)}
                condition = self._labelled(condition, 0, pilot)
            else:
                start = {"data": self._states(data, seed=seed).x, "trace": trace}
            how: dict[str, Any] = {"condition": condition, "seed": seed, "seconds": seconds, "progress": progress}
            grid = tune_grid(self.denoiser, solver=solver, **how, **start)
            if directory is not None and save:
                save_grid(directory, solver, grid, data=data is not None)
        return replace(solver, grid=grid)

    def pilot(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        n: int = 128,
        seed: int = 0,
        progress: Callable[[float], object] | None = None,
    ) -> PilotVariance:
        """The variance of the data given the state, for particles; see :func:`sde.tune_particles`. It is computed once.

        Args:
            directory: a run directory, which keeps it in its `grids/`.
            n: the number of samples of the pilot run.
            seed: the seed of the pilot run.
            progress: as in :func:`sde.tune_particles`.
        """
        name = f"particles-{n}-seed{seed}"
        if name not in self._pilots:
            known = None if directory is None else load_variance(directory, name)
            if known is None:
                start: dict[str, Any] = {"condition": self._labelled(None, 0, n), "seed": seed, "progress": progress}
                known = tune_particles(self.denoiser, (n, *self.shape), **start)
                if directory is not None:
                    save_variance(directory, name, known)
            self._pilots[name] = known
        return self._pilots[name]

    def restore(
        self,
        y: Tensor,
        operator: Operator,
        noise: Tensor | float,
        *,
        method: Method | None = None,
        solver: Solver | None = None,
        n: int = 1,
        seed: int = 0,
        index: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        batch_size: int | None = None,
        variance: Variance | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Restored:
        r"""Draws from the posterior of data given a measurement :math:`y = A(x) + \mathrm{noise}\, z`, in data units.

        By default by particles, whose draws are from the posterior up to an error of order 1/16; with `method` and
        `solver` by any other way. Draw k of measurement i uses the noise of index i in repeat k, whatever the batch.

        Args:
            y: the measurements of data values (levels of images), with shape (B, \*m). Whole numbers (uint8) have been
                rounded, which is added to the noise.
            operator: the operator on data values, as if they were real numbers.
            noise: the standard deviation in the units of y (levels), of shape () or (B,). With 0 the measured part is
                put back exactly at the end, up to the rounding to levels.
            method: makes a posterior denoiser of a denoiser and a measurement, such as :class:`sde.measurement.PiGDM`;
                by default :class:`sde.measurement.DiffPIR` with the pilot's variance, the proposal of particles.
            solver: the solver; 50 steps of 16 particles by default.
            n: the number of independent draws for each measurement.
            seed: the seed of all noise.
            index: the positions of the measurements in their data set, int64 with shape (B,).
            condition: as in :meth:`sample`; without a `label`, a model with classes is run without one.
            batch_size: the number of draws in memory at a time; all by default.
            variance: the variance of the data given the state; that of :meth:`pilot` by default.
            progress: called with the fraction of the work that is done.

        Raises:
            ValueError: before the first network call, for a measurement that is none; see :class:`sde.Measurement`.
        """
        return restore(
            self.denoiser,
            self.scaling,
            self.shape,
            y,
            operator,
            noise,
            variance=self.pilot if variance is None else lambda: variance,
            method=method,
            solver=solver,
            n=n,
            seed=seed,
            index=index,
            condition=condition,
            batch_size=batch_size,
            progress=progress,
        )

    def inpaint(self, x: Tensor, mask: Tensor, noise: Tensor | float = 0.0, **kwargs: Any) -> Restored:
        r"""Draws from the posterior of data of which some pixels are known; the others of `x` do not count.

        Args:
            x: data values, with shape (B, \*).
            mask: True where a pixel is known: bool, of the event shape for all samples, or with one axis more for one
                mask per sample; of shape \*spatial, or with one channel, for all channels alike.
            noise: as in :meth:`restore`; without noise the known pixels are those of x.
            kwargs: as in :meth:`restore`.
        """
        check_event(x, self.shape)
        return self.restore(x, Mask(pixel_mask(mask, self.shape)), noise, **kwargs)

    def _labelled(self, condition: Mapping[str, Tensor] | None, first: int, n: int) -> dict[str, Tensor]:
        """The condition on the model's device, with the classes in turn as labels if there are classes and no label."""
        named = dict(condition or {})
        if self.classes is not None:
            named.setdefault("label", torch.arange(first, first + n, device="cpu") % self.classes)
        device = state_like(self.denoiser).device
        return {name: torch.as_tensor(value, device=device) for name, value in named.items()}

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
        with recording(differentiable), exact_float32():
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
        progress: Callable[[float], object] | None = None,
    ) -> ErrorBudget:
        r"""The error budget of :meth:`log_prob`, in nats; `.in_bits(D)` gives bits/dim.

        Args:
            x: data values, with shape (B, \*).
            solver, trace, seed, index, condition, prior, atol, dequantiser: as in :meth:`log_prob`.
            repeats: the number of draws of dequantisation noise and probes. With two or more, the budget is for their
                mean and includes its error over the draws.
            rows: the samples that are solved again, or their number, as in :func:`sde.error_budget`.
            progress: called while they are solved again, with the fraction that is done.
        """
        check_count("error_budget", "repeats", repeats)
        flow: dict[str, Any] = {"solver": solver, "trace": trace, "condition": condition, "prior": prior, "atol": atol}
        draw: dict[str, Any] = {"seed": seed, "index": index, "dequantiser": dequantiser}
        results = [self.log_prob(x, repeat=k, **draw, **flow) for k in range(repeats)]
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

    def _states(self, x: Tensor, **draw: Any) -> States:
        """The :func:`states` of data values of the model's shape."""
        check_event(x, self.shape)
        return states(self.denoiser, self.scaling, x, **draw)


def _report(progress: Callable[[float], object], before: float, share: float, done: float) -> None:
    """Reports the progress of one batch as that of all: `before` is done, and `done` of the batch, a `share` of all."""
    progress(before + share * done)
