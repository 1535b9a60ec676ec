r"""Fused softmax attention with derivatives of every kind and order.

.. math:: A(q, k, v) = P v, \qquad P = \mathrm{softmax}(q k^\top / \sqrt{d})

for each head (Vaswani et al. 2017, arXiv:1706.03762). For N positions, torch's fused kernels use memory of order N,
where the matrix P takes N^2 (Dao et al. 2022, arXiv:2205.14135). They have neither a forward-mode nor a second
derivative, which an exact divergence or the gradient of a log-likelihood needs. Here the value and the first gradient
come from the fused kernels. Forward mode and higher derivatives use formulas that contain P.
"""

from __future__ import annotations

__all__ = ["attend", "cross_attention", "self_attention"]

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


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """Attention between N tokens, from the stacked queries, keys and values: (B, N, 3 C) -> (B, N, C)."""
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # each (B, heads, N, d)
    return attend(q, k, v).transpose(1, 2).flatten(2)


def cross_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Attention of N positions to L others, of which there is one at least where `mask`, bool (B, L), is True.

    It is computed as the formula: L is small beside N, and so is the matrix P.

    Args:
        q: the queries, with shape (B, N, C).
        k: the keys, with shape (B, L, C).
        v: the values, with shape (B, L, C).
        mask: which positions there are.
        heads: the number of heads.

    Returns:
        The attention, with shape (B, N, C).
    """
    q, k, v = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))  # each (B, heads, ., d)
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask[:, None, None], -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A(q, k, v) of queries, keys and values with shape (B, heads, N, d) -> (B, heads, N, d)."""
    if torch.compiler.is_compiling():  # torch.compile differentiates once and backwards only
        return F.scaled_dot_product_attention(q, k, v)
    if in_forward_mode():
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v))
    return _Attention.apply(q, k, v, _Tape() if needs_grad else None)


class _Tape:
    """The autograd graph of the fused kernel from q, k and v to A, for one gradient."""

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
        y = attend(*_merge_batch(info.batch_size, in_dims[:3], inputs[:3]))
        return y.unflatten(0, (info.batch_size, -1)), 0


class _Gradient(Function):
    """The gradient of <A(q, k, v), g> in q, k and v, by the fused kernel; without a tape, the value is recomputed."""

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
        gradients = _Gradient.apply(*_merge_batch(info.batch_size, in_dims[:4], inputs[:4]), None)
        return tuple(gradient.unflatten(0, (info.batch_size, -1)) for gradient in gradients), (0, 0, 0)


def _gradient(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensors:
    """The value of `_Gradient`, as a formula."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    p = torch.softmax(scale * (q @ k.mT), dim=-1)
    u = g @ v.mT
    s = scale * p * (u - (p * u).sum(-1, keepdim=True))  # the gradient in q k^T, through the softmax
    return s @ k, s.mT @ q, p.mT @ g


def _merge_batch(batch: int, in_dims: Sequence[int | None], tensors: Tensors) -> list[Tensor]:
    """The tensors with the `vmap` dimension merged into B."""
    return [
        (tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)).flatten(0, 1)
        for tensor, dim in zip(tensors, in_dims, strict=True)
    ]
