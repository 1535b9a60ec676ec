r"""Networks as denoisers, with a learned reverse variance or without.

A network with a learned variance has 2 C output channels. The first C are its prediction. The last C, u, interpolate
the variance of :math:`p(x_s \mid x_t)` between its two extremes, that of the posterior and that of the transition,

.. math:: \log \tilde\sigma^2 = v \log \sigma_{t|s}^2 + (1 - v) \log \frac{\sigma_s^2 \sigma_{t|s}^2}{\sigma_t^2},
          \qquad v = \frac{u + 1}{2}.

Both extremes are functions of the step, so that one u serves any grid: a chain that skips steps has the betas of its
longer steps.

Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, https://arxiv.org/abs/2102.09672,
equation 15.
"""

from __future__ import annotations

__all__ = ["LearnedVarianceDenoiser", "NetworkDenoiser", "PredictingDenoiser"]

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from ..networks.network import network_in
from ..processes import SDE
from ..shapes import expand, working, working_dtype
from .base import Denoiser
from .levels import NoiseLevel, TimeLevel
from .parametrisation import NoisePrediction, Parametrisation, Prediction


class PredictingDenoiser(Denoiser):
    """A denoiser whose predictions all come from one call of a network; a leaf splits the network's output.

    The state keeps the dtype that the caller chose; here, and nowhere else, it is cast to the network's and back, and
    floating conditions with it. The noise level and the arithmetic around the network stay in float32 at least.
    """

    def __init__(
        self,
        network: nn.Module,
        process: SDE,
        parametrisation: Parametrisation | None = None,
        level: NoiseLevel | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.process = process
        if (known := network_in(network)) is not None:
            self.classes, self.takes = known.classes, known.takes
        self.parametrisation = NoisePrediction() if parametrisation is None else parametrisation
        self.level = TimeLevel() if level is None else level

    @abstractmethod
    def split(self, out: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The parts of the network's output for `x_t`: the prediction, with shape (B, *), and the variance
        interpolation coefficient of :meth:`score_and_variance` or None.

        Raises:
            ValueError: if the output does not have the shape of such a network's.
        """

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.predict(Prediction.X0, x_t, t, **condition)

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self._evaluate(what, x_t, t, condition)[0]

    def score_and_variance(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._evaluate(Prediction.SCORE, x_t, t, condition)

    def _evaluate(
        self, what: Prediction, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        a, b = self.parametrisation.coefficients(what, self.process, t)
        scale = self.parametrisation.input_scale(self.process, t)
        state = working(x_t)
        x = state if scale is None else expand(scale, state) * state
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        level = self.level(self.process, t).to(x.device, working_dtype(dtype))
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in condition.items()}
        out, variance = self.split(self.network(x.to(dtype), level, **cast).to(state.dtype), state)
        prediction = expand(b, state) * out
        return (prediction if a is None else prediction + expand(a, state) * state).to(x_t.dtype), variance


class NetworkDenoiser(PredictingDenoiser):
    """Any network `net(x, noise_level, **condition)` as a denoiser.

    Args:
        network: a module whose output has the shape of its first argument.
        process: the process it was, or will be, trained for.
        parametrisation: what its output means; the noise by default.
        level: its noise conditioning, a function of the time; 1000 t by default.
    """

    def split(self, out: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        _check_output("the output of a network has the shape of its input", out, tuple(x_t.shape))
        return out, None


class LearnedVarianceDenoiser(PredictingDenoiser):
    r"""A network that predicts the variance interpolation coefficient v too, from the same call.

    Args:
        network: a module that maps (B, C, \*) to (B, 2 C, \*).
        process: the process it was trained for.
        parametrisation: what its first C channels mean; the noise by default.
        level: its noise conditioning; 1000 t by default.
    """

    def split(self, out: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        batch, channels, *sizes = x_t.shape
        rule = "a network with a learned variance has twice as many output channels as input channels"
        _check_output(rule, out, (batch, 2 * channels, *sizes))
        prediction, u = out.chunk(2, dim=1)
        return prediction, (u + 1.0) / 2.0


def _check_output(rule: str, out: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(out.shape) != expected:
        raise ValueError(f"{rule}: expected {expected}, got {tuple(out.shape)}")
