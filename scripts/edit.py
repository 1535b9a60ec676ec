"""Makes variants of data by noising and denoising it: `python scripts/edit.py ckpt=PATH strength=0.4`."""

from __future__ import annotations

from typing import Any

import torch
from command import command, conditions, named_by, track, variant
from sheet import Sheet

from sde.evaluation import JobSetup
from sde.evaluation.outputs import IRRELEVANT_KEYS, relevant

# The keys that the end of a default name leaves out: it has them in other words, or edits do not depend on them.
UNNAMED_KEYS = (*IRRELEVANT_KEYS, "seed", "split", "strength")


@command("edit")
def main(config: dict[str, Any]) -> None:
    setup, first = JobSetup.load(config), config["first"]
    model, solver = setup.model, setup.build("solver")
    split = setup.split(config["split"])
    index = torch.arange(len(split), device="cpu")[first : first + config["n"]]
    if not len(index):
        raise ValueError(f"first={first}: {setup.name} has {len(split)} samples")
    condition = conditions(model, config, len(index), first)
    values, of_data = split[index]
    # What is not said is the condition of the data itself.
    takes = model.denoiser.takes or {}
    condition = {name: value for name, value in of_data.items() if name in takes} | condition
    other = variant(*UNNAMED_KEYS, *named_by(solver, "solver"))
    end = f"{type(solver).__name__}-strength{config['strength']}-seed{config['seed']}{other}.png"
    default = setup.directory / "edits" / f"{setup.path.stem}-{config['split']}-{end}"
    sheet = Sheet(config, default, relevant(config, checkpoint_sha256=setup.sha256))
    settings = {key: config[key] for key in ("seed", "first", "denoise")}
    with track("edit") as progress:
        x = model.edit(values, config["strength"], solver=solver, condition=condition, progress=progress, **settings)
    written = sheet.write_pairs(values, x, model.scaling, index=index.numpy())
    print(f"edited {len(x)} samples of {setup.name}; {written}")


if __name__ == "__main__":
    main()
