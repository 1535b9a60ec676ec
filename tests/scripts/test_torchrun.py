"""Training under torchrun: several ranks, the death of one, and the restart."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import SCRIPTS, TINY, process

from sde.storage.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

KILLS = 20
SAME = [*TINY, "network.dropout=0", "preview.n=0", "save_every=5"]


def torchrun(folder: Path, *keys: str, restarts: int = 4) -> subprocess.Popen[bytes]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.2", str(SCRIPTS / "train.py"), *SAME, *keys]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder.with_suffix(".log"), "w") as log:  # a pipe that nobody reads would fill up
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)


def output(job: subprocess.Popen[bytes], folder: Path, seconds: float) -> str:
    """What a job has written when it has ended."""
    try:
        job.wait(seconds)
    finally:
        job.kill()
        job.wait()
    return folder.with_suffix(".log").read_text()


def ranks(job: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a job has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[1]) == job.pid:
            found.append(int(path.parent.name))
    return sorted(found)


def step(folder: Path) -> int:
    last = folder / "checkpoints" / "last.pt"
    return int(last.resolve().stem.rpartition("_")[2]) if last.exists() else 0


def wait_for(job: subprocess.Popen[bytes], folder: Path, beyond: int) -> None:
    deadline = time.monotonic() + 400
    while step(folder) <= beyond and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if step(folder) <= beyond:
        job.terminate()
        raise AssertionError(output(job, folder.parent, 60))


def test_two_ranks_of_torchrun_train_the_model_of_one_process(tmp_path: Path) -> None:
    assert process(tmp_path, "train", *SAME, "steps=20", "run_dir=one").code == 0
    expected = load_checkpoint(tmp_path / "one")
    for kind in ("ddp", "fsdp2"):
        job = torchrun(tmp_path, "steps=20", f"run_dir={kind}", f"ranks={kind}", "accumulate=2")
        out = output(job, tmp_path, 300)
        assert job.returncode == 0, out
        assert out.count("trained to step 20") == 1
        found = load_checkpoint(tmp_path / kind)
        for name, value in expected["weights"].items():
            assert (found["weights"][name] - value).abs().max() < 1e-5
        assert not (tmp_path / kind / ".lock").exists()


def kill_one(job: subprocess.Popen[bytes], which: int) -> float:
    """Kills a rank, and returns after how many seconds both have ended."""
    before = ranks(job)
    assert len(before) == 2
    os.kill(before[which], signal.SIGKILL)
    start = time.monotonic()
    while set(ranks(job)) & set(before) and time.monotonic() - start < 60:
        time.sleep(0.02)
    return time.monotonic() - start


def test_a_rank_that_is_killed_ends_the_job_and_the_restart_goes_on(tmp_path: Path) -> None:
    """Kills at uniform moments, of either rank, each of which costs one restart; the last of a job without any."""
    run, rng, kills = tmp_path / "run", random.Random(0), KILLS
    job = torchrun(tmp_path, "steps=1000000", "run_dir=run", "log_every=1000", restarts=kills)
    try:
        for kill in range(kills):
            wait_for(job, run, step(run))
            time.sleep(rng.uniform(0.0, 1.0))
            assert kill_one(job, kill % 2) < 30
            assert load_checkpoint(run)["step"] == step(run)
        wait_for(job, run, step(run))
    finally:
        job.terminate()
        output(job, tmp_path, 60)
    job = torchrun(tmp_path, "steps=1000000", "run_dir=run", "log_every=1000", restarts=0)
    wait_for(job, run, step(run))
    assert kill_one(job, 0) < 30
    output(job, tmp_path, 30)
    assert job.returncode != 0
    last = load_checkpoint(run)["step"]
    job = torchrun(tmp_path, f"steps={last + 5}", "run_dir=run", "log_every=1000")
    output(job, tmp_path, 200)
    assert (job.returncode, step(run)) == (0, last + 5)


def test_torchrun_hands_sigterm_on_and_both_ranks_save_one_step(tmp_path: Path) -> None:
    job = torchrun(tmp_path, "steps=1000000", "run_dir=run", "save_every=1000000", "log_every=1")
    deadline = time.monotonic() + 200
    while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    out = output(job, tmp_path, 60)
    assert job.returncode != 0
    assert f"interrupted after step {step(tmp_path / 'run')}" in out
    assert load_checkpoint(tmp_path / "run")["step"] >= 1


def test_a_refusal_is_one_of_every_rank(tmp_path: Path) -> None:
    """Nothing is written, and no rank waits for another."""
    start = time.monotonic()
    job = torchrun(tmp_path, "steps=4", "run_dir=run", "accumulate=3")
    out = output(job, tmp_path, 200)
    assert job.returncode != 0
    assert "error: a batch of 8 samples does not divide into 2 ranks times accumulate=3" in out
    assert time.monotonic() - start < 100
    assert list(tmp_path.iterdir()) == []
