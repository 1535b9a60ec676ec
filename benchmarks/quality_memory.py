r"""Peak memory and time of the extraction and of every measure of sample quality, by the number of items.

    python benchmarks/quality_memory.py --items 4000 8000 --features 2048 --at 50000
    python benchmarks/quality_memory.py --items 50000 --measures extraction frechet sliced_wasserstein

Each row is a process of its own, which holds samples, reference and held-out items, a fifth as many. Measures that
compare all pairs take about eight minutes of a processor at 50,000 items of 2048 numbers. The memory is linear in
the number of items once this is above the chunks, at most 4096: `--at` extrapolates the line through the last two.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sde.evaluation.feature_files import FeatureFiles
from sde.evaluation.item_sets import items_of_file
from sde.evaluation.quality_table import SET_MEASURES, Comparison
from sde.metrics.features import Extracted, RawValues

# Those of tables are not: they are for few columns.
MEASURES = ["extraction", *(name for name in SET_MEASURES if name not in ("columns", "correlations"))]


def features(n: int, d: int, seed: int) -> torch.Tensor:
    """Correlated normals of float32 (n, D), with 1000 numbers that serve as logits."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.empty(n, d)
    for rows in x.split(1000):
        rows.normal_(generator=generator).add_(rows[:, :1]).add_(0.02 * seed)
    return x


def extraction(n: int, d: int) -> None:
    """Extracts and loads the features of two files of items."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = []
        for seed in range(2):
            np.save(f"{folder}/{seed}.npy", features(n, d, seed).numpy())
            files = FeatureFiles(RawValues(), items_of_file(Path(f"{folder}/{seed}.npy")), Path(folder) / "cache")
            assert sum(files.run()) == n
            loaded.append(files.load())


def measure(name: str, n: int, d: int) -> None:
    """Prints what a measure gives, the time and the peak."""
    if name == "extraction":
        extraction(n, d)
        found = ""
    else:
        x, y, held_out = features(n, d, 1), features(n, d, 2), features(n // 5, d, 2)
        index = torch.arange(n), torch.arange(n)
        comparison = Comparison(Extracted(x, x[:, :1000]), Extracted(y, y[:, :1000]), index, y, held_out)
        found = "; ".join(f"{key} {e.value:.4g}" for key, e in SET_MEASURES[name](comparison).items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{peak:.3f} {time.process_time():.0f} {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[4000, 8000])
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--at", type=int, default=50_000)
    parser.add_argument("--measures", nargs="+", default=MEASURES, choices=MEASURES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one is not None:
        measure(a.one, a.items[0], a.features)
        return
    for name in a.measures:
        peaks = []
        for n in a.items:
            command = [sys.executable, __file__, "--one", name, "--items", str(n), "--features", str(a.features)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak, seconds, found = answer.rstrip("\n").split(" ", 2)
            peaks.append(float(peak))
            print(f"{name}, {n} items: {peak} GiB, {seconds} s of a processor; {found}", flush=True)
        if len(peaks) > 1:
            slope = (peaks[-1] - peaks[-2]) / (a.items[-1] - a.items[-2])
            print(f"{name}, {a.at} items: {peaks[-1] + slope * (a.at - a.items[-1]):.2f} GiB expected", flush=True)


if __name__ == "__main__":
    main()
