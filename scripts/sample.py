"""Draws samples from a trained model: `python scripts/sample.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from command import command, draw, track, variant

import sde
from sde.evaluation.outputs import IRRELEVANT_KEYS, check_replaceable, relevant
from sde.instantiate import build
from sde.plots import save_samples
from sde.runtime import choose_device
from sde.storage.checkpoint import resolve, run_directory
from sde.storage.files import sha256, write_atomically

# The keys that the end of a default name leaves out: it has them in other words, or samples do not depend on them.
TOLD = (*IRRELEVANT_KEYS, "solver", "seed", "batch_size")


@command("sample")
def main(config: dict[str, Any]) -> None:
    path, n, first = resolve(config["ckpt"]), config["n"], config["first"]
    solver = build(config["solver"], trust=config["trust"])
    device = choose_device(config["device"])
    model = sde.load(path, ema=config["ema"], device=device, trust=config["trust"])
    if config.get("guidance"):
        guided = build(config["guidance"], trust=config["trust"], inner=model.denoiser)
        model = replace(model, denoiser=guided.to(device))
    if config["pilot"]:
        with track("pilot run") as progress:
            solver = model.tuned(solver, run_directory(path), pilot=config["pilot"], progress=progress)
    name = f"{path.stem}-{type(solver).__name__}-seed{config['seed']}{variant(*TOLD)}.png"
    out = Path(config["out"] or run_directory(path) / "samples" / name)
    values = out.with_suffix(".npz")
    tuned = {"tuned": repr(solver)} if config["pilot"] else {}
    settings = relevant(config, "batch_size", "pilot", checkpoint_sha256=sha256(path), **tuned)
    for file in (out, values):
        check_replaceable(file, settings, overwrite=config["overwrite"])
    x = draw(model, n, solver=solver, **{key: config[key] for key in ("seed", "first", "denoise", "batch_size")})
    out.parent.mkdir(parents=True, exist_ok=True)
    # The density of a guided flow is none of the model's.
    save_samples(out, x, model.scaling, settings=settings, model=None if model.denoiser.guided else model)
    arrays: dict[str, Any] = {"x": x.numpy(), "index": np.arange(first, first + n), "settings": json.dumps(settings)}
    write_atomically(values, lambda file: np.savez_compressed(file, **arrays))
    print(f"drew {n} samples of shape {tuple(x.shape[1:])}; wrote {out} and {values}")


if __name__ == "__main__":
    main()
