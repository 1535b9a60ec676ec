"""Starts of a pilot that lie near a border between two modes.

The flow multiplies every error of a sample that starts there. Few do, and they have most of the mean square error; a
pilot needs more of them than their share to see what those errors come from. Where they are, two plain solvers of
unequal accuracy disagree.
"""

from __future__ import annotations

__all__ = ["with_hard_starts"]

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..grids import LogSNR
from ..solvers import Arcsinh, UniPC
from .design import Design
from .gauss_newton import run
from .pilot import OutOfTime
from .reference import PilotFlow, prior_draws

# The starts of which the hardest is taken, the steps of the two solvers, and the rows in a batch where time is short.
DRAWS, STEPS, ROWS = 7, (8, 16), 16


def with_hard_starts(flow: PilotFlow, seed: int, deadline: float = math.inf) -> PilotFlow:
    """The flow with the hardest of 7 starts in half of the rows, drawn by the seed; its condition is that of the row.

    Args:
        flow: an unsolved flow from the prior.
        seed: the seed of the pilot run.
        deadline: when to stop, by `time.monotonic`; the other rows keep their start.
    """
    process, device = flow.dynamics.process, flow.begin[0].device
    solvers = []
    for steps in STEPS:
        times = LogSNR().times(process, steps, flow.start, flow.stop)
        design = Design(UniPC(steps, 3, variable=Arcsinh()), process, times, 1.0)
        solvers.append(design.numbers(design.start())[2])
    begin = flow.begin[0].clone()
    index = torch.randperm(len(flow), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    index = index[: len(flow) // 2].to(device)
    try:
        for chunk in index.split(ROWS if math.isfinite(deadline) else len(index)):
            part = flow.select(chunk)
            starts = [part.begin[0]]
            starts += [prior_draws(process, seed, chunk, k, begin.shape[1:], begin.dtype) for k in range(2, DRAWS + 1)]
            hardness = list[Tensor]()
            for start in starts:
                coarse, fine = (run(part.dynamics, (start,), numbers, deadline)[0][-1][0] for numbers in solvers)
                hardness.append((coarse - fine).double().flatten(1).square().mean(1).nan_to_num(-1.0))
            hardest = torch.stack(hardness).argmax(0)
            begin[chunk] = torch.stack(starts)[hardest, torch.arange(len(chunk), device=device)]
    except OutOfTime:
        pass
    return replace(flow, begin=(begin,))
