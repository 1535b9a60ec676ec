r"""What a designed solver is worth on a trained model: the table in the documentation.

    python benchmarks/designed_solvers.py --run runs/digits-vp --classifier runs/classifiers/digits.pt

For every budget of network calls: UniPC on its own grid, UniPC on a tuned grid, and a designed solver. Tuning and
design have as many seconds each; the pilot of the grid has its 64 samples, with which it gets farthest in that
time.

The first number is the root mean square distance to the exact flow from the same starts, which no pilot has, in
standard deviations of the data, the network and the solver in float64. Then come the distances of drawn samples
from the training data, on the features of the classifier. All sets have the same seed: sample i of every set starts
from the same noise, and differences from the exact flow are paired.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import torch

import sde
from sde.evaluation import Quality, QualityJob, load_classifier
from sde.evaluation.feature_files import FeatureFiles
from sde.evaluation.item_sets import DrawnItems, ItemSet, StoredItems
from sde.instantiate import build
from sde.solvers import RungeKutta, Solver, UniPC
from sde.storage.checkpoint import load_checkpoint, resolve
from sde.storage.files import sha256, write_atomically

EXACT = "exact flow"
SHOWN = ("frechet", "kernel")


def solvers(model: sde.Model, run: Path, calls: list[int], pilot: int, seconds: float) -> dict[str, Solver]:
    """The solvers by name; what is tuned or designed is kept with the run."""
    chosen: dict[str, Solver] = {EXACT: RungeKutta(rtol=1e-5, atol=1e-5)}
    for n in calls:
        begun = time.process_time()
        chosen[f"{n}, UniPC"] = UniPC(n)
        chosen[f"{n}, tuned grid"] = model.tuned(UniPC(n), run, seconds=seconds)
        middle = time.process_time()
        chosen[f"{n}, designed"] = model.designed(n, run, pilot=pilot, seconds=seconds)
        print(f"{n} calls: {middle - begun:.0f} s to tune, {time.process_time() - middle:.0f} s to design", flush=True)
    return chosen


def distances(model: sde.Model, chosen: dict[str, Solver], starts: int) -> dict[str, float]:
    """The root mean square distances to the exact flow."""
    denoiser = copy.deepcopy(model.denoiser).double()
    generator, process = torch.Generator().manual_seed(1), model.process
    z = torch.randn(starts, *model.shape, generator=generator, dtype=torch.float64)
    x_T = process.prior_var(torch.tensor(process.t_max, dtype=torch.float64)).sqrt() * z
    truth = sde.sample(denoiser, x_T=x_T, solver=RungeKutta(rtol=1e-7, atol=1e-7)).x
    return {
        name: float((sde.sample(denoiser, x_T=x_T, solver=solver).x - truth).square().mean().sqrt() / truth.std())
        for name, solver in chosen.items()
    }


def quality(checkpoint: Path, chosen: dict[str, Solver], classifier: str, n: int, cache: Path) -> Quality:
    """The quality of n samples of every solver."""
    model, tree = sde.load(checkpoint), json.loads(load_checkpoint(checkpoint)["config"])["data"]
    data, source, features = build(tree, rooms=("sde.data",)), sha256(checkpoint), load_classifier(classifier)
    sets: list[ItemSet] = [DrawnItems(name, model, n, solver, 0, source, n) for name, solver in chosen.items()]
    sets.append(StoredItems.of_split(data, "train"))
    files = [FeatureFiles(features, one, cache) for one in sets]
    job = QualityJob(files[:-1], files[-1], SHOWN, settings={"seed": 0, "groups": 20, "permutations": 199})
    for state in job.extract():
        print(state, flush=True)
    return [result for *_, result in job.measure()][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits-vp"))
    parser.add_argument("--classifier", default="runs/classifiers/digits.pt")
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 8, 10, 15, 20])
    parser.add_argument("--pilot", type=int, default=256, help="samples of the design's pilot")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--starts", type=int, default=128)
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--out", type=Path, default=Path("docs/_generated/quality"))
    a = parser.parse_args()
    model = sde.load(a.run)
    chosen = solvers(model, a.run, a.calls, a.pilot, a.seconds)
    far = distances(model, chosen, a.starts)
    measured = quality(resolve(a.run), chosen, a.classifier, a.n, a.cache)
    lines = ["| calls, solver | distance to the flow | Fréchet | kernel |", "|---|---|---|---|"]
    for name, estimates in measured.estimates.items():
        differences, cells = measured.differences.get(name, {}), [f"{far[name]:.2g}"]
        for measure in SHOWN:
            e, d = estimates[measure], differences.get(measure)
            star = "\\*" if d is not None and d.p_value is not None and d.p_value < 0.01 else ""
            cells.append(f"{e.value:.3g} ± {e.standard_error:.1g}{star}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    a.out.mkdir(parents=True, exist_ok=True)
    write_atomically(a.out / "designed.md", lambda file: file.write(text.encode()))
    print(text)


if __name__ == "__main__":
    main()
