"""Checkpoints under kills, damage, a full disk and a directory that cannot be written.

Each has a long form for `make verify` and a short one. Kills come at uniform moments of a save, from a process that was
forked from this one.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sde.storage.checkpoint import checkpoints, load_checkpoint, remove_strays, save_checkpoint

LONG = pytest.mark.slow


def content(step: int, megabytes: float) -> dict[str, Any]:
    weights = torch.full((int(megabytes * 2**18),), float(step))
    return {"step": step, "weights": {"w": weights}}


def save_for_ever(folder: Path, megabytes: float, acknowledged: Any) -> None:
    step = int(acknowledged.value)
    remove_strays(folder)
    while True:
        step += 1
        save_checkpoint(folder, content(step, megabytes), keep=2)
        acknowledged.value = step


@pytest.mark.parametrize(("kills", "megabytes"), [(8, 1.0), pytest.param(200, 100.0, marks=LONG)])
def test_a_kill_at_any_moment_leaves_the_last_acknowledged_checkpoint(
    tmp_path: Path, kills: int, megabytes: float
) -> None:
    context, folder, rng = multiprocessing.get_context("fork"), tmp_path / "checkpoints", random.Random(0)
    acknowledged = context.Value("q", 1)
    save_checkpoint(folder, content(1, megabytes))
    start = time.monotonic()
    save_checkpoint(folder, content(1, megabytes))
    duration, strays = time.monotonic() - start, 0
    for _ in range(kills):
        child = context.Process(target=save_for_ever, args=(folder, megabytes, acknowledged), daemon=True)
        child.start()
        first, deadline = acknowledged.value, time.monotonic() + 60
        while acknowledged.value == first and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0, duration))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        last = load_checkpoint(tmp_path)
        assert last["step"] in (acknowledged.value, acknowledged.value + 1)
        assert last["weights"]["w"][[0, -1]].tolist() == [last["step"]] * 2
        acknowledged.value = last["step"]
        hidden = [name for name in os.listdir(folder) if name.startswith(".")]
        assert len(hidden) <= 1, hidden
        strays += len(hidden)
    assert strays > 0
    remove_strays(folder)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    assert all(path.with_name(path.name + ".sha256").exists() for path in checkpoints(folder))


@pytest.mark.parametrize("cases", [8, pytest.param(100, marks=LONG)])
def test_truncations_and_flipped_bits_are_found_and_the_one_before_is_named(tmp_path: Path, cases: int) -> None:
    folder, rng = tmp_path / "checkpoints", random.Random(0)
    for step in (1, 2):
        save_checkpoint(folder, content(step, 0.25))
    newest, whole = folder / "step_00000002.pt", (folder / "step_00000002.pt").read_bytes()
    for case in range(cases):
        place = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        newest.write_bytes(whole[:place] if case % 2 else damaged)
        with pytest.raises(ValueError, match=r"step_00000002\.pt .*step_00000001\.pt"):
            load_checkpoint(tmp_path)
    newest.write_bytes(whole)
    assert load_checkpoint(tmp_path)["step"] == 2


def full_disk(folder: Path) -> None:
    """Files of at most 1 MB: writing more fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


def read_only(folder: Path) -> None:
    folder.chmod(0o555)
    if os.getuid() == 0:
        os.setuid(65534)  # the superuser may write everywhere


def failing_save(folder: Path, hinder: Callable[[Path], None], told: Any) -> None:
    hinder(folder)
    try:
        save_checkpoint(folder, content(2, 2.0))
    except OSError as error:
        told.send(type(error).__name__)


@pytest.mark.parametrize("hinder", [full_disk, read_only])
def test_a_save_that_fails_is_an_error_and_leaves_the_checkpoint_before(hinder: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "checkpoints"
        save_checkpoint(folder, content(1, 2.0))
        before = sorted(os.listdir(folder))
        context = multiprocessing.get_context("fork")
        told, tell = context.Pipe(duplex=False)
        child = context.Process(target=failing_save, args=(folder, hinder, tell))
        child.start()
        child.join(60)
        assert told.poll()
        assert told.recv() in ("OSError", "PermissionError")
        folder.chmod(0o755)
        assert load_checkpoint(name)["step"] == 1
        assert sorted(os.listdir(folder)) == before
