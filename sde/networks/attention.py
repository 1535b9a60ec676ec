r"""Softmax attention that is fused, and has derivatives of every kind and order.

.. math:: A(q, k, v) = P v, \qquad P = \mathrm{softmax}(q k^\top / \sqrt{d})

for each of the heads (Vaswani et al. 2017, arXiv:1706.03762). The fused kernels of torch take memory of order N for N
positions where P takes N^2 (Dao et al. 2022, arXiv:2205.14135), but have neither a forward-mode nor a second
derivative, which an exact divergence or the gradient of a log-likelihood needs. Here the value and the gradient
come from the fused kernels, and only what these cannot do falls back on formulas with P in them: everything in
forward mode, and whatever follows a first gradient.
"""

from __future__ import annotations

__all__ = ["attend"]

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensors = tuple[Tensor, ...]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A(q, k, v) of queries, keys and values with shape (B, heads, N, d) -> (B, heads, N, d)."""
    if torch.compiler.is_compiling():  # torch.compile differentiates once and backwards only
        return F.scaled_dot_product_attention(q, k, v)
    if _in_forward_mode():
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)
    return _Attention.apply(q, k, v)


class _Attention(Function):
    """A(q, k, v): the fused kernel, with `_Gradient` as its gradient."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: Tensors, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensors:
        q, k, v = ctx.saved_tensors
        return _gradient(q, k, v, g) if _in_forward_mode() else _Gradient.apply(q, k, v, g)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *tensors: Tensor) -> tuple[Tensor, int]:
        return _Attention.apply(*_joined(info.batch_size, in_dims, tensors)).unflatten(0, (info.batch_size, -1)), 0


class _Gradient(Function):
    """The gradient of <A(q, k, v), g> in q, k and v: that of the fused kernel, whose value it computes once more."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensors:
        q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
        with torch.enable_grad():
            return torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), g)

    @staticmethod
    def setup_context(ctx: Any, inputs: Tensors, output: Tensors) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensors:
        return torch.func.vjp(_gradient, *ctx.saved_tensors)[1](cotangents)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *tensors: Tensor) -> tuple[Tensors, tuple[int, ...]]:
        gradients = _Gradient.apply(*_joined(info.batch_size, in_dims, tensors))
        return tuple(gradient.unflatten(0, (info.batch_size, -1)) for gradient in gradients), (0, 0, 0)


def _gradient(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensors:
    """What `_Gradient` computes, as a formula."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    p = torch.softmax(scale * (q @ k.mT), dim=-1)
    u = g @ v.mT
    s = scale * p * (u - (p * u).sum(-1, keepdim=True))  # the gradient in q k^T, through the softmax
    return s @ k, s.mT @ q, p.mT @ g


def _in_forward_mode() -> bool:
    # Not a `jvp` of the functions below: within it torch ignores a second forward mode, and so gives a wrong result.
    return forward_ad._current_level >= 0


def _joined(batch: int, in_dims: Sequence[int | None], tensors: Tensors) -> list[Tensor]:
    """The tensors with the dimension that `vmap` maps over joined to B."""
    return [
        (tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)).flatten(0, 1)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    ]
