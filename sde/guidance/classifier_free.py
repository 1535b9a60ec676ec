r"""Classifier-free guidance.

.. math:: D(x_t) = b + w\,(a - b), \qquad a = E[x_0 | x_t, c], \quad b = E[x_0 | x_t]

with a network that was trained with the condition c and, for some of the samples, without it. The weight w is 1 for the
conditional model and 0 for the unconditional one; in the paper's own convention it is w - 1. With another condition in
the place of "not given" (a *negative* one), the samples are pushed away from it.

Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, https://arxiv.org/abs/2207.12598, equation 6; the interval:
Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724; rescaling: Lin et al., Common Diffusion Noise Schedules and
Sample Steps are Flawed, 2024, https://arxiv.org/abs/2305.08891, equations 15 and 16, there for the network's output,
here for :math:`x_0`, so that all predictions agree.
"""

from __future__ import annotations

__all__ = ["ClassifierFree"]

from collections.abc import Mapping

from torch import Tensor

from ..denoisers import Denoiser, Prediction
from .base import Number, Value, Weighted, check_given, nulled


class ClassifierFree(Weighted):
    r"""Classifier-free guidance: :math:`b + w (a - b)` of the predictions with and without the condition.

    It takes twice the calls of the inner denoiser where it acts. It is biased away from :math:`p(x)\,p(c|x)^w`; see
    :mod:`sde.guidance`.

    Args:
        inner: a denoiser that was trained with and without its condition.
        weight: w, a number or one for each sample, with shape (B,).
        null: what stands for "not given", by name: a scalar or a tensor of leading size B, such as `{"label": 10}` for
            a network with 10 classes, or None to leave the name out. By default all conditions are left out; the
            `label` of a network of this library is then its null class. A condition in the place of the null is a
            negative one.
        low: guidance acts where low < sigma/alpha; outside of it, the weight is 1.
        high: guidance acts where sigma/alpha <= high.
        rescale: a number in [0, 1]: the standard deviation of the guided :math:`x_0` of each sample is set back to that
            of the conditional one by this fraction, against overexposure; 0.7 in the paper.
    """

    def __init__(
        self,
        inner: Denoiser,
        weight: Number = 2.0,
        null: Mapping[str, Value] | None = None,
        low: float | None = None,
        high: float | None = None,
        rescale: float = 0.0,
    ) -> None:
        nulls = {f"null.{name}": value for name, value in (null or {}).items() if value is not None}
        super().__init__(inner, weight, low, high, rescale, nulls)
        self._names = None if null is None else tuple(null)
        self.calls, self.vjps = 2 * inner.calls, 2 * inner.vjps

    @property
    def null(self) -> dict[str, Value] | None:
        """The conditions that stand for "none", by name."""
        return None if self._names is None else {name: self.values.get(f"null.{name}") for name in self._names}

    def check_names(self, condition: Mapping[str, Tensor]) -> None:
        check_given(condition, dict.fromkeys(condition or ["label"]) if self.null is None else self.null)

    def other(self, what: Prediction, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        null = dict.fromkeys(condition) if self.null is None else self.null
        return self.inner.predict(what, x_t, t, **nulled(self.inner, condition, null, x_t))

    def other_cost(self, t: Tensor) -> tuple[int | Tensor, int | Tensor]:
        return self.inner.cost(t)
