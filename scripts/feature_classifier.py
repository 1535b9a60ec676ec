"""Trains a classifier for features on a data set's labels: `python scripts/feature_classifier.py data=digits`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from command import command, progress

from sde.evaluation import save_classifier
from sde.evaluation.outputs import check_replaceable, relevant
from sde.instantiate import build
from sde.metrics.features import ClassifierNetwork, accuracy, as_items, fit_classifier
from sde.runtime import choose_device


@command("feature_classifier")
def main(config: dict[str, Any]) -> None:
    data = build(config["data"], trust=config["trust"])
    train, test, levels = data.train, data.test, data.scaling.levels
    if train.labels is None or test.labels is None:
        raise ValueError(f"{data.name} has no labels, on which a classifier could be trained")
    x, x_test = (as_items(split[torch.arange(len(split), device="cpu")][0], levels) for split in (train, test))
    out = Path(config["out"] or f"runs/classifiers/{data.name}.pt")
    settings = relevant(config, data=data.fingerprint)
    check_replaceable(out, settings, overwrite=config["overwrite"])
    torch.manual_seed(config["seed"])
    network = ClassifierNetwork(data.shape, data.classes, width=config["width"], features=config["n_features"])
    network = network.to(choose_device(config["device"]))
    how = {key: config[key] for key in ("steps", "batch_size", "lr", "seed")}
    for loss, bar in progress(fit_classifier(network, x, train.labels, **how), config["steps"]):
        bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
    right = accuracy(network, x_test, test.labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings, sort_keys=True)
    save_classifier(out, network, data=train.fingerprint, accuracy=right.value, settings=text)
    print(f"{data.name}: recognises {right} of the {len(test)} test items; wrote {out}")


if __name__ == "__main__":
    main()
