"""Checks a model's likelihoods: `python scripts/diagnose.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from command import command, progress

from sde.evaluation.job_setup import data_of, split_of, tolerance_of
from sde.evaluation.likelihood_job import score, states
from sde.instantiate import build
from sde.likelihood.diagnostics import calibration, round_trip
from sde.model import from_checkpoint
from sde.plots import save_diagnostics
from sde.runtime import choose_device
from sde.storage.checkpoint import load_checkpoint, resolve, run_directory


@command("diagnose")
def main(config: dict[str, Any]) -> None:
    path, trust, seed = resolve(config["ckpt"]), config["trust"], config["seed"]
    content = load_checkpoint(path)
    model = from_checkpoint(content, ema=config["ema"], device=choose_device(config["device"]), trust=trust)
    data = data_of(config.get("data"), content, trust=trust)
    split = split_of(model, data, config["split"])
    solver, trace = build(config["solver"], trust=trust), build(config["trace"], trust=trust)
    settings: dict[str, Any] = {"solver": solver, "trace": trace, "seed": seed}
    settings["atol"] = tolerance_of(config["atol"], solver)
    score(model, split, n=config["n"], **settings)  # refuses what does not fit, before a call of the network
    index = torch.arange(config["n"])
    made, condition = states(model, split, index, seed=seed)
    given: dict[str, Any] = {"index": index, "condition": condition}
    times = calibration(model.denoiser, made.x, times=config["times"], seed=seed, **given)
    trip = round_trip(model.denoiser, made.x, **settings, **given)
    print(f"{data.name} {config['split']}, {trip}\n\n      t  log-SNR  measured  predicted  gap +- standard error   z")
    found = []
    for row, _ in progress(times, config["times"], unit="time"):
        print(row)
        found.append(row)
    out = Path(config["out"] or run_directory(path) / "likelihood" / f"{config['split']}-diagnostics.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_diagnostics(out, trip, found)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
