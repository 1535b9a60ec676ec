r"""Denoisers: :math:`E[x_0 \mid x_t]` inside, the score outside.

A denoiser is a module that knows its process. What else there is to know of the diffusion are readings of the same
quantity, by Tweedie's formula :math:`E[x_0 | x_t] = (x_t + \sigma_t^2 \nabla \log p_t(x_t)) / \alpha_t`.

Efron, Tweedie's Formula and Selection Bias, 2011, https://doi.org/10.1198/jasa.2011.tm11181.
"""

from __future__ import annotations

__all__ = ["Conditioned", "Denoiser", "Reading", "Wrapper"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..processes import SDE
from ..shapes import expand


class Denoiser(nn.Module, ABC):
    r"""A module that knows its process and answers :math:`E[x_0 \mid x_t]`.

    A leaf sets the attribute `process` and defines :meth:`forward`. The other readings follow from it; a leaf that
    knows the score more directly replaces :meth:`score`, and :meth:`noise` and :meth:`velocity` if it knows these
    too. At small times that matters: a score through :math:`x_0` in float32 loses digits as :math:`1/\sigma_t^2`
    grows. Guidance and conditioning take a denoiser and return a denoiser; see :class:`Wrapper`.

    Attributes:
        process: the process.
        calls: the network calls that one reading takes; a denoiser that asks another twice says so here.
    """

    process: SDE
    calls: int = 1

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The denoised data :math:`E[x_0 \mid x_t]`.

        Args:
            x_t: the noisy state, with shape (B, \*).
            t: the time, with shape () or (B,), often in float64 whatever the dtype of the state (and on the CPU
                where it is one for all): functions of it go through :func:`sde.expand` to meet the state.
            condition: what else the denoiser is told, of leading size B or scalar.

        Returns:
            The posterior mean, with shape (B, \*).
        """

    def score(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The score :math:`\nabla \log p_t(x_t) = (\alpha_t E[x_0|x_t] - x_t) / \sigma_t^2`, with shape (B, \*)."""
        x0 = self(x_t, t, **condition)
        return (expand(self.process.alpha(t), x_t) * x0 - x_t) / expand(self.process.var(t), x_t)

    def noise(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The noise :math:`E[z \mid x_t] = -\sigma_t \nabla \log p_t(x_t)`, with shape (B, \*)."""
        return -expand(self.process.sigma(t), x_t) * self.score(x_t, t, **condition)

    def velocity(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        r"""The velocity :math:`\alpha_t E[z|x_t] - \sigma_t E[x_0|x_t]` (Salimans and Ho 2022), with shape (B, \*)."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        x0 = self(x_t, t, **condition)
        return expand(alpha / sigma, x_t) * x_t - expand((alpha.square() + sigma.square()) / sigma, x_t) * x0

    def posterior(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        r"""What the reverse step :math:`p(x_s \mid x_t)` is made of, from one reading: the score, and its variance.

        Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 15: between the variance of the posterior
        :math:`q(x_s|x_t,x_0)` at v = 0 and that of the transition :math:`q(x_t|x_s)` at v = 1, the logarithm is
        interpolated. A denoiser that has learned the fraction v replaces this; all others know none.

        Returns:
            The score, with shape (B, \*), and v with the same shape, about in [0, 1], or None.
        """
        return self.score(x_t, t, **condition), None

    def select(self, index: Tensor) -> Denoiser:
        """This denoiser for some samples of a batch: itself. What differs between samples comes through `condition`,
        which :class:`Conditioned` selects."""
        return self


# One of the four readings of a denoiser: (denoiser, x_t, t, **condition) -> tensor.
Reading = Callable[..., Tensor]


class Wrapper(Denoiser):
    """A denoiser made of another one, whatever is read of it.

    A leaf defines :meth:`read` once for all readings, so that none goes through another. Classifier-free guidance,
    say, is `b + w * (a - b)` of `a = reading(self.inner, x_t, t, label=label)` and `b` with the null label, with
    `calls` twice those of the inner one. Where the inner one has learned its reverse variance, the variance is that of
    the first reading, here of the one with the label. What acts on :math:`x_0` alone, such as clipping, is a
    :class:`Denoiser` with a `forward`.

    Args:
        inner: the denoiser that is wrapped.
    """

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner
        self.process = inner.process
        self.calls = inner.calls

    @abstractmethod
    def read(self, reading: Reading, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """What this denoiser answers to a reading, by way of `reading(self.inner, x_t, t, **condition)`."""

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.read(_x0, x_t, t, condition)

    def score(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.read(_score, x_t, t, condition)

    def noise(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.read(_noise, x_t, t, condition)

    def velocity(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.read(_velocity, x_t, t, condition)

    def posterior(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        fractions: list[Tensor | None] = []

        def score(denoiser: Denoiser, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            value, fraction = denoiser.posterior(x_t, t, **condition)
            fractions.append(fraction)
            return value

        return self.read(score, x_t, t, condition), next(iter(fractions), None)


class Conditioned(Wrapper):
    """A denoiser with its condition fixed for one batch, which counts the calls made for each of its samples.

    Args:
        inner: the denoiser.
        condition: tensors of leading size B, or scalars.
        nfe: the counts, int64 with shape (B,); every call adds the `calls` of `inner` for each of its samples.
        rows: which of the B samples this one answers for; all by default.
    """

    def __init__(
        self, inner: Denoiser, condition: Mapping[str, Tensor | float] | None, nfe: Tensor, rows: Tensor | None = None
    ) -> None:
        super().__init__(inner)
        self.condition = {name: torch.as_tensor(value) for name, value in (condition or {}).items()}
        self.nfe, self.rows = nfe, rows
        expected = len(nfe if rows is None else rows)
        for name, value in self.condition.items():
            if value.ndim and len(value) != expected:
                raise ValueError(
                    f"condition {name!r}: expected a scalar or leading size {expected}, one entry per sample, "
                    f"got shape {tuple(value.shape)}"
                )

    def read(self, reading: Reading, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        if self.rows is None:
            self.nfe += self.calls
        else:
            self.nfe[self.rows] += self.calls
        return reading(self.inner, x_t, t, **self.condition, **condition)

    def select(self, index: Tensor) -> Conditioned:
        rows = index if self.rows is None else self.rows[index]
        condition = {name: value[index] if value.ndim else value for name, value in self.condition.items()}
        return Conditioned(self.inner, condition, self.nfe, rows)


def _x0(denoiser: Denoiser, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    x0: Tensor = denoiser(x_t, t, **condition)
    return x0


def _score(denoiser: Denoiser, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    return denoiser.score(x_t, t, **condition)


def _noise(denoiser: Denoiser, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    return denoiser.noise(x_t, t, **condition)


def _velocity(denoiser: Denoiser, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    return denoiser.velocity(x_t, t, **condition)
