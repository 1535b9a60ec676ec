r"""Processes: linear forward SDEs, defined by two functions of time.

A process turns data into noise by

.. math:: dx = f(t)\, x\, dt + g(t)\, dw, \qquad t \in [t_{\min}, t_{\max}].

The two functions :math:`\log\alpha_t` and :math:`\sigma_t^2` of its perturbation kernel
:math:`q(x_t \mid x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2 I)` determine all others:

.. math::
    f = \frac{d \log \alpha}{dt}, \qquad
    g^2 = \frac{d \sigma^2}{dt} - 2 f \sigma^2, \qquad
    \lambda = \log \frac{\alpha^2}{\sigma^2}.

Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2021,
https://arxiv.org/abs/2011.13456; Kingma et al., Variational Diffusion Models, 2021, https://arxiv.org/abs/2107.00630.
"""

from __future__ import annotations

__all__ = ["SDE"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..shapes import event_dims, expand, float64, sum_event, working, working_dtype


class SDE(ABC):
    r"""A forward process :math:`dx = f(t) x dt + g(t) dw`.

    A new process is a frozen dataclass with the fields `t_min` and `t_max` and the two methods :meth:`log_alpha` and
    :meth:`var`. The methods :meth:`f`, :meth:`g2`, :meth:`log_snr`, :meth:`time` and :meth:`prior_var` follow from
    these two by default; a leaf may override them with a closed form that is faster or more accurate.

    Time has shape () or (B,). Every function of time returns a tensor of its shape and dtype.

    Attributes:
        t_min: the smallest time, where solvers stop and log-densities are evaluated. If `var(t_min) > 0`, the state
            there is data plus noise of that variance, and one Tweedie step removes this noise.
        t_max: the largest time, where the marginal is close to the prior.
        needs: the names of conditions without which a model of it is none of what it is for: the end of a bridge.
    """

    t_min: float
    t_max: float
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        r"""The logarithm of the signal scale, :math:`\log \alpha_t`."""

    @abstractmethod
    def var(self, t: Tensor) -> Tensor:
        r"""The noise variance :math:`\sigma_t^2`, accurate near `t_min` (use `expm1`, not `1 - exp`)."""

    def f(self, t: Tensor) -> Tensor:
        r"""The drift coefficient :math:`f(t) = d \log\alpha_t / dt`."""
        return _derivative(self.log_alpha, t)

    def g2(self, t: Tensor) -> Tensor:
        r"""The squared diffusion coefficient :math:`g(t)^2 = d\sigma_t^2/dt - 2 f(t) \sigma_t^2`."""
        return _derivative(self.var, t) - 2.0 * self.f(t) * self.var(t)

    def log_snr(self, t: Tensor) -> Tensor:
        r"""The log signal-to-noise ratio :math:`\lambda_t = \log(\alpha_t^2/\sigma_t^2)`, decreasing in t."""
        return 2.0 * self.log_alpha(t) - self.var(t).log()

    def time(self, log_snr: Tensor) -> Tensor:
        r"""The inverse of :meth:`log_snr` on [`t_min`, `t_max`], in the shape and dtype of its argument.

        The default uses bisection, which requires only that the log-SNR decreases, and one step of Newton's method,
        through which gradients flow.
        """
        target = log_snr.double()
        low, high = torch.full_like(target, self.t_min), torch.full_like(target, self.t_max)
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = self.log_snr(middle) > target
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        root = 0.5 * (low + high).detach()
        slope = (self.g2(root) / self.var(root)).detach()
        return (root + (self.log_snr(root) - target) / slope).to(log_snr.dtype)

    def prior_var(self, t: Tensor) -> Tensor:
        r"""The variance of the Gaussian prior, which approximates the marginal at the starting time `t`."""
        return self.var(t)

    def alpha(self, t: Tensor) -> Tensor:
        r"""The signal scale :math:`\alpha_t`."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        r"""The standard deviation :math:`\sigma_t` of the noise."""
        return self.var(t).sqrt()

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        r"""The forward drift :math:`f(t) x`, with shape (B, *)."""
        return expand(self.f(t), x) * x

    def diffusion(self, t: Tensor) -> Tensor:
        r"""The forward diffusion coefficient :math:`g(t)`, in the shape of `t`."""
        return self.g2(t).sqrt()

    def marginal(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""The perturbation kernel :math:`q(x_t \mid x_0)`.

        Args:
            x0: clean data, with shape (B, *).
            t: the time, with shape () or (B,).

        Returns:
            The mean :math:`\alpha_t x_0`, with shape (B, *), and the standard deviation :math:`\sigma_t`, in the
            shape of `t`.
        """
        return expand(self.alpha(t), x0) * x0, self.sigma(t)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""The transition kernel :math:`q(x_t \mid x_s) = \mathcal N(\alpha_{t|s} x_s, \sigma_{t|s}^2 I)` for s <= t.

        .. math::
            \alpha_{t|s} = \alpha_t / \alpha_s, \qquad
            \sigma_{t|s}^2 = \sigma_t^2 - \alpha_{t|s}^2 \sigma_s^2 = -\sigma_t^2 \operatorname{expm1}(\lambda_t -
            \lambda_s)

        When s is close to t, the last form is accurate in float64; in float32 neither form is.

        Returns:
            :math:`\log \alpha_{t|s}` and :math:`\sigma_{t|s}^2`, in the shape of the times.
        """
        log_alpha = self.log_alpha(t) - self.log_alpha(s)
        return log_alpha, -self.var(t) * torch.expm1(self.log_snr(t) - self.log_snr(s))

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        t: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        r"""Samples from the prior :math:`\mathcal N(0, \mathrm{prior\_var}(t) I)`.

        Args:
            shape: the shape of the result, (B, *).
            generator: the source of randomness; the samples are on its device.
            t: the time that sampling starts from; `t_max` by default.
            dtype: the dtype of the samples.
        """
        z = torch.randn(*shape, generator=generator, device=generator.device, dtype=working_dtype(dtype))
        return (math.sqrt(self._prior_var(t)) * z).to(dtype)

    def prior_log_prob(self, x: Tensor, t: float | None = None) -> Tensor:
        """The log-density of the prior at `x` (B, *), in nats, with shape (B,); `t` as in :meth:`prior_sample`."""
        var, x = self._prior_var(t), working(x)
        return -0.5 * (sum_event(x.square()) / var + event_dims(x) * math.log(2.0 * math.pi * var))

    def prior_divergence(self, x0: Tensor, t: float | None = None) -> Tensor:
        r"""The divergence of the prior from the kernel, :math:`\mathrm{KL}(q(x_t \mid x_0) \,\|\, \pi)`.

        .. math:: \tfrac12 \Big(\frac{\alpha_t^2 \|x_0\|^2}{v} + D \big(r - 1 - \log r\big)\Big), \qquad
            r = \frac{\sigma_t^2}{v}, \quad v = \mathrm{prior\_var}(t)

        Args:
            x0: clean data, with shape (B, *).
            t: as in :meth:`prior_sample`.

        Returns:
            Nats, float64 with shape (B,).
        """
        end = float64(self.t_max if t is None else t)
        alpha, var, v = self.alpha(end).item(), self.var(end).item(), self.prior_var(end).item()
        ratio = var / v
        return 0.5 * (alpha**2 / v * sum_event(x0.double().square()) + event_dims(x0) * (ratio - 1.0 - math.log(ratio)))

    def _prior_var(self, t: float | None) -> float:
        return self.prior_var(float64(self.t_max if t is None else t)).item()

    def check_schedule(self) -> None:
        """Raises an error if the functions of time do not define a diffusion; solvers call it before they start.

        Raises:
            ValueError: if, between `t_min` and `t_max`, the log-SNR is not finite or does not decrease, or g^2 is
                negative or not finite.
        """
        t = torch.linspace(self.t_min, self.t_max, 66, dtype=torch.float64, device="cpu")[1:-1]
        log_snr, g2 = self.log_snr(t), self.g2(t)
        for problem, valid in (
            ("log_snr is not finite", log_snr.isfinite()),
            ("log_snr does not decrease", torch.cat([log_snr.diff() < 0, log_snr.new_ones(1, dtype=torch.bool)])),
            ("g^2 = d var/dt - 2 f var is negative or not finite", g2.isfinite() & (g2 >= -1e-9 * g2.abs().max())),
        ):
            if not bool(valid.all()):
                raise ValueError(
                    f"{self} does not define a diffusion: {problem} at t={t[int((~valid).nonzero()[0])].item():.6g}; "
                    "check log_alpha and var"
                )

    def check_interval(self) -> None:
        """Raises a ValueError unless 0 <= t_min < t_max; a leaf calls it in `__post_init__`."""
        if not 0.0 <= self.t_min < self.t_max:
            raise ValueError(
                f"{type(self).__name__} needs 0 <= t_min < t_max, got t_min={self.t_min}, t_max={self.t_max}"
            )


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    # Forward mode turns 0-dimensional float32 tensors into float64, so the time gets a dimension.
    t = t[None]
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1][0]
