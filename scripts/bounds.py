"""The flow and the variational bounds side by side: `python scripts/bounds.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import command, progress

import sde
from sde.evaluation.bounds_job import default_chain, measure
from sde.evaluation.bounds_table import columns_of, lines, table
from sde.evaluation.job_setup import data_of, dequantiser_of, identity_of, split_of, stale, tolerance_of
from sde.evaluation.likelihood_job import join
from sde.evaluation.plots import against_flow
from sde.evaluation.sharding import Share
from sde.evaluation.shards import opened
from sde.instantiate import build
from sde.likelihood.truncation import default_end
from sde.model import from_checkpoint
from sde.runtime import choose_device
from sde.storage.checkpoint import load_checkpoint, resolve, run_directory
from sde.storage.store import read

# What may differ when a job is continued.
FREE = ("out", "device", "trust", "repeats", "n", "ckpt", "rank", "world")


@command("bounds")
def main(config: dict[str, Any]) -> None:
    path, trust, n = resolve(config["ckpt"]), config["trust"], config["n"]
    share = Share(config["rank"], config["world"])
    content, device = load_checkpoint(path), choose_device(share.device(config["device"]))
    model = from_checkpoint(content, ema=config["ema"], device=device, trust=trust)
    data = data_of(config.get("data"), content, trust=trust)
    split, columns = split_of(model, data, config["split"]), columns_of(config["measures"])
    if config["chain"] and config["steps"]:
        raise ValueError(f"expected steps or chain, got both: give chain.steps={config['steps']} alone")
    chain = build(config["chain"], trust=trust) if config["chain"] else default_chain(model.process, config["steps"])
    solver = build(config["solver"], trust=trust)
    dequantiser = dequantiser_of(config.get("dequantise"), model, trust=trust)
    if stale(config.get("dequantise"), dequantiser, path):
        print("this dequantiser was trained for another checkpoint; the bound holds, but may not be its tightest")
    keys = ("measures", "repeats", "batch_size", "n", "seed", "draws", "data_draws", "chain_draws")
    settings: dict[str, Any] = {"share": share} | {key: config[key] for key in keys}
    settings |= {"chain": chain, "solver": solver, "trace": build(config["trace"], trust=trust)}
    settings |= {"atol": tolerance_of(config["atol"], solver), "dequantiser": dequantiser}
    settings["end"] = default_end(model.process, model.scaling) if config["end"] == "auto" else config["end"]
    measure(model, split, **settings)  # refuses what does not fit, before a call of the network and any file
    identity = identity_of(config, FREE, path, model, dequantiser)
    identity |= {"chain": repr(chain), "data": split.fingerprint}
    identity["end"] = "t_min" if settings["end"] is None else settings["end"]
    notes = {"checkpoint": str(path), "sde_version": sde.__version__, "torch_version": str(torch.__version__)}
    out = Path(config["out"] or run_directory(path) / "likelihood" / f"{config['split']}-bounds.h5")
    out.parent.mkdir(parents=True, exist_ok=True)
    with opened(out, identity=identity, notes=notes, columns=columns, share=share) as target:
        rows, total = target.rows, len(split) if n is None else n
        left = share.pending(total, config["repeats"], config["batch_size"], target.done)
        batches = measure(model, split, done=target.done, **settings)
        for batch, bar in progress(batches, len(rows["index"]) + left, len(rows["index"]), unit="image"):
            target.store.append(batch)
            rows = join(rows, batch)
            means = (f"{line.name} {line.summary.bits_per_dim:.4f}" for line in lines(rows))
            bar.set_postfix_str(", ".join(means), refresh=False)
            bar.update(len(batch["index"]) - 1)
    rows = read(out).columns
    missing = config["repeats"] * total - len(rows["index"])
    if missing > 0:
        print(f"process {share.rank} of {share.world} is through; {missing} rows of others are missing")
        return
    print(f"{data.name} {config['split']}, {len(np.unique(rows['index']))} images, {len(rows['index'])} rows\n")
    print(f"{table(lines(rows))}\n")
    picture = out.with_suffix(".png")
    print(f"wrote {out}{f' and {picture.name}' if against_flow(picture, rows) else ''}")


if __name__ == "__main__":
    main()
