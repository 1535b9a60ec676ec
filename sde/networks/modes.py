"""Which way derivatives are being taken."""

from __future__ import annotations

__all__ = ["in_forward_mode"]

from torch.autograd import forward_ad


def in_forward_mode() -> bool:
    """Whether derivatives are being taken in forward mode.

    To be asked before a :class:`torch.autograd.Function` is applied: within a `jvp` of one torch ignores a second
    forward mode, and so gives a wrong result.
    """
    return forward_ad._current_level >= 0
