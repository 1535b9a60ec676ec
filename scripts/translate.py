"""Translates data of one model to another: `python scripts/translate.py source=PATH target=PATH`."""

from __future__ import annotations

from typing import Any

import torch
from command import command, named_by, variant
from sheet import Sheet

import sde
from sde.evaluation import JobSetup
from sde.evaluation.outputs import IRRELEVANT_KEYS, relevant
from sde.model import matched
from sde.runtime import choose_device
from sde.storage.checkpoint import resolve
from sde.storage.files import sha256

# The keys that the end of a default name leaves out: it has them in other words, or the result does not depend on them.
UNNAMED_KEYS = (*IRRELEVANT_KEYS, "source", "split")


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
    values, of_data = split[index]
    condition = {name: value for name, value in of_data.items() if name in (source.denoiser.takes or {})}
    label = condition.get("label") if config["label"] is None else config["label"]
    labelled = label is not None and target.classes is not None
    target_condition = target.condition(len(index), first=first, label=label) if labelled else {}
    end = f"{type(solver).__name__}{variant(*UNNAMED_KEYS, *named_by(solver, 'solver'))}.png"
    default = setup.directory / "translations" / f"{setup.path.stem}-{config['split']}-{end}"
    digests = {"source_sha256": setup.sha256, "target_sha256": sha256(path)}
    sheet = Sheet(config, default, relevant(config, "source", "target", **digests))
    settings: dict[str, Any] = {"solver": solver, "denoise": config["denoise"], "target_condition": target_condition}
    x = source.translate(values, target, condition=condition, **settings)
    written = sheet.write_pairs(values, x, target.scaling, index=index.numpy())
    print(f"translated {len(x)} samples of {setup.name}; {written}")


if __name__ == "__main__":
    main()
