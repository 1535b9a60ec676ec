r"""Workers: values of a function of consecutive numbers, which other processes compute ahead.

The processes are those of torch's DataLoader. It hands out numbers, not samples, so that what comes back, and in which
order, is that of the function.
"""

from __future__ import annotations

__all__ = ["loaded", "on_cpu"]

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

Value = TypeVar("Value")


class _Function(Dataset[Any], Generic[Value]):
    def __init__(self, function: Callable[[int], Value]) -> None:
        self.function = function

    def __getitem__(self, number: int) -> Value | Exception:
        try:
            return self.function(number)
        except (ValueError, OSError) as error:  # which a worker would send with its traceback as the message
            return error


class _Numbers(Sampler[int]):
    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


def on_cpu(loader: Iterable[Value]) -> Iterator[Value]:
    """The values of a loader, whose seeds, indices and batches would be made on torch's default device."""
    with torch.device("cpu"):
        values = iter(loader)

    def each() -> Iterator[Value]:
        while True:
            with torch.device("cpu"):
                try:
                    value = next(values)
                except StopIteration:
                    return
            yield value

    return each()


def loaded(function: Callable[[int], Value], numbers: Iterable[int], workers: int) -> Iterator[Value]:
    """The values of a function of numbers, in order.

    An error of the function is raised where its value would come.

    Args:
        function: the function; each worker has a copy of it as it is at the start.
        numbers: the numbers, which may have no end.
        workers: the number of processes; with 0 the values are computed here as they are asked for.
    """
    if not workers:
        yield from map(function, numbers)
        return
    # Without a generator of its own, a DataLoader would draw from the global one, on which dropout depends.
    own = torch.Generator(device="cpu")
    loader = DataLoader(_Function(function), None, sampler=_Numbers(numbers), num_workers=workers, generator=own)
    for value in on_cpu(loader):
        if isinstance(value, Exception):
            raise value
        yield value
