r"""A denoiser for dequantised discrete data: the network predicts the levels, and the rest is in closed form.

Level k of a value is dequantised to :math:`x_0 = e_k + (e_{k+1} - e_k)\, u` with a uniform u of its own. Given the
levels, the values are independent, so that with :math:`y = x_t/\alpha_t`, :math:`s = \sigma_t/\alpha_t`, :math:`a_k =
(e_k - y)/s` and :math:`b_k = (e_{k+1} - y)/s` the noise of one value is

.. math::
    E[z | x_t] = -\sum_k P(k | x_t)\, \frac{\varphi(a_k) - \varphi(b_k)}{\Phi(b_k) - \Phi(a_k)}, \qquad
    P(k | x_t) \propto P(k | \text{the other values of } x_t)\; \big(\Phi(b_k) - \Phi(a_k)\big) .

The network gives the logarithm of the first factor of P, up to a constant, for every value and level. The density of
such data is constant in each bin and jumps at its edges. A network that predicts the noise itself has to resolve the
jumps from its input at every noise level; here they are exact.

Compare the score interpolation of Dieleman et al., Continuous Diffusion for Categorical Data, 2022,
https://arxiv.org/abs/2211.15089, where every level is a point.
"""

from __future__ import annotations

__all__ = ["QuantisedDenoiser"]

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..networks.network import network_in
from ..processes import SDE
from ..shapes import check_count, expand, working, working_dtype
from .base import Denoiser
from .levels import NoiseLevel, TimeLevel
from .parametrisation import NoisePrediction, Prediction


class QuantisedDenoiser(Denoiser):
    r"""A network that predicts the levels of discrete data, as a denoiser of the data with uniform dequantisation.

    It is for data of a scaling with the same levels, such as `Scaling.interval(levels, low, high)`: the bins are those
    between `low` and `high`, of equal width. The cost of the closed form grows with the number of levels; 17 are cheap.

    Args:
        network: a module that maps (B, C, \*) to (B, levels C, \*): for each level the logits of all channels.
        process: the process.
        levels: the number L of levels.
        low: the lower edge of the first bin.
        high: the upper edge of the last bin.
        level: the noise conditioning; 1000 t by default.
    """

    def __init__(
        self,
        network: nn.Module,
        process: SDE,
        levels: int,
        low: float = -1.0,
        high: float = 1.0,
        level: NoiseLevel | None = None,
    ) -> None:
        super().__init__()
        check_count("QuantisedDenoiser", "levels", levels, 2)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"QuantisedDenoiser needs finite low < high, got low={low}, high={high}")
        self.network = network
        self.process = process
        if (known := network_in(network)) is not None:
            self.classes, self.takes = known.classes, known.takes
        self.levels, self.low, self.high = levels, low, high
        self.level = TimeLevel() if level is None else level

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.predict(Prediction.X0, x_t, t, **condition)

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        state = working(x_t)
        logits = self._logits(state, t, condition)
        # In float64, because a bin's mass is small beside the noise, or far away from the state.
        wide = state.double()
        alpha, s = expand(self.process.alpha(t), wide), expand(self.process.sigma(t) / self.process.alpha(t), wide)
        edges = torch.linspace(self.low, self.high, self.levels + 1, dtype=torch.float64, device=state.device)
        edges = edges.reshape(-1, *(1,) * (state.ndim - 1))
        at_edges = (edges - (wide / alpha)[:, None]) / (s[:, None] if s.ndim else s)  # (B, L + 1, C, *)
        log_mass, log_phi = _log_mass(at_edges[:, :-1], at_edges[:, 1:]), -0.5 * at_edges.square() - _LOG_ROOT
        pull = torch.exp(log_phi[:, :-1] - log_mass) - torch.exp(log_phi[:, 1:] - log_mass)
        noise = -(torch.softmax(logits.double() + log_mass, dim=1) * pull).sum(1)
        a, b = NoisePrediction().coefficients(what, self.process, t)
        prediction = expand(b, state) * noise.to(state.dtype)
        return (prediction if a is None else prediction + expand(a, state) * state).to(x_t.dtype)

    def _logits(self, state: Tensor, t: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The network's logits, with shape (B, L, C, *); its input has unit variance for data of unit variance."""
        scale = NoisePrediction().input_scale(self.process, t)
        x = state if scale is None else expand(scale, state) * state
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        level = self.level(self.process, t).to(x.device, working_dtype(dtype))
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in condition.items()}
        out = self.network(x.to(dtype), level, **cast).to(state.dtype)
        batch, channels, *sizes = state.shape
        expected = (batch, self.levels * channels, *sizes)
        if tuple(out.shape) != expected:
            raise ValueError(
                f"a network that predicts {self.levels} levels has as many output channels for each of its input "
                f"channels: expected {expected}, got {tuple(out.shape)}; give out_channels="
            )
        return out.reshape(batch, self.levels, channels, *sizes)


_LOG_ROOT = 0.5 * math.log(2.0 * math.pi)


def _log_mass(a: Tensor, b: Tensor) -> Tensor:
    """The logarithm of the mass of a standard normal between a and b > a, accurate in both tails."""
    upper = a > 0.0
    low, high = torch.where(upper, -b, a), torch.where(upper, -a, b)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))
