"""`make demo`: its commands, its last three sentences, and the run directory that the documentation names too."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from support.commands import CHEAP, TINY, here
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
(RUN,) = re.findall(r"^RUN \?= (\S+)$", MAKEFILE, re.MULTILINE)
# Smaller than the real ones, for the tests.
SMALL = {"train": [*TINY, "steps=2"], "sample": [*CHEAP], "likelihood": [*CHEAP, "n=3", "budget=0"]}


def recipe() -> list[tuple[str, list[str]]]:
    """The scripts that `make demo` runs, with their arguments."""
    body = MAKEFILE.partition("\ndemo: .venv/.base\n")[2].partition("\n\n")[0].replace("$(RUN)", RUN)
    return [(name, keys.split()) for name, keys in re.findall(r"scripts/(\w+)\.py (.*)", body)]


def test_the_demo_ends_with_three_sentences_and_has_no_picture_twice(tmp_path: Path) -> None:
    assert [script for script, _ in recipe()] == ["train", "sample", "likelihood", "demo"]
    for script, keys in recipe():
        with threadpool_limits(1):  # as OMP_NUM_THREADS=1 in the Makefile
            result = here(tmp_path, script, *keys, *SMALL.get(script, []))
        assert (result.code, result.err) == (0, "")
        if script == "likelihood":
            (scored,) = re.findall(r": (-?[\d.]+) \+-", result.out.splitlines()[-1])
    made, where, meaning = result.out.splitlines()
    assert "2 steps" in made
    assert "64 new digits" in made
    assert "3 digits" in made
    run = tmp_path / RUN
    for path in ("samples/digits.png", "likelihood/test.h5"):
        assert f"{RUN}/{path}" in where
        assert (run / path).is_file()
    assert f'sde.load("{RUN}")' in where
    model, uniform, mixture = (float(n) for n in re.findall(r"-?\d+\.\d+", meaning))
    assert model == pytest.approx(float(scored), abs=0.01)
    assert uniform == round(math.log2(17), 2) == 4.09
    # The fit ends in another local optimum where a processor rounds otherwise.
    assert mixture == pytest.approx(2.69, abs=0.1)
    pictures = [path.read_bytes() for path in run.rglob("*.png")]
    assert len(pictures) >= 2
    assert len({*pictures}) == len(pictures)


def test_the_demo_without_its_parts_is_refused(tmp_path: Path) -> None:
    result = here(tmp_path, "demo")
    assert result.code == 1
    assert result.err.startswith(f"error: run_dir: there is nothing at '{RUN}'; `make demo` makes it")


def test_one_run_directory_in_the_makefile_the_readme_and_the_help() -> None:
    assert f"{RUN}-".startswith("runs/digits-vp-")  # the default of train.py, runs/DATA-SDE
    assert {*re.findall(r"\bruns/[\w-]+", (ROOT / "README.md").read_text())} == {RUN}
    for page in (ROOT / "docs" / "quickstart.md", *(ROOT / "configs").glob("*.yaml")):
        assert {*re.findall(r"ckpt=(runs/[\w-]+)", page.read_text())} <= {RUN}, page
