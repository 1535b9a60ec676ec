r"""Whether data drawn from a model helps a classifier that has little: the figures in the documentation.

    python benchmarks/augmentation.py digits
    python benchmarks/augmentation.py chests --arrays pneumoniamnist.npz --steps 4000 --width 32 --seeds 10

*digits*: 20 real digits of each class are drawn by the seed. A class-conditional model is trained on these alone, and
draws 200 more of each class, near-copies of the 20 dropped. A classifier is trained on the real ones, and another one
of the same seed and as many steps on both; the score is the accuracy on all other real digits.

*chests*: X-rays with two classes of which one has fewer items. A model of that class alone, trained once, draws what it
lacks. The score is the area under the ROC curve on the test items.

A seed has a file with its scores, and a killed study goes on: the model, the drawn data and the scores that are there
are taken from `--out`, where a study with other settings is refused. The last lines are the means, and the paired
difference with its error over the seeds. The digits take about six minutes on one core; the chests, at 28x28 pixels,
about an hour.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sde
from sde.data import Scaling, Split
from sde.evaluation import Augmentation
from sde.guidance import ClassifierFree
from sde.metrics.estimate import mean_estimate
from sde.metrics.features import ClassifierNetwork, as_items, fit_classifier
from sde.solvers import UniPC
from sde.storage.store import read


@dataclass(frozen=True)
class Setting:
    """One repeat of the comparison.

    Attributes:
        real: the real training items.
        test: what the classifiers are scored on.
        given: the items that the model is trained on, with labels if it is class-conditional.
        per_class: the number of items that it draws, of each class if it has some.
        label: the class of all drawn items, None for that of their row.
        scaling: the scaling of the values.
        score: the score of logits (N, K) with labels (N,).
        model: where the model and the drawn items are stored.
    """

    real: Split
    test: Split
    given: Split
    per_class: int
    label: int | None
    scaling: Scaling
    score: Callable[[Tensor, Tensor], float]
    model: Path


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def area(logits: Tensor, labels: Tensor) -> float:
    """The area under the ROC curve: the probability that an item of class 1 is above one of class 0."""
    value = logits[:, 1] - logits[:, 0]
    above, below = value[labels == 1], value[labels == 0]
    return float((above[:, None] > below).double().mean() + 0.5 * (above[:, None] == below).double().mean())


def digits(seed: int, out: Path) -> Setting:
    data = sde.data.digits()
    values = torch.cat([split[torch.arange(len(split))][0] for split in (data.train, data.test)])
    labels = torch.cat([split.labels for split in (data.train, data.test) if split.labels is not None])
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([order[labels[order] == k][:20] for k in range(10)])
    rest = torch.ones(len(values), dtype=torch.bool).index_fill(0, chosen, value=False)
    real, test = Split(values[chosen], labels[chosen]), Split(values[rest], labels[rest])
    return Setting(real, test, real, 200, None, data.scaling, accuracy, out / f"digits-{seed}")


def chests(arrays: Path, out: Path) -> Setting:
    with np.load(arrays) as file:
        named = {name: torch.from_numpy(file[name]) for name in file.files}
    x = {part: named[f"x_{part}"].reshape(-1, 1, 28, 28) for part in ("train", "test")}
    y = {part: named[f"y_{part}"].reshape(-1).long() for part in ("train", "test")}
    real, counts = Split(x["train"], y["train"]), y["train"].bincount()
    few = int(counts.argmin())
    given, test = Split(x["train"][y["train"] == few]), Split(x["test"], y["test"])
    scaling = Scaling.interval(256)
    return Setting(real, test, given, int(counts.max() - counts.min()), few, scaling, area, out / "chests")


def drawn(setting: Setting, steps: int, width: int, weight: float, seed: int) -> Split:
    """The items that a model of the given ones draws; both are stored."""
    path, classes = setting.model.with_suffix(".pt"), 10 if setting.given.labels is not None else None
    if not path.exists():
        torch.manual_seed(seed)
        network = sde.networks.UNet(1, width=width, multipliers=(1, 2), blocks=1, attention=(1,), classes=classes)
        denoiser = sde.NetworkDenoiser(network, sde.VP(), level=sde.LogSNRLevel(scale=50.0))
        how: dict[str, Any] = {
            "ema": 0.995,
            "warmup": 100,
            "seed": seed,
            "conditions": {"label": 0.1} if classes else [],
        }
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
        batches = sde.Batches(setting.given, 64, seed=seed)
        training = sde.Training(denoiser, batches, setting.scaling, optimizer=optimizer, **how)
        for _ in training.run(steps):
            pass
        sde.save(path, training.model(scaling=setting.scaling, ema="default", classes=classes))
    model = sde.load(path)
    guided = model.denoiser if classes is None else ClassifierFree(model.denoiser, weight)
    model = sde.Model(guided, model.scaling, model.shape, classes)
    more = setting.model.with_suffix(".h5")
    how = {"solver": UniPC(10), "seed": seed, "strength": None, "copies": 1 / 3, "batch_size": 256}
    job = Augmentation(
        model, setting.given, more, setting.per_class, key={"weight": weight, "steps": steps}, metadata={}, **how
    )
    for state in job.run():
        print(f"{more.name}: {state.rows} of {state.total}, {state.means}", flush=True)
    columns = read(more).columns
    labels = torch.from_numpy(columns["label"])
    return Split(
        torch.from_numpy(columns["x"]), labels if setting.label is None else torch.full_like(labels, setting.label)
    )


def scored(setting: Setting, train: Split, steps: int, seed: int) -> float:
    """The score of a classifier that is trained on some items."""
    levels = setting.scaling.levels
    assert train.labels is not None
    assert setting.test.labels is not None
    torch.manual_seed(seed)
    network = ClassifierNetwork(tuple(train.values.shape[1:]), int(train.labels.max()) + 1)
    for _ in fit_classifier(network, as_items(train.values, levels), train.labels, steps=steps, seed=seed):
        pass
    with torch.no_grad():
        parts = as_items(setting.test.values, levels).split(256)
        return setting.score(torch.cat([network(part).logits for part in parts]), setting.test.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "chests"])
    parser.add_argument(
        "--arrays", type=Path, default=Path("pneumoniamnist.npz"), help="x_train, y_train, x_test, y_test"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=500, help="training steps of the model")
    parser.add_argument("--width", type=int, default=24, help="its width")
    parser.add_argument("--weight", type=float, default=1.5, help="the weight of guidance")
    parser.add_argument("--classifier_steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/augmentation"))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(a).items() if name not in ("arrays", "out", "seeds")}
    stored = a.out / f"{a.data}.json"
    if stored.exists() and json.loads(stored.read_text()) != settings:
        parser.error(f"{a.out} has a study with {stored.read_text()}: give another --out, or the same settings")
    stored.write_text(json.dumps(settings))
    scores = []
    for seed in range(a.seeds):
        path = a.out / f"{a.data}-{seed}.json"
        if not path.exists():
            setting = digits(seed, a.out) if a.data == "digits" else chests(a.arrays, a.out)
            more = drawn(setting, a.steps, a.width, a.weight, seed if a.data == "digits" else 0)
            assert setting.real.labels is not None
            assert more.labels is not None
            values = torch.cat([setting.real.values, more.values.to(setting.real.values.dtype)])
            joined = Split(values, torch.cat([setting.real.labels, more.labels]))
            pair = [scored(setting, each, a.classifier_steps, seed) for each in (setting.real, joined)]
            path.write_text(json.dumps(pair))
        scores.append(json.loads(path.read_text()))
        print(f"seed {seed}: {scores[-1][0]:.4f} without, {scores[-1][1]:.4f} with", flush=True)
    without, both = torch.tensor(scores, dtype=torch.float64).T
    for name, values in (("without", without), ("with", both), ("difference", both - without)):
        print(f"{a.data}, {name}: {mean_estimate(values)}")


if __name__ == "__main__":
    main()
