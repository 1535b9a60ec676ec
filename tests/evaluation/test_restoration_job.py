"""The restoration job: items keep their measurement and their draws, rows survive a stop, draws are calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sde import Denoiser, Model
from sde.data import DataSet, Scaling, Split
from sde.evaluation.job import Job
from sde.evaluation.job_setup import JobSetup
from sde.evaluation.restoration_job import RestorationScorer, calibration, restoration_job, restoration_report
from sde.evaluation.restoration_tasks import (
    Colourise,
    CompressedSensing,
    Deblur,
    Denoise,
    FourierSampling,
    Inpaint,
    SuperResolution,
    Task,
    measure,
)
from sde.evaluation.sharding import WHOLE, BatchPlan, Shard
from sde.exact import Gaussian
from sde.measurement import NormalVariance, check_adjoint
from sde.plots import image_grid, save_restorations
from sde.plots.figures import image_figure
from sde.plots.restorations import HIDDEN, restoration_rows
from sde.processes import VP
from sde.solvers import Particles

SHAPE = (3, 4, 4)


class Images(Denoiser):
    """The exact denoiser of independent normal pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.process = VP()
        self.flat = Gaussian(torch.zeros(48), 0.04 * torch.eye(48)).denoiser(self.process)

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.flat(x_t.flatten(1), t).reshape(x_t.shape)


def images(n: int) -> Tensor:
    z = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(8))
    return (128 + 25.6 * z).clamp(0, 255).to(torch.uint8)


def job(path: Path, task: Task, n: int = 5, batch_size: int = 3, shard: Shard = WHOLE) -> Job[RestorationScorer]:
    model = Model(Images(), Scaling.interval(256), SHAPE)
    variance = NormalVariance(0.2)
    scorer = RestorationScorer(model, Split(images(n)), task, None, Particles(2, 2, variance=variance), variance)
    return Job("images", scorer, BatchPlan(n, None, 3, batch_size, shard), path, {"seed": 0}, {})


TASKS: dict[str, Task] = {
    "box": Inpaint(),
    "half": Inpaint(mask="half", fraction=0.5),
    "random": Inpaint(2.0, mask="random", fraction=0.7),
    "super resolution": SuperResolution(1.0),
    "deblur": Deblur(1.0, std=0.7),
    "denoise": Denoise(),
    "colourise": Colourise(),
    "compressed sensing": CompressedSensing(1.0),
    "fourier": FourierSampling(1.0),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_an_item_has_one_measurement_whatever_its_batch(task: Task) -> None:
    x, index = images(6), torch.arange(6)
    operator, y = measure(task, x, index, 3)
    assert check_adjoint(operator, (6, *SHAPE)) < 1e-12
    for rows in (slice(4, 5), slice(2, 5)):
        torch.testing.assert_close(measure(task, x[rows], index[rows], 3)[1], y[rows], rtol=0, atol=1e-12)
    assert not task.noise or not torch.equal(measure(task, x, index, 4)[1], y)


def test_masks_hide_what_they_say() -> None:
    index = torch.arange(40)
    kinds = {name: Inpaint(mask=name, fraction=0.25).operator(SHAPE, index, 0) for name in ("box", "half", "random")}
    hidden = {name: 1.0 - operator(torch.ones(40, *SHAPE)) for name, operator in kinds.items()}
    assert hidden["box"].flatten(1).mean(1).tolist() == [0.25] * 40
    assert len(hidden["box"].unique(dim=0)) == 9  # a block of 2 by 2 has 9 places
    assert bool((hidden["half"][:, :, 3] == 1).all())
    assert float(hidden["half"].mean()) == 0.25
    assert abs(float(hidden["random"].mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 640)
    known = FourierSampling(acceleration=2.0).operator((1, 8, 8), index, 0).measured(torch.zeros(40, 1, 8, 8, 2))
    assert known is not None
    assert known[:, 0, :, 0, 0].sum(1).tolist() == [4] * 40
    assert bool(known[:, :, 0].all())  # the mean is always measured


def test_a_job_resumes_with_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    task = Inpaint(mask="half", fraction=0.5)
    whole = job(tmp_path / "whole.h5", task)
    list(whole.run())
    interrupted = job(tmp_path / "part.h5", task)
    states = interrupted.run()
    for _ in range(3):
        next(states)
    states.close()
    list(job(tmp_path / "part.h5", task).run())
    for rank in (1, 0):
        list(job(tmp_path / "ranks.h5", task, shard=Shard(rank, 2)).run())
    table = whole.table()
    assert table["x"].shape == (15, *SHAPE)
    for name in ("part", "ranks"):
        other = job(tmp_path / f"{name}.h5", task).table()
        for column, values in table.items():
            np.testing.assert_array_equal(other[column], values, err_msg=column)
    known = images(5).numpy()[:, :, :2]
    for repeat in range(3):
        np.testing.assert_array_equal(table["x"][table["repeat"] == repeat][:, :, :2], known)
    assert not np.array_equal(table["x"][:5], table["x"][5:10])
    assert set(table["nfe"].tolist()) == {3 * 2 + 1}
    lines = list(restoration_report(whole))
    for word in ("psnr", "ssim", "cover", "evidence", "calls"):
        assert any(word in line for line in lines)
    assert save_restorations(tmp_path / "a.png", whole.scorer, table, n=2)
    assert (tmp_path / "a.png").stat().st_size > 1000


def job_setup(folder: Path, method: str, solver: dict[str, object], shown: int = 6) -> JobSetup:
    (folder / "last.pt").write_bytes(b"weights")
    data = DataSet("images", Scaling.interval(256), Split(images(2)), Split(images(2)))
    config = {"split": "test", "out": None, "seed": 0, "n": None, "pilot": 4, "polish": 0, "trust": []}
    config |= {"repeats": 1, "batch_size": 2, "shown": shown, "task": {"_target_": "sde.evaluation.Denoise"}}
    config |= {"method": {"_target_": f"sde.measurement.{method}"}, "solver": solver}
    model = Model(Images(), Scaling.interval(256), SHAPE)
    return JobSetup(config, folder / "last.pt", model, data, Shard(0, 1))


def test_a_method_and_a_solver_that_do_not_fit_are_refused_before_the_pilot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*arguments: object) -> None:
        raise AssertionError("a network call")

    monkeypatch.setattr(Images, "forward", called)
    for method, solver, message in (
        ("Unguided", "Heun", "y would not count"),
        ("PiGDM", "Decoupled", "does not follow itself"),
        ("DiffPIR", "Heun", "a network call"),
    ):
        setup = job_setup(tmp_path, method, {"_target_": f"sde.solvers.{solver}", "steps": 2})
        with pytest.raises((ValueError, AssertionError), match=message):
            restoration_job(setup)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_job_is_the_same_whatever_its_picture_shows(tmp_path: Path) -> None:
    solver = {"_target_": "sde.solvers.Particles", "steps": 2, "particles": 2}
    for shown, rows in ((6, [0, 2]), (0, [2])):
        states = restoration_job(job_setup(tmp_path, "DiffPIR", solver, shown)).run()
        assert [state.rows for state in states] == rows


def test_a_picture_shows_what_is_measured_and_what_is_hidden() -> None:
    x, index = images(2).double(), torch.arange(2)
    draws = torch.stack([x, 0.5 * x])
    rows, titles = restoration_rows(Inpaint(mask="half", fraction=0.5), Scaling.interval(256), index, x, draws)
    assert titles == ["truth", "measured", "draw 1", "draw 2", "mean", "deviation"]
    assert torch.equal(rows[:, 0], x)
    assert torch.equal(rows[:, 1, :, :2], x[:, :, :2])
    torch.testing.assert_close(rows[0, 1, :, 2, 0], 255.0 * rows.new_tensor(HIDDEN))
    torch.testing.assert_close(rows[:, 4], 0.75 * x)
    assert float(rows[:, 5].max()) == 255.0
    grey, _ = restoration_rows(Colourise(), Scaling.interval(256), index, x, draws)
    assert torch.equal(grey[:, 1, 0], grey[:, 1, 2])  # brightness without a hue
    one, _ = restoration_rows(SuperResolution(), Scaling.interval(256), index, x[:, :1], draws[:, :, :1])
    assert one.shape == (2, 6, 3, 4, 4)
    figure = image_figure(image_grid(rows.flatten(0, 1), 256, 6), titles, ["a", "b"])
    assert figure.get_size_inches().tolist() == pytest.approx([(29 + 120) / 120, (9 + 40) / 120])
    assert [text.get_text() for text in figure.texts] == [*titles, "a", "b"]


def test_calibration_is_that_of_its_definition() -> None:
    """Truth and draws of one distribution: all ranks are equally likely. 500 items of 4 pixels, 5 standard errors."""
    generator = np.random.default_rng(2)
    found = calibration(generator.normal(size=(19, 500, 4)), generator.normal(size=(500, 4)))
    assert found.nominal == 0.9
    assert abs(found.coverage - 0.9) < 5 * math.sqrt(0.09 / 2000)
    assert np.abs(found.ranks - 0.05).max() < 5 * math.sqrt(0.05 * 0.95 / 2000)
    wide = calibration(3 * generator.normal(size=(19, 500, 4)), generator.normal(size=(500, 4)))
    assert wide.coverage > 0.98
    # Ties count in equal parts, and pixels that are known do not count.
    draws, truth = np.zeros((3, 1, 2)), np.zeros((1, 2))
    draws[:, 0, 1] = [0, 1, 2]
    tied = calibration(draws, truth)
    np.testing.assert_allclose(tied.ranks, [0.5, 0.5, 0, 0])
    assert "cover" in str(tied)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inpaint(mask="circle"), "box, half, random"),
        (lambda: Inpaint(fraction=1.0), "fraction"),
        (lambda: Denoise(-1.0), "noise >= 0"),
        (lambda: Deblur(std=0.0), "std > 0"),
        (lambda: SuperResolution(kernel="sinc"), "bicubic"),
        (lambda: CompressedSensing(fraction=2.0), "fraction"),
        (lambda: FourierSampling(acceleration=0.5), "acceleration"),
        (lambda: job(Path("a.h5"), SuperResolution(factor=3)), "multiple of 3"),
        (lambda: replace(job(Path("a.h5"), Denoise()).scorer, solver=Particles(2, 2, draws=2)), "draws=1"),
    ],
)
def test_what_cannot_be_measured_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
