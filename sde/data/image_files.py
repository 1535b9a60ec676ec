r"""Image files: their pixels.

**Files.** PNG, JPEG, BMP, GIF, WebP, TIFF and PNM, recognised by their suffix. A file that cannot be decoded completely
is an error.

**Pixels.** 8 bits per channel, hence 256 levels:

1. the first frame of an animation, rotated according to its EXIF orientation;
2. 16-bit grey (PNG, TIFF, PNM): the upper byte;
3. with transparency: composited over white, since the colour under a transparent pixel is arbitrary;
4. palettes, CMYK, YCbCr and other colour spaces: Pillow's conversion to RGB, without colour profiles;
5. `channels=1`: ITU-R 601 luma, which leaves grey unchanged; `channels=3`: RGB, grey repeated.

Floating and 32-bit images have no fixed range and are refused.

**Size.** With `crop` the middle of that size is cut out first; an image that is smaller is refused. With `size=(H, W)`
an image is then resized (Lanczos) to the smallest size that covers H x W, enlarged if necessary, and cropped equally
on both sides. An image of the right size keeps its pixels.
"""

from __future__ import annotations

__all__ = ["Pixels"]

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .source import UnreadableSample

# A list, because one of the formats that Pillow knows runs an interpreter (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


@dataclass(frozen=True)
class Pixels:
    """The function from an image file to its pixels, uint8 with shape (channels, H, W).

    Args:
        channels: 3 for RGB, 1 for grey.
        size: H = W, or (H, W); None keeps the size.
        crop: the side of the middle, or its (height, width), that is cut out before the size is changed.

    Raises:
        ValueError: if a number is out of range.
    """

    channels: int = 3
    size: int | Sequence[int] | None = None
    crop: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"expected channels=1 (grey) or channels=3 (RGB), got channels={self.channels}")
        object.__setattr__(self, "size", _target_size("size", self.size))
        object.__setattr__(self, "crop", _target_size("crop", self.crop))

    @property
    def suffixes(self) -> tuple[str, ...]:
        return _SUFFIXES

    @property
    def advice(self) -> str:
        return "set size= to resize and crop them"

    def __call__(self, file: str | os.PathLike[str]) -> NDArray[np.uint8]:
        """The pixels of a file.

        Raises:
            UnreadableSample: if it is missing or damaged, has a refused mode, is smaller than the crop, or is so large
                that Pillow takes it for a decompression bomb.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(file, formats=_FORMATS) as opened:
                    return self.of(opened, f"the image {file}")
        except UnreadableSample:
            raise
        except Exception as error:
            raise UnreadableSample(f"the image {file} cannot be read: {error}; repair or remove it") from error

    def of(self, opened: Image.Image, name: str) -> NDArray[np.uint8]:
        """The pixels of an image that Pillow has opened; `name` names it in the error."""
        try:
            # Pillow opens 16-bit PNG and PNM in mode I too, which it uses for 32 bits in other formats.
            is_16_bit = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format != "TIFF")
            image = _to_8_bits(ImageOps.exif_transpose(opened), is_16_bit)
            image = self._cropped(image.convert("RGB" if self.channels == 3 else "L"))
        # Pillow's decoders raise exceptions of any type on damaged bytes: each of them means that the file is unusable.
        except Exception as error:
            raise UnreadableSample(f"{name} cannot be read: {error}; repair or remove it") from error
        if self.size is not None:
            height, width = self.size  # type: ignore[misc]
            image = ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(image.height, image.width, self.channels).transpose(2, 0, 1)

    def _cropped(self, image: Image.Image) -> Image.Image:
        if self.crop is None:
            return image
        height, width = self.crop  # type: ignore[misc]
        if image.height < height or image.width < width:
            raise ValueError(f"{image.height}x{image.width} pixels are less than crop={height}x{width}")
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def _target_size(name: str, size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(H, W), or None to keep the size of the images."""
    if size is None:
        return None
    target = (size, size) if isinstance(size, int) else tuple(size)
    if len(target) != 2 or min(target) < 1:
        raise ValueError(f"expected a positive number, (height, width) or None, got {name}={size}")
    return target[0], target[1]


def _to_8_bits(image: Image.Image, is_16_bit: bool) -> Image.Image:
    """The image with 8 bits per channel and without transparency, grey or RGB."""
    if is_16_bit:
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no fixed range of values, store such data as an array")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode in ("1", "L") else image.convert("RGB")
