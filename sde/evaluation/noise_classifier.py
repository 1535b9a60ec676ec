r"""Noise-aware classifiers of a model's data: their training on noised data, their accuracy, and their files.

The loss is the cross-entropy :math:`-\log q(y|x_t)` of labels and noised data, whose minimum is
:math:`p(y|x_t)`. Files have the format of checkpoints, with the keys `classifier` (a tree of public names, as JSON
text), `weights`, `checkpoint_sha256` (of the model for whose process and data it was trained) and `settings`; loading
runs no code of a file.
"""

from __future__ import annotations

__all__ = [
    "fit_noise_classifier",
    "load_noise_classifier",
    "noise_accuracy",
    "save_noise_classifier",
]

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.functional import nll_loss

from ..data import Scaling, Source
from ..guidance import NoiseClassifier
from ..instantiate import MODEL_ROOMS, build, describe
from ..metrics import Estimate
from ..metrics.estimate import proportion
from ..noise import Noise, Stream
from ..objective import UniformTimes
from ..sampling import state_like
from ..shapes import check_count, check_recordable, expand, recordable, recording
from ..storage.checkpoint import load_checkpoint, misfits, write
from ..training.batches import BatchSource, to_model
from ..training.loss import Rows, draws


def fit_noise_classifier(
    classifier: NoiseClassifier,
    batches: BatchSource,
    scaling: Scaling | None,
    *,
    steps: int,
    lr: float = 1e-3,
    seed: int = 0,
) -> Iterator[float]:
    """Trains a classifier in place by AdamW with a one-cycle learning rate, and yields the loss of every step in nats.

    Times are uniform, and spread evenly over each batch; times and noise are functions of the seed and the step.

    Args:
        classifier: the classifier; it is in evaluation mode at the end.
        batches: the data, with the condition `label`.
        scaling: the scaling of its values, as in :class:`sde.Training`.
        steps: the number of steps.
        lr: the largest learning rate.
        seed: the seed of times and noise.

    Raises:
        ValueError: if the data has no labels, or a label that is none of the classes.
        FloatingPointError: if the loss is not finite.
    """
    check_recordable(classifier, "its weights cannot be trained", "classifier")
    check_count("fit_noise_classifier", "steps", steps)
    if "label" not in (first := batches[0].condition):
        raise ValueError(f"a classifier needs the condition 'label': the conditions are {', '.join(first) or 'none'}")
    batches.check_labels(classifier.classes)
    reference, noise, process = state_like(classifier), Noise(seed), classifier.process
    optimizer = torch.optim.AdamW(classifier.network.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    classifier.train()
    for step in range(steps):
        with recording(True):
            batch = batches[step]
            x0 = recordable(to_model(batch, scaling, batches.noise, reference.dtype)).to(reference.device)
            u, z = draws(noise, step, x0, Rows(0, len(x0), len(x0)))
            t = UniformTimes()(process, u)[0]
            mean, std = process.marginal(x0, t)
            log_probs = classifier.log_probs(mean + expand(std, x0) * z, t)
            loss = nll_loss(log_probs, recordable(batch.condition["label"]).to(reference.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of step {step + 1} is {value}: a smaller learning rate may help")
        yield value
    classifier.eval()


def noise_accuracy(
    classifier: NoiseClassifier,
    data: Source,
    scaling: Scaling,
    levels: Sequence[float] = (0.1, 0.5, 1.0, 2.0),
    *,
    seed: int = 0,
    block: int = 256,
) -> dict[float, Estimate]:
    r"""The proportion of samples with labels that a classifier recognises, with its binomial error, by noise level.

    Args:
        classifier: the classifier.
        data: samples with labels.
        scaling: the scaling of their values.
        levels: the noise levels :math:`\sigma/\alpha`.
        seed: the seed of the noise.
        block: the number of samples in memory at a time.
    """
    reference, noise, process = state_like(classifier), Noise(seed), classifier.process
    right = dict.fromkeys(levels, 0)
    for index in torch.arange(len(data), device="cpu").split(block):
        values, condition = data[index]
        x0 = scaling.to_model(values, dtype=reference.dtype)
        for number, level in enumerate(levels):
            t = process.time(torch.tensor(-2.0 * math.log(level), dtype=torch.float64, device="cpu"))
            mean, std = process.marginal(x0, t)
            counter = torch.tensor(number, device="cpu")
            x_t = mean + expand(std, x0) * noise.normal(Stream.PERTURB, index, counter, x0.shape[1:], x0.dtype)
            with torch.no_grad():
                predicted = classifier.log_probs(x_t.to(reference.device), t).argmax(1).cpu()
            right[level] += int((predicted == condition["label"]).sum())
    return {level: proportion(count, len(data)) for level, count in right.items()}


def save_noise_classifier(
    path: str | os.PathLike[str], classifier: NoiseClassifier, *, checkpoint_sha256: str = "", settings: str = "{}"
) -> None:
    """Writes a classifier atomically.

    Args:
        path: the file, which is replaced if it exists; its directory must exist.
        classifier: the classifier, made of classes of this library.
        checkpoint_sha256: the digest of the model's checkpoint.
        settings: the settings of the training, as JSON text.
    """
    weights = {name: value.detach().cpu() for name, value in classifier.state_dict().items()}
    tree = json.dumps(describe(classifier), indent=1)
    write(path, {"classifier": tree, "weights": weights, "checkpoint_sha256": checkpoint_sha256, "settings": settings})


def load_noise_classifier(path: str | os.PathLike[str]) -> NoiseClassifier:
    """Loads a classifier of :func:`save_noise_classifier`, whose parameters then require no gradients.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is truncated, altered or not one of a noise-aware classifier.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no classifier at {path}: expected a file of scripts/noise_classifier.py")
    try:
        content = load_checkpoint(path)
        tree, weights = json.loads(content["classifier"]), content["weights"]
        with torch.device("meta"):  # before memory is taken for it
            sizes = {name: value.shape for name, value in build(tree, rooms=MODEL_ROOMS).state_dict().items()}
        if text := misfits(sizes, weights):
            raise ValueError(f"its weights are not those of its settings: {text}")
        classifier = build(tree, rooms=MODEL_ROOMS)
        if not isinstance(classifier, NoiseClassifier):
            raise ValueError(f"it has a {type(classifier).__name__}")
        classifier.load_state_dict(weights)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(
            f"{path} does not contain a usable noise-aware classifier: {reason}; expected a file of "
            "scripts/noise_classifier.py"
        ) from error
    return classifier.eval().requires_grad_(False)
