r"""Processes: linear forward SDEs, described by two functions of time.

A process turns data into noise by

.. math:: dx = f(t)\, x\, dt + g(t)\, dw, \qquad t \in [t_{\min}, t_{\max}],

and everything about it follows from the two functions of its perturbation kernel
:math:`q(x_t \mid x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2 I)`, namely :math:`\log\alpha_t` and :math:`\sigma_t^2`:

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

import torch
from torch import Tensor

from ..shapes import event_dims, expand, sum_event


class SDE(ABC):
    r"""A forward process :math:`dx = f(t) x dt + g(t) dw`.

    A new process is a frozen dataclass with the fields `t_min` and `t_max` and the two methods :meth:`log_alpha` and
    :meth:`var`. The methods :meth:`f`, :meth:`g2`, :meth:`log_snr`, :meth:`time` and :meth:`prior_var` have a
    default that follows from these two; a leaf may replace them by a closed form that is faster or loses fewer digits.

    Time has shape () or (B,), and every function of time answers in its shape and dtype.

    Attributes:
        t_min: the data end. Where `var(t_min) > 0` the state there is data plus noise of that variance: solvers stop
            here, densities are densities of `x` at `t_min`, and one Tweedie step removes the rest.
        t_max: the noise end, where the prior stands.
    """

    t_min: float
    t_max: float

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        r"""The log of the signal's scale, :math:`\log \alpha_t`."""

    @abstractmethod
    def var(self, t: Tensor) -> Tensor:
        r"""The noise's variance, :math:`\sigma_t^2`, accurate near `t_min` (use `expm1`, not `1 - exp`)."""

    def f(self, t: Tensor) -> Tensor:
        r"""The drift's coefficient :math:`f(t) = d \log\alpha_t / dt`."""
        return _derivative(self.log_alpha, t)

    def g2(self, t: Tensor) -> Tensor:
        r"""The squared diffusion coefficient :math:`g(t)^2 = d\sigma_t^2/dt - 2 f(t) \sigma_t^2`."""
        return _derivative(self.var, t) - 2.0 * self.f(t) * self.var(t)

    def log_snr(self, t: Tensor) -> Tensor:
        r"""The log signal-to-noise ratio :math:`\lambda_t = \log(\alpha_t^2/\sigma_t^2)`, decreasing in t."""
        return 2.0 * self.log_alpha(t) - self.var(t).log()

    def time(self, log_snr: Tensor) -> Tensor:
        r"""The inverse of :meth:`log_snr` on [`t_min`, `t_max`], in the shape and dtype of its argument.

        By bisection, which needs nothing of a process but that its log-SNR decreases, and one step of Newton's method,
        which carries the derivative.
        """
        wanted = log_snr.double()
        low, high = torch.full_like(wanted, self.t_min), torch.full_like(wanted, self.t_max)
        for _ in range(60):
            middle = 0.5 * (low + high)
            later = self.log_snr(middle) > wanted
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        root = 0.5 * (low + high).detach()
        slope = (self.g2(root) / self.var(root)).detach()
        return (root + (self.log_snr(root) - wanted) / slope).to(log_snr.dtype)

    def prior_var(self, t: Tensor) -> Tensor:
        r"""The variance of the Gaussian that stands in for the marginal at the noise end."""
        return self.var(t)

    def alpha(self, t: Tensor) -> Tensor:
        r"""The signal's scale :math:`\alpha_t`."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        r"""The noise's standard deviation :math:`\sigma_t`."""
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

        In float64 the last form keeps its digits when s is close to t; in float32 neither form does.

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
        r"""Draws from the prior :math:`\mathcal N(0, \mathrm{prior\_var}(t) I)`.

        Args:
            shape: the shape of the result, (B, *).
            generator: the source of randomness; its device is the result's.
            t: the time that a solver starts from; `t_max` by default.
            dtype: the dtype of the result.
        """
        z = torch.randn(*shape, generator=generator, device=generator.device, dtype=dtype)
        return math.sqrt(self._prior_var(t)) * z

    def prior_log_prob(self, x: Tensor, t: float | None = None) -> Tensor:
        """The prior's log-density at `x` of shape (B, *), in nats, with shape (B,); `t` as in :meth:`prior_sample`."""
        var = self._prior_var(t)
        return -0.5 * (sum_event(x.square()) / var + event_dims(x) * math.log(2.0 * math.pi * var))

    def _prior_var(self, t: float | None) -> float:
        return self.prior_var(torch.tensor(self.t_max if t is None else t, dtype=torch.float64)).item()

    def check_schedule(self) -> None:
        """Refuses functions of time that describe no diffusion; a solver calls it before it starts.

        Raises:
            ValueError: if between `t_min` and `t_max` the log-SNR is not finite and decreasing, or g^2 is negative.
        """
        t = torch.linspace(self.t_min, self.t_max, 66, dtype=torch.float64)[1:-1]
        log_snr, g2 = self.log_snr(t), self.g2(t)
        for name, good in (
            ("log_snr is not finite", log_snr.isfinite()),
            ("log_snr does not decrease", torch.cat([log_snr.diff() < 0, log_snr.new_ones(1, dtype=torch.bool)])),
            ("g^2 = d var/dt - 2 f var is negative or not finite", g2.isfinite() & (g2 >= -1e-9 * g2.abs().max())),
        ):
            if not bool(good.all()):
                raise ValueError(
                    f"{self} is no diffusion: {name} at t={t[int((~good).nonzero()[0])].item():.6g}; "
                    "check log_alpha and var"
                )

    def check_interval(self) -> None:
        """Refuses times out of order; a leaf calls it when it is made."""
        if not 0.0 <= self.t_min < self.t_max:
            raise ValueError(
                f"{type(self).__name__} runs from t_min (data) to t_max (noise): expected 0 <= t_min < t_max, "
                f"got t_min={self.t_min}, t_max={self.t_max}"
            )


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    # With a dimension, because forward-mode products of 0-dimensional tensors come out in float64.
    t = t[None]
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1][0]
