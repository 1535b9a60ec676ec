"""Trains a score model: `python scripts/train.py sde=vp`; `--help` lists the keys."""

from __future__ import annotations

from typing import Any

import torch
from command import command, progress, read_yaml, swept, to_yaml
from omegaconf import OmegaConf

import sde
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
    try:
        for report, bar in progress(training.run(config["steps"]), config["steps"], training.step):
            line = run.log(report, training)
            if "loss" in line:
                bar.set_postfix(loss=f"{line['loss']:.4f}")
            if report.step % config["save_every"] == 0 and report.step < config["steps"]:
                run.save(training)
    except KeyboardInterrupt:
        print(f"interrupted after step {training.step}; saved {run.save(training)}")
        raise
    path = run.save(training)
    save_losses(folder / "loss.png", run.metrics)
    if config["preview"]["n"]:
        model = sde.load(path, device=training.device, trust=config["trust"])
        picture = folder / "samples" / f"{path.stem}.png"
        picture.parent.mkdir(exist_ok=True)
        save_samples(picture, model.sample(config["preview"]["n"], solver=solver, seed=config["seed"]), model.scaling)
    print(f"trained to step {training.step}; wrote {path}, samples/*.png, loss.png and metrics.jsonl in {folder}")


if __name__ == "__main__":
    main()
