r"""Run directories: a training run from a config, and the files that it writes.

A run directory contains `config.yaml`, `metrics.jsonl`, `checkpoints/` and `samples/`. The same config continues the
run in the directory; another one is refused, except for the keys that do not change the result,
:data:`RESUMABLE_KEYS`. The files of new runs contain public names only; names of version 0.1.0 in older ones mean the
same classes.
"""

from __future__ import annotations

__all__ = ["RESUMABLE_KEYS", "Run", "assemble", "differences", "opened"]

import contextlib
import inspect
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import DataSet
from ..data.dataset import check_labels
from ..denoisers import Denoiser
from ..instantiate import MODEL_ROOMS, build, describe, find, public
from ..runtime import choose_device
from ..storage.checkpoint import load_checkpoint, resolve, save_checkpoint
from ..storage.files import Lock, write_atomically
from ..version import __version__
from .batches import Batches
from .loop import Report, Training, validate

# The keys of the config that may change when a run is continued.
RESUMABLE_KEYS = (
    *("steps", "device", "run_dir", "log_every", "save_every", "validate_every", "keep", "trust", "preview"),
    *("workers", "unreadable"),
)


def assemble(config: Mapping[str, Any], data: DataSet) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of a config for a data set, and the tree of plain values from which a checkpoint rebuilds it.

    Arguments of the network that follow from the data (`channels`, `features`, `rank`; `classes` if it is
    `conditional`) are filled in if the config does not give them.

    Args:
        config: the trees `sde`, `network` and `denoiser`, `conditional` and `trust`.
        data: the data set.

    Raises:
        ValueError: if the network has classes and is not `conditional`, or if it is and the data has no labels or one
            that is none of its classes.
    """
    trust, classes = config.get("trust") or (), data.classes if config["conditional"] else None
    if config["conditional"] and classes is None:
        raise ValueError(f"conditional=true needs labels, and {data.name} has none: give data with labels, or false")
    facts = {"channels": data.shape[0], "features": math.prod(data.shape), "rank": len(data.shape) - 1}
    facts |= {} if classes is None else {"classes": classes}
    network_tree = dict(config["network"])
    for key in inspect.signature(find(network_tree["_target_"], trust=trust)).parameters.keys() & facts.keys():
        if network_tree.get(key) is None:
            network_tree[key] = facts[key]
    tree = public(
        {
            "process": config["sde"],
            "network": network_tree,
            "denoiser": config["denoiser"],
            "scaling": describe(data.scaling),
            "shape": list(data.shape),
            "classes": classes,
        }
    )
    parts = {"process": build(tree["process"], trust=trust), "network": build(network_tree, trust=trust)}
    denoiser: Denoiser = build(tree["denoiser"], trust=trust, **parts)
    if classes is not None:
        _check_classes(data, denoiser.classes or classes)
    elif denoiser.classes is not None:
        raise ValueError(f"network.classes={denoiser.classes} needs the labels of the data: give conditional=true")
    return denoiser, tree


def _check_classes(data: DataSet, classes: int) -> None:
    """Refuses labels that are none of the network's classes, and warns of a class of the data without training samples,
    which a model would draw in its turn."""
    for name, split in data.splits.items():
        if split.labels is not None:
            check_labels(f"{data.name}: {name} labels", split.labels, classes, describe=split.describe)
    present = data.train.labels.unique().tolist() if data.train.labels is not None else []
    if len(present) < (data.classes or 0):
        absent = next(i for i, label in enumerate([*present, None]) if i != label)
        warnings.warn(
            f"{data.name}: no training sample has the label {absent}, but samples of each of {data.classes} classes "
            "will be drawn: number the labels from 0 without gaps",
            stacklevel=4,
        )


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, free: Sequence[str] = RESUMABLE_KEYS
) -> Iterator[str]:
    """Yields a line for each dotted key in which two configs differ, except for the free keys.

    Two names of one class, such as that of version 0.1.0 and the present one, are equal.
    """
    a, b = (dict(_flat(public({k: v for k, v in config.items() if k not in free}))) for config in (old, new))
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            yield f"{key} was {a.get(key)!r} and is now {b.get(key)!r}"


@contextlib.contextmanager
def opened(
    directory: str | os.PathLike[str],
    config: Mapping[str, Any],
    text: str,
    read: Callable[[Path], Mapping[str, Any] | None],
) -> Iterator[Run]:
    """The run in a directory, with the lock of its single writer.

    The lock is the file `.lock` in the directory, which blocks nobody once its process has ended. A run that does not
    start leaves no directory behind.

    Args:
        directory, config, text: as in :class:`Run`.
        read: reads the config at a path; None if there is no file.

    Raises:
        ValueError: as in :class:`Run`.
        BlockingIOError: if another process trains in the directory.
    """
    directory = Path(directory)
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(directory / ".lock")
        try:
            yield Run(directory, config, text, read(directory / "config.yaml"))
        finally:
            lock.release()
    finally:
        for path in created:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


class Run:
    """A training run in a directory. :func:`opened` keeps other processes out of it.

    Args:
        directory: the directory; created by :meth:`start` if it is missing.
        config: the whole config, a tree of plain values.
        text: the config as text for `config.yaml`.
        stored: the config in the directory, if there is one.

    Attributes:
        checkpoints: the directory of the checkpoints.
        metrics: the file of the metrics, one JSON object a line.

    Raises:
        ValueError: if the directory belongs to another config, or contains something else.
    """

    def __init__(
        self, directory: str | os.PathLike[str], config: Mapping[str, Any], text: str, stored: Mapping[str, Any] | None
    ) -> None:
        self.directory = Path(directory)
        self.checkpoints, self.metrics = self.directory / "checkpoints", self.directory / "metrics.jsonl"
        self.config = config
        self._text = text
        if stored is not None:
            for difference in differences(stored, config):
                raise ValueError(
                    f"{self.directory} belongs to another config: {difference}; "
                    "give another run_dir=, or the same settings"
                )
        elif self.directory.is_dir() and any(not p.name.startswith(".") for p in self.directory.iterdir()):
            raise ValueError(
                f"{self.directory} is not empty and has no config.yaml, so it is not a run directory; "
                "give another run_dir="
            )
        self._losses: list[float] = []
        self._newest: tuple[int, Path] | None = None  # the step and the path of the newest checkpoint

    def start(self, data: DataSet) -> Training:
        """The training of the config, restored from the newest checkpoint of the directory, if there is one.

        Nothing is written before all objects of the config have been built and checked.
        """
        config, trust, content = self.config, self.config.get("trust") or (), None
        device = choose_device(config["device"])
        if os.path.lexists(self.checkpoints / "last.pt"):
            content = load_checkpoint(self.directory)
            if content["data"] != data.fingerprint:
                raise ValueError(
                    f"{self.directory} was trained on other data than {data.name} contains now; give another run_dir="
                )
            # Weights belong to their scaling, which version 0.1.0 computed otherwise.
            data = replace(data, scaling=build(json.loads(content["model"])["scaling"], rooms=MODEL_ROOMS))
        denoiser, self._model = assemble(config, data)
        denoiser.to(device)
        self.data, self.objective = data, build(config["objective"], trust=trust)
        batches = self._batches("train")
        optimizer = build(config["optimizer"], params=denoiser.parameters())
        settings = {key: config[key] for key in ("ema", "warmup", "clip", "seed")}
        names = ["label"] if config["conditional"] else []
        training = Training(denoiser, batches, data.scaling, self.objective, optimizer, conditions=names, **settings)
        if content is not None:
            training.restore(content)
            self._losses = list(content["losses"])
            self._newest = training.step, self.checkpoints / resolve(self.directory).name
        training.check()
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / "config.yaml", lambda file: file.write(self._text.encode()))
        self._drop_metrics_after(training.step)
        return training

    def save(self, training: Training) -> Path:
        """Writes a checkpoint, unless the newest one is of this step.

        That one is not rewritten, because results that were computed from it name it by its digest.
        """
        if self._newest is None or self._newest[0] != training.step:
            content = {
                "version": __version__,
                "config": json.dumps(public({k: v for k, v in self.config.items() if k != "run_dir"}), indent=1),
                "model": json.dumps(self._model, indent=1),
                "data": self.data.fingerprint,
                "losses": list(self._losses),
                **training.state(),
            }
            self._newest = training.step, save_checkpoint(self.checkpoints, content, keep=self.config["keep"])
        return self._newest[1]

    def log(self, report: Report, training: Training) -> dict[str, float]:
        """Records the report of a step; every `log_every` or `validate_every` steps, appends a line to the metrics.

        Returns:
            The line: `step`, `loss` (the mean since the last line), `grad_norm`, `learning_rate`, `valid_loss`; empty
            between lines.
        """
        self._losses.append(report.loss)
        line: dict[str, float] = {}
        if report.step % self.config["log_every"] == 0:
            line = {"step": report.step, "loss": math.fsum(self._losses) / len(self._losses)}
            line |= {"grad_norm": report.grad_norm, "learning_rate": report.learning_rate}
            self._losses.clear()
        if report.step % self.config["validate_every"] == 0 and self.data.valid is not None:
            line |= {"step": report.step, "valid_loss": self.valid_loss(training)}
        if line:
            with open(self.metrics, "a") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def valid_loss(self, training: Training) -> float:
        """The loss of the averaged weights on the validation split, with the same noise at every call."""
        batches = self._batches("valid")
        denoiser, scaling = training.denoiser, training.scaling
        with training.ema["default"].applied_to(denoiser):
            return validate(denoiser, self.objective, batches, scaling, conditions=training.conditions)

    def _batches(self, split: str) -> Batches:
        """The batches of a split."""
        reading = {key: self.config.get(key, 0) for key in ("workers", "unreadable")}
        return Batches(self.data.split(split), self.config["batch_size"], seed=self.config["seed"], **reading)

    def _drop_metrics_after(self, step: int) -> None:
        """Deletes the metrics of steps that will be taken again."""
        if not self.metrics.exists():
            return
        lines, kept = self.metrics.read_text().splitlines(), []
        with contextlib.suppress(ValueError):  # at a line cut off by a kill; nothing after it counts
            for line in lines:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        write_atomically(self.metrics, lambda file: file.write("".join(kept).encode()))


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.loads(json.dumps(tree))
