"""Checkpoints: damaged ones are refused, and a failure in the middle of writing leaves the last good one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sde.storage import checkpoint
from sde.storage.checkpoint import checkpoints, load_checkpoint, resolve, run_directory, save_checkpoint, write
from sde.storage.files import sha256


def content(step: int, value: float = 0.0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(step)
    return {"step": step, "weights": {"w": torch.randn(40, generator=g) + value}, "config": "{}", "rates": [0.1, 0.2]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The checkpoints of a run: steps 1 to 3."""
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "checkpoints", content(step))
    return tmp_path / "checkpoints"


def test_what_is_saved_is_loaded_and_has_its_digest(folder: Path) -> None:
    path = save_checkpoint(folder, content(12))
    assert path == folder / "step_00000012.pt"
    assert (folder / "step_00000012.pt.sha256").read_text() == hashlib.sha256(path.read_bytes()).hexdigest() + "\n"
    expected = content(12)
    for where in (path, folder / "last.pt", folder.parent):
        loaded = load_checkpoint(where)
        assert torch.equal(loaded["weights"].pop("w"), expected["weights"]["w"])
        assert {**loaded, "weights": expected["weights"]} == {"format": 1, **expected}
    assert torch.load(path, weights_only=True)["step"] == 12


def test_a_directory_holds_nothing_but_checkpoints_digests_and_the_link(folder: Path) -> None:
    names = [f"step_0000000{i}.pt{end}" for i in (1, 2, 3) for end in ("", ".sha256")]
    assert sorted(os.listdir(folder)) == sorted([*names, "last.pt"])
    assert os.readlink(folder / "last.pt") == "step_00000003.pt"  # relative, so that a run directory can be moved
    assert resolve(folder.parent) == (folder / "step_00000003.pt").resolve()


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_keep_prunes_the_oldest(folder: Path, keep: int) -> None:
    (folder / "step_1.pt").touch()
    (folder / "notes.txt").touch()
    save_checkpoint(folder, content(4), keep=keep)
    left = [f"step_{i:08d}.pt" for i in range(max(1, 5 - keep), 5)]
    assert [p.name for p in checkpoints(folder)] == left
    expected = [*left, *(f"{name}.sha256" for name in left), "last.pt", "step_1.pt", "notes.txt"]
    assert sorted(os.listdir(folder)) == sorted(expected)
    assert load_checkpoint(folder.parent)["step"] == 4


def test_keep_never_removes_what_was_just_written(folder: Path) -> None:
    """A run that was taken back to an older checkpoint saves steps below those that lie there."""
    (folder / "last.pt").unlink()
    (folder / "last.pt").symlink_to("step_00000001.pt")
    for step in (2, 3):
        (folder / f"step_0000000{step}.pt").rename(folder / f"step_0000000{step + 5}.pt")
    path = save_checkpoint(folder, content(2), keep=1)
    assert path.exists()
    assert load_checkpoint(folder.parent)["step"] == 2


def test_nothing_is_pruned_by_default(folder: Path) -> None:
    save_checkpoint(folder, content(4), keep=None)
    assert len(checkpoints(folder)) == 4


# Damage


def refused(path: Path, sound: Path | None, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    others = [other for other in checkpoints(path.parent) if other != path]
    assert [other for other in others if str(other) in str(caught.value)] == ([sound] if sound else [])
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused_at_any_length(folder: Path) -> None:
    path = folder / "step_00000003.pt"
    whole = path.read_bytes()
    for length in sorted({*range(1, 9), *range(9, len(whole), 41), *range(len(whole) - 30, len(whole))}):
        path.write_bytes(whole[:length])
        refused(path, folder / "step_00000002.pt", "SHA-256")
    path.write_bytes(b"")
    refused(path, folder / "step_00000002.pt", "empty")
    path.write_bytes(whole + b"\0")
    refused(path, folder / "step_00000002.pt", "SHA-256")
    path.write_bytes(whole)
    assert load_checkpoint(path)["step"] == 3


def test_every_single_bit_flip_is_refused(folder: Path) -> None:
    path = folder / "step_00000003.pt"
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 100):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused(path, folder / "step_00000002.pt", "SHA-256")


def test_a_flipped_bit_of_the_digest_is_refused(folder: Path) -> None:
    path, digest = folder / "step_00000003.pt", folder / "step_00000003.pt.sha256"
    whole = digest.read_bytes()
    for bit in range(8 * 64):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        digest.write_bytes(damaged)
        refused(path, folder / "step_00000002.pt", "SHA-256")


def test_without_a_digest_a_damaged_file_is_refused_or_read_and_warned_of(folder: Path) -> None:
    """torch alone misses most flips; what it does notice is a ValueError like any other."""
    path = folder / "step_00000003.pt"
    (folder / "step_00000003.pt.sha256").unlink()
    with pytest.warns(UserWarning, match=r"step_00000003\.pt\.sha256"):
        assert load_checkpoint(path)["step"] == 3
    whole, messages = path.read_bytes(), []
    for bit in random.Random(1).sample(range(8 * len(whole)), 400):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_checkpoint(path)
            except ValueError as error:
                messages.append(str(error))
    assert messages
    assert all(str(path) in message for message in messages)


def test_the_advice_passes_over_other_damaged_ones(folder: Path) -> None:
    for step in (2, 3):
        with open(folder / f"step_0000000{step}.pt", "ab") as file:
            file.write(b"x")
    refused(folder / "step_00000003.pt", folder / "step_00000001.pt", "altered")
    refused((folder / "step_00000003.pt").resolve(), folder / "step_00000001.pt", "altered")
    (folder / "step_00000001.pt.sha256").unlink()
    refused(folder / "step_00000003.pt", None, "altered")


# What is no checkpoint


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("digest", [True, False])
def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(folder: Path, zipped: bool, digest: bool) -> None:
    path, marker = folder / "step_00000003.pt", folder / "marker"
    bad = {"format": 1, "step": 3, "weights": Attack(marker)}
    torch.save(bad, path) if zipped else path.write_bytes(pickle.dumps(bad))
    beside = folder / "step_00000003.pt.sha256"
    beside.write_text(sha256(path)) if digest else beside.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("default" if digest else "ignore")
        refused(path, folder / "step_00000002.pt", "not a checkpoint")
    assert not marker.exists()
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert marker.exists()  # the command does run where it is let


@pytest.mark.parametrize("bad", [b"not a checkpoint\n", b"PK\x03\x04 but no zip", bytes(1000)])
def test_a_file_that_is_no_checkpoint_is_refused(folder: Path, bad: bytes) -> None:
    path = folder / "other.pt"
    path.write_bytes(bad)
    (folder / "other.pt.sha256").write_text(sha256(path))
    refused(path, folder / "step_00000003.pt", "not a checkpoint")


@pytest.mark.parametrize("bad", [{"step": 1}, {"format": 2}, {"format": None}, [1, 2], torch.zeros(3)], ids=repr)
def test_another_format_is_refused(folder: Path, bad: Any) -> None:
    path = folder / "other.pt"
    torch.save(bad, path)
    (folder / "other.pt.sha256").write_text(sha256(path))
    with pytest.raises(ValueError, match="format 1") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_nothing_at_the_path(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        load_checkpoint(tmp_path / "gone.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty.*checkpoints/last\.pt"):
        load_checkpoint(tmp_path / "empty")


def test_a_missing_checkpoint_names_the_newest_sound_one(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"step_00000009\.pt.*step_00000003\.pt"):
        load_checkpoint(folder / "step_00000009.pt")


def test_where_the_newest_was_taken_away_a_run_directory_means_the_one_before(folder: Path) -> None:
    (folder / "step_00000003.pt").unlink()
    assert load_checkpoint(folder.parent)["step"] == 2


def test_where_results_belong(folder: Path, tmp_path: Path) -> None:
    assert run_directory(folder / "step_00000003.pt") == tmp_path
    assert run_directory(tmp_path / "copy.pt") == tmp_path


# Failures in the middle


class Crash(BaseException):
    """A stop that no `except Exception` catches, like a kill."""


def crash_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> list[int]:
    """Makes the given call of a function fail; the list counts the calls."""
    real, calls = getattr(module, name), [0]

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Crash
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, fails)
    return calls


PLACES = [
    (os, "replace", 1),
    (os, "replace", 2),
    (os, "replace", 3),
    (os, "replace", 4),
    (os, "fsync", 1),
    (os, "fsync", 2),
    (os, "fsync", 3),
    (os, "fsync", 4),
    (os, "symlink", 1),
    (torch, "save", 1),
    (checkpoint, "sha256", 1),
]


@pytest.mark.parametrize(("module", "name", "call"), PLACES, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("step", [4, 3], ids=["new", "again"])
def test_a_failure_anywhere_leaves_a_sound_newest_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int, step: int
) -> None:
    """Whether the step is new or is written again with another content (other `steps` in its config, say)."""
    if (module, name, call, step) == (os, "replace", 4, 4):
        return  # the digest of a new file is written in place, so that there are only three
    with monkeypatch.context() as patch:
        calls = crash_at(patch, module, name, call)
        with pytest.raises(Crash):
            save_checkpoint(folder, content(step, value=1.0), keep=2)
    assert calls[0] == call
    last = load_checkpoint(folder.parent)
    assert last["step"] in (3, step)
    assert any(torch.equal(last["weights"]["w"], content(last["step"], v)["weights"]["w"]) for v in (0.0, 1.0))
    for path in checkpoints(folder):
        load_checkpoint(path)
    # Once it works again, nothing of the failure is left.
    save_checkpoint(folder, content(5), keep=2)
    assert load_checkpoint(folder.parent)["step"] == 5
    assert not [n for n in os.listdir(folder) if n.startswith(".") and not n.startswith(".last")]


def test_two_failures_in_a_row_leave_the_checkpoint_that_stood_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (1.0, 2.0):
        with monkeypatch.context() as patch:
            crash_at(patch, os, "replace", 3)
            with pytest.raises(Crash):
                save_checkpoint(folder, content(3, value))
    assert torch.equal(load_checkpoint(folder.parent)["weights"]["w"], content(3)["weights"]["w"])


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_that_was_to_be_replaced_is_as_sound_as_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Its digest stays valid if the writer fails at the last moment, and a damaged file gets no digest of its own."""
    path = folder / "step_00000003.pt"
    with open(path, "ab") as file:
        file.write(b"x" * damaged)
    crash_at(monkeypatch, os, "replace", 3)
    with pytest.raises(Crash):
        write(path, content(3, 1.0))
    with pytest.raises(ValueError, match="SHA-256") if damaged else contextlib.nullcontext():
        load_checkpoint(path)


def test_a_writer_that_fails_halfway_leaves_the_last_good_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(folder, content(4), keep=1)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
