"""The command line: train, sample, likelihood; what goes on, what is refused, and with which words.

The scripts run as `__main__` in this process, because most of a process's time goes into imports. Processes of their
own are in the slow tests here, and in those of killed jobs and of converted checkpoints.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import CHEAP, PREVIEW, SCRIPTS, TINY, Result, files, here, process, refused

import sde
from sde.storage.checkpoint import load_checkpoint
from sde.storage.files import sha256

SCORE = [*CHEAP, "budget=0"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Four steps on digits, and what the script said."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = [
        "sde=vp",
        *TINY,
        *PREVIEW,
        "steps=4",
        "save_every=2",
        "data.holdout=9",
        "validate_every=2",
        "run_dir=run",
    ]
    return folder, here(folder, "train", *arguments)


@pytest.fixture
def run(trained: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the trained run."""
    shutil.copytree(trained[0] / "run", tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_train(trained: tuple[Path, Result]) -> None:
    folder, result = trained
    assert (result.code, result.err) == (0, "")
    written = "run/checkpoints/step_00000004.pt"
    assert result.out.splitlines()[-1].startswith(f"trained to step 4; wrote {written}")
    assert sorted(os.listdir(folder)) == ["run"]
    names = {str(p.relative_to(folder / "run")) for p in (folder / "run").rglob("*") if p.is_file()}
    steps = [f"checkpoints/step_0000000{i}.pt{end}" for i in (2, 4) for end in ("", ".sha256")]
    assert {"config.yaml", "metrics.jsonl", "loss.png", "checkpoints/last.pt", *steps} <= names
    assert [n for n in names if n.startswith("samples/")] == ["samples/step_00000004.png"]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert ["valid_loss" in line for line in lines] == [False, True, False, True]
    for name in ("loss.png", "samples/step_00000004.png"):
        with Image.open(folder / "run" / name) as image:
            image.load()
    content = load_checkpoint(folder / "run")
    assert json.loads(content["config"])["network"]["width"] == 8


def test_from_checkpoint_to_samples_and_bits(run: Path) -> None:
    """Sampling writes a picture and values; scoring an HDF5 file that a larger n continues row for row."""
    sampled = here(run.parent, "sample", "ckpt=run", *CHEAP, "n=5", "batch_size=2", "seed=3")
    assert (sampled.code, sampled.err) == (0, "")
    png = run / "samples" / "step_00000004-Heun-seed3-n_5-solver.steps_2.png"
    assert (
        sampled.out.splitlines()[-1] == f"drew 5 samples of shape (1, 8, 8); wrote {png} and {png.with_suffix('.npz')}"
    )
    with Image.open(png) as image:
        image.load()
    with np.load(png.with_suffix(".npz")) as archive:
        assert archive["x"].shape == (5, 1, 8, 8)
        assert archive["x"].dtype == np.uint8
        assert archive["x"].max() <= 16
        assert archive["index"].tolist() == [0, 1, 2, 3, 4]
        whole = archive["x"]
    some = here(
        run.parent, "sample", "ckpt=run/checkpoints/step_00000004.pt", *CHEAP, "n=2", "first=3", "seed=3", "out=s.png"
    )
    assert some.code == 0, some.err
    with np.load(run.parent / "s.npz") as archive:
        # Of another size of batch: rounding decides which of two neighbouring levels a value on their border gets.
        assert np.abs(archive["x"].astype(int) - whole[3:]).max() <= 1
        assert archive["index"].tolist() == [3, 4]

    score = ["ckpt=run", *SCORE, "batch_size=4"]
    scored = here(run.parent, "likelihood", *score, "n=3", "repeats=2")
    assert (scored.code, scored.err) == (0, "")
    h5 = run / "likelihood" / "test.h5"
    (line,) = (line for line in scored.out.splitlines() if line.endswith(f"wrote {h5}"))
    assert line.startswith("digits test: ")
    assert " bits/dim (mean and standard error over 3 samples" in line
    more = here(run.parent, "likelihood", *score, "n=6", "repeats=2")
    assert more.code == 0, more.err
    fresh = here(run.parent, "likelihood", *score, "n=6", "repeats=2", "out=fresh.h5")
    assert fresh.code == 0, fresh.err
    wrote = [line for result in (more, fresh) for line in result.out.splitlines() if "; wrote " in line]
    said, again = (line.rpartition("; ")[0] for line in wrote)
    number = r"-?\d+\.\d+"
    assert re.sub(number, "", said) == re.sub(number, "", again)
    numbers = [[float(n) for n in re.findall(number, text)] for text in (said, again)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-3)
    with h5py.File(h5) as resumed, h5py.File(run.parent / "fresh.h5") as undisturbed:
        names = ["index", "repeat", "bits_per_dim", "log_prob", "prior_log_prob", "divergence", "standard_error", "nfe"]
        assert sorted(resumed) == sorted(names)
        assert sorted(zip(resumed["repeat"][:], resumed["index"][:])) == [(r, i) for r in (0, 1) for i in range(6)]
        assert resumed.attrs["checkpoint_sha256"] == sha256(run / "checkpoints" / "last.pt")
        assert resumed.attrs["seed"] == 0
        assert resumed.attrs["dequantisation"] == "uniform"
        for name in names:
            np.testing.assert_allclose(resumed[name][:], undisturbed[name][:], rtol=1e-4, atol=1e-4)
        model = sde.load(run)
        x = sde.data.digits().test.values[:6]
        bits = model.bits_per_dim(x, repeat=1, solver=sde.solvers.Heun(2, grid=sde.grids.LogSNR()))
        found = resumed["bits_per_dim"][:][resumed["repeat"][:] == 1]
        np.testing.assert_allclose(found, bits.numpy(), rtol=1e-4)
    assert not [p for p in h5.parent.iterdir() if p != h5 and p.suffix != ".png"]


def test_samples_by_a_solver_that_is_designed_for_the_model(run: Path) -> None:
    """It is kept in the run directory, used again, and stands in place of another solver."""
    keys = ["ckpt=run", "device=cpu", "design=2", "pilot=4", "n=3"]
    first = here(run.parent, "sample", *keys)
    assert first.code == 0, first.err
    assert "2 calls" in first.out
    (kept,) = run.glob("grids/Designed-2-*.json")
    before = kept.read_bytes()
    again = here(run.parent, "sample", *keys, "out=a.png")
    assert again.code == 0, again.err
    assert kept.read_bytes() == before
    (npz,) = run.glob("samples/*Designed*.npz")
    with np.load(npz) as one, np.load(run.parent / "a.npz") as other:
        np.testing.assert_array_equal(one["x"], other["x"])
    refused(here(run.parent, "sample", *keys, "solver=unipc"), "design=2", "solver=")


def test_no_samples_are_written_over_by_a_command_with_other_settings(run: Path) -> None:
    """Default names tell what differs, and with `out=` what stands is kept; the same command gives the same files."""
    command = ["ckpt=run", *CHEAP, "n=2"]
    for name in ([], ["out=a.png"]):
        assert here(run.parent, "sample", *command, *name).code == 0
    before = files(run.parent)
    assert here(run.parent, "sample", *command, "out=a.png").code == 0
    assert files(run.parent) == before
    Image.new("L", (2, 2)).save(run.parent / "photo.png")
    with np.load(run.parent / "a.npz") as archive:
        assert json.loads(str(archive["settings"]))["n"] == 2
    before = files(run.parent)
    for key, word in {"n=3": "n was 2", "first=1": "first was 0", "ema=null": "ema was 'default'"}.items():
        refused(here(run.parent, "sample", *command, key, "out=a.png"), "a.png", word, "out=", "overwrite=true")
    assert here(run.parent, "sample", *command, "first=1").code == 0
    assert here(run.parent, "sample", "-m", *command, "solver.steps=3,4").code == 0
    refused(here(run.parent, "sample", *command, "out=photo.png"), "photo.png", "settings")
    after = files(run.parent)
    assert {name: after[name] for name in before} == before
    new = [name for name in after.keys() - before.keys() if name.startswith("run/samples/")]
    assert len(new) == 2 * 3
    assert len({after[name] for name in new}) == 2 * 3
    assert here(run.parent, "sample", *command, "first=1", "out=a.png", "overwrite=true").code == 0
    assert files(run.parent)["a.npz"] != before["a.npz"]


SAME = ["sde=vp", *TINY, *PREVIEW, "save_every=2", "data.holdout=9", "validate_every=2"]


def test_the_same_command_again_has_nothing_to_do_and_more_steps_go_on(run: Path) -> None:
    before = files(run)
    again = here(run.parent, "train", *SAME, "steps=4", "run_dir=run")
    assert again.code == 0, again.err
    (line,) = again.out.splitlines()
    assert line.startswith("already at step 4, nothing to do; run/checkpoints/step_00000004.pt")
    assert files(run) == before
    (run / "samples" / "step_00000004.png").unlink()  # as after a kill before the preview
    assert here(run.parent, "train", *SAME, "steps=3", "run_dir=run").out.startswith("already at step 4, ")
    assert files(run) == before | {"config.yaml": files(run)["config.yaml"]}
    more = here(run.parent, "train", *SAME, "steps=6", "run_dir=run")
    assert more.code == 0, more.err
    assert more.out.splitlines()[-1].startswith("trained to step 6;")
    straight = here(run.parent, "train", *SAME, "steps=6", "run_dir=straight")
    assert straight.code == 0, straight.err
    a, b = load_checkpoint(run), load_checkpoint(run.parent / "straight")
    for part in ("weights", "ema"):
        one, other = (c[part]["default"] if part == "ema" else c[part] for c in (a, b))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert (run / "metrics.jsonl").read_bytes() == (run.parent / "straight" / "metrics.jsonl").read_bytes()


def test_two_runs_of_one_seed_leave_the_same_checkpoint(trained: tuple[Path, Result], tmp_path: Path) -> None:
    """In another process and another directory, bit for bit."""
    again = here(tmp_path, "train", *SAME, "steps=4", "run_dir=elsewhere/run")
    assert again.code == 0, again.err
    a, b = (load_checkpoint(folder) for folder in (trained[0] / "run", tmp_path / "elsewhere" / "run"))
    for part in ("weights", "optimizer"):
        assert torch.equal(*(torch.cat([t.flatten() for t in tensors(c[part])]) for c in (a, b)))
    assert sha256(trained[0] / "run/checkpoints/last.pt") == sha256(tmp_path / "elsewhere/run/checkpoints/last.pt")


def tensors(tree: object) -> Iterator[torch.Tensor]:
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        if isinstance(value, torch.Tensor):
            yield value.double()
        else:
            yield from tensors(value)


def test_a_log_has_a_line_for_each_line_of_the_metrics_and_the_last_loss(trained: tuple[Path, Result]) -> None:
    folder, result = trained
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = result.out.splitlines()
    assert len(lines) == len(metrics) + 1
    for line, row in zip(lines, metrics):
        assert line.startswith(f"{row['step']} of 4 steps, ")
        assert f"loss={row['loss']:.4f}" in line
        assert "valid_loss" not in row or f"valid_loss={row['valid_loss']:.4f}" in line
    assert lines[-1].endswith(f"last loss {metrics[-1]['loss']:.4f}")


def test_a_run_too_short_for_a_line_of_metrics(tmp_path: Path) -> None:
    result = here(tmp_path, "train", *TINY, "log_every=50", "steps=1", "preview.n=0", "run_dir=run")
    assert result.code == 0, result.err
    assert re.search(r"last loss \d+\.\d+$", result.out.strip())
    assert (tmp_path / "run" / "checkpoints" / "step_00000001.pt").exists()


def test_a_model_with_classes_is_trained_and_drawn_from(tmp_path: Path) -> None:
    result = here(tmp_path, "train", *TINY, *PREVIEW, "conditional=true", "steps=1", "run_dir=run")
    assert result.code == 0, result.err
    assert sde.load(tmp_path / "run").classes == 10
    assert result.out.splitlines()[-1].startswith("trained to step 1; wrote ")


def test_points_in_the_plane(tmp_path: Path) -> None:
    small = ["experiment=moons", "network.width=8", "network.depth=1", "data.n_train=50", "data.n_test=9", "device=cpu"]
    result = here(tmp_path, "train", *small, *PREVIEW, "steps=2", "log_every=1", "batch_size=8", "run_dir=run")
    assert result.code == 0, result.err
    sampled = here(tmp_path, "sample", "ckpt=run", *CHEAP, "n=4", "out=a.png")
    assert sampled.code == 0, sampled.err
    for picture in ("run/samples/step_00000002.png", "a.png"):
        with Image.open(tmp_path / picture) as image:
            blue = np.asarray(image.convert("RGB")).astype(int)
        assert ((blue[..., 2] - blue[..., 0]) > 100).any()  # the density, and not the points alone, which are black
    scored = here(tmp_path, "likelihood", "ckpt=run", *SCORE, "trace=exact", "out=a.h5")
    assert scored.code == 0, scored.err
    assert "moons test: " in scored.out
    assert "over 9 samples" in scored.out


# Refusals


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("objective=ddpm", "sde.chain.n"),
        ("network.classes=10", "conditional=true"),
    ],
)
def test_values_that_do_not_go_together(tmp_path: Path, override: str, word: str) -> None:
    refused(here(tmp_path, "train", *TINY, "steps=1", override, "run_dir=run"), word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(run: Path) -> None:
    before = files(run.parent)
    for script, arguments in {
        "train": [*TINY, "run_dir=new"],
        "sample": ["ckpt=run"],
        "likelihood": ["ckpt=run"],
    }.items():
        result = here(run.parent, script, *arguments, "device=cuda")
        refused(result, "device='cuda'", "0 CUDA devices")
    assert files(run.parent) == before


def test_bad_checkpoints(run: Path) -> None:
    """Missing, empty, truncated, altered, something else: refused by both readers, with the newest sound one named."""
    good = run / "checkpoints" / "step_00000004.pt"
    whole = good.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    (run.parent / "nothing").mkdir()
    for content, words in (
        (b"", ["empty", "step_00000002.pt"]),
        (whole[:-100], ["SHA-256", "step_00000002.pt"]),
        (bytes(flipped), ["SHA-256", "step_00000002.pt"]),
    ):
        good.write_bytes(content)
        before = files(run.parent)
        for script in ("sample", "likelihood"):
            refused(here(run.parent, script, "ckpt=run", *CHEAP), str(good), *words)
        # The way on that the message names is open.
        refused(here(run.parent, "train", *SAME, "steps=4", "run_dir=run"), str(good), *words)
        assert files(run.parent) == before
    good.write_bytes(whole)
    before = files(run.parent)
    for script in ("sample", "likelihood"):
        refused(here(run.parent, script, "ckpt=gone.pt", *CHEAP), "gone.pt")
        refused(here(run.parent, script, "ckpt=nothing", *CHEAP), "nothing", "checkpoints/last.pt")
        refused(here(run.parent, script, *CHEAP), "ckpt=")
    assert files(run.parent) == before


def test_a_file_that_is_no_checkpoint(run: Path) -> None:
    for script in ("sample", "likelihood"):
        refused(here(run.parent, script, "ckpt=run/config.yaml", *CHEAP), "config.yaml", "checkpoint")


def test_bad_requests_of_samples_and_scores(run: Path) -> None:
    """Nothing is left behind by a request that cannot be met, a result file with no rows included."""
    before = files(run.parent)
    refused(here(run.parent, "sample", "ckpt=run", *CHEAP, "ema=fast"), "'fast'", "default")
    refused(here(run.parent, "likelihood", "ckpt=run", *SCORE, "split=valid", "data=moons"), "'valid'")
    assert files(run.parent) == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["data=moons", "n=2"], "(B, 1, 8, 8)"),
        (["solver=ancestral", "n=2"], "Ancestral"),
        (["n=100000"], "n=100000"),
        (["repeats=0"], "repeats=0"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_a_score_that_cannot_be_had_does_not_stand_in_the_way_of_one_that_can(
    run: Path, arguments: list[str], word: str
) -> None:
    cheap = [a for a in CHEAP if not (a.startswith("solver") and "solver=ancestral" in arguments)]
    refused(here(run.parent, "likelihood", "ckpt=run", *cheap, *arguments), word)
    good = here(run.parent, "likelihood", "ckpt=run", *SCORE, "n=1")
    assert good.code == 0, good.err


def test_the_scores_of_another_job_are_not_written_over(run: Path) -> None:
    first = here(run.parent, "likelihood", "ckpt=run", *SCORE, "n=2")
    assert first.code == 0, first.err
    before = files(run.parent)
    other = here(run.parent, "likelihood", "ckpt=run", *SCORE, "n=2", "seed=1")
    refused(other, "test.h5", "seed")
    refused(here(run.parent, "likelihood", "ckpt=run", *SCORE, "n=2", "out=run/config.yaml"), "config.yaml")
    assert files(run.parent) == before


def test_bad_data(tmp_path: Path) -> None:
    x = np.random.RandomState(0).normal(size=(30, 5)).astype(np.float32)
    x[17, 3] = np.nan
    np.save(tmp_path / "nan.npy", x)
    np.savez(
        tmp_path / "levels.npz",
        x_train=np.full((9, 5, 6), 7),
        x_test=np.arange(30).reshape(1, 5, 6),
    )
    np.savez(tmp_path / "names.npz", images=np.zeros((9, 4, 4), np.uint8))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "levels.npz").read_bytes()[:200])
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    broken = tmp_path / "pictures" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    (tmp_path / "none").mkdir()
    before = files(tmp_path)
    tiny = [*TINY, "run_dir=run"]
    for arguments, words in (
        (["data=arrays", "data.path=nan.npy", "data.test=null", "network=mlp"], ["nan", "[", "3]"]),
        (["data=arrays", "data.path=levels.npz", "data.levels=16"], ["'x_test'[0, 0, 2, 4]", "16", "levels=16"]),
        (["data=arrays", "data.path=names.npz"], ["'x_train'", "'images'"]),
        (["data=arrays", "data.path=cut.npz"], ["cut.npz"]),
        (["data=arrays", "data.path=gone.npz"], ["gone.npz"]),
        (["data=arrays"], ["data.path"]),
        (["data=images", "data.path=pictures", "data.size=8"], ["pictures/1.png"]),
        (["data=images", "data.path=none"], ["none", ".png"]),
        (["data=images", "data.path=gone"], ["gone"]),
    ):
        rest = [a for a in tiny if not (a.startswith("network.") and "network=mlp" in arguments)]
        refused(here(tmp_path, "train", *arguments, *rest), *words)
    assert files(tmp_path) == before
    # The first value that is not finite is named by its place.
    result = here(tmp_path, "train", "data=arrays", "data.path=nan.npy", "data.test=null", "network=mlp", "run_dir=run")
    refused(result, "[17, 3]", "nan")


def test_a_shape_that_does_not_fit_the_network(tmp_path: Path) -> None:
    refused(here(tmp_path, "train", "data=moons", "network=unet", "run_dir=run"), "rank=0", "network=mlp")
    refused(here(tmp_path, "train", *TINY, "network.channels=3", "run_dir=run"), "(2, 1, 8, 8)", "channels=")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_another_run_or_of_something_else(run: Path) -> None:
    (run.parent / "notes").mkdir()
    (run.parent / "notes" / "a.txt").write_text("x")
    before = files(run.parent)
    refused(
        here(run.parent, "train", *SAME, "steps=4", "run_dir=run", "seed=7"),
        "seed",
        "0",
        "7",
    )
    refused(here(run.parent, "train", *SAME, "run_dir=run", "sde=ve"), "sde._target_", "sde.VP", "sde.VE")
    refused(here(run.parent, "train", *SAME, "run_dir=notes"), "notes", "config.yaml")
    assert files(run.parent) == before


def test_a_config_file_that_is_no_config(run: Path) -> None:
    for bad in ("{ not: [yaml", "", "- 1\n- 2\n"):
        (run / "config.yaml").write_text(bad)
        before = files(run)
        refused(here(run.parent, "train", *SAME, "steps=4", "run_dir=run"), "config")
        assert files(run) == before


def test_a_loss_that_is_not_finite(run: Path) -> None:
    """A learning rate beyond reason stops with the number of the step; what was saved before stays."""
    arguments = [*SAME, "optimizer.lr=1e30", "warmup=0", "save_every=1", "preview.n=0", "run_dir=wild", "steps=9"]
    arguments.append("log_every=9")
    result = here(run.parent, "train", *arguments)
    assert result.code != 0
    refused(result, "step ", "loss")
    step = int(result.err.partition("step ")[2].partition(":")[0])
    assert load_checkpoint(run.parent / "wild")["step"] == step - 1


def test_help(tmp_path: Path) -> None:
    for script, words in {
        "train": ["run_dir ", "save_every ", "scripts/train.py sde=ve", "subvp", "beta_min"],
        "sample": ["ckpt ", "predictor_corrector"],
        "likelihood": ["ckpt ", "atol ", "hutchinson"],
    }.items():
        result = here(tmp_path, script, "--help")
        assert (result.code, result.err) == (0, "")
        for word in words:
            assert word in result.out
        lists = result.out.partition("\nGroups")[2].partition("\nKeys")[0]
        groups = re.findall(r"^  ([a-z_]+)", lists, re.MULTILINE)
        assert ("objective" in groups) == (script == "train")
        assert "solver" in groups
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_run_and_a_killed_scoring_go_on(trained: tuple[Path, Result], tmp_path: Path) -> None:
    """SIGKILL in the middle of training; the same command again ends where an undisturbed run ends."""
    arguments = [*SAME, "save_every=5", "steps=40", "preview.n=0"]
    command = [sys.executable, str(SCRIPTS / "train.py"), *arguments, "run_dir=killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/checkpoints/step_00000010.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert process(tmp_path, "train", *arguments, "run_dir=killed").code == 0
    assert process(tmp_path, "train", *arguments, "run_dir=straight").code == 0
    a, b = load_checkpoint(tmp_path / "killed"), load_checkpoint(tmp_path / "straight")
    assert a["step"] == b["step"] == 40
    assert all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "straight/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_an_interrupt_saves_what_there_is(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "train.py"), *TINY, "steps=100000", "run_dir=run"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode != 0
    assert "interrupted after step" in out
    assert "Traceback" not in err
    assert load_checkpoint(tmp_path / "run")["step"] >= 1
