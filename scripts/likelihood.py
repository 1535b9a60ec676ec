"""Scores a split in bits/dim: `python scripts/likelihood.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from command import command, progress

import sde
from sde.evaluation.error_budget import errors_of, some
from sde.evaluation.forecast import forecast
from sde.evaluation.importance_weighting import is_exact, weighted
from sde.evaluation.job_setup import data_of, dequantiser_of, identity_of, other_split, split_of, stale, tolerance_of
from sde.evaluation.likelihood_job import join, score, summarise, tuned
from sde.evaluation.out_of_distribution import detect
from sde.evaluation.sharding import Share
from sde.evaluation.shards import done_in, opened
from sde.instantiate import build
from sde.model import from_checkpoint
from sde.plots import save_likelihoods
from sde.runtime import choose_device
from sde.storage.checkpoint import load_checkpoint, resolve, run_directory
from sde.storage.store import read

# What may differ when a job is continued.
FREE = ("out", "device", "trust", "repeats", "n", "ckpt", "rank", "world", "dry_run", "ood", "ood_array", "budget")


@command("likelihood")
def main(config: dict[str, Any]) -> None:
    path, trust, share = resolve(config["ckpt"]), config["trust"], Share(config["rank"], config["world"])
    content, device = load_checkpoint(path), choose_device(share.device(config["device"]))
    model = from_checkpoint(content, ema=config["ema"], device=device, trust=trust)
    data = data_of(config.get("data"), content, trust=trust)
    splits = {f"{data.name} {config['split']}": split_of(model, data, config["split"])}
    splits |= other_split(model, config.get("ood"), config["ood_array"], config["split"], trust=trust)
    run = run_directory(path)
    out = Path(config["out"] or run / "likelihood" / f"{config['split']}.h5")
    files = [out, *(out.with_name(f"{out.stem}-{name.replace(' ', '-')}.h5") for name in list(splits)[1:])]
    solver, trace = build(config["solver"], trust=trust), build(config["trace"], trust=trust)
    dequantiser = dequantiser_of(config.get("dequantise"), model, trust=trust)
    if stale(config.get("dequantise"), dequantiser, path):
        print("this dequantiser was trained for another checkpoint; the bound holds, but may not be its tightest")
    settings = {key: config[key] for key in ("repeats", "batch_size", "seed")}
    settings |= {"trace": trace, "atol": tolerance_of(config["atol"], solver), "dequantiser": dequantiser}
    sizes = [config["n"], *(config["n"] and min(config["n"], len(split)) for split in list(splits.values())[1:])]
    for split, n in zip(splits.values(), sizes):  # what can be refused is, before a call of the network and any file
        score(model, split, n=n, solver=solver, share=share, **settings)
    identity = identity_of(config, FREE, path, model, dequantiser)
    notes = {"checkpoint": str(path), "sde_version": sde.__version__, "torch_version": str(torch.__version__)}
    if config["pilot"]:
        where: dict[str, Any] = {"directory": run, "keep": not config["dry_run"]}
        solver = tuned(model, data.train, solver, trace, pilot=config["pilot"], seed=config["seed"], **where)
        identity["solver"] = repr(solver)
    for (name, split), file, n in zip(splits.items(), files, sizes):
        if config["dry_run"]:
            settings |= {"solver": solver, "share": share, "done": done_in(file)}
            print(f"{name}: {forecast(model, split, n=n, **settings)}")
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        with opened(file, identity={**identity, "data": split.fingerprint}, notes=notes, share=share) as target:
            rows, total = target.rows, n or len(split)
            left = share.pending(total, config["repeats"], config["batch_size"], target.done)
            batches = score(model, split, n=n, solver=solver, share=share, done=target.done, **settings)
            for batch, bar in progress(batches, len(rows["index"]) + left, len(rows["index"]), unit="image"):
                target.store.append(batch)
                rows = join(rows, batch)
                bar.set_postfix_str(summarise(rows).short, refresh=False)
                bar.update(len(batch["index"]) - 1)
    if config["dry_run"]:
        return
    found = {name: read(file).columns for name, file in zip(splits, files)}
    wanted = [config["repeats"] * (n or len(split)) for split, n in zip(splits.values(), sizes)]
    missing = sum(max(0, total - len(rows["index"])) for total, rows in zip(wanted, found.values()))
    if missing > 0:
        print(f"process {share.rank} of {share.world} is through; {missing} rows of others are missing")
        return
    save_likelihoods(out, model.process, math.prod(model.shape), found)
    if len(found) > 1:
        for statistic, detection in detect(*found.values()).items():
            print(f"AUROC by {statistic}: {detection}")
    name, own = next(iter(splits.items()))
    index = some(found[name], config["budget"])
    if len(index):
        kept = {key: settings[key] for key in ("seed", "trace", "atol", "dequantiser")}
        print(f"{name}: {errors_of(model, own, index, solver=solver, **kept)}")
    if model.scaling.levels and config["repeats"] > 1:
        if is_exact(found[name]):
            print(f"{name}: {weighted(found[name], math.prod(model.shape), config['repeats'])}")
        else:
            print(f"{name}: for the tighter importance-weighted bound of the repeats score with trace=exact")
    for (name, columns), file in reversed(list(zip(found.items(), files))):
        print(f"{name}: {summarise(columns)}; wrote {file}")


if __name__ == "__main__":
    main()
