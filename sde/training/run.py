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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data import DataSet
from ..data.dataset import check_labels
from ..denoisers import Denoiser
from ..instantiate import MODEL_ROOMS, build, describe, find, public
from ..runtime import choose_device
from ..storage.checkpoint import load_checkpoint, remove_strays, resolve, save_checkpoint
from ..storage.files import Lock, write_atomically
from ..version import __version__
from .batches import Batches
from .conditions import dropouts, encoded, given_conditions, sizes_of
from .ema import EMA, Average, PowerEMA
from .loggers import JSONLines, Logger
from .loop import Training
from .loss import Loss
from .posthoc import Snapshots
from .ranks import agree, rank, size, together, total
from .report import Report
from .settings import DEFAULTS, RESUMABLE_KEYS, differences


def assemble(config: Mapping[str, Any], data: DataSet) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser of a config for a data set, and the tree of plain values from which a checkpoint rebuilds it.

    Arguments of the network that follow from the data (`channels`, `features`, `rank`; `classes` and `conditions` if it
    is `conditional`) are filled in if the config does not give them.

    Args:
        config: the trees `sde`, `network`, `denoiser` and, if there are some, `encoder` and `augmentation`;
            `conditional`, `condition_dropout` and `trust`.
        data: the data set.

    Raises:
        ValueError: if the network has classes and is not `conditional`, or if it is and the data has no conditions,
            those that the network does not take, or a label that is none of its classes.
    """
    trust, given = config.get("trust") or (), given_conditions(data, config["conditional"])
    classes = data.classes if "label" in given else None
    facts: dict[str, Any] = {"channels": data.shape[0], "features": math.prod(data.shape), "rank": len(data.shape) - 1}
    facts |= {} if classes is None else {"classes": classes}
    network_tree = dict(config["network"])
    parameters = inspect.signature(find(network_tree["_target_"], trust=trust)).parameters.keys()
    if "conditions" in parameters and (sizes := sizes_of(given, flat="channels" not in parameters)):
        facts["conditions"] = {"_target_": "sde.networks.Conditions", **sizes}
    for key in parameters & facts.keys():
        if network_tree.get(key) is None:
            network_tree[key] = facts[key]
    if (length := _vector_length(config)) and not network_tree.get("augment"):
        network_tree["augment"] = length
    tree = public(
        {
            "process": config["sde"],
            "network": network_tree,
            "denoiser": config["denoiser"],
            "scaling": describe(data.scaling),
            "shape": list(data.shape),
            "classes": classes,
            "encoder": config.get("encoder"),
        }
    )
    parts = {"process": build(tree["process"], trust=trust), "network": build(network_tree, trust=trust)}
    denoiser: Denoiser = build(tree["denoiser"], trust=trust, **parts)
    if classes is not None:
        _check_classes(data, denoiser.classes or classes)
    elif denoiser.classes is not None:
        raise ValueError(f"network.classes={denoiser.classes} needs the labels of the data: give conditional=true")
    tree["dropout"] = dropouts(denoiser, list(given), config.get("condition_dropout"))
    return denoiser, tree


def _vector_length(config: Mapping[str, Any]) -> int:
    """The length of the vectors that the network gets from the augmentation."""
    tree = config.get("augmentation")
    return build(tree, trust=config.get("trust") or ()).length if tree else 0


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
    with contextlib.ExitStack() as stack:
        with together():
            if rank() == 0:
                stack.enter_context(_locked(directory))
            run = Run(directory, config, text, read(directory / "config.yaml"))
        yield run


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """The directory, which is created if it is missing, with its lock."""
    created = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(directory / ".lock")
        try:
            yield
        finally:
            lock.release()
    finally:
        for path in created:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


class Run:
    """A training run in a directory. :func:`opened` keeps other processes out of it.

    Of several ranks, all make the same calls, and rank 0 alone writes. A checkpoint is gathered into the one file that
    any number of ranks reads: models of this library fit into the memory of one machine, and a file for each rank would
    be another format, without a digest, that `sde.load` could not read.

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
        self._settings = {**DEFAULTS, **config}
        self._loggers: list[Logger] = []
        self._losses: list[float] = []
        self._skipped = 0
        self._newest: tuple[int, Path] | None = None  # the step and the path of the newest checkpoint

    def start(self, data: DataSet) -> Training:
        """The training of the config, restored from the newest checkpoint of the directory, if there is one.

        Nothing is written before all objects of the config have been built and checked.
        """
        config, trust = self._settings, self.config.get("trust") or ()
        with together():
            data = self._captioned(data)
            device, content = choose_device(config["device"]), self._newest_content(data)
            if content is not None:
                # Weights belong to their scaling, which version 0.1.0 computed otherwise.
                data = replace(data, scaling=build(json.loads(content["model"])["scaling"], rooms=MODEL_ROOMS))
            denoiser, self._model = assemble(config, data)
            if content is not None:  # a run of an earlier version leaves nothing out
                known = json.loads(content["model"]).get("dropout", {})
                self._model["dropout"] = {name: known.get(name, 0.0) for name in self._model["dropout"]}
            self.data, self.objective = data, build(config["objective"], trust=trust)
            loss = Loss(denoiser, self.objective).to(device)
            batches = self._batches("train")
            optimizer = build(config["optimizer"], params=[p for p in loss.parameters() if p.requires_grad])
            settings = {key: config[key] for key in ("warmup", "clip", "seed", "accumulate", "max_skipped")}
            settings |= {key: build(config[key], trust=trust) for key in ("decay", "execution", "ranks")}
            names = self._model["dropout"] | ({"augment": 0.0} if _vector_length(config) else {})
            averages = self._averages(denoiser)
            training = Training(
                denoiser, batches, data.scaling, self.objective, optimizer, averages, conditions=names, **settings
            )
            if content is not None:
                self._losses, self._skipped = list(content["losses"]), content.get("skipped", 0)
                self._newest = int(content["step"]), self.checkpoints / resolve(self.directory).name
            if rank() == 0:
                self._loggers = [JSONLines(), *build(config["loggers"], trust=trust).values()]
        common = {k: v for k, v in self.config.items() if k not in ("device", "run_dir")}
        where = "none" if self._newest is None else self._newest[1].name
        agree({"config": json.dumps(common), "fingerprint of the data": data.fingerprint, "checkpoint": where})
        if content is not None:
            training.restore(content)
        training.check()
        with together():
            if rank() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                write_atomically(self.directory / "config.yaml", lambda file: file.write(self._text.encode()))
                remove_strays(self.checkpoints)
                remove_strays(self.snapshots.directory)
                for logger in self._loggers:
                    logger.open(self.directory, training.step)
        return training

    def _captioned(self, data: DataSet) -> DataSet:
        """The data with the encodings of its captions, if there is an encoder."""
        if not (tree := self._settings.get("encoder")):
            return data
        encoder, path = build(tree, trust=self.config.get("trust") or ()), self.config["data"].get("path")
        place = None if path is None else Path(path)
        return encoded(data, encoder, place if place is None or place.is_dir() else place.parent)

    def _newest_content(self, data: DataSet) -> Mapping[str, Any] | None:
        """The content of the newest checkpoint, if there is one."""
        if not os.path.lexists(self.checkpoints / "last.pt"):
            return None
        content = load_checkpoint(self.directory)
        if content["data"] != data.fingerprint:
            raise ValueError(
                f"{self.directory} was trained on other data than {data.name} contains now; give another run_dir="
            )
        return content

    def _averages(self, denoiser: Denoiser) -> dict[str, Average]:
        """The averages of the config: `default` and others by name, and those for averages after the training."""
        decays = self._settings["ema"]
        decays = decays if isinstance(decays, Mapping) else {"default": decays}
        if "default" not in decays:
            raise ValueError(f"ema={dict(decays)} needs the entry `default`, which samples and likelihoods use")
        averages: dict[str, Average] = {name: EMA(denoiser, decay) for name, decay in decays.items()}
        return averages | {f"power_{std}": PowerEMA(denoiser, std) for std in self._settings["posthoc"]}

    @property
    def snapshots(self) -> Snapshots:
        """The averages that are stored for :func:`sde.training.posthoc_ema`."""
        return Snapshots(self.directory / "averages")

    def save(self, training: Training) -> Path:
        """Writes a checkpoint, unless the newest one is of this step.

        That one is not rewritten, because results that were computed from it name it by its digest. If it cannot be
        written, those before are as they were.
        """
        if self._newest is None or self._newest[0] != training.step:
            state, named = training.state(), {k: v for k, v in self.config.items() if k != "run_dir"}
            path = self.checkpoints / f"step_{training.step:08d}.pt"
            with together():
                if rank() == 0:
                    content = {
                        "version": __version__,
                        "config": json.dumps(public(named), indent=1),
                        "model": json.dumps(self._model, indent=1),
                        "data": self.data.fingerprint,
                        "losses": list(self._losses),
                        **state,
                    }
                    save_checkpoint(self.checkpoints, content, keep=self.config["keep"])
            self._newest = training.step, path
        return self._newest[1]

    def save_averages(self, training: Training) -> None:
        """Stores the averages from which those of other lengths are reconstructed."""
        powers = {a.std: a.whole() for a in training.ema.values() if isinstance(a, PowerEMA)}
        if powers and rank() == 0:
            self.snapshots.save(training.step, json.dumps(self._model, indent=1), powers)

    def log(self, report: Report, training: Training) -> dict[str, float]:
        """Records the report of a step; every `log_every`, `validate_every` or `score_every` steps, logs a line.

        Returns:
            The line: `step`, `loss` (the mean since the last line), `grad_norm`, `learning_rate`, `skipped` (the steps
            left out since the last line, if there are any), `valid_loss`, `valid_loss_1` to `valid_loss_K` for K
            `levels` (the loss in equal parts of the distribution of times, from data to noise), `bits_per_dim` (of the
            first `score_n` samples of the validation or test split); empty between lines.
        """
        step, due = report.step, lambda key: bool(every := self._settings[key]) and report.step % every == 0
        self._losses += [] if report.skipped else [report.loss]
        line: dict[str, float] = {}
        if due("log_every"):
            line = {"step": step, "loss": math.fsum(self._losses) / len(self._losses)} if self._losses else {}
            line |= {"step": step, "grad_norm": report.grad_norm, "learning_rate": report.learning_rate}
            if training.skipped > self._skipped:
                line["skipped"] = training.skipped - self._skipped
            self._skipped = training.skipped
            self._losses.clear()
        if due("validate_every") and self.data.valid is not None:
            line |= {"step": step, **self.valid_losses(training)}
        if due("score_every"):
            line |= {"step": step, "bits_per_dim": self.bits_per_dim(training)}
        if line:
            self.scalars(step, {name: value for name, value in line.items() if name != "step"})
        if due("posthoc_every"):
            self.save_averages(training)
        return line

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers of a step, beside those of :meth:`log`."""
        for logger in self._loggers:
            logger.scalars(step, values)

    def picture(self, step: int, path: Path) -> None:
        """Logs a picture of samples."""
        for logger in self._loggers:
            logger.picture(step, "samples", path)

    def close(self) -> None:
        """Ends the logs."""
        for logger in self._loggers:
            logger.close()

    def valid_loss(self, training: Training) -> float:
        """The loss of the averaged weights on the validation split, with the same noise at every call."""
        return self.valid_losses(training)["valid_loss"]

    def valid_losses(self, training: Training) -> dict[str, float]:
        """:meth:`valid_loss`, and the same by noise level."""
        found = training.validate(self._batches("valid"), levels=max(1, self._settings["levels"]))
        # A level of few samples may have none.
        levels = {f"valid_loss_{k}": loss for k, loss in enumerate(found.levels, start=1) if not math.isnan(loss)}
        return {"valid_loss": found.loss, **(levels if self._settings["levels"] else {})}

    def bits_per_dim(self, training: Training) -> float:
        """The mean bits/dim of the averaged weights on the first samples of the validation or test split, with the same
        noise at every call; each rank scores a part of them."""
        split = self.data.test if self.data.valid is None else self.data.valid
        model, n = training.model(classes=self._model["classes"]), min(self._settings["score_n"], len(split))
        index = torch.arange(rank(), n, size(), device="cpu")
        values, condition = split[index]
        condition = {name: condition[name] for name in training.conditions or () if name in condition}
        bits = [model.bits_per_dim(values, index=index, condition=condition).sum().item()] if len(index) else [0.0]
        return total(torch.tensor(bits, dtype=torch.float64, device="cpu")).item() / n

    def _batches(self, split: str) -> Batches:
        """The batches of a split."""
        config = self._settings
        reading: dict[str, Any] = {key: config[key] for key in ("workers", "unreadable")}
        if tree := config["augmentation"]:
            reading["augmentation"] = build(tree, trust=config.get("trust") or ())
        return Batches(self.data.split(split), config["batch_size"], seed=config["seed"], **reading)
