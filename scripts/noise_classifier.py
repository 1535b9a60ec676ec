"""Trains a classifier of noisy states for guidance: `python scripts/noise_classifier.py ckpt=PATH`; `--help` lists the
keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from command import command, progress, swept

import sde
from sde.evaluation import JobSetup, fit_noise_classifier, noise_accuracy, save_noise_classifier
from sde.evaluation.outputs import IRRELEVANT_KEYS, check_replaceable, relevant
from sde.guidance import NoiseClassifier
from sde.networks import Encoder
from sde.sampling import state_like


@command("noise_classifier")
def main(config: dict[str, Any]) -> None:
    setup = JobSetup.load(config, swept(*IRRELEVANT_KEYS))
    model, data = setup.model, setup.data
    train, test = setup.split("train"), setup.split("test" if data.valid is None else "valid")
    if data.classes is None or data.classes < 2:
        raise ValueError(f"{data.name} has no labels of two classes or more, on which a classifier could be trained")
    data.check_classes(data.classes)
    out = Path(config["out"] or setup.directory / f"noise_classifier{setup.variant}.pt")
    settings = relevant(config, data=data.fingerprint, checkpoint_sha256=setup.sha256)
    check_replaceable(out, settings, overwrite=config["overwrite"])
    torch.manual_seed(config["seed"])
    network = Encoder(model.shape, data.classes, **{key: config[key] for key in ("width", "depth", "dropout")})
    classifier = NoiseClassifier(network, model.process, data.classes).to(state_like(model.denoiser).device)
    batches = sde.Batches(train, config["batch_size"], seed=config["seed"])
    how = {key: config[key] for key in ("steps", "lr", "seed")}
    for loss, bar in progress(fit_noise_classifier(classifier, batches, model.scaling, **how), config["steps"]):
        bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings, sort_keys=True)
    save_noise_classifier(out, classifier, checkpoint_sha256=setup.sha256, settings=text)
    by_level = noise_accuracy(classifier, test, model.scaling, seed=config["seed"])
    levels = ", ".join(f"{e.value:.3f} +- {e.standard_error:.1g} at {level:g}" for level, e in by_level.items())
    print(f"{data.name}: recognises {levels} times as much noise as data of {len(test)} held-out items; wrote {out}")


if __name__ == "__main__":
    main()
