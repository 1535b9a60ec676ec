r"""The methods of a model for measurements of data: restoration and inpainting, in data units.

These are the methods of :class:`sde.Model`; :mod:`sde.model.restoration` has the mathematics.
"""

from __future__ import annotations

__all__ = ["Restoring"]

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..data import Scaling
from ..denoisers import Denoiser
from ..measurement import Mask, Operator, PilotCovariance, PilotVariance, Variance
from ..sampling import state_like
from ..shapes import check_event, numbers_of
from ..solvers import Polish, Solver
from ..tuning import load_variance, save_variance, tune_particles
from .restoration import Method, Restored, pixel_mask, restore


class Restoring:
    """The methods of :class:`sde.Model` that infer data from measurements of it."""

    denoiser: Denoiser
    scaling: Scaling
    shape: tuple[int, ...]
    classes: int | None

    def pilot(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        n: int = 256,
        seed: int = 0,
        covariance: bool | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> PilotVariance | PilotCovariance:
        """The variance of the data given the state, for particles; see :func:`sde.tune_particles`. It is computed once.

        Args:
            directory: a run directory, which keeps it in its `grids/`.
            n: the number of samples of the pilot run.
            seed: the seed of the pilot run.
            covariance: the covariance in its place; by default for data of at most 256 dimensions.
            progress: as in :func:`sde.tune_particles`.
        """
        # A model is frozen; these belong to it.
        pilots: dict[str, PilotVariance | PilotCovariance] = vars(self).setdefault("_pilots", {})
        covariance = math.prod(self.shape) <= 256 if covariance is None else covariance
        name = f"particles-{n}-seed{seed}{'-covariance' * covariance}"
        if name not in pilots:
            known = None if directory is None else load_variance(directory, name)
            if known is None:
                label = None if self.classes is None else torch.arange(n, device="cpu") % self.classes
                device = state_like(self.denoiser).device
                condition = None if label is None else {"label": label.to(device)}
                start: dict[str, Any] = {"condition": condition, "seed": seed, "covariance": covariance}
                known = tune_particles(self.denoiser, (n, *self.shape), progress=progress, **start)
                if directory is not None:
                    save_variance(directory, name, known)
            pilots[name] = known
        return pilots[name]

    def restore(
        self,
        y: Tensor,
        operator: Operator,
        noise: Tensor | float,
        *,
        method: Method | None = None,
        solver: Solver | None = None,
        polishing: Polish | None = None,
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
            polishing: Langevin steps that follow, `Polish(Ancestral(8, grid=LogSNR()))` say; see :func:`sde.polish`.
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
            polishing=polishing,
            n=n,
            seed=seed,
            index=index,
            condition=condition,
            batch_size=batch_size,
            progress=progress,
        )

    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        noise: Tensor | float = 0.0,
        *,
        method: Method | None = None,
        solver: Solver | None = None,
        polishing: Polish | None = None,
        n: int = 1,
        seed: int = 0,
        index: Tensor | None = None,
        condition: Mapping[str, Tensor] | None = None,
        batch_size: int | None = None,
        variance: Variance | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Restored:
        r"""Draws from the posterior of data of which some pixels are known; the others of `x` do not count.

        Args:
            x: data values, with shape (B, \*).
            mask: True where a pixel is known: bool, of the event shape for all samples, or with one axis more for one
                mask per sample; of shape \*spatial, or with one channel, for all channels alike.
            noise: as in :meth:`restore`; without noise the known pixels are those of x.
            method, solver, polishing, n, seed, index, condition, batch_size, variance, progress: as in
                :meth:`restore`.
        """
        x = numbers_of("data values", x)
        check_event(x, self.shape)
        return self.restore(
            x,
            Mask(pixel_mask(numbers_of("mask", mask), self.shape)),
            noise,
            method=method,
            solver=solver,
            polishing=polishing,
            n=n,
            seed=seed,
            index=index,
            condition=condition,
            batch_size=batch_size,
            variance=variance,
            progress=progress,
        )
