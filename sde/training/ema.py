r"""Exponential moving averages of weights."""

from __future__ import annotations

__all__ = ["EMA"]

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..shapes import working
from ..storage.wrappers import fitted


class EMA:
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
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
        # In half precision a step of the average would round to nothing.
        for name, _ in module.named_parameters(remove_duplicate=False):
            self.weights[name] = working(self.weights[name])

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Updates the averages with the weights after training step number `step`, counted from 1."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        names, values = zip(*module.named_parameters(remove_duplicate=False))
        torch._foreach_lerp_([self.weights[n] for n in names], [working(v.detach()) for v in values], 1.0 - decay)
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
            self.weights[name].copy_(value)

    @contextlib.contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Uses the averages as the weights of the module within a `with` statement."""
        weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.weights)
        try:
            yield
        finally:
            module.load_state_dict(weights)
