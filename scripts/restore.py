"""Restores data from measurements of it: `python scripts/restore.py ckpt=PATH task=NAME`; `--help` lists the keys."""

from __future__ import annotations

from typing import Any

from command import command, show, swept_checkpoint, track, variant

from sde.evaluation import JobSetup, restoration_job, restoration_report, waiting
from sde.evaluation.job_setup import RESUMABLE_KEYS
from sde.plots import save_restorations


@command("restore")
def main(config: dict[str, Any]) -> None:
    setup = JobSetup.load(config, variant(*RESUMABLE_KEYS, "split", "shown") + swept_checkpoint())
    with track("pilot run") as progress:
        job = restoration_job(setup, progress=progress)
    show(job.run(), unit="draw")
    if text := waiting([job]):
        print(text)
        return
    for line in restoration_report(job):
        print(line, flush=True)
    if config["shown"]:
        save_restorations(job.path.with_suffix(".png"), job.scorer, job.table(), n=config["shown"])
    print(f"wrote {job.path}")


if __name__ == "__main__":
    main()
