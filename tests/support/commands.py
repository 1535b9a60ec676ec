"""The commands in scripts/: run in this process or in one of their own, and what their refusals look like."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from hydra._internal.hydra import Hydra

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TINY = [
    "network.width=8",
    "network.multipliers=[1]",
    "network.attention=[]",
    "batch_size=8",
    "device=cpu",
    "log_every=1",
]
CHEAP = ["solver=heun", "solver.steps=2", "device=cpu"]
PREVIEW = ["preview.n=4", "preview.solver.steps=2"]


@dataclass
class Result:
    code: int
    out: str
    err: str


def process(folder: Path, script: str, *arguments: str) -> Result:
    """A script in a process of its own."""
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    return Result(done.returncode, done.stdout, done.stderr)


def here(folder: Path, script: str, *arguments: str) -> Result:
    """A script run as `__main__` in this process, with its own arguments, directory and streams.

    Hydra composes a config once more before it runs a job, to look for a `hydra.mode`, which none here sets.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv, path, cwd, rng = sys.argv, list(sys.path), os.getcwd(), torch.get_rng_state()
    sys.argv, sys.path[:0] = [f"{script}.py", *arguments], [str(SCRIPTS)]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = lambda message, kind, *_: print(f"{kind.__name__}: {message}", file=err)
            with mock.patch.object(Hydra, "get_mode", return_value=None):
                runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    except SystemExit as stop:
        # As the interpreter does at the end: a text goes to the error stream and means 1.
        if isinstance(stop.code, str):
            err.write(stop.code + "\n")
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv, sys.path[:] = argv, path
        os.chdir(cwd)
        torch.set_rng_state(rng)
        sys.modules.pop("command", None)
    return Result(code, out.getvalue(), err.getvalue())


def files(folder: Path) -> dict[str, bytes]:
    """The content of everything below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(result: Result, *words: str) -> None:
    """One line that begins with `error:` and says these words; no traceback."""
    assert result.code != 0
    lines = result.err.strip().splitlines()
    assert "Traceback" not in result.err, result.err[-2000:]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: "), result.err
    for word in words:
        assert word in lines[0]
    assert result.out == ""
