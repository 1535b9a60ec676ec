r"""Moving averages of weights: exponential, and with a power function of the step as their profile.

The average of a power function,

.. math:: \bar\theta_t = \frac{\int_0^t s^\gamma\, \theta(s)\, ds}{\int_0^t s^\gamma\, ds}, \qquad
          \bar\theta_t = \beta_t\, \bar\theta_{t-1} + (1 - \beta_t)\, \theta_t, \quad
          \beta_t = \Big(1 - \frac1t\Big)^{\gamma + 1},

extends over a share of the training that does not change as it goes on. The standard deviation of its profile, relative
to t, is :math:`\sqrt{\gamma + 1} / ((\gamma + 2) \sqrt{\gamma + 3})`. From a few stored averages, the average of any
other length is reconstructed after the training (:mod:`sde.training.posthoc`).

Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024,
https://arxiv.org/abs/2312.02696, section 3.
"""

from __future__ import annotations

__all__ = ["EMA", "Average", "PowerEMA"]

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..shapes import recording, working
from ..storage.wrappers import fitted
from .ranks import full, local, sharded_as


class Average(ABC):
    """Moving average of the parameters of a module, in float32 at least; buffers are copied.

    Args:
        module: the module whose weights are averaged.

    Attributes:
        weights: the averages by name.
    """

    def __init__(self, module: nn.Module) -> None:
        with recording(False):
            self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
            # In half precision a step of the average would round to nothing.
            for name, _ in module.named_parameters(remove_duplicate=False):
                self.weights[name] = working(self.weights[name])

    @abstractmethod
    def decay_at(self, step: int) -> float:
        """The factor of the old average in the update after a step, counted from 1."""

    @recording(False)
    def update(self, module: nn.Module, step: int) -> None:
        """Updates the averages with the weights after training step number `step`, counted from 1."""
        decay = self.decay_at(step)
        names, values = zip(*module.named_parameters(remove_duplicate=False))
        new = [working(local(v.detach())) for v in values]
        torch._foreach_lerp_([local(self.weights[n]) for n in names], new, 1.0 - decay)
        for name, value in module.named_buffers():
            if name in self.weights:
                self.weights[name].copy_(value)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copies saved averages; their names must be those of the module, whatever wraps either."""
        weights = fitted(self.weights, weights)
        if weights.keys() != self.weights.keys():
            differing = sorted(weights.keys() ^ self.weights.keys())
            raise ValueError(f"these averages are of another module: only one of the two has {differing[0]!r}")
        for name, value in weights.items():
            self.weights[name].copy_(sharded_as(value, self.weights[name]))

    def shard(self, module: nn.Module) -> None:
        """Leaves this rank the part of the averages that it has of the weights of the module."""
        self.weights = {name: sharded_as(self.weights[name], value) for name, value in module.state_dict().items()}

    def whole(self) -> dict[str, Tensor]:
        """The averages by name, with all their parts; a call of all ranks."""
        return {name: full(value) for name, value in self.weights.items()}

    @contextlib.contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Uses the averages as the weights of the module within a `with` statement."""
        weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.weights)
        try:
            yield
        finally:
            module.load_state_dict(weights)


class EMA(Average):
    r"""Exponential moving average of the parameters of a module, in float32 at least; buffers are copied.

    .. math:: \bar\theta \leftarrow \mu_k \bar\theta + (1 - \mu_k)\, \theta, \qquad
              \mu_k = \min\Big(\mu, \frac{1 + k}{10 + k}\Big)

    after step k, so that the initial weights are forgotten soon. For a training loop of your own::

        ema = sde.EMA(net, 0.999)
        for step, batch in enumerate(batches, start=1):
            ...  # one step of the optimiser
            ema.update(net, step)
        with ema.applied_to(net):
            ...  # sample with the averaged weights

    Args:
        module: the module whose weights are averaged.
        decay: :math:`\mu`; with 0.999 the average extends over about the last thousand steps.

    Attributes:
        weights: the averages by name.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"an EMA needs a decay in [0, 1), got decay={decay}")
        self.decay = decay
        super().__init__(module)

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1.0 + step) / (10.0 + step))


class PowerEMA(Average):
    r"""Average with a power function of the step as its profile (equations 1 and 2 of the paper).

    Args:
        module: the module whose weights are averaged.
        std: the relative standard deviation of the profile, in (0, 0.28); with 0.1 the average extends over about the
            last tenth of the training, with 0.05 over half of that.

    Attributes:
        weights: the averages by name.
        gamma: the exponent :math:`\gamma`.
    """

    def __init__(self, module: nn.Module, std: float) -> None:
        self.std, self.gamma = std, exponent(std)
        super().__init__(module)

    def decay_at(self, step: int) -> float:
        return float((1.0 - 1.0 / step) ** (self.gamma + 1.0))


def exponent(std: float) -> float:
    r"""The exponent :math:`\gamma > 0` of the profile with a relative standard deviation: the largest root of
    :math:`\gamma^3 + 7 \gamma^2 + (16 - \sigma^{-2}) \gamma + 12 - \sigma^{-2}`.

    Raises:
        ValueError: if `std` is not in (0, 0.2886), beyond which no exponent is positive.
    """
    if not 0.0 < std < 12.0**-0.5:
        raise ValueError(f"a power-function average needs a relative standard deviation in (0, 0.2886), got std={std}")
    return float(np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2]).real.max())
