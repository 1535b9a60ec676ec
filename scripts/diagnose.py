"""Checks a model's likelihoods: `python scripts/diagnose.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

from typing import Any

import torch
from command import command, progress, swept, track

from sde.evaluation import BatchPlan, JobSetup, flow_scorer
from sde.evaluation.outputs import IRRELEVANT_KEYS, check_replaceable, relevant
from sde.likelihood.diagnostics import calibration, round_trip
from sde.plots import save_diagnostics


@command("diagnose")
def main(config: dict[str, Any]) -> None:
    setup, seed = JobSetup.load(config, swept("split", *IRRELEVANT_KEYS)), config["seed"]
    split, denoiser = setup.split(config["split"]), setup.model.denoiser
    scorer, plan = flow_scorer(setup, split), BatchPlan(len(split), config["n"])
    out = setup.output("-diagnostics.png")
    settings = relevant(config, checkpoint_sha256=setup.sha256, data=split.fingerprint)
    check_replaceable(out, settings, overwrite=config["overwrite"])
    index = torch.arange(plan.samples, device="cpu")
    batch, condition = scorer.batch(index)
    samples: dict[str, Any] = {"index": index, "condition": condition}
    times = calibration(denoiser, batch.x, times=config["times"], seed=seed, **samples)
    with track("round trip") as done:
        trip = round_trip(denoiser, batch.x, progress=done, **scorer.settings, **samples)
    print(f"{setup.name}, {trip}\n")
    print("      t  log-SNR  measured  predicted  gap +- standard error   z")
    rows = []
    for row, _ in progress(times, config["times"], unit="time"):
        print(row)
        rows.append(row)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_diagnostics(out, trip, rows, settings=settings)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
