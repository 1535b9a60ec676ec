"""Scores a split in bits/dim: `python scripts/likelihood.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

import math
from typing import Any

from command import command, show, swept, track

from sde.evaluation import JobSetup, budget_report, forecast, likelihood_jobs, report, waiting, with_accuracy
from sde.evaluation.job_setup import RESUMABLE_KEYS
from sde.plots import save_likelihoods


@command("likelihood")
def main(config: dict[str, Any]) -> None:
    setup = JobSetup.load(config, swept("split", *RESUMABLE_KEYS, "budget", "dry_run"))
    with track("pilot run") as progress:
        jobs = with_accuracy(setup, likelihood_jobs(setup, progress=progress), progress)
    for remark in (*setup.remarks(), *filter(None, [jobs[0].metadata.get("chosen")])):
        print(remark)
    if config["dry_run"]:
        for job in jobs:
            samples = config["budget"] if job is jobs[0] else 0
            print(f"{job.name}: {forecast(job.scorer, job.plan, job.done, budget=samples)}")
        return
    for job in jobs:
        show(job.run(), unit="image")
    if text := waiting(jobs):
        print(text)
        return
    tables = {job.name: job.table() for job in jobs}
    save_likelihoods(jobs[-1].path, setup.model.process, math.prod(setup.model.shape), tables)
    for line in report(jobs):
        print(line, flush=True)
    with track("error budget") as progress:
        budget = budget_report(jobs[0], config["budget"], progress=progress)
    if budget:
        print(budget)


if __name__ == "__main__":
    main()
