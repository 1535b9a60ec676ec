r"""Digits that are asked for in words, written or spoken: the figures and the pictures in the documentation.

    python benchmarks/prompts.py text
    python benchmarks/prompts.py speech --clips fsdd.npz

*text*: digits on a canvas of 8x12 pixels, to the left, in the middle or to the right, with captions, which
:class:`sde.data.Words` encodes. Each digit lacks one of the places in training, another one for every digit
in turn, and the sentences of the prompts are none of the captions'. A sample is right if a classifier of real digits
at all places finds the digit *and* the place.

*speech*: the tokens are a feature map of a small network that tells spoken digits apart, trained here on the training
clips; the prompts are the test clips, other recordings of the same speakers. A sample is right if the classifier of
real digits finds the digit that was said.

Classifier-free guidance, with everything fixed by `--seed`. Each takes two to four minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sde
from sde.data import Split
from sde.data.captions import Words
from sde.guidance import ClassifierFree
from sde.metrics import Estimate
from sde.metrics.estimate import proportion
from sde.metrics.features import ClassifierNetwork, accuracy, as_items, fit_classifier
from sde.plots import save_samples

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("left", "middle", "right")
CAPTIONS = (
    ("{} shifted left", "a {}, shifted left", "the digit {} on the left"),
    ("a {}", "the digit {}", "{} in the middle"),
    ("{} shifted right", "a {}, shifted right", "the digit {} on the right"),
)
PROMPTS = ("a {} on the left", "a {} in the middle", "a {} on the right")


@dataclass(frozen=True)
class Task:
    """The training, and the prompts of its samples.

    Attributes:
        train: training samples with `tokens` and `tokens_mask`.
        prompts: the conditions of the samples that are drawn.
        wanted: their classes.
        groups: the kind of each prompt.
        recogniser: the network that finds the classes, and how many real test items it recognises.
        encoder: the encoder of captions, if there is one.
    """

    train: Split
    prompts: dict[str, Tensor]
    wanted: Tensor
    groups: Sequence[str]
    recogniser: tuple[ClassifierNetwork, Estimate]
    encoder: Words | None = None


def classifier(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, steps: int) -> tuple[ClassifierNetwork, Estimate]:
    network = ClassifierNetwork(tuple(x.shape[1:]), int(y.max()) + 1)
    for _ in fit_classifier(network, x, y, steps=steps):
        pass
    return network, accuracy(network, x_test, y_test)


def placed(x: Tensor, place: int) -> Tensor:
    """Digits (N, 1, 8, 8) on the canvas, with shape (N, 1, 8, 12)."""
    return torch.nn.functional.pad(x, (2 * place, 4 - 2 * place))


def text(data: sde.data.DataSet, each: int) -> Task:
    (x, y), (x_test, y_test) = (pair(split) for split in (data.train, data.test))
    encoder, images, texts = Words(length=8), [], list[str]()
    for place, captions in enumerate(CAPTIONS):
        trained = (y + place) % 3 != 0
        for caption in captions:
            images.append(placed(x[trained], place))
            texts += [caption.format(NAMES[k]) for k in y[trained].tolist()]
    tokens, mask = encoder(texts)
    asked = [(k, place) for k in range(10) for place in range(3) for _ in range(each)]
    prompts = encoder([PROMPTS[place].format(NAMES[k]) for k, place in asked])
    groups = ["trained" if (k + place) % 3 else "never trained" for k, place in asked]
    every = [
        (as_items(torch.cat([placed(values, place) for place in range(3)]), 17), at_all(labels))
        for values, labels in ((x, y), (x_test, y_test))
    ]
    return Task(
        Split(torch.cat(images), None, {"tokens": tokens, "tokens_mask": mask}),
        dict(zip(("tokens", "tokens_mask"), prompts)),
        torch.tensor([3 * k + place for k, place in asked]),
        groups,
        classifier(*every[0], *every[1], steps=800),
        encoder,
    )


def at_all(y: Tensor) -> Tensor:
    """The classes of digits at the three places, one after another."""
    return torch.cat([3 * y + place for place in range(3)])


def pair(split: Any) -> tuple[Tensor, Tensor]:
    return split[torch.arange(len(split))][0], split.labels


def log_mel(clip: Any, bands: int = 40, frames: int = 64) -> Tensor:
    """The logarithm of the energy in mel bands, of 32 ms every 16 ms, with shape (bands, frames); silence is added."""
    wave = torch.from_numpy(clip.astype(np.float32))[: 128 * frames] / 2**15
    wave = torch.nn.functional.pad(wave, (0, 128 * (frames + 1) - len(wave)))
    power = torch.stft(wave, 256, 128, window=torch.hann_window(256), center=False, return_complex=True).abs().square()
    mel = 2595.0 * torch.log10(1.0 + torch.linspace(0.0, 4000.0, 129) / 700.0)
    edges = torch.linspace(0.0, mel[-1].item(), bands + 2)
    rise = (mel - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - mel) / (edges[2:] - edges[1:-1])[:, None]
    return (torch.minimum(rise, fall).clamp(min=0.0) @ power + 1e-6).log()


def speech(data: sde.data.DataSet, clips: Path, per_image: int = 6) -> Task:
    with np.load(clips) as file:
        pcm, offset, said, is_test = (file[key] for key in ("pcm", "offset", "digit", "is_test"))
    sound = torch.stack([log_mel(pcm[a:b]) for a, b in itertools.pairwise(offset)])
    said, test = torch.from_numpy(said.astype(np.int64)), torch.from_numpy(is_test.astype(bool))
    listener, heard = classifier(sound[~test], said[~test], sound[test], said[test], steps=500)
    print(f"the encoder of speech recognises {heard} of the test clips", flush=True)
    with torch.no_grad():
        maps = listener(sound).maps
    tokens = maps[-2].mT.contiguous()  # (N, 8, 128)
    (x, y), (x_test, y_test) = (pair(split) for split in (data.train, data.test))
    g, index = torch.Generator().manual_seed(0), torch.empty(len(x), per_image, dtype=torch.int64)
    for k in range(10):
        clips_of = ((said == k) & ~test).nonzero()[:, 0]
        index[y == k] = clips_of[torch.randint(len(clips_of), (int((y == k).sum()), per_image), generator=g)]
    return Task(
        Split(x.repeat_interleave(per_image, 0), None, {"tokens": tokens[index.flatten()]}),
        {"tokens": tokens[test]},
        said[test],
        ["test clips"] * int(test.sum()),
        classifier(as_items(x, 17), y, as_items(x_test, 17), y_test, steps=400),
    )


def trained(task: Task, data: sde.data.DataSet, steps: int, seed: int) -> sde.Model:
    """A U-Net with cross-attention, trained on the samples of a task."""
    torch.manual_seed(seed)
    sizes = sde.networks.Conditions(tokens=task.prompts["tokens"].shape[2])
    network = sde.networks.UNet(1, width=32, multipliers=(1, 2), blocks=1, attention=(1,), conditions=sizes)
    denoiser = sde.NetworkDenoiser(network, sde.VP(), level=sde.LogSNRLevel(scale=50.0))
    training = sde.Training(
        denoiser,
        sde.Batches(task.train, 64, seed=seed),
        data.scaling,
        optimizer=torch.optim.Adam(denoiser.parameters(), lr=1e-3),
        ema=0.998,
        warmup=100,
        seed=seed,
        conditions={"tokens": 0.1, **({"tokens_mask": 0.0} if "tokens_mask" in task.prompts else {})},
    )
    for report in training.run(steps):
        if report.step % 100 == 0:
            print(f"step {report.step}, loss {report.loss:.4f}, {time.process_time():.0f} s of CPU", flush=True)
    model = training.model(scaling=data.scaling, ema="default")
    return sde.Model(model.denoiser, model.scaling, tuple(task.train.values.shape[1:]), encoder=task.encoder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["text", "speech"])
    parser.add_argument("--clips", type=Path, default=Path("fsdd.npz"), help="the Free Spoken Digit data as arrays")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--each", type=int, default=20, help="samples of each prompt in words")
    parser.add_argument("--weight", type=float, default=2.0, help="the weight of guidance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="a file for the model, which is used if it is there")
    parser.add_argument("--out", type=Path, default=Path("docs/_generated/prompts"))
    a = parser.parse_args()
    data = sde.data.digits()
    torch.manual_seed(a.seed)
    task = text(data, a.each) if a.task == "text" else speech(data, a.clips)
    network, right = task.recogniser
    print(f"the classifier recognises {right} of the real test digits", flush=True)
    if a.model is not None and a.model.exists():
        model = sde.load(a.model)
    else:
        model = trained(task, data, a.steps, a.seed)
        if a.model is not None:
            sde.save(a.model, model)
    guided = sde.Model(ClassifierFree(model.denoiser, a.weight), model.scaling, model.shape, encoder=model.encoder)
    x = guided.sample(len(task.wanted), seed=a.seed + 1, condition=task.prompts, batch_size=200)
    with torch.no_grad():
        found = network(as_items(x, 17)).logits.argmax(1)
    for group in dict.fromkeys(task.groups):
        rows = torch.tensor([each == group for each in task.groups])
        print(f"{a.task}, {group}: {proportion(int((found == task.wanted)[rows].sum()), int(rows.sum()))} right")
    a.out.mkdir(parents=True, exist_ok=True)
    shown = torch.arange(len(x))[:: a.each].repeat_interleave(2)
    if a.task == "text":  # two of each of the thirty prompts
        shown += torch.arange(len(shown)) % 2
    else:  # a row for each digit that was said
        shown = torch.cat([(task.wanted == k).nonzero()[:10, 0] for k in range(10)])
    save_samples(a.out / f"{a.task}.png", x[shown], model.scaling, columns=6 if a.task == "text" else 10)
    print(f"{time.process_time():.0f} s of CPU in all")


if __name__ == "__main__":
    main()
