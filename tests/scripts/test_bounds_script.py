"""The command that puts the flow and the bounds side by side: its table, its file, how it goes on, what it refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import files, here, refused

import sde
from sde.data import digits
from sde.evaluation import BatchPlan, BoundsScorer, FlowScorer, join, summarise_measures, table
from sde.evaluation.bounds_job import default_chain
from sde.evaluation.bounds_table import columns_of
from sde.storage.files import Lock
from sde.storage.store import Store, read

TRAIN = ["network=mlp", "network.width=8", "network.depth=1", "batch_size=8", "device=cpu", "preview.n=0", "steps=2"]
CHEAP = ["device=cpu", "solver=heun", "solver.steps=2", "draws=3", "data_draws=2", "steps=4"]
N, BATCH, REPEATS = 6, 2, 2
JOB = ["ckpt=run", *CHEAP, f"n={N}", f"batch_size={BATCH}", f"repeats={REPEATS}"]
MEASURES = ["flow", "density", "continuous", "chain"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits, a discrete chain of digits, points in the plane, and the rows of an undisturbed job."""
    folder = tmp_path_factory.mktemp("bounds")
    for name, keys in {
        "run": ["data=digits"],
        "ddpm": ["data=digits", "sde=ddpm", "sde.chain.n=30"],
        "plane": ["experiment=moons", "data.n_train=50", "data.n_test=20"],
    }.items():
        result = here(folder, "train", *keys, *TRAIN, f"run_dir={name}")
        assert result.code == 0, result.err
    result = here(folder, "bounds", *JOB, "out=undisturbed.h5")
    assert (result.code, result.err) == (0, "")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path


def rows_equal(path: Path, other: Path) -> None:
    """Row by row, bit by bit, and the same attributes."""
    one, two = read(path), read(other)
    attributes = [{**found.attributes, "checkpoint": ""} for found in (one, two)]
    assert attributes[0] == attributes[1]
    assert one.columns["repeat"].tolist() == [r for r in range(REPEATS) for _ in range(N)]
    assert one.columns["index"].tolist() == list(range(N)) * REPEATS
    for name, values in two.columns.items():
        np.testing.assert_array_equal(one.columns[name], values, err_msg=name)


def test_the_file_and_the_table_are_the_library_s(folder: Path) -> None:
    """In the run's directory by default; the flow is the column of `likelihood.py`."""
    result = here(folder, "bounds", *JOB)
    assert (result.code, result.err) == (0, "")
    path = folder / "run" / "likelihood" / "test-bounds.h5"
    found = read(path)
    assert found.columns.keys() == {"index", "repeat", *columns_of(MEASURES)}
    head, gap, *rest = result.out.splitlines()
    assert (head, gap) == (f"digits test, {N} images, {N * REPEATS} rows", "")
    assert rest[: 2 + len(MEASURES)] == table(summarise_measures(found.columns)).splitlines()[: 2 + len(MEASURES)]
    assert [line.split()[0] for line in rest[1:5]] == MEASURES
    assert rest[-1] == f"wrote {path} and test-bounds.png"
    with Image.open(path.with_suffix(".png")) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 3
    model = sde.load(folder / "run")
    flow = FlowScorer(model, digits().test, solver=sde.solvers.Heun(2, grid=sde.grids.LogSNR()))
    chain = default_chain(model.process, 4)
    scorer = BoundsScorer(flow, draws=3, data_draws=2, end=0.5, chain=chain)
    rows = join(*scorer.score(BatchPlan(len(digits().test), N, REPEATS, BATCH)))
    for name, values in rows.items():
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
    job = ["ckpt=run", "device=cpu", "solver=heun", "solver.steps=2", "budget=0", *JOB[-3:]]
    result = here(folder, "likelihood", *job, "out=flow.h5")
    assert result.code == 0, result.err
    np.testing.assert_array_equal(found.columns["flow"], read(folder / "flow.h5").columns["bits_per_dim"])
    attributes = found.attributes
    assert attributes["data"] == digits().test.fingerprint
    assert attributes["chain"] == repr(chain)
    assert (attributes["end"], attributes["seed"], attributes["dequantisation"]) == (0.5, 0, "uniform")
    assert json.loads(str(attributes["config"]))["measures"] == MEASURES


@pytest.mark.parametrize("killed", [False, True])
def test_the_same_command_goes_on(folder: Path, killed: bool) -> None:
    """After fewer images, and after a kill that left the rows of a batch in the journal: the same rows, bit by bit."""
    result = here(folder, "bounds", *JOB, "n=4", "out=a.h5")
    assert result.code == 0, result.err
    there = read(folder / "a.h5")
    assert there.columns["index"].tolist() == [0, 1, 2, 3] * REPEATS
    if killed:
        keys = ("config", "checkpoint_sha256", "dequantisation", "chain", "end", "seed", "data")
        key = {key: there.attributes[key] for key in keys}
        store = Store.open(folder / "a.h5", columns_of(MEASURES), key=key)
        whole = read(folder / "undisturbed.h5").columns
        last = (whole["repeat"] == 1) & (whole["index"] > 3)
        store.append({name: values[last] for name, values in whole.items()})
        store._lock.release()  # as the kill leaves it: the rows in the journal, and no holder of the lock
        store._open = False
    result = here(folder, "bounds", *JOB, "out=a.h5")
    assert result.code == 0, result.err
    rows_equal(folder / "a.h5", folder / "undisturbed.h5")
    assert sorted(entry.name for entry in folder.glob("a.*")) == ["a.h5", "a.png"]


def test_several_processes_give_the_rows_of_one(folder: Path) -> None:
    first = here(folder, "bounds", *JOB, "out=a.h5", "rank=0", "world=2")
    assert first.code == 0, first.err
    assert f"{N * REPEATS // 2} rows" in first.out
    assert len(first.out.splitlines()) == 1
    assert not (folder / "a.png").exists()
    lock = Lock(folder / "a.part1.h5.lock")
    refused(here(folder, "bounds", *JOB, "out=a.h5", "rank=1", "world=2"), "part1", "holds the lock")
    lock.release()
    second = here(folder, "bounds", *JOB, "out=a.h5", "rank=1", "world=2")
    assert second.code == 0, second.err
    assert f"{N * REPEATS} rows" in second.out
    one, two = (read(folder / name).columns for name in ("a.h5", "undisturbed.h5"))
    order = np.lexsort((one["index"], one["repeat"]))
    for name, values in two.items():
        np.testing.assert_array_equal(one[name][order], values, err_msg=name)
    assert sorted(entry.name for entry in folder.glob("a.*")) == ["a.h5", "a.png"]
    refused(here(folder, "bounds", *JOB, "out=b.h5", "rank=2", "world=2"), "0 <= rank < world, got rank=2, world=2")


def test_a_job_that_is_done_costs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(sde.NetworkDenoiser, "split", lambda *given: calls.append(1))
    result = here(folder, "bounds", *JOB, "out=undisturbed.h5")
    assert result.code == 0, result.err
    assert f"{N} images" in result.out
    assert calls == []


def test_another_job_s_file_names_the_first_difference(folder: Path) -> None:
    before = files(folder)
    for keys, words in (
        (["draws=4"], ['"draws": 3', '"draws": 4']),
        (["steps=5"], ['"steps": 4', '"steps": 5']),
        (["end=0.4"], ['"end": "auto"', '"end": 0.4']),
        (["split=train"], ['"split": "test"', '"split": "train"']),
        (["seed=1"], ['"seed": 0', '"seed": 1']),
        (["measures=[flow,chain]"], ["another job"]),
    ):
        result = here(folder, "bounds", *JOB, *keys, "out=undisturbed.h5")
        refused(result, "another job", *words)
    result = here(folder, "likelihood", "ckpt=run", "device=cpu", "out=undisturbed.h5")
    refused(result, "another job")
    assert files(folder) == before


def test_a_second_writer_is_refused(folder: Path) -> None:
    before = files(folder)
    lock = Lock(folder / "undisturbed.h5.lock")
    refused(here(folder, "bounds", *JOB, "out=undisturbed.h5"), f"process {os.getpid()}", "holds the lock")
    lock.release()
    assert files(folder) == before


def test_what_does_not_fit_is_refused_before_anything_is_done(folder: Path) -> None:
    np.savez(folder / "bytes.npz", x_train=np.zeros((9, 1, 8, 8), np.uint8), x_test=np.zeros((9, 1, 8, 8), np.uint8))
    before = files(folder)
    chain = ["solver@chain=ancestral", "chain.steps=3"]
    for keys, words in (
        (["ckpt=run", *chain], ["steps", "chain"]),
        (["ckpt=run", "steps=null", "solver@chain=heun"], ["Ancestral", "Heun"]),
        (["ckpt=run", "solver=ancestral", "solver.steps=2"], ["Ancestral"]),
        (["ckpt=run", "atol=1"], ["atol=1", "Heun"]),
        (["ckpt=run", "data=arrays", "data.path=bytes.npz"], ["17 levels", "256 levels"]),
        (["ckpt=plane", "dequantise=truncated_normal"], ["continuous"]),
        (["ckpt=plane", "end=0.5"], ["continuous", "end=0.5"]),
        (["ckpt=nowhere"], ["nowhere"]),
        ([], ["ckpt is missing"]),
    ):
        refused(here(folder, "bounds", *CHEAP, *keys), *words)
    assert files(folder) == before


def test_other_models_and_choices(folder: Path) -> None:
    """A discrete chain takes its own steps down to its own end; continuous data have no cells; a chain of one's own."""
    cheap = [word for word in CHEAP if not word.startswith("steps=")]
    result = here(folder, "bounds", "ckpt=ddpm", *cheap, "n=2", "out=a.h5")
    assert (result.code, result.err) == (0, "")
    found = read(folder / "a.h5")
    assert found.columns["chain_nfe"].tolist() == [30, 30]
    assert found.attributes["end"] == "t_min"
    result = here(folder, "bounds", "ckpt=plane", *CHEAP, "n=2", "measures=[chain,flow]", "out=b.h5")
    assert (result.code, result.err) == (0, "")
    found = read(folder / "b.h5")
    assert (found.attributes["end"], found.attributes["dequantisation"]) == ("t_min", "none")
    assert [line.split()[0] for line in result.out.splitlines()[3:5]] == ["flow", "chain"]
    assert "log p (nats)" in result.out.splitlines()[2]
    chain = ["solver@chain=ancestral", "chain.steps=3", "grid@chain.grid=quadratic", "+chain.v=1.0"]
    result = here(folder, "bounds", "ckpt=run", *cheap, *chain, "measures=[chain]", "n=1", "out=c.h5")
    assert (result.code, result.err) == (0, "")
    found = read(folder / "c.h5")
    assert found.attributes["chain"] == "Ancestral(steps=3, grid=Quadratic(), v=1.0)"
    assert found.columns["chain_nfe"].tolist() == [4]
    assert math.isfinite(found.columns["chain"][0])
    assert result.out.endswith("\nwrote c.h5\n")  # without a flow there is no picture
    assert not (folder / "c.png").exists()
    assert math.isnan(found.columns["chain_standard_error"][0])
    # Without a flow its solver is not used, and may be any.
    result = here(
        folder, "bounds", *CHEAP[:1], "ckpt=run", "solver=ancestral", "n=1", "steps=3", "measures=[chain]", "out=d.h5"
    )
    assert (result.code, result.err) == (0, "")


def test_help(tmp_path: Path) -> None:
    result = here(tmp_path, "bounds", "--help")
    assert result.code == 0, result.err
    for words in ("bits/dim", "measures ", "data_draws ", "n=64", "chain_draws"):
        assert words in result.out
