"""The command that trains a dequantiser, and likelihoods with what it wrote: continued, shared, weighted, refused."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.commands import files, here, refused

import sde
from sde.evaluation import BatchPlan, FlowScorer, join
from sde.evaluation.dequantiser_file import load_dequantiser, save_dequantiser
from sde.evaluation.dequantiser_training import BoundDensity, Gain, bits, fit
from sde.evaluation.importance_weighting import weighted_bound
from sde.likelihood.variational import VariationalDequantiser
from sde.storage.checkpoint import load_checkpoint
from sde.storage.files import sha256
from sde.storage.store import read

MODEL = ["network=mlp", "network.width=8", "network.depth=1", "batch_size=8", "device=cpu", "preview.n=0", "steps=2"]
SMALL = ["ckpt=run", "device=cpu", "steps=3", "batch_size=8", "layers=2", "width=4", "n=6", "density.draws=2"]
JOB = ["ckpt=run", "device=cpu", "solver=heun", "solver.steps=2", "n=6", "batch_size=2", "budget=0"]
LEARNED = ["dequantise=variational", "dequantise.path=run/dequantiser.pt"]
SOLVER = sde.solvers.Heun(2, grid=sde.grids.LogSNR())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits with its dequantiser, and one of points in the plane."""
    folder = tmp_path_factory.mktemp("dequantise")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each test: the order of sums depends on it
    for name, keys in {
        "run": ["data=digits", "data.holdout=9"],
        "plane": ["experiment=moons", "data.n_train=50", "data.n_test=20"],
    }.items():
        result = here(folder, "train", *keys, *MODEL, f"run_dir={name}")
        assert result.code == 0, result.err
    result = here(folder, "dequantise", *SMALL)
    assert (result.code, result.err) == (0, "")
    (folder / "said").write_text(result.out)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path


def test_it_is_the_library_s(trained: Path) -> None:
    """The weights of three steps, bit for bit; the gain on the images held out; the checkpoint by its digest."""
    model, data = sde.load(trained / "run"), sde.data.digits(holdout=9)
    assert data.valid is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rule = VariationalDequantiser(model.shape, 17, layers=2, width=4)
    losses, density = fit(model, data.train, rule, BoundDensity(2), batch_size=8), BoundDensity(2)
    for _ in range(3):
        next(losses)
    path = trained / "run" / "dequantiser.pt"
    for name, value in load_dequantiser(path).state_dict().items():
        assert torch.equal(value, rule.state_dict()[name]), name
    gained = Gain.of(*(bits(model, data.valid, density, noise, n=6, batch_size=8) for noise in (None, rule)))
    said = (trained / "said").read_text()
    assert said == f"digits valid: {gained}; wrote {path}\n"
    content = load_checkpoint(path)
    assert content["checkpoint_sha256"] == sha256(trained / "run" / "checkpoints" / "last.pt")
    assert '"lr": 0.001' in content["settings"]
    assert "run" not in content["settings"]  # nothing of the place


def test_the_same_command_leaves_the_same_file_and_another_seed_another(folder: Path) -> None:
    for keys, same in ((["out=new/a.pt"], True), (["out=b.pt", "seed=1"], False)):
        result = here(folder, "dequantise", *SMALL, *keys)
        assert result.code == 0, result.err
        out = folder / keys[0].removeprefix("out=")
        assert (sha256(out) == sha256(folder / "run" / "dequantiser.pt")) is same
    flow = ["density=flow", "density.solver.steps=2", "out=c.pt"]
    result = here(
        folder, "dequantise", *(key for key in SMALL if "draws" not in key), *flow, "data=digits", "data.holdout=0"
    )
    assert result.code == 0, result.err
    assert result.out.startswith("digits test: ")
    assert load_dequantiser(folder / "c.pt").shape == (1, 8, 8)


def test_what_is_there_stays_unless_it_may_go(folder: Path) -> None:
    before = files(folder)
    refused(here(folder, "dequantise", *SMALL), "run/dequantiser.pt", "overwrite=true")
    refused(here(folder, "dequantise", *SMALL, "out=run/config.yaml", "overwrite=true"), "out: ", "ends in .pt")
    model = "run/checkpoints/last.pt"
    refused(here(folder, "dequantise", *SMALL, f"out={model}"), model, "overwrite=true")
    refused(here(folder, "dequantise", *SMALL, f"out={model}", "overwrite=true"), model, "usable dequantiser")
    refused(here(folder, "dequantise", *SMALL, "out=run", "overwrite=true"), "is a directory")
    # A training that fails leaves the old one.
    refused(here(folder, "dequantise", *SMALL, "overwrite=true", "lr=1e30"), "smaller learning rate")
    assert files(folder) == before
    result = here(folder, "dequantise", *SMALL, "overwrite=true", "seed=1")
    assert result.code == 0, result.err
    after = files(folder)
    changed = [name for name in after if after[name] != before.get(name)]
    assert changed == ["run/dequantiser.pt", "run/dequantiser.pt.sha256"]
    assert after.keys() == before.keys()


def test_an_interrupted_training_keeps_what_it_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the steps that were done; where a dequantiser stands already, that one stays."""

    def interrupted(*given: Any, **settings: Any) -> Iterator[float]:
        yield from itertools.islice(fit(*given, **settings), 3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sde.evaluation.dequantiser_training.fit", interrupted)
        before = files(folder)
        result = here(folder, "dequantise", *SMALL, "steps=9", "overwrite=true")
        assert (result.code, result.out) == (1, "")
        assert files(folder) == before
        result = here(folder, "dequantise", *SMALL, "steps=9", "out=a.pt")
        assert (result.code, result.out) == (1, "interrupted after step 3; wrote a.pt\n")
    assert sha256(folder / "a.pt") == sha256(folder / "run" / "dequantiser.pt")


def test_refusals(folder: Path) -> None:
    before = files(folder)
    for keys, words in (
        (["ckpt=plane"], ["continuous"]),
        (["n=10"], ["n=10"]),
        (["data=moons"], ["(B, 1, 8, 8)"]),
    ):
        name = keys[0].partition(".")[0].partition("=")[0]
        rest = [key for key in SMALL if key.partition(".")[0].partition("=")[0] != name]
        refused(here(folder, "dequantise", *rest, *keys, "out=a.pt"), *words)
    assert files(folder) == before


def test_help(tmp_path: Path) -> None:
    result = here(tmp_path, "dequantise", "--help")
    assert (result.code, result.err) == (0, "")
    for word in ("ckpt ", "overwrite ", "density: bound, flow", "scripts/likelihood.py"):
        assert word in result.out


# Scoring with it


def test_rows_are_the_library_s_and_those_of_several_processes(folder: Path) -> None:
    one = here(folder, "likelihood", *JOB, *LEARNED, "repeats=2", "out=a.h5")
    assert one.code == 0, one.err
    model, data = sde.load(folder / "run"), sde.data.digits(holdout=9)
    rule = load_dequantiser(folder / "run" / "dequantiser.pt")
    plan = BatchPlan(len(data.test), 6, 2, 2)
    expected, uniform = (
        join(*FlowScorer(model, data.test, solver=SOLVER, dequantiser=noise).score(plan)) for noise in (rule, None)
    )
    found = read(folder / "a.h5")
    for name, values in expected.items():
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
    assert bool((found.columns["log_prob"] != uniform["log_prob"]).all())
    assert found.attributes["dequantisation"] == repr(rule)
    assert found.attributes["dequantiser_sha256"] == sha256(folder / "run" / "dequantiser.pt")
    for rank in (0, 1):
        part = here(folder, "likelihood", *JOB, *LEARNED, "repeats=2", "out=b.h5", f"rank={rank}", "world=2")
        assert part.code == 0, part.err
    both = read(folder / "b.h5")
    assert both.attributes == found.attributes
    for name, values in found.columns.items():
        np.testing.assert_array_equal(both.columns[name], values, err_msg=name)


def test_a_job_goes_on_with_the_same_dequantiser_only(folder: Path) -> None:
    """By its content: from another place it is the same, and another one in its place is another."""
    few = [key for key in JOB if not key.startswith("n=")]
    first = here(folder, "likelihood", *few, "n=2", *LEARNED, "out=a.h5")
    assert first.code == 0, first.err
    assert "weighted" not in first.out  # there is a single draw
    shutil.copytree(folder / "run", folder / "elsewhere", symlinks=True)
    moved = ["dequantise=variational", "dequantise.path=elsewhere/dequantiser.pt"]
    more = here(folder, "likelihood", *few, "n=4", *moved, "out=a.h5")
    assert more.code == 0, more.err
    assert read(folder / "a.h5").columns["index"].tolist() == [0, 1, 2, 3]
    before = read(folder / "a.h5").columns
    result = here(folder, "dequantise", *SMALL, "overwrite=true", "seed=1")
    assert result.code == 0, result.err
    other = here(folder, "likelihood", *few, "n=6", *LEARNED, "out=a.h5")
    refused(other, "another job", "attribute 'dequantiser_sha256'")
    refused(here(folder, "likelihood", *few, "n=6", "out=a.h5"), "another job", "'config'", "dequantise")
    for name, values in read(folder / "a.h5").columns.items():
        np.testing.assert_array_equal(values, before[name])


def test_one_of_another_checkpoint_is_pointed_out(folder: Path) -> None:
    rule = load_dequantiser(folder / "run" / "dequantiser.pt")
    save_dequantiser(folder / "stale.pt", rule, checkpoint_sha256="0" * 64)
    learned, line = "dequantise=variational", "trained for another checkpoint"
    for name, keys in (("likelihood", ["budget=0"]), ("bounds", ["measures=[flow]"])):
        job = [*JOB[:-1], learned, *keys]
        own = here(folder, name, *job, "dequantise.path=run/dequantiser.pt", f"out={name}.h5")
        other = here(folder, name, *job, "dequantise.path=stale.pt", f"out={name}-stale.h5")
        assert (own.code, other.code) == (0, 0), own.err + other.err
        assert line not in own.out
        assert line in other.out.splitlines()[0]
        own_rows, other_rows = (read(folder / f"{path}.h5").columns for path in (name, f"{name}-stale"))
        for column, values in own_rows.items():
            np.testing.assert_array_equal(other_rows[column], values, err_msg=column)
    uniform = here(folder, "likelihood", *JOB, "out=uniform.h5")
    assert uniform.code == 0, uniform.err
    assert line not in uniform.out


def test_dequantisers_that_cannot_serve(folder: Path) -> None:
    digest = {"checkpoint_sha256": ""}
    save_dequantiser(folder / "flat.pt", VariationalDequantiser((2,), 17, width=4), **digest)
    save_dequantiser(folder / "levels.pt", VariationalDequantiser((1, 8, 8), 16, width=4), **digest)
    whole = (folder / "run" / "dequantiser.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    before = files(folder)
    for path, words in {
        "flat.pt": ["(B, 2) with 17 levels", "17 levels of shape (B, 1, 8, 8)"],
        "levels.pt": ["16 levels", "17 levels"],
        "cut.pt": ["cut.pt", "usable dequantiser"],
        "run/checkpoints/last.pt": ["usable dequantiser", "'dequantiser'"],
        "gone.pt": ["dequantise.path: ", "gone.pt"],
    }.items():
        refused(here(folder, "likelihood", *JOB, "dequantise=variational", f"dequantise.path={path}"), *words)
    refused(here(folder, "likelihood", *JOB, "dequantise=variational"), "dequantise.path is missing")
    plane = [key for key in JOB if not key.startswith("ckpt")]
    refused(here(folder, "likelihood", "ckpt=plane", *plane, *LEARNED), "continuous data")
    refused(here(folder, "sample", "ckpt=run/dequantiser.pt", "n=1"), "model")
    assert files(folder) == before


def test_the_weighted_bound_of_the_repeats(folder: Path) -> None:
    """A number for an exact trace, the way to it for an estimated one, and nothing where there is none."""
    line, hint = "by the importance-weighted bound of", "trace=exact"
    result = here(folder, "likelihood", *JOB, *LEARNED, "repeats=3", "trace=exact", "out=a.h5")
    assert result.code == 0, result.err
    found = weighted_bound(read(folder / "a.h5").columns, 64, 3)
    (said,) = (words for words in result.out.splitlines() if line in words)
    assert said == f"digits test: {found}"
    assert (found.draws, len(found.index)) == (3, 6)
    model, data = sde.load(folder / "run"), sde.data.digits(holdout=9)
    call = {
        "solver": SOLVER,
        "trace": sde.ExactTrace(),
        "dequantiser": load_dequantiser(folder / "run" / "dequantiser.pt"),
    }
    expected = sde.likelihood.discrete_log_prob(
        model.denoiser, data.test.values[:6], model.scaling, draws=3, weighted=True, **call
    )
    # Batches of six and of two, in float32: sums of 64 numbers that a small network computes in some ten operations.
    np.testing.assert_allclose(found.nats, expected.nats.numpy(), rtol=10 * 64**0.5 * torch.finfo(torch.float32).eps)
    again = here(folder, "likelihood", *JOB, *LEARNED, "repeats=2", "trace=exact", "out=a.h5")
    assert "bound of 2 draws" in again.out  # of the three there are
    estimated = here(folder, "likelihood", *JOB, "repeats=2", "out=b.h5")
    assert hint in estimated.out
    assert line not in estimated.out
    plane = [key for key in JOB if not key.startswith("ckpt")]
    continuous = here(folder, "likelihood", "ckpt=plane", *plane, "trace=exact", "repeats=2", "out=d.h5")
    assert continuous.code == 0, continuous.err
    assert line not in continuous.out
    assert hint not in continuous.out
    assert not math.isnan(found.standard_error)
