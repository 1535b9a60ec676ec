r"""The cost of a run: total time, time in the network, and peak memory.

Memory is the largest total size of the tensors that a run creates, in bytes, counted at every operation
(`TorchDispatchMode`). It is the same on every machine and device. The resident size of the process is not: it also
depends on earlier runs. Parameters are not counted, nor is memory outside tensors (NumPy arrays in SciPy's solvers) or
within a single operation.
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
    """The time spent in a denoiser and the calls that it had.

    Attributes:
        seconds: the time since the caller last set it to 0.
        calls: the network calls, each for one sample.
        busy: whether the denoiser is running.
    """

    seconds: float = 0.0
    calls: int = 0
    busy: bool = False


class Metered(Wrapper):
    """A denoiser that measures the time spent in it and counts its calls.

    Attributes:
        clock: the time; denoisers from `select` share the clock.
    """

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.clock = Clock()

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        start, self.clock.busy = now(x_t.device), True
        result = self.inner.predict(what, x_t, t, **condition)
        self.clock.seconds += now(x_t.device) - start
        self.clock.busy = False
        calls, _ = self.inner.cost(t)
        self.clock.calls += int(calls.sum()) if isinstance(calls, Tensor) and calls.ndim else int(calls) * len(x_t)
        return result


def now(device: torch.device) -> float:
    """The time in seconds, after the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Memory(TorchDispatchMode):
    """The peak memory, in bytes, of the tensors created while this mode is active.

    Args:
        metered: the denoiser of the run; its clock tells when the network runs.

    Attributes:
        peak: the peak memory.
        own: the peak memory outside network calls, which is that of the solver.
    """

    def __init__(self, metered: Metered) -> None:
        super().__init__()
        self.peak = self.own = self._alive = 0
        self._clock = metered.clock
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # An argument that is not registered was created before this mode became active.
        for tensor in _tensors((args, kwargs)):
            self._register(tensor, 0)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._register(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self._alive)
        if not self._clock.busy:
            self.own = max(self.own, self._alive)
        return result

    def _register(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._storages:
            self._alive += size
            self._storages[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        del self._storages[key]
        self._alive -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
