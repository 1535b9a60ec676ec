"""Plots: the pixels of a grid, a figure that a notebook shows and a file for every kind of data."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sde
from sde.data import Scaling
from sde.plots import image_grid, save_losses, save_samples
from sde.training import Report


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
    save_losses(path, path.with_suffix(".jsonl"))
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
    save_losses(tmp_path / "b.png", tmp_path / "none.jsonl")
    assert (tmp_path / "b.png").exists()


# Figures


def shown(figure: Any) -> np.ndarray:
    """The pixels of a figure as a notebook shows it: IPython asks an object for its `_repr_png_`."""
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def dark(pixels: np.ndarray) -> int:
    return int((pixels.min(axis=-1) < 128).sum())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_figure_of_images_has_their_pixels(channels: int) -> None:
    x = torch.randint(256, (5, channels, 9, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels, grid = shown(sde.plots.samples(x, Scaling.interval(256))), np.asarray(image_grid(x, 256).convert("RGB"))
    factor = 512 // max(grid.shape)
    assert (pixels == grid.repeat(factor, axis=0).repeat(factor, axis=1)).all()


def test_samples_in_the_plane_are_points_and_others_have_a_panel_each() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, generator=generator, requires_grad=True)
    figure = sde.plots.samples(x)
    assert isinstance(figure, matplotlib.figure.Figure)
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), x.detach().numpy())
    for shape in ((5, 7), (5, 1), (3, 2, 9)):
        x = torch.randn(shape, generator=generator)
        figure = sde.plots.samples(x, n=4)
        panels = [axes for axes in figure.axes if axes.lines]
        assert len(panels) == min(len(x), 4)
        for axes, signal in zip(panels, x):
            np.testing.assert_allclose([line.get_ydata() for line in axes.lines], signal.reshape(-1, x.shape[-1]))
        assert bool(figure.get_suptitle()) == (len(x) > 4)
        assert dark(shown(figure)) > 0


def states(*shape: int) -> list[tuple[Tensor, tuple[Tensor]]]:
    """Five times from 1 down to 0, as a solver yields them, and states that go from noise to the value 0.5."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return [(torch.full((shape[0],), t), (t * z + (1 - t) * 0.5,)) for t in (1.0, 0.75, 0.5, 0.25, 0.0)]


def test_a_trajectory_of_points_is_a_curve_from_start_to_end() -> None:
    path = states(4, 2)
    (axes,) = sde.plots.trajectory(path).axes
    curves = np.stack([line.get_xydata() for line in axes.lines])
    np.testing.assert_allclose(curves, torch.stack([x for _, (x,) in path], 1).numpy())
    ends = [collection.get_offsets() for collection in axes.collections]
    np.testing.assert_allclose(ends, curves[:, [0, -1]].swapaxes(0, 1))


def test_a_trajectory_of_vectors_has_a_panel_of_curves_over_time_for_each_sample() -> None:
    """In data values, of the first samples only."""
    path, scaling = states(6, 3), Scaling(scale=0.5, shift=-1.0)
    panels = sde.plots.trajectory(path, scaling, n=2).axes
    assert [len(axes.lines) for axes in panels] == [3, 3]
    lines = [line for axes in panels for line in axes.lines]
    for line, expected in zip(lines, torch.stack([x for _, (x,) in path], 2)[:2].flatten(0, 1)):
        assert line.get_xdata().tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
        np.testing.assert_allclose(line.get_ydata(), ((expected + 1.0) / 0.5).numpy(), rtol=1e-6)


def test_a_trajectory_of_images_is_a_row_for_each_sample() -> None:
    scaling = Scaling.interval(4)
    path = [(t, x) for t, (x,) in states(3, 1, 8, 8)]
    figure = sde.plots.trajectory(path, scaling, n=3)
    assert [text.get_text() for text in figure.texts] == ["1", "0.5", "0"]
    chosen = torch.stack([scaling.to_data(path[i][1]) for i in (0, 2, 4)], 1)
    image = np.asarray(image_grid(chosen.flatten(0, 1), 4, columns=3).convert("RGB"))
    factor = 512 // max(image.shape)
    pixels = shown(figure)
    assert (pixels[: image.shape[0] * factor] == image.repeat(factor, axis=0).repeat(factor, axis=1)).all()
    assert dark(pixels[image.shape[0] * factor :]) > 0  # the times


def test_a_trajectory_of_signals_has_a_panel_for_each_sample_and_time() -> None:
    path = states(3, 2, 6)
    panels = sde.plots.trajectory(path, n=2).axes
    assert [axes.get_xlabel() for axes in panels] == ["", "", "t = 1", "t = 0"]
    expected = [path[time][1][0][sample] for sample in (0, 1) for time in (0, 4)]
    for axes, x in zip(panels, expected):
        np.testing.assert_allclose([line.get_ydata() for line in axes.lines], x.numpy(), rtol=1e-6)


def plane_covariance() -> Tensor:
    return torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)


def plane_model(classes: int | None = None) -> sde.Model:
    """A correlated Gaussian with the mean 0.2 in data units that are half of the model's; labels move it by 1."""
    d = sde.exact.Gaussian(torch.full((2,), 0.4, dtype=torch.float64), plane_covariance()).denoiser(sde.VP())
    return sde.Model(d if classes is None else Moved(d), Scaling(scale=2.0, shift=0.0), (2,), classes)


class Moved(sde.Wrapper):
    """The distribution of a denoiser, moved by the label."""

    def predict(self, what: sde.Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        shift = condition["label"].to(x_t)
        shift = shift[:, None] if shift.ndim else shift
        moved = x_t - sde.expand(self.process.alpha(t), x_t) * shift
        return self.inner.predict(what, moved, t) + (shift if what is sde.Prediction.X0 else 0.0)


@pytest.mark.parametrize("classes", [None, 2])
def test_a_density_is_that_of_the_model_at_the_cells(classes: int | None) -> None:
    model = plane_model(classes)
    points = 0.2 + 0.3 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    figure = sde.plots.density(model, points, size=12, solver=sde.solvers.Heun(60, grid=sde.grids.LogSNR()))
    axes, mesh = figure.axes[0], figure.axes[0].collections[0]
    corners = torch.from_numpy(mesh.get_coordinates())
    cells = (corners[1:, 1:] + corners[:-1, :-1]).flatten(0, 1) / 2.0
    end = torch.tensor(model.process.t_min, dtype=torch.float64)
    gaussian = sde.exact.Gaussian(torch.full((2,), 0.4, dtype=torch.float64), plane_covariance())
    shifts = range(classes or 1)
    expected = sum(gaussian.log_prob(2.0 * cells - k, model.process, end).exp() * 4.0 for k in shifts) / len(shifts)
    np.testing.assert_allclose(mesh.get_array().flatten(), expected.numpy(), atol=0.01 * float(expected.max()))
    inside = ((points > corners[0, 0]) & (points < corners[-1, -1])).all(1)
    assert 0.95 < inside.double().mean() <= 1.0
    np.testing.assert_allclose(axes.collections[1].get_offsets(), points.numpy())


def test_samples_of_a_model_of_the_plane_are_saved_with_its_density(tmp_path: Path) -> None:
    model = plane_model()
    x = model.sample(9)
    save_samples(tmp_path / "a.png", x, model.scaling, model=model)
    save_samples(tmp_path / "b.png", x, model.scaling)
    assert (np.asarray(Image.open(tmp_path / "a.png").convert("RGB")) == shown(sde.plots.density(model, x))).all()
    for name, value in {"scaling": Scaling.interval(4), "shape": (3,)}.items():
        other = replace(model, **{name: value})
        save_samples(tmp_path / "c.png", x, model.scaling, model=other)
        assert (tmp_path / "c.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        with pytest.raises(ValueError, match=r"continuous data of shape \(2,\), got"):
            sde.plots.density(other)


def test_a_trajectory_that_a_solver_yields() -> None:
    d = sde.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(sde.VP())
    path = sde.solvers.Euler(3).bind(sde.Reverse(d, eta=0.0)).trajectory((torch.ones(4, 2),))
    assert len(sde.plots.trajectory(path).axes[0].lines) == 4
    with pytest.raises(ValueError, match=r"\(t, x\)"):
        sde.plots.trajectory([])


def test_losses_of_reports() -> None:
    reports = [Report(step, 1.0 / step, 0.0, 0.0) for step in (1, 2, 4)]
    (axes,) = sde.plots.losses(reports, validation=[(2, 0.4)]).axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 1.0], [2, 0.5], [4, 0.25]], [[2, 0.4]]]
    assert axes.get_yscale() == "log"
    assert sde.plots.losses([Report(1, -1.0, 0.0, 0.0)]).axes[0].get_yscale() == "linear"


def test_histograms_of_bits_per_dim() -> None:
    bits = {"test": np.array([1.0, 2.0, 3.0]), "other": np.array([5.0, 6.0])}
    (axes,) = sde.plots.bits_histogram(bits).axes
    assert [line.get_xdata()[0] for line in axes.lines] == [2.0, 5.5]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [label.split()[0] for label in labels] == ["test", "other"]
    area = dict.fromkeys(bits, 0.0)
    for container, name in zip(axes.containers, bits):
        area[name] = sum(bar.get_height() * bar.get_width() for bar in container)
    assert area == pytest.approx({"test": 1.0, "other": 1.0})


def estimate(value: float, error: float, **known: float) -> sde.metrics.Estimate:
    return sde.metrics.Estimate(value, value - 2 * error, value + 2 * error, error, **known)


def test_measures_of_sets_have_a_panel_each_that_says_what_differs() -> None:
    """Orange differs from the first set; a distance far above its errors has a logarithmic axis."""
    found = {
        "a": {"frechet": estimate(0.2, 0.5, plain=1.0, null=0.0), "precision": estimate(0.5, 0.1)},
        "b": {"frechet": estimate(60.0, 1.0, plain=61.0, null=0.0), "precision": estimate(math.inf, 0.1)},
    }
    differences = {"b": {"frechet": estimate(59.8, 1.0, p_value=0.001)}}
    frechet, precision = sde.plots.measures(found, differences).axes[:2]
    assert [axes.get_xscale() for axes in (frechet, precision)] == ["symlog", "linear"]
    assert [label.get_text() for label in frechet.get_yticklabels()] == ["a", "b"]
    bars = [(bar.lines[0].get_xdata()[0], bar.lines[0].get_color()) for bar in frechet.containers]
    assert bars == [(0.2, "C0"), (60.0, "C1")]
    hollow = [line.get_xdata()[0] for line in frechet.lines if line.get_fillstyle() == "none"]
    assert hollow == [1.0, 61.0]
    assert len(precision.containers) == 1  # an infinite value has no place


def test_precision_stands_over_recall_and_density_over_coverage() -> None:
    names = ("precision", "recall", "density", "coverage")
    found = {"a": {name: estimate(0.1 * i, 0.05) for i, name in enumerate(names, 1)}}
    panels = sde.plots.fidelity_and_diversity(found).axes
    points = [tuple(float(v[0]) for v in axes.containers[0].lines[0].get_data()) for axes in panels]
    assert np.allclose(points, [(0.2, 0.1), (0.4, 0.3)])
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels] == [
        ("recall", "precision"),
        ("coverage", "density"),
    ]
    assert sde.plots.fidelity_and_diversity({"a": {"frechet": estimate(1, 1)}}) is None


def test_histograms_are_of_measures_with_values_of_items() -> None:
    values = torch.arange(10.0)
    ratio = replace(estimate(4.5, 1.0), per_item=values)
    memory = sde.metrics.Memorisation(ratio, estimate(0, 0), values, values, values + 5)
    figure = sde.plots.histograms({"a": {"distance_ratio": ratio, "frechet": estimate(1, 1)}}, {"a": memory})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "held out"]
    assert axes.get_xlim()[1] >= 14
    assert sde.plots.histograms({"a": {"frechet": estimate(1, 1)}}) is None


def test_samples_stand_above_their_nearest_items() -> None:
    x = torch.tensor([0, 16, 8]).byte().reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    image = sde.plots.neighbours(x, x.flip(0), 17)
    rows, columns = ([int((i + 0.5) / n * side) for i in range(n)] for n, side in ((2, image.height), (3, image.width)))
    centres = np.asarray(image)[rows][:, columns]
    assert centres.tolist() == [[0, 255, 128], [128, 255, 0]]


def test_plots_leave_pyplot_alone() -> None:
    code = "import sde, sys, torch; sde.plots.samples(torch.zeros(3, 2))._repr_png_(); "
    code += "print('matplotlib.pyplot' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
