r"""The parts that networks are made of, for data with one, two or three spatial axes: (B, C, n_1, ..., n_rank).

- `Context` turns the noise level and the label into the vector that every block reads, once per call.
- `Residual` and `Attention` are the blocks of the U-Net of Ho et al. (2020, arXiv:2006.11239), `Stage` is the one
  followed by the other, `Downsample` and `Upsample` halve and double the spatial sizes.

Weights start as there: uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010), biases zero, and the
last layer of each block zero, so that a fresh block is its own shortcut.
"""

from __future__ import annotations

__all__ = [
    "Attention",
    "Context",
    "Downsample",
    "Residual",
    "Stage",
    "Upsample",
    "conv",
    "group_norm",
    "linear",
    "zeroed",
]

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .embedding import LevelEmbedding

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = TypeVar("Layer", bound=nn.Module)

_CONVS: dict[int, type[Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def conv(rank: int, inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: int = 0) -> Conv:
    """A convolution along `rank` axes, with Glorot's weights and zero bias."""
    return _glorot(_CONVS[rank](inputs, outputs, size, stride, padding))


def linear(inputs: int, outputs: int, parts: int = 1) -> nn.Linear:
    """A linear layer with Glorot's weights and zero bias, where `parts` maps are stacked for each map by itself."""
    return _glorot(nn.Linear(inputs, outputs), parts)


def zeroed(layer: Layer) -> Layer:
    """The same layer with every parameter set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018, arXiv:1803.08494) with G groups.

    G is the largest divisor of `channels` that is at most 32 and leaves at least 4 channels in a group, and 1 where
    there is none. Every multiple of 32 from 128 on has the 32 groups of Ho et al.; narrower layers have fewer,
    because a group of one channel loses that channel's mean, and everything where only one position is left.
    """
    groups = max(g for g in range(1, 33) if channels % g == 0 and (channels >= 4 * g or g == 1))
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Context(nn.Module):
    r"""What every block reads: a two-layer perceptron on the embedded noise level c, plus a row for the label y,

    .. math:: h = \mathrm{SiLU}(W_2 \, \mathrm{SiLU}(W_1 e(c) + b_1) + b_2 + T_y).

    From Ho et al. (2020), with the label added as by Dhariwal and Nichol (2021, arXiv:2105.05233). The table T has
    `classes` + 1 rows, the last one for "no label".

    Args:
        embedding: e, the embedding of the noise level.
        features: F, the length of h.
        classes: The number of classes, or None for a network without labels.

    Raises:
        ValueError: If `classes` is below 1.
    """

    def __init__(self, embedding: LevelEmbedding, features: int, classes: int | None = None) -> None:
        super().__init__()
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be positive, or None for no labels, got {classes}")
        self.embedding = embedding
        self.inner = linear(embedding.dim, features)
        self.outer = linear(features, features)
        self.table = None if classes is None else nn.Embedding(classes + 1, features)

    def forward(self, batch: int, noise_level: Tensor, label: Tensor | None) -> Tensor:
        """h for `batch` samples, with shape (B, F), or (1, F) where all that enters is a scalar.

        Args:
            batch: B, the number of samples.
            noise_level: c, with shape () or (B,), in any precision.
            label: y, int64 with shape () or (B,), in 0 ... classes; `classes` itself means no label.

        Raises:
            ValueError: If a shape does not fit, or if a label is missing, not wanted, or out of range. The look-up
                itself checks the range: on a CUDA device it fails with a device-side assertion instead.
            TypeError: If the label is not int64.
        """
        _check_per_sample("noise_level", noise_level, batch)
        e = self.embedding(noise_level.reshape(-1)).to(self.inner.weight.dtype)
        h = self.outer(F.silu(self.inner(e)))
        if self.table is not None:
            h = h + _rows(self.table, label, batch)
        elif label is not None:
            raise ValueError("this network has no classes and takes no label: drop label, or build it with classes=")
        return F.silu(h)


def _rows(table: nn.Embedding, label: Tensor | None, batch: int) -> Tensor:
    valid = f"0 ... {table.num_embeddings - 2}, or {table.num_embeddings - 1} for no label"
    if label is None:
        raise ValueError(f"this network has classes and needs label=, int64 with shape () or (B,), in {valid}")
    if label.dtype != torch.int64:
        raise TypeError(f"label must be int64, got {label.dtype}: convert it with label.long()")
    _check_per_sample("label", label, batch)
    try:
        return table(label.reshape(-1))
    except IndexError as error:  # a check of our own would read the labels back from the device at every call
        raise ValueError(f"every label must be in {valid}: got one outside") from error


def _check_per_sample(name: str, values: Tensor, batch: int) -> None:
    if values.shape not in ((), (batch,)):
        raise ValueError(
            f"{name} is a scalar or has one entry per sample: expected shape () or ({batch},), "
            f"got {tuple(values.shape)}"
        )


class Residual(nn.Module):
    r"""The residual block of Ho et al. (2020), with h the context:

    .. math:: u &= \mathrm{conv}_3(\mathrm{SiLU}(\mathrm{norm}(x))) + W h + b \\
              y &= \mathrm{shortcut}(x) + \mathrm{conv}_3(\mathrm{dropout}(\mathrm{SiLU}(\mathrm{norm}(u))))

    The second convolution is zero at the start. The shortcut is the identity, or a convolution of size 1 where the
    number of channels changes.

    Args:
        rank: The number of spatial axes.
        inputs: Channels of x.
        outputs: Channels of y.
        context: F, the length of h.
        dropout: The probability with which an activation is dropped in training.
    """

    def __init__(self, rank: int, inputs: int, outputs: int, context: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = conv(rank, inputs, outputs, padding=1)
        self.shift = linear(context, outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(conv(rank, outputs, outputs, padding=1))
        self.shortcut = nn.Identity() if inputs == outputs else conv(rank, inputs, outputs, size=1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x` with shape (B, inputs, *), `context` with shape (1 or B, F) -> (B, outputs, *)."""
        shift = self.shift(context)
        u = self.conv1(F.silu(self.norm1(x))) + shift.reshape(*shift.shape, *(1,) * (x.ndim - 2))
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(u))))


class Attention(nn.Module):
    r"""Self-attention between all positions (Vaswani et al. 2017), with a shortcut:

    .. math:: y = x + W_o \, \mathrm{softmax}(q k^\top / \sqrt{d}) \, v + b_o, \qquad
              (q, k, v) = W \, \mathrm{norm}(x) + b,

    for each of `heads` heads of d = channels / heads channels. The output map is zero at the start.

    Args:
        channels: Channels of x.
        heads: The number of heads, a divisor of `channels`.

    Raises:
        ValueError: If `heads` does not divide `channels`.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide the channels of every attention: got {heads} for {channels} channels")
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = linear(channels, 3 * channels, parts=3)
        self.out = zeroed(linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` with shape (B, channels, *) -> the same shape."""
        tokens = self.norm(x).flatten(2).mT  # one per position: (B, N, C)
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, x.shape[1] // self.heads))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # each (B, heads, N, d)
        # The fused kernels of torch have no forward-mode and no second derivative, which an exact divergence or the
        # gradient of a log-likelihood needs; the plain one has both.
        with sdpa_kernel(SDPBackend.MATH):
            y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2)).mT.reshape(x.shape)


class Stage(nn.Module):
    """A residual block, followed by self-attention where `heads` is given.

    Args:
        rank: The number of spatial axes.
        inputs: Channels of x.
        outputs: Channels of the result.
        context: F, the length of the context.
        dropout: The probability with which an activation of the residual block is dropped in training.
        heads: The number of heads of the attention, or None for no attention.
    """

    def __init__(self, rank: int, inputs: int, outputs: int, context: int, dropout: float, heads: int | None) -> None:
        super().__init__()
        self.residual = Residual(rank, inputs, outputs, context, dropout)
        self.attention = nn.Identity() if heads is None else Attention(outputs, heads)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x` with shape (B, inputs, *), `context` with shape (1 or B, F) -> (B, outputs, *)."""
        return self.attention(self.residual(x, context))


class Downsample(nn.Module):
    """A convolution of size 3 and stride 2, which takes each spatial size n to ceil(n / 2).

    Zeros are put after the last position, and before the first one where n is odd (the "SAME" padding in the code of
    Ho et al.), so that every size from 1 on can be halved.
    """

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(rank, channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with shape (B, channels, n_1, ...) -> (B, channels, ceil(n_1 / 2), ...)."""
        return self.conv(F.pad(x, [side for n in reversed(x.shape[2:]) for side in (n % 2, 1)]))


class Upsample(nn.Module):
    """Repetition of every position, then a convolution of size 3: the way back from `Downsample`.

    The size to reach is an argument, since 2 m - 1 and 2 m are both halved to m; 2 m - 1 drops the last repetition.
    """

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.conv = conv(rank, channels, channels, padding=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """`x` with shape (B, channels, *) -> (B, channels, *size)."""
        return self.conv(F.interpolate(x, size=list(size), mode="nearest"))


def _glorot(layer: Layer, parts: int = 1) -> Layer:
    for parameter in layer.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
        else:
            for part in parameter.chunk(parts):
                nn.init.xavier_uniform_(part)
    return layer
