r"""Exponential moving averages of a model's weights, by name."""

from __future__ import annotations

__all__ = ["EMA"]

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class EMA:
    r"""A moving average of the parameters of a module, kept by name; buffers are copied as they are.

    .. math:: \bar\theta \leftarrow \mu_k \bar\theta + (1 - \mu_k)\, \theta, \qquad
              \mu_k = \min\Big(\mu, \frac{1 + k}{10 + k}\Big)

    so that early steps are forgotten soon, whatever the length of the run.

    Args:
        module: the module whose weights are averaged.
        decay: :math:`\mu`; 0.999 averages over the last thousand steps or so.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"an EMA needs a decay in [0, 1), got decay={decay}")
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the module's weights after its training step number `step`, counted from 1."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        names, values = zip(*module.named_parameters(remove_duplicate=False))
        torch._foreach_lerp_([self.weights[n] for n in names], [v.detach() for v in values], 1.0 - decay)
        for name, value in module.named_buffers():
            if name in self.weights:
                self.weights[name].copy_(value)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over saved averages; the names must be the module's."""
        if weights.keys() != self.weights.keys():
            odd = sorted(weights.keys() ^ self.weights.keys())
            raise ValueError(f"these averages are of another module: {odd[0]!r} stands on one side only")
        for name, value in weights.items():
            self.weights[name].copy_(value)

    @contextlib.contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Puts the averages into the module for a while; its own weights return afterwards."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.weights)
        try:
            yield
        finally:
            module.load_state_dict(own)
