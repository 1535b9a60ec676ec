r"""Image files: which files of a folder are images, and their pixels.

**Files.** All PNG, JPEG, BMP, GIF, WebP, TIFF and PNM files below the folder, recognised by their suffix and sorted by
their path relative to the folder. Symbolic links to folders are followed; every folder is searched once, so that
circles end. Files and folders whose name begins with a dot are skipped. A warning counts the other files by suffix. An
image file that cannot be decoded completely, or a folder that cannot be listed, is an error.

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

__all__ = ["Pixels", "image_files"]

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .source import UnreadableSample

# A list, because one of the formats that Pillow knows runs an interpreter (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


def image_files(path: Path) -> list[str]:
    """The paths of the image files below a folder relative to it, sorted."""
    if not path.is_dir():
        raise NotADirectoryError(f"the folder {path} does not exist")
    files = sorted(file.relative_to(path).as_posix() for file in _files_below(path))
    suffixes = [os.path.splitext(file)[1].lower() for file in files]
    others = Counter(suffix for suffix in suffixes if suffix not in _SUFFIXES)
    kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in others.most_common())
    passed_over = f"{others.total()} other files" + (f" ({kinds})" if kinds else "")
    if others.total() == len(files):
        raise ValueError(
            f"{path} contains no image: expected files that end in {', '.join(_SUFFIXES)}, got {passed_over}"
        )
    if others:
        warnings.warn(f"{path}: {passed_over} are no images and are passed over", stacklevel=4)
    return [file for file, suffix in zip(files, suffixes) if suffix in _SUFFIXES]


def _files_below(path: Path) -> Iterator[Path]:
    """The files below a folder without a leading dot: first those of its own folders, then those behind links."""
    roots, searched = [str(path)], set()

    def refuse(error: OSError) -> None:
        raise error

    for root in roots:  # grows by the links that are found
        for folder, folders, names in os.walk(root, onerror=refuse):
            if os.path.realpath(folder) in searched:
                folders.clear()
                continue
            searched.add(os.path.realpath(folder))
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            roots += [link for link in (os.path.join(folder, each) for each in folders) if os.path.islink(link)]
            yield from (Path(folder, name) for name in names if not name.startswith("."))


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
