r"""Pictures of edges to digits: paired translation from noise and by a bridge, the worked example of the documentation.

    python benchmarks/edges.py

The source is where the digit differs by 6 levels or more from its right or its lower neighbour. Two models are trained
on pairs, both with the source as the condition `image`: an ordinary process, which starts from noise, and a bridge,
which starts from the source. Of the test digits, the share is printed whose translation a classifier of real digits
recognises as the digit, and the share of pixels whose edge is the one that was asked for; then a picture of sources,
two translations by each, and the digits themselves. About four minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

import sde
from sde.data import Split
from sde.metrics.features import ClassifierNetwork, accuracy, as_items, fit_classifier
from sde.plots import save_samples


def edges(x: Tensor) -> Tensor:
    """The edges of digits (N, 1, 8, 8), 1 or -1, in the same shape."""
    padded = torch.nn.functional.pad(x.float(), (0, 1, 0, 1))
    here = padded[..., :-1, :-1]
    steps = torch.maximum((padded[..., :-1, 1:] - here).abs(), (padded[..., 1:, :-1] - here).abs())
    return 2.0 * (steps >= 6).float() - 1.0


def trained(process: sde.SDE, train: Split, scaling: sde.data.Scaling, steps: int, seed: int) -> sde.Model:
    """A U-Net with the edges as its condition."""
    torch.manual_seed(seed)
    sizes = sde.networks.Conditions(image=1)
    network = sde.networks.UNet(1, width=32, multipliers=(1, 2), blocks=1, attention=(1,), conditions=sizes)
    denoiser = sde.NetworkDenoiser(network, process, sde.EDM(0.5), sde.LogSNRLevel(scale=50.0))
    training = sde.Training(
        denoiser,
        sde.Batches(train, 64, seed=seed),
        scaling,
        objective=sde.objective.DenoisingScoreMatching(
            times=sde.objective.LogNormalTimes(), weighting=sde.objective.EDMWeighting()
        ),
        optimizer=torch.optim.Adam(denoiser.parameters(), lr=1e-3),
        ema=0.998,
        warmup=100,
        seed=seed,
        conditions={"image": 0.0},
    )
    for report in training.run(steps):
        if report.step % 200 == 0:
            print(f"step {report.step}, loss {report.loss:.4f}, {time.process_time():.0f} s of CPU", flush=True)
    return training.model(scaling=scaling, ema="default")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/_generated/editing"))
    a = parser.parse_args()
    data = sde.data.digits()
    (x, y), (truth, labels) = ((split[torch.arange(len(split))][0], split.labels) for split in (data.train, data.test))
    assert y is not None
    assert labels is not None
    torch.manual_seed(a.seed)
    network = ClassifierNetwork((1, 8, 8), 10)
    for _ in fit_classifier(network, as_items(x, 17), y, steps=400):
        pass
    print(f"the classifier recognises {accuracy(network, as_items(truth, 17), labels)} of the test digits")
    train, source = Split(x, None, {"image": edges(x)}), edges(truth)
    shown = torch.arange(10)
    rows = [((source[shown] + 1.0) * 8.0).to(truth.dtype)]
    for name, process in {"from noise": sde.VP(), "bridge": sde.Bridge(sde.VE(sigma_max=2.0))}.items():
        model = trained(process, train, data.scaling, a.steps, a.seed)
        draws = [model.sample(len(truth), seed=a.seed + k, condition={"image": source}) for k in (1, 2)]
        right = accuracy(network, as_items(draws[0], 17), labels)
        same = (edges(draws[0]) == source).float().mean()
        apart = (draws[0].float() - draws[1].float()).square().mean().sqrt()
        away = (draws[0].float() - truth.float()).square().mean().sqrt()
        print(
            f"{name}: recognised {right}; {same:.3f} of the edges; {apart:.2f} levels RMS between two draws and "
            f"{away:.2f} to the digit itself",
            flush=True,
        )
        rows += [each[shown] for each in draws]
    a.out.mkdir(parents=True, exist_ok=True)
    save_samples(a.out / "edges.png", torch.cat([*rows, truth[shown]]), data.scaling, columns=len(shown))
    print(f"{time.process_time():.0f} s of CPU in all")


if __name__ == "__main__":
    main()
