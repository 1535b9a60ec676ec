r"""Training a dequantiser for a model that stays as it is, and what it gains on other data.

The loss is :math:`-E[\log p(x) + w]` (:mod:`sde.likelihood.variational`), with one of two log-densities of states at
`t_min`: the continuous-time bound, an expectation of a few draws, or the density along the flow, which is an equation
to be solved and differentiated through. The first is a lower bound on the log-density of the reverse SDE, cheap and
unbiased with any number of draws; where the scores are true the two agree. Along the flow the steps must be fine enough
for the density itself: noise that is fitted to a solver's error gains nothing.
"""

from __future__ import annotations

__all__ = ["BoundDensity", "Density", "FlowDensity", "Gain", "bits", "fit"]

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Split
from ..denoisers import Denoiser
from ..likelihood.bounds import density_bound
from ..likelihood.dequantisation import Dequantiser
from ..likelihood.flow import log_prob
from ..likelihood.variational import VariationalDequantiser, train_dequantiser
from ..model import Model
from ..noise import Noise, Stream
from ..sampling import state_like
from ..solvers import Solver
from ..trace import Hutchinson, Trace
from .likelihood_job import check_data, states
from .pairing import Paired, paired

Columns = Mapping[str, NDArray[Any]]


class Density(ABC):
    """A log-density of states at `t_min` that a dequantiser is fitted to."""

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
            seed: the seed of what it draws.
            index: what keys the draws of each state, int64 with shape (B,).
            condition: as in :func:`sde.log_prob`.
            differentiable: keep the graph, for gradients with respect to x.
        """


@dataclass(frozen=True)
class BoundDensity(Density):
    """The continuous-time bound; see :func:`sde.likelihood.density_bound`.

    Args:
        draws: how many times for each state, two network calls each.
    """

    draws: int = 4

    def __post_init__(self) -> None:
        if type(self.draws) is not int or self.draws < 1:
            raise ValueError(f"BoundDensity needs a whole number draws >= 1, got draws={self.draws!r}")

    def __call__(self, denoiser: Denoiser, x: Tensor, **call: Any) -> Tensor:
        return density_bound(denoiser, x, draws=self.draws, **call).nats


@dataclass(frozen=True)
class FlowDensity(Density):
    """The density along the probability flow; see :func:`sde.log_prob`.

    Args:
        solver: a deterministic solver, best one of fixed steps: all of its steps are kept for the gradient.
        trace: how to compute the divergence.
    """

    solver: Solver
    trace: Trace = field(default_factory=Hutchinson)

    def __call__(self, denoiser: Denoiser, x: Tensor, **call: Any) -> Tensor:
        return log_prob(denoiser, x, solver=self.solver, trace=self.trace, **call).nats


def fit(
    model: Model,
    split: Split,
    dequantiser: VariationalDequantiser,
    density: Density,
    *,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
) -> Iterator[float]:
    """Trains a dequantiser with Adam; stop by not asking for more.

    Batches are drawn with replacement. Samples, noise and draws are functions of the seed and the step.

    Args:
        model: the model, whose parameters take no part.
        split: the data, levels as the model has them.
        dequantiser: what learns.
        density: the log-density that it is fitted to.
        batch_size: samples in a step.
        lr: the learning rate.
        seed: the seed of everything that is drawn.

    Yields:
        The loss of each step in bits/dim.

    Raises:
        ValueError: if the model is of continuous data, the data is not the model's, or a number makes no sense.
        FloatingPointError: if the loss or its gradient is not finite.
    """
    if model.scaling.levels is None:
        raise ValueError("this model is of continuous data, which is not dequantised: there is nothing to learn")
    check_data(model, split)
    real = type(lr) in (int, float) and math.isfinite(lr) and lr > 0.0
    if type(batch_size) is not int or batch_size < 1 or not real:
        raise ValueError(f"fit needs a whole number batch_size >= 1 and a finite lr > 0, got {batch_size!r} and {lr!r}")
    like, noise = state_like(model.denoiser), Noise(seed)

    def places(step: int) -> Tensor:
        """The positions of the samples of a step."""
        bits = noise.bits(Stream.ORDER, torch.arange(batch_size), torch.tensor(step), 1)[:, 0]
        return bits.remainder(len(split))

    def batches() -> Iterator[Tensor]:
        step = 0
        while True:
            yield split.values[places(step)]
            step += 1

    def log_density(x: Tensor, step: int) -> Tensor:
        condition = {}
        if model.classes is not None and split.labels is not None:
            condition["label"] = split.labels[places(step)].to(like.device)
        keys = step * batch_size + torch.arange(batch_size, device=like.device)
        call: dict[str, Any] = {"seed": seed, "index": keys, "condition": condition, "differentiable": True}
        return density(model.denoiser, x.to(like.device), **call).to(x.device)

    optimiser = torch.optim.Adam(dequantiser.parameters(), lr=lr)
    run = train_dequantiser(dequantiser, log_density, batches(), model.scaling, optimiser, seed=seed, dtype=like.dtype)
    dims = math.prod(model.shape)
    return (loss / (dims * math.log(2.0)) for loss in run)


@dataclass(frozen=True)
class Gain:
    """What a dequantiser gains over uniform noise, on the same samples with the same draws.

    Attributes:
        uniform: the mean bits/dim with uniform noise.
        learned: that with the learned noise.
        paired: the first less the second, sample by sample: positive where learning has helped.
    """

    uniform: float
    learned: float
    paired: Paired

    @classmethod
    def of(cls, uniform: Columns, learned: Columns) -> Gain:
        """That of two results of :func:`bits`."""
        first, second = (float(np.nanmean(columns["bits_per_dim"])) for columns in (uniform, learned))
        return cls(first, second, paired(learned, uniform))

    def __str__(self) -> str:
        return (
            f"{self.uniform:.4f} bits/dim with uniform noise, {self.learned:.4f} with the learned one: gained "
            f"{self.paired.difference:.4f} +- {self.paired.standard_error:.4f} ({self.paired.samples} samples)"
        )


def bits(
    model: Model,
    split: Split,
    density: Density,
    dequantiser: Dequantiser | None = None,
    *,
    n: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Columns:
    """Bits/dim by a density, one draw of noise for each sample: the columns `index`, `repeat` and `bits_per_dim`.

    Args:
        model: the model.
        split: the data, best such that was not trained on.
        density: the log-density.
        dequantiser: the noise; uniform by default.
        n: how many samples, the first ones; by default all.
        batch_size: samples at a time.
        seed: the seed of everything that is drawn.

    Raises:
        ValueError: if the data is not the model's, there are not so many samples, or fewer than two, which have no
            standard error.
    """
    check_data(model, split)
    count = len(split) if n is None else n
    if type(count) is not int or not 2 <= count <= len(split):
        raise ValueError(f"a comparison needs 2 <= n <= {len(split)} (the samples there are), got n={n!r}")
    found = []
    for index in torch.arange(count).split(batch_size):
        made, condition = states(model, split, index, dequantiser=dequantiser, seed=seed)
        nats = density(model.denoiser, made.x, seed=seed, index=index, condition=condition).double().cpu()
        found.append(-(nats + made.log_weight) / (math.prod(model.shape) * math.log(2.0)))
    return {
        "index": np.arange(count),
        "repeat": np.zeros(count, dtype=np.int64),
        "bits_per_dim": torch.cat(found).numpy(),
    }
