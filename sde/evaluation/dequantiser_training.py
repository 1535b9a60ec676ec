r"""Training of a dequantiser for a fixed model, and its gain on other data.

The loss is :math:`-E[\log p(x) + w]` (:func:`sde.likelihood.train_dequantiser`), with one of two log-densities of
states at `t_min`: the continuous-time bound, estimated by a few draws, or the density along the flow, through whose
solution the gradient is computed. The first is a lower bound on the log-density of the reverse SDE, cheap and unbiased
with any number of draws; with the true scores the two agree. Along the flow the steps have to be fine enough for the
density itself, because noise that is fitted to the error of a solver gains nothing.
"""

from __future__ import annotations

__all__ = ["BoundDensity", "Density", "FlowDensity", "Gain", "bits", "fit"]

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Source
from ..data.scaling import nats_to_bits
from ..denoisers import Denoiser
from ..likelihood import Dequantiser, VariationalDequantiser, density_bound, log_prob, train_dequantiser
from ..model import Model
from ..noise import Noise, Stream
from ..sampling import state_like
from ..shapes import check_count
from ..solvers import Solver
from ..trace import Hutchinson, Trace
from .likelihood_job import batch_states, check_data, condition_of
from .pairing import Paired, paired
from .summary import Columns


class Density(ABC):
    """A log-density of states at `t_min`, for which a dequantiser is trained."""

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        seed: int,
        index: Tensor,
        condition: Mapping[str, Tensor],
        differentiable: bool = False,
    ) -> Tensor:
        r"""The log-density, or an unbiased estimate of a bound on it, in nats with shape (B,).

        Args:
            denoiser: the model.
            x: states, with shape (B, \*).
            seed: the seed of its draws.
            index: the keys of the draws for each state, int64 with shape (B,).
            condition: as in :func:`sde.log_prob`.
            differentiable: keep the graph, for gradients with respect to x.
        """


@dataclass(frozen=True)
class BoundDensity(Density):
    """The continuous-time bound; see :func:`sde.likelihood.density_bound`.

    Args:
        draws: the number of times for each state, with two network calls each.
    """

    draws: int = 4

    def __post_init__(self) -> None:
        check_count("BoundDensity", "draws", self.draws)

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        seed: int,
        index: Tensor,
        condition: Mapping[str, Tensor],
        differentiable: bool = False,
    ) -> Tensor:
        call: dict[str, Any] = {"seed": seed, "index": index, "condition": condition}
        return density_bound(denoiser, x, draws=self.draws, differentiable=differentiable, **call).nats


@dataclass(frozen=True)
class FlowDensity(Density):
    """The density along the probability flow; see :func:`sde.log_prob`.

    Args:
        solver: a deterministic solver, preferably with fixed steps; all of its steps are stored for the gradient.
        trace: how to compute the divergence.
    """

    solver: Solver
    trace: Trace = field(default_factory=Hutchinson)

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        seed: int,
        index: Tensor,
        condition: Mapping[str, Tensor],
        differentiable: bool = False,
    ) -> Tensor:
        call: dict[str, Any] = {"seed": seed, "index": index, "condition": condition}
        return log_prob(denoiser, x, solver=self.solver, trace=self.trace, differentiable=differentiable, **call).nats


def fit(
    model: Model,
    split: Source,
    dequantiser: VariationalDequantiser,
    density: Density,
    *,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
) -> Iterator[float]:
    """Trains a dequantiser with Adam; the caller stops the generator.

    Batches are drawn with replacement. Samples, noise and draws are functions of the seed and the step.

    Args:
        model: the model, which is not changed.
        split: the data, with the levels of the model's data.
        dequantiser: the dequantiser to train.
        density: the log-density for which it is trained.
        batch_size: samples per step.
        lr: the learning rate.
        seed: the seed of all draws.

    Yields:
        The loss of each step in bits/dim.

    Raises:
        ValueError: if the model is for continuous data, the data does not fit the model, or a number is out of range.
        FloatingPointError: if the loss or its gradient is not finite.
    """
    if model.scaling.levels is None:
        raise ValueError("this model is for continuous data, which is not dequantised: expected a model with levels")
    check_data(model, split)
    check_count("fit", "batch_size", batch_size)
    if type(lr) not in (int, float) or not (math.isfinite(lr) and lr > 0.0):
        raise ValueError(f"fit needs a finite learning rate > 0, got lr={lr!r}")
    reference, noise = state_like(model.denoiser), Noise(seed)

    def samples(step: int) -> Tensor:
        """The positions of the samples of a step."""
        bits = noise.bits(Stream.ORDER, torch.arange(batch_size, device="cpu"), torch.tensor(step, device="cpu"), 1)[
            :, 0
        ]
        return bits.remainder(len(split))

    def log_density(x: Tensor, step: int) -> Tensor:
        keys = step * batch_size + torch.arange(batch_size, device=reference.device)
        condition = condition_of(model, split[samples(step)][1])
        call: dict[str, Any] = {"seed": seed, "index": keys, "condition": condition, "differentiable": True}
        return density(model.denoiser, x.to(reference.device), **call).to(x.device)

    batches = (split[samples(step)][0] for step in itertools.count())
    optimiser, dtype = torch.optim.Adam(dequantiser.parameters(), lr=lr), reference.dtype
    losses = train_dequantiser(dequantiser, log_density, batches, model.scaling, optimiser, seed=seed, dtype=dtype)
    return (nats_to_bits(-loss, math.prod(model.shape)) for loss in losses)


@dataclass(frozen=True)
class Gain:
    """The gain of a dequantiser over uniform noise, for the same samples and draws.

    Attributes:
        uniform: the mean bits/dim with uniform noise.
        learned: the mean bits/dim with the learned noise.
        paired: the paired difference of the two, positive if the learned noise is better.
    """

    uniform: float
    learned: float
    paired: Paired

    @classmethod
    def of(cls, uniform: Columns, learned: Columns) -> Gain:
        """The gain from two results of :func:`bits`."""
        first, second = (float(np.nanmean(columns["bits_per_dim"])) for columns in (uniform, learned))
        return cls(first, second, paired(learned, uniform))

    def __str__(self) -> str:
        return (
            f"{self.uniform:.4f} bits/dim with uniform noise, {self.learned:.4f} with learned noise: gain "
            f"{self.paired.difference:.4f} +- {self.paired.standard_error:.4f} ({self.paired.samples} samples)"
        )


def bits(
    model: Model,
    split: Source,
    density: Density,
    dequantiser: Dequantiser | None = None,
    *,
    n: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[float], object] | None = None,
) -> Columns:
    """Bits/dim by a density, with one draw of noise per sample: the columns `index`, `repeat` and `bits_per_dim`.

    Args:
        model: the model.
        split: the data, preferably not the training data.
        density: the log-density.
        dequantiser: the noise; uniform by default.
        n: the number of samples, from the first one; all by default.
        batch_size: samples per batch.
        seed: the seed of all draws.
        progress: called after every batch with the fraction of the samples that are done.

    Raises:
        ValueError: if the data does not fit the model, or has fewer than n or than two samples.
    """
    check_data(model, split)
    count = len(split) if n is None else n
    if type(count) is not int or not 2 <= count <= len(split):
        raise ValueError(f"a comparison needs 2 <= n <= {len(split)}, the number of samples, got n={n!r}")
    results = []
    for index in torch.arange(count, device="cpu").split(batch_size):
        batch, condition = batch_states(model, split, index, dequantiser, seed=seed)
        nats = density(model.denoiser, batch.x, seed=seed, index=index, condition=condition)
        results.append(batch.bits_per_dim(nats))
        if progress is not None:
            progress((int(index[-1]) + 1) / count)
    repeat = np.zeros(count, dtype=np.int64)
    return {"index": np.arange(count), "repeat": repeat, "bits_per_dim": torch.cat(results).numpy()}
