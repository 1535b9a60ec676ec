"""Images: every Pillow mode becomes the documented pixels, and a file that cannot be used is named."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde.data import DataSet, Scaling, images


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=shape).astype(np.uint8)


def mode_of(file: Path) -> str:
    with Image.open(file) as picture:
        return picture.mode


def all_values(data: DataSet) -> np.ndarray:
    return torch.cat([split.values for split in data.splits.values()]).numpy()


def load_one(folder: Path, channels: int = 3, size: int | tuple[int, int] | None = None) -> np.ndarray:
    """The pixels (C, H, W) of the only file in the folder: a copy of it makes the second sample."""
    (file,) = folder.iterdir()
    (folder / f"copy{file.suffix}").write_bytes(file.read_bytes())
    values = all_values(images(folder, channels=channels, size=size, test_fraction=0.5))
    assert values.shape[:2] == (2, channels)
    assert np.array_equal(values[0], values[1])
    return values[0]


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma, rounded, of (..., 3)."""
    return np.floor(rgb.astype(np.float64) @ [0.299, 0.587, 0.114] + 0.5)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255.0
    return share * colour + (1 - share) * 255.0


def assert_pixels(pixels: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """`expected` has shape (H, W, 3)."""
    assert pixels.shape == (expected.shape[2], *expected.shape[:2])
    assert np.abs(pixels.transpose(1, 2, 0) - expected).max() <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
def test_bilevel(tmp_path: Path, channels: int) -> None:
    bits = noise(5, 6) > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == "1"
    expected = np.where(bits, 255, 0)
    assert np.array_equal(load_one(tmp_path, channels), np.stack([expected] * channels))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm"])
def test_grey(tmp_path: Path, suffix: str, channels: int) -> None:
    grey = noise(5, 6)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(load_one(tmp_path, channels), np.stack([grey] * channels))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "PNG"])
def test_rgb(tmp_path: Path, suffix: str) -> None:
    colour = noise(5, 6, 3)
    Image.fromarray(colour).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(load_one(tmp_path), colour.transpose(2, 0, 1))


def test_rgb_to_grey(tmp_path: Path) -> None:
    colour = noise(5, 6, 3)
    Image.fromarray(colour).save(tmp_path / "a.png")
    assert_pixels(load_one(tmp_path, 1), luma(colour)[..., None], 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_with_alpha_is_composited_over_white(tmp_path: Path, channels: int) -> None:
    grey, alpha = noise(5, 6), noise(5, 6, seed=1)
    alpha[0], alpha[1] = 0, 255
    Image.fromarray(np.stack([grey, alpha], -1)).save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == "LA"
    pixels = load_one(tmp_path, channels)
    assert_pixels(pixels, over_white(np.stack([grey] * channels, -1), alpha), 1)
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, 1] == grey[1]).all()


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_colour_with_alpha_is_composited_over_white(tmp_path: Path, suffix: str) -> None:
    colour, alpha = noise(5, 6, 3), noise(5, 6, seed=1)
    alpha[0], alpha[1] = 0, 255
    Image.fromarray(np.concatenate([colour, alpha[..., None]], -1)).save(tmp_path / f"a.{suffix}", lossless=True)
    pixels = load_one(tmp_path)
    assert_pixels(pixels, over_white(colour, alpha), 1)
    assert (pixels[:, 0] == 255).all()
    assert np.array_equal(pixels[:, 1], colour[1].T)


def test_palette(tmp_path: Path) -> None:
    index, palette = noise(5, 6) % 7, noise(7, 3, seed=1)
    picture = Image.fromarray(index)
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "a.png")
    assert mode_of(tmp_path / "a.png") == "P"
    assert_pixels(load_one(tmp_path), palette[index], 0)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparent_palette(tmp_path: Path, suffix: str) -> None:
    index, palette = noise(5, 6) % 7, noise(7, 3, seed=1)
    picture = Image.fromarray(index)
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / f"a.{suffix}", transparency=3)
    expected = palette.copy()
    expected[3] = 255
    assert_pixels(load_one(tmp_path), expected[index], 0)


def test_cmyk(tmp_path: Path) -> None:
    inks = noise(5, 6, 4)
    Image.frombytes("CMYK", (6, 5), inks.tobytes()).save(tmp_path / "a.tif")
    assert mode_of(tmp_path / "a.tif") == "CMYK"
    ink = inks.astype(np.float64) / 255
    assert_pixels(load_one(tmp_path), 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:]), 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_the_upper_byte(tmp_path: Path, suffix: str, channels: int) -> None:
    grey = noise(5, 6).astype(np.uint16) * 256 + noise(5, 6, seed=1)
    grey[0, 0], grey[0, 1], grey[0, 2] = 65535, 255, 256
    if suffix == "pgm":
        (tmp_path / "a.pgm").write_bytes(b"P5 6 5 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
        assert mode_of(tmp_path / f"a.{suffix}").startswith("I;16")
    assert np.array_equal(load_one(tmp_path, channels), np.stack([grey >> 8] * channels))


def test_jpeg_and_its_orientation(tmp_path: Path) -> None:
    halves = np.zeros((16, 32), dtype=np.uint8)
    halves[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned by 90 degrees clockwise
    Image.fromarray(halves).save(tmp_path / "a.jpg", exif=exif)
    pixels = load_one(tmp_path, 1)
    assert_pixels(pixels, halves.T[..., None], 8)


def test_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), value, dtype=np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (load_one(tmp_path, 1) == 10).all()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_unbounded_modes_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=rf"a\.tif.*mode {mode}"):
        images(tmp_path)


def test_order_is_that_of_the_paths(tmp_path: Path) -> None:
    """Recursive, sorted by path, whatever the order of creation; other and hidden files are passed over."""
    names = ["b/z.png", "a.png", "b/a.png", "c.JPG", "b.png", "B.png"]
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    for value, name in enumerate(names):
        Image.fromarray(np.full((8, 8), 20 * value, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".b.png").write_text("no image")
    (tmp_path / ".cache" / "a.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"1 other files \(1 \.txt\)"):
        data = images(tmp_path, channels=1, test_fraction=0.5, seed=2)
    chosen = np.random.RandomState(2).permutation(6)[:3]
    expected = np.array([20 * names.index(name) for name in sorted(names)])
    test = data.test.values[:, 0, 0, 0].numpy()
    assert np.array_equal(test, expected[np.sort(chosen)])
    train = data.train.values[:, 0, 0, 0].numpy()
    assert np.array_equal(train, np.delete(expected, chosen))


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    """Own files come first in the search and all are sorted by path; circles end; other files are counted by kind."""
    names = ["set/b.png", "set/own/a.png", "there/0.png", "there/deep/1.png"]
    for value, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(tmp_path / name)
    for link, target in [
        ("set/a", "there"),  # sorted before b.png
        ("set/c", "there/deep"),  # there already
        ("set/d", "set/own"),
        ("there/deep/up", "set"),
        ("there/deep/self", "there/deep"),
        ("set/gone", "nowhere"),
        ("set/.hidden", "there"),
    ]:
        (tmp_path / link).symlink_to(tmp_path / target)
    for name in ("set/list.txt", "there/more.TXT", "there/x.npy", "there/.DS_Store"):
        (tmp_path / name).write_text("no image")
    with pytest.warns(UserWarning, match=r"4 other files \(2 \.txt, 1 \.npy, 1 without suffix\)"):
        data = images(tmp_path / "set", channels=1, test_fraction=0.25)
    values = torch.cat([data.train.values, data.test.values])[:, 0, 0, 0]
    assert values.sort().values.tolist() == [0, 1, 2, 3]
    chosen = int(np.random.RandomState(0).permutation(4)[0])
    assert data.test.values[0, 0, 0, 0] == [2, 3, 0, 1][chosen]  # a/0.png, a/deep/1.png, b.png, own/a.png
    (tmp_path / "alias").symlink_to(tmp_path / "there")
    with pytest.warns(UserWarning, match="4 other files"):
        assert len(all_values(images(tmp_path / "alias" / "deep", channels=1, test_fraction=0.3))) == 4


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 3)
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def closed(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="closed"):
        images(tmp_path, test_fraction=0.5)


def fill(folder: Path, count: int, shape: tuple[int, ...] = (6, 5, 3)) -> Path:
    for i in range(count):
        Image.fromarray(noise(*shape, seed=i)).save(folder / f"{i:02}.png")
    return folder


def test_what_it_is(tmp_path: Path) -> None:
    data = images(fill(tmp_path, 20), low=0.0)
    assert data.shape == (3, 6, 5)
    assert data.name == tmp_path.name
    assert data.scaling == Scaling.interval(256, 0.0, 1.0)
    assert data.train.values.dtype == torch.uint8
    assert (len(data.train), len(data.test)) == (18, 2)
    assert images(tmp_path, name="mine").name == "mine"


def test_splits_are_those_of_the_seed(tmp_path: Path) -> None:
    data = images(fill(tmp_path, 20), seed=1)
    assert images(tmp_path, seed=1).fingerprint == data.fingerprint != images(tmp_path, seed=2).fingerprint
    held = images(tmp_path, seed=1, holdout=4)
    assert held.test.fingerprint == data.test.fingerprint
    assert (len(held.train), len(held.split("valid"))) == (14, 4)
    assert len({values.tobytes() for values in all_values(held)}) == 20


def test_right_size_keeps_the_pixels(tmp_path: Path) -> None:
    colour = noise(6, 9, 3)
    Image.fromarray(colour).save(tmp_path / "a.png")
    assert np.array_equal(load_one(tmp_path, size=(6, 9)), colour.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("stored", "size", "resized"),
    [
        ((24, 48), 8, (8, 16)),
        ((48, 24), 8, (16, 8)),
        ((24, 60), (8, 16), (8, 20)),
        ((40, 40), (8, 20), (20, 20)),
    ],
)
def test_centre_crop(
    tmp_path: Path, stored: tuple[int, int], size: int | tuple[int, int], resized: tuple[int, int]
) -> None:
    """As if resized such that it just covers the size, then cut equally at both sides."""
    picture = Image.fromarray(noise(*stored))
    picture.save(tmp_path / "a.png")
    height, width = (8, 8) if size == 8 else size  # type: ignore[misc]
    cover = np.asarray(picture.resize(resized[::-1], Image.Resampling.LANCZOS))
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    assert_pixels(load_one(tmp_path, 1, size), cover[top : top + height, left : left + width, None], 1)


def test_shorter_side_is_kept_whole(tmp_path: Path) -> None:
    """A ramp along the shorter side comes out as the same ramp, sampled at the centres of the larger pixels."""
    ramp = np.broadcast_to(np.arange(48, dtype=np.uint8)[:, None] * 5, (48, 60))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = load_one(tmp_path, 1, 12)
    expected = (4 * np.arange(12) + 1.5) * 5
    assert np.abs(pixels[0, 1:-1].astype(np.float64) - expected[1:-1, None]).max() <= 1


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6, 3), 70, dtype=np.uint8)).save(tmp_path / "a.png")
    pixels = load_one(tmp_path, 3, (10, 20))
    assert pixels.shape == (3, 10, 20)
    assert (pixels == 70).all()


def test_differing_sizes_are_named(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    Image.fromarray(noise(5, 6, 3)).save(tmp_path / "01a.png")
    Image.fromarray(noise(7, 7, 3)).save(tmp_path / "02.png")
    with pytest.raises(ValueError, match=r"00\.png.*6x5.*01a\.png.*5x6.*size="):
        images(tmp_path)
    assert images(tmp_path, size=4, test_fraction=0.5).shape == (3, 4, 4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif", "ppm"])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.8])
def test_truncated_images_are_named(tmp_path: Path, suffix: str, keep: float) -> None:
    fill(tmp_path, 2, (32, 32, 3))
    Image.fromarray(noise(32, 32, 3)).save(tmp_path / f"01a.{suffix}")
    content = (tmp_path / f"01a.{suffix}").read_bytes()
    (tmp_path / f"01a.{suffix}").write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"01a\.{suffix}.*cannot"):
        images(tmp_path)


def test_damaged_image_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 2, (32, 32, 3))
    content = bytearray((tmp_path / "01.png").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "01.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"01\.png.*cannot"):
        images(tmp_path)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"a\.png.*cannot identify"):
        images(tmp_path)


@pytest.mark.parametrize("limit", [29, 14])
def test_decompression_bombs_are_refused(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns of more pixels than its limit, and refuses more than twice as many: both are refused here."""
    fill(tmp_path, 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"00\.png.*decompression bomb"):
        images(tmp_path)


def test_warnings_of_bombs_are_left_as_they_were(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    before = list(warnings.filters)
    images(tmp_path, test_fraction=0.5)
    assert list(warnings.filters) == before


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="nowhere"):
        images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"{tmp_path.name}.*\.png.* 0 "):
        images(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=" 1 other"):
        images(tmp_path)
    (tmp_path / "notes.txt").unlink()
    fill(tmp_path, 1)
    with pytest.raises(NotADirectoryError, match="00"):
        images(tmp_path / "00.png")
    with pytest.raises(ValueError, match=r"0\.1.* 1 sample"):
        images(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 2}, "channels=2"),
        ({"channels": 4}, "channels=4"),
        ({"size": 0}, "size=0"),
        ({"size": (4, 0)}, r"size=\(4, 0\)"),
        ({"size": (4, 4, 4)}, r"size=\(4, 4, 4\)"),
        ({"test_fraction": 0.0}, "test_fraction=0.0"),
        ({"test_fraction": 1}, "test_fraction=1"),
    ],
)
def test_settings_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images(fill(tmp_path, 4), **settings)  # type: ignore[arg-type]
