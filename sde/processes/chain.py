r"""The discrete DDPM chain, and the SDE that passes through it.

A chain of N steps has :math:`q(x_i \mid x_{i-1}) = \mathcal N(\sqrt{1-\beta_i}\, x_{i-1}, \beta_i I)` for i = 1..N,
so that with
:math:`\bar\alpha_i = \prod_{j \le i} (1 - \beta_j)`

.. math::
    q(x_i \mid x_0) &= \mathcal N(\sqrt{\bar\alpha_i}\, x_0, (1 - \bar\alpha_i) I), \\
    q(x_{i-1} \mid x_i, x_0) &= \mathcal N\Big(
        \frac{\sqrt{\bar\alpha_{i-1}}\, \beta_i}{1 - \bar\alpha_i} x_0
        + \frac{\sqrt{1-\beta_i}\, (1 - \bar\alpha_{i-1})}{1 - \bar\alpha_i} x_i,\;
        \frac{1 - \bar\alpha_{i-1}}{1 - \bar\alpha_i} \beta_i I\Big).

Ho et al., Denoising Diffusion Probabilistic Models, 2020, https://arxiv.org/abs/2006.11239, equations 2, 4, 6 and 7.

:class:`ChainSDE` is the chain as a process in continuous time, with step i at t = i/N. Solvers, objectives and
likelihoods use the chain through it. The ancestral solver on the grid i/N is the DDPM sampler. Its last step, from
i = 1 to i = 0, is the Tweedie step at `t_min` = 1/N, because the posterior there has mean :math:`x_0` and variance 0.
"""

from __future__ import annotations

__all__ = ["ChainSDE", "DiscreteChain"]

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..shapes import expand, float64
from .base import SDE


@dataclass(frozen=True, eq=False)
class DiscreteChain:
    r"""A discrete chain :math:`x_0 \to x_1 \to \dots \to x_N` with variances :math:`\beta_1, \dots, \beta_N`.

    Steps `i` are integers or integer tensors of shape () or (B,), from 0 (clean data) to N. Entry i-1 of `betas` and
    `alphas_bar` belongs to step i.

    Args:
        betas: the variances, with shape (N,), each in (0, 1). They are converted to float64.
    """

    betas: Tensor

    def __post_init__(self) -> None:
        betas = float64(self.betas)
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"betas: expected shape (N,) with N >= 1, got {tuple(betas.shape)}")
        invalid = ~((betas > 0) & (betas < 1))
        if invalid.any():
            i = int(invalid.nonzero()[0])
            raise ValueError(
                f"betas: expected values in (0, 1), got {betas[i].item():.6g} at step {i + 1} of {len(betas)}"
            )
        object.__setattr__(self, "betas", betas)

    @classmethod
    def linear(cls, n: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> DiscreteChain:
        r"""The linear schedule of Ho et al. 2020: :math:`\beta_i` are evenly spaced from `beta_min/n` to `beta_max/n`.

        Raises:
            ValueError: if a beta would reach 1; the message has the smallest valid n.
        """
        _check_steps(n, beta_max)
        return cls(torch.linspace(beta_min / n, beta_max / n, n, dtype=torch.float64, device="cpu"))

    @classmethod
    def quadratic(cls, n: int = 1000, beta_min: float = 0.1, beta_max: float = 20.0) -> DiscreteChain:
        r"""The quadratic schedule: evenly spaced :math:`\sqrt{\beta_i}`, with the first and the last beta of `linear`.

        Song et al., Denoising Diffusion Implicit Models, 2021, https://arxiv.org/abs/2010.02502, section D.2 uses this
        spacing for time grids; latent diffusion uses it for betas.

        Raises:
            ValueError: if a beta would reach 1; the message has the smallest valid n.
        """
        _check_steps(n, beta_max)
        roots = torch.linspace(math.sqrt(beta_min / n), math.sqrt(beta_max / n), n, dtype=torch.float64, device="cpu")
        return cls(roots.square())

    @classmethod
    def cosine(cls, n: int = 1000, offset: float = 0.008, largest: float = 0.999) -> DiscreteChain:
        r"""The cosine schedule :math:`\bar\alpha_i = h(i)/h(0)`, :math:`h(i) = \cos^2(\frac{i/n+s}{1+s} \frac\pi2)`.

        Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021,
        https://arxiv.org/abs/2102.09672, equation 17; betas are clipped at `largest`.
        """
        _check_steps(n)
        u = torch.arange(n + 1, dtype=torch.float64, device="cpu") / n
        h = torch.cos((u + offset) / (1.0 + offset) * (math.pi / 2)).square()
        return cls((1.0 - h[1:] / h[:-1]).clamp(max=largest))

    def __len__(self) -> int:
        return len(self.betas)

    def __repr__(self) -> str:
        first, last = self.betas[0].item(), self.betas[-1].item()
        return f"DiscreteChain({len(self)} betas from {first:.6g} to {last:.6g})"

    @functools.cached_property
    def log_alphas_bar(self) -> Tensor:
        r""":math:`\log \bar\alpha_i` for i = 1..N, with shape (N,); a sum of logarithms, accurate for small betas."""
        return torch.log1p(-self.betas).cumsum(0)

    @property
    def alphas_bar(self) -> Tensor:
        r""":math:`\bar\alpha_i` for i = 1..N, with shape (N,)."""
        return self.log_alphas_bar.exp()

    def transition(self, x: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        r"""The forward step :math:`q(x_i \mid x_{i-1})` for i in 1..N.

        Returns:
            The mean at :math:`x_{i-1}` = `x`, with shape (B, *), and the variance, in the shape of `i`.
        """
        beta = self.betas[self._entry(i, smallest=1) - 1]
        return expand((1.0 - beta).sqrt(), x) * x, beta.to(x)

    def marginal(self, x0: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        r"""The kernel :math:`q(x_i \mid x_0)` for i in 0..N.

        Returns:
            The mean, with shape (B, *), and the standard deviation, in the shape of `i`.
        """
        log_alpha_bar = self._log_alpha_bar(self._entry(i, smallest=0))
        return expand((0.5 * log_alpha_bar).exp(), x0) * x0, (-torch.expm1(log_alpha_bar)).sqrt().to(x0)

    def posterior(self, x0: Tensor, x_t: Tensor, i: int | Tensor) -> tuple[Tensor, Tensor]:
        r"""The posterior :math:`q(x_{i-1} \mid x_i, x_0)` for i in 1..N; at i = 1 it is a point mass at `x0`.

        Args:
            x0: clean data, with shape (B, *).
            x_t: the state :math:`x_i`, with shape (B, *).
            i: the step, with shape () or (B,).

        Returns:
            The mean, with shape (B, *), and the variance, in the shape of `i`.
        """
        i = self._entry(i, smallest=1)
        beta = self.betas[i - 1]
        log_previous, log_current = self._log_alpha_bar(i - 1), self._log_alpha_bar(i)
        var_previous, var_current = -torch.expm1(log_previous), -torch.expm1(log_current)
        a = (0.5 * log_previous).exp() * beta / var_current
        b = (1.0 - beta).sqrt() * var_previous / var_current
        return expand(a, x0) * x0 + expand(b, x_t) * x_t, (var_previous / var_current * beta).to(x_t)

    def sde(self) -> ChainSDE:
        r"""The SDE whose :math:`\log\alpha` passes through the chain at t = i/N."""
        return ChainSDE(self)

    def _log_alpha_bar(self, i: Tensor) -> Tensor:
        return torch.where(i > 0, self.log_alphas_bar[(i - 1).clamp(min=0)], 0.0)

    def _entry(self, i: int | Tensor, smallest: int) -> Tensor:
        i = torch.as_tensor(i, device=self.betas.device)
        if i.is_floating_point():
            raise ValueError(f"expected integer steps of the chain, got dtype {i.dtype}")
        if i.numel() and not (smallest <= int(i.min()) and int(i.max()) <= len(self)):
            raise ValueError(
                f"expected steps of the chain from {smallest} to {len(self)}, got {int(i.min())} to {int(i.max())}"
            )
        return i


@dataclass(frozen=True, eq=False)
class ChainSDE(SDE):
    r"""A discrete chain as a process in continuous time.

    :math:`\log\alpha_t` is the monotone cubic interpolant (PCHIP) of :math:`\tfrac12 \log\bar\alpha_i` at t = i/N, and
    :math:`\sigma_t^2 = 1 - \alpha_t^2`, so that at t = i/N the kernels are those of the chain. Time runs from `t_min` =
    1/N, the smallest noise on which a network of the chain was trained, to 1.

    Fritsch and Butland, A Method for Constructing Local Monotone Piecewise Cubic Interpolants, 1984,
    https://doi.org/10.1137/0905021.

    Args:
        chain: the discrete chain.
    """

    chain: DiscreteChain

    t_max = 1.0

    def __post_init__(self) -> None:
        if len(self.chain) < 2:
            raise ValueError("ChainSDE needs n >= 2 steps, because time runs from t_min = 1/n to t_max = 1; got n=1")

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1.0 / len(self.chain)

    @functools.cached_property
    def _cubics(self) -> Tensor:
        # SciPy's interpolation takes most of a second to import, and most programs do not need it.
        from scipy.interpolate import PchipInterpolator

        values = np.concatenate([[0.0], 0.5 * self.chain.log_alphas_bar.numpy()])
        return torch.from_numpy(PchipInterpolator(np.arange(len(values)), values).c.T.copy())

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients of the cubic at each time, with shape (4, *t), and the time within it, in steps."""
        n = len(self.chain)
        cubics = self._cubics.to(t.device)
        step = (t.detach() * n).floor().clamp(0, n - 1).long()
        return cubics[step].movedim(-1, 0), t.double() * n - step

    def log_alpha(self, t: Tensor) -> Tensor:
        c, u = self._locate(t)
        return (((c[0] * u + c[1]) * u + c[2]) * u + c[3]).to(t.dtype)

    def var(self, t: Tensor) -> Tensor:
        return -torch.expm1(2.0 * self.log_alpha(t))

    def f(self, t: Tensor) -> Tensor:
        c, u = self._locate(t)
        return (((3.0 * c[0] * u + 2.0 * c[1]) * u + c[2]) * len(self.chain)).to(t.dtype)

    def g2(self, t: Tensor) -> Tensor:
        return -2.0 * self.f(t)

    def prior_var(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


def _check_steps(n: int, beta_max: float = 0.0) -> None:
    if n < 1:
        raise ValueError(f"a chain needs n >= 1 steps, got n={n}")
    if beta_max / n >= 1.0:
        raise ValueError(
            f"with n={n} steps the last beta would be {beta_max / n:.6g}, but betas must be below 1: "
            f"use n >= {math.floor(beta_max) + 1}"
        )
