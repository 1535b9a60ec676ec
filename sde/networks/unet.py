r"""The U-Net of denoising diffusion (Ho et al. 2020, arXiv:2006.11239), for data with 1, 2 or 3 spatial axes.

An encoder of L levels halves the spatial sizes between levels, and a decoder doubles them again. Level l has
`width * multipliers[l]` channels, 0 being the finest:

    x -> conv -> blocks x Stage -> Downsample -> ... -> blocks x Stage      (encoder, level 0 to L - 1)
      -> Stage with attention -> Stage                                      (middle)
      -> (blocks + 1) x Stage -> Upsample -> ... -> (blocks + 1) x Stage    (decoder, level L - 1 to 0)
      -> norm, SiLU, conv -> y

What the first convolution, each stage and each Downsample of the encoder give is kept. Each stage of the decoder reads
the running features concatenated with one of these, the latest first: there are L (blocks + 1) of both.
"""

from __future__ import annotations

__all__ = ["UNet"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Context, Downsample, Stage, Upsample, conv, group_norm, zeroed
from .embedding import LevelEmbedding, Positional


class UNet(nn.Module):
    """The U-Net of Ho et al. (2020), called as `net(x, noise_level, label=...)`.

    Any spatial sizes will do, odd and unequal ones included: each level of the decoder returns to the sizes which
    that level had in the encoder. The network of Ho et al. for CIFAR-10 is
    `UNet(3, width=128, multipliers=(1, 2, 2, 2), attention=(1,))`.

    Args:
        channels: Channels of the data.
        width: Channels of a level with multiplier 1.
        multipliers: The channels of each level in units of `width`, the finest level first; one level for each.
        blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention: The levels whose residual blocks are followed by self-attention, by number from 0, the finest.
            The middle always has it.
        heads: Heads of each self-attention.
        dropout: The probability with which an activation of a residual block is dropped in training.
        rank: The number of spatial axes, 1, 2 or 3.
        embedding: The embedding of the noise level; `Positional(width)` by default.
        classes: The number of classes, or None for a network without labels.
        out_channels: Channels of the output; those of the data by default.

    Raises:
        ValueError: If a number is not positive, the rank is not 1, 2 or 3, `attention` names a level that does not
            exist, or `heads` does not divide the channels of an attention.
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        heads: int = 1,
        dropout: float = 0.1,
        rank: int = 2,
        embedding: LevelEmbedding | None = None,
        classes: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        outputs = channels if out_channels is None else out_channels
        levels = len(multipliers)
        numbers = {"channels": channels, "width": width, "blocks": blocks, "out_channels": outputs}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if rank not in (1, 2, 3):
            raise ValueError(f"rank is the number of spatial axes, 1, 2 or 3, got {rank}")
        if levels == 0 or min(multipliers) < 1:
            raise ValueError(f"multipliers needs a positive factor for each level, got {tuple(multipliers)}")
        if not set(attention) <= set(range(levels)):
            raise ValueError(
                f"attention names levels by number: with {levels} multipliers these are 0 (finest) to {levels - 1} "
                f"(coarsest), got {tuple(attention)}"
            )
        self.rank, self.channels = rank, channels
        features = 4 * width
        self.context = Context(Positional(width) if embedding is None else embedding, features, classes)

        def stage(level: int, inputs: int) -> Stage:
            attend = heads if level in attention else None
            return Stage(rank, inputs, width * multipliers[level], features, dropout, attend)

        self.inlet = conv(rank, channels, width, padding=1)
        current, skips = width, [width]  # channels of the running features, and of those kept for the decoder
        self.encoder, self.downsample = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            if level > 0:
                self.downsample.append(Downsample(rank, current))
                skips.append(current)
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(level, current))
                current = width * multipliers[level]
                skips.append(current)
            self.encoder.append(stages)

        self.middle = nn.ModuleList(
            [Stage(rank, current, current, features, dropout, attend) for attend in (heads, None)]
        )

        self.decoder, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(levels)):
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(stage(level, current + skips.pop()))
                current = width * multipliers[level]
            self.decoder.append(stages)
            if level > 0:
                self.upsample.append(Upsample(rank, current))

        last = zeroed(conv(rank, current, outputs, padding=1))
        self.outlet = nn.Sequential(group_norm(current), nn.SiLU(), last)

    def forward(self, x: Tensor, noise_level: Tensor, *, label: Tensor | None = None) -> Tensor:
        """The network's answer, with shape (B, out_channels, *).

        Args:
            x: Noisy data, with shape (B, channels, *) and `rank` spatial axes, in the precision of the network.
            noise_level: The noise level, with shape () or (B,), in any precision.
            label: The class, int64 with shape () or (B,), where the network has `classes`; `classes` itself means
                no label.

        Raises:
            ValueError: If `x`, `noise_level` or `label` does not fit the network, or a label is missing or not wanted.
            TypeError: If the label is not int64.
        """
        self._check(x)
        context = self.context(x.shape[0], noise_level, label)
        h = self.inlet(x)
        skips = [h]
        for level, stages in enumerate(self.encoder):
            if level > 0:
                h = self.downsample[level - 1](h)
                skips.append(h)
            for stage in stages.children():
                h = stage(h, context)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, context)
        for level, stages in enumerate(self.decoder):  # from the coarsest
            if level > 0:
                h = self.upsample[level - 1](h, skips[-1].shape[2:])
            for stage in stages.children():
                h = stage(torch.cat([h, skips.pop()], dim=1), context)
        return self.outlet(h)

    def _check(self, x: Tensor) -> None:
        if x.ndim != self.rank + 2 or x.shape[1] != self.channels:
            sizes = ", ".join(f"n_{axis + 1}" for axis in range(self.rank))
            raise ValueError(
                f"this network takes data of shape (B, {self.channels}, {sizes}), got {tuple(x.shape)}: "
                f"build it with channels= and rank= (the number of spatial axes) of the data"
            )
        if 0 in x.shape[2:]:
            raise ValueError(f"every spatial size must be at least 1, got data of shape {tuple(x.shape)}")
