"""Trains a dequantiser for a model: `python scripts/dequantise.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from command import command, progress

from sde.evaluation.dequantiser_file import check_free, save_dequantiser
from sde.evaluation.dequantiser_training import Gain, bits, fit
from sde.evaluation.job_setup import data_of, split_of
from sde.instantiate import build
from sde.model import from_checkpoint
from sde.runtime import choose_device
from sde.storage.checkpoint import load_checkpoint, resolve, run_directory
from sde.storage.files import sha256

# What has no part in the dequantiser.
FREE = ("ckpt", "device", "n", "out", "overwrite", "trust")


@command("dequantiser_training")
def main(config: dict[str, Any]) -> None:
    path, trust, steps = resolve(config["ckpt"]), config["trust"], config["steps"]
    out = Path(config["out"] or run_directory(path) / "dequantiser.pt")
    check_free(out, overwrite=config["overwrite"])
    if type(steps) is not int or steps < 1:
        raise ValueError(f"expected a whole number steps >= 1, got steps={steps!r}")
    content, device = load_checkpoint(path), choose_device(config["device"])
    model = from_checkpoint(content, ema=config["ema"], device=device, trust=trust)
    if model.scaling.levels is None:
        raise ValueError("this model is of continuous data, which is not dequantised: there is nothing to learn")
    data = data_of(config.get("data"), content, trust=trust)
    train, kind = split_of(model, data, "train"), "test" if data.valid is None else "valid"
    density = build(config["density"], trust=trust)
    torch.manual_seed(config["seed"])
    tree = {"_target_": "sde.likelihood.VariationalDequantiser", "layers": config["layers"], "width": config["width"]}
    dequantiser = build(tree, shape=model.shape, levels=model.scaling.levels).to(device)
    settings = {key: config[key] for key in ("batch_size", "seed")}
    losses = fit(model, train, dequantiser, density, lr=config["lr"], **settings)
    others = split_of(model, data, kind)
    uniform = bits(model, others, density, n=config["n"], **settings)
    out.parent.mkdir(parents=True, exist_ok=True)

    def keep(steps: int) -> None:
        kept = {key: value for key, value in config.items() if key not in FREE} | {"steps": steps}
        save_dequantiser(out, dequantiser, checkpoint_sha256=sha256(path), settings=json.dumps(kept, sort_keys=True))

    mean, done = 0.0, 0
    try:
        for loss, bar in progress(itertools.islice(losses, steps), steps):
            done += 1
            mean += (loss - mean) / min(done, 50)
            bar.set_postfix_str(f"{mean:.4f} bits/dim", refresh=False)
    except KeyboardInterrupt:
        if done and not out.exists():  # part of a training serves, too, but not in place of a whole one
            keep(done)
            print(f"interrupted after step {done}; wrote {out}")
        raise
    gained = Gain.of(uniform, bits(model, others, density, dequantiser, n=config["n"], **settings))
    keep(steps)
    print(f"{data.name} {kind}: {gained}; wrote {out}")


if __name__ == "__main__":
    main()
