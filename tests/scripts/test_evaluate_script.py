"""The evaluation command: what it prints and writes, and that it replaces and repeats nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import SCRIPTS, files, here, refused

import sde
from sde.evaluation import save_classifier
from sde.metrics.features import ClassifierNetwork


def samples(folder: Path) -> None:
    """Two files of digits, the second one with noise."""
    x = sde.data.digits().test.values[:120]
    noisy = (x.int() + torch.randint(-6, 7, x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 16).byte()
    for name, values in {"a": x, "b": noisy}.items():
        np.savez(folder / f"{name}.npz", x=values.numpy(), index=np.arange(120))


def test_it_compares_sets_with_data(tmp_path: Path) -> None:
    samples(tmp_path)
    command = ["samples=[a.npz,b.npz]", "data=digits", "metrics=[frechet,memorisation,precision_recall]", "device=cpu"]
    first = here(tmp_path, "evaluate", *command, "out=out/r.h5")
    assert first.code == 0, first.err
    lines = first.out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split() == ["a", "b"])
    assert lines[head + 1].startswith("frechet ")
    assert any(line.startswith("minus a:") for line in lines)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"r.png", "r-precision-recall.png", "r-histograms.png", "r-nearest0.png", "r-nearest1.png"}
    assert written == {"r.h5", "r.json", *pictures}
    rows = json.loads((tmp_path / "out" / "r.json").read_text())["estimates"]
    difference = next(row for row in rows if row["difference_from"] == "a" and row["measure"] == "frechet")
    assert difference["value"] > 3 * difference["standard_error"] > 0
    # The same command again takes the features that are there, and another one does not replace the result.
    before = files(tmp_path / "runs")
    assert here(tmp_path, "evaluate", *command, "out=out/r.h5").code == 0
    refused(here(tmp_path, "evaluate", *command, "out=out/r.h5", "seed=1"), "overwrite=true")
    assert files(tmp_path / "runs") == before


def test_processes_share_the_extraction(tmp_path: Path) -> None:
    samples(tmp_path)
    command = [
        "samples=b.npz",
        "reference=a.npz",
        "levels=17",
        "device=cpu",
        "out=r.h5",
        "metrics=[frechet]",
        "world=2",
    ]
    first = here(tmp_path, "evaluate", *command, "rank=1")
    assert "process 1 of 2 has finished; 240 items of other processes are missing" in first.out
    assert not (tmp_path / "r.h5").exists()
    second = here(tmp_path, "evaluate", *command, "rank=0")
    assert "wrote r.h5" in second.out
    assert os.listdir(tmp_path / "runs") == ["features"]


@pytest.mark.slow
def test_killed_ranks_go_on_with_the_features_that_are_there(tmp_path: Path) -> None:
    """SIGKILL of both ranks after some pieces: the same command, by one process, computes only the others."""
    samples(tmp_path)
    torch.manual_seed(0)
    save_classifier(tmp_path / "c.pt", ClassifierNetwork((1, 8, 8), 10))
    keys = ["samples=a.npz", "data=digits", "features=classifier", "features.path=c.pt"]
    keys += ["device=cpu", "metrics=[frechet]"]
    command = [sys.executable, str(SCRIPTS / "evaluate.py"), *keys, "out=r.h5"]
    ranks = [{**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    jobs = [subprocess.Popen(command, cwd=tmp_path, env=rank) for rank in ranks]
    cache, deadline = tmp_path / "runs" / "features", time.monotonic() + 240
    while len(list(cache.rglob("*.h5"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    for job in jobs:
        job.kill()
        job.wait()
    pieces = list(cache.rglob("*.h5"))
    times = {path: path.stat().st_mtime_ns for path in pieces}
    assert 2 <= len(times) < 7
    assert not (tmp_path / "r.h5").exists()
    for name, extra in {"r": [], "whole": ["cache=others", "features.block=100"]}.items():
        assert here(tmp_path, "evaluate", *keys, f"out={name}.h5", *extra).code == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    one, other = (json.loads((tmp_path / f"{name}.json").read_text())["estimates"][0] for name in ("r", "whole"))
    numbers = [[row[key] for key in ("value", "standard_error", "plain")] for row in (one, other)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-10)


def test_what_it_cannot_compare_is_one_line(tmp_path: Path) -> None:
    samples(tmp_path)
    refused(here(tmp_path, "evaluate", "samples=a.npz"), "reference=PATH or data=NAME")
    refused(here(tmp_path, "evaluate", "samples=a.npz", "reference=b.npz", "metrics=[memorisation]"), "give data=")
    refused(here(tmp_path, "evaluate", "samples=none", "data=digits"), "samples: ", "none")
    nothing = here(tmp_path, "evaluate", "samples=a.npz", "reference=b.npz", "array=y")
    refused(nothing, "a.npz: there is no array 'y'", "give its name as array=")
    assert "test" not in nothing.err
    refused(here(tmp_path, "evaluate", "data=digits"), "samples is missing")
    # A measure that is refused is said, and what is known beside it is written first.
    command = ["samples=a.npz", "data=digits", "out=r.h5", "metrics=[inception_score,frechet]"]
    part = here(tmp_path, "evaluate", *command)
    assert part.code == 1
    assert "\nfrechet " in part.out
    assert part.err.startswith("error: not computed: a: inception_score (")
    assert list(json.loads((tmp_path / "r.json").read_text())["refused"]) == ["a: inception_score"]
    refused(here(tmp_path, "evaluate", *command[:2], "out=s.h5", "metrics=[inception_score]"), "not computed")
    assert not (tmp_path / "s.h5").exists()
