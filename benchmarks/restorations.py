r"""Restorations of test items by every method: the tables and pictures in the documentation.

    python scripts/train.py data=false_colours network.width=24 optimizer.lr=1e-3 decay=cosine steps=1800 \
        run_dir=runs/coloured-digits
    python benchmarks/restorations.py --runs runs/digits-vp runs/coloured-digits --name digits
    python benchmarks/restorations.py --runs runs/xray --name xray --items 3 --tasks inpaint-box super-resolution

Models of grey images restore those, models of coloured ones their colours. Each pair of a task and a method is stored
in the run when it is done, and the same command continues. PSNR and SSIM are those of single draws, and the PSNR of the
mean of the draws; a sampler of the posterior has the calibrated intervals, not the best PSNR. With 19 draws the
interval between the smallest and the largest one has a probability of 90 %. Seconds are those of the processor for one
draw, of which all of a task are drawn together.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import sde
from sde.data import Source
from sde.evaluation import (
    Colourise,
    Deblur,
    Denoise,
    Inpaint,
    SuperResolution,
    Task,
    calibration,
)
from sde.evaluation.restoration_tasks import measure
from sde.evaluation.summary import mean_and_error
from sde.grids import LogSNR
from sde.instantiate import build
from sde.measurement import DPS, MMPS, DiffPIR, PiGDM, Unguided, Variance
from sde.metrics import psnr, ssim
from sde.metrics.fidelity import fitting_window
from sde.plots import image_grid
from sde.plots.figures import image_figure
from sde.plots.restorations import restoration_rows
from sde.solvers import Ancestral, Decoupled, Particles, Polish, Replacement, Solver
from sde.storage.checkpoint import load_checkpoint, resolve
from sde.storage.files import sha256, write_atomically

# The noise is a share of the range of the levels.
TASKS: Mapping[str, Callable[[float], Task]] = {
    "inpaint-box": lambda extent: Inpaint(0.03 * extent, "box", 0.25),
    "inpaint-half": lambda extent: Inpaint(0.03 * extent, "half", 0.5),
    "inpaint-random": lambda extent: Inpaint(0.03 * extent, "random", 0.7),
    "super-resolution": lambda extent: SuperResolution(0.03 * extent),
    "deblur": lambda extent: Deblur(0.03 * extent, 1.0),
    "denoise": lambda extent: Denoise(0.25 * extent),
    "colourise": lambda extent: Colourise(0.01 * extent),
}
GRID = LogSNR()
METHODS: Mapping[str, tuple[Any, Callable[[Variance], Solver], bool]] = {
    "Particles(50, 16)": (DiffPIR, lambda v: Particles(50, 16, variance=v), False),
    "DiffPIR, 100 steps": (DiffPIR, lambda v: Ancestral(100, grid=GRID), False),
    "PiGDM, 100 steps": (PiGDM, lambda v: Ancestral(100, grid=GRID), False),
    "PiGDM, 100 steps, polished": (PiGDM, lambda v: Ancestral(100, grid=GRID), True),
    "MMPS, 50 steps": (MMPS, lambda v: Ancestral(50, grid=GRID), False),
    "DPS, scale 0.3, 200 steps": (partial(DPS, scale=0.3), lambda v: Ancestral(200), False),
    "Decoupled, 200 steps": (Unguided, lambda v: Decoupled(200, variance=v), False),
    "Replacement, 20 steps of 10": (Unguided, lambda v: Replacement(Ancestral(20, grid=GRID), 10), False),
}
SHOWN = "Particles(50, 16)"
HEAD = ["task", "method", "PSNR", "of the mean", "SSIM", "misfit", "coverage %", "calls", "products", "seconds"]


def restored(
    model: sde.Model, split: Source, variance: Variance, task: Task, way: str, items: int, draws: int, batch: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The draws (R, N, *) of a method, its misfits and costs (N, R), and the processor's seconds for one draw."""
    method, solver, polished = METHODS[way]
    index = torch.arange(items)
    operator, y = measure(task, split[index][0], index, 0)
    # Particles weigh by the pilot's variance; other methods have their own rule for it, or none.
    guide = partial(method, variance=variance) if way == SHOWN else method
    polishing = Polish(Ancestral(8, grid=GRID)) if polished else None
    how: dict[str, Any] = {"method": guide, "solver": solver(variance), "polishing": polishing, "variance": variance}
    start = time.process_time()
    r = model.restore(y, operator, task.noise, n=draws, index=index, batch_size=batch, **how)
    seconds = (time.process_time() - start) / (items * draws)
    rows = {name: getattr(r, name).numpy() for name in ("misfit", "nfe", "vjps")}
    return {"x": r.x.transpose(0, 1).contiguous().numpy(), "seconds": np.array(seconds), **rows}


def cells(results: Mapping[str, Any], truth: torch.Tensor, extent: float) -> list[str]:
    """The results of a method, in the order of HEAD."""
    draws = torch.from_numpy(results["x"]).double()
    each, repeated = draws.flatten(0, 1), truth.expand_as(draws).flatten(0, 1)
    single = {
        "psnr": psnr(each, repeated, data_range=extent).per_item,
        "ssim": ssim(each, repeated, data_range=extent, window=fitting_window(each)).per_item,
    }
    means = {name: np.asarray(values).reshape(len(draws), -1).mean(0) for name, values in single.items()}
    covered = calibration(draws.numpy(), truth.numpy())
    quality, error = mean_and_error(means["psnr"])
    good = np.isfinite(results["misfit"])
    diverged = int((~good).sum())
    return [
        f"{quality:.1f} ± {error:.1f}",
        f"{psnr(draws.mean(0), truth, data_range=extent).value:.1f}",
        f"{means['ssim'].mean():.3f}",
        f"{results['misfit'][good].mean():.2f}" + f" ({diverged} diverged)" * (diverged > 0),
        f"{100 * covered.coverage:.0f} ± {100 * covered.standard_error:.0f}",
        f"{results['nfe'].mean():.0f}",
        f"{results['vjps'].mean():.0f}",
        f"{float(results['seconds']):.2f}",
    ]


def stored(path: Path, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The content of a file, which is made if there is none."""
    text = json.dumps(key, sort_keys=True)
    if not path.exists():
        computed = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: np.savez_compressed(file, key=text, **computed))
    with np.load(path, allow_pickle=False) as archive:
        if str(archive["key"]) != text:
            raise SystemExit(f"{path} has results of other settings: expected {text}, got {archive['key']}; remove it")
        return {name: archive[name] for name in archive.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, default=[Path("runs/digits-vp")])
    parser.add_argument("--name", default="digits", help="of the table and the pictures")
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--draws", type=int, default=19)
    parser.add_argument("--batch", type=int, default=152, help="draws in memory at a time")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--enlarge", type=int, default=7, help="pixels of the pictures for one of the data")
    parser.add_argument("--picture-items", type=int, nargs="+", default=[0], help="items in the picture of all tasks")
    parser.add_argument("--stored", action="store_true", help="table and picture of what is stored, without more")
    parser.add_argument("--out", type=Path, default=Path("docs/_generated/restorations"))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    lines, pictures, names, titles = [], [], [], []
    for run in a.runs:
        path = resolve(run)
        model, tree = sde.load(path), json.loads(load_checkpoint(path)["config"])["data"]
        split, scaling = build(tree, rooms=("sde.data",)).test, model.scaling
        if scaling.levels is None or len(model.shape) != 3:
            raise SystemExit(f"{run}: expected a model of images with levels, got data of shape {model.shape}")
        variance, extent = model.pilot(run if run.is_dir() else None), scaling.levels - 1.0
        index = torch.arange(a.items)
        truth = split[index][0].double()
        key = {"model": sha256(path), "items": a.items, "draws": a.draws}
        for name in a.tasks:
            if (name == "colourise") != (model.shape[0] == 3):
                continue
            task = TASKS[name](extent)
            for way in a.methods:
                file = run / "restorations" / "benchmark" / f"{name}-{re.sub(r'[^a-z0-9]+', '-', way.lower())}.npz"
                if a.stored and not file.exists():
                    continue
                make = partial(restored, model, split, variance, task, way, a.items, a.draws, a.batch)
                results = stored(file, {**key, "task": repr(task), "way": way}, make)
                lines.append([name, way, *cells(results, truth, extent)])
                print(*lines[-1], sep=" | ", flush=True)
                if way == SHOWN:
                    draws, kept = torch.from_numpy(results["x"]).double(), torch.tensor(a.picture_items)
                    rows, titles = restoration_rows(task, scaling, kept, truth[kept], draws[:, kept])
                    pictures.append(rows / extent)
                    names += [name.replace("-", "\n", 1), *[""] * (len(kept) - 1)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in (HEAD, ["---"] * len(HEAD), *lines))
    write_atomically(a.out / f"{a.name}.md", lambda file: file.write(table.encode()))
    if pictures:
        image = image_grid((255.0 * torch.cat(pictures)).flatten(0, 1), 256, len(titles))
        size = (a.enlarge * image.width, a.enlarge * image.height)
        image_figure(image.resize(size, Image.Resampling.NEAREST), titles, names).savefig(a.out / f"{a.name}.png")


if __name__ == "__main__":
    main()
