"""Errors as one line: those of Hydra and those of the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import SCRIPTS, here, refused


@pytest.fixture(scope="module")
def line_of() -> Iterator[Callable[..., str | None]]:
    sys.path.insert(0, str(SCRIPTS))
    import faults

    yield faults.line_of
    sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize(
    ("script", "override", "words"),
    [
        ("train", "stepz=3", ["stepz", "did you mean steps?"]),
        ("train", "sde.beta_mix=3", ["sde.beta_mix", "did you mean sde.beta_min?"]),
        ("train", "sde=vpp", ["sde=vpp", "subvp", "did you mean vp?"]),
        ("train", "solver@preview.solver=heunn", ["heunn", "did you mean heun?"]),
        ("likelihood", "repeat=3", ["repeat ", "did you mean repeats?"]),
        ("likelihood", "label=7", ["label ", "condition"]),
        ("sample", "solver=null", ["solver=null"]),
        ("train", "objective=hybrid", ["objective.n ", "sde.chain.n", "sde=ddpm or ddpm_cosine", "another objective="]),
        ("sample", "out=a=b.png", ["out=a=b.png", "quotes"]),
        ("sample", "out=a,b.png", ["out=a,b.png", "-m", "quotes"]),
        ("sample", "stepz", ["stepz", "KEY=VALUE"]),
    ],
)
def test_a_command_line_that_is_no_config(tmp_path: Path, script: str, override: str, words: list[str]) -> None:
    result = here(tmp_path, script, *(["ckpt=x"] if script != "train" else []), override)
    refused(result, *words)
    assert result.code == 1
    assert list(tmp_path.iterdir()) == []


def test_memory(line_of: Callable[..., str | None]) -> None:
    errors: list[Exception] = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")]
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)  # more than processors can address
    for error in (*errors, caught.value):
        line = line_of(error, ["ckpt", "batch_size", "n"])
        assert line is not None
        assert line.startswith("out of memory: give a smaller batch_size= or n=")
        assert "\n" not in line


def test_advice_in_the_words_of_the_command_line(line_of: Callable[..., str | None]) -> None:
    """The library speaks Python; what the user has typed is in quotes, and stays."""
    error = ValueError("ema=None loads the raw weights, guided=True the flow; test='None' is a text, and None is None")
    line = "ema=null loads the raw weights, guided=true the flow; test='None' is a text, and None is None"
    assert line_of(error) == line


def test_a_fault_of_the_program_keeps_its_traceback(line_of: Callable[..., str | None]) -> None:
    faults: list[Any] = [TypeError("x"), KeyError("x"), RuntimeError("shapes differ"), AttributeError("x")]
    assert [line_of(error) for error in faults] == [None] * 4
    assert line_of(ValueError("one\n  two")) == "one two"
    assert line_of(ValueError()) == "ValueError"
    assert line_of(OSError(28, "No space left on device", "a.h5"), ["out"]) == "a.h5: No space left on device"
    denied = PermissionError(13, "Permission denied", "run/a.h5")
    assert line_of(denied, ["out"]) == "run/a.h5: Permission denied; give another out="
    assert line_of(denied) == "run/a.h5: Permission denied"
