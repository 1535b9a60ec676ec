r"""Every measure of sample quality between two halves of real images, where its value is known.

    python benchmarks/quality_null.py --data cifar10_20k_coded.npz

The images are CIFAR-10's, coded as differences; the features those of EfficientNet-Lite0. Two halves of the test images
are samples and reference, and training images are those against which memorisation is measured. A measure is at its
null value if that is within its 95 % interval, or if its p-value is above 0.05; about one of twenty is not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from sde.data import Split
from sde.evaluation import QualityJob, quality_table
from sde.evaluation.feature_files import FeatureFiles
from sde.evaluation.item_sets import StoredItems
from sde.metrics.features import efficientnet_lite0

METRICS = ["frechet", "kernel", "mmd", "energy", "precision_recall", "sliced_wasserstein", "classifier_test"]
METRICS += ["inception_score", "memorisation"]


def decoded(coded: np.ndarray) -> torch.Tensor:
    """Images (N, 3, 32, 32) from their double differences (3, N, 32, 32)."""
    p = np.cumsum(np.cumsum(coded, axis=-2, dtype=np.uint8), axis=-1, dtype=np.uint8)
    return torch.from_numpy(np.stack([p[1] + p[0], p[0], p[2] + p[0]], 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    a = parser.parse_args()
    archive, features = np.load(a.data), efficientnet_lite0(size=a.size)
    images = decoded(archive["x_test_coded"][:, : a.n])
    named = {"a": images[::2], "b": images[1::2], "training": decoded(archive["x_train_coded"][:, : a.n // 2])}
    one, other, training = (
        FeatureFiles(features, StoredItems(name, Split(x), 256), a.cache) for name, x in named.items()
    )
    how = {"seed": 0, "groups": 20, "permutations": 199}
    job = QualityJob([one], other, METRICS, training, other, settings=how)
    for state in job.extract():
        print(state, flush=True)
    *_, (*_, result) = job.measure()
    print(quality_table(result.estimates))
    for name, e in result.estimates["a"].items():
        if e.p_value is not None and name not in ("frechet",):
            print(f"{name}: p = {e.p_value:.3f}")
        elif e.null is not None:
            print(f"{name}: {e.low:.4g} to {e.high:.4g} contains {e.null:.4g}: {e.low <= e.null <= e.high}")


if __name__ == "__main__":
    main()
