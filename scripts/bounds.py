"""Compares the flow with variational bounds: `python scripts/bounds.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from command import command, show, swept

from sde.evaluation import JobSetup, against_flow, bounds_job, summarise_measures, table, waiting
from sde.evaluation.job_setup import RESUMABLE_KEYS


@command("bounds")
def main(config: dict[str, Any]) -> None:
    setup = JobSetup.load(config, swept("split", *RESUMABLE_KEYS))
    job = bounds_job(setup)
    for remark in setup.remarks():
        print(remark)
    show(job.run(), unit="image")
    if text := waiting([job]):
        print(text)
        return
    rows, picture = job.table(), job.path.with_suffix(".png")
    print(f"{job.name}, {len(np.unique(rows['index']))} images, {len(rows['index'])} rows\n")
    dims = None if setup.model.scaling.levels else math.prod(setup.model.shape)
    print(f"{table(summarise_measures(rows), dims)}\n")
    print(f"wrote {job.path}{f' and {picture.name}' if against_flow(picture, rows) else ''}")


if __name__ == "__main__":
    main()
