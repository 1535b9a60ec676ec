r"""Restorations of a model's test items by every method: the tables and pictures in the documentation.

    python benchmarks/restorations.py --run runs/digits-vp --items 8
    python benchmarks/restorations.py --run runs/xray --items 4 --tasks inpaint-box super-resolution denoise

Each pair of a task and a method is stored when it is done, and the same command continues. PSNR and SSIM are those of
single draws, and the PSNR of the mean of the draws; a sampler of the posterior has the calibrated intervals, not the
best PSNR. With 19 draws the interval between the smallest and the largest one has a probability of 90 %. Seconds are
those of the processor for one draw.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sde
from sde.evaluation import (
    Colourise,
    Deblur,
    Denoise,
    Inpaint,
    RestorationScorer,
    SuperResolution,
    Task,
    calibration,
)
from sde.evaluation.restoration_job import drawn
from sde.evaluation.summary import mean_and_error
from sde.grids import LogSNR
from sde.instantiate import build
from sde.measurement import DPS, MMPS, DiffPIR, PiGDM, Unguided, Variance
from sde.metrics import psnr
from sde.plots import save_restorations
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
    "Particles(50, 16), polished": (DiffPIR, lambda v: Particles(50, 16, variance=v), True),
    "DiffPIR, 100 steps": (DiffPIR, lambda v: Ancestral(100, grid=GRID), False),
    "PiGDM, 100 steps": (PiGDM, lambda v: Ancestral(100, grid=GRID), False),
    "MMPS, 50 steps": (MMPS, lambda v: Ancestral(50, grid=GRID), False),
    "DPS, scale 0.3, 200 steps": (partial(DPS, scale=0.3), lambda v: Ancestral(200), False),
    "Decoupled, 200 steps": (Unguided, lambda v: Decoupled(200, variance=v), False),
    "Replacement, 20 steps of 10": (Unguided, lambda v: Replacement(Ancestral(20, grid=GRID), 10), False),
}


def scored(scorer: RestorationScorer, items: int, draws: int) -> dict[str, np.ndarray[Any, Any]]:
    """The rows of so many items and draws."""
    index = torch.arange(items)
    parts = [
        scorer.rows(index, repeat) | {"index": np.arange(items), "repeat": np.full(items, repeat)}
        for repeat in range(draws)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def cells(scorer: RestorationScorer, table: Mapping[str, Any], seconds: float) -> list[str]:
    """What a method did, in the order of HEAD."""
    _, draws, truth = drawn(table, scorer.split)
    means = {name: np.mean(table[name].reshape(len(draws), -1), 0) for name in ("psnr", "ssim", "misfit")}
    found = {name: mean_and_error(values) for name, values in means.items()}
    whole = psnr(torch.from_numpy(draws.mean(0)), torch.from_numpy(truth), data_range=scorer.data_range)
    covered = calibration(draws, truth)
    return [
        f"{found['psnr'][0]:.1f} ± {found['psnr'][1]:.1f}",
        f"{whole.value:.1f}",
        f"{found['ssim'][0]:.3f}",
        f"{found['misfit'][0]:.2f}",
        f"{100 * covered.coverage:.0f} ± {100 * covered.standard_error:.0f} (of {100 * covered.nominal:.0f})",
        f"{table['nfe'].mean():.0f}",
        f"{table['vjps'].mean():.0f}",
        f"{seconds:.2f}",
    ]


HEAD = ["task", "method", "PSNR", "of the mean", "SSIM", "misfit", "coverage %", "calls", "products", "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/digits-vp")
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--draws", type=int, default=19)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[name for name in TASKS if name != "colourise"])
    parser.add_argument("--out", type=Path, default=Path("docs/_generated/restorations"))
    a = parser.parse_args()
    path = resolve(a.run)
    model, tree = sde.load(path), json.loads(load_checkpoint(path)["config"])["data"]
    split = build(tree, rooms=("sde.data",)).test
    variance = model.pilot(a.run if Path(a.run).is_dir() else None)
    name = Path(a.run).name
    a.out.mkdir(parents=True, exist_ok=True)
    cache = a.out / f"{name}.json"
    key = {"model": sha256(path), "items": a.items, "draws": a.draws}
    known = json.loads(cache.read_text()) if cache.exists() else {"key": key, "rows": {}}
    if known["key"] != key:
        raise SystemExit(f"{cache} has results of other settings: expected {key}, got {known['key']}; remove it")
    for task in a.tasks:
        scorer = RestorationScorer(model, split, Inpaint(), variance=variance)
        scorer = replace(scorer, task=TASKS[task](scorer.data_range))
        for label, (method, solver, polished) in METHODS.items():
            if label in known["rows"].get(task, {}):
                continue
            polishing = Polish(Ancestral(8, grid=GRID)) if polished else None
            weighed = (lambda d, y, m=method: m(d, y, variance)) if method is DiffPIR else method
            one = replace(scorer, method=weighed, solver=solver(variance), polishing=polishing)
            start = time.process_time()
            table = scored(one, a.items, a.draws)
            row = cells(one, table, (time.process_time() - start) / (a.items * a.draws))
            known["rows"].setdefault(task, {})[label] = row
            text = json.dumps(known, indent=1)
            write_atomically(cache, lambda file, text=text: file.write(text.encode()))
            print(task, label, *row, sep=" | ", flush=True)
            if label == "Particles(50, 16)":
                save_restorations(a.out / f"{name}-{task}.png", one, table, n=3)
    rows = [[task, label, *row] for task, found in known["rows"].items() for label, row in found.items()]
    lines = [" | ".join(line) for line in (HEAD, ["---"] * len(HEAD), *rows)]
    table_text = "".join(f"| {line} |\n" for line in lines)
    write_atomically(a.out / f"{name}.md", lambda file: file.write(table_text.encode()))


if __name__ == "__main__":
    main()
