r"""Convolutions of stride 1 that cost less where only the gradient in their input is asked for.

.. math:: y_o = b_o + \sum_i w_{oi} \star x_i, \qquad
          \frac{\partial \langle y, g \rangle}{\partial x_i} = \sum_o \tilde w_{oi} \star g_o

The gradient in the input is itself a convolution: :math:`\tilde w` are the weights with their spatial axes turned
round. A likelihood asks a network with frozen weights for nothing else. Torch's own gradient keeps every x for the
weights' sake; here only w is kept, and the kernels of the forward direction are used, on CPUs the faster ones. Where
weights have gradients, and in forward mode, these layers are torch's.
"""

from __future__ import annotations

__all__ = [
    "in_forward_mode",
    "Conv1d",
    "Conv2d",
    "Conv3d",
]

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn import functional as F


def in_forward_mode() -> bool:
    """Whether derivatives are being taken in forward mode.

    To be asked before a :class:`torch.autograd.Function` is applied: within a `jvp` of one torch ignores a second
    forward mode, and so gives a wrong result.
    """
    return forward_ad._current_level >= 0


class _Convolution(Function):
    """y of x and frozen w and b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, convolve: Callable[..., Tensor], padding: Any) -> Tensor:
        return convolve(x, weight, bias, padding=padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, _, ctx.convolve, ctx.padding = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        assert not any(ctx.needs_input_grad[1:])
        (weight,) = ctx.saved_tensors
        turned = weight.transpose(0, 1).flip(*range(2, weight.ndim))
        padding = tuple(size - 1 - side for size, side in zip(weight.shape[2:], ctx.padding))
        return ctx.convolve(g, turned, None, padding=padding), None, None, None, None


class _Quick(nn.modules.conv._ConvNd):
    """What the three layers below have in common: one group, no dilation, and zeros beyond the edges."""

    _convolve: ClassVar[Callable[..., Tensor]]

    def forward(self, x: Tensor) -> Tensor:
        """x with shape (B, C, *)."""
        asked = torch.is_grad_enabled() and x.requires_grad and not any(p.requires_grad for p in self.parameters())
        if not asked or set(self.stride) != {1} or torch.compiler.is_compiling() or in_forward_mode():
            result: Tensor = super().forward(x)
            return result
        return _Convolution.apply(x, self.weight, self.bias, self._convolve, self.padding)


class Conv1d(_Quick, nn.Conv1d):
    """`torch.nn.Conv1d`, of weights that may be frozen."""

    _convolve = staticmethod(F.conv1d)


class Conv2d(_Quick, nn.Conv2d):
    """`torch.nn.Conv2d`, likewise."""

    _convolve = staticmethod(F.conv2d)


class Conv3d(_Quick, nn.Conv3d):
    """`torch.nn.Conv3d`, likewise."""

    _convolve = staticmethod(F.conv3d)
