"""The house: imports point downwards, and what must not happen in a library does not."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sde

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sde"

# A room is a folder or a file directly below the package; it imports from the rooms above it in this list and from
# itself.
ROOMS = [
    "version",
    "shapes",
    "noise",
    "brownian",
    "metrics",
    "runtime",
    "processes",
    "grids",
    "networks",
    "denoisers",
    "profiling",
    "exact",
    "measurement",
    "guidance",
    "trace",
    "dynamics",
    "solvers",
    "sampling",
    "objective",
    "data",
    "storage",
    "instantiate",
    "likelihood",
    "tuning",
    "interop",
    "model",
    "training",
    "evaluation",
    "comparison",
    "plots",
]


def sources(folder: Path) -> dict[str, Path]:
    """The modules below a folder, by dotted name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = sources(PACKAGE)
SCRIPTS = sources(ROOT / "scripts")
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(name: str) -> Iterator[str]:
    """The modules of this package that a module imports, wherever in it; those of other packages by their name."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in MODULES else base


def room(name: str) -> int:
    """The place of a module's room in the list; the package itself stands below all of them."""
    _, _, inner = name.partition(".")
    return ROOMS.index(inner.partition(".")[0]) if inner else len(ROOMS)


def test_the_rooms_are_the_folders_and_files_of_the_package() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(ROOMS)
    assert len(ROOMS) <= 30


def test_imports_point_downwards() -> None:
    upwards = [
        (name, other) for name in MODULES for other in imports(name) if other in MODULES and room(other) > room(name)
    ]
    assert upwards == []


def test_there_are_no_circles() -> None:
    """Among single modules too, within a room as well."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(set(imports(name)) & MODULES.keys()):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (*MODULES.values(), *SCRIPTS.values())}
    long = [f"{path.relative_to(ROOT)} has {n} lines" for path, n in lengths.items() if n > 400]
    assert not long, f"{long}: cut it along its meaning"


def test_no_module_is_a_drawer_for_everything() -> None:
    everything = {path.stem for folder in ("sde", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")}
    assert not everything & {"utils", "util", "helpers", "helper", "misc", "common", "tools", "core", "base_utils"}


def test_hydra_stays_in_the_scripts() -> None:
    offenders = [name for name in MODULES if {n.partition(".")[0] for n in imports(name)} & {"hydra", "omegaconf"}]
    assert not offenders, offenders


def test_no_import_is_for_the_types_alone() -> None:
    """`TYPE_CHECKING` would hide an import of a room above."""
    offenders = [name for name, path in MODULES.items() if "TYPE_CHECKING" in path.read_text()]
    assert not offenders, offenders


# What the methods of `sde/solvers` may share; none imports another.
_SHARED = {"base", "adaptive", "coordinates", "measured", "multistep", "systems", "tableaus"}


def test_solver_methods_do_not_import_each_other() -> None:
    methods = [name for name in MODULES if name.startswith("sde.solvers.")]
    offenders = [
        (name, other)
        for name in methods
        for other in imports(name)
        if other in methods and other.rpartition(".")[2] not in _SHARED
    ]
    assert not offenders, offenders


# What draws from a global generator, and what seeds one.
_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson", "rand_like"}
_DRAWS |= {"randn_like", "randint_like", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_"}
_SEEDS = {"manual_seed", "manual_seed_all", "seed", "default_rng", "set_seed"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def global_draws(tree: ast.AST) -> Iterator[str]:
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        head, _, last = name.rpartition(".")
        from_torch = head in {"torch", "torch.Tensor"} or (last.endswith("_") and not head.endswith("init"))
        given = any(keyword.arg == "generator" for keyword in node.keywords)
        # A fresh generator of one's own, `torch.Generator().manual_seed(...)`, is the proper way to seed.
        seeds = last in _SEEDS and head.partition(".")[0] in {"torch", "np", "numpy", "random"}
        # So is a `RandomState` of one's own; `random` may be the name of one.
        of_numpy = head in {"np.random", "numpy.random"} and not (last == "RandomState" and node.args)
        of_python = head == "random" and "random" in modules
        if (last in _DRAWS and from_torch and not given) or seeds or of_numpy or of_python:
            yield f"line {node.lineno}: {name}"


def test_the_library_draws_from_no_global_generator_and_seeds_none() -> None:
    offenders = [(name, draw) for name, tree in TREES.items() for draw in global_draws(tree)]
    assert not offenders, offenders


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("torch.manual_seed(0)", True),
        ("torch.cuda.manual_seed_all(0)", True),
        ("torch.randn(3)", True),
        ("torch.randn(3, generator=g)", False),
        ("torch.randint(3, (2,))", True),
        ("torch.randn_like(x)", True),
        ("x.normal_()", True),
        ("nn.init.normal_(x)", False),
        ("torch.Generator().manual_seed(3)", False),
        ("np.random.randn(2)", True),
        ("np.random.RandomState(3)", False),
        ("np.random.RandomState()", True),
        ("RandomState(3).normal(size=2)", False),
        ("import random; random.random()", True),
        ("random.uniform(size=3)", False),
        ("noise.normal(stream, i)", False),
    ],
)
def test_the_test_above_sees_what_it_should(code: str, bad: bool) -> None:
    assert bool(list(global_draws(ast.parse(code)))) == bad


# What makes a tensor on torch's default device.
_MAKES = {"arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint"}
_MAKES |= {"randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"}


def without_device(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        makes = isinstance(node, ast.Call) and dotted(node.func) in {f"torch.{name}" for name in _MAKES}
        if makes and not any(keyword.arg == "device" for keyword in node.keywords):
            yield f"line {node.lineno}: {dotted(node.func)}"


def test_every_tensor_that_is_made_says_its_device() -> None:
    """The default device is the user's; None stands for it in the parts of a network."""
    offenders = [(name, call) for name, tree in TREES.items() for call in without_device(tree)]
    offenders += [
        (name, call) for name, path in SCRIPTS.items() for call in without_device(ast.parse(path.read_text()))
    ]
    assert not offenders, offenders
    assert list(without_device(ast.parse("torch.zeros(3)"))) == ["line 1: torch.zeros"]
    assert not list(without_device(ast.parse("torch.zeros(3, device=x.device); torch.zeros_like(x)")))


def test_importing_the_library_imports_nothing_that_it_need_not() -> None:
    slow = ["hydra", "omegaconf", "matplotlib", "sklearn", "torchsde", "scipy"]
    code = f"import sde, sde.solvers.torch_sde, sys; print([name for name in {slow} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    assert len(set(sde.__all__)) == len(sde.__all__)
    assert [name for name in sde.__all__ if not hasattr(sde, name)] == []
    imported = {
        alias.asname or alias.name for n in TREES["sde"].body if isinstance(n, ast.ImportFrom) for alias in n.names
    }
    assert imported == set(sde.__all__)


def names_of(tree: ast.Module) -> list[str] | None:
    """What a module's `__all__` lists."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if dotted(target) == "__all__":
                return list(ast.literal_eval(node.value))
    return None


def bound_names(tree: ast.Module) -> set[str]:
    """The names that a module's own statements bind."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {dotted(target) for target in node.targets}
        elif isinstance(node, ast.AnnAssign):
            names.add(dotted(node.target))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
    return names


def test_a_module_begins_with_its_theory() -> None:
    offenders = [name for name, tree in TREES.items() if not ast.get_docstring(tree)]
    assert not offenders, offenders


def test_first_lines_say_what_a_thing_is() -> None:
    """`Error budget of a log-density`, not `What a log-density is uncertain by`."""
    trees = TREES | {name: ast.parse(path.read_text()) for name, path in SCRIPTS.items()}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = ((name, node) for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, documented))
    lines = [(name, (ast.get_docstring(node) or "").partition("\n")[0]) for name, node in nodes]
    questions = ("What ", "How ", "Why ", "Where ", "Which ", "Who ")
    assert [(name, line) for name, line in lines if line.startswith(questions)] == []


# Words that the field does not use: a network is conditioned on a noise level, and eta is the stochasticity.
_NOT_OF_THE_FIELD = re.compile(r"\b(?:is|are|was|were|be) told\b|\bshares? of (?:the )?noise\b|\bweeds?\b|\brenewed\b")


def test_the_words_are_those_of_the_field() -> None:
    paths = [path for folder in ("sde", "scripts", "configs", "docs") for path in (ROOT / folder).rglob("*.*")]
    prose = [path for path in paths if path.suffix in (".py", ".yaml", ".md") and "_build" not in path.parts]
    offenders = [
        (str(path.relative_to(ROOT)), match[0])
        for path in (*prose, ROOT / "README.md")
        for match in _NOT_OF_THE_FIELD.finditer(path.read_text())
    ]
    assert offenders == []


def stored_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The variables and arguments of a module, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def test_names_say_what_things_are() -> None:
    """And not how one came by them."""
    vague = {"made", "found", "kept", "given", "asked", "like"}
    trees = TREES | {name: ast.parse(path.read_text()) for name, path in SCRIPTS.items()}
    assert [(name, *at) for name, tree in trees.items() for at in stored_names(tree) if at[1] in vague] == []
    assert list(stored_names(ast.parse("def f(a): found = a"))) == [(1, "a"), (1, "found")]


def test_a_module_lists_its_public_names() -> None:
    offenders = [name for name, tree in TREES.items() if names_of(tree) is None]
    offenders += [
        f"{name}.{public}" for name, tree in TREES.items() for public in set(names_of(tree) or ()) - bound_names(tree)
    ]
    assert not offenders, offenders
