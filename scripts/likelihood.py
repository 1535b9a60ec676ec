"""Scores a split in bits/dim: `python scripts/likelihood.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from command import command, progress

import sde
from sde.build import build
from sde.checkpoint import load_checkpoint, resolve, run_directory
from sde.files import sha256
from sde.likelihood.job import COLUMNS, score, summarise
from sde.model import from_checkpoint
from sde.runtime import choose_device
from sde.store import Store, read

FREE = ("out", "device", "trust", "repeats", "n", "ckpt")  # what may differ when a job is continued


@command("likelihood")
def main(config: dict[str, Any]) -> None:
    path, trust = resolve(config["ckpt"]), config["trust"]
    content = load_checkpoint(path)
    model = from_checkpoint(content, ema=config["ema"], device=choose_device(config["device"]), trust=trust)
    data = build(config.get("data") or json.loads(content["config"])["data"], rooms=("sde.data",), trust=trust)
    split = data.split(config["split"])
    out = Path(config["out"] or run_directory(path) / "likelihood" / f"{config['split']}.h5")
    identity = {
        "config": json.dumps({key: value for key, value in config.items() if key not in FREE}, sort_keys=True),
        "checkpoint_sha256": sha256(path),
        "data": split.fingerprint,
        "dequantisation": "uniform" if model.scaling.levels else "none",
        "seed": config["seed"],
    }
    notes = {"checkpoint": str(path), "sde_version": sde.__version__, "torch_version": str(torch.__version__)}
    solver, trace = build(config["solver"], trust=trust), build(config["trace"], trust=trust)
    keys = ("repeats", "batch_size", "n", "seed", "atol")
    settings = {key: config[key] for key in keys}
    # Made first: what it refuses must not leave a file behind.
    rows = score(model, split, solver=solver, trace=trace, done=lambda repeat: store.done(repeat), **settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Store.open(out, COLUMNS, identity=identity, notes=notes, snapshot_every=4096) as store:
        total = config["repeats"] * (config["n"] or len(split))
        for batch, bar in progress(rows, total, len(store), unit="image"):
            store.append(batch)
            bar.set_postfix_str(f"{batch['bits_per_dim'].mean():.3f} bits/dim in this batch", refresh=False)
            bar.update(len(batch["index"]) - 1)
    print(f"{data.name} {config['split']}: {summarise(read(out).columns)}; wrote {out}")


if __name__ == "__main__":
    main()
