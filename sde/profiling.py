r"""What a run costs: its seconds, those of its network calls among them, and its peak memory.

Memory is the bytes of tensors alive at once that were made during the run, counted where every operation passes
(`TorchDispatchMode`): the same number on every machine and device, unlike a process's resident size, which remembers
what other runs needed. Parameters do not count, nor does what lives outside tensors (NumPy, within SciPy's solvers) or
inside one operation.
"""

from __future__ import annotations

__all__ = ["Clock", "Memory", "Metered", "now"]

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .denoisers import Denoiser, Prediction, Wrapper


@dataclass
class Clock:
    """The time spent in a denoiser.

    Attributes:
        seconds: since the caller last set it to 0.
        busy: whether a call is going on.
    """

    seconds: float = 0.0
    busy: bool = False


class Metered(Wrapper):
    """A denoiser that measures the time spent in it.

    Attributes:
        clock: the time; a selection of some samples has the same clock.
    """

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.clock = Clock()

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        start, self.clock.busy = now(x_t.device), True
        result = self.inner.predict(what, x_t, t, **condition)
        self.clock.seconds += now(x_t.device) - start
        self.clock.busy = False
        return result


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active.

    Args:
        metered: the denoiser of the run, which says what is made within its calls.

    Attributes:
        peak: the most bytes alive at once.
        own: the most outside the network's calls: what the solver itself holds.
    """

    def __init__(self, metered: Metered) -> None:
        super().__init__()
        self.peak = self.own = 0
        self._clock = metered.clock
        self._alive = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # An argument that was not made here was there before.
        for tensor in _tensors((args, kwargs)):
            self._see(tensor, 0)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._see(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self._alive)
        if not self._clock.busy:
            self.own = max(self.own, self._alive)
        return result

    def _see(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._known:
            self._alive += size
            self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self._alive -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
