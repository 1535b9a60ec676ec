"""Pictures: the pixels of a grid, and a file for every kind of data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sde.data import Scaling
from sde.plots import image_grid, loss_curve, save_samples


def tiles(image: Image.Image, h: int, w: int) -> list[np.ndarray]:
    """The tiles of a grid, row by row, whose seams are black."""
    a = np.asarray(image)
    assert (a[h :: h + 1] == 0).all()
    assert (a[:, w :: w + 1] == 0).all()
    return [a[i : i + h, j : j + w] for i in range(0, a.shape[0], h + 1) for j in range(0, a.shape[1], w + 1)]


def test_levels_set_black_and_white() -> None:
    x = torch.tensor([0, 4, 8, 16], dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 1, 2, 3)
    image = image_grid(x, 17)
    assert image.mode == "L"
    assert image.size == (7, 5)
    assert [t.flatten().tolist() for t in tiles(image, 2, 3)] == [[0] * 6, [64] * 6, [128] * 6, [255] * 6]


def test_eight_bits_stay_as_they_are() -> None:
    x = torch.arange(5 * 3 * 4 * 2).reshape(5, 3, 4, 2).to(torch.uint8)
    image = image_grid(x, 256)
    assert image.mode == "RGB"
    assert image.size == (3 * 3 - 1, 2 * 5 - 1)  # 3 columns, 2 rows
    found = tiles(image, 4, 2)
    for i in range(5):
        assert (found[i] == x[i].permute(1, 2, 0).numpy()).all()
    assert (found[5] == 0).all()


def test_without_levels_the_extremes_are_black_and_white() -> None:
    image = np.asarray(image_grid(torch.tensor([-2.0, 0.0, 2.0, 1.0]).reshape(1, 1, 2, 2), None))
    assert image.tolist() == [[0, 128], [255, 191]]
    assert np.asarray(image_grid(torch.full((1, 1, 2, 2), 3.0), None)).tolist() == [[0, 0], [0, 0]]


def test_other_numbers_of_channels_stand_side_by_side() -> None:
    x = torch.arange(2 * 5 * 2 * 3).reshape(2, 5, 2, 3).to(torch.uint8)
    image = image_grid(x, 256)
    assert image.mode == "L"
    found = tiles(image, 2, 15)
    for i in range(2):
        for c in range(5):
            assert (found[i][:, 3 * c : 3 * c + 3] == x[i, c].numpy()).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 64])
def test_a_grid_holds_every_image_once(n: int) -> None:
    x = torch.arange(1, n + 1, dtype=torch.uint8).reshape(n, 1, 1, 1)
    shades = np.asarray(image_grid(x, 256))
    assert sorted(shades[shades > 0].tolist()) == list(range(1, n + 1))
    assert abs(shades.shape[0] - shades.shape[1]) <= 2


def test_small_images_are_saved_in_whole_pixels(tmp_path: Path) -> None:
    x = torch.randint(17, (4, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    save_samples(tmp_path / "a.png", x, Scaling.interval(17))
    image = Image.open(tmp_path / "a.png")
    grid = image_grid(x, 17)
    factor = image.width // grid.width
    assert factor == 512 // 17
    assert (np.asarray(image)[::factor, ::factor] == np.asarray(grid)).all()
    assert (np.asarray(image)[factor - 1 :: factor, factor - 1 :: factor] == np.asarray(grid)).all()


@pytest.mark.parametrize(
    "x",
    [torch.zeros(5, 2), torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 2, 9)],
    ids=["plane", "vector", "signal"],
)
def test_other_data_is_drawn(tmp_path: Path, x: Tensor) -> None:
    save_samples(tmp_path / "a.png", x, Scaling.identity())
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 2


def drawn(path: Path, *lines: dict[str, float]) -> np.ndarray:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss_curve(path.with_suffix(".jsonl"), path)
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_loss_curve_shows_what_it_is_given(tmp_path: Path) -> None:
    loss = [{"step": i, "loss": 1.0 / i} for i in range(1, 5)]
    one = drawn(tmp_path / "a.png", *loss)
    assert (drawn(tmp_path / "b.png", *loss) == one).all()
    assert (drawn(tmp_path / "c.png", *loss, {"step": 4, "valid_loss": 0.5}) != one).any()
    assert (drawn(tmp_path / "d.png", *loss[:3], {"step": 4, "loss": 0.9}) != one).any()
    drawn(tmp_path / "e.png", {"step": 1, "loss": -1.0}, {"step": 2, "loss": 0.5})
    drawn(tmp_path / "f.png", {"step": 1, "valid_loss": 1.0})


def test_a_run_too_short_for_a_line_of_metrics_has_an_empty_curve(tmp_path: Path) -> None:
    drawn(tmp_path / "a.png")
    loss_curve(tmp_path / "none.jsonl", tmp_path / "b.png")
    assert (tmp_path / "b.png").exists()
