"""Starts of a pilot that lie near a border between two modes.

The flow multiplies every error of a sample that starts there, the more the nearer it is. Few do, and they have most of
the mean square error; a pilot needs more of them than their share to see what those errors come from. They are known by
how far the flow takes two close starts from each other. That two plain solvers disagree is no sign of them: often both
take the same wrong way.
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

# The candidates for each row, the distance of two close starts in units of the prior, and the steps of their solver.
DRAWS, CLOSE, STEPS = 8, 0.01, 12
# The rows whose candidates are solved in one batch; fewer where time is short.
ROWS, FEW = 16, 2


def with_hard_starts(flow: PilotFlow, seed: int, deadline: float = math.inf) -> PilotFlow:
    """The flow with the hardest of eight more starts in half of its rows: in those where this one is hardest. The other
    rows keep their start.

    Args:
        flow: an unsolved flow from the prior.
        seed: the seed of the pilot run.
        deadline: when to stop, by `time.monotonic`; rows that are not reached keep their start.
    """
    process, device = flow.dynamics.process, flow.begin[0].device
    design = Design(
        UniPC(STEPS, 3, variable=Arcsinh()), process, LogSNR().times(process, STEPS, flow.start, flow.stop), 1.0
    )
    numbers = design.numbers(design.start())[2]
    begin = flow.begin[0].clone()
    candidates, hardness = begin.clone(), torch.full((len(flow),), -1.0, dtype=torch.float64, device=device)

    def draws(index: Tensor, first: int) -> Tensor:
        each = [prior_draws(process, seed, index, first + k, begin.shape[1:], begin.dtype) for k in range(DRAWS)]
        return torch.cat(each)

    try:
        for chunk in torch.arange(len(flow), device=device).split(FEW if math.isfinite(deadline) else ROWS):
            starts = draws(chunk, 2)
            pairs = torch.cat([starts, starts + CLOSE * draws(chunk, 2 + DRAWS)])
            part = flow.select(chunk.repeat(2 * DRAWS))
            ends = run(part.dynamics, (pairs,), numbers, deadline)[0][-1][0].double().flatten(1)
            apart = ends.chunk(2)[0].sub(ends.chunk(2)[1]).square().mean(1).nan_to_num(nan=-1.0, posinf=-1.0)
            hardness[chunk], best = apart.view(DRAWS, -1).max(0)
            candidates[chunk] = starts.unflatten(0, (DRAWS, -1))[best, torch.arange(len(chunk), device=device)]
    except OutOfTime:
        pass
    chosen = hardness.argsort(descending=True)[: int((hardness >= 0.0).sum()) // 2]
    begin[chosen] = candidates[chosen]
    return replace(flow, begin=(begin,))
