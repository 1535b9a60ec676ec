"""Says what `make demo` has made: `python scripts/demo.py run_dir=PATH samples=PATH`; `--help` lists the keys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command import command

import sde
from sde.comparison import digits_mixture
from sde.data.scaling import nats_to_bits
from sde.evaluation.summary import summarise
from sde.likelihood.dequantisation import states
from sde.storage.checkpoint import load_checkpoint
from sde.storage.store import read


@command("demo")
def main(config: dict[str, Any]) -> None:
    folder, samples = Path(config["run_dir"]), Path(config["samples"])
    scores, values = folder / "likelihood" / "test.h5", samples.with_suffix(".npz")
    for path in (scores, samples, values):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run `make demo`, which makes it")
    steps, summary, data = load_checkpoint(folder)["step"], summarise(read(scores).columns), sde.data.digits()
    with np.load(values) as archive:
        drawn = len(archive["index"])
    mixture, x = digits_mixture(config["components"]), data.test[torch.arange(len(data.test), device="cpu")][0]
    draws = [states(mixture.denoiser(sde.VP()), data.scaling, x, repeat=k) for k in range(8)]
    nats = sum((mixture.log_prob(s.x.flatten(1)) + s.log_weight).mean().item() for s in draws) / len(draws)
    levels, bits = data.scaling.levels or 0, nats_to_bits(nats, x[0].numel())
    print(
        f"Made: a score model of handwritten digits of 8x8 pixels, trained for {steps} steps, {drawn} new digits that "
        f"it drew, and the bits/dim of {summary.samples} digits that it had not seen."
    )
    print(
        f"Where: the new digits are the picture {samples}, the bits/dim of each test digit are in {scores}, and "
        f'sde.load("{folder}") opens the model.'
    )
    print(
        f"What it means: to store a test digit takes {summary.bits_per_dim:.2f} bits for each pixel with this model, "
        f"{math.log2(levels):.2f} with {levels} grey levels that are equally likely, and {bits:.2f} with a mixture of "
        f"{config['components']} Gaussians fitted to the same training digits, so that less is better."
    )


if __name__ == "__main__":
    main()
