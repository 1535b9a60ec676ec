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
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .convolution import in_forward_mode

Tensors = tuple[Tensor, ...]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A(q, k, v) of queries, keys and values with shape (B, heads, N, d) -> (B, heads, N, d)."""
    if torch.compiler.is_compiling():  # torch.compile differentiates once and backwards only
        return F.scaled_dot_product_attention(q, k, v)
    if in_forward_mode():
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)
    asked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v))
    return _Attention.apply(q, k, v, _Tape() if asked else None)


class _Tape:
    """The fused kernel's own graph from q, k and v to A, for one gradient."""

    def __init__(self) -> None:
        self.graph: tuple[Tensors, Tensor] | None = None

    def record(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (tensor.detach().requires_grad_() for tensor in (q, k, v))
        with torch.enable_grad():
            y = F.scaled_dot_product_attention(q, k, v)
        self.graph = (q, k, v), y
        return y.detach()

    def gradient(self, g: Tensor) -> Tensors:
        assert self.graph is not None
        (leaves, y), self.graph = self.graph, None
        return torch.autograd.grad(y, leaves, g)


class _Attention(Function):
    """A(q, k, v): the fused kernel, with `_Gradient` as its gradient."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, tape: _Tape | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v) if tape is None else tape.record(q, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.tape = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        if in_forward_mode():
            return *_gradient(q, k, v, g), None
        return *_Gradient.apply(q, k, v, g, ctx.tape), None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[Tensor, int]:
        y = attend(*_joined(info.batch_size, in_dims[:3], inputs[:3]))
        return y.unflatten(0, (info.batch_size, -1)), 0


class _Gradient(Function):
    """The gradient of <A(q, k, v), g> in q, k and v: that of the fused kernel, whose value is computed once more where
    there is no tape of it."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, g: Tensor, tape: _Tape | None) -> Tensors:
        if tape is None or tape.graph is None:
            tape = _Tape()
            tape.record(q, k, v)
        return tape.gradient(g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return *torch.func.vjp(_gradient, *ctx.saved_tensors)[1](cotangents), None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *inputs: Any) -> tuple[Tensors, tuple[int, ...]]:
        gradients = _Gradient.apply(*_joined(info.batch_size, in_dims[:4], inputs[:4]), None)
        return tuple(gradient.unflatten(0, (info.batch_size, -1)) for gradient in gradients), (0, 0, 0)


def _gradient(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensors:
    """What `_Gradient` computes, as a formula."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    p = torch.softmax(scale * (q @ k.mT), dim=-1)
    u = g @ v.mT
    s = scale * p * (u - (p * u).sum(-1, keepdim=True))  # the gradient in q k^T, through the softmax
    return s @ k, s.mT @ q, p.mT @ g


def _joined(batch: int, in_dims: Sequence[int | None], tensors: Tensors) -> list[Tensor]:
    """The tensors with the dimension that `vmap` maps over joined to B."""
    return [
        (tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)).flatten(0, 1)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    ]
