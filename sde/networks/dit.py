r"""The diffusion transformer DiT (Peebles and Xie 2023, arXiv:2212.09748), for data with 1, 2 or 3 spatial axes.

The data is divided into patches of p positions along every axis, and each patch is one token u of D features,

.. math:: u = W \, \mathrm{patch} + b + e(m_1, \dots, m_{rank}),

with a fixed sine-cosine embedding e of its position in the grid of patches (Vaswani et al. 2017, arXiv:1706.03762). In
each block the context h (noise level and label) shifts, scales and gates both branches (adaLN-Zero),

.. math:: (b_1, a_1, g_1, b_2, a_2, g_2) &= W_h h + b_h, \\
          u &\leftarrow u + g_1 \odot \mathrm{attention}((1 + a_1) \odot \mathrm{norm}(u) + b_1), \\
          u &\leftarrow u + g_2 \odot W_2 \, \mathrm{GELU}(W_1 ((1 + a_2) \odot \mathrm{norm}(u) + b_2)),

and W_h and b_h are initialised to zero, so that a new block is the identity. The last layer has the same normalisation,
shift and scale, and is initialised to zero.
"""

from __future__ import annotations

__all__ = ["DiT"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import self_attention
from .checks import check_counts, check_data, check_rank
from .conditions import Conditions, CrossAttention, ImageCondition, TokenCondition, Tokens, features_of, with_image
from .context import Context
from .embedding import LevelEmbedding, Positional
from .filters import crop
from .layers import linear, zero_init
from .network import Network


class _Block(nn.Module):
    """The block of the module: tokens (B, N, width) and a context (1 or B, F) -> (B, N, width).

    With the conditions `tokens` it attends to them between its two branches.
    """

    def __init__(self, width: int, heads: int, hidden: int, context: int, tokens: bool) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = zero_init(nn.Linear(context, 6 * width))
        self.norm1 = _norm(width)
        self.qkv = linear(width, 3 * width, parts=3)
        self.out = linear(width, width)
        self.cross = CrossAttention(width, width, heads) if tokens else None
        self.norm2 = _norm(width)
        self.inner = linear(width, hidden)
        self.outer = linear(hidden, width)

    def forward(self, u: Tensor, context: Tensor, tokens: Tokens | None = None) -> Tensor:
        b1, a1, g1, b2, a2, g2 = self.modulation(context).unsqueeze(1).chunk(6, dim=2)
        u = u + g1 * self.out(self_attention(self.qkv((1 + a1) * self.norm1(u) + b1), self.heads))
        if self.cross is not None and tokens is not None:
            u = u + self.cross(F.layer_norm(u, u.shape[2:], eps=1e-6), tokens)
        return u + g2 * self.outer(F.gelu(self.inner((1 + a2) * self.norm2(u) + b2), approximate="tanh"))


class _Last(nn.Module):
    """The last layer: tokens with shape (B, N, width) and a context with shape (1 or B, F) -> (B, N, outputs)."""

    def __init__(self, width: int, outputs: int, context: int) -> None:
        super().__init__()
        self.modulation = zero_init(nn.Linear(context, 2 * width))
        self.norm = _norm(width)
        self.outer = zero_init(nn.Linear(width, outputs))

    def forward(self, u: Tensor, context: Tensor) -> Tensor:
        b, a = self.modulation(context).unsqueeze(1).chunk(2, dim=2)
        return self.outer((1 + a) * self.norm(u) + b)


class DiT(Network):
    """The diffusion transformer of Peebles and Xie (2023), called as `net(x, noise_level, label=...)`.

    The published sizes, here for latents of 4 channels with twice as many outputs and 1000 classes:

    ========  =====  =====  =====  ==========
    name      width  depth  heads  parameters
    ========  =====  =====  =====  ==========
    DiT-S/2     384     12      6        33 M
    DiT-B/2     768     12     12       130 M
    DiT-L/2    1024     24     16       458 M
    DiT-XL/2   1152     28     16       675 M
    ========  =====  =====  =====  ==========

    The weights do not depend on the position, so that any spatial sizes work. A size that is not a multiple of the
    patch is padded with zeros after the last position, and the output is cropped to the size of the data.

    Args:
        channels: channels of the data.
        width: D, the features of a token and of the context.
        depth: the number of blocks.
        heads: heads of each self-attention, a divisor of `width`.
        patch: p, the positions of a patch along each axis.
        ratio: the features of a block's hidden layer in units of `width`.
        rank: the number of spatial axes, 1, 2 or 3.
        embedding: the embedding of the noise level; `Positional(256, shift=0, cosine_first=True)` by default.
        classes: the number of classes, or None for a network without labels.
        out_channels: channels of the output; those of the data by default.
        conditions: the sizes of further conditions (:mod:`sde.networks.conditions`); none by default.

    Attributes:
        classes: the number of classes, or None.

    Raises:
        ValueError: if a number is not positive, the rank is not 1, 2 or 3, or `heads` does not divide `width`.
    """

    def __init__(
        self,
        channels: int,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 2,
        ratio: int = 4,
        rank: int = 2,
        embedding: LevelEmbedding | None = None,
        classes: int | None = None,
        out_channels: int | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__()
        outputs = channels if out_channels is None else out_channels
        check_counts(channels=channels, width=width, depth=depth, heads=heads, patch=patch, ratio=ratio)
        check_counts(out_channels=outputs)
        check_rank(rank)
        if width % heads:
            raise ValueError(f"expected heads to divide the width, got heads={heads} and width={width}")
        self.rank, self.channels, self.patch = rank, channels, patch
        embedding = Positional(256, shift=0, cosine_first=True) if embedding is None else embedding
        self.conditions = conditions = conditions or Conditions()
        self.context = Context(embedding, width, classes, vector=conditions.embedding)
        self.tokens = None if conditions.tokens is None else TokenCondition(conditions.tokens, width)
        self.image = None if conditions.image is None else ImageCondition(conditions.image)
        self.inlet = linear((channels + (conditions.image or 0)) * patch**rank, width)
        attends = self.tokens is not None
        self.blocks = nn.ModuleList([_Block(width, heads, ratio * width, width, attends) for _ in range(depth)])
        self.outlet = _Last(width, outputs * patch**rank, width)

    def forward(
        self,
        x: Tensor,
        noise_level: Tensor,
        *,
        label: Tensor | None = None,
        embedding: Tensor | None = None,
        tokens: Tensor | None = None,
        tokens_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """The output of the network, with shape (B, out_channels, *).

        Args:
            x: noisy data, with shape (B, channels, *) and `rank` spatial axes, in the precision of the network.
            noise_level: the noise level, with shape () or (B,), in any precision.
            label: the class, int64 with shape () or (B,), for a network with `classes`; `classes` itself means no
                label.
            embedding, tokens, tokens_mask, image: the further conditions; those left out are not known.

        Raises:
            ValueError: if `x`, `noise_level` or `label` does not fit the network, or a label is missing or superfluous.
            TypeError: if the label is not int64.
        """
        check_data(x, self.channels, self.rank)
        context = self.context(x.shape[0], noise_level, label, embedding=embedding)
        keys = features_of(self.tokens, len(x), tokens, tokens_mask)
        x = with_image(self.image, x, image)
        sizes, p = x.shape[2:], self.patch
        grid = [-(-n // p) for n in sizes]
        x = F.pad(x, [side for n, m in zip(reversed(sizes), reversed(grid)) for side in (0, m * p - n)])
        u = self.inlet(_patchify(x, p)) + _position_embedding(grid, self.inlet.out_features, x)
        for block in self.blocks:
            u = block(u, context, tokens=keys)
        return crop(_unpatchify(self.outlet(u, context), grid, p), sizes)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def _patchify(x: Tensor, p: int) -> Tensor:
    """The patches of `x` in row-major order: (B, C, m_1 p, ...) -> (B, m_1 m_2 ..., C p^rank)."""
    rank = x.ndim - 2
    for axis in range(2, 2 + 2 * rank, 2):
        x = x.unflatten(axis, (x.shape[axis] // p, p))
    x = x.permute(0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2))  # (B, m_1, ..., C, p, ...)
    return x.flatten(1 + rank).flatten(1, rank)


def _unpatchify(u: Tensor, grid: Sequence[int], p: int) -> Tensor:
    """The inverse of :func:`_patchify`: (B, m_1 m_2 ..., C p^rank) -> (B, C, m_1 p, ...)."""
    rank = len(grid)
    x = u.unflatten(1, tuple(grid)).unflatten(1 + rank, (u.shape[2] // p**rank, *(p,) * rank))
    x = x.permute(0, 1 + rank, *(axis for i in range(rank) for axis in (1 + i, 2 + rank + i)))  # (B, C, m_1, p, ...)
    for axis in range(2, 2 + rank):
        x = x.flatten(axis, axis + 1)
    return x


def _position_embedding(grid: Sequence[int], width: int, reference: Tensor) -> Tensor:
    """The embedding e of every grid position, with shape (m_1 m_2 ..., width), in dtype and device of `reference`.

    Each axis has the same number of features, the sines and then the cosines of the position along it. The last axis
    comes first, as in the code of Peebles and Xie. Remaining features are zero.
    """
    size = 2 * (width // (2 * len(grid)))  # features per axis
    dtype, device = torch.promote_types(reference.dtype, torch.float32), reference.device
    n = size // 2
    frequencies = torch.pow(1e4, -torch.arange(n, dtype=dtype, device=device) / max(n, 1))  # rad per patch
    embedding = torch.zeros(*grid, width, dtype=dtype, device=device)
    for axis, m in enumerate(grid):
        phase = torch.arange(m, dtype=dtype, device=device)[:, None] * frequencies
        waves = torch.cat([phase.sin(), phase.cos()], dim=1)  # (m, size)
        start = (len(grid) - 1 - axis) * size
        embedding[..., start : start + size] = waves.reshape(m, *(1,) * (len(grid) - 1 - axis), size)
    return embedding.reshape(-1, width).to(reference.dtype)
