r"""Ranks: the processes of one training, which share each batch and keep the same weights.

Rank r of W computes the loss of its rows of a batch; the gradients are averaged over the ranks, so that the step is
that of one process with the whole batch, up to rounding. :class:`DDP` keeps all weights on every rank;
:class:`FSDP2` keeps a part of each, with the same part of its gradient and of the state of the optimiser.

What is wrapped is the module whose forward is the loss, because gradients are averaged where a forward of the wrapped
module used the parameters: a schedule, a head of the objective or the null of a condition lie outside of the network.

Li et al., PyTorch Distributed, 2020, https://arxiv.org/abs/2006.15704; Zhao et al., PyTorch FSDP, 2023,
https://arxiv.org/abs/2304.11277.
"""

from __future__ import annotations

__all__ = ["DDP", "FSDP2", "Ranks", "agree", "anywhere", "group", "rank", "size", "together", "total"]

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..runtime import choose_device
from .execution import blocks


def size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank, counted from 0."""
    return dist.get_rank() if size() > 1 else 0


@contextlib.contextmanager
def group(device: str, *, minutes: float = 30.0) -> Iterator[str]:
    """The process group of the ranks that torchrun has started, or none for one process.

    Args:
        device: the name of a device; `auto` and `cuda` mean the GPU of the rank on its machine.
        minutes: the longest time that the ranks wait for each other, such as for a checkpoint.

    Yields:
        The name of the device of this rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    kind = choose_device(device if device == "auto" else torch.device(device).type).type
    if kind == "cuda" and ":" not in device:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(choose_device(device))
    # Gloo beside NCCL, for what lies on the CPU.
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    # Ranks that do not meet wait for ever: an error soon lets torchrun start them again.
    soon = timedelta(seconds=60)
    store, number, world = next(dist.rendezvous("env://", timeout=soon))
    dist.init_process_group(backend, store=_of_this_start(store), rank=number, world_size=world, timeout=soon)
    dist.distributed_c10d._set_pg_timeout(timedelta(minutes=minutes))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _of_this_start(store: dist.Store) -> dist.Store:
    """The part of a store that the ranks use since they were last started.

    The store of torchrun outlives its restarts, and with it the addresses of ranks that have ended, to which new ones
    would connect. Torchruns on several machines count their restarts each for itself.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def total(values: Tensor) -> Tensor:
    """The sum over the ranks of a tensor of one shape."""
    if size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any rank; a call of all ranks."""
    return bool(total(torch.tensor(int(flag), device="cpu"))) if size() > 1 else flag


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it, an error of one rank is an error of every rank, instead of a rank that the others wait for.

    There must be no communication inside.

    Raises:
        ValueError: on the ranks without an error, with that of the first rank that has one.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    texts = _gathered(None if error is None else str(error))
    if error is not None:
        raise error
    for number, text in enumerate(texts):
        if text is not None:
            raise ValueError(f"rank {number}: {text}")


def agree(facts: Mapping[str, str]) -> None:
    """Refuses ranks that differ.

    Args:
        facts: what should be the same on every rank, by its name in the message.

    Raises:
        ValueError: on every rank, with the first fact that differs and the first rank that has another than rank 0.
    """
    everywhere = _gathered(dict(facts))
    for name, value in everywhere[0].items():
        for number, other in enumerate(everywhere):
            if other.get(name) != value:
                raise ValueError(
                    f"rank {number} has other {name} than rank 0 ({other.get(name)} instead of {value}): all ranks "
                    "need the same"
                )


def _gathered(value: Any) -> list[Any]:
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def full(value: Any) -> Any:
    """A tensor of which each rank may have a part, whole; a call of all ranks. Anything else is itself."""
    return value.full_tensor() if _is_sharded(value) else value


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this rank has."""
    sharded: Any = value
    part: Tensor = sharded.to_local() if _is_sharded(value) else value
    return part


def sharded_as(value: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor, in parts like a reference of its shape."""
    if not _is_sharded(reference) or _is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    layout: Any = reference
    return distribute_tensor(value.to(reference.device), layout.device_mesh, layout.placements)


def _is_sharded(value: Any) -> bool:
    if size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


class Ranks(ABC):
    """The way in which ranks keep the weights and average the gradients; with one rank it changes nothing.

    Attributes:
        shards: whether each rank has only a part of the weights.
    """

    shards: ClassVar[bool]

    @abstractmethod
    def shard(self, module: nn.Module) -> None:
        """Leaves each rank its part of the parameters, which are new objects then."""

    @abstractmethod
    def wrap(self, module: nn.Module, unused: bool) -> nn.Module:
        """The module by whose forward the ranks take part in a step.

        Args:
            module: the module whose forward is the loss.
            unused: whether some parameters do not take part in every loss.
        """

    @abstractmethod
    def without_averaging(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Gradients inside stay with their rank: they are averaged with those that follow."""

    @abstractmethod
    def finish(self, module: nn.Module) -> None:
        """Averages what the backward pass did not."""


@dataclass(frozen=True)
class DDP(Ranks):
    """All weights on every rank (`torch.nn.parallel.DistributedDataParallel`)."""

    shards: ClassVar[bool] = False

    def shard(self, module: nn.Module) -> None:
        """Nothing: every rank has all parameters."""

    def wrap(self, module: nn.Module, unused: bool) -> nn.Module:
        if size() == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=unused)

    @contextlib.contextmanager
    def without_averaging(self, wrapped: nn.Module) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if isinstance(wrapped, nn.parallel.DistributedDataParallel):
                stack.enter_context(wrapped.no_sync())
            yield

    def finish(self, module: nn.Module) -> None:
        """Nothing: the backward pass averaged all."""


@dataclass(frozen=True)
class FSDP2(Ranks):
    """A part of the weights, gradients and averages on each rank (`torch.distributed.fsdp.fully_shard`).

    The blocks of the network, which are the entries of its `ModuleList`, are gathered one after another. Numbers,
    parameters of shape (), are kept whole.
    """

    shards: ClassVar[bool] = True

    def shard(self, module: nn.Module) -> None:
        if size() == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # Parts are cut from weights with the channels first; convolutions follow the format of the images.
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        device = next(module.parameters()).device.type
        mesh, numbers = init_device_mesh(device, (size(),)), set(_numbers(module))
        for part in (*blocks(module), module):
            fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=numbers)

    def wrap(self, module: nn.Module, unused: bool) -> nn.Module:
        return module

    @contextlib.contextmanager
    def without_averaging(self, wrapped: nn.Module) -> Iterator[None]:
        if size() == 1:
            yield
            return
        module: Any = wrapped
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)

    def finish(self, module: nn.Module) -> None:
        for parameter in _numbers(module) if size() > 1 else ():
            if parameter.grad is not None:
                parameter.grad = total(parameter.grad) / size()


def _numbers(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of shape (), which `fully_shard` refuses."""
    return (p for p in module.parameters() if p.ndim == 0)
