"""Ranks of a training in processes forked from this one, which spares them the imports."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def on_ranks(
    world: int, work: Callable[..., Any], *arguments: Any, seconds: float = 60.0, killed: int | None = None
) -> list[Any]:
    """What a function returns on each rank of a gloo group, but for one that is killed."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        results = [Path(folder) / f"{rank}.pt" for rank in range(world)]
        store = f"file://{folder}/store"
        ranks = [
            context.Process(target=_rank, args=(rank, world, store, results[rank], work, arguments))
            for rank in range(world)
        ]
        try:
            for process in ranks:
                process.start()
            for process in ranks:
                process.join(seconds)
        finally:
            for process in ranks:
                process.kill()
        found = [torch.load(path, weights_only=False) if path.exists() else "no result" for path in results]
    if killed is not None:
        assert found.pop(killed) == "no result"
    for rank, value in enumerate(found):
        assert not isinstance(value, str), f"rank {rank}: {value}"
    return [value[0] for value in found]


def _rank(
    rank: int, world: int, store: str, result: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    try:
        value: Any = [work(*arguments)]
    except BaseException:
        value = traceback.format_exc()
    torch.save(value, result.with_suffix(".tmp"))
    result.with_suffix(".tmp").rename(result)
    if not dist.is_initialized():
        return
    if isinstance(value, list) and value != ["alone"]:  # after an error, the others are in the middle of a step
        dist.barrier()
    dist.destroy_process_group()
