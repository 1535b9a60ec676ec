r"""The U-Net of diffusion models, for data with 1, 2 or 3 spatial axes: one network for the whole family.

An encoder of L levels halves the spatial sizes between levels, and a decoder doubles them again. Level l has
`width * multipliers[l]` channels, 0 being the finest:

    x -> conv -> blocks x Stage -> down -> ... -> blocks x Stage            (encoder, level 0 to L - 1)
      -> Stage with attention -> Stage                                      (middle)
      -> (blocks + 1) x Stage -> up -> ... -> (blocks + 1) x Stage          (decoder, level L - 1 to 0)
      -> norm, SiLU, conv -> y

A Stage is a residual block, at some levels followed by self-attention. What the first convolution, each stage and each
step down of the encoder give is kept. Each stage of the decoder reads the running features concatenated with one of
these, the latest first: there are L (blocks + 1) of both.

That is the network of Ho et al. (2020, arXiv:2006.11239), DDPM. Its successors differ in what the blocks are made of,
in how levels are joined, and in pyramids of the data beside the features:

- DDPM++ and NCSN++ (Song et al. 2021, arXiv:2011.13456): `skip_scale` = sqrt(1/2), residual blocks that resample, and
  in NCSN++ smooth filters, Fourier features and pyramids;
- ADM (Dhariwal and Nichol 2021, arXiv:2105.05233): `scale_shift`, heads of 64 channels, residual blocks that resample;
- the forms of both in EDM (Karras et al. 2022, arXiv:2206.00364): `label_first` and `augment`.

The files in `configs/network` hold their settings.
"""

from __future__ import annotations

__all__ = ["Middle", "UNet"]

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .context import Context
from .embedding import LevelEmbedding, Positional
from .layers import Normalisation, conv
from .network import Network
from .pyramids import InputPyramid, NoInputs, NoOutputs, OutputPyramid
from .resampling import Resampling, StridedConv
from .residual import Stage, Style


@dataclass(frozen=True)
class Middle:
    """What stands between encoder and decoder: two residual blocks, and self-attention between them.

    Args:
        attention: Whether there is the self-attention.
        norm: Whether the self-attention normalises its input.
        skip_scale: The factor of each sum of a shortcut and a branch; that of the network by default.
    """

    attention: bool = True
    norm: bool = True
    skip_scale: float | None = None

    def stages(self, style: Style, channels: int, heads: int | None) -> nn.ModuleList:
        """The two stages, for so many channels and heads of the attention, None for no attention."""
        scale = style.skip_scale if self.skip_scale is None else self.skip_scale
        style = replace(style, skip_scale=scale)
        return nn.ModuleList([Stage(style, channels, channels, each, self.norm) for each in (heads, None)])


class UNet(Network):
    """The U-Net, called as `net(x, noise_level, label=..., augment=...)`.

    Any spatial sizes will do, odd and unequal ones included, whatever the network was trained on: each level of the
    decoder returns to the sizes which that level had in the encoder. The network of Ho et al. (2020) for CIFAR-10 is
    `UNet(3, width=128, multipliers=(1, 2, 2, 2), attention=(1,))`.

    Args:
        channels: Channels of the data.
        width: Channels of a level with multiplier 1.
        multipliers: The channels of each level in units of `width`, the finest level first; one level for each.
        blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention: The levels whose residual blocks are followed by self-attention, by number from 0, the finest.
        heads: Heads of each self-attention.
        dropout: The probability with which an activation of a residual block is dropped in training.
        rank: The number of spatial axes, 1, 2 or 3.
        embedding: The embedding of the noise level; `Positional(width)` by default.
        classes: The number of classes, or None for a network without labels.
        out_channels: Channels of the output; those of the data by default.
        head_channels: Channels of each head, which then takes the place of `heads`.
        decoder_attention: The levels of the decoder with self-attention; those in `attention` by default.
        attention_last: Whether only the last block of such a level of the decoder is followed by it.
        norm: The normalisation; `Normalisation()` by default.
        activation: The activation; SiLU by default.
        scale_shift: Whether the context gives a scale and a shift after the second norm, or a shift before it.
        skip_scale: The factor of each sum of a shortcut and a branch; sqrt(1/2) keeps the variance.
        resampling: What stands between two levels; `StridedConv()` by default.
        upsampling: What stands there on the way up; `resampling` by default.
        middle: What stands between encoder and decoder; `Middle()` by default.
        input_pyramid: What the levels of the encoder are told of the data itself; nothing by default.
        output_pyramid: How the levels of the decoder contribute to the output; by default only the finest does.
        inlet: Channels of the first convolution; `width` by default.
        features: F, the length of the context; 4 `width` by default.
        null_class: Whether there is a further label, number `classes`, for "no label".
        label_first: Whether the label joins the embedding of the noise level before the layers of the context.
        augment: The length of augmentation vectors, 0 for none.
        centre: Whether data in [0, 1] is taken to [-1, 1] first.

    Raises:
        ValueError: If a number is not positive, the rank is not 1, 2 or 3, `attention` names a level that does not
            exist, or the heads do not divide the channels of an attention.
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        multipliers: Sequence[float] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        heads: int = 1,
        dropout: float = 0.1,
        rank: int = 2,
        embedding: LevelEmbedding | None = None,
        classes: int | None = None,
        out_channels: int | None = None,
        *,
        head_channels: int | None = None,
        decoder_attention: Sequence[int] | None = None,
        attention_last: bool = False,
        norm: Normalisation | None = None,
        activation: nn.Module | None = None,
        scale_shift: bool = False,
        skip_scale: float = 1.0,
        resampling: Resampling | None = None,
        upsampling: Resampling | None = None,
        middle: Middle | None = None,
        input_pyramid: InputPyramid | None = None,
        output_pyramid: OutputPyramid | None = None,
        inlet: int | None = None,
        features: int | None = None,
        null_class: bool = True,
        label_first: bool = False,
        augment: int = 0,
        centre: bool = False,
    ) -> None:
        super().__init__()
        outputs = channels if out_channels is None else out_channels
        current = width if inlet is None else inlet
        features = 4 * width if features is None else features
        numbers = {"channels": channels, "width": width, "blocks": blocks, "out_channels": outputs}
        _check_numbers(rank, **numbers, inlet=current, features=features)
        widths = _widths(width, multipliers)
        levels = len(widths)
        decoder_attention = attention if decoder_attention is None else decoder_attention
        _check_levels(levels, attention=attention, decoder_attention=decoder_attention)
        self.rank, self.channels, self.centre = rank, channels, centre
        embedding, activation = embedding or Positional(width), activation or nn.SiLU()
        resampling, middle = resampling or StridedConv(), middle or Middle()
        upsampling = upsampling or resampling
        input_pyramid, output_pyramid = input_pyramid or NoInputs(), output_pyramid or NoOutputs()
        self.context = Context(embedding, features, classes, null_class, label_first, augment, activation)
        style = Style(rank, features, dropout, norm or Normalisation(), activation, scale_shift, skip_scale)

        def count(channels: int) -> int:
            return heads if head_channels is None else _divided(channels, head_channels)

        def stage(level: int, inputs: int, attends: bool) -> Stage:
            return Stage(style, inputs, widths[level], count(widths[level]) if attends else None)

        self.inlet = conv(rank, channels, current, padding=1)
        skips, pyramid = [current], channels  # channels of what is kept for the decoder, and of the input pyramid
        self.encoder, self.downsample, self.input_pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            if level > 0:
                self.downsample.append(resampling.down(style, current, current))
                joint, pyramid, current = input_pyramid.joint(style, pyramid, current)
                self.input_pyramid.append(joint)
                skips.append(current)
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(level, current, level in attention))
                current = widths[level]
                skips.append(current)
            self.encoder.append(stages)

        self.middle = middle.stages(style, current, count(current) if middle.attention else None)

        sums: int | None = None  # channels of the output pyramid
        self.decoder, self.upsample, self.output_pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(levels)):
            stages = nn.ModuleList()
            for block in range(blocks + 1):
                attends = level in decoder_attention and (block == blocks or not attention_last)
                stages.append(stage(level, current + skips.pop(), attends))
                current = widths[level]
            self.decoder.append(stages)
            joint, sums = output_pyramid.joint(style, sums, current, outputs)
            self.output_pyramid.append(joint)
            if level > 0:
                self.upsample.append(upsampling.up(style, current, current))
        assert sums is not None
        self.outlet = output_pyramid.outlet(style, sums, outputs)

    @property
    def classes(self) -> int | None:
        """The number of classes, or None for a network without labels."""
        return self.context.classes

    def forward(
        self, x: Tensor, noise_level: Tensor, *, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """The network's answer, with shape (B, out_channels, *).

        Args:
            x: Noisy data, with shape (B, channels, *) and `rank` spatial axes, in the precision of the network.
            noise_level: The noise level, with shape () or (B,), in any precision.
            label: The class, int64 with shape () or (B,), where the network has `classes`; `classes` itself means
                no label.
            augment: The augmentation vectors, with shape (B, augment); zeros by default.

        Raises:
            ValueError: If `x` or a condition does not fit the network, or a label is missing or not wanted.
            TypeError: If the label is not int64.
        """
        self._check(x)
        context = self.context(x.shape[0], noise_level, label, augment)
        p = 2 * x - 1 if self.centre else x
        h = self.inlet(p)
        skips = [h]
        for level, stages in enumerate(self.encoder):
            if level > 0:
                h = self.downsample[level - 1](h, context)
                p, h = self.input_pyramid[level - 1](p, h, context)
                skips.append(h)
            for stage in stages.children():
                h = stage(h, context)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, context)
        p = h
        for step, stages in enumerate(self.decoder):  # from the coarsest level
            if step > 0:
                h = self.upsample[step - 1](h, context, skips[-1].shape[2:])
            for stage in stages.children():
                h = stage(torch.cat([h, skips.pop()], dim=1), context)
            p, h = self.output_pyramid[step](p, h, context)
        return self.outlet(p)

    def _check(self, x: Tensor) -> None:
        if x.ndim != self.rank + 2 or x.shape[1] != self.channels:
            sizes = ", ".join(f"n_{axis + 1}" for axis in range(self.rank))
            raise ValueError(
                f"this network takes data of shape (B, {self.channels}, {sizes}), got {tuple(x.shape)}: "
                f"build it with channels= and rank= (the number of spatial axes) of the data"
            )
        if 0 in x.shape[2:]:
            raise ValueError(f"every spatial size must be at least 1, got data of shape {tuple(x.shape)}")


def _check_numbers(rank: int, **positive: int) -> None:
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if rank not in (1, 2, 3):
        raise ValueError(f"rank is the number of spatial axes, 1, 2 or 3, got {rank}")


def _widths(width: int, multipliers: Sequence[float]) -> list[int]:
    widths = [round(width * factor) for factor in multipliers]
    if not widths or min(widths) < 1:
        raise ValueError(f"multipliers needs a positive factor for each level, got {tuple(multipliers)}")
    return widths


def _check_levels(levels: int, **named: Sequence[int]) -> None:
    for name, numbers in named.items():
        if not set(numbers) <= set(range(levels)):
            raise ValueError(
                f"{name} names levels by number: with {levels} multipliers these are 0 (finest) to {levels - 1} "
                f"(coarsest), got {tuple(numbers)}"
            )


def _divided(channels: int, head_channels: int) -> int:
    if head_channels < 1 or channels % head_channels:
        raise ValueError(
            f"head_channels must divide the channels of every attention: got {head_channels} for {channels} channels"
        )
    return channels // head_channels
