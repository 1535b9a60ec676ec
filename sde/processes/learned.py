r"""A variance-preserving process whose schedule is learned with the denoiser.

.. math::
    \alpha_t^2 = \operatorname{sigmoid}(\lambda_t), \qquad \sigma_t^2 = \operatorname{sigmoid}(-\lambda_t), \qquad
    \lambda_t = \lambda_{\max} - (\lambda_{\max} - \lambda_{\min})\, \frac{m(t) - m(0)}{m(1) - m(0)}

Kingma et al., Variational Diffusion Models, 2021, section 3.2 and appendix H, https://arxiv.org/abs/2107.00630.
"""

from __future__ import annotations

__all__ = ["LearnedVP"]

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..shapes import check_count
from .base import SDE


class LearnedVP(nn.Module, SDE):
    r"""The variance-preserving SDE with a learned monotone schedule, on t in [0, 1].

    .. math:: m(t) = a_0 t + \sum_k a_k \operatorname{sigmoid}\big(b_k (t - c_k)\big), \qquad a_k, b_k > 0

    increases, so that the log-SNR decreases between its ends. It begins almost linear. A module: a denoiser that has it
    as its `process` has its parameters too, in training, in averages of the weights and in checkpoints. They are
    trained by :class:`sde.objective.LearnedSchedule`, which minimises the variance of the loss, or by any objective
    through which gradients flow to them. The bound on the likelihood depends on the schedule through its ends alone;
    the loss with other weightings depends on all of it, and its minimum over schedules means nothing.

    Args:
        log_snr_max: the log-SNR :math:`\lambda_{\max}` at t = 0, close to the data.
        log_snr_min: the log-SNR :math:`\lambda_{\min}` at t = 1, close to the prior, which is the standard normal.
        units: the number K of sigmoids.
        learn_ends: whether the two ends are parameters too; :class:`sde.objective.ContinuousBound` is a loss for them.
    """

    t_min = 0.0
    t_max = 1.0

    def __init__(
        self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, units: int = 32, learn_ends: bool = False
    ) -> None:
        super().__init__()
        check_count("LearnedVP", "units", units)
        if not -math.inf < log_snr_min < log_snr_max < math.inf:
            raise ValueError(
                f"LearnedVP needs finite log_snr_min < log_snr_max, got log_snr_min={log_snr_min}, "
                f"log_snr_max={log_snr_max}"
            )
        self.log_snr_max, self.log_snr_min, self.units, self.learn_ends = log_snr_max, log_snr_min, units, learn_ends
        ends = torch.tensor([log_snr_max, log_snr_min], device="cpu")
        self.ends = nn.Parameter(ends) if learn_ends else None
        centres = (torch.arange(units, device="cpu") + 0.5) / units
        self.interior = nn.ParameterDict(
            {
                "slope": nn.Parameter(torch.zeros(1, device="cpu")),  # log a_0
                "heights": nn.Parameter(torch.full((units,), -math.log(units), device="cpu")),  # log a_k
                "rates": nn.Parameter(torch.full((units,), math.log(4.0 * units), device="cpu")),  # log b_k
                "centres": nn.Parameter(centres),  # c_k
            }
        )

    def extra_repr(self) -> str:
        return f"log_snr_max={self.log_snr_max}, log_snr_min={self.log_snr_min}, units={self.units}"

    def log_snr(self, t: Tensor) -> Tensor:
        return self._log_snr_and_slope(t, self.ends)[0].to(t.dtype)

    def log_alpha(self, t: Tensor) -> Tensor:
        return (0.5 * nn.functional.logsigmoid(self._log_snr_and_slope(t, self.ends)[0])).to(t.dtype)

    def var(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self._log_snr_and_slope(t, self.ends)[0]).to(t.dtype)

    def g2(self, t: Tensor) -> Tensor:
        # g^2 = -var dlog_snr/dt, for every process.
        log_snr, slope = self._log_snr_and_slope(t, self.ends)
        return (-torch.sigmoid(-log_snr) * slope).to(t.dtype)

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.g2(t)

    def prior_var(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def log_density(self, t: Tensor) -> Tensor:
        r"""The logarithm of the density of :math:`\lambda_t` for uniform t, at the log-SNR that t has now.

        That log-SNR is fixed, and so are the ends: gradients are those of the density at a point, in the parameters of
        the schedule between them.
        """
        ends = None if self.ends is None else self.ends.detach()
        log_snr, slope = self._log_snr_and_slope(t, ends)
        # The time at which the schedule has the present log-SNR: a step of Newton's method, of length 0.
        t = t - (log_snr - log_snr.detach()) / slope.detach()
        return -torch.log(-self._log_snr_and_slope(t, ends)[1])

    @contextmanager
    def frozen_interior(self) -> Iterator[None]:
        """Without gradients for the schedule between its ends, in what is computed in this context."""
        trained = [p for p in self.interior.values() if p.requires_grad]
        for p in trained:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in trained:
                p.requires_grad_(True)

    def _log_snr_and_slope(self, t: Tensor, ends: Tensor | None) -> tuple[Tensor, Tensor]:
        """The log-SNR and its derivative, in float64: the schedule is small, and solvers take differences of it."""
        p = {name: value.to(t.device, torch.float64) for name, value in self.interior.items()}
        a0, a, b, c = p["slope"].exp()[0], p["heights"].exp(), p["rates"].exp(), p["centres"]

        def m(time: Tensor) -> tuple[Tensor, Tensor]:
            s = torch.sigmoid(b * (time[..., None] - c))
            return a0 * time + (a * s).sum(-1), a0 + (a * b * s * (1.0 - s)).sum(-1)

        (low, high), _ = m(torch.tensor([0.0, 1.0], dtype=torch.float64, device=t.device))
        value, slope = m(t.double())
        first, last = (self.log_snr_max, self.log_snr_min) if ends is None else ends.to(low).unbind()
        span = (first - last) / (high - low)
        return first - span * (value - low), -span * slope
