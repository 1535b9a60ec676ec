r"""Likelihood jobs at a stated error: a pilot chooses the solver before the first row.

The rows of the pilot come from the training split; those that confirm it are spread over the rows to score. What was
chosen is an attribute of the result file, which belongs to the key of the job: the same command and other processes
take it from there.
"""

from __future__ import annotations

__all__ = ["with_accuracy"]

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..data import Source
from ..runtime import exact_float32
from ..storage.store import read
from ..tuning import Choice, PilotRows, choose_solver
from ..tuning.likelihood import CONFIRMED, PILOT
from .job import Job
from .job_setup import JobSetup
from .likelihood_job import FlowScorer, accuracy_asked, batch_states, check_data
from .shards import opened

# How long a process waits for the choice of the first one, in seconds.
PATIENCE = 3600.0


def with_accuracy(
    setup: JobSetup, jobs: Sequence[Job[FlowScorer]], progress: Callable[[float], object] | None = None
) -> list[Job[FlowScorer]]:
    """The jobs with the solver that their file names, or that a pilot chooses; as they are if no error is stated.

    Args:
        setup: the setup.
        jobs: the jobs, the first one with the data for which the solver is chosen.
        progress: called with the fraction of the pilot that is done.
    """
    if not accuracy_asked(setup):
        return [*jobs]
    first = jobs[0]
    text = _stored(first.path)
    if text is None and first.plan.shard.rank:
        text = _awaited(first.path)
    choice = Choice.from_json(text) if text is not None else _chosen(setup, first, progress)
    done = []
    for job in jobs:
        scorer = replace(job.scorer, solver=choice.solver, atol=choice.atol)
        key, metadata = {**job.key, "choice": choice.to_json()}, {**job.metadata, "chosen": str(choice)}
        done.append(replace(job, scorer=scorer, key=key, metadata=metadata))
        done[-1].check()
    if text is None and first.plan.shard.world > 1 and not setup.config["dry_run"]:
        first.path.parent.mkdir(parents=True, exist_ok=True)
        with opened(first.path, columns=done[0].scorer.columns, key=done[0].key, metadata=done[0].metadata):
            pass  # the file is there with its attributes, for the other processes
    return done


def _chosen(setup: JobSetup, job: Job[FlowScorer], progress: Callable[[float], object] | None) -> Choice:
    scorer, train, config = job.scorer, setup.data.train, setup.config
    check_data(scorer.model, train)

    def rows(split: Source, index: Tensor) -> PilotRows:
        states, condition = batch_states(scorer.model, split, index, scorer.dequantiser, seed=scorer.seed)
        return PilotRows(states.x, states.keys, condition)

    n = job.plan.samples
    unseen = torch.linspace(0, n - 1, min(CONFIRMED, n), device="cpu").round().long()
    with exact_float32():
        return choose_solver(
            scorer.model.denoiser,
            rows(train, torch.arange(min(PILOT, len(train)), device="cpu")),
            rows(scorer.split, unseen),
            n * job.plan.repeats,
            error=config.get("error"),
            error_per_image=config.get("error_per_image"),
            trace=scorer.trace,
            seed=scorer.seed,
            guided=scorer.guided,
            progress=progress,
        )


def _stored(path: Path) -> str | None:
    choice = read(path).attributes.get("choice") if path.exists() else None
    return None if choice is None else str(choice)


def _awaited(path: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (text := _stored(path)) is not None:
            return text
        time.sleep(0.2)
    raise TimeoutError(f"the first process did not write what solver it chose to {path} within {PATIENCE:.0f} s")
