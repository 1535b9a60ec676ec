r"""The base of all guidance: values of its own for each sample, the noise levels at which it acts, and its cost.

Guidance changes the prediction a of a denoiser by a term that costs further calls. It may act in an interval of noise
levels only, :math:`\mathrm{low} < \sigma_t/\alpha_t \le \mathrm{high}`: at high noise it costs variety, at low noise it
has little effect (Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724). Outside of it the prediction is a, and
the further calls are neither made nor counted, sample by sample.
"""

from __future__ import annotations

__all__ = ["Guidance", "Number", "Value", "Weighted", "check_given", "nulled", "weight_of"]

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from ..denoisers import Denoiser, Prediction, Wrapper, from_x0
from ..shapes import as_tensor, check_condition, event_dims, expand, float64, recordable

# A weight: a number, or one for each sample, with shape (B,).
Number = float | Tensor
# What stands for a condition that is not given: a scalar, a tensor of leading size B, or None, which leaves it out.
Value = Tensor | float | None

Self = TypeVar("Self", bound="Guidance")


class Guidance(Wrapper):
    """A denoiser that is changed by values of its own, which follow the samples of a batch.

    Args:
        inner: the denoiser that is guided.
        values: scalars or tensors of leading size B, by name.
        guided: whether its score is that of no density.
    """

    def __init__(self, inner: Denoiser, values: Mapping[str, Tensor | float], guided: bool) -> None:
        super().__init__(inner)
        self.values = {name: recordable(as_tensor(value)) for name, value in values.items()}
        self.guided = inner.guided or guided

    def check(self, batch: int) -> None:
        """Raises a ValueError if a value is neither a scalar nor has one entry for each of `batch` samples."""
        try:
            check_condition(self.values, batch)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from error

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={f'of {len(v)} samples' if v.ndim else v.item()}" for k, v in self.values.items())

    def select(self: Self, index: Tensor) -> Self:
        other = self.wrap(self.inner.select(index))
        try:
            other.values = {name: v[index.to(v.device)] if v.ndim else v for name, v in self.values.items()}
        except IndexError:
            self.check(int(index.max()) + 1)
            raise
        return other


class Weighted(Guidance):
    r"""Guidance with one weight, which acts in an interval of noise levels.

    Args:
        inner: the denoiser that is guided.
        weight: a number, or one for each sample, with shape (B,). A weight of 1 is the inner denoiser.
        low: the noise level :math:`\sigma/\alpha` above which guidance acts; None for all.
        high: the noise level up to which it acts; None for all.
        rescale: how much of the standard deviation of a guided :math:`x_0` is set back to that of the inner denoiser.
        values: further values, as in :class:`Guidance`.

    Raises:
        ValueError: if the weight has another shape or is not finite, or a number is out of range.
    """

    def __init__(
        self,
        inner: Denoiser,
        weight: Number,
        low: float | None = None,
        high: float | None = None,
        rescale: float = 0.0,
        values: Mapping[str, Tensor | float] | None = None,
    ) -> None:
        w = weight_of("weight", weight)
        super().__init__(inner, {"weight": w, **(values or {})}, guided=not bool((w == 1.0).all()))
        if not 0.0 <= (low or 0.0) < (math.inf if high is None else high):
            raise ValueError(f"guidance acts where low < sigma/alpha <= high: expected low < high, got {low=}, {high=}")
        if not 0.0 <= rescale <= 1.0:
            raise ValueError(f"expected rescale in [0, 1], got rescale={rescale}")
        self.low, self.high, self.rescale = low, high, rescale

    @property
    def weight(self) -> Tensor:
        """The weight, with shape () or (B,)."""
        return self.values["weight"]

    @abstractmethod
    def other(self, what: Prediction, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        r"""The prediction b of which guidance leads away, with shape (B, \*)."""

    @abstractmethod
    def other_cost(self, t: Tensor) -> tuple[int | Tensor, int | Tensor]:
        """The cost of :meth:`other`, as in :meth:`sde.Denoiser.cost`."""

    @abstractmethod
    def check_names(self, condition: Mapping[str, Tensor]) -> None:
        """Raises a ValueError if guidance needs a condition that is not there."""

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.check(len(x_t))
        self.check_names(condition)
        if self.rescale and event_dims(x_t) < 2:
            raise ValueError("rescale needs data of 2 dimensions or more: a single number has no standard deviation")
        unit = Prediction.X0 if self.rescale else what
        prediction, inside = self.inner.predict(unit, x_t, t, **condition), self._inside(t)
        if bool(inside.all()):
            prediction = self._mixed(unit, prediction, x_t, t, condition)
        elif bool(inside.any()):
            index = inside.nonzero()[:, 0].to(x_t.device)
            part = {name: value[index] if value.ndim else value for name, value in condition.items()}
            some = self.select(index)._mixed(unit, prediction[index], x_t[index], t[index.to(t.device)], part)
            prediction = prediction.index_copy(0, index, some)
        return prediction if unit is what else from_x0(what, self.process, prediction, x_t, t)

    def _mixed(self, unit: Prediction, a: Tensor, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        # lerp is b + w (a - b), and a for w = 1 to the last bit.
        guided = torch.lerp(self.other(unit, x_t, t, condition), a, expand(self.weight, a))
        if not self.rescale:
            return guided
        ratio = a.flatten(1).std(1) / guided.flatten(1).std(1)
        return expand(self.rescale * ratio + (1.0 - self.rescale), guided) * guided  # Lin et al. 2024, (15) and (16)

    def _inside(self, t: Tensor) -> Tensor:
        """Whether guidance acts, in the shape of `t`."""
        if self.low is None and self.high is None:
            return torch.ones((), dtype=torch.bool, device="cpu")
        level = torch.exp(-0.5 * self.process.log_snr(t))
        return (level > (self.low or 0.0)) & (level <= (math.inf if self.high is None else self.high))

    def cost(self, t: Tensor) -> tuple[int | Tensor, int | Tensor]:
        inside, (calls, vjps), (more, more_vjps) = self._inside(t), self.inner.cost(t), self.other_cost(t)
        acts = inside.long() if inside.ndim else int(inside)
        return calls + acts * more, vjps + acts * more_vjps

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, low={self.low}, high={self.high}, rescale={self.rescale}"


def weight_of(name: str, weight: Number) -> Tensor:
    """A weight as a tensor, in float64 if it is a number; refused unless it is finite and has shape () or (B,)."""
    w = weight if isinstance(weight, Tensor) else float64(weight)
    if w.ndim > 1 or not bool(w.isfinite().all()):
        raise ValueError(
            f"expected {name} to be a finite number, or one for each sample, with shape (B,), got "
            f"{tuple(w.shape) if w.ndim > 1 else weight}"
        )
    return w


def nulled(
    denoiser: Denoiser, condition: Mapping[str, Tensor], null: Mapping[str, Value], reference: Tensor
) -> dict[str, Tensor]:
    """A condition without the information of some of its names.

    Args:
        denoiser: the denoiser that it is for.
        condition: the condition.
        null: the names, and what stands for "not given": a value, or None to leave the name out, and a mask `NAME_mask`
            with it. The `label` of a network with classes is then its null class.
        reference: a tensor on the device of the values.
    """
    values: dict[str, Value] = dict(null)
    if denoiser.classes is not None and "label" in values and values["label"] is None:
        values["label"] = denoiser.classes
    gone = {*values, *(f"{name}_mask" for name in values)}
    named = {name: as_tensor(value).to(reference.device) for name, value in values.items() if value is not None}
    return {**{name: value for name, value in condition.items() if name not in gone}, **named}


def check_given(condition: Mapping[str, Tensor], names: Mapping[str, object]) -> None:
    """Refuses a condition that lacks one of the names that guidance is by."""
    if missing := [name for name in names if name not in condition]:
        there = ", ".join(condition) or "none"
        raise ValueError(
            f"guidance by {', '.join(names)} needs the condition {missing[0]!r}: the conditions are {there}"
        )
