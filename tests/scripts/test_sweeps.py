"""Several jobs at a time: sweeps, several processes, and directories that two jobs want."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.commands import SCRIPTS, files, here, refused

from sde.storage.checkpoint import load_checkpoint
from sde.storage.files import Lock

TRAIN = ["experiment=moons", "network.width=8", "network.depth=1", "data.n_train=50", "data.n_test=9", "device=cpu"]
TRAIN += ["batch_size=8", "preview.n=0", "log_every=1", "steps=2"]


def runs(folder: Path) -> dict[str, Path]:
    """The run directories below `runs`, by name."""
    return {path.parent.name: path.parent for path in folder.glob("runs/*/config.yaml")}


def test_the_jobs_of_a_sweep_have_directories_of_their_own_and_a_failure_does_not_end_them(tmp_path: Path) -> None:
    """Two of four learning rates cannot be, with one line for each; the others are trained as by single commands."""
    result = here(tmp_path, "train", "-m", *TRAIN, "optimizer.lr=-1,1e-2,fast,1e-3")
    assert result.code == 1
    lines = result.err.splitlines()
    assert len(lines) == 2
    for line, value in zip(lines, ("-1", "fast")):
        assert line.startswith("error: ")
        assert f"optimizer.lr={value}" in line
    assert sum(line.startswith("trained to step 2") for line in result.out.splitlines()) == 2
    found = runs(tmp_path)
    assert len(found) == 2
    for value in ("0.01", "0.001"):
        (name,) = (name for name in found if name.endswith(f"optimizer.lr_{value}"))
        assert name.startswith("moons-vp-")
        assert "steps" not in name
    # A single job has the short name.
    single = here(tmp_path, "train", *TRAIN, f"optimizer.lr={value}")
    assert (single.code, single.err) == (0, "")
    assert runs(tmp_path).keys() - found.keys() == {"moons-vp"}
    a, b = (load_checkpoint(folder)["weights"] for folder in (found[name], tmp_path / "runs" / "moons-vp"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_paths_are_quoted_as_the_documentation_says() -> None:
    """Each command of the page stands for the path in its comment."""
    page = (SCRIPTS.parent / "docs" / "how-to" / "sweeps.md").read_text()
    lines = re.findall(r"^python scripts/train\.py (.*\S) +# (.*)$", page, re.MULTILINE)
    assert len(lines) == 8
    for words, path in lines:
        overrides = OverridesParser.create().parse_overrides([word for word in shlex.split(words) if word != "-m"])
        value = overrides[-1]
        values = [each.text for each in value.sweep_iterator()] if value.is_sweep_override() else [value.value()]
        assert " and ".join(values) == path


def test_several_processes_are_refused_by_commands_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command, *keys in (["diagnose", "ckpt=run"], ["sample", "ckpt=run"]):
        refused(here(tmp_path, command, *keys), "one process", "WORLD_SIZE=2")
    assert list(tmp_path.iterdir()) == []


def test_a_second_training_in_a_directory_is_refused_and_a_killed_one_does_not_stand_in_the_way(tmp_path: Path) -> None:
    command = [*TRAIN, "run_dir=run"]
    (tmp_path / "run").mkdir()
    lock = Lock(tmp_path / "run" / ".lock")
    before = files(tmp_path)
    refused(here(tmp_path, "train", *command), "run/.lock", f"process {os.getpid()}", "wait")
    assert files(tmp_path) == before
    lock.release()
    # A killed process leaves the file of its lock.
    (tmp_path / "run" / ".lock").write_text("process 1 on another machine\n")
    result = here(tmp_path, "train", *command)
    assert (result.code, result.err) == (0, "")
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.slow
def test_two_trainings_at_a_time(tmp_path: Path) -> None:
    """One of them trains, with one line of metrics for each step; the other one is refused."""
    command = [
        sys.executable,
        str(SCRIPTS / "train.py"),
        *TRAIN,
        "steps=1000",
        "save_every=10",
        "keep=2",
        "run_dir=run",
    ]
    pair = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in pair]
    assert sorted(process.returncode for process in pair) == [0, 1]
    assert sorted(line.count("holds the lock") for line in errors) == [0, 1]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1000
