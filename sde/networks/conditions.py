r"""Conditions of a network beside the label: vectors, tokens and images, each with a learned null.

- `embedding`, (B, E): continuous values, attributes, pooled text. Its features :math:`W_2\,a(W_1 e + b_1 + N u) + b_2`
  are added to the context; u marks the entries that are not known, each of which has a row of N in its place.
- `tokens`, (B, L, E), with `tokens_mask`, (B, L), True where there is a token: text, audio, any sequence. The positions
  of the data attend to them (Vaswani et al. 2017, arXiv:1706.03762; Rombach et al. 2022, arXiv:2112.10752). A sample
  without a token attends to a learned one.
- `image`, (B, C, \*): resized to the data and concatenated to the input, for super-resolution (SR3, Saharia et al.
  2021, arXiv:2104.07636), translation (Palette, Saharia et al. 2022, arXiv:2111.05826) and the like. The null is a
  value for each channel.

**What is not known is NaN**, an entry of an embedding or an image as a whole, or False in the mask. A condition that is
left out is not known for any sample. So data with gaps trains as it is, and the dropout of conditions that guidance
needs is one more gap.
"""

from __future__ import annotations

__all__ = [
    "Conditions",
    "CrossAttention",
    "ImageCondition",
    "Taken",
    "TokenCondition",
    "Tokens",
    "VectorCondition",
    "as_labels",
    "as_taken",
    "features_of",
    "with_image",
]

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import cross_attention
from .checks import check_counts
from .layers import linear, zero_init

# The features of the tokens, with shape (B, L + 1, F), and which there are, bool (B, L + 1).
Tokens = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Conditions:
    """The sizes of the conditions that a network takes beside the label; None for those that it does not take.

    Args:
        embedding: the length of the vectors.
        tokens: the length of each token.
        image: the number of channels of the image; for :class:`sde.networks.MLP`, of its entries.

    Raises:
        ValueError: if a number is not positive.
    """

    embedding: int | None = None
    tokens: int | None = None
    image: int | None = None

    def __post_init__(self) -> None:
        check_counts(**{name: size for name, size in vars(self).items() if size is not None})


@dataclass(frozen=True)
class Taken:
    """A condition that a network takes.

    Attributes:
        shape: its shape without B; None for a size that may be any.
        classes: the number of classes, for a label.
        null: whether there is a learned null.
    """

    shape: tuple[int | None, ...] = ()
    classes: int | None = None
    null: bool = True

    def __str__(self) -> str:
        if self.classes is not None:
            return f"a class 0 ... {self.classes - 1}" + (f", or {self.classes} for none" if self.null else "")
        return f"({', '.join(['B', *('any' if size is None else str(size) for size in self.shape)])})"


def as_labels(name: str, value: Tensor) -> Tensor:
    """Labels as int64: whole numbers of any dtype, or truth values, which are the classes 0 and 1.

    Raises:
        ValueError: if they are neither.
    """
    if value.is_floating_point() or value.is_complex():
        raise ValueError(f"expected {name} to be classes, whole numbers, got {value.dtype}: convert it with .long()")
    return value.long()


def as_taken(takes: Mapping[str, Taken], condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A condition as a network takes it, with labels of int64.

    Raises:
        ValueError: for an unknown name, another shape, or a label out of range; it lists what the network takes.
    """
    listed, result = "; ".join(f"{name}: {taken}" for name, taken in takes.items()) or "none", dict(condition)
    for name, value in condition.items():
        taken = takes.get(name)
        if taken is None:
            raise ValueError(f"unknown condition {name!r}: the conditions of this model are {listed}")
        if taken.classes is not None:
            result[name] = as_labels(f"condition {name!r}", value)
            low, high = (int(extreme) for extreme in result[name].aminmax()) if value.numel() else (0, 0)
            if low < 0 or high >= taken.classes + taken.null:
                raise ValueError(f"condition {name!r}: expected {taken}, got labels from {low} to {high}")
        sizes = tuple(value.shape[1:])
        fits = len(sizes) == len(taken.shape) and all(b in (None, a) for a, b in zip(sizes, taken.shape))
        if not fits:
            expected = taken if taken.classes is None else "() or (B,), a class for each sample"
            raise ValueError(
                f"condition {name!r}: expected shape {expected}, got {tuple(value.shape)}; it takes {listed}"
            )
    return result


class VectorCondition(nn.Module):
    """The features of an `embedding`, with shape (B, features), or (1, features) if there is none.

    Args:
        size: E, the length of the vectors.
        features: the number of features.
        activation: a, between the two layers.
    """

    def __init__(self, size: int, features: int, activation: nn.Module) -> None:
        super().__init__()
        self.inner = linear(size, features)
        self.null = nn.Parameter(torch.zeros(size, features, device=self.inner.weight.device))
        self.activation = activation
        self.outer = linear(features, features)

    def forward(self, batch: int, embedding: Tensor | None) -> Tensor:
        """`embedding` with shape (batch, E), NaN where it is not known."""
        size = self.inner.in_features
        if embedding is None:
            embedding = self.null.new_full((1, size), torch.nan)
        elif embedding.shape != (batch, size):
            raise ValueError(
                f"expected embedding with shape ({batch}, {size}), one vector per sample, got {tuple(embedding.shape)}"
            )
        unknown = embedding.isnan()
        h = self.inner(embedding.masked_fill(unknown, 0.0)) + unknown.to(self.null.dtype) @ self.null
        return self.outer(self.activation(h))


class TokenCondition(nn.Module):
    """The features of `tokens`, with the learned one of a sample without any before them.

    Args:
        size: E, the length of each token.
        features: the number of features of each.
    """

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        self.inner = linear(size, features)
        self.null = nn.Parameter(torch.zeros(1, 1, features, device=self.inner.weight.device))
        self.norm = nn.LayerNorm(features)

    def forward(self, batch: int, tokens: Tensor | None, mask: Tensor | None) -> Tokens:
        """`tokens` with shape (batch, L, E), `mask` with shape (batch, L), True where there is a token; all by
        default."""
        size, null = self.inner.in_features, self.null.expand(batch, -1, -1)
        if tokens is None:
            if mask is not None:
                raise ValueError("expected tokens= with tokens_mask=")
            return self.norm(null), torch.ones(batch, 1, dtype=torch.bool, device=null.device)
        if tokens.ndim != 3 or tokens.shape[::2] != (batch, size):
            raise ValueError(f"expected tokens with shape ({batch}, L, {size}), got {tuple(tokens.shape)}")
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"expected tokens_mask, bool with shape {tuple(tokens.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
            )
        u = self.inner(tokens.masked_fill(~mask[..., None], 0.0))
        return self.norm(torch.cat([null, u], 1)), torch.cat([~mask.any(1, keepdim=True), mask], 1)


class CrossAttention(nn.Module):
    """Attention of N positions to the tokens; the output map is initialised to zero.

    Args:
        channels: the features of a position.
        tokens: the features of a token.
        heads: the number of heads, a divisor of `channels`.
    """

    def __init__(self, channels: int, tokens: int, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.query = linear(channels, channels)
        self.key_value = linear(tokens, 2 * channels, parts=2)
        self.out = zero_init(linear(channels, channels))

    def forward(self, u: Tensor, tokens: Tokens) -> Tensor:
        """`u` with shape (B, N, channels) -> the same shape."""
        key, value = self.key_value(tokens[0]).chunk(2, dim=2)
        return self.out(cross_attention(self.query(u), key, value, tokens[1], self.heads))


class ImageCondition(nn.Module):
    """The data with an `image` concatenated as further channels.

    Args:
        channels: the channels of the image.
    """

    def __init__(self, channels: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(channels, device=device))

    def forward(self, x: Tensor, image: Tensor | None) -> Tensor:
        """`x` with shape (B, C, *), `image` with shape (B, channels, *), of any size, NaN where there is none."""
        sizes, channels = x.shape[2:], len(self.null)
        null = self.null.reshape(1, channels, *(1,) * len(sizes)).expand(len(x), channels, *sizes)
        if image is None:
            return torch.cat([x, null], 1)
        if image.ndim != x.ndim or image.shape[:2] != (len(x), channels):
            sides = ", ".join(["..."] * bool(sizes))
            raise ValueError(f"expected image with shape ({len(x)}, {channels}, {sides}), got {tuple(image.shape)}")
        unknown = image.flatten(1).isnan().any(1).reshape(-1, *(1,) * (x.ndim - 1))
        image = image.masked_fill(unknown, 0.0)
        if image.shape[2:] != sizes:
            larger = all(a >= b for a, b in zip(image.shape[2:], sizes))
            mode = "area" if larger else {1: "linear", 2: "bilinear", 3: "trilinear"}[len(sizes)]
            image = F.interpolate(image, size=sizes, mode=mode)
        return torch.cat([x, torch.where(unknown, null, image)], 1)


def features_of(module: TokenCondition | None, batch: int, tokens: Tensor | None, mask: Tensor | None) -> Tokens | None:
    """The features of the tokens; refuses tokens for a network without them."""
    if module is None:
        if tokens is not None or mask is not None:
            raise ValueError("expected no tokens for this network: build it with conditions=Conditions(tokens=E)")
        return None
    return module(batch, tokens, mask)


def with_image(module: ImageCondition | None, x: Tensor, image: Tensor | None) -> Tensor:
    """The data with the image; refuses an image for a network without one."""
    if module is None:
        if image is not None:
            raise ValueError("expected no image for this network: build it with conditions=Conditions(image=C)")
        return x
    return module(x, image)
