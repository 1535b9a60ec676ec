"""Trains a score model: `python scripts/train.py sde=vp`; `--help` lists the keys."""

from __future__ import annotations

import math
from typing import Any

import torch
from command import command, draw, progress, read_yaml, swept, to_yaml
from omegaconf import OmegaConf

import sde
from sde.data import UnreadableSample
from sde.instantiate import build
from sde.plots import save_losses, save_samples
from sde.training.run import RESUMABLE_KEYS, Run, opened

# The part of the default directory that the jobs of a sweep do not share, without keys that a run does not depend on.
TOLD = ("data", "sde", *RESUMABLE_KEYS, "preview.", "solver@preview.")
OmegaConf.register_new_resolver("swept", lambda: swept(*TOLD), replace=True)


@command("train")
def main(config: dict[str, Any]) -> None:
    with opened(config["run_dir"], config, to_yaml(config), read_yaml) as run:
        train(config, run)


def train(config: dict[str, Any], run: Run) -> None:
    """Trains the model of a run, and draws a preview."""
    folder = run.directory
    solver = build(config["preview"]["solver"])
    torch.manual_seed(config["seed"])
    training = run.start(build(config["data"], trust=config["trust"]))
    done = training.step >= config["steps"]
    latest: dict[str, float] = {}
    try:
        # Without a terminal there is a line for each line of the metrics, which `set_postfix` writes.
        for report, bar in progress(training.run(config["steps"]), config["steps"], training.step, every=math.inf):
            if line := run.log(report, training):
                latest |= line
                bar.set_postfix({name: f"{latest[name]:.4f}" for name in ("loss", "valid_loss") if name in latest})
            if report.step % config["save_every"] == 0 and report.step < config["steps"]:
                run.save(training)
    except (KeyboardInterrupt, UnreadableSample):
        print(f"interrupted after step {training.step}; saved {run.save(training)}")
        raise
    path = run.save(training)
    save_losses(folder / "loss.png", run.metrics)
    picture = folder / "samples" / f"{path.stem}.png"
    if config["preview"]["n"] and not (done and picture.exists()):
        model = sde.load(path, device=training.device, trust=config["trust"])
        x = draw(model, config["preview"]["n"], solver=solver, seed=config["preview"]["seed"])
        picture.parent.mkdir(exist_ok=True)
        save_samples(picture, x, model.scaling, model=model)
    if done:
        print(f"already at step {training.step}, nothing to do; {path} is there, and steps=N trains further")
        return
    files = f"{path}, samples/*.png, loss.png and metrics.jsonl in {folder}"
    print(f"trained to step {training.step}; wrote {files}; last loss {latest.get('loss', report.loss):.4f}")


if __name__ == "__main__":
    main()
