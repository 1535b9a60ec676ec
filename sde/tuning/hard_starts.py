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

# The candidates for each row, the steps of the two solvers, and the rows in a batch where time is short.
DRAWS, STEPS, ROWS = 4, (8, 16), 16


def with_hard_starts(flow: PilotFlow, seed: int, deadline: float = math.inf) -> PilotFlow:
    """The flow with the hardest of four more starts in half of its rows: in those where this one is hardest. The other
    rows keep their start.

    Args:
        flow: an unsolved flow from the prior.
        seed: the seed of the pilot run.
        deadline: when to stop, by `time.monotonic`; rows that are not reached keep their start.
    """
    process, device = flow.dynamics.process, flow.begin[0].device
    solvers = []
    for steps in STEPS:
        times = LogSNR().times(process, steps, flow.start, flow.stop)
        design = Design(UniPC(steps, 3, variable=Arcsinh()), process, times, 1.0)
        solvers.append(design.numbers(design.start())[2])
    begin = flow.begin[0].clone()
    candidates, hardness = begin.clone(), torch.full((len(flow),), -1.0, dtype=torch.float64, device=device)
    try:
        for chunk in torch.arange(len(flow), device=device).split(ROWS if math.isfinite(deadline) else len(flow)):
            part = flow.select(chunk)
            starts, each = list[Tensor](), list[Tensor]()
            for k in range(2, DRAWS + 2):
                starts.append(prior_draws(process, seed, chunk, k, begin.shape[1:], begin.dtype))
                coarse, fine = (run(part.dynamics, (starts[-1],), n, deadline)[0][-1][0] for n in solvers)
                each.append((coarse - fine).double().flatten(1).square().mean(1).nan_to_num(nan=-1.0, posinf=-1.0))
            hardness[chunk], best = torch.stack(each).max(0)
            candidates[chunk] = torch.stack(starts)[best, torch.arange(len(chunk), device=device)]
    except OutOfTime:
        pass
    chosen = hardness.argsort(descending=True)[: int((hardness >= 0.0).sum()) // 2]
    begin[chosen] = candidates[chosen]
    return replace(flow, begin=(begin,))
