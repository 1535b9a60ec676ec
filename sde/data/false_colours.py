r"""False colours: grey images of which each has one hue at random, by which colourisation can be tried on small data.

A grey value g becomes the colour :math:`g\, w(h)`, rounded to levels, with the saturated hue h in [0, 1),

.. math:: w_c(h) = \min(1, \max(0, |(6 h + o_c) \bmod 6 - 3| - 1)), \qquad o = (0, 4, 2),

for red, green and blue. Two hues of every brightness leave a grey image of a coloured one ambiguous.
"""

from __future__ import annotations

__all__ = ["false_colours"]

import torch
from torch import Tensor

from ..noise import Noise, Stream
from .dataset import DataSet, Split
from .source import Source


def false_colours(data: DataSet, *, seed: int = 0) -> DataSet:
    """A data set of grey images in false colours, with event shape (3, H, W) and the levels and labels of the other.

    Args:
        data: grey images with levels, in memory.
        seed: the seed of the hues; that of an image is a function of its split and its position there.

    Raises:
        ValueError: if the images are not grey, have no levels or are not in memory.
    """
    if data.scaling.levels is None or len(data.shape) != 3 or data.shape[0] != 1:
        kind = "continuous values" if data.scaling.levels is None else "levels"
        raise ValueError(
            f"false_colours: expected grey images (1, H, W) with levels, got {kind} of {data.shape} from {data.name}"
        )
    numbers = {"train": 0, "test": 1, "valid": 2}
    splits = {name: _coloured(split, name, seed, numbers[name]) for name, split in data.splits.items()}
    return DataSet(f"coloured_{data.name}", data.scaling, splits["train"], splits["test"], splits.get("valid"))


def _coloured(split: Source, name: str, seed: int, number: int) -> Split:
    if split.whole is None:
        raise ValueError(
            f"false_colours: expected data in memory, got {name} that is read as it is needed: set memory="
        )
    values, condition = split.whole
    index = torch.arange(len(values), device="cpu")
    hue = Noise(seed).uniform(Stream.AUGMENT, index, torch.full_like(index, number), (1,), torch.float64)
    coloured = (values * _rgb(hue)[:, :, None, None]).round().to(values.dtype)
    labels = condition.pop("label", None)
    return Split(coloured, labels, condition, split.classes, split.captions)


def _rgb(hue: Tensor) -> Tensor:
    """The weights of red, green and blue (N, 3) of hues (N, 1)."""
    offset = hue.new_tensor([0.0, 4.0, 2.0])
    return (((6.0 * hue + offset) % 6.0 - 3.0).abs() - 1.0).clamp(0.0, 1.0)
