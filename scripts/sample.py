"""Draws samples from a trained model: `python scripts/sample.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from command import command, conditions, draw, named_by, track, variant
from hydra.core.hydra_config import HydraConfig
from sheet import Sheet

import sde
from sde.evaluation.job_setup import guided_by
from sde.evaluation.outputs import IRRELEVANT_KEYS, relevant
from sde.instantiate import build
from sde.runtime import choose_device
from sde.storage.checkpoint import resolve, run_directory
from sde.storage.files import sha256

# The keys that the end of a default name leaves out: it has them in other words, or samples do not depend on them.
UNNAMED_KEYS = (*IRRELEVANT_KEYS, "seed", "batch_size")


def from_pilot(model: sde.Model, solver: Any, config: dict[str, Any], directory: Path, **how: Any) -> Any:
    """The solver that a pilot run designs or whose grid it tunes, or that an earlier command saved."""
    how["seconds"] = config["seconds"]
    if not config["design"]:
        return model.tuned(solver, directory, pilot=config["pilot"], **how)
    if any(key.startswith("solver") for key in HydraConfig.get().overrides.task):
        raise ValueError(f"design={config['design']} takes the place of a solver: leave out solver=")
    pilot = config["pilot"] or 256
    # The conditions that the samples will have, in turn.
    solver = model.designed(config["design"], directory, condition=conditions(model, config, pilot), pilot=pilot, **how)
    print(solver)
    return solver


@command("sample")
def main(config: dict[str, Any]) -> None:
    path, n, first = resolve(config["ckpt"]), config["n"], config["first"]
    solver = build(config["solver"], trust=config["trust"])
    device = choose_device(config["device"])
    model = sde.load(path, ema=config["ema"], device=device, trust=config["trust"])
    model = guided_by(config.get("guidance"), model, trust=config["trust"])
    condition = conditions(model, config, n, first)
    if config["design"] or config["pilot"]:
        with track("pilot run") as progress:
            solver = from_pilot(model, solver, config, run_directory(path), progress=progress)
    named = named_by(solver, "solver")
    name = f"{path.stem}-{type(solver).__name__}-seed{config['seed']}{variant(*UNNAMED_KEYS, *named)}.png"
    tuned = {"tuned": repr(solver)} if config["pilot"] or config["design"] else {}
    settings = relevant(config, "batch_size", "pilot", "design", "seconds", checkpoint_sha256=sha256(path), **tuned)
    sheet = Sheet(config, run_directory(path) / "samples" / name, settings)
    x = draw(
        model,
        n,
        solver=solver,
        condition=condition,
        **{key: config[key] for key in ("seed", "first", "denoise", "batch_size")},
    )
    # The density of a guided flow is none of the model's.
    shown = None if model.denoiser.guided else model
    written = sheet.write(x, model.scaling, model=shown, x=x.numpy(), index=np.arange(first, first + n))
    print(f"drew {n} samples of shape {tuple(x.shape[1:])}; {written}")


if __name__ == "__main__":
    main()
