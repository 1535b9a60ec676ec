r"""Muon for matrices, AdamW for everything else, as one optimiser.

`torch.optim.Muon` takes matrices only: it replaces the momentum M of a weight by the nearest semi-orthogonal matrix,
computed by a Newton-Schulz iteration. With `match_rms_adamw` its updates have the size of AdamW's, so that one learning
rate and one weight decay serve both.

Jordan et al., Muon, 2024, https://kellerjordan.github.io/posts/muon/; Liu et al., Muon is Scalable for LLM Training,
2025, https://arxiv.org/abs/2502.16982.
"""

from __future__ import annotations

__all__ = ["Muon"]

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .ranks import full, sharded_as


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` for the parameters of two dimensions, `torch.optim.AdamW` for all others.

    Args:
        params: the parameters.
        lr: the learning rate of both.
        momentum: the momentum of Muon.
        betas: the decays of AdamW's moments.
        weight_decay: the decoupled weight decay of both.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        params = list(params)
        matrices, others = [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            like_adamw: dict[str, Any] = {"adjust_lr_fn": "match_rms_adamw"}
            self._parts.append(torch.optim.Muon(matrices, lr, weight_decay, momentum, **like_adamw))
        if others:
            self._parts.append(torch.optim.AdamW(others, lr, (betas[0], betas[1]), weight_decay=weight_decay))
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step of both optimisers."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part, group in zip(self._parts, self.param_groups):
            if isinstance(part, torch.optim.Muon):
                for matrix in group["params"]:
                    self._step_of_whole(part, group, matrix)
            else:
                # Loading a state replaces both; they are this optimiser's, in which a checkpoint finds them.
                part.param_groups, part.state = [group], self.state
                part.step()
        return loss

    def _step_of_whole(self, part: torch.optim.Muon, group: dict[str, Any], matrix: Tensor) -> None:
        """Muon's step of a matrix, gathered where each rank has some rows of it.

        The semi-orthogonal matrix is that of the whole momentum; products of parts would round otherwise, in bfloat16.
        """
        if matrix.grad is None:
            return
        whole = full(matrix.detach())
        whole.grad = full(matrix.grad)
        part.state = defaultdict(dict, {whole: {name: full(value) for name, value in self.state[matrix].items()}})
        part.param_groups = [{**group, "params": [whole]}]
        part.step()
        matrix.copy_(sharded_as(whole, matrix))
        self.state[matrix].update({name: sharded_as(value, matrix) for name, value in part.state[whole].items()})
