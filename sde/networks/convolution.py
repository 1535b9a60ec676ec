r"""Convolutions whose input gradient is cheaper when the weights are frozen.

.. math:: y_o = b_o + \sum_i w_{oi} \star x_i, \qquad
          \frac{\partial \langle y, g \rangle}{\partial x_i} = \sum_o \tilde w_{oi} \star g_o

The gradient with respect to the input is itself a convolution, where :math:`\tilde w` are the weights with reversed
spatial axes. A likelihood needs only this gradient, because the weights of its network are frozen. Torch's own gradient
saves every x for the gradient of the weights. Here only w is saved, and the gradient uses the kernels of the forward
pass, which are the faster ones on CPUs. If the weights require gradients, if the stride is not 1, and in forward mode,
the layers are identical to torch's.
"""

from __future__ import annotations

__all__ = ["Conv1d", "Conv2d", "Conv3d", "in_forward_mode"]

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn import functional as F


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is active.

    Must be checked before a :class:`torch.autograd.Function` is applied: inside its `jvp`, torch ignores a second
    forward mode and returns a wrong result.
    """
    return forward_ad._current_level >= 0


class _Convolution(Function):
    """y for frozen w and b."""

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
        reversed_weight = weight.transpose(0, 1).flip(*range(2, weight.ndim))
        padding = tuple(size - 1 - side for size, side in zip(weight.shape[2:], ctx.padding))
        return ctx.convolve(g, reversed_weight, None, padding=padding), None, None, None, None


class _FrozenConv(nn.modules.conv._ConvNd):
    """The base of the three layers: one group, no dilation, zero padding."""

    _convolve: ClassVar[Callable[..., Tensor]]

    def forward(self, x: Tensor) -> Tensor:
        """x with shape (B, C, *)."""
        frozen = torch.is_grad_enabled() and x.requires_grad and not any(p.requires_grad for p in self.parameters())
        if not frozen or set(self.stride) != {1} or torch.compiler.is_compiling() or in_forward_mode():
            y: Tensor = super().forward(x)
            return y
        return _Convolution.apply(x, self.weight, self.bias, self._convolve, self.padding)


class Conv1d(_FrozenConv, nn.Conv1d):
    """`torch.nn.Conv1d` with a cheaper input gradient for frozen weights."""

    _convolve = staticmethod(F.conv1d)


class Conv2d(_FrozenConv, nn.Conv2d):
    """`torch.nn.Conv2d` with a cheaper input gradient for frozen weights."""

    _convolve = staticmethod(F.conv2d)


class Conv3d(_FrozenConv, nn.Conv3d):
    """`torch.nn.Conv3d` with a cheaper input gradient for frozen weights."""

    _convolve = staticmethod(F.conv3d)
