r"""Several conditions at once, each with a weight of its own, negative ones among them.

.. math:: D(x_t) = b + \sum_m w_m\,(a_m - b)

with the prediction b without any of the conditions and :math:`a_m` with the m-th alone. For conditions that are
independent given :math:`x_t` and weights of 1 this is the score of the joint condition, so that combinations that were
never trained can be asked for. A negative weight leads away from its condition.

Liu et al., Compositional Visual Generation with Composable Diffusion Models, 2022, https://arxiv.org/abs/2206.01714,
equations 11 and 13.
"""

from __future__ import annotations

__all__ = ["Composed"]

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from ..denoisers import Denoiser, Prediction
from ..shapes import expand
from .base import Guidance, Number, Value, check_given, nulled, weight_of


class Composed(Guidance):
    r"""Composed guidance: :math:`b + \sum_m w_m (a_m - b)`, with :math:`a_m` given one condition alone.

    It takes one call for each condition, and one without any. Conditions without a weight are given in all calls. It is
    exact for weights of 1 and conditions that are independent given :math:`x_t`, and otherwise biased; see
    :mod:`sde.guidance`.

    Args:
        inner: a denoiser that was trained with and without each of its conditions.
        weights: the weight of each name, a number or one for each sample, with shape (B,).
        null: what stands for "not given" of each name, as in :class:`ClassifierFree`.
        terms: further conditions, each with its weight: `[({"label": 3}, -1.0)]` is "not a three" beside the
            conditions of the batch. Their values are scalars or tensors of leading size B.
    """

    def __init__(
        self,
        inner: Denoiser,
        weights: Mapping[str, Number],
        null: Mapping[str, Value] | None = None,
        terms: Sequence[tuple[Mapping[str, Tensor | float], Number]] = (),
    ) -> None:
        if not weights and not terms:
            raise ValueError("Composed needs a weight of one condition at least, such as weights={'label': 2.0}")
        names = dict.fromkeys([*weights, *(name for condition, _ in terms for name in condition)])
        if extra := [name for name in null or {} if name not in names]:
            raise ValueError(f"Composed has a null of {extra[0]!r} and no weight for it: expected {', '.join(names)}")
        values: dict[str, Tensor | float] = {f"weights.{k}": weight_of(f"weights.{k}", w) for k, w in weights.items()}
        values |= {f"null.{name}": value for name, value in (null or {}).items() if value is not None}
        for i, (condition, weight) in enumerate(terms):
            values[f"terms.{i}"] = weight_of(f"the weight of terms[{i}]", weight)
            values |= {f"terms.{i}.{name}": value for name, value in condition.items()}
        super().__init__(inner, values, guided=True)
        self._weights, self._names, self._terms = (
            tuple(weights),
            tuple(names),
            [tuple(condition) for condition, _ in terms],
        )
        count = 1 + len(weights) + len(terms)
        self.calls, self.vjps = count * inner.calls, count * inner.vjps

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.check(len(x_t))
        check_given(condition, dict.fromkeys(self._weights))
        null = nulled(self.inner, condition, {name: self.values.get(f"null.{name}") for name in self._names}, x_t)
        terms = [(w, self.inner.predict(what, x_t, t, **null | named)) for w, named in self._conditions(condition, x_t)]
        b = self.inner.predict(what, x_t, t, **null)
        prediction = b
        for weight, a in terms:
            prediction = prediction + expand(weight, b) * (a - b)
        return prediction

    def _conditions(self, condition: Mapping[str, Tensor], x_t: Tensor) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The weight and the condition of each term."""
        for name in self._weights:
            own = {key: condition[key] for key in (name, f"{name}_mask") if key in condition}
            yield self.values[f"weights.{name}"], own
        for i, names in enumerate(self._terms):
            yield self.values[f"terms.{i}"], {name: self.values[f"terms.{i}.{name}"].to(x_t.device) for name in names}

    def cost(self, t: Tensor) -> tuple[int | Tensor, int | Tensor]:
        calls, vjps = self.inner.cost(t)
        count = 1 + len(self._weights) + len(self._terms)
        return count * calls, count * vjps
