"""The commands that score a data set and check likelihoods: shared among processes, killed, out of disk, refused."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.commands import SCRIPTS, files, here, refused

import sde
from sde.instantiate import build
from sde.likelihood.flow import default_solver
from sde.storage.checkpoint import load_checkpoint, write
from sde.storage.files import Lock
from sde.storage.store import Store, read

TRAIN = ["network=mlp", "network.width=8", "network.depth=1", "batch_size=8", "device=cpu", "preview.n=0", "steps=2"]
CHEAP = ["device=cpu", "solver=heun", "solver.steps=2"]
N, BATCH, REPEATS = 20, 2, 2
SCORE = [*CHEAP, "budget=0"]
JOB = ["ckpt=run", *SCORE, f"n={N}", f"batch_size={BATCH}", f"repeats={REPEATS}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits, one of points in the plane, and the scores of an undisturbed job."""
    folder = tmp_path_factory.mktemp("likelihood")
    for name, keys in {
        "run": ["data=digits"],
        "plane": ["experiment=moons", "data.n_train=50", "data.n_test=20"],
    }.items():
        result = here(folder, "train", *keys, *TRAIN, f"run_dir={name}")
        assert result.code == 0, result.err
    result = here(folder, "likelihood", *JOB, "out=undisturbed.h5")
    assert (result.code, result.err) == (0, "")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path


def rows_equal(path: Path, other: Path) -> None:
    """Row by row, bit by bit, and every index exactly once per repeat."""
    one, two = read(path).columns, read(other).columns
    assert one["repeat"].tolist() == [r for r in range(REPEATS) for _ in range(N)]
    assert one["index"].tolist() == list(range(N)) * REPEATS
    attributes = [{**read(p).attributes, "checkpoint": ""} for p in (path, other)]
    assert attributes[0] == attributes[1]
    for name, values in two.items():
        np.testing.assert_array_equal(one[name], values, err_msg=name)


def leftovers(path: Path) -> set[str]:
    """What stands beside a result file for its writers: journals, locks, parts, temporary files."""
    names = {entry.name for entry in path.parent.iterdir() if entry.name.lstrip(".").startswith(f"{path.stem}.")}
    return names - {path.name}


def test_two_files_are_compared(trained: Path) -> None:
    result = here(trained, "paired", "first=undisturbed.h5", "second=undisturbed.h5")
    assert result.code == 0, result.err
    assert "bits_per_dim, undisturbed.h5 - undisturbed.h5: +0.00000 +- 0.00000" in result.out
    assert f"{N} samples, correlation 1.000" in result.out
    refused(here(trained, "paired", "first=undisturbed.h5", "second=nowhere.h5"), "nowhere.h5")
    refused(here(trained, "paired", "first=undisturbed.h5"), "second is missing")
    refused(here(trained, "paired", "first=undisturbed.h5", "second=undisturbed.h5", "column=bits"), "no column 'bits'")


def test_pictures_stand_beside_the_file(trained: Path) -> None:
    for what in ("bits", "typicality"):
        with Image.open(trained / f"undisturbed-{what}.png") as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 3
    assert leftovers(trained / "undisturbed.h5") == set()


# Several processes


def test_two_processes_make_the_file_of_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts them; the last one to finish has the whole result."""
    first = here(folder, "likelihood", *JOB, "out=a.h5", "rank=0", "world=2")
    assert first.code == 0, first.err
    assert "20 rows" in first.out
    assert len(first.out.splitlines()) == 1
    assert read(folder / "a.h5").columns["index"].tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17] * 2
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    last = here(folder, "likelihood", *JOB, "out=a.h5")
    assert last.code == 0, last.err
    assert "over 20 samples" in last.out
    rows_equal(folder / "a.h5", folder / "undisturbed.h5")
    assert leftovers(folder / "a.h5") == set()
    monkeypatch.setenv("RANK", "2")
    refused(here(folder, "likelihood", *JOB, "out=a.h5"), "rank=2, world=2")
    monkeypatch.setenv("RANK", "one")
    refused(here(folder, "likelihood", *JOB, "out=a.h5"), "rank='one'")


def test_a_second_writer_is_refused(folder: Path) -> None:
    """Of the whole file, of the same part, and of the whole file while a part is written."""
    before = files(folder)
    lock = Lock(folder / "undisturbed.h5.lock")
    refused(here(folder, "likelihood", *JOB, "out=undisturbed.h5"), f"process {os.getpid()}", "holds the lock")
    lock.release()
    (folder / "undisturbed.part1.h5.journal").touch()  # of a process that has just begun
    lock = Lock(folder / "undisturbed.part1.h5.lock")
    refused(here(folder, "likelihood", *JOB, "out=undisturbed.h5"), "part1", "holds the lock")
    refused(here(folder, "likelihood", *JOB, "out=undisturbed.h5", "rank=1", "world=2"), "part1", "holds the lock")
    lock.release()
    (folder / "undisturbed.part1.h5.journal").unlink()
    assert files(folder) == before


# Kills and full disks

# A process with everything imported, which forks a job for each line it reads, and notes what each job acknowledges.
SERVER = """
import os, runpy, signal, sys

scripts = sys.argv[1]
sys.path[:0] = [scripts]
import torch
torch.set_num_threads(1)
import command, matplotlib.figure, scipy.stats, sklearn.metrics
import sde.evaluation.forecast, sde.evaluation.out_of_distribution, sde.model, sde.plots
import sde.evaluation.shards as shards
from sde.storage.store import Store

append = Store.append
shards.opened.__wrapped__.__kwdefaults__["snapshot_every"] = 6


def job(log, arguments):
    def logged(store, rows):
        append(store, rows)
        text = "".join(f"{store.path.name} {r}:{i}\\n" for r, i in zip(rows["repeat"], rows["index"]))
        os.write(log, text.encode())

    Store.append = logged
    sys.argv = ["likelihood.py", *arguments]
    runpy.run_path(scripts + "/likelihood.py", run_name="__main__")


for line in sys.stdin:
    kind, *words = line.split()
    if kind == "wait":
        print(os.waitstatus_to_exitcode(os.waitpid(int(words[0]), 0)[1]), flush=True)
    elif (pid := os.fork()):
        print(pid, flush=True)
    else:
        status = 1
        try:
            log = os.open(words[0], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            job(log, words[1:])
            status = 0
        finally:
            os._exit(status)
"""


class Server:
    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(SCRIPTS)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, *words: object) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate(timeout=60)


class Reader(threading.Thread):
    """Reads a file again and again, and notes what a reader must never see."""

    def __init__(self, path: Path, undisturbed: Path) -> None:
        super().__init__()
        self.path, self.stop, self.reads, self.wrong = path, threading.Event(), 0, ""
        columns = read(undisturbed).columns
        keys = zip(columns["repeat"].tolist(), columns["index"].tolist())
        self.truth = dict(zip(keys, columns["log_prob"].tolist()))

    def run(self) -> None:
        seen: set[tuple[int, int]] = set()
        try:
            while not self.stop.wait(0.002):
                if not self.path.exists():
                    continue
                columns = read(self.path).columns
                now = list(zip(columns["repeat"].tolist(), columns["index"].tolist()))
                assert seen <= set(now), "rows went away"
                assert len(set(now)) == len(now), "a row twice"
                assert all((repeat, index ^ 1) in set(now) for repeat, index in now), "half a batch"
                assert [self.truth[key] for key in now] == columns["log_prob"].tolist(), "another row"
                seen, self.reads = set(now), self.reads + 1
        except Exception as error:
            self.wrong = repr(error)


def kill_often(folder: Path, kills: int, seed: int) -> None:
    """Jobs of one or two processes one after the other, each killed until it is through, until there were so many."""
    rng = random.Random(seed)
    killed = busy = number = 0
    with Server(folder) as server:
        begin = time.monotonic()
        assert server.ask("wait", server.ask("run", folder / "first.log", *JOB, "out=first.h5")) == 0
        whole = time.monotonic() - begin
        while killed < kills:
            world, path, log = 1 + number % 2, folder / f"job{number}.h5", folder / f"job{number}.log"
            reader = Reader(path, folder / "undisturbed.h5")
            reader.start()
            try:
                unfinished = set(range(world))
                while unfinished:
                    known = log.stat().st_size if log.exists() else 0
                    words = [log, *JOB, f"out={path}", f"world={world}"]
                    pids = {rank: server.ask("run", *words, f"rank={rank}") for rank in unfinished}
                    if killed < kills:
                        # At any moment at all, or a little after so many rows have been acknowledged.
                        moment, lines = time.monotonic() + rng.uniform(0.0, 1.2) * whole, rng.choice([0, 1, 4, 12])
                        while lines and time.monotonic() < moment:
                            if log.exists() and log.stat().st_size > known + 15 * lines:
                                moment = min(moment, time.monotonic() + rng.uniform(0.0, 0.02))
                                break
                            time.sleep(0.001)
                        time.sleep(max(0.0, moment - time.monotonic()))
                        for pid in pids.values():  # all of them, or sometimes one
                            if len(pids) == 1 or rng.random() < 0.7:
                                os.kill(pid, signal.SIGKILL)  # not reaped before it is waited for
                    for rank, pid in pids.items():
                        status = server.ask("wait", pid)
                        assert status in (0, -signal.SIGKILL)
                        killed += status != 0
                        busy += status != 0 and log.exists() and log.stat().st_size > known
                        unfinished -= {rank} if status == 0 else set()
                # A process that was through before another one was killed does not see the end: the same command does.
                assert server.ask("wait", server.ask("run", log, *JOB, f"out={path}")) == 0
            finally:
                reader.stop.set()
                reader.join()
            assert reader.wrong == ""
            assert reader.reads > 0
            # What was acknowledged once is never computed again; of two processes each acknowledges in its own part.
            name = path.name if world == 1 else f"{path.stem}.part"
            said = [line.split()[1] for line in log.read_text().splitlines() if line.startswith(name)]
            assert len(said) == len(set(said)), "an acknowledged row was lost, and computed again"
            rows_equal(path, folder / "undisturbed.h5")
            assert leftovers(path) <= {log.name, f"{path.stem}.part0.h5.lock", f"{path.stem}.part1.h5.lock"}
            number += 1
    assert busy >= kills // 4, "few kills fell into the work itself"


def test_a_killed_job_goes_on(folder: Path) -> None:
    kill_often(folder, kills=1, seed=0)


@pytest.mark.slow
def test_a_hundred_kills_at_random_moments(folder: Path) -> None:
    kill_often(folder, kills=100, seed=1)


@pytest.mark.parametrize("world", [1, 2])
def test_a_full_disk_stops_the_job_which_goes_on_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    """The journal's fourth record finds no space, nor does anything after it."""
    pwrite, replace, calls, path = os.pwrite, os.replace, [0], folder / "a.h5"

    def full(descriptor: int, data: bytes, offset: int) -> int:
        calls[0] += len(data) > 100
        if calls[0] >= 4 and len(data) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    def no_room(source: str | Path, target: str | Path) -> None:
        if calls[0] >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    share = [f"world={world}"]
    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        disk.setattr(os, "replace", no_room)
        refused(here(folder, "likelihood", *JOB, "out=a.h5", *share), "No space left on device")
    assert read(path).columns["index"].tolist() == []
    calls[0] = 0
    with monkeypatch.context() as disk:  # with room again: what the three records held is not computed again
        disk.setattr(os, "pwrite", lambda d, data, at: calls.append(len(data)) or pwrite(d, data, at))
        for rank in range(world):
            result = here(folder, "likelihood", *JOB, "out=a.h5", *share, f"rank={rank}")
            assert result.code == 0, result.err
    # Each of the 20 batches is one record; of two processes the parts are records once more when they are gathered.
    assert len([size for size in calls[1:] if size > 100]) == (20 - 3 if world == 1 else 20 - 3 + 3)
    rows_equal(path, folder / "undisturbed.h5")


# Refusals


def test_a_checkpoint_that_names_no_data(folder: Path) -> None:
    content = load_checkpoint(folder / "run")
    for config in ({"source": "elsewhere.pth", "settings": {}}, {"data": None}):
        (folder / "converted.pt").unlink(missing_ok=True)
        write(folder / "converted.pt", {**content, "config": json.dumps(config)})
        for script in ("likelihood", "diagnose"):
            refused(here(folder, script, "ckpt=converted.pt", *CHEAP), "data=...")
    result = here(folder, "likelihood", "ckpt=converted.pt", *SCORE, "data=digits", "n=2", "out=b.h5")
    assert result.code == 0, result.err


def test_bad_data_is_refused_before_anything_is_done(folder: Path) -> None:
    x = np.random.RandomState(0).normal(size=(20, 2)).astype(np.float32)
    bad = np.where(np.arange(40).reshape(20, 2) == 7, np.nan, x)
    np.savez(folder / "nan.npz", x_train=x, x_test=bad)
    np.savez(folder / "wide.npz", x_train=np.zeros((9, 3), np.float32), x_test=np.ones((9, 3), np.float32))
    np.savez(folder / "bytes.npz", x_train=np.zeros((9, 1, 8, 8), np.uint8), x_test=np.zeros((9, 1, 8, 8), np.uint8))
    np.savez(folder / "whole.npz", x_train=np.zeros((9, 2), np.uint8), x_test=np.zeros((9, 2), np.uint8))
    np.savez(folder / "high.npz", x_test=np.full((9, 1, 8, 8), 17, np.uint8))
    np.savez(folder / "empty.npz", x_train=np.zeros((0, 2), np.float32), x_test=x)
    before = files(folder)
    for keys, words in (
        (["ckpt=plane", "data=arrays", "data.path=nan.npz"], ["[3, 1] is nan"]),
        (["ckpt=plane", "data=arrays", "data.path=wide.npz", "data.standardise=false"], ["(B, 2), got (9, 3)"]),
        (["ckpt=plane", "data=arrays", "data.path=empty.npz"], ["(0, 2)"]),
        (
            ["ckpt=plane", "data=arrays", "data.path=whole.npz"],
            ["continuous", "256 levels"],
        ),
        (["ckpt=run", "data=arrays", "data.path=bytes.npz"], ["17 levels", "256 levels", "levels=17"]),
        (["ckpt=run", "ood=high.npz"], ["is 17", "0 to 16"]),
        (
            ["ckpt=run", "ood=high.npz", "ood_array=y"],
            ["high.npz: there is no array 'y'", "'x_test': give its name as ood_array="],
        ),
        (["ckpt=run", "ood=gone.npz"], ["ood: ", "gone.npz"]),
        (["ckpt=run", "ema=slow"], ["no EMA 'slow'", "ema=null loads the raw weights"]),
        (["ckpt=run", "data=arrays", "data.path=bytes.np"], ["data.path: ", "did you mean bytes.npz?"]),
        (["ckpt=run", "data=arrays", "data.path=high.npz"], ["no array 'x_train'", "train=", "test=null splits"]),
        (["ckpt=run", "dequantise=variational", "dequantise.path=noise.pt"], ["dequantise.path: ", "noise.pt"]),
        (["ckpt=run", "guidance=classifier", "guidance.log_prob.path=c.pt"], ["guidance.log_prob.path: ", "c.pt"]),
        (["ckpt=plane", "ood=wide.npz"], ["(B, 2), got (9, 3)"]),
        (["ckpt=run", "atol=1"], ["atol=1", "Heun"]),
        (["ckpt=plane", "dequantise=truncated_normal"], ["continuous"]),
    ):
        refused(here(folder, "likelihood", *CHEAP, *keys), *words)
    refused(here(folder, "likelihood", "ckpt=run", "device=cpu", "pilot=4"), "such as Heun(20), got RungeKutta")
    assert files(folder) == before


def test_another_job_s_file_names_the_first_difference(folder: Path) -> None:
    before = files(folder)
    other = [word for word in JOB if not word.startswith("solver.steps")]
    result = here(folder, "likelihood", *other, "solver.steps=3", "out=undisturbed.h5")
    refused(result, "another job", "attribute 'config'", '"steps": 2', '"steps": 3')
    result = here(folder, "likelihood", *JOB, "split=train", "out=undisturbed.h5")
    refused(result, "another job", '"split": "test"', '"split": "train"')
    # Before a forecast, which would count its rows, and before a pilot run, which would leave a grid.
    refused(here(folder, "likelihood", *JOB, "seed=1", "dry_run=true", "out=undisturbed.h5"), "another job", "seed")
    refused(here(folder, "likelihood", *JOB, "seed=1", "pilot=4", "out=undisturbed.h5"), "another job")
    refused(here(folder, "likelihood", *JOB, "budget=-1", "out=b.h5"), "budget=-1")
    assert files(folder) == before


def test_the_command_has_the_solver_of_the_library() -> None:
    tree = yaml.safe_load((SCRIPTS.parent / "configs" / "solver" / "runge_kutta.yaml").read_text())
    assert build(tree) == default_solver()


def test_a_file_has_one_tolerance(folder: Path) -> None:
    """The default one is part of the file; files of version 0.1.0, which do not name it, keep 0.01 nats and their first
    step."""
    keys = ["ckpt=plane", "device=cpu", "trace=exact", "budget=0"]
    first = here(folder, "likelihood", *keys, "n=2", "out=a.h5")
    assert first.code == 0, first.err
    whole = read(folder / "a.h5")
    assert whole.attributes["atol"] == 5e-5 * 2 * math.log(2.0)
    assert "nats; wrote a.h5" in first.out
    columns = {name: values.dtype for name, values in whole.columns.items() if name not in ("index", "repeat")}
    names = ["config", "checkpoint_sha256", "seed", "dequantisation", "data"]
    key = {name: whole.attributes[name] for name in names}
    with Store.open(folder / "old.h5", columns, key=key):
        pass
    for out, tolerance in (("old.h5", ["atol=auto"]), ("b.h5", ["atol=0.01", "+solver.first_ratio=null"])):
        result = here(folder, "likelihood", *keys, *tolerance, "n=2", f"out={out}")
        assert result.code == 0, result.err
        assert "atol" not in read(folder / out).attributes
    np.testing.assert_array_equal(*(read(folder / out).columns["log_prob"] for out in ("old.h5", "b.h5")))
    assert read(folder / "old.h5").columns["nfe"].sum() < whole.columns["nfe"].sum()


# What else it does


def test_a_dry_run_predicts_and_writes_nothing(folder: Path) -> None:
    def forecast(*words: str) -> str:
        result = here(folder, "likelihood", *words, "dry_run=true")
        assert result.code == 0, result.err
        # On a slow machine lines about progress come before it.
        (line,) = (line for line in result.out.splitlines() if line.startswith("digits test: "))
        return line

    before = files(folder)
    line = forecast(*JOB, "pilot=4", "out=new/a.h5")
    assert line.startswith(f"digits test: {N * REPEATS} rows, 160 network calls (4.0 a row), about 0:0")
    assert "MiB" in line
    more = [word for word in JOB if not word.startswith("n=")]
    line = forecast(*more, "n=30", "out=undisturbed.h5")
    assert line.startswith("digits test: 20 rows, 80 network calls")
    # An error budget takes at most 2 * 3 times the calls of each of its rows; a finished job has one too.
    line = forecast(*JOB, "budget=2", "out=new/a.h5")
    assert "208 network calls (4.0 a row, and at most 48 for the error budget)" in line
    line = forecast(*JOB, "budget=2", "out=undisturbed.h5")
    assert line.startswith("digits test: 0 rows, 48 network calls")
    assert files(folder) == before


def test_other_data(folder: Path) -> None:
    """Noise is no digit, and digits are not out of distribution; the column `log_prob` is in the model's range."""
    noise = np.random.RandomState(0).choice([0, 16], (12, 1, 8, 8)).astype(np.uint8)
    np.savez(folder / "noise.npz", x=noise)
    job = [*JOB, "budget=1", "out=undisturbed.h5"]
    result = here(folder, "likelihood", *job, "ood=noise.npz", "ood_array=x")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "digits test",
        "ood noise",
        "AUROC by bits/dim",
        "AUROC by typicality",
        "digits test",
        "digits test",
    ]
    assert "bits/dim (mean" in lines[0]
    assert "99 % half-widths" in lines[-1]
    assert (folder / "undisturbed-ood-noise-bits.png").exists()  # the plot of the split alone stays as it was
    found = read(folder / "undisturbed-ood-noise.h5")
    assert len(found.columns["index"]) == 12 * REPEATS
    model = sde.load(folder / "run")
    solver = sde.solvers.Heun(2, grid=sde.grids.LogSNR())
    bits = model.bits_per_dim(torch.from_numpy(noise[:2]), solver=solver)
    # In float32, of batches of another size.
    np.testing.assert_allclose(found.columns["bits_per_dim"][:2], bits.numpy(), rtol=1e-4)
    assert found.attributes["log_prob_unit"] == "nats, in the model's range"
    in_data_units = found.columns["log_prob"] + 64 * np.log(model.scaling.scale)
    np.testing.assert_allclose(found.columns["bits_per_dim"], -in_data_units / (64 * np.log(2.0)), rtol=1e-6)
    itself = here(folder, "likelihood", *JOB, "out=undisturbed.h5", "data@ood=digits")
    assert itself.code == 0, itself.err
    assert "AUROC by bits/dim: 0.5000 +- " in itself.out


def test_a_tuned_grid_is_kept_and_used(folder: Path) -> None:
    keys = ["ckpt=run", *SCORE, "n=4", "pilot=4"]
    one = here(folder, "likelihood", *keys, "out=a.h5")
    assert one.code == 0, one.err
    (grid,) = (folder / "run" / "grids").iterdir()
    points = json.loads(grid.read_text())["points"]
    assert len(points) == 3
    assert str(points[1]) in read(folder / "a.h5").attributes["solver"]
    kept = grid.read_bytes()
    two = here(folder, "likelihood", *keys, "out=b.h5")
    assert two.code == 0, two.err
    assert grid.read_bytes() == kept
    np.testing.assert_array_equal(read(folder / "a.h5").columns["nfe"], [4] * 4)
    # Another grid is another job.
    grid.write_text(json.dumps({**json.loads(kept), "points": [points[0], 0.9 * points[1], points[2]]}))
    refused(here(folder, "likelihood", *keys, "out=b.h5"), "another job", "attribute 'solver'")


def test_dequantisation_is_a_choice(folder: Path) -> None:
    result = here(folder, "likelihood", "ckpt=run", *SCORE, "n=4", "dequantise=truncated_normal", "out=a.h5")
    assert result.code == 0, result.err
    assert str(read(folder / "a.h5").attributes["dequantisation"]).startswith("TruncatedNormal(std=0.0")
    named = here(folder, "likelihood", *JOB, "dequantise=uniform", "out=b.h5")
    assert named.code == 0, named.err
    np.testing.assert_array_equal(*(read(folder / name).columns["log_prob"] for name in ("b.h5", "undisturbed.h5")))


def test_rows_that_fail_are_counted(folder: Path) -> None:
    keys = ["ckpt=run", "device=cpu", "n=4", "solver.on_failure=mark", "solver.max_steps=1", "out=a.h5"]
    result = here(folder, "likelihood", *keys)
    assert (result.code, result.err) == (0, "")
    assert "nan +- nan bits/dim" in result.out
    assert "4 of 4 rows failed and are left out" in result.out
    assert all(math.isnan(value) for value in read(folder / "a.h5").columns["bits_per_dim"])


def test_diagnose(folder: Path) -> None:
    before = files(folder)
    result = here(folder, "diagnose", "ckpt=run", "device=cpu", "n=8", "times=3")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("digits test, round trip of 8 samples")
    assert len(lines) == 1 + 1 + 1 + 3 + 1
    path = folder / "run" / "likelihood" / "test-diagnostics.png"
    with Image.open(path) as image:
        image.load()
    assert files(folder).keys() - before.keys() == {str(path.relative_to(folder))}
    # The same command again replaces its own file; the checks of other settings are not lost.
    before = files(folder)
    assert here(folder, "diagnose", "ckpt=run", "device=cpu", "n=8", "times=3").code == 0
    refused(here(folder, "diagnose", "ckpt=run", "device=cpu", "n=7", "times=3"), path.name, "n was 8 and is now 7")
    assert files(folder) == before


def test_the_jobs_of_a_sweep_have_files_of_their_own(folder: Path) -> None:
    job = ["ckpt=run", "device=cpu", "solver=heun", "budget=0", "n=2"]
    result = here(folder, "likelihood", "-m", *job, "solver.steps=2,3")
    assert (result.code, result.err) == (0, "")
    paths = {f"test-solver_heun-solver.steps_{steps}.h5": steps for steps in (2, 3)}
    assert {path.name for path in (folder / "run" / "likelihood").glob("*.h5")} == paths.keys()
    for name, steps in paths.items():
        assert read(folder / "run" / "likelihood" / name).columns["nfe"].tolist() == [2 * steps] * 2


def test_the_error_chooses_the_solver(folder: Path) -> None:
    """Before the first row, and once: another process and the same command read the choice from the file."""
    job = ["ckpt=plane", "device=cpu", "budget=0", "n=20", "repeats=4", "batch_size=10", "out=chosen.h5"]
    job += ["error=0.2", "error_per_image=0.8"]
    first = here(folder, "likelihood", *job, "world=2", "rank=0")
    assert first.code == 0, first.err
    line = next(line for line in first.out.splitlines() if line.startswith("chosen:"))
    assert "for the pilot" in line
    attributes = read(folder / "chosen.h5").attributes
    assert attributes["chosen"] == line
    second = here(folder, "likelihood", *job, "world=2", "rank=1")
    assert second.code == 0, second.err
    assert line in second.out
    assert "pilot run part" not in second.out
    again = here(folder, "likelihood", *job)
    assert (again.code, line in again.out) == (0, True), again.err
    nfe = read(folder / "chosen.h5").columns["nfe"]
    assert len(nfe) == 80
    assert len(set(nfe.tolist())) == 1  # a designed solver
    refused(here(folder, "likelihood", *job[:-2], "error=0.1", "error_per_image=0.8"), "chosen.h5")
    refused(here(folder, "likelihood", *job, "solver=heun", "solver.steps=2"), "leave out solver=")
    refused(here(folder, "likelihood", *job[:-2], "error=0"), "error")
