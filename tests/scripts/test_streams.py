"""The scripts with data that is not in memory: trained on, stopped by a damaged file, continued, scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import CHEAP, TINY, here

import sde
from sde.storage.checkpoint import load_checkpoint
from sde.storage.store import read

DATA = ["data=images", "data.path=set", "data.size=8", "data.channels=1", "data.folder_labels=true"]
TRAIN = [*TINY, *DATA, "data.memory=0", "conditional=true", "preview.n=0", "steps=4", "save_every=9"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(40):
        file = tmp_path / "set" / "abc"[i % 3] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.RandomState(i).randint(256, size=(8, 8)).astype(np.uint8)).save(file)
    return tmp_path


def test_a_damaged_file_costs_no_step(folder: Path) -> None:
    file = folder / "set" / "b" / "16.png"
    content = file.read_bytes()
    file.write_bytes(content[:50])
    result = here(folder, "train", *TRAIN, "run_dir=run")
    assert result.code == 1
    assert result.err.startswith("error: the image set/b/16.png cannot be read")
    assert len(result.err.splitlines()) == 1
    step = load_checkpoint(folder / "run")["step"]
    assert f"interrupted after step {step}; saved" in result.out
    assert 0 < step < 4
    file.write_bytes(content)
    assert here(folder, "train", *TRAIN, "run_dir=run").code == 0
    assert load_checkpoint(folder / "run")["step"] == 4


@pytest.mark.slow
def test_a_run_with_a_damaged_file_is_the_undisturbed_one(folder: Path) -> None:
    assert here(folder, "train", *TRAIN, "run_dir=good").code == 0
    file = folder / "set" / "b" / "16.png"
    content = file.read_bytes()
    file.write_bytes(content[:50])
    assert here(folder, "train", *TRAIN, "run_dir=run", "workers=2").code == 1
    file.write_bytes(content)
    assert here(folder, "train", *TRAIN, "run_dir=run").code == 0
    good, resumed = (load_checkpoint(folder / name)["weights"] for name in ("good", "run"))
    assert all((good[key] == resumed[key]).all() for key in good)
    file.write_bytes(content[:50])
    result = here(folder, "train", *TRAIN, "run_dir=run", "steps=8", "unreadable=1")
    assert result.code == 0
    assert "set/b/16.png cannot be read" in result.err
    file.write_bytes(content)
    score = ["ckpt=run", "budget=0", "n=3", *CHEAP]
    assert here(folder, "likelihood", *score).code == 0
    assert here(folder, "likelihood", *score, *DATA, "data.memory=1", "out=memory.h5").code == 0
    one, other = (read(folder / file).columns["bits_per_dim"] for file in ("run/likelihood/test.h5", "memory.h5"))
    assert np.array_equal(one, other)


@pytest.mark.slow
def test_one_damaged_file_among_ten_thousand_ends_the_run_at_its_step(tmp_path: Path) -> None:
    keys = ["data=images", "data.path=set", "data.size=8", "data.channels=1", "data.memory=0", "workers=2"]
    train = [*TINY, *keys, "batch_size=200", "preview.n=0", "steps=8", "run_dir=run"]
    (tmp_path / "set").mkdir()
    for i, pixels in enumerate(np.random.RandomState(0).randint(256, size=(10_000, 8, 8)).astype(np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "set" / f"{i:04}.png")
    data = sde.data.images(tmp_path / "set", size=8, channels=1, memory=0)
    seventh = sde.Batches(data.train, 200, seed=0)[6].index
    file = Path(data.train.describe(int(seventh[111])))
    content = file.read_bytes()
    file.write_bytes(content[:50])
    result = here(tmp_path, "train", *train)
    assert result.code == 1
    assert result.err.startswith(f"error: the image set/{file.name} cannot be read")
    assert load_checkpoint(tmp_path / "run")["step"] == 6
    file.write_bytes(content)
    assert here(tmp_path, "train", *train).code == 0
    assert load_checkpoint(tmp_path / "run")["step"] == 8
