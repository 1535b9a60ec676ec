"""Every Python block of the documentation and the README runs, every test file that the derivations name is there, and
every public name has its place in the API.

The blocks of a page share one namespace and run in their order, in a temporary directory. A block that opens with
`python no-run` is left out. Pages that name `runs/digits-vp` find a small run there.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support.commands import here

import sde

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
    for script, keys in {"train": train, "likelihood": [*score, "budget=0"]}.items():
        done = here(place, script, *keys, "device=cpu")
        assert done.code == 0, done.err
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


def beside_imports(code: str) -> int:
    """The number of lines of a block, without imports, comments and empty lines."""
    imports = {
        n
        for node in ast.parse(code).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for n in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(code.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") and n not in imports for n, line in lines)


@pytest.mark.parametrize(
    ("page", "heading", "shows"),
    [
        ("README.md", "# sde", ["sde.load(", ".sample(", ".bits_per_dim("]),
        ("README.md", "## Train your own", ["DataLoader(", "sde.Training(", "sde.save(", "sde.load(", "sde.plots."]),
        (
            "docs/quickstart.md",
            "## From Python",
            [
                ".sample(",
                "DataLoader(",
                "sde.save(",
                "network=",
                ".bits_per_dim(",
                ".error_budget(",
                "plots.trajectory(",
            ],
        ),
        ("docs/how-to/network.md", "## Your own, in three lines", ["DataLoader(", "sde.save(", "network="]),
        ("docs/how-to/solver.md", "# Your own solver", ["def step("]),
    ],
)
def test_the_first_snippets_are_short(page: str, heading: str, shows: list[str]) -> None:
    """At most six lines beside imports for what everybody does: sample, train, save and load, score, look, and write a
    solver."""
    section = re.split(r"^#+ .*$", (ROOT / page).read_text().partition(f"{heading}\n")[2], maxsplit=1, flags=re.M)[0]
    found = [code for _, code in blocks(section)]
    assert [word for word in shows if word not in "".join(found)] == []
    assert {code: n for code in found if (n := beside_imports(code)) > 6} == {}


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


# ---- the API

_ROLE = re.compile(r"\{py:(\w+)\}`(?:[^`<]*<)?~?([\w.]+)>?`")
_SHOWN = re.compile(r"^\.\. (?:auto(?:class|function|data)|py:data):: (\S+)$", re.MULTILINE)
# The rooms whose exported names are public.
PUBLIC = (
    "sde",
    "sde.comparison",
    "sde.data",
    "sde.evaluation",
    "sde.exact",
    "sde.grids",
    "sde.guidance",
    "sde.interop",
    "sde.likelihood",
    "sde.measurement",
    "sde.metrics",
    "sde.networks",
    "sde.objective",
    "sde.plots",
    "sde.processes",
    "sde.solvers",
    "sde.trace",
    "sde.training",
    "sde.tuning",
)


def shown() -> dict[str, str]:
    """What the pages of the API show: for every name the page it is on."""
    found: dict[str, str] = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        for name in _SHOWN.findall(page.read_text()):
            assert name not in found, f"{name} is shown on {found[name]} and on {page.name}"
            found[name] = page.name
    return found


def object_of(name: str) -> object:
    """What a dotted name stands for: of a function and its module of the same name, the function."""
    room, _, last = name.rpartition(".")
    return getattr(importlib.import_module(room), last)


@pytest.mark.parametrize("page", pages(), ids=_names)
def test_references_lead_somewhere(page: Path) -> None:
    """Sphinx leaves a name that it does not know as plain text, without a warning."""
    named = shown()
    for role, target in _ROLE.findall(page.read_text()):
        if role == "mod":
            importlib.import_module(target)
            continue
        # A member stands with its class.
        owner = target if target in named else target.rpartition(".")[0]
        assert owner in named, f"{page.name} refers to {target}, which no page in docs/api shows"
        assert target == owner or hasattr(object_of(owner), target.rpartition(".")[2]), f"{owner} has no {target}"


def public(room: str) -> dict[str, object]:
    """The names that a room exports and what they stand for; modules have pages of their own."""
    names = [f"{room}.{name}" for name in importlib.import_module(room).__all__ if not name.startswith("__")]
    return {name: object_of(name) for name in names if not isinstance(object_of(name), ModuleType)}


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_is_shown_once(room: str) -> None:
    """By one of its names: `sde.VP` is `sde.processes.VP`."""
    found = [object_of(name) for name in shown()]
    for name, value in public(room).items():
        times = sum(value is other for other in found)
        assert times == 1, f"{name} is shown {times} times in docs/api, expected once"


def signatures(name: str, value: object) -> Iterator[tuple[str, inspect.Signature]]:
    """Those of a public function, or of the constructor and the public methods of a class."""
    if inspect.isfunction(value):
        yield name, inspect.signature(value)
    elif inspect.isclass(value):
        members = inspect.getmembers(value, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
        for last, member in members:
            public_name = not last.startswith("_") or last in ("__init__", "__call__")
            if public_name and member.__module__.startswith("sde.") and member.__name__ != "<lambda>":
                yield f"{name}.{last}", inspect.signature(member)


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_parameter_has_a_type(room: str) -> None:
    """Those behind `**` too: a keyword that a function takes and does not name would show in no signature."""
    untyped = [
        f"{where}({parameter})"
        for name, value in public(room).items()
        for where, signature in signatures(name, value)
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls")
        and (
            parameter.annotation is parameter.empty
            or (parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and "Any" in parameter.annotation)
        )
    ]
    assert untyped == []


def test_every_room_with_a_page_is_public() -> None:
    """A room exported from `sde` is among those whose names are checked."""
    rooms = {f"sde.{name}" for name in sde.__all__ if isinstance(getattr(sde, name), ModuleType)}
    assert rooms <= set(PUBLIC)


def test_every_page_of_the_api_is_listed() -> None:
    listed = re.findall(r"^([\w-]+)$", (DOCS / "api" / "index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in (DOCS / "api").glob("*.md") if page.stem != "index")
