r"""Whether two processes are the same functions of time, or have the same priors once both are scaled by 1/alpha."""

from __future__ import annotations

__all__ = ["check_same"]

import torch

from .base import SDE


def check_same(a: SDE, b: SDE, purpose: str) -> None:
    r"""Refuses two processes whose :math:`\log\alpha_t` or :math:`\sigma_t^2` differ, or their times.

    Args:
        a: a process.
        b: another one, of any class.
        purpose: what needs them to be the same, for the message.

    Raises:
        ValueError: if they differ; it names both.
    """
    same = a == b
    if not same and (a.t_min, a.t_max) == (b.t_min, b.t_max):
        t = torch.linspace(a.t_min, a.t_max, 34, dtype=torch.float64, device="cpu")[1:]
        pairs = ((a.log_alpha(t), b.log_alpha(t)), (a.var(t), b.var(t)))
        same = all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in pairs)
    if not same:
        raise ValueError(f"{purpose} needs two denoisers of the same process, got {a} and {b}")
