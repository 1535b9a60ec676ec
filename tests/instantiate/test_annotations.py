"""Plain values against annotations: what fits, and the words of the errors."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch

import sde
from sde.grids import Grid
from sde.instantiate import check
from sde.instantiate.annotations import Existing, Limit, annotations_of, check_value, expected, fits

FRACTION = Annotated[float, Limit(">=", 0), Limit("<", 1)]
OBJECT = {"_target_": "sde.grids.LogSNR"}

# An annotation, its words, values that fit, and values that do not.
TABLE: list[tuple[Any, str, list[Any], list[Any]]] = [
    (int, "a whole number", [3, -1, 2**63 - 1], [1.0, True, "3", None, [3], float("nan"), 2**63, 10**400, OBJECT]),
    (float, "a number", [3, 0.5, float("inf")], [float("nan"), True, "1e-3", None]),
    (bool, "true or false", [True, False], [0, 1, "no", None, OBJECT]),
    (str, "a text", ["a", ""], ["None", 2024, None, True]),
    (str | os.PathLike[str], "a path", ["a"], ["None", 2024, None, OBJECT]),
    (int | None, "a whole number or null", [None, 3], ["None", 0.5]),
    (Literal["raise", "mark"], "raise or mark", ["raise"], ["skip", None, True]),
    (FRACTION, "a number >= 0 and < 1", [0, 0.999], [-0.1, 1, "0", None]),
    (Annotated[int, Limit(">", 2), Limit("<=", 4)], "a whole number > 2 and <= 4", [3, 4], [2, 5, OBJECT]),
    (Sequence[int], "a list, each entry a whole number", [[], [1, 2]], [1, [1, "b"], [1.5], None, OBJECT]),
    (tuple[float, float], "a list of 2 entries, each a number", [[0.9, 0.99]], [[0.9], [0.9, "b"], 0.9]),
    (float | torch.Tensor, "a number", [0.1], ["fast", None]),
    (dict[str, Any] | None, "a mapping or null", [{"a": 1}, None], ["a", [1]]),
    (Grid, "a Grid, a mapping with _target_", [OBJECT], ["uniform", None, 3, [OBJECT], {"steps": 3}]),
    (Grid | None, "a Grid, a mapping with _target_ or null", [OBJECT, None], ["uniform"]),
    (Any, "", [None, "a", 3], []),
]


@pytest.mark.parametrize(("annotation", "words", "good", "bad"), TABLE, ids=lambda value: str(value)[:40])
def test_values_and_words(annotation: Any, words: str, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not fits(value, annotation)] == []
    assert [value for value in bad if fits(value, annotation)] == []
    if words:
        assert expected(annotation) == words


def test_the_error_names_the_key_and_what_to_write() -> None:
    for value, annotation, *words in (
        ("None", str | None, "a.b='None'", "a text or null", "a.b=null"),
        ("none", int | None, "a.b=null"),
        (2024, str, "a.b=2024", "a text", "'a.b=\"2024\"'"),
        (None, int, "a.b=null: expected a whole number"),
        ([True, "x"], int, "[true, 'x']"),
    ):
        with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
            check_value("a.b", value, annotation)
        assert all(word in str(caught.value) for word in words)


def test_other_checks_belong_to_the_alternative_that_fits() -> None:
    def refuse(value: str) -> None:
        raise ValueError(f"no {value}")

    check_value("a", None, Annotated[str, refuse] | None)
    with pytest.raises(ValueError, match=r"^a: no x$"):
        check_value("a", "x", Annotated[str, refuse] | None)


def test_inherited_fields_of_dataclasses_have_annotations() -> None:
    """Those of the grid and the start are written in the names of other modules than the solver's."""
    assert annotations_of(sde.solvers.UniPC).keys() >= {"steps", "grid", "order", "start"}
    assert annotations_of(sde.solvers.UniPC)["grid"] is Grid
    assert annotations_of(sde.networks.MLP)["width"] is int


def test_paths_that_are_read(tmp_path: Path) -> None:
    """A misspelt part of a path gets a suggestion, and so does one of several paths."""
    (tmp_path / "runs" / "digits-vp").mkdir(parents=True)
    (tmp_path / "runs" / "digits-vp" / "set.npz").touch()
    path = Annotated[str, Existing((".npz",), "; make it", directory=True)]
    check_value("key", f"{tmp_path}/runs/digits-vp/set.npz", path)
    check_value("key", f"{tmp_path}/runs", path)
    for wrong, words in (
        ("runs/digits-vp/sets.npz", "nothing at .*; make it; did you mean .*/runs/digits-vp/set.npz[?]$"),
        ("run/digits-vp/set.npz", "nothing at .*; make it; did you mean .*/runs/digits-vp/set.npz[?]$"),
        ("runs/digits-v/other.npy", "nothing at .*; make it; did you mean .*/runs/digits-vp[?]$"),
        ("runs/digits-vp/nope.npz", "nothing at '[^']*nope.npz'; make it$"),
    ):
        for annotation, value in ((path | None, wrong), (list[path] | path, ["runs", wrong])):
            values = f"{tmp_path}/{value}" if isinstance(value, str) else [f"{tmp_path}/{v}" for v in value]
            with pytest.raises(ValueError, match=f"^key: .*{words}"):
                check_value("key", values, annotation)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"^key: expected a file .* \.npz or a directory, got '.*a\.txt'; make it$"):
        check_value("key", f"{tmp_path}/a.txt", path)
    with pytest.raises(ValueError, match=r"^key: expected a file with .* \.npz, got '.*runs'$"):
        check_value("key", f"{tmp_path}/runs", Annotated[str, Existing((".npz",))])


def test_a_tree_is_checked_by_its_dotted_keys_and_builds_nothing_that_reads_files(tmp_path: Path) -> None:
    heun = {"_target_": "sde.solvers.Heun", "steps": 3, "grid": {"_target_": "sde.grids.Karras", "rho": 7.0}}
    (tmp_path / "no_archive.npz").touch()
    data = {"_target_": "sde.data.arrays", "path": str(tmp_path / "no_archive.npz")}
    network = {"_target_": "sde.networks.MLP", "features": None, "width": 8}
    check({"solver": heun, "data": data}, "config")
    check(network, "network", features=2, rank=1)
    rng = torch.get_rng_state()
    check({"_target_": "torch.optim.Adam", "lr": 0.1}, "optimizer", params=[torch.zeros(1)])
    for tree, words in (
        ({"solver": {**heun, "steps": "a"}}, "config.solver.steps='a': expected a whole number"),
        ({"solver": {**heun, "steps": 0}}, "config.solver: .*steps=0"),
        ({"solver": {**heun, "grid": {**heun["grid"], "rho": None}}}, "config.solver.grid.rho=null"),
        ({"solver": {**heun, "grid": {**heun["grid"], "roh": 1}}}, "config.solver.grid: .*did you mean rho"),
        ({"solver": [heun, {**heun, "_target_": "sde.solvers.Huen"}]}, "config.solver.1: .*Huen"),
        ({"data": {**data, "test": "None"}}, "config.data.test='None'.*config.data.test=null"),
        ({"data": {**data, "path": f"{tmp_path}/archive.npz"}}, "config.data.path: .*did you mean .*no_archive.npz"),
        ({"data": {**data, "path": 2024}}, 'config.data.path=2024: expected a path; .*"2024"'),
    ):
        with pytest.raises(ValueError, match=f"^{words}"):
            check(tree, "config")
    with pytest.raises(ValueError, match=r"^network: .*width"):
        check({**network, "width": 0}, "network", features=2)
    with pytest.raises(ValueError, match=r"^network\.width=null"):
        check({**network, "width": None}, "network", features=2)
    with pytest.raises(ValueError, match=r"^optimizer: .*-1"):
        check({"_target_": "torch.optim.Adam", "lr": -1.0}, "optimizer", params=[torch.zeros(1)])
    assert torch.equal(torch.get_rng_state(), rng)
