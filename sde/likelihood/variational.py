r"""Variational dequantisation: noise learned to match a density within the quantisation bins of discrete data.

A flow turns uniform noise into noise that depends on the data,

.. math::
    w_0 = \operatorname{logit}(u_0), \qquad
    w_{j+1} = w_j + (1 - m_j) \odot \big( (e^{a_j} - 1) \odot w_j + b_j \big), \qquad
    u = \operatorname{sigmoid}(w_J),

where a network of :math:`m_j \odot \tanh(w_j/2)` and v gives :math:`a_j` and :math:`b_j`. The first mask is 0, so that
a single layer is a logistic distribution with conditional location and scale; the others are the two colours of a
checkerboard in turn. Before training the flow is the identity, and the noise is uniform.

Ho et al., Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, 2019,
https://arxiv.org/abs/1902.00275; Dinh, Sohl-Dickstein and Bengio, Density estimation using Real NVP, 2017,
https://arxiv.org/abs/1605.08803.
"""

from __future__ import annotations

__all__ = ["VariationalDequantiser", "train_dequantiser"]

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..data import Scaling
from ..noise import Noise, Stream
from ..shapes import check_event, check_recordable, recordable, recording, sum_event
from .dequantisation import Dequantiser, dequantise

_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class VariationalDequantiser(nn.Module, Dequantiser):
    """A learned dequantiser.

    Args:
        shape: the event shape, (C, *spatial) or (D,).
        levels: the number of levels of the data.
        layers: the number of layers.
        width: the width of their networks.
        alpha: as in :class:`sde.likelihood.Dequantiser`.
    """

    def __init__(
        self, shape: Sequence[int], levels: int, *, layers: int = 4, width: int = 64, alpha: float = 1.0
    ) -> None:
        super().__init__()
        if layers < 1 or width < 1 or not 1 <= len(shape) <= 4:
            raise ValueError(
                f"VariationalDequantiser needs an event shape of 1 to 4 sizes, layers >= 1 and width >= 1, "
                f"got shape={tuple(shape)}, layers={layers}, width={width}"
            )
        self.shape, self.levels, self.width, self.alpha = tuple(shape), levels, width, alpha
        self.networks = nn.ModuleList(_network(self.shape, width) for _ in range(layers))
        places = torch.meshgrid(*map(torch.arange, self.shape), indexing="ij")
        colour = torch.stack(places).sum(0).remainder(2).double()
        masks = [torch.zeros_like(colour), *((colour, 1.0 - colour)[j % 2] for j in range(layers - 1))]
        self.register_buffer("masks", torch.stack(masks), persistent=False)
        self.masks: Tensor

    def __repr__(self) -> str:
        return (
            f"VariationalDequantiser(shape={self.shape}, levels={self.levels}, layers={len(self.networks)}, "
            f"width={self.width}, alpha={self.alpha})"
        )

    def draw(self, values: Tensor, noise: Noise, index: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
        u0 = noise.uniform(Stream.DEQUANTISE, index, counter, self.shape, torch.float64)
        # The networks may be on another device than the values; the noise returns to the device of the values.
        device = next(self.parameters()).device
        u, log_q = self(values.to(device), u0.to(device))
        return u.to(values.device), log_q.to(values.device)

    def forward(self, values: Tensor, u0: Tensor) -> tuple[Tensor, Tensor]:
        r"""The noise and its log-density.

        Args:
            values: levels, with shape (B, \*).
            u0: uniforms in [0, 1), float64 with shape (B, \*).

        Returns:
            u, float64 with shape (B, \*), and :math:`\log q(u|v)` in nats with shape (B,).
        """
        check_event(values, self.shape, "this dequantiser")
        dtype = next(self.parameters()).dtype
        level = (2.0 * (values.double() + 0.5) / self.levels - 1.0).to(dtype)
        w = torch.logit(u0, eps=2.0**-53)
        log_q = _log_logistic(w)
        for mask, network in zip(self.masks, self.networks):
            seen = mask * (2.0 * torch.sigmoid(w) - 1.0)
            a, b = network(torch.cat([seen.to(dtype), level], dim=1)).double().chunk(2, dim=1)
            a = (1.0 - mask) * 4.0 * torch.tanh(a / 4.0)  # a step of training cannot shrink the noise to a point
            w = w * a.exp() + (1.0 - mask) * b
            log_q = log_q - a
        if not bool(w.isfinite().all()):
            raise FloatingPointError(
                "the noise of this dequantiser is not finite: train it with a smaller learning rate"
            )
        return torch.sigmoid(w), sum_event(log_q - _log_logistic(w))


def train_dequantiser(
    dequantiser: VariationalDequantiser,
    log_density: Callable[[Tensor, int], Tensor],
    batches: Iterable[Tensor],
    scaling: Scaling,
    optimiser: torch.optim.Optimizer,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[float]:
    r"""Trains a dequantiser for a fixed density; the caller stops the generator.

    Args:
        dequantiser: the dequantiser to train.
        log_density: the log-density, from states x of shape (B, \*) and the number of the step to nats of shape (B,),
            differentiable in x: `lambda x, step: sde.log_prob(denoiser, x, seed=step, differentiable=True).nats`, or a
            bound. Its parameters get no gradients.
        batches: batches of levels.
        scaling: the scaling of discrete data.
        optimiser: the optimiser of the dequantiser's parameters.
        seed: the seed of the noise.
        dtype: the dtype of the states.

    Yields:
        The loss of each step, :math:`-E[\log p(x) + w]` in nats, an upper bound on :math:`-\log P(v)`.

    Raises:
        FloatingPointError: if the loss or its gradient is not finite; the step is not taken.
    """
    check_recordable(dequantiser, "its weights cannot be trained", "dequantiser")
    parameters = list(dequantiser.parameters())
    for step, values in enumerate(batches):
        with recording(True):
            draw = dequantise(dequantiser, recordable(values), scaling, seed=seed, repeat=step, dtype=dtype)
            loss = -(log_density(draw.x, step).double() + draw.log_weight).mean()
            gradients = torch.autograd.grad(loss, parameters)
        if not all(bool(each.isfinite().all()) for each in (loss, *gradients)):
            raise FloatingPointError(
                f"training stopped at step {step + 1}: the loss is {loss.item()}, or its gradient is not finite; a "
                "smaller learning rate may help"
            )
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        with recording(True):
            optimiser.step()
        yield loss.item()


def _network(shape: tuple[int, ...], width: int) -> nn.Module:
    """A network with two hidden layers from (w, v) to (a, b), whose output is 0 at first."""
    spatial, outside = len(shape) - 1, 2 * shape[0]
    layer = partial(_CONVOLUTIONS[spatial], kernel_size=3, padding=1) if spatial else nn.Linear
    first, second, last = layer(outside, width), layer(width, width), layer(width, outside)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)


def _log_logistic(w: Tensor) -> Tensor:
    """The log-density of the standard logistic distribution."""
    return nn.functional.logsigmoid(w) + nn.functional.logsigmoid(-w)
