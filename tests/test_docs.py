"""Every Python block of the documentation and the README runs, and every test file the derivations name is there.

The blocks of a page share one namespace and run in their order, in a temporary directory. A block that opens with
`python no-run` is left out. Pages that speak of `runs/digits-vp` find a small run there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RUN = "runs/digits-vp"

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """All pages written by hand."""
    found = [page for page in DOCS.rglob("*.md") if "_build" not in page.parts]
    return sorted([*found, *ROOT.glob("README.md")])


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """The Python blocks to run, each with the number of lines before it."""
    for match in _BLOCK.finditer(text):
        yield text.count("\n", 0, match.start(1)), match[1]


WITH_CODE = [page for page in pages() if any(blocks(page.read_text()))]


def _names(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the commands of the quickstart have been run, at the size of a test."""
    place = tmp_path_factory.mktemp("docs")
    train = [f"run_dir={RUN}", "steps=2", "log_every=1", "batch_size=8", "preview.n=0"]
    train += ["network.width=8", "network.multipliers=[1]", "network.attention=[]"]
    score = [f"ckpt={RUN}", "n=2", "repeats=2", "trace.probes=2", "solver.rtol=1e-2", "solver.atol=1e-2", "atol=1"]
    for script, keys in {"train": train, "likelihood": score}.items():
        command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *keys, "device=cpu"]
        # One thread, as in the tests around it.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize("page", WITH_CODE, ids=_names)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    text = page.read_text()
    if any(RUN in code for _, code in blocks(text)):
        shutil.copytree(request.getfixturevalue("run"), tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    # A module of its own, because dataclasses look up the module that their class names.
    name = "docs_page"
    module = type(sys)(name)
    monkeypatch.setitem(sys.modules, name, module)
    for line, code in blocks(text):
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)


@pytest.mark.parametrize("page", sorted((DOCS / "derivations").glob("*.md")), ids=lambda page: page.stem)
def test_derivations_name_test_files_that_exist(page: Path) -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page.read_text()))
    assert named or page.stem == "index"
    missing = sorted(name for name in named if not (ROOT / name).is_file())
    assert not missing, f"{page.name} names tests that do not exist: {', '.join(missing)}"


@pytest.mark.parametrize("page", pages(), ids=_names)
def test_code_that_the_blocks_miss_is_none(page: Path) -> None:
    """A fence that opens a Python block in another way (indented, with options) would be passed over in silence."""
    text = page.read_text()
    opened = re.findall(r"^[ \t]*[`~:]{3,}.*python.*$", text, re.MULTILINE)
    assert set(opened) <= {"```python", "```python no-run"}
    assert len(list(blocks(text))) == opened.count("```python")
