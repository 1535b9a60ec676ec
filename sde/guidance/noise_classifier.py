r"""Noise-aware classifiers: the label of a noisy state, :math:`\log p(y|x_t)`.

Trained by cross-entropy on noised data, a network approximates :math:`p(y|x_t) = E[p(y|x_0)|x_t]`, by whose gradient
:class:`sde.guidance.Classifier` makes a conditional model of an unconditional one. Dhariwal and Nichol, Diffusion
Models Beat GANs on Image Synthesis, 2021, https://arxiv.org/abs/2105.05233, section 4.
"""

from __future__ import annotations

__all__ = ["NoiseClassifier"]

import torch
from torch import Tensor, nn

from ..denoisers import LogSNRLevel, NoiseLevel
from ..networks import Taken
from ..processes import SDE
from ..shapes import expand, working, working_dtype


class NoiseClassifier(nn.Module):
    r"""A network as a classifier of noisy states, which is a :class:`sde.guidance.LogProbability` of the label.

    The network is called as `net(x, noise_level)` on states that are scaled to a variance of about 1, and gives logits
    (B, K). It runs in its own dtype; the result has that of the state, float32 at least.

    Args:
        network: the network, such as :class:`sde.networks.Encoder`.
        process: the process by which its data was noised.
        classes: K, the number of classes.
        level: its noise conditioning.
    """

    process: SDE

    def __init__(self, network: nn.Module, process: SDE, classes: int, level: NoiseLevel | None = None) -> None:
        super().__init__()
        self.network, self.process, self.classes = network, process, classes
        self.level = LogSNRLevel(scale=50.0) if level is None else level

    @property
    def takes(self) -> dict[str, Taken]:
        """The conditions that it takes, as in :class:`sde.Denoiser`."""
        return {"label": Taken(classes=self.classes)}

    def log_probs(self, x_t: Tensor, t: Tensor) -> Tensor:
        r"""The log-probabilities of all classes in nats, with shape (B, K), of states (B, \*) at times () or (B,)."""
        state, scale = working(x_t), (self.process.alpha(t).square() + self.process.var(t)).rsqrt()
        dtype = next((p.dtype for p in self.network.parameters()), state.dtype)
        level = self.level(self.process, t).to(state.device, working_dtype(dtype))
        logits: Tensor = self.network((expand(scale, state) * state).to(dtype), level)
        if logits.shape != (len(x_t), self.classes):
            raise ValueError(f"expected logits with shape {(len(x_t), self.classes)}, got {tuple(logits.shape)}")
        return logits.to(state.dtype).log_softmax(1)

    def forward(self, x_t: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        """The log-probability of the label, int64 with shape () or (B,), in nats with shape (B,); 0 for the label K,
        which says nothing."""
        log_probs = self.log_probs(x_t, t)
        every = torch.cat([log_probs, torch.zeros_like(log_probs[:, :1])], 1)
        return every.gather(1, label.expand(len(x_t))[:, None])[:, 0]
