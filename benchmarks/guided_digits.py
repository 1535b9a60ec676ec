r"""A class-conditional model of the digits against the weight of guidance: the table and the plot in the documentation.

    python scripts/train.py conditional=true steps=1545 run_dir=runs/digits-classes
    python benchmarks/guided_digits.py --run runs/digits-classes

For every weight, samples with labels drawn evenly; a sample is recognised if a classifier of the real digits finds its
label. Distances are in the features of that classifier. The weight is chosen on some seeds (the largest coverage of
those that reach 95 % recognised), and the line at the end is of that weight on another seed. Coverage, precision and
recall are of as many samples as half of the real digits has, against the other half, so that the last row, of the two
halves, says what equal distributions have.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import sde
from sde.guidance import ClassifierFree
from sde.metrics import Estimate, frechet_distance, precision_recall
from sde.metrics.estimate import proportion
from sde.metrics.features import ClassifierNetwork, ModuleFeatures, accuracy, as_items, extract, fit_classifier
from sde.plots import measures

SHOWN = ("recognised", "frechet", "precision", "recall", "coverage")


def recogniser(data: sde.data.DataSet) -> tuple[ModuleFeatures, Estimate]:
    """A classifier of the training digits, and its accuracy on the test digits."""
    levels = data.scaling.levels
    (x, given), (x_test, given_test) = (part[torch.arange(len(part))] for part in (data.train, data.test))
    torch.manual_seed(0)
    network = ClassifierNetwork(data.shape, 10)
    for _ in fit_classifier(network, as_items(x, levels), given["label"], steps=400):
        pass
    return ModuleFeatures(network, name="digits"), accuracy(network, as_items(x_test, levels), given_test["label"])


def measured(x: Tensor, label: Tensor, halves: tuple[Tensor, Tensor], features: ModuleFeatures) -> dict[str, Estimate]:
    """The measures of samples, as items, against the real features."""
    found = extract(features, x)
    assert found.logits is not None
    right = int((found.logits.argmax(1) == label).sum())
    return {"recognised": proportion(right, len(x))} | distances(found.features, halves)


def distances(x: Tensor, halves: tuple[Tensor, Tensor]) -> dict[str, Estimate]:
    manifold = precision_recall(x[: len(halves[0])], halves[1])
    three = {name: getattr(manifold, name) for name in ("precision", "recall", "coverage")}
    return {"frechet": frechet_distance(x, halves[1])} | three


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/digits-classes")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--weights", type=float, nargs="*", default=[0.0, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--out", type=Path, default=Path("docs/_generated/guidance"))
    a = parser.parse_args()
    model, data, label = sde.load(a.run), sde.data.digits(), torch.arange(a.n) % 10
    features, right = recogniser(data)
    print(f"the classifier recognises {right} of the test digits", flush=True)
    items = torch.cat([part[torch.arange(len(part))][0] for part in (data.train, data.test)])
    real = extract(features, as_items(items, data.scaling.levels)).features
    shuffled = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]
    halves = shuffled[: len(real) // 2], shuffled[len(real) // 2 :]

    def row(weight: float, seed: int) -> dict[str, Estimate]:
        # At a weight of 1, and at 0 with the null label, there is one call for each prediction.
        denoiser = model.denoiser if weight in (0.0, 1.0) else ClassifierFree(model.denoiser, weight)
        given = torch.full_like(label, 10) if weight == 0.0 else label
        x = replace(model, denoiser=denoiser).sample(a.n, seed=seed, condition={"label": given})
        found = measured(as_items(x, data.scaling.levels), label, halves, features)
        print(f"weight {weight:g}, seed {seed}: " + ", ".join(f"{k} {v}" for k, v in found.items()), flush=True)
        return found

    table = {f"{weight:g}": row(weight, 1) for weight in a.weights}
    allowed = [w for w in a.weights if table[f"{w:g}"]["recognised"].value >= 0.95]
    chosen = max(allowed, key=lambda w: table[f"{w:g}"]["coverage"].value)
    figure = measures(table)
    table[f"{chosen:g}, another seed"] = row(chosen, 2)
    table["real digits, half against half"] = distances(halves[0], halves)
    a.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(a.out / "digits.png")
    (a.out / "digits.md").write_text("\n".join(lines_of(table)) + "\n")
    print("\n".join(lines_of(table)))


def lines_of(table: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    lines = ["| weight | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name, found in table.items():
        cells = [f"{e.value:.3f} ± {e.standard_error:.1g}" if (e := found.get(m)) else "" for m in SHOWN]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
