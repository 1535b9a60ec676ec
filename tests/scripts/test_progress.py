"""Progress of the scripts: a bar on a terminal, and plain lines of the standard output without one."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from support.commands import SCRIPTS

import sde


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import command

    yield command
    sys.modules.pop("command", None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


MODEL = sde.Model(
    sde.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(sde.VP()), sde.data.Scaling.identity(), (2,)
)


def states() -> Iterator[Any]:
    """What a job yields that goes on from row 2 of 6."""
    yield from (SimpleNamespace(rows=rows, total=6, means=f"mean {rows}") for rows in (2, 4, 6))


def work(command: ModuleType) -> dict[str, Any]:
    """Each kind of progress that scripts have, run to its end."""
    return {
        "loop": lambda: list(command.progress(range(4, 7), 7, done=4)),
        "job": lambda: command.show(states(), "image"),
        "samples": lambda: command.draw(MODEL, 9, batch_size=4, solver=sde.solvers.Heun(2)),
    }


def test_without_a_terminal_there_are_lines_at_intervals(
    command: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in work(command).values():  # done before the first line is due
        run()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(command, "EVERY", 0.0)
    expected = {
        "loop": [f"{n} of 7 steps" for n in (4, 5, 6, 7)],
        "job": ["4 of 6 images, mean 4", "6 of 6 images, mean 6"],
        "samples": ["4 of 9 samples", "8 of 9 samples", "9 of 9 samples"],
    }
    for name, run in work(command).items():
        run()
        out, err = capsys.readouterr()
        assert err == ""
        assert "\r" not in out
        lines = [line.split(", ") for line in out.splitlines()]
        found = [", ".join([line[0], *line[3:]]) for line in lines if line[0].split()[0] != "?"]
        assert all(line in found for line in expected[name]), out
        assert all(line[1].endswith(" elapsed") and line[2].endswith(" left") for line in lines)


def test_on_a_terminal_there_is_a_bar_and_no_line(
    command: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, run in work(command).items():
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        run()
        assert capsys.readouterr().out == ""
        total = {"loop": "7/7", "job": "6/6", "samples": "9/9"}[name]
        assert total in screen.getvalue().split("\r")[-1]
