r"""The U-Nets of diffusion models, as one network for data with 1, 2 or 3 spatial axes.

An encoder of L levels halves the spatial sizes between levels, and a decoder doubles them again. Level l has
`width * multipliers[l]` channels; level 0 is the finest:

    x -> conv -> blocks x Stage -> down -> ... -> blocks x Stage            (encoder, level 0 to L - 1)
      -> Stage with attention -> Stage                                      (middle)
      -> (blocks + 1) x Stage -> up -> ... -> (blocks + 1) x Stage          (decoder, level L - 1 to 0)
      -> norm, SiLU, conv -> y

A Stage is a residual block, followed by self-attention at some levels. The skip connections are the outputs of the
first convolution, of each stage and of each downsampling layer of the encoder. Each stage of the decoder takes the
current features concatenated with one of them, the last one first: there are L (blocks + 1) of both.

This is the network of Ho et al. (2020, arXiv:2006.11239), DDPM. Its successors have other blocks, other layers between
the levels, and pyramids of the data:

- DDPM++ and NCSN++ (Song et al. 2021, arXiv:2011.13456): `skip_scale` = sqrt(1/2), residual blocks that resample, and
  in NCSN++ smooth filters, Fourier features and pyramids;
- ADM (Dhariwal and Nichol 2021, arXiv:2105.05233): `scale_shift`, heads of 64 channels, residual blocks that resample;
- the forms of both in EDM (Karras et al. 2022, arXiv:2206.00364): `label_first` and `augment`.

The files in `configs/network` contain their settings.
"""

from __future__ import annotations

__all__ = ["Middle", "UNet"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from .activations import Activation, named_activation
from .checks import check_counts, check_data, check_rank
from .conditions import Conditions, ImageCondition, TokenCondition, features_of, with_image
from .context import Context
from .embedding import LevelEmbedding, Positional
from .layers import Normalisation, conv
from .network import Network
from .pyramids import InputPyramid, NoInputs, NoOutputs, OutputPyramid
from .resampling import Resampling, StridedConv
from .residual import BlockConfig, Stage


@dataclass(frozen=True)
class Middle:
    """The middle of the U-Net: two residual blocks with self-attention between them.

    Args:
        attention: whether there is self-attention.
        norm: whether the self-attention normalises its input.
        skip_scale: the factor of each sum of a shortcut and a branch; that of the network by default.
    """

    attention: bool = True
    norm: bool = True
    skip_scale: float | None = None

    def stages(self, config: BlockConfig, channels: int, heads: int | None) -> nn.ModuleList:
        """The two stages, with the given channels and attention heads; None for no attention."""
        scale = config.skip_scale if self.skip_scale is None else self.skip_scale
        config = replace(config, skip_scale=scale)
        return nn.ModuleList([Stage(config, channels, channels, each, self.norm) for each in (heads, None)])


class UNet(Network):
    """The U-Net, called as `net(x, noise_level, label=..., augment=...)`.

    Any spatial sizes work, including odd and unequal ones and sizes other than those of the training data: each level
    of the decoder returns to the sizes that the level had in the encoder. The network of Ho et al. (2020) for CIFAR-10
    is `UNet(3, width=128, multipliers=(1, 2, 2, 2), attention=(1,))`.

    Args:
        channels: channels of the data.
        width: channels of a level with multiplier 1.
        multipliers: the channels of each level in units of `width`, from the finest level; one entry per level.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: the levels whose residual blocks are followed by self-attention; 0 is the finest.
        heads: heads of each self-attention.
        dropout: the dropout probability in residual blocks.
        rank: the number of spatial axes, 1, 2 or 3.
        embedding: the embedding of the noise level; `Positional(width)` by default.
        classes: the number of classes, or None for a network without labels.
        out_channels: channels of the output; those of the data by default.
        head_channels: channels of each head; overrides `heads`.
        decoder_attention: the levels of the decoder with self-attention; `attention` by default.
        attention_last: whether, at these levels of the decoder, only the last block is followed by self-attention.
        norm: the normalisation; `Normalisation()` by default.
        activation: the activation: a name in :mod:`sde.networks.activations` or a module; SiLU by default.
        outer_activation: the activation outside of the residual blocks, which is between the two layers of the context
            and before the last convolution; `activation` by default.
        scale_shift: whether the context gives a scale and a shift after the second norm, or only a shift before it.
        skip_scale: the factor of each sum of a shortcut and a branch; sqrt(1/2) preserves the variance.
        resampling: the layers between two levels; `StridedConv()` by default.
        upsampling: the layers between two levels of the decoder; `resampling` by default.
        middle: the blocks between encoder and decoder; `Middle()` by default.
        input_pyramid: connections from the data to the levels of the encoder; none by default.
        output_pyramid: connections from the levels of the decoder to the output; only the finest by default.
        inlet: channels of the first convolution; `width` by default.
        features: F, the length of the context; 4 `width` by default.
        null_class: whether there is an additional label, number `classes`, for "no label".
        label_first: whether the label is added to the embedding of the noise level, before the layers of the context.
        augment: the length of augmentation vectors, 0 for none.
        centre: whether data in [0, 1] is first rescaled to [-1, 1].
        frequencies: the frequencies, in cycles per unit of the input, of sines and cosines of the data that are more
            channels of the input. They resolve small differences, on which likelihoods of discrete data depend: L/2,
            L and 2 L have 1, 2 and 4 periods in one of L levels in [-1, 1] (Kingma et al. 2021, arXiv:2107.00630,
            appendix C). None by default.
        conditions: the sizes of further conditions (:mod:`sde.networks.conditions`); none by default. The positions
            attend to tokens wherever there is self-attention.

    Raises:
        ValueError: if a number is not positive, the rank is not 1, 2 or 3, `attention` names a level that does not
            exist, there is no activation of a name, or the heads do not divide the channels of an attention.
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
        activation: Activation | None = None,
        outer_activation: Activation | None = None,
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
        frequencies: Sequence[float] | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__()
        outputs = channels if out_channels is None else out_channels
        current = width if inlet is None else inlet
        features = 4 * width if features is None else features
        check_counts(channels=channels, width=width, blocks=blocks, out_channels=outputs)
        check_counts(inlet=current, features=features)
        check_rank(rank)
        widths = _widths(width, multipliers)
        levels = len(widths)
        decoder_attention = attention if decoder_attention is None else decoder_attention
        _check_levels(levels, attention=attention, decoder_attention=decoder_attention)
        self.rank, self.channels, self.centre = rank, channels, centre
        inner = named_activation(activation or "silu")
        outer = named_activation(outer_activation or inner)
        embedding = embedding or Positional(width)
        resampling, middle = resampling or StridedConv(), middle or Middle()
        upsampling = upsampling or resampling
        input_pyramid, output_pyramid = input_pyramid or NoInputs(), output_pyramid or NoOutputs()
        self.conditions = conditions = conditions or Conditions()
        settings = (classes, null_class, label_first, augment, inner, outer, conditions.embedding)
        self.context = Context(embedding, features, *settings)
        norm = norm or Normalisation()
        tokens = None if conditions.tokens is None else features
        config = BlockConfig(rank, features, dropout, norm, inner, scale_shift, skip_scale, outer, tokens)
        if tokens is not None and not (attention or decoder_attention or middle.attention):
            raise ValueError("tokens are attended to beside self-attention: give attention= a level, such as (1,)")
        self.tokens = None if conditions.tokens is None else TokenCondition(conditions.tokens, features)
        self.image = None if conditions.image is None else ImageCondition(conditions.image)

        number_of_heads = partial(_number_of_heads, heads, head_channels)

        def stage(level: int, inputs: int, attends: bool) -> Stage:
            return Stage(config, inputs, widths[level], number_of_heads(widths[level]) if attends else None)

        self.frequencies = tuple(frequencies or ())
        inputs = channels * (1 + 2 * len(self.frequencies)) + (conditions.image or 0)
        self.inlet = conv(rank, inputs, current, padding=1)
        skips, pyramid = [current], channels  # channels of the skip connections and of the input pyramid
        self.encoder, self.downsample, self.input_pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            if level > 0:
                self.downsample.append(resampling.down(config, current, current))
                joint, pyramid, current = input_pyramid.joint(config, pyramid, current)
                self.input_pyramid.append(joint)
                skips.append(current)
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(level, current, level in attention))
                current = widths[level]
                skips.append(current)
            self.encoder.append(stages)

        self.middle = middle.stages(config, current, number_of_heads(current) if middle.attention else None)

        sums: int | None = None  # channels of the output pyramid
        self.decoder, self.upsample, self.output_pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(levels)):
            stages = nn.ModuleList()
            for block in range(blocks + 1):
                attends = level in decoder_attention and (block == blocks or not attention_last)
                stages.append(stage(level, current + skips.pop(), attends))
                current = widths[level]
            self.decoder.append(stages)
            joint, sums = output_pyramid.joint(config, sums, current, outputs)
            self.output_pyramid.append(joint)
            if level > 0:
                self.upsample.append(upsampling.up(config, current, current))
        assert sums is not None
        self.outlet = output_pyramid.outlet(config, sums, outputs)

    def forward(
        self,
        x: Tensor,
        noise_level: Tensor,
        *,
        label: Tensor | None = None,
        augment: Tensor | None = None,
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
            augment: the augmentation vectors, with shape (B, augment); zeros by default.
            embedding, tokens, tokens_mask, image: the further conditions; those left out are not known.

        Raises:
            ValueError: if `x` or a condition does not fit the network, or a label is missing or superfluous.
            TypeError: if the label is not int64.
        """
        check_data(x, self.channels, self.rank)
        context = self.context(x.shape[0], noise_level, label, augment, embedding)
        keys = features_of(self.tokens, len(x), tokens, tokens_mask)
        p = 2 * x - 1 if self.centre else x
        h = self.inlet(with_image(self.image, _with_waves(p, self.frequencies), image))
        skips = [h]
        for level, stages in enumerate(self.encoder):
            if level > 0:
                h = self.downsample[level - 1](h, context)
                p, h = self.input_pyramid[level - 1](p, h, context)
                skips.append(h)
            for stage in stages.children():
                h = stage(h, context, tokens=keys)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, context, tokens=keys)
        p = h
        for step, stages in enumerate(self.decoder):  # from the coarsest level
            if step > 0:
                h = self.upsample[step - 1](h, context, skips[-1].shape[2:])
            for stage in stages.children():
                h = stage(torch.cat([h, skips.pop()], dim=1), context, tokens=keys)
            p, h = self.output_pyramid[step](p, h, context)
        return self.outlet(p)


def _with_waves(x: Tensor, frequencies: Sequence[float]) -> Tensor:
    """Data with its sines and cosines as more channels."""
    angles = [2.0 * math.pi * f * x for f in frequencies]
    return torch.cat([x, *map(torch.sin, angles), *map(torch.cos, angles)], dim=1) if angles else x


def _widths(width: int, multipliers: Sequence[float]) -> list[int]:
    widths = [round(width * factor) for factor in multipliers]
    if not widths or min(widths) < 1:
        raise ValueError(f"expected a positive factor for each level, got multipliers={tuple(multipliers)}")
    return widths


def _check_levels(levels: int, **named: Sequence[int]) -> None:
    for name, numbers in named.items():
        if not set(numbers) <= set(range(levels)):
            expected = f"levels from 0 (finest) to {levels - 1} (coarsest) for {levels} multipliers"
            raise ValueError(f"expected {expected}, got {name}={tuple(numbers)}")


def _number_of_heads(heads: int, head_channels: int | None, channels: int) -> int:
    if head_channels is None:
        return heads
    if head_channels < 1 or channels % head_channels:
        raise ValueError(
            f"expected head_channels to divide the channels, got head_channels={head_channels} and {channels} channels"
        )
    return channels // head_channels
