r"""Guidance by the gradient of a classifier, or of any function of the noisy state.

.. math:: \nabla \log p_t(x_t) + s\, \nabla \log p(y | x_t)

which for a scale s of 1 and the classifier of the noisy states, :math:`p(y | x_t) = E[p(y | x_0) | x_t]`, is the score
of the conditional distribution. A classifier that was trained on clean data is another function there: it is to be
trained on noised data (:mod:`sde.guidance.noise_classifier`).

Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, https://arxiv.org/abs/2105.05233, section 4;
Song et al. 2021, https://arxiv.org/abs/2011.13456, section 5.
"""

from __future__ import annotations

__all__ = ["Classifier", "LogProbability"]

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..denoisers import Denoiser, Prediction, ScorePrediction
from ..processes import check_same
from ..shapes import expand, recordable, working
from .base import Guidance, Number, check_given, weight_of
from .noise_classifier import NoiseClassifier


class LogProbability(Protocol):
    r"""A function of the noisy state: a noise-aware classifier's log-probability, a reward, or any other.

    It is differentiable in `x_t`, by operations that `torch.func` supports, and no sample depends on another.
    """

    def __call__(self, x_t: Tensor, t: Tensor, /, **condition: Tensor) -> Tensor:
        r"""The log-probability in nats, with shape (B,), of states (B, \*) at a time of shape () or (B,)."""


class Classifier(Guidance):
    r"""Classifier guidance: the score plus :math:`s\, \nabla_{x_t} \log p(y | x_t)`.

    Each prediction takes one vector-Jacobian product of the function, in the mode of gradients that the caller is in:
    it works under `torch.no_grad()`, and may be differentiated itself. Particles weigh by it (:meth:`log_potential`).
    It is exact for a scale of 1 and the exact classifier of the noisy states. For other scales it is biased away from
    :math:`p(x)\,p(y|x)^s`; see :mod:`sde.guidance`.

    Args:
        inner: the denoiser.
        log_prob: `log_prob(x_t, t)`, in nats, with shape (B,); :class:`LogProbability` says what it has to be.
        scale: s, a number or one for each sample, with shape (B,).
        names: the conditions of the batch that `log_prob` takes, by name, such as `["label"]`: what differs between
            samples has to come to it in this way, for samples may leave the batch. A :class:`NoiseClassifier` takes the
            label, which is then checked.
        shared: whether the inner denoiser is given these conditions too.

    Raises:
        ValueError: if a :class:`NoiseClassifier` is for another process.
    """

    def __init__(
        self,
        inner: Denoiser,
        log_prob: LogProbability,
        scale: Number = 1.0,
        names: Sequence[str] = (),
        shared: bool = False,
    ) -> None:
        super().__init__(inner, {"scale": weight_of("scale", scale)}, guided=True)
        if isinstance(log_prob, NoiseClassifier):
            check_same(inner.process, log_prob.process, "guidance by a classifier")
            names = names or tuple(log_prob.takes)
            self.classes = log_prob.classes
        self.log_prob, self.names, self.shared = log_prob, tuple(names), shared
        self.weighed, self.vjps = True, inner.vjps + 1
        if isinstance(log_prob, NoiseClassifier) and inner.takes is not None:
            self.takes = {**inner.takes, **log_prob.takes}
        elif names:
            self.takes = None  # what the function takes is not known

    @property
    def scale(self) -> Tensor:
        """The scale, with shape () or (B,)."""
        return self.values["scale"]

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        named, rest = self._split(condition, len(x_t))
        x = recordable(working(x_t))

        def function(y: Tensor) -> Tensor:
            return self._value(y, t, named)

        with torch.inference_mode(False):
            value, product = torch.func.vjp(function, x)[:2]
            (gradient,) = product(torch.ones_like(value))
        # The coefficient of the score in each prediction.
        factor = ScorePrediction().coefficients(what, self.process, t)[1]
        prediction = self.inner.predict(what, x_t, t, **rest)
        return prediction + (expand(self.scale, x) * expand(factor, x) * gradient).to(prediction.dtype)

    def log_potential(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        named, rest = self._split(condition, len(x_t))
        value = self._value(working(x_t), t, named)
        value = self.scale.to(value) * value
        return value + self.inner.log_potential(x_t, t, **rest) if self.inner.weighed else value

    def potential_cost(self, t: Tensor) -> int | Tensor:
        return self.inner.potential_cost(t) if self.inner.weighed else 0

    def _split(self, condition: dict[str, Tensor], batch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The conditions of the function and those of the inner denoiser."""
        self.check(batch)
        check_given(condition, dict.fromkeys(self.names))
        named = {name: condition[name] for name in self.names}
        return named, {name: value for name, value in condition.items() if self.shared or name not in named}

    def _value(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        value = self.log_prob(x_t, t, **condition)
        if value.shape != x_t.shape[:1]:
            raise ValueError(
                f"expected log_prob to return one number for each sample, with shape ({len(x_t)},), got "
                f"{tuple(value.shape)}"
            )
        return value
