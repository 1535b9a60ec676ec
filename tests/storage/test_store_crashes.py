"""The store under kills: no acknowledged row is lost, none comes twice, and the file ends up as if nothing had been."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import sde
from sde.storage.store import Store, read

SIZE = 2  # rows in a batch

# The job of all tests here. It loads the store without the rest of the package, which would take torch's seconds.
JOB = """
import os, resource, signal, sys, types

package = types.ModuleType("sde")
package.__path__ = [sys.argv[1]]
sys.modules["sde"] = package

import numpy as np
from sde.storage.store import Store


def job(path, repeats, batches, snapshot_every, say):
    columns, key = {"value": float, "nfe": np.int64}, {"seed": 1}
    with Store.open(path, columns, key=key, snapshot_every=snapshot_every) as store:
        say("open " + " ".join(f"{r}:{i}" for r in range(repeats) for i in sorted(store.done(r))))
        for repeat in range(repeats):
            for batch in range(batches):
                index = np.arange(2 * batch, 2 * batch + 2)
                if store.done(repeat).issuperset(index.tolist()):
                    continue
                rows = {"index": index, "repeat": np.full(2, repeat), "nfe": 7 * index, "value": index / 3 + repeat}
                store.append(rows)
                say("done " + " ".join(f"{repeat}:{i}" for i in index))
        say("end")
"""

RUN = "job(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), lambda text: print(text, flush=True))"

# Kills itself at the k-th point, where the points are the beginning and the end of every call that changes the disk. A
# write killed at its beginning has written one half. fsync is a point, but is not called: it is slow, and a kill, which
# the operating system survives, does not need it. For each k two runs are killed at k, and one goes to the end.
AT_EVERY_POINT = """
import itertools, json


def kill_at(k):
    points = itertools.count(1)

    def point():
        if next(points) == k:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(name):
        call = getattr(os, name)

        def wrapped(*arguments):
            if name == "pwrite":
                call(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
            point()
            result = None if name == "fsync" else call(*arguments)
            point()
            return result

        setattr(os, name, wrapped)

    for name in ("pwrite", "fsync", "replace", "ftruncate", "unlink"):
        wrap(name)


def child(path, k):
    receive, send = os.pipe()
    if (pid := os.fork()) == 0:
        status = 1
        try:
            if k:
                kill_at(k)
            job(path, 2, 2, 3, lambda text: os.write(send, (text + "\\n").encode()))
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    with os.fdopen(receive) as lines:
        said = lines.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


for k in itertools.count(1):
    path = os.path.join(sys.argv[2], f"{k}.h5")
    runs = [child(path, k), child(path, k), child(path, 0)]
    print(json.dumps([path, runs]), flush=True)
    if runs[0][0] == 0:
        break
"""


def command(code: str, *arguments: object) -> list[str]:
    return [
        sys.executable,
        "-W",
        "error",
        "-c",
        JOB + code,
        os.path.dirname(sde.__file__),
        *map(str, arguments),
    ]


def rows(text: str) -> set[str]:
    return set(text.split()[1:])


def check(path: Path, repeats: int, batches: int) -> None:
    """The file is that of an undisturbed job, row by row, and nothing stands beside it."""
    columns = read(path).columns
    n = SIZE * batches
    index = np.tile(np.arange(n), repeats)
    repeat = np.repeat(np.arange(repeats), n)
    np.testing.assert_array_equal(columns["repeat"], repeat)
    np.testing.assert_array_equal(columns["index"], index)
    np.testing.assert_array_equal(columns["nfe"], 7 * index)
    np.testing.assert_array_equal(columns["value"], index / 3 + repeat)
    assert [name for name in os.listdir(path.parent) if name.startswith((path.name, f".{path.name}"))] == [path.name]


def check_reports(runs: list[list[str]]) -> None:
    """What one run acknowledged, all later ones find; and what was found or done is never done again."""
    acknowledged: set[str] = set()
    for said in runs:
        if said:
            assert acknowledged <= rows(said[0])
            acknowledged |= rows(said[0])
        for line in said[1:]:
            assert not acknowledged & rows(line)
            acknowledged |= rows(line)


def test_a_kill_at_every_point_is_survived(tmp_path: Path) -> None:
    done = subprocess.run(command(AT_EVERY_POINT, tmp_path), capture_output=True, text=True, check=True)
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) > 50
    for path, runs in cases:
        assert runs[0][0] == (0 if path == cases[-1][0] else -signal.SIGKILL)
        assert runs[-1][0] == 0
        check_reports([said for _, said in runs])
        check(Path(path), 2, 2)


class Reader(threading.Thread):
    """Reads the file again and again, and notes what a reader must never see."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.stop, self.reads, self.wrong = path, threading.Event(), 0, ""

    def run(self) -> None:
        seen: set[tuple[int, int]] = set()
        try:
            while not self.stop.wait(0.001):
                columns = read(self.path).columns
                now = set(zip(columns["repeat"].tolist(), columns["index"].tolist()))
                assert seen <= now, "rows went away"
                assert all((repeat, index ^ 1) in now for repeat, index in now), "half a batch"
                np.testing.assert_array_equal(columns["value"], columns["index"] / 3 + columns["repeat"])
                seen = now
                self.reads += 1
        except Exception as error:
            self.wrong = repr(error)


def kill_often(directory: Path, kills: int, seed: int) -> None:
    """Jobs one after the other, each killed until it is through, until there were so many kills."""
    rng = random.Random(seed)
    repeats, batches = 3, 30
    undisturbed = directory / "undisturbed.h5"
    subprocess.run(command(RUN, undisturbed, repeats, batches, 4), capture_output=True, check=True)
    check(undisturbed, repeats, batches)
    number = killed = 0
    while killed < kills:
        number += 1
        path = directory / f"job{number}.h5"
        Store.open(path, {"value": float, "nfe": np.int64}, key={"seed": 1}).close()
        reader = Reader(path)
        reader.start()
        runs: list[list[str]] = []
        try:
            status = -1
            while status != 0:
                with subprocess.Popen(
                    command(RUN, path, repeats, batches, 4), stdout=subprocess.PIPE, text=True
                ) as process:
                    assert process.stdout is not None
                    said = [process.stdout.readline().rstrip("\n") for _ in range(rng.randrange(1, 20))]
                    if killed < kills:
                        time.sleep(rng.uniform(0, 0.004))
                        process.kill()
                    said += process.stdout.read().splitlines()
                status = process.returncode
                assert status in (0, -signal.SIGKILL)
                killed += status != 0
                runs.append([line for line in said if line])
        finally:
            reader.stop.set()
            reader.join()
        assert reader.wrong == ""
        assert reader.reads > 0
        check_reports(runs)
        check(path, repeats, batches)
        assert path.read_bytes() == undisturbed.read_bytes()


def test_random_kills_are_survived_while_another_process_reads(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=8, seed=1)


@pytest.mark.slow
def test_a_hundred_random_kills_are_survived_while_another_process_reads(tmp_path: Path) -> None:
    kill_often(tmp_path, kills=100, seed=2)


# From the first acknowledged row on no file may grow beyond the limit: writing stops in the middle, as on a full disk.
FULL = """
def limit(text):
    print(text, flush=True)
    if text.startswith("done"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))


try:
    job(sys.argv[2], 3, 60, int(sys.argv[3]), limit)
except OSError as error:
    print("full", error.errno, flush=True)
"""


@pytest.mark.parametrize(
    ("snapshot_every", "limit", "journal_is_full"),
    [(10**6, 5000, True), (4, 15_000, False)],
    ids=["journal", "snapshot"],
)
def test_a_full_disk_is_survived(tmp_path: Path, snapshot_every: int, limit: int, journal_is_full: bool) -> None:
    path = tmp_path / "a.h5"
    done = subprocess.run(command(FULL, path, snapshot_every, limit), capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert said.pop() == f"full {errno.EFBIG}"
    assert len(said) > 5
    shown = read(path).columns
    assert set(map("{}:{}".format, shown["repeat"], shown["index"])) <= set().union(*map(rows, said))
    assert (len(shown["index"]) == 0) is journal_is_full
    again = subprocess.run(command(RUN, path, 3, 60, 10**6), capture_output=True, text=True, check=True)
    check_reports([said, again.stdout.splitlines()])
    check(path, 3, 60)
