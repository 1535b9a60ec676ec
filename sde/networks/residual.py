r"""The blocks of a U-Net: residual blocks that read the context, and self-attention.

The residual block is that of Ho et al. (2020, arXiv:2006.11239). Its variants are those of BigGAN (Brock et al. 2019,
arXiv:1809.11096) as Song et al. (2021, arXiv:2011.13456) and Dhariwal and Nichol (2021, arXiv:2105.05233) took them
over: resampling inside the block, a scale and a shift after the second norm in place of a shift before it, and sums
multiplied by sqrt(1/2) to keep their variance.
"""

from __future__ import annotations

__all__ = ["Attention", "Residual", "Resample", "Stage", "Style"]

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from .attention import attend
from .layers import Normalisation, conv, linear, zeroed

# What a block does to the sizes of its input.
Resample = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common.

    Args:
        rank: The number of spatial axes.
        context: F, the length of the context.
        dropout: The probability with which an activation of a residual block is dropped in training.
        norm: The normalisation.
        activation: The activation.
        scale_shift: Whether the context gives a scale and a shift after the second norm, or a shift before it.
        skip_scale: The factor of each sum of a shortcut and a branch.
    """

    rank: int
    context: int
    dropout: float = 0.0
    norm: Normalisation = Normalisation()
    activation: nn.Module = field(default_factory=nn.SiLU)
    scale_shift: bool = False
    skip_scale: float = 1.0

    def outlet(self, inputs: int, outputs: int) -> nn.Sequential:
        """Norm, activation and a convolution that starts at zero: what reads data out of features."""
        last = zeroed(conv(self.rank, inputs, outputs, padding=1))
        return nn.Sequential(self.norm(inputs), self.activation, last)


class Residual(nn.Module):
    r"""The residual block, with h the context, a the activation and c = `skip_scale`:

    .. math:: u &= \mathrm{conv}_3(R(a(\mathrm{norm}(x)))) \\
              w &= \mathrm{norm}(u + W h + b) \quad\text{or}\quad
                   (1 + W_s h + b_s) \odot \mathrm{norm}(u) + W_t h + b_t \\
              y &= c \, (\mathrm{shortcut}(R(x)) + \mathrm{conv}_3(\mathrm{dropout}(a(w))))

    R changes the sizes where the block stands between two levels, and is the identity elsewhere. The second
    convolution is zero at the start. The shortcut is the identity, or a convolution of size 1 where the number of
    channels changes.

    Args:
        style: What the blocks of the network have in common.
        inputs: Channels of x.
        outputs: Channels of y.
        projection: Whether the shortcut is a convolution in any case.
    """

    def __init__(self, style: Style, inputs: int, outputs: int, projection: bool = False) -> None:
        super().__init__()
        self.scale_shift, self.skip_scale, self.activation = style.scale_shift, style.skip_scale, style.activation
        parts = 2 if style.scale_shift else 1
        self.norm1 = style.norm(inputs)
        self.conv1 = conv(style.rank, inputs, outputs, padding=1)
        self.shift = linear(style.context, parts * outputs, parts)  # the rows of the scale, where there is one, first
        self.norm2 = style.norm(outputs)
        self.dropout = nn.Dropout(style.dropout)
        self.conv2 = zeroed(conv(style.rank, outputs, outputs, padding=1))
        same = inputs == outputs and not projection
        self.shortcut = nn.Identity() if same else conv(style.rank, inputs, outputs, size=1)

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

    for each of `heads` heads of d = channels / heads channels, with c = `skip_scale`. The output map is zero at the
    start.

    Args:
        style: What the blocks of the network have in common.
        channels: Channels of x.
        heads: The number of heads, a divisor of `channels`.
        norm: Whether x is normalised.

    Raises:
        ValueError: If `heads` does not divide `channels`.
    """

    def __init__(self, style: Style, channels: int, heads: int = 1, norm: bool = True) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide the channels of every attention: got {heads} for {channels} channels")
        self.heads, self.skip_scale = heads, style.skip_scale
        self.norm = style.norm(channels) if norm else nn.Identity()
        self.qkv = linear(channels, 3 * channels, parts=3)
        self.out = zeroed(linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` with shape (B, channels, *) -> the same shape."""
        tokens = self.norm(x).flatten(2).mT  # one per position: (B, N, C)
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, x.shape[1] // self.heads))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # each (B, heads, N, d)
        y = self.out(attend(q, k, v).transpose(1, 2).flatten(2))
        return _scaled(x + y.mT.reshape(x.shape), self.skip_scale)


class Stage(nn.Module):
    """A residual block, followed by self-attention where `heads` is given.

    Args:
        style: What the blocks of the network have in common.
        inputs: Channels of x.
        outputs: Channels of the result.
        heads: The number of heads of the attention, or None for no attention.
        norm: Whether the attention normalises its input.
    """

    def __init__(self, style: Style, inputs: int, outputs: int, heads: int | None, norm: bool = True) -> None:
        super().__init__()
        self.residual = Residual(style, inputs, outputs)
        self.attention = nn.Identity() if heads is None else Attention(style, outputs, heads, norm)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x` with shape (B, inputs, *), `context` with shape (1 or B, F) -> (B, outputs, *)."""
        return self.attention(self.residual(x, context))


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else factor * x
