"""Clipping of gradients, of which each rank may have a part."""

from __future__ import annotations

__all__ = ["clip"]

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .ranks import local, size, total


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], largest: float, scale: float = 1.0) -> Tensor:
    """Divides the gradient by `scale`, and scales it down to a norm of at most `largest` (Pascanu et al. 2013,
    https://arxiv.org/abs/1211.5063).

    Returns:
        The norm before it is scaled down, over all ranks; not finite if an entry is not.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [local(gradient) for gradient in gradients]
    cut = [part for part, gradient in zip(parts, gradients) if part is not gradient]
    whole = [part for part, gradient in zip(parts, gradients) if part is gradient]
    norm = nn.utils.get_total_norm(whole)
    if cut and size() > 1:
        norm = (norm.square() + total(nn.utils.get_total_norm(cut).square())).sqrt()
    norm = norm / scale
    torch._foreach_mul_(parts, torch.clamp(largest / (norm + 1e-6), max=1.0) / scale)
    return norm
