"""The command line of the comparison: its output, its continuation, its errors."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from support.commands import SCRIPTS, TINY, files, here, refused

import sde
from sde.comparison import compare, plan, read_table
from sde.comparison.problems import ExactProblem
from sde.comparison.run import Settings
from sde.exact import Mixture

CONFIGS = SCRIPTS.parent / "configs"
# These need a denoiser with a measurement.
LEAVES = sorted({path.stem for path in (CONFIGS / "solver").glob("*.yaml")} - {"particles", "replacement", "decoupled"})
# A mixture in the plane, and everything small.
QUICK = ["target=blobs.npz", "n=8", "draws=40", "repeats=1", "tolerance=1e-6", "directions=8", "device=cpu"]
FEW = ["solvers=[heun,ancestral,runge_kutta]", "calls=[1,6]", "tolerances=[0.01]", "grids=[log_snr]"]


@pytest.fixture
def folder(tmp_path: Path, mixture: Mixture) -> Path:
    """A directory with a mixture in it."""
    covs = (mixture.basis * mixture.eigenvalues[:, None]) @ mixture.basis.mT
    np.savez(tmp_path / "blobs.npz", weights=mixture.weights, means=mixture.means, covs=covs)
    return tmp_path


def test_a_comparison_repeated_and_extended(folder: Path) -> None:
    first = here(folder, "compare", *QUICK, *FEW, "out=a")
    assert (first.code, first.err) == (0, "")
    lines = first.out.splitlines()
    assert re.match(r"blobs-VP: .*\b8 .*\b40 .*mixture", lines[0])
    assert lines[-1] == "wrote compare.h5, compare.md, compare.csv, compare.png in a"
    assert sorted(os.listdir(folder / "a")) == ["compare.csv", "compare.h5", "compare.md", "compare.png"]
    with Image.open(folder / "a" / "compare.png") as image:
        image.load()
    rows, settings = read_table(folder / "a" / "compare.h5")
    assert [(r.solver, r.calls, r.status) for r in rows] == [
        ("heun", 1, "too small"),
        ("heun", 6, "ok"),
        ("exact", 0, "ok"),
        ("ancestral", 1, "ok"),
        ("ancestral", 6, "ok"),
        ("runge_kutta", 0, "ok"),
    ]
    assert (settings["seed"], settings["n"], settings["sde"]) == (0, 8, sde.__version__)
    assert settings["process"]["_target_"] == "sde.VP"
    # Nothing is computed again: seconds differ from run to run.
    before = files(folder)
    again = here(folder, "compare", *QUICK, *FEW, "out=a")
    assert again.out == first.out
    assert files(folder) == before
    # A longer list adds rows to the file; the tables show only the solvers of this command.
    more = here(folder, "compare", *QUICK, *FEW, "solvers=[euler]", "out=a")
    assert more.code == 0, more.err
    extended, _ = read_table(folder / "a" / "compare.h5")
    assert repr(extended[: len(rows)]) == repr(rows)
    assert [(r.solver, r.calls) for r in extended[len(rows) :]] == [("euler", 1), ("euler", 6)]
    assert "heun" not in (folder / "a" / "compare.md").read_text()


def test_designed_solvers(folder: Path) -> None:
    result = here(folder, "compare", *QUICK, "solvers=null", "calls=[1]", "design=true", "pilot=4", "out=a")
    assert (result.code, result.err) == (0, "")
    assert "pilot runs that designed solvers" in result.out
    ((row,), _) = read_table(folder / "a" / "compare.h5")
    assert (row.solver, row.status, row.nfe_max, row.pilot_samples) == ("designed", "ok", 1, 4)


def test_other_settings_are_refused_and_nothing_is_lost(folder: Path) -> None:
    assert here(folder, "compare", *QUICK, *FEW, "out=a").code == 0
    before = files(folder)
    for override, word in {
        "seed=1": "seed was 0 and is now 1",
        "sde=ve": "process._target_ was 'sde.VP'",
        "sde.beta_max=9": "process.beta_max was 20.0 and is now 9",
    }.items():
        refused(here(folder, "compare", *QUICK, *FEW, "out=a", override), "a/compare.h5", word, "out=")
    assert files(folder) == before


def test_settings_have_directories_of_their_own_by_default(folder: Path) -> None:
    for override in ("seed=0", "seed=1", "seed=1"):
        result = here(folder, "compare", *QUICK, "solvers=euler", "calls=3", "grids=uniform", override)
        assert result.code == 0, result.err
    assert len(list((folder / "runs" / "compare").iterdir())) == 2


def test_a_solver_with_keys_of_its_own_and_a_process(folder: Path) -> None:
    solvers = 'solvers=[heun,"predictor_corrector corrector.steps=3","runge_kutta max_steps=1"]'
    rest = ["calls=[8]", "tolerances=[0.01]", "grids=null", "sde=ve", "out=a"]
    result = here(folder, "compare", *QUICK, solvers, *rest)
    assert result.code == 0, result.err
    rows = {row.solver: row for row in read_table(folder / "a" / "compare.h5")[0]}
    assert (rows["heun"].grid, rows["heun"].steps) == ("", 4)
    assert rows["predictor_corrector corrector.steps=3"].steps == 2
    assert rows["runge_kutta max_steps=1"].status == "failed"
    assert re.search(r"runge_kutta max_steps=1 .*failed.*Dormand-Prince", result.out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solvers=[heun,heunn]"], ["solvers: 'heunn'", "ancestral", "runge_kutta", "did you mean heun?"]),
        (["grids=[log]"], ["grids: 'log'", "karras, log_snr"]),
        (['solvers=["heun stepz=3"]'], ["solvers: 'heun stepz=3'", "solver.stepz"]),
        (['solvers=["heun steps=many"]'], ["solvers.heun.steps='many'", "a whole number"]),
        (["solvers=[]"], ["solvers=[...]"]),
        (["target=gone.npz"], ["gone.npz"]),
        (["target=note.npz"], ["note.npz"]),
        (["ckpt=note.npz"], ["target=blobs.npz", "ckpt=note.npz"]),
        (["ckpt=gone", "target=null"], ["ckpt: ", "gone"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_invalid_arguments(folder: Path, arguments: list[str], words: list[str]) -> None:
    (folder / "note.npz").write_text("no archive")
    before = files(folder)
    names = [argument.partition("=")[0] for argument in arguments]
    rest = [a for a in [*QUICK, *FEW] if a.partition("=")[0] not in names]
    refused(here(folder, "compare", *rest, *arguments, "out=a"), *words)
    assert files(folder) == before


def test_a_checkpoint_against_its_own_flow(folder: Path) -> None:
    train = [*TINY, "sde=subvp", "steps=1", "preview.n=0", "run_dir=run"]
    assert here(folder, "train", *train).code == 0
    rest = [a for a in QUICK if not a.startswith("target")]
    result = here(folder, "compare", *rest, "ckpt=run", "solvers=[heun]", "calls=[10]", "grids=[log_snr]", "out=a")
    assert result.code == 0, result.err
    assert re.match(r"run-SubVP: .*\b8 .*\b40 .*network", result.out)
    ((row,), settings) = read_table(folder / "a" / "compare.h5")
    model = sde.load(folder / "run")
    exact = sde.load(folder / "run").denoiser.double()
    shape = (8, 1, 8, 8)
    x = sde.sample(model.denoiser, shape, solver=sde.solvers.Heun(5, grid=sde.grids.LogSNR())).x
    ends = sde.sample(exact, shape, solver=sde.solvers.RungeKutta(rtol=1e-6, atol=1e-6)).x
    assert row.strong == pytest.approx(((x - ends).square().mean().sqrt() / ends.std()).item(), rel=1e-3)
    assert settings["process"] is None
    # An explicit process replaces that of the model.
    other = here(folder, "compare", *rest, "ckpt=run", "solvers=[heun]", "calls=[2]", "sde=vp", "out=b")
    assert other.out.startswith("run-VP: ")


@pytest.fixture
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


@pytest.mark.usefixtures("_hydra")
def test_every_solver_of_the_config_can_be_compared(mixture: Mixture) -> None:
    def tree(group: str, name: str) -> Any:
        return OmegaConf.to_container(compose("compare", overrides=[f"+{group}={name}"])[group], resolve=True)

    problem = ExactProblem(mixture, sde.VP())
    grids = {"log_snr": tree("grid", "log_snr")}
    experiments = [
        experiment
        for leaf in LEAVES
        for experiment in plan(leaf, tree("solver", leaf), problem.process, grids=grids, calls=[16], tolerances=[0.5])
    ]
    settings = Settings(n=4, draws=40, repeats=1, tolerance=1e-6, directions=4)
    rows = {row.solver: row for row in compare(problem, experiments, settings)}
    assert rows.keys() == {*LEAVES, "exact"}
    for name, row in rows.items():
        assert (row.status, row.reason) == ("ok", ""), name
        assert np.isfinite(row.sliced if row.stochastic else row.strong), name
        assert (row.nfe > 0) == (name != "exact"), name
        assert row.tolerance or row.nfe_max <= 16, name


@pytest.mark.usefixtures("_hydra")
def test_the_default_names_are_there() -> None:
    config = compose("compare")
    grids = {path.stem for path in (CONFIGS / "grid").glob("*.yaml")}
    assert set(config.solvers) <= set(LEAVES)
    assert set(config.grids) <= grids


def test_help(tmp_path: Path) -> None:
    result = here(tmp_path, "compare", "--help")
    assert (result.code, result.err) == (0, "")
    for word in ("solvers ", "tolerances ", "predictor_corrector", "karras", "scripts/compare.py sde=ve"):
        assert word in result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_comparison_goes_on(folder: Path) -> None:
    """SIGKILL after some rows: the same command computes only the others."""
    axes = ["solvers=[heun,euler]", "calls=[10,20,30,40,50,60]", "grids=[log_snr,uniform]"]
    arguments = [*QUICK, *axes, "n=256", "out=a"]
    command = [sys.executable, str(SCRIPTS / "compare.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    path, deadline = folder / "a" / "compare.h5", time.monotonic() + 120
    while not (path.exists() and len(read_table(path)[0]) >= 3) and time.monotonic() < deadline:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    finished, _ = read_table(path)
    assert 3 <= len(finished) < 24
    assert subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL).returncode == 0
    rows, _ = read_table(path)
    assert repr(rows[: len(finished)]) == repr(finished)
    assert len(rows) == len({row.key for row in rows}) == 24
    assert all(row.status == "ok" for row in rows)
