r"""Denoisers: :math:`E[x_0 \mid x_t]` inside, the score outside.

A denoiser is a module that knows its process. The noise, the score and the velocity are linear functions of its answer
and of :math:`x_t`, by Tweedie's formula :math:`E[x_0 | x_t] = (x_t + \sigma_t^2 \nabla \log p_t(x_t)) / \alpha_t`; they
are the same prediction in other units.

Efron, Tweedie's Formula and Selection Bias, 2011, https://doi.org/10.1198/jasa.2011.tm11181.
"""

from __future__ import annotations

__all__ = ["Conditioned", "Denoiser", "Steering", "Wrapper"]

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..networks.conditions import Taken, as_taken
from ..processes import SDE
from ..shapes import check_condition, named_tensors
from .parametrisation import Prediction, from_score, from_x0

Self = TypeVar("Self", bound="Wrapper")

# The hooks of version 0.1.0, and what a class defines instead.
_REPLACED = dict.fromkeys(("score", "noise", "velocity"), "predict(what, x_t, t, **condition)")
_REPLACED["posterior"] = "score_and_variance(x_t, t, **condition)"


@dataclass(frozen=True)
class Steering:
    r"""The prediction and the weight of a denoiser from one evaluation, at states of shape (B, \*).

    Attributes:
        x0: :math:`E[x_0|x_t]` of the distribution that is weighed, with shape (B, \*).
        guided: the same of the weighed distribution, as the denoiser predicts it.
        log_potential: the logarithm of the weight, in nats, with shape (B,).
        kernel: the function (z, change, b, c) that turns standard normals z (B, \*) into the noise e of a proposal with
            the covariance :math:`b I + c^2 V`, and gives the logarithm of the ratio of the kernels at it, with shape
            (B,): of :math:`\mathcal N(e + \mathrm{change}; 0, b I + c^2 C)` to :math:`\mathcal N(e; 0, b I + c^2 V)`.
            C is the covariance of :math:`x_0` given :math:`x_t`, V that in the weighed distribution. With None both
            are one variance times the identity, which the solver knows.
    """

    x0: Tensor
    guided: Tensor
    log_potential: Tensor
    kernel: Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]] | None = None


class Denoiser(nn.Module, ABC):
    r"""A module that knows its process and answers :math:`E[x_0 \mid x_t]`.

    A leaf sets the attribute `process` and defines :meth:`forward`. A leaf that knows the noise, the score or the
    velocity more directly overrides :meth:`predict`: a score that is computed from :math:`x_0` in float32 loses digits
    as :math:`1/\sigma_t^2` grows. Guidance and conditioning take a denoiser and return a denoiser; see
    :class:`Wrapper`.

    Attributes:
        process: the process.
        calls: the network calls of one prediction; 2 for classifier-free guidance.
        vjps: the vector-Jacobian products of one prediction; 1 for guidance by a gradient through the network.
        classes: the number of classes of its `label`, if it has one and is a network of this library; else None.
        takes: its conditions by name, if it is a network of this library; else None.
        weighed: whether it has a :meth:`log_potential`.
        guided: whether its score is that of no density; likelihoods refuse it unless asked for the flow's.
        fixed_condition: the condition that a :class:`Conditioned` in it fixes for a batch, by name.
    """

    process: SDE
    calls: int = 1
    vjps: int = 0
    classes: int | None = None
    takes: Mapping[str, Taken] | None = None
    weighed: bool = False
    guided: bool = False
    fixed_condition: Mapping[str, Tensor] = MappingProxyType({})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, instead in _REPLACED.items():
            if getattr(cls, name, None) is not getattr(Denoiser, name, None):
                raise TypeError(
                    f"{cls.__name__} defines {name}, which solvers do not call: define {instead} instead; "
                    "score, noise and velocity call predict"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "process":  # a module in its place, such as a learned schedule, would refuse one that is none
            vars(self).get("_modules", {}).pop("process", None)
        super().__setattr__(name, value)

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The denoised data :math:`E[x_0 \mid x_t]`.

        Args:
            x_t: the noisy state, with shape (B, \*).
            t: the time, with shape () or (B,), often in float64 whatever the dtype of the state (and on the CPU
                where it is one for all samples): functions of it go through :func:`sde.expand` to meet the state.
            condition: named tensors of leading size B, or scalars, on which the denoiser is conditioned.

        Returns:
            The posterior mean, with shape (B, \*).
        """

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The prediction in the units of `what`, with shape (B, \*): the method that solvers and wrappers call.

        By default it is computed from :meth:`forward`.

        Args:
            what: :math:`x_0`, noise, score or velocity.
            x_t: as in :meth:`forward`.
            t: as in :meth:`forward`.
            condition: as in :meth:`forward`.
        """
        x0: Tensor = self(x_t, t, **condition)
        return x0 if what is Prediction.X0 else from_x0(what, self.process, x0, x_t, t)

    def score(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The score :math:`\nabla \log p_t(x_t) = (\alpha_t E[x_0|x_t] - x_t) / \sigma_t^2`, with shape (B, \*)."""
        return self.predict(Prediction.SCORE, x_t, t, **condition)

    def noise(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The noise :math:`E[z \mid x_t] = -\sigma_t \nabla \log p_t(x_t)`, with shape (B, \*)."""
        return self.predict(Prediction.NOISE, x_t, t, **condition)

    def velocity(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The velocity :math:`\alpha_t E[z|x_t] - \sigma_t E[x_0|x_t]` (Salimans and Ho 2022), with shape (B, \*)."""
        return self.predict(Prediction.VELOCITY, x_t, t, **condition)

    def score_and_variance(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        r"""The score and the learned variance of the reverse step :math:`p(x_s \mid x_t)`, from one prediction.

        Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 15: the log-variance is interpolated
        between that of the posterior :math:`q(x_s|x_t,x_0)` at v = 0 and that of the transition :math:`q(x_t|x_s)` at
        v = 1. A denoiser that has learned v overrides this method.

        Returns:
            The score, with shape (B, \*), and the variance interpolation coefficient v with the same shape, about in
            [0, 1], or None where no variance was learned.
        """
        return self.predict(Prediction.SCORE, x_t, t, **condition), None

    def log_potential(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The logarithm of what :math:`p_t(x_t)` is weighed by, in nats up to a constant of each sample, with shape
        (B,): of a likelihood :math:`p(y \mid x_t)`, a classifier or a reward.

        Raises:
            TypeError: if this denoiser is not `weighed`: it has no measurement, classifier or reward.
        """
        raise TypeError(
            f"{type(self).__name__} has no log_potential: expected a denoiser that is weighed by a measurement, a "
            "classifier or a reward"
        )

    def steer(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Steering:
        r"""The prediction of :math:`x_0` with and without what it is weighed by, and the weight, from one evaluation.

        Particle methods call it. A denoiser that is weighed by a function of :math:`x_0` overrides it, so that the
        prediction and the weight have one network call together.

        Args:
            x_t: as in :meth:`forward`.
            t: the time, with shape ().
            condition: as in :meth:`forward`.
        """
        x0 = self.predict(Prediction.X0, x_t, t, **condition)
        weight = self.log_potential(x_t, t, **condition) if self.weighed else x_t.new_zeros(len(x_t))
        return Steering(x0, x0, weight)

    def measured(self) -> Any:
        """The measurement that the prediction does not follow, :class:`sde.Measurement`, or None: solvers such as
        :class:`sde.solvers.Replacement` impose it themselves."""
        return None

    def cost(self, t: Tensor) -> tuple[int | Tensor, int | Tensor]:
        """The network calls and the vector-Jacobian products of one prediction at time `t`, each a number or, where
        samples differ, int64 with shape (B,); by default `calls` and `vjps`, which are the most at any time."""
        return self.calls, self.vjps

    def potential_cost(self, t: Tensor) -> int | Tensor:
        """The network calls of one :meth:`log_potential` at time `t`, as in :meth:`cost`; by default those of a
        prediction."""
        return self.cost(t)[0]

    def select(self, index: Tensor) -> Denoiser:
        """The denoiser for some samples of a batch; indices may repeat.

        Conditions and measurements that differ between samples stay with their samples. A denoiser without any is
        itself.
        """
        return self


class Wrapper(Denoiser):
    """A denoiser made of another one.

    A leaf defines :meth:`predict` once for all predictions, so that none is computed through another. Classifier-free
    guidance, say, is `b + w * (a - b)` of `a = self.inner.predict(what, x_t, t, label=label)` and `b` with the null
    label, with `calls` twice those of the inner one. The learned variance is that of the first prediction of the inner
    one, here of the one with the label. A leaf with values of its own for each sample extends :meth:`select`.

    Args:
        inner: the denoiser that is wrapped.
    """

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        self.process, self.calls, self.vjps, self.classes = inner.process, inner.calls, inner.vjps, inner.classes
        self.weighed, self.guided, self.takes = inner.weighed, inner.guided, inner.takes
        self.fixed_condition = dict(inner.fixed_condition)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "read"):
            raise TypeError(
                f"{cls.__name__} defines read, which nothing calls: define predict(what, x_t, t, **condition) "
                "instead, by way of self.inner.predict(what, x_t, t, **condition)"
            )

    @abstractmethod
    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The prediction, by way of `self.inner.predict(what, x_t, t, **condition)`."""

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.predict(Prediction.X0, x_t, t, **condition)

    def score_and_variance(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        recorder = _VarianceRecorder(self.inner)
        score = self.wrap(recorder).predict(Prediction.SCORE, x_t, t, **condition)
        return score, next(iter(recorder.variances), None)

    def log_potential(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.inner.log_potential(x_t, t, **condition)

    def steer(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Steering:
        """As in :class:`Denoiser`: the inner distribution, which this wrapper weighs if it has a potential of its own,
        and else proposes for."""
        recorder = _SteeringRecorder(self.inner, x_t)
        wrapped = self.wrap(recorder)
        guided = wrapped.predict(Prediction.X0, x_t, t, **condition)
        steering = recorder.steering or self.inner.steer(x_t, t, **condition)
        if self.weighed:
            steering = replace(steering, log_potential=wrapped.log_potential(x_t, t, **condition))
        return replace(steering, guided=guided)

    def measured(self) -> Any:
        return self.inner.measured()

    def cost(self, t: Tensor) -> tuple[int | Tensor, int | Tensor]:
        calls, vjps = self.inner.cost(t)  # what this wrapper adds to them is the same at all times
        return calls + (self.calls - self.inner.calls), vjps + (self.vjps - self.inner.vjps)

    def potential_cost(self, t: Tensor) -> int | Tensor:
        return self.inner.potential_cost(t)

    def select(self, index: Tensor) -> Denoiser:
        inner = self.inner.select(index)
        return self if inner is self.inner else self.wrap(inner)

    def wrap(self: Self, inner: Denoiser) -> Self:
        """This wrapper around another denoiser of the same process."""
        other = copy.copy(self)
        other._modules = dict(self._modules)  # the copy is shallow: it would replace the denoiser of this one too
        other.inner = inner
        return other


class _VarianceRecorder(Wrapper):
    """The inner denoiser, with the learned variance of every prediction put on a list."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.variances: list[Tensor | None] = []

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        score, variance = self.inner.score_and_variance(x_t, t, **condition)
        self.variances.append(variance)
        return from_score(what, self.process, score, x_t, t)


class _SteeringRecorder(Wrapper):
    """The inner denoiser, with its first evaluation at a state kept for the predictions and the weight there."""

    def __init__(self, inner: Denoiser, x_t: Tensor) -> None:
        super().__init__(inner)
        self.x_t = x_t
        self.steering: Steering | None = None
        self.condition: dict[str, Tensor] = {}

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        same = condition.keys() == self.condition.keys() and all(v is condition[k] for k, v in self.condition.items())
        if x_t is not self.x_t or not (same or self.steering is None):
            return self.inner.predict(what, x_t, t, **condition)
        x0 = self.steer(x_t, t, **condition).guided
        return x0 if what is Prediction.X0 else from_x0(what, self.process, x0, x_t, t)

    def log_potential(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        if x_t is not self.x_t:
            return self.inner.log_potential(x_t, t, **condition)
        return self.steer(x_t, t, **condition).log_potential

    def steer(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Steering:
        if self.steering is None:
            self.steering, self.condition = self.inner.steer(x_t, t, **condition), condition
        return self.steering


class Conditioned(Wrapper):
    """A denoiser with its condition fixed for one batch, which counts the calls made for each of its samples.

    Args:
        inner: the denoiser.
        condition: tensors of leading size B, or scalars.
        nfe: the counts of network calls, int64 with shape (B,); every prediction adds the :meth:`Denoiser.cost` of
            `inner` for each of its samples.
        rows: which of the B samples this one answers for, int64; they may repeat. All by default.
        vjps: the counts of vector-Jacobian products, in the same way.
    """

    def __init__(
        self,
        inner: Denoiser,
        condition: Mapping[str, Tensor | float] | None,
        nfe: Tensor,
        rows: Tensor | None = None,
        *,
        vjps: Tensor | None = None,
    ) -> None:
        super().__init__(inner)
        self.condition = named_tensors(condition)
        self.fixed_condition = {**inner.fixed_condition, **self.condition}
        self.counts, self.rows = (nfe, torch.zeros_like(nfe) if vjps is None else vjps), rows
        check_condition(self.condition, len(nfe if rows is None else rows))
        if rows is None and self.takes is not None:
            self.condition = as_taken(self.takes, self.condition)

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self._count(*self.inner.cost(t))
        return self.inner.predict(what, x_t, t, **self.condition, **condition)

    def score_and_variance(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        self._count(*self.inner.cost(t))
        return self.inner.score_and_variance(x_t, t, **self.condition, **condition)

    def log_potential(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self._count(self.inner.potential_cost(t), 0)  # a weight takes no gradient
        return self.inner.log_potential(x_t, t, **self.condition, **condition)

    def steer(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Steering:
        self._count(*self.inner.cost(t))
        return self.inner.steer(x_t, t, **self.condition, **condition)

    def _count(self, *costs: int | Tensor) -> None:
        for count, each in zip(self.counts, costs):
            if self.rows is None:
                count += each.to(count.device) if isinstance(each, Tensor) else each
            elif isinstance(each, Tensor) or each:
                spent = torch.as_tensor(each, dtype=torch.int64, device=self.rows.device)
                count.index_add_(0, self.rows, spent.expand_as(self.rows))

    def select(self, index: Tensor) -> Conditioned:
        rows = index if self.rows is None else self.rows[index]
        condition = {name: value[index] if value.ndim else value for name, value in self.condition.items()}
        nfe, vjps = self.counts
        return Conditioned(self.inner.select(index), condition, nfe, rows, vjps=vjps)
