r"""The blocks of a U-Net: residual blocks conditioned on the context, and self-attention.

The residual block is that of Ho et al. (2020, arXiv:2006.11239). Its variants are those of BigGAN (Brock et al. 2019,
arXiv:1809.11096) as used by Song et al. (2021, arXiv:2011.13456) and Dhariwal and Nichol (2021, arXiv:2105.05233):
resampling inside the block, a scale and a shift after the second norm in place of a shift before it, and sums
multiplied by sqrt(1/2) to preserve their variance.
"""

from __future__ import annotations

__all__ = ["Attention", "BlockConfig", "Residual", "Resample", "Stage", "TokenAttention"]

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from .attention import self_attention
from .conditions import CrossAttention, Tokens
from .layers import Normalisation, conv, linear, zero_init

# A function that halves or doubles the spatial sizes of its input.
Resample = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockConfig:
    """The settings shared by all blocks of a network.

    Args:
        rank: the number of spatial axes.
        context: F, the length of the context.
        dropout: the dropout probability in residual blocks.
        norm: the normalisation.
        activation: the activation.
        scale_shift: whether the context gives a scale and a shift after the second norm, or only a shift before it.
        skip_scale: the factor of each sum of a shortcut and a branch.
        outer_activation: the activation before the last convolution; `activation` by default.
        tokens: the features of the tokens that are attended to beside self-attention, or None for no tokens.
    """

    rank: int
    context: int
    dropout: float = 0.0
    norm: Normalisation = Normalisation()
    activation: nn.Module = field(default_factory=nn.SiLU)
    scale_shift: bool = False
    skip_scale: float = 1.0
    outer_activation: nn.Module | None = None
    tokens: int | None = None

    def outlet(self, inputs: int, outputs: int) -> nn.Sequential:
        """The output layers: norm, activation and a convolution initialised to zero."""
        last = zero_init(conv(self.rank, inputs, outputs, padding=1))
        return nn.Sequential(self.norm(inputs), self.outer_activation or self.activation, last)


class Residual(nn.Module):
    r"""The residual block, with h the context, a the activation and c = `skip_scale`:

    .. math:: u &= \mathrm{conv}_3(R(a(\mathrm{norm}(x)))) \\
              w &= \mathrm{norm}(u + W h + b) \quad\text{or}\quad
                   (1 + W_s h + b_s) \odot \mathrm{norm}(u) + W_t h + b_t \\
              y &= c \, (\mathrm{shortcut}(R(x)) + \mathrm{conv}_3(\mathrm{dropout}(a(w))))

    R resamples if the block is between two levels, and is the identity otherwise. The second convolution is initialised
    to zero. The shortcut is the identity, or a convolution of size 1 if the number of channels changes.

    Args:
        config: the settings shared by the blocks of the network.
        inputs: channels of x.
        outputs: channels of y.
        projection: whether the shortcut is always a convolution.
    """

    def __init__(self, config: BlockConfig, inputs: int, outputs: int, projection: bool = False) -> None:
        super().__init__()
        self.scale_shift, self.skip_scale, self.activation = config.scale_shift, config.skip_scale, config.activation
        parts = 2 if config.scale_shift else 1
        self.norm1 = config.norm(inputs)
        self.conv1 = conv(config.rank, inputs, outputs, padding=1)
        self.shift = linear(config.context, parts * outputs, parts)  # rows of the scale, if any, come first
        self.norm2 = config.norm(outputs)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zero_init(conv(config.rank, outputs, outputs, padding=1))
        identity = inputs == outputs and not projection
        self.shortcut = nn.Identity() if identity else conv(config.rank, inputs, outputs, size=1)

    def forward(self, x: Tensor, context: Tensor, resample: Resample | None = None) -> Tensor:
        """`x` with shape (B, inputs, *), `context` with shape (1 or B, F) -> (B, outputs, *)."""
        u = self.activation(self.norm1(x))
        if resample is not None:
            u, x = resample(u), resample(x)
        u, shift = self.conv1(u), self.shift(context)
        shift = shift.reshape(*shift.shape, *(1,) * (x.ndim - 2))
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            u = (1 + scale) * self.norm2(u) + shift
        else:
            u = self.norm2(u + shift)
        return _scaled(self.shortcut(x) + self.conv2(self.dropout(self.activation(u))), self.skip_scale)


class Attention(nn.Module):
    r"""Self-attention between all positions (Vaswani et al. 2017), with a shortcut:

    .. math:: y = c \, (x + W_o \, \mathrm{softmax}(q k^\top / \sqrt{d}) \, v + b_o), \qquad
              (q, k, v) = W \, \mathrm{norm}(x) + b,

    for each of `heads` heads with d = channels / heads channels, with c = `skip_scale`. The output map is initialised
    to zero.

    Args:
        config: the settings shared by the blocks of the network.
        channels: channels of x.
        heads: the number of heads, a divisor of `channels`.
        norm: whether x is normalised.

    Raises:
        ValueError: if `heads` does not divide `channels`.
    """

    def __init__(self, config: BlockConfig, channels: int, heads: int = 1, norm: bool = True) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"expected heads to divide the channels, got heads={heads} and {channels} channels")
        self.heads, self.skip_scale = heads, config.skip_scale
        self.norm = config.norm(channels) if norm else nn.Identity()
        self.qkv = linear(channels, 3 * channels, parts=3)
        self.out = zero_init(linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` with shape (B, channels, *) -> the same shape."""
        tokens = self.norm(x).flatten(2).mT  # one per position: (B, N, C)
        y = self.out(self_attention(self.qkv(tokens), self.heads))
        return _scaled(x + y.mT.reshape(x.shape), self.skip_scale)


class TokenAttention(nn.Module):
    """Attention of all positions to the tokens, with a shortcut.

    Args:
        config: the settings shared by the blocks of the network.
        channels: channels of x.
        tokens: the features of a token.
        heads: the number of heads, a divisor of `channels`.
    """

    def __init__(self, config: BlockConfig, channels: int, tokens: int, heads: int) -> None:
        super().__init__()
        self.skip_scale = config.skip_scale
        self.norm = config.norm(channels)
        self.attention = CrossAttention(channels, tokens, heads)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """`x` with shape (B, channels, *) -> the same shape."""
        y = self.attention(self.norm(x).flatten(2).mT, tokens)
        return _scaled(x + y.mT.reshape(x.shape), self.skip_scale)


class Stage(nn.Module):
    """A residual block, followed by self-attention, and attention to tokens if there are any, if `heads` is not None.

    Args:
        config: the settings shared by the blocks of the network.
        inputs: channels of x.
        outputs: channels of the result.
        heads: the number of heads of the attention, or None for no attention.
        norm: whether the attention normalises its input.
    """

    def __init__(self, config: BlockConfig, inputs: int, outputs: int, heads: int | None, norm: bool = True) -> None:
        super().__init__()
        self.residual = Residual(config, inputs, outputs)
        self.attention = nn.Identity() if heads is None else Attention(config, outputs, heads, norm)
        self.cross: TokenAttention | None = None
        if heads is not None and config.tokens is not None:
            self.cross = TokenAttention(config, outputs, config.tokens, heads)

    def forward(self, x: Tensor, context: Tensor, tokens: Tokens | None = None) -> Tensor:
        """`x` with shape (B, inputs, *), `context` with shape (1 or B, F) -> (B, outputs, *)."""
        h = self.attention(self.residual(x, context))
        return h if self.cross is None or tokens is None else self.cross(h, tokens)


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else factor * x
