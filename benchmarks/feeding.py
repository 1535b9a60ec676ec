"""The cost of data that is not in memory: `python benchmarks/feeding.py [FOLDER]`.

Makes 20,000 images of 64 x 64 in FOLDER, by default a temporary one: PNG files, and one HDF5 file. Then it trains one
small U-Net, whose step takes at least 200 ms, on them from memory, from the HDF5 file and from the PNG files with two
workers, in blocks of steps that take turns, so that other work on the machine affects all of them. Printed are, for
each, the median time of a step, the processor time of the training process, and the time that it waits for data.

Then it trains on HDF5 files with holes, which take no room on the disk, of 1 to 100 GB, and prints the memory of the
training process and its workers together, each page shared by several counted once. It takes about four minutes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image

import sde
from sde.data import DataSet, arrays, images
from sde.runtime import keep_memory
from sde.training.batches import Batch, BatchSource

N, SIDE, BATCH, BLOCK, BLOCKS = 20_000, 64, 32, 5, 10


def write(folder: Path) -> None:
    """The images: smooth shapes, with noise as photographs have it, so that they compress as photographs do."""
    if (folder / "images.h5").exists():
        return
    (folder / "png").mkdir()
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    with h5py.File(folder / "partial.h5", "w") as file:
        rows = file.create_dataset("x_train", (N, SIDE, SIDE, 3), np.uint8)
        for i in range(N):
            random = np.random.RandomState(i)
            a, b, c = random.normal(size=(3, 3)) * 6.0
            waves = np.stack([np.sin(a[k] * x + b[k] * y + c[k]) for k in range(3)], -1)
            pixels = np.clip(128 + 80 * waves + random.normal(size=(SIDE, SIDE, 3)) * 8, 0, 255).astype(np.uint8)
            rows[i] = pixels
            Image.fromarray(pixels).save(folder / "png" / f"{i:05}.png")
    (folder / "partial.h5").rename(folder / "images.h5")


class Timed(BatchSource):
    """Batches that record how long they were waited for."""

    def __init__(self, batches: sde.Batches) -> None:
        self.batches, self.noise, self.waited = batches, batches.noise, 0.0

    def __getitem__(self, number: int) -> Batch:
        start = time.perf_counter()
        batch = self.batches[number]
        self.waited += time.perf_counter() - start
        return batch

    @property
    def whole(self) -> None:
        return None

    def epoch(self) -> Iterator[Batch]:
        return self.batches.epoch()

    def shard(self, rank: int, world: int) -> BatchSource:
        return self.batches.shard(rank, world)


@dataclass
class Fed:
    """A training and the times of its steps, in seconds."""

    training: sde.Training
    source: Timed
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, data: DataSet, workers: int) -> Fed:
        torch.manual_seed(0)
        network = sde.networks.UNet(3, width=16, multipliers=(1, 2, 2), blocks=1, attention=())
        denoiser = sde.NetworkDenoiser(network, sde.VP(), level=sde.LogSNRLevel(50.0))
        source = Timed(sde.Batches(data.train, BATCH, workers=workers))
        return cls(sde.Training(denoiser, source, data.scaling), source)

    def steps(self, n: int, record: bool = True) -> None:
        for _ in range(n):
            self.source.waited, wall, cpu = 0.0, time.perf_counter(), time.process_time()
            self.training.advance()
            if record:
                self.wall.append(time.perf_counter() - wall)
                self.cpu.append(time.process_time() - cpu)
                self.waited.append(self.source.waited)


def compare(folder: Path) -> None:
    path = folder / "images.h5"
    data = {
        "memory": (arrays(path, test=None, memory=4.0), 0),
        "HDF5, 2 workers": (arrays(path, test=None, memory=0), 2),
        "PNG files, 2 workers": (images(folder / "png", memory=0), 2),
    }
    fed = {name: Fed.of(*how) for name, how in data.items()}
    for each in fed.values():
        each.steps(4, record=False)
    for _ in range(BLOCKS):
        for each in fed.values():
            # What was prepared while the others trained is used up before the time is taken.
            each.steps(4, record=False)
            each.steps(BLOCK)
    print(f"{N} images of {SIDE} x {SIDE}, batch {BATCH}, {BLOCKS * BLOCK} steps each; milliseconds, medians")
    print(f"{'from':22} {'step':>8} {'to memory':>10} {'processor':>10} {'waiting':>8}")
    first = next(iter(fed.values()))
    for name, each in fed.items():
        wall, cpu, waited = (1000 * statistics.median(v) for v in (each.wall, each.cpu, each.waited))
        ratios = [
            sum(each.wall[i : i + BLOCK]) / sum(first.wall[i : i + BLOCK]) for i in range(0, BLOCK * BLOCKS, BLOCK)
        ]
        print(f"{name:22} {wall:8.1f} {statistics.median(ratios):10.3f} {cpu:10.1f} {waited:8.2f}")


def memory() -> float:
    """The memory of this process and its children in MiB, each page shared by several counted once."""
    total = 0
    mine = [os.getpid(), *(int(p) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]
    for process in mine:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def grow(folder: Path, gigabytes: int) -> None:
    """Prints the memory after 200 batches with an HDF5 file of this size."""
    path = folder / f"holes_{gigabytes}.h5"
    n = gigabytes * 10**9 // (128 * 128 * 3)
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple((n, 128, 128, 3))
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(file.id, b"x_train", h5py.h5t.NATIVE_UINT8, space, properties)
    data = arrays(path, test=None, memory=0)
    batches = sde.Batches(data.train, 16, workers=2)
    for number in range(200):
        data.scaling.to_model(batches[number].values)
    size = path.stat()
    print(f"{size.st_size / 1e9:6.1f} GB, {n} images, {size.st_blocks * 512 / 1e6:.1f} MB on disk: {memory():.0f} MiB")
    path.unlink()


def main() -> None:
    keep_memory()
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        grow(Path(sys.argv[1]), int(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        print("memory of the training process and its two workers", flush=True)
        for gigabytes in (1, 10, 100):
            subprocess.run([sys.executable, __file__, str(folder), str(gigabytes)], check=True)
        write(folder)
        compare(folder)


if __name__ == "__main__":
    main()
