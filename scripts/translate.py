"""Translates data of one model to another: `python scripts/translate.py source=PATH target=PATH`."""

from __future__ import annotations

from typing import Any

import torch
from command import command, told_by, variant
from sheet import Sheet

import sde
from sde.evaluation import JobSetup
from sde.evaluation.outputs import IRRELEVANT_KEYS, relevant
from sde.model import matched
from sde.runtime import choose_device
from sde.storage.checkpoint import resolve
from sde.storage.files import sha256

# The keys that the end of a default name leaves out: it has them in other words, or the result does not depend on them.
TOLD = (*IRRELEVANT_KEYS, "source", "split")


@command("translate")
def main(config: dict[str, Any]) -> None:
    setup, first = JobSetup.load(config | {"ckpt": config["source"]}), config["first"]
    path, solver, device = resolve(config["target"]), setup.build("solver"), choose_device(config["device"])
    source = setup.model
    target = sde.load(path, ema=config["ema"], device=device, trust=config["trust"])
    matched(source.process, target.process)
    split = setup.split(config["split"])
    index = torch.arange(len(split), device="cpu")[first : first + config["n"]]
    if not len(index):
        raise ValueError(f"first={first}: {setup.name} has {len(split)} samples")
    values, given = split[index]
    condition = {name: value for name, value in given.items() if name in (source.denoiser.takes or {})}
    label = condition.get("label") if config["label"] is None else config["label"]
    asked = {} if label is None or target.classes is None else target.condition(len(index), first=first, label=label)
    end = f"{type(solver).__name__}{variant(*TOLD, *told_by(solver, 'solver'))}.png"
    default = setup.directory / "translations" / f"{setup.path.stem}-{config['split']}-{end}"
    digests = {"source_sha256": setup.sha256, "target_sha256": sha256(path)}
    sheet = Sheet(config, default, relevant(config, "source", "target", **digests))
    settings: dict[str, Any] = {"solver": solver, "denoise": config["denoise"], "target_condition": asked}
    x = source.translate(values, target, condition=condition, **settings)
    written = sheet.write_pairs(values, x, target.scaling, index=index.numpy())
    print(f"translated {len(x)} samples of {setup.name}; {written}")


if __name__ == "__main__":
    main()
