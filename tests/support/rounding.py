"""Bounds on what float32 can round, for a computation that is given in float64.

No processor rounds as another does: they take the terms of a sum in other orders, and fuse other multiplications. What
all of them satisfy is a bound on each operation: its result is off by at most a few units of `eps = 2^-23`, times the
root of the number of terms where it is a sum (the errors of the partial sums add up like a random walk). How much of
that arrives at the end is measured by Monte Carlo arithmetic (Parker, Pierce and Eggert 2000,
https://doi.org/10.1109/5992.814655): the computation is repeated in float64 with each operation's result perturbed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

EPS = torch.finfo(torch.float32).eps
# By how much a result may differ from the exact one, in the largest deviations that were seen in `REPEATS` repetitions.
MARGIN, REPEATS = 2.0, 3

aten = torch.ops.aten
# How many products an operation adds up for an entry of its result; operations on single entries are not listed.
TERMS: dict[Any, Callable[[Any], int]] = {
    aten.convolution.default: lambda args: args[1][0].numel(),
    aten.mm.default: lambda args: args[0].shape[-1],
    aten.bmm.default: lambda args: args[0].shape[-1],
    aten.addmm.default: lambda args: args[1].shape[-1],
    aten._scaled_dot_product_flash_attention_for_cpu.default: lambda args: args[0].shape[-1] + args[1].shape[-2],
}


def rounding(compute: Callable[[], Tensor]) -> float:
    """The largest error that float32 arithmetic may leave in any entry of a result.

    Args:
        compute: returns the result, computed in float64 without randomness.
    """
    with torch.no_grad():
        exact, deviation = compute(), 0.0
        for seed in range(REPEATS):
            with _Perturbed(seed):
                result = compute()
            deviation = max(deviation, float((result - exact).abs().max()))
    assert exact.dtype == torch.float64
    assert deviation > 0.0
    return MARGIN * deviation


class _Perturbed(TorchDispatchMode):
    """Perturbs what each operation returns, as rounding to float32 would at most."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple) else result
        if (
            isinstance(first, Tensor)
            and first.dtype == torch.float64
            and not any(value.alias_info for value in func._schema.returns)
        ):
            u = 2.0 * torch.rand(first.shape, dtype=first.dtype, generator=self.generator) - 1.0
            terms = TERMS[func](args) if func in TERMS else 1
            size = first.abs() if terms == 1 else first.abs().clamp(min=float(first.square().mean().sqrt()))
            first.add_(u * size, alpha=EPS * math.sqrt(terms))
        return result
