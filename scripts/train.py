"""Trains a score model: `python scripts/train.py sde=vp`; `--help` lists the keys."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from command import command, draw, progress, read_yaml, swept, to_yaml
from omegaconf import OmegaConf

import sde
from sde.data import UnreadableSample
from sde.evaluation import QualityCheck
from sde.instantiate import build
from sde.plots import save_losses, save_samples
from sde.runtime import peak_memory
from sde.training.conditions import conditions_of
from sde.training.ranks import group, rank, size, together
from sde.training.run import RESUMABLE_KEYS, Run, opened
from sde.training.settings import rehearsing
from sde.training.signals import StopSignals

# The part of the default directory that the jobs of a sweep do not share, without keys that a run does not depend on.
UNNAMED_KEYS = ("data", "sde", *RESUMABLE_KEYS, "preview.", "solver@preview.", "evaluate.", "features@evaluate.")
OmegaConf.register_new_resolver("swept", lambda: swept(*UNNAMED_KEYS), replace=True)


@command("train")
def main(config: dict[str, Any]) -> None:
    with group(config["device"]) as device:
        config["device"] = device
        with opened(config["run_dir"], config, to_yaml(config), read_yaml) as run:
            train(config, run)


def train(config: dict[str, Any], run: Run) -> None:
    """Trains the model of a run, and draws a preview."""
    folder, say = run.directory, print if rank() == 0 else (lambda *_: None)
    solver = build(config["preview"]["solver"])
    torch.manual_seed(config["seed"])
    with together():
        data = build(config["data"], trust=config["trust"])
    quality: QualityCheck | None = None

    def rehearse(training: sde.Training) -> None:
        """Tries previews and checks of the quality before the first step."""
        nonlocal quality
        model = training.model(classes=run.classes)
        with together():
            if rank() == 0 and (config["preview"]["n"] or config["evaluate_every"]):
                with rehearsing("preview.solver"):
                    model.rehearse(solver=solver, condition=conditions_of(model.denoiser, run.data.test, 1))
            if rank() == 0 and config["evaluate_every"] and training.step < config["steps"]:
                with rehearsing("evaluate"):
                    quality = quality_check(config, run.data, solver)
                    quality.rehearse(model)

    training = run.start(data, rehearse)
    done = training.step >= config["steps"]
    latest: dict[str, float] = {}
    with contextlib.closing(run), StopSignals() as signals:
        # Without a terminal there is a line for each line of the metrics, which `set_postfix` writes.
        reports = progress(training.run(config["steps"]), config["steps"], training.step, every=math.inf)
        start = time.monotonic(), training.step
        for report, bar in saving(reports, run, training):
            if line := run.log(report, training):
                latest |= line
                shown: dict[str, str] = {
                    name: f"{latest[name]:.4f}" for name in ("loss", "valid_loss") if name in latest
                }
                speed = (report.step - start[1]) * config["batch_size"] / (time.monotonic() - start[0])
                memory = peak_memory(training.device) / 2**30
                bar.set_postfix(shown | {"samples/s": f"{speed:.0f}", "memory": f"{memory:.2f}GiB"})
            last = report.step == config["steps"]
            if (every := config["evaluate_every"]) and report.step % every == 0:
                model = training.model(classes=run.classes)
                if quality is not None:
                    run.scalars(report.step, quality(model))
            if not last and report.step % config["save_every"] == 0:
                run.save(training)
            if not last and (every := config["sample_every"]) and report.step % every == 0:
                model = training.model(classes=run.classes)
                preview(config, run, model, solver, report.step)
            if not last and (received := signals.received()) is not None:
                say(f"interrupted after step {training.step}; saved {run.save(training)}")
                if received == signal.SIGINT:
                    raise KeyboardInterrupt
                sys.exit(config["requeue_status"])
        path = run.save(training)
        picture = folder / "samples" / f"{path.stem}.png"
        if not done:
            run.save_averages(training)
        if rank() == 0:
            if run.metrics.exists():
                save_losses(folder / "loss.png", run.metrics)
            if config["preview"]["n"] and not (done and picture.exists()):
                model = sde.load(path, device=training.device, trust=config["trust"])
                preview(config, run, model, solver, training.step)
    if done:
        say(f"already at step {training.step}, nothing to do; {path} is there, and steps=N trains further")
        return
    others = {"samples/*.png": picture, "loss.png": folder / "loss.png", "metrics.jsonl": run.metrics}
    there = [name for name, file in others.items() if file.exists()]
    files = "; ".join([f"wrote {path}", *([f"{', '.join(there)} in {folder}"] if there else [])])
    say(f"trained to step {training.step}; {files}; last loss {latest.get('loss', report.loss):.4f}")


def quality_check(config: dict[str, Any], data: sde.data.DataSet, solver: sde.solvers.Solver) -> QualityCheck:
    """The check of the samples' quality every `evaluate_every` steps."""
    how = {key: config["evaluate"][key] for key in ("metrics", "n", "items", "seed")}
    return QualityCheck(data, build(config["evaluate"]["features"], trust=config["trust"]), solver=solver, **how)


def saving(reports: Iterable[Any], run: Run, training: sde.Training) -> Iterator[Any]:
    """The reports; a sample that cannot be read loses no step of a training in one process."""
    try:
        yield from reports
    except UnreadableSample:
        if size() == 1:  # others are in the middle of a step
            print(f"interrupted after step {training.step}; saved {run.save(training)}")
        raise


def preview(config: dict[str, Any], run: Run, model: sde.Model, solver: sde.solvers.Solver, step: int) -> None:
    """Draws samples at a step into the directory of the run; rank 0 alone does, and the others wait."""
    if rank() == 0 and (n := config["preview"]["n"]):
        picture = run.directory / "samples" / f"step_{step:08d}.png"
        condition = conditions_of(model.denoiser, run.data.test, n)
        x = draw(model, n, solver=solver, seed=config["preview"]["seed"], condition=condition)
        picture.parent.mkdir(exist_ok=True)
        save_samples(picture, x, model.scaling, model=model)
        run.picture(step, picture)


if __name__ == "__main__":
    main()
