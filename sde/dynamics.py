r"""Dynamics: the drift and the diffusion that a solver integrates.

Running a process backwards in time is, for any :math:`\eta \ge 0`,

.. math::
    dx = \Big[ f(t) x - \frac{1 + \eta^2}{2} g(t)^2 \nabla \log p_t(x) \Big] dt + \eta\, g(t)\, d\bar w,

with the same marginals :math:`p_t` for every eta: the reverse SDE for 1 (Anderson 1982), the probability-flow ODE
for 0 (Song et al. 2021, equation 13 of section 4.3 and appendix D). Along the flow the log-density changes by
:math:`d \log p_t(x_t) = -\nabla \cdot \tilde f(x_t, t)\, dt` (Chen et al. 2018, https://arxiv.org/abs/1806.07366).

**What a solver uses.** The state is a tuple of tensors of leading size B: (x,), or (x, log-density). Every dynamics
has a drift and a diffusion. That of a diffusion model is :class:`Semilinear`, with these parts:

- the drift is :math:`f(t)\, x + c(t)\, s(x, t)`. :meth:`Semilinear.linear` and :meth:`Semilinear.score_coefficient` are
  functions of time alone: a solver computes them for a whole grid at once, and only the network is called in its loop;
- :meth:`Semilinear.predict` gives the network's prediction in the layout of the state. The entry of the log-density is
  minus the divergence of the prediction;
- :meth:`Semilinear.propagate` applies the linear part exactly, and :meth:`Semilinear.rate` turns a prediction into the
  rate at which the scaled state moves. An exponential integrator in noise prediction is `u = propagate(state,
  -log_alpha)` with `du = rate(noise, alpha)` over the integration variable :math:`\sigma/\alpha`; in data prediction it
  is `u = propagate(state, -log_sigma)` with `du = rate(x0, sigma)` over :math:`\alpha/\sigma`. Both work for every
  state.
"""

from __future__ import annotations

__all__ = ["Dynamics", "Semilinear", "Reverse", "State", "WithLogDensity", "finite", "linear_combination", "rows"]

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from .denoisers import Denoiser, Prediction
from .processes import SDE
from .shapes import event_dims, expand, float64
from .trace import BoundTrace

State = tuple[Tensor, ...]


def linear_combination(*terms: tuple[float | Tensor, State]) -> State:
    """The linear combination of states, entry by entry: linear_combination((a, x), (b, y)) = a x + b y."""
    columns = zip(*(state for _, state in terms))
    return tuple(reduce(torch.add, [c * entry for (c, _), entry in zip(terms, entries)]) for entries in columns)


def rows(x: State, index: Tensor) -> State:
    """The state of some samples."""
    return tuple(entry[index] for entry in x)


def finite(x: State) -> Tensor:
    """Whether a sample is finite in all its entries, bool (B,)."""
    return torch.stack([entry.detach().isfinite().flatten(1).all(1) for entry in x]).all(0)


class Dynamics(ABC):
    """A drift and a diffusion over the time interval of a process."""

    process: SDE

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether the diffusion is anything but zero."""

    @abstractmethod
    def drift(self, state: State, t: Tensor) -> State:
        """The drift at time `t` of shape () or (B,), with the shapes of the state."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """The coefficient of the noise on the first entry of the state, in the shape of `t`."""

    @abstractmethod
    def select(self, index: Tensor) -> Dynamics:
        """This dynamics for some samples of the batch, their conditions and probes included."""

    @property
    @abstractmethod
    def tolerances(self) -> tuple[float | None, ...]:
        """The absolute tolerance of each entry of the state, or None for that of the solver."""

    @property
    def condition(self) -> Mapping[str, Tensor]:
        """The condition of the batch by name, where there is one."""
        return {}


class Semilinear(Dynamics):
    """A dynamics whose drift is linear in the state up to a prediction of the network."""

    eta: float

    @abstractmethod
    def select(self, index: Tensor) -> Semilinear:
        """As in :class:`Dynamics`."""

    @abstractmethod
    def linear(self, t: Tensor) -> Tensor:
        """The coefficient f(t) of x in the drift, in the shape of `t`."""

    @abstractmethod
    def score_coefficient(self, t: Tensor) -> Tensor:
        r"""The coefficient of the score in the drift, :math:`-\frac{1+\eta^2}{2} g(t)^2`, in the shape of `t`."""

    @abstractmethod
    def predict(self, what: Prediction, state: State, t: Tensor) -> State:
        """The network's prediction, in the layout of the state."""

    @abstractmethod
    def propagate(self, state: State, log_scale: Tensor | float) -> State:
        """The state after the linear part alone, which scales x by `exp(log_scale)`, of shape () or (B,)."""

    @abstractmethod
    def rate(self, prediction: State, scale: Tensor | float) -> State:
        """The prediction as a rate of u = x / scale: unchanged for x, times `scale` for the log-density."""

    def score(self, state: State, t: Tensor) -> State:
        """The score, in the layout of the state."""
        return self.predict(Prediction.SCORE, state, t)

    def noise(self, state: State, t: Tensor) -> State:
        """The noise, in the layout of the state."""
        return self.predict(Prediction.NOISE, state, t)

    def x0(self, state: State, t: Tensor) -> State:
        """The denoised data, in the layout of the state."""
        return self.predict(Prediction.X0, state, t)

    def gain(self, t: Tensor) -> Tensor:
        """The name of :meth:`score_coefficient` in version 0.1.0."""
        return self.score_coefficient(t)


@dataclass(frozen=True)
class Reverse(Semilinear):
    r"""The reverse-time dynamics of a denoiser's process, over the state (x,).

    Args:
        denoiser: any denoiser; :class:`sde.Conditioned` fixes its condition for a batch.
        eta: the stochasticity: 1 is the reverse SDE, 0 the probability-flow ODE.
    """

    denoiser: Denoiser
    eta: float = 1.0

    tolerances = (None,)

    def __post_init__(self) -> None:
        if not self.eta >= 0.0:
            raise ValueError(f"Reverse needs eta >= 0 (1 for the reverse SDE, 0 for the flow), got eta={self.eta}")

    @property
    def process(self) -> SDE:  # type: ignore[override]
        return self.denoiser.process

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    @property
    def condition(self) -> Mapping[str, Tensor]:
        return self.denoiser.fixed_condition

    def linear(self, t: Tensor) -> Tensor:
        return self.process.f(t)

    def score_coefficient(self, t: Tensor) -> Tensor:
        return -0.5 * (1.0 + self.eta**2) * self.process.g2(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.eta * self.process.diffusion(t)

    def drift(self, state: State, t: Tensor) -> State:
        (x,) = state
        score = self.denoiser.predict(Prediction.SCORE, x, t)
        return (expand(self.linear(t), x) * x + expand(self.score_coefficient(t), x) * score,)

    def predict(self, what: Prediction, state: State, t: Tensor) -> State:
        return (self.denoiser.predict(what, state[0], t),)

    def propagate(self, state: State, log_scale: Tensor | float) -> State:
        (x,) = state
        return (expand(float64(log_scale).exp(), x) * x,)

    def rate(self, prediction: State, scale: Tensor | float) -> State:
        return prediction

    def select(self, index: Tensor) -> Reverse:
        return replace(self, denoiser=self.denoiser.select(index))


@dataclass(frozen=True)
class WithLogDensity(Semilinear):
    r"""A probability flow with the log-density, over the state (x, l) with l of shape (B, P).

    .. math:: \frac{dl}{dt} = -\nabla \cdot \tilde f = -D f(t) - c(t)\, \nabla \cdot s(x, t)

    From l = 0 at one end, l at the other end is the change of :math:`\log p_t(x_t)`, once for each of the P estimates
    of the trace. The linear part, D f, is exact.

    Args:
        flow: a dynamics with eta = 0 over the state (x,).
        trace: the trace estimator, bound to the probes of the batch.
        atol: the absolute tolerance of l in nats for adaptive solvers; None uses the solver's own.
    """

    flow: Semilinear
    trace: BoundTrace
    atol: float | None = None

    eta = 0.0
    stochastic = False

    def __post_init__(self) -> None:
        if self.flow.stochastic:
            raise ValueError(
                "the log-density is integrated along a flow, not along an SDE: expected a dynamics with eta=0, "
                f"got eta={self.flow.eta}"
            )

    @property
    def process(self) -> SDE:  # type: ignore[override]
        return self.flow.process

    @property
    def tolerances(self) -> tuple[float | None, ...]:
        return (*self.flow.tolerances, self.atol)

    @property
    def condition(self) -> Mapping[str, Tensor]:
        return self.flow.condition

    def linear(self, t: Tensor) -> Tensor:
        return self.flow.linear(t)

    def score_coefficient(self, t: Tensor) -> Tensor:
        return self.flow.score_coefficient(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.flow.diffusion(t)

    def drift(self, state: State, t: Tensor) -> State:
        x, log_density = state
        score, divergence = self.trace(lambda y: self.flow.predict(Prediction.SCORE, (y,), t)[0], x)
        f, c = self.linear(t), self.score_coefficient(t)
        change = expand(c, log_density) * divergence + event_dims(x) * expand(f, log_density)
        return expand(f, x) * x + expand(c, x) * score, -change

    def predict(self, what: Prediction, state: State, t: Tensor) -> State:
        value, divergence = self.trace(lambda x: self.flow.predict(what, (x,), t)[0], state[0])
        return value, -divergence

    def propagate(self, state: State, log_scale: Tensor | float) -> State:
        x, log_density = state
        change = expand(float64(log_scale), log_density)
        return (*self.flow.propagate((x,), log_scale), log_density - event_dims(x) * change)

    def rate(self, prediction: State, scale: Tensor | float) -> State:
        value, divergence = prediction
        factor = expand(float64(scale), divergence)
        return (*self.flow.rate((value,), scale), factor * divergence)

    def select(self, index: Tensor) -> WithLogDensity:
        return replace(self, flow=self.flow.select(index), trace=self.trace.select(index))
