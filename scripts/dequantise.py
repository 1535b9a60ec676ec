"""Trains a dequantiser for a model: `python scripts/dequantise.py ckpt=PATH`; `--help` lists the keys."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from command import command, progress, swept, track

from sde.evaluation import JobSetup, save_dequantiser
from sde.evaluation.dequantiser_file import check_free
from sde.evaluation.dequantiser_training import Gain, bits, fit
from sde.evaluation.outputs import IRRELEVANT_KEYS, relevant
from sde.instantiate import build
from sde.sampling import state_like


@command("dequantiser_training")
def main(config: dict[str, Any]) -> None:
    setup = JobSetup.load(config, swept(*IRRELEVANT_KEYS))
    model, data, density = setup.model, setup.data, setup.build("density")
    out = Path(config["out"] or setup.directory / f"dequantiser{setup.variant}.pt")
    check_free(out, overwrite=config["overwrite"])
    settings = {key: config[key] for key in ("batch_size", "seed")}
    torch.manual_seed(config["seed"])
    tree = {"_target_": "sde.likelihood.VariationalDequantiser", "layers": config["layers"], "width": config["width"]}
    dequantiser = build(tree, shape=model.shape, levels=model.scaling.levels).to(state_like(model.denoiser).device)
    losses = fit(model, setup.split("train"), dequantiser, density, lr=config["lr"], **settings)
    kind = "test" if data.valid is None else "valid"
    check = {"n": config["n"], **settings}
    with track("uniform noise") as progressed:
        uniform = bits(model, setup.split(kind), density, progress=progressed, **check)

    def save(steps: int) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(relevant(config, "n") | {"steps": steps}, sort_keys=True)
        save_dequantiser(out, dequantiser, settings=text, checkpoint_sha256=setup.sha256)

    mean, done = 0.0, 0
    try:
        for loss, bar in progress(itertools.islice(losses, config["steps"]), config["steps"]):
            done += 1
            mean += (loss - mean) / min(done, 50)
            bar.set_postfix_str(f"{mean:.4f} bits/dim", refresh=False)
    except KeyboardInterrupt:
        if done and not out.exists():  # a partial result is useful, but does not replace a whole one
            save(done)
            print(f"interrupted after step {done}; wrote {out}")
        raise
    save(config["steps"])
    with track("learned noise") as progressed:
        gain = Gain.of(uniform, bits(model, setup.split(kind), density, dequantiser, progress=progressed, **check))
    print(f"{data.name} {kind}: {gain}; wrote {out}")


if __name__ == "__main__":
    main()
