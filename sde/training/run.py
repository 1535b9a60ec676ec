r"""Run directories: a training run from a config, and the files that it writes.

A run directory contains `config.yaml`, `metrics.jsonl`, `checkpoints/` and `samples/`. The same config continues the
run in the directory; another one is refused, except for the keys that do not change the result,
:data:`RESUMABLE_KEYS`. The files of new runs contain public names only; names of version 0.1.0 in older ones mean the
same classes.
"""

from __future__ import annotations

__all__ = ["RESUMABLE_KEYS", "Run", "assemble", "differences", "opened"]

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data import DataSet
from ..denoisers import Denoiser
from ..instantiate import MODEL_ROOMS, build, public
from ..runtime import choose_device
from ..solvers import Heun, Solver
from ..storage.checkpoint import load_checkpoint, remove_strays, resolve, save_checkpoint
from ..storage.files import Lock, write_atomically
from ..version import __version__
from .assembly import assemble, vector_length
from .batches import Batches
from .conditions import encoded
from .ema import EMA, Average, PowerEMA
from .loggers import JSONLines, Logger
from .loop import Training
from .loss import Loss
from .posthoc import Snapshots
from .ranks import agree, rank, size, together, total
from .report import Report
from .settings import DEFAULTS, RESUMABLE_KEYS, differences, rehearsing


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
        self._loggers: list[Logger] = [JSONLines()] if rank() == 0 else []
        self._losses: list[float] = []
        self._skipped = 0
        self._newest: tuple[int, Path] | None = None  # the step and the path of the newest checkpoint

    def start(self, data: DataSet, rehearse: Callable[[Training], None] | None = None) -> Training:
        """The training of the config, restored from the newest checkpoint of the directory, if there is one.

        Nothing is written before all objects of the config have been built and checked, and what is done after some
        steps only has been tried: the validation losses, the scores and what the caller does.

        Args:
            data: the data set.
            rehearse: a function of the training that tries what the caller will do; on every rank. It raises if that
                cannot be done.
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
            names = self._model["dropout"] | ({"augment": 0.0} if vector_length(config) else {})
            averages = self._averages(denoiser)
            training = Training(
                denoiser, batches, data.scaling, self.objective, optimizer, averages, conditions=names, **settings
            )
            if content is not None:
                self._losses, self._skipped = list(content["losses"]), content.get("skipped", 0)
                self._newest = int(content["step"]), self.checkpoints / resolve(self.directory).name
            if rank() == 0:
                for name, logger in build(config["loggers"], trust=trust).items():
                    if not isinstance(logger, Logger):
                        raise ValueError(
                            f"loggers.{name}: expected a logger, with open, scalars, picture and close, got a "
                            f"{type(logger).__name__}"
                        )
                    self._loggers.append(logger)
        common = {k: v for k, v in self.config.items() if k not in ("device", "run_dir")}
        where = "none" if self._newest is None else self._newest[1].name
        agree({"config": json.dumps(common), "fingerprint of the data": data.fingerprint, "checkpoint": where})
        if content is not None:
            training.restore(content)
        training.check()
        if data.valid is not None:
            with rehearsing("validate_every"):
                training.check(next(self._batches("valid", workers=0).epoch()))
        if config["score_every"]:
            with rehearsing("score_every"):
                self.bits_per_dim(training, n=size(), solver=Heun(1))
        if rehearse is not None:
            rehearse(training)
        with together():
            if rank() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                write_atomically(self.directory / "config.yaml", lambda file: file.write(self._text.encode()))
                remove_strays(self.checkpoints)
                remove_strays(self.snapshots.directory)
                for logger in self._loggers:
                    logger.open(self.directory, training.step)
        return training

    @property
    def classes(self) -> int | None:
        """The number of classes of which the model has labels, once it is started."""
        known: int | None = self._model["classes"]
        return known

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
        validation = training.validate(self._batches("valid"), levels=max(1, self._settings["levels"]))
        # A level of few samples may have none.
        levels = {f"valid_loss_{k}": loss for k, loss in enumerate(validation.levels, start=1) if not math.isnan(loss)}
        return {"valid_loss": validation.loss, **(levels if self._settings["levels"] else {})}

    def bits_per_dim(self, training: Training, n: int | None = None, solver: Solver | None = None) -> float:
        """The mean bits/dim of the averaged weights on the first samples of the validation or test split, `score_n` by
        default, with the same noise at every call; each rank scores a part of them."""
        split = self.data.test if self.data.valid is None else self.data.valid
        model, n = training.model(classes=self.classes), min(n or self._settings["score_n"], len(split))
        index = torch.arange(rank(), n, size(), device="cpu")
        values, condition = split[index]
        condition = {name: condition[name] for name in training.conditions or () if name in condition}
        how: dict[str, Any] = {"index": index, "condition": condition, "solver": solver}
        bits = [model.bits_per_dim(values, **how).sum().item()] if len(index) else [0.0]
        return total(torch.tensor(bits, dtype=torch.float64, device="cpu")).item() / n

    def _batches(self, split: str, **settings: Any) -> Batches:
        """The batches of a split."""
        config = {**self._settings, **settings}
        reading: dict[str, Any] = {key: config[key] for key in ("workers", "unreadable")}
        if tree := config["augmentation"]:
            reading["augmentation"] = build(tree, trust=config.get("trust") or ())
        return Batches(self.data.split(split), config["batch_size"], seed=config["seed"], **reading)
