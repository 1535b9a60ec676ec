r"""Sample quality of one model with many solvers and budgets, with errors: the table and the plot in the documentation.

    python benchmarks/quality_of_solvers.py --run runs/digits-vp --classifier runs/classifiers/digits.pt

All sets have the same seed: sample i starts from the same noise, so that differences from the first set are paired. The
last row is real data that the model was not trained on, of which there are fewer items.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import sde
from sde.evaluation import Quality, QualityJob, load_classifier
from sde.evaluation.feature_files import FeatureFiles
from sde.evaluation.item_sets import DrawnItems, StoredItems
from sde.instantiate import build
from sde.metrics import Estimate
from sde.plots import measures
from sde.solvers import DDIM, Ancestral, DPMSolverPP, EulerMaruyama, Heun, Solver, UniPC
from sde.storage.checkpoint import load_checkpoint, resolve
from sde.storage.files import sha256

SOLVERS: Mapping[str, Solver] = {
    "Heun 25": Heun(25),
    "Heun 9": Heun(9),
    "Heun 5": Heun(5),
    "DDIM 10": DDIM(10),
    "DPM++ 10": DPMSolverPP(10),
    "UniPC 10": UniPC(10),
    "UniPC 5": UniPC(5),
    "Ancestral 50": Ancestral(50),
    "Euler-Maruyama 50": EulerMaruyama(50),
}
SHOWN = ("frechet", "kernel", "precision", "recall", "coverage", "distance_ratio")
METRICS = ("frechet", "kernel", "precision_recall", "memorisation")


def run(checkpoint: str, classifier: str, n: int, cache: Path) -> Quality:
    """The quality of n samples of every solver, and of held-out data."""
    path = resolve(checkpoint)
    model, tree = sde.load(path), json.loads(load_checkpoint(path)["config"])["data"]
    data, source, features = build(tree, rooms=("sde.data",)), sha256(path), load_classifier(classifier)
    sets = [DrawnItems(name, model, n, solver, 0, source, n) for name, solver in SOLVERS.items()]
    reference, real = (StoredItems.of_split(data, split) for split in ("train", "test"))
    files = [FeatureFiles(features, one, cache) for one in (*sets, real, reference)]
    how = {"seed": 0, "groups": 20, "permutations": 199}
    job = QualityJob(files[:-1], files[-1], METRICS, files[-1], files[-2], settings=how)
    for state in job.extract():
        print(state, flush=True)
    return [result for *_, result in job.measure()][-1]


def row(estimates: Mapping[str, Estimate], differences: Mapping[str, Estimate]) -> list[str]:
    """The cells of a table; a star where the difference from the first set has p < 0.01."""
    cells = []
    for name in SHOWN:
        e, d = estimates[name], differences.get(name)
        star = "\\*" if d is not None and d.p_value is not None and d.p_value < 0.01 else ""
        cells.append(f"{e.value:.3g} ± {e.standard_error:.1g}{star}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/digits-vp")
    parser.add_argument("--classifier", default="runs/classifiers/digits.pt")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--out", type=Path, default=Path("docs/_generated/quality"))
    a = parser.parse_args()
    quality = run(a.run, a.classifier, a.n, a.cache)
    a.out.mkdir(parents=True, exist_ok=True)
    lines = ["| | " + " | ".join(name.replace("_", " ") for name in SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name, estimates in quality.estimates.items():
        cells = row(estimates, quality.differences.get(name, {}))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    (a.out / "solvers.md").write_text("\n".join(lines) + "\n")
    shown = {name: {m: found[m] for m in SHOWN} for name, found in quality.estimates.items()}
    measures(shown, quality.differences).savefig(a.out / "solvers.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
