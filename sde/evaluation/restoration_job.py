r"""The restoration job: draws from the posterior of every item of a data set given a measurement of it.

A row is one draw: its index is that of the item, its repeat the number of the draw. Draws of one item are independent,
so that ranks and coverage may be computed from them.
"""

from __future__ import annotations

__all__ = ["Calibration", "RestorationScorer", "calibration", "restoration_job", "restoration_report"]

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ..data import Source
from ..denoisers import Denoiser
from ..grids import LogSNR
from ..instantiate import build, find
from ..measurement import Measurement, Variance
from ..metrics.evidence import evidence_shift
from ..metrics.fidelity import fitting_window, psnr, ssim
from ..model import Model
from ..model.restoration import Method, prepared
from ..noise import repeat_key
from ..shapes import as_tensor
from ..solvers import Ancestral, Polish, Solver
from .job import Job, Scorer
from .job_setup import JobSetup
from .likelihood_job import check_data, condition_of
from .restoration_tasks import Task, measure
from .summary import Columns, Rows, mean_and_error, means_over_repeats

_SCALARS: Mapping[str, DTypeLike] = {
    **dict.fromkeys(("misfit", "psnr", "ssim", "log_evidence", "ess"), np.float64),
    **dict.fromkeys(("nfe", "vjps"), np.int64),
}


LOST = 0.2  # standard deviations, above which draws are taken to have lost a mode; see sde.metrics.evidence_shift


@dataclass(frozen=True)
class RestorationScorer(Scorer):
    """A draw from the posterior of items of a split.

    Args:
        model: the model.
        split: the data, raw values.
        task: the measurement that is made of each item.
        method, solver, variance, polishing: as in :meth:`sde.Model.restore`.
        seed: the seed of masks, noise and draws.

    Raises:
        ValueError: if the data does not fit the model or the task, or the method, the solver or the polish cannot serve
            the task. No network call is made.
    """

    model: Model
    split: Source
    task: Task
    method: Method | None = None
    solver: Solver | None = None
    variance: Variance | None = None
    seed: int = 0
    polishing: Polish | None = None

    def __post_init__(self) -> None:
        check_data(self.model, self.split)
        first, model = torch.zeros(1, dtype=torch.int64, device="cpu"), self.model
        operator, y = measure(self.task, self.split[first][0], first, self.seed)
        how: dict[str, Any] = {"method": self.method, "solver": self.solver, "polishing": self.polishing}
        if self.solver is not None and self.solver.population > 1 and int(self.solver.draws) > 1:
            raise ValueError(
                "restoration: draws of one population depend on each other: expected a solver with draws=1, got "
                f"draws={self.solver.draws}; repeats= gives independent draws"
            )
        prepared(model.denoiser, model.scaling, model.shape, y, operator, self.task.noise, **how)

    @property
    def columns(self) -> Mapping[str, DTypeLike]:
        return {**_SCALARS, "x": np.dtype((self.split.extent.numpy().dtype, self.model.shape))}

    @property
    def shown(self) -> Sequence[str]:
        return ["psnr", "misfit"]

    @cached_property
    def data_range(self) -> float:
        """The range of data values: that of the levels, or of continuous values among the first 256 items."""
        if self.model.scaling.levels:
            return self.model.scaling.levels - 1.0
        values, _ = self.split[torch.arange(min(256, len(self.split)), device="cpu")]
        return float(values.max() - values.min())

    def rows(self, index: Tensor, repeat: int) -> Rows:
        truth, condition = self.split[index]
        operator, y = measure(self.task, truth, index, self.seed)
        r = self.model.restore(
            y,
            operator,
            self.task.noise,
            method=self.method,
            solver=self.solver,
            polishing=self.polishing,
            variance=self.variance,
            seed=self.seed,
            index=repeat_key(index, repeat),
            condition=condition_of(self.model, condition),
        )
        x, extent = r.x[:, 0], self.data_range
        nothing = torch.full((len(index),), math.nan, dtype=torch.float64, device="cpu")
        columns = {
            "misfit": r.misfit[:, 0].double(),
            "psnr": psnr(x.double(), truth.double(), data_range=extent).per_item,
            "ssim": _similarity(x, truth, extent),
            "log_evidence": nothing if r.log_evidence is None else r.log_evidence[:, 0],
            "ess": nothing if r.ess is None else r.ess[:, 0],
            "nfe": r.nfe[:, 0],
            "vjps": r.vjps[:, 0],
            "x": x.to(self.split.extent.dtype),
        }
        return {name: as_tensor(column).cpu().numpy() for name, column in columns.items()}


def _similarity(x: Tensor, truth: Tensor, extent: float) -> Tensor:
    """The SSIM of each image, with a narrower window in images smaller than 11 pixels; NaN of what is no image."""
    if x.ndim not in (3, 4, 5):
        return torch.full((len(x),), math.nan, dtype=torch.float64, device="cpu")
    return as_tensor(ssim(x.double(), truth.double(), data_range=extent, window=fitting_window(x)).per_item)


@dataclass(frozen=True)
class Calibration:
    """Calibration of draws: the place of the truth among them, pixel by pixel.

    Attributes:
        ranks: the fractions of the pixels whose truth has the rank 0, ..., R among R draws, each 1/(R+1) if draws are
            from the posterior; pixels that all draws have right are left out, ties count in equal parts.
        nominal: the probability of the interval between two of the draws, (R + 1 - 2k)/(R + 1), the one nearest to 90
            %.
        coverage: the fraction of the pixels whose truth lies in it.
        standard_error: of the coverage, over items.
    """

    ranks: NDArray[np.float64]
    nominal: float
    coverage: float
    standard_error: float

    def __str__(self) -> str:
        return (
            f"intervals of {100 * self.nominal:.0f} % cover {100 * self.coverage:.1f} +- "
            f"{100 * self.standard_error:.1f} % of the pixels"
        )


def calibration(draws: NDArray[Any], truth: NDArray[Any]) -> Calibration:
    """The calibration of draws.

    Args:
        draws: independent draws, with shape (R, N, *).
        truth: the truth, with shape (N, *).
    """
    draws, truth = (np.asarray(v, np.float64).reshape(*v.shape[:k], -1) for v, k in ((draws, 2), (truth, 1)))
    count = len(draws)
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    open_ = equal < count
    ranks = np.zeros((count + 1, *truth.shape))
    for rank in range(count + 1):
        ranks[rank] = ((rank >= below) & (rank <= below + equal)) / (equal + 1.0)
    k = min(range(1, (count + 1) // 2 + 1), key=lambda k: abs((count + 1 - 2 * k) / (count + 1) - 0.9))
    inside = ranks[k : count + 1 - k].sum(0)
    number = open_.sum(1)
    items = np.where(number > 0, (inside * open_).sum(1) / np.maximum(number, 1), np.nan)
    mean, error = mean_and_error(items[np.isfinite(items)])
    total = max(int(number.sum()), 1)
    return Calibration((ranks * open_).sum((1, 2)) / total, (count + 1 - 2 * k) / (count + 1), mean, error)


def restoration_job(setup: JobSetup, *, progress: Callable[[float], object] | None = None) -> Job[RestorationScorer]:
    """The job of a config: `task`, `method`, `solver` and the samples of the `pilot` run, which the run keeps.

    Args:
        setup: the setup.
        progress: called with the fraction of the pilot run that is done.

    Raises:
        ValueError: if a key of the config is out of range, or the file belongs to another job.
    """
    config, split = setup.config, setup.split(setup.config["split"])
    name = f"{config['split']}{setup.variant}.h5"
    path = Path(config["out"] or setup.directory / "restorations" / name)
    steps = config["polish"]
    polishing = Polish(Ancestral(8, grid=LogSNR()), steps) if steps else None

    def scorer(variance: Variance | None) -> RestorationScorer:
        def method(denoiser: Denoiser, measurement: Measurement) -> Denoiser:
            guided: Denoiser = _built(setup, "method", variance, inner=denoiser, measurement=measurement)
            return guided

        solver: Solver = _built(setup, "solver", variance)
        task, seed = setup.build("task"), config["seed"]
        return RestorationScorer(setup.model, split, task, method, solver, variance, seed, polishing)

    # Everything is checked before the pilot run, in which the first network calls are.
    key = {**setup.key("shown"), "data": split.fingerprint}
    job = Job(setup.name, scorer(None), setup.plan(split, config["n"]), path, key, setup.metadata)
    job.check()
    pilot = setup.model.pilot(setup.directory, n=config["pilot"], seed=config["seed"], progress=progress)
    return replace(job, scorer=scorer(pilot))


def _built(setup: JobSetup, key: str, variance: Variance | None, **arguments: Any) -> Any:
    """The object of a key of the config, with the pilot's variance if it takes one and the config has none."""
    tree, trust = setup.config[key], setup.config["trust"]
    takes = "variance" in inspect.signature(find(tree["_target_"], trust=trust)).parameters
    known: dict[str, Any] = {"variance": variance} if takes and tree.get("variance") is None else {}
    return build(tree, trust=trust, **known, **arguments)


def restoration_report(job: Job[RestorationScorer]) -> Iterator[str]:
    """The results of a finished job, one line each: means over items, and the calibration of several draws."""
    table, scorer = job.table(), job.scorer
    for name, unit in {"psnr": " dB", "ssim": "", "misfit": ""}.items():
        good = np.isfinite(table[name])
        if good.any():
            mean, error = mean_and_error(means_over_repeats(table["index"][good], table[name][good])[1])
            yield f"{job.name}: {name} {mean:.4f} +- {error:.4f}{unit} of single draws"
    if diverged := int(np.isinf(table["misfit"]).sum()):
        yield f"{job.name}: {diverged} of {len(table['misfit'])} draws diverged, and have an infinite misfit"
    index, draws, truth = drawn(table, scorer.split)
    average = psnr(torch.from_numpy(draws.mean(0)), torch.from_numpy(truth), data_range=scorer.data_range)
    yield f"{job.name}: psnr {average.value:.4f} dB of the mean of {len(draws)} draws, over {len(index)} items"
    if len(draws) > 2:
        yield f"{job.name}: {calibration(draws, truth)}"
    evidence = repeats_of(table, index, "log_evidence").T
    if len(draws) > 1 and len(index) and np.isfinite(evidence).all():
        shift = evidence_shift(torch.from_numpy(draws).transpose(0, 1), torch.from_numpy(evidence))
        net = (shift.value.square().mean() - shift.null.square().mean()).clamp(min=0.0).sqrt()
        lost = "; some runs lost a mode: take more particles" if net > LOST else ""
        yield f"{job.name}: weighed by their evidence, draws move by {net:.2f} standard deviations beyond chance{lost}"
    yield f"{job.name}: {table['nfe'].mean():.0f} network calls and {table['vjps'].mean():.0f} products a draw"


def drawn(table: Columns, split: Source) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """The items with every repeat, their draws (R, N, *) and the truth (N, *), float64."""
    repeats = int(table["repeat"].max()) + 1
    index, counts = np.unique(table["index"], return_counts=True)
    index = index[counts == repeats]
    draws = repeats_of(table, index, "x").astype(np.float64)
    return index, draws, split[torch.from_numpy(index)][0].double().numpy()


def repeats_of(table: Columns, index: NDArray[np.int64], name: str) -> NDArray[Any]:
    """A column of some items, all of which have every repeat, with shape (R, N, *)."""
    order = np.lexsort((table["index"], table["repeat"]))
    matching = order[np.isin(table["index"][order], index)]
    column = table[name][matching]
    return column.reshape(-1, len(index), *column.shape[1:]) if len(index) else column[None]
