r"""Images: a data set from a folder of image files.

**Which files.** All PNG, JPEG, BMP, GIF, WebP, TIFF and PNM files below the folder, by their suffix, in the
order of their path from the folder; names that begin with a dot and all other files are passed over. An image
file that cannot be decoded whole is an error.

**What a pixel becomes.** 8 bits per channel, hence 256 levels:

1. the first frame of an animation, turned as its EXIF orientation says;
2. 16-bit grey (PNG, TIFF, PNM): the upper byte;
3. with transparency: composited over white, since the colour under a transparent pixel is arbitrary;
4. palettes, CMYK, YCbCr and the like: Pillow's conversion to RGB, without colour profiles;
5. `channels=1`: ITU-R 601 luma, which leaves grey as it is; `channels=3`: RGB, grey repeated.

Floating and 32-bit images have no fixed range and are refused.

**Size.** With `size=(H, W)` an image is resized (Lanczos) such that it just covers H x W, smaller ones being
enlarged, and the overhang is cut off equally at both sides. An image of the right size keeps its pixels.
"""

from __future__ import annotations

__all__ = ["images"]

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .dataset import DataSet, Split, hold_out, split_off
from .scaling import Scaling

# The formats are listed, because among those that Pillow knows is one that calls an interpreter (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


def images(
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int] | None = None,
    channels: int = 3,
    low: float = -1.0,
    high: float = 1.0,
    test_fraction: float = 0.1,
    seed: int = 0,
    holdout: float = 0,
    name: str | None = None,
) -> DataSet:
    """A data set of the images below a folder, with event shape (channels, H, W) and 256 levels.

    Args:
        path: The folder.
        size: H = W, or (H, W); None where all images have one size already.
        channels: 3 for RGB, 1 for grey.
        low: Lower end of the model's range.
        high: Upper end of the model's range.
        test_fraction: The share of the images that is the test set, between 0 and 1.
        seed: Seed of the random splits, as in `split_off`.
        holdout: Part of the training set to hold out as `valid`, as in `hold_out`.
        name: Name of the data set; by default that of the folder.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it holds no image; an image is damaged, of a mode that is refused, or so large that
            Pillow takes it for a decompression bomb; or `size` is None and two images differ in size.
    """
    path = Path(path)
    if channels not in (1, 3):
        raise ValueError(f"expected channels=1 (grey) or channels=3 (RGB), got {channels}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"expected 0 < test_fraction < 1, got {test_fraction}")
    target = _target(size)
    files = _files(path)
    first = _load(files[0], channels, target)
    pixels = np.empty((len(files), *first.shape), dtype=np.uint8)
    pixels[0] = first
    for i, file in enumerate(files[1:], start=1):
        picture = _load(file, channels, target)
        if picture.shape != first.shape:
            raise ValueError(
                f"images differ in size: {files[0]} is {first.shape[1]}x{first.shape[2]} and {file} is "
                f"{picture.shape[1]}x{picture.shape[2]} (height x width); give size= to resize and crop them"
            )
        pixels[i] = picture
    rest, test = split_off(Split(torch.from_numpy(pixels)), test_fraction, seed=seed)
    train, valid = hold_out(rest, holdout, seed=seed)
    scaling = Scaling.interval(256, low, high)
    return DataSet(path.resolve().name if name is None else name, scaling, train, test, valid)


def _target(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(H, W), or None to keep the sizes."""
    if size is None:
        return None
    target = (size, size) if isinstance(size, int) else tuple(size)
    if len(target) != 2 or min(target) < 1:
        raise ValueError(f"expected size as a positive number, as (height, width) or None, got {size}")
    return target[0], target[1]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise NotADirectoryError(f"there is no folder {path}")
    found, others = [], 0
    for folder, folders, names in os.walk(path):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(_SUFFIXES):
                found.append(Path(folder, name))
            else:
                others += 1
    if not found:
        raise ValueError(
            f"{path} holds no image: expected files that end in {', '.join(_SUFFIXES)}, found {others} others"
        )
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def _load(file: Path, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The pixels of one file, with shape (channels, H, W)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as opened:
                # Pillow has 16-bit PNG and PNM in mode I too, which it uses for 32 bits of other formats.
                sixteen = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format != "TIFF")
                picture = ImageOps.exif_transpose(opened)
        picture = _eight_bits(picture, sixteen).convert("RGB" if channels == 3 else "L")
    # Pillow's decoders raise what they like on damaged bytes: anything means that the file cannot be used.
    except Exception as error:
        raise ValueError(f"the image {file} cannot be read: {error}; repair or remove it") from error
    if size is not None:
        picture = ImageOps.fit(picture, (size[1], size[0]), method=Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(picture.height, picture.width, channels).transpose(2, 0, 1)


def _eight_bits(picture: Image.Image, sixteen: bool) -> Image.Image:
    """The picture, of 16-bit grey or anything else, with 8 bits per channel and no transparency, grey or RGB."""
    if sixteen:
        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"mode {picture.mode} has no fixed range of values, store such data as an array")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture if picture.mode in ("1", "L") else picture.convert("RGB")
