"""Signals that ask a training to stop, and what loggers get."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import TINY, here

from sde.storage.checkpoint import load_checkpoint
from sde.training import JSONLines, StopSignals, TensorBoard, WandB
from sde.training.run import Run

RUN = [*TINY, "steps=6", "preview.n=0", "run_dir=run"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_remembered_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received() is None
        os.kill(os.getpid(), number)
        assert signals.received() is number
        if number is signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_training_finishes_its_step_saves_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again ends where an undisturbed run ends; loggers are closed."""
    assert here(tmp_path, "train", *RUN, "run_dir=straight").code == 0
    log = Run.log

    def signalled(self: Run, report: Any, training: Any) -> Any:
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return log(self, report, training)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", signalled)
        result = here(tmp_path, "train", *RUN)
    assert result.code == 75
    assert "interrupted after step 3; saved run/checkpoints/step_00000003.pt" in result.out
    assert "Traceback" not in result.err
    assert here(tmp_path, "train", *RUN).code == 0
    one, other = (load_checkpoint(tmp_path / name) for name in ("run", "straight"))
    assert one["step"] == 6
    assert all((value == other["weights"][name]).all() for name, value in one["weights"].items())
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "straight")]
    assert lines[0] == lines[1]


class Recorder(ModuleType):
    """A module in place of a logger's package, which records the calls of all that comes from it."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **keywords: Any) -> Recorder:
            self.calls.append((name, arguments, keywords))
            return self

        return call


def test_loggers_get_numbers_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each package is called with, and that a run goes on under its name and after its step."""
    picture = tmp_path / "a.png"
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)).save(picture)
    board, wandb = Recorder(), Recorder()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for logger in (JSONLines(), TensorBoard(), WandB(project="p", mode="offline")):
        for step in (0, 2):
            logger.open(tmp_path, step)
            logger.scalars(step + 1, {"loss": 0.5})
            logger.scalars(step + 3, {"loss": 0.25})
            logger.picture(step + 3, "samples", picture)
            logger.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 3, "loss": 0.5}, {"step": 5, "loss": 0.25}]
    assert [call[2]["purge_step"] for call in board.calls if call[0] == "SummaryWriter"] == [1, 3]
    assert ("add_scalar", ("loss", 0.25, 5), {}) in board.calls
    image = next(call for call in board.calls if call[0] == "add_image")
    assert image[1][1].shape == (2, 2, 3)
    first, second = (call[2] for call in wandb.calls if call[0] == "init")
    assert first == second
    assert (first["resume"], first["project"], first["mode"]) == ("allow", "p", "offline")
    assert ("log", ({"loss": 0.25},), {"step": 5}) in wandb.calls
    assert [call[0] for call in wandb.calls if call[0] == "finish"] == ["finish", "finish"]


def test_a_logger_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, logger in (("wandb", WandB), ("torch.utils.tensorboard", TensorBoard)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=f"pip install {name.rpartition('.')[2]}"):
            logger()


def test_samples_scores_and_averages_in_the_course_of_a_training(tmp_path: Path) -> None:
    keys = ["preview.n=4", "preview.solver.steps=2", "sample_every=2", "score_every=4", "score_n=2", "levels=2"]
    keys += ["posthoc=[0.05,0.1]", "posthoc_every=3", "ema={default: 0.9, long: 0.99}", "validate_every=6"]
    keys += ["evaluate_every=3", "evaluate.n=24", "evaluate.items=40", "evaluate.metrics=[kernel]"]
    result = here(tmp_path, "train", *RUN, *keys, "data.holdout=20", "batch_size=20")
    assert result.code == 0, result.err
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"step_0000000{k}.png" for k in (2, 4, 6)]
    assert sorted(p.name for p in (run / "averages").glob("*.pt")) == ["step_00000003.pt", "step_00000006.pt"]
    assert set(load_checkpoint(run)["ema"]) == {"default", "long", "power_0.05", "power_0.1"}
    lines: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        lines[line["step"]] = lines.get(line["step"], {}) | line
    assert [step for step in lines if "bits_per_dim" in lines[step]] == [4]
    assert 1.0 < lines[4]["bits_per_dim"] < 20.0
    assert [step for step in lines if lines[step].get("kernel_error", 0.0) > 0.0] == [3, 6]
    assert {"valid_loss", "valid_loss_1", "valid_loss_2"} <= lines[6].keys()
    assert SimpleNamespace(**lines[6]).valid_loss > 0.0
