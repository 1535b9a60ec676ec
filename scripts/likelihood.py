"""Scores a split in bits/dim: `python scripts/likelihood.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

import math
from typing import Any

from command import command, show, swept

from sde.evaluation import JobSetup, forecast, likelihood_jobs, report, waiting
from sde.evaluation.job_setup import RESUMABLE_KEYS
from sde.plots import save_likelihoods


@command("likelihood")
def main(config: dict[str, Any]) -> None:
    setup = JobSetup.load(config, swept("split", *RESUMABLE_KEYS, "budget", "dry_run"))
    jobs = likelihood_jobs(setup)
    for remark in setup.remarks():
        print(remark)
    if config["dry_run"]:
        for job in jobs:
            print(f"{job.name}: {forecast(job.scorer, job.plan, job.done)}")
        return
    for job in jobs:
        show(job.run(), unit="image")
    if text := waiting(jobs):
        print(text)
        return
    tables = {job.name: job.table() for job in jobs}
    save_likelihoods(jobs[-1].path, setup.model.process, math.prod(setup.model.shape), tables)
    for line in report(jobs, budget=config["budget"]):
        print(line)


if __name__ == "__main__":
    main()
