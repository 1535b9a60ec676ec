r"""The encoder half of a U-Net as a network of its own: noisy data and a noise level to a vector, such as logits.

For signals, images and volumes: a convolution, then `depth` levels of one residual block each
(:mod:`sde.networks.residual`), with a strided convolution between two; then means over at most 2 positions a side. For
vectors: a linear layer and `depth` blocks of the perceptron (:mod:`sde.networks.mlp`). Last a normalisation, SiLU, and
a linear layer that is initialised to zero. Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021,
https://arxiv.org/abs/2105.05233, section 4.
"""

from __future__ import annotations

__all__ = ["Encoder"]

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_counts
from .context import Context
from .embedding import Positional
from .layers import conv, linear, zero_init
from .mlp import PerceptronBlock
from .resampling import StridedConv
from .residual import BlockConfig, Residual

_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class Encoder(nn.Module):
    r"""A network of noisy data, called as `net(x, noise_level)`, that gives a vector for each sample.

    Args:
        shape: the event shape, (D,) or (C, \*) with 1 to 3 spatial axes.
        outputs: the length of the vector.
        width: the channels of the first level; later ones have up to four times as many. Four times that for vectors.
        depth: the number of levels, each at half the resolution of the one before; of blocks for vectors.
        dropout: the dropout probability in the blocks.

    Raises:
        ValueError: if a number is not positive, or the shape has another number of axes.
    """

    def __init__(
        self, shape: Sequence[int], outputs: int, width: int = 32, depth: int = 3, dropout: float = 0.1
    ) -> None:
        super().__init__()
        check_counts(outputs=outputs, width=width, depth=depth)
        if not 1 <= len(shape) <= 4:
            raise ValueError(f"expected an event shape (D,) or (C, *) with 1 to 3 spatial axes, got {tuple(shape)}")
        self.shape, self.outputs, self.width, self.depth, self.dropout = tuple(shape), outputs, width, depth, dropout
        rank, current, context = len(shape) - 1, width, 4 * width
        self.context = Context(Positional(width), context)
        blocks: list[nn.Module] = []
        if rank:
            self.inlet: nn.Module = conv(rank, shape[0], width, padding=1)
            config = BlockConfig(rank, context, dropout)
            for level in range(depth):
                if level:
                    blocks.append(StridedConv().down(config, current, current))
                blocks.append(Residual(config, current, width * min(4, 2**level)))
                current = width * min(4, 2**level)
        else:
            current = 4 * width
            self.inlet = linear(shape[0], current)
            blocks += [PerceptronBlock(current, context, dropout) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.pool: nn.Module = _POOLS[rank](2) if rank else nn.Identity()
        self.norm = nn.LayerNorm(current * 2**rank)
        self.outlet = zero_init(linear(current * 2**rank, outputs))

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        r"""The vectors, with shape (B, outputs), of data (B, \*) at a noise level of shape () or (B,)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected data of shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        context, u = self.context(len(x), noise_level), self.inlet(x)
        for block in self.blocks:
            u = block(u, context)
        return self.outlet(F.silu(self.norm(self.pool(u).flatten(1))))
