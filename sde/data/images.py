r"""Images: a data set from a folder of image files.

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

**Size.** With `size=(H, W)` an image is resized (Lanczos) to the smallest size that covers H x W, enlarged if
necessary, and then cropped equally on both sides. An image of the right size keeps its pixels.
"""

from __future__ import annotations

__all__ = ["images"]

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .dataset import DataSet, Split, hold_out, split_off
from .scaling import Scaling

# A list, because one of the formats that Pillow knows runs an interpreter (EPS).
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
        path: the folder.
        size: H = W, or (H, W); None if all images already have the same size.
        channels: 3 for RGB, 1 for grey.
        low: lower end of the model's range.
        high: upper end of the model's range.
        test_fraction: fraction of the images in the test set, between 0 and 1.
        seed: seed of the random splits, as in `split_off`.
        holdout: part of the training set to hold out as `valid`, as in `hold_out`.
        name: name of the data set; the folder's name by default.

    Raises:
        NotADirectoryError: if the folder does not exist.
        OSError: if a folder below it cannot be listed.
        ValueError: if the folder contains no image; if an image is damaged, has a refused mode, or is so large that
            Pillow takes it for a decompression bomb; or if `size` is None and two images differ in size.
    """
    path = Path(path)
    if channels not in (1, 3):
        raise ValueError(f"expected channels=1 (grey) or channels=3 (RGB), got channels={channels}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"expected 0 < test_fraction < 1, got test_fraction={test_fraction}")
    target = _target_size(size)
    files = _image_files(path)
    first = _load(files[0], channels, target)
    pixels = np.empty((len(files), *first.shape), dtype=np.uint8)
    pixels[0] = first
    for i, file in enumerate(files[1:], start=1):
        image = _load(file, channels, target)
        if image.shape != first.shape:
            raise ValueError(
                f"expected images of one size, but {files[0]} is {first.shape[1]}x{first.shape[2]} and {file} is "
                f"{image.shape[1]}x{image.shape[2]} (height x width): set size= to resize and crop them"
            )
        pixels[i] = image
    rest, test = split_off(Split(torch.from_numpy(pixels)), test_fraction, seed=seed)
    train, valid = hold_out(rest, holdout, seed=seed)
    scaling = Scaling.interval(256, low, high)
    return DataSet(path.resolve().name if name is None else name, scaling, train, test, valid)


def _target_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(H, W), or None to keep the size of the images."""
    if size is None:
        return None
    target = (size, size) if isinstance(size, int) else tuple(size)
    if len(target) != 2 or min(target) < 1:
        raise ValueError(f"expected a positive number, (height, width) or None, got size={size}")
    return target[0], target[1]


def _image_files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise NotADirectoryError(f"the folder {path} does not exist")
    files = sorted(_files_below(path), key=lambda file: file.relative_to(path).as_posix())
    others = Counter(file.suffix.lower() for file in files if file.suffix.lower() not in _SUFFIXES)
    kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in others.most_common())
    passed_over = f"{others.total()} other files" + (f" ({kinds})" if kinds else "")
    if others.total() == len(files):
        raise ValueError(
            f"{path} contains no image: expected files that end in {', '.join(_SUFFIXES)}, got {passed_over}"
        )
    if others:
        warnings.warn(f"{path}: {passed_over} are no images and are passed over", stacklevel=3)
    return [file for file in files if file.suffix.lower() in _SUFFIXES]


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


def _load(file: Path, channels: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The pixels of one file, with shape (channels, H, W)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as opened:
                # Pillow opens 16-bit PNG and PNM in mode I too, which it uses for 32 bits in other formats.
                is_16_bit = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format != "TIFF")
                image = ImageOps.exif_transpose(opened)
        image = _to_8_bits(image, is_16_bit).convert("RGB" if channels == 3 else "L")
    # Pillow's decoders raise exceptions of any type on damaged bytes: each of them means that the file is unusable.
    except Exception as error:
        raise ValueError(f"the image {file} cannot be read: {error}; repair or remove it") from error
    if size is not None:
        image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


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
