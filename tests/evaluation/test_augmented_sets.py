"""Augmented data sets: balanced, resumable row by row, with their distances, and without near-copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.classes import Classes
from support.commands import here, refused
from torch import Tensor

import sde
from sde.data import DataSet, Scaling, Split
from sde.evaluation.augmentation import Augmentation, nearest
from sde.exact import Empirical, Mixture
from sde.solvers import Heun
from sde.storage.store import read


def items(n: int = 30) -> Split:
    g = torch.Generator().manual_seed(0)
    return Split(torch.randn(n, 2, generator=g), torch.arange(n) % 3)


def job(path: Path, mixture: Mixture, **changes: Any) -> Augmentation:
    model = sde.Model(Classes(mixture, sde.VP()), Scaling.identity(), (2,), 3)
    settings: dict[str, Any] = {"per_class": 5, "solver": Heun(5), "seed": 3, "strength": None, "copies": 0.2}
    settings |= {"batch_size": 4, "key": {"a": 1}, "metadata": {}}
    return Augmentation(model, items(), path, **{**settings, **changes})


def run(some: Augmentation, steps: int | None = None) -> dict[str, Any]:
    """The columns of the file after some batches, or at the end."""
    states = some.run()
    for k, _ in enumerate(states):
        if steps is not None and k == steps:
            states.close()
            break
    return read(some.path).columns


def test_rows_are_balanced_and_are_those_of_their_candidates(mixture: Mixture, tmp_path: Path) -> None:
    some = job(tmp_path / "a.h5", mixture)
    rows = run(some)
    assert rows["index"].tolist() == list(range(15))
    assert rows["label"].tolist() == [0, 1, 2] * 5
    assert (rows["ratio"] >= 0.2).all()
    assert (rows["source"] == -1).all()
    for k in (0, 4, 14):  # what the row says is how it was made
        c = int(rows["label"][k])
        call: dict[str, Any] = {"solver": Heun(5), "seed": 3, "first": c * 2**32 + int(rows["candidate"][k])}
        x = some.model.sample(1, condition={"label": torch.tensor(c)}, **call)[0]
        assert np.allclose(rows["x"][k], x.numpy(), atol=1e-5)
        distance = (items().values - torch.from_numpy(rows["x"][k])).norm(dim=1) / 2**0.5
        assert np.isclose(rows["distance"][k], distance.min(), rtol=1e-5)
        assert rows["nearest"][k] == distance.argmin()
        assert np.isclose(rows["ratio"][k], distance.min() / distance.sort().values[1], rtol=1e-5)


@pytest.mark.parametrize("strength", [None, 0.3])
def test_a_stopped_job_goes_on_to_the_same_rows(strength: float | None, mixture: Mixture, tmp_path: Path) -> None:
    whole = run(job(tmp_path / "a.h5", mixture, strength=strength))
    for steps in (1, 3, 2):
        run(job(tmp_path / "b.h5", mixture, strength=strength), steps)
    parts = run(job(tmp_path / "b.h5", mixture, strength=strength, batch_size=3))
    # More rows of each class, and fewer, leave those that are there.
    more = run(job(tmp_path / "b.h5", mixture, strength=strength, per_class=7))
    for name, values in whole.items():
        assert np.allclose(parts[name], values, atol=1e-5), name
        assert np.allclose(more[name][:15], values, atol=1e-5), name
    assert len(more["index"]) == 21


def test_variants_use_the_items_of_their_class_equally(mixture: Mixture, tmp_path: Path) -> None:
    rows = run(job(tmp_path / "a.h5", mixture, strength=0.1, copies=0.0, per_class=20))
    labels = items().labels
    assert labels is not None
    assert labels[rows["source"]].tolist() == rows["label"].tolist()
    assert np.bincount(rows["source"], minlength=30).tolist() == [2] * 30
    assert (rows["distance"] < 0.3).mean() > 0.8  # they are near their sources
    with pytest.raises(ValueError, match="items with labels"):
        replace(job(tmp_path / "b.h5", mixture), training=Split(items().values), strength=0.1)


def test_a_model_that_copies_is_found_out(tmp_path: Path, mixture: Mixture) -> None:
    """The exact model of the training items themselves draws nothing else."""
    data = Split(items().values)
    model = sde.Model(Empirical(data.values).denoiser(sde.VP()), Scaling.identity(), (2,))
    some = replace(job(tmp_path / "a.h5", mixture), model=model, training=data, solver=Heun(12))
    with pytest.raises(ValueError, match="the model repeats its data"):
        run(some)
    kept = run(replace(some, copies=0.0, path=tmp_path / "b.h5"))
    assert (kept["distance"] < 0.05).all()
    assert kept["label"].tolist() == [-1] * 5


def test_distances_do_not_depend_on_the_chunks(mixture: Mixture, tmp_path: Path) -> None:
    x, model = torch.zeros(2, 2), job(tmp_path / "a.h5", mixture).model
    every: list[tuple[Tensor, ...]] = [nearest(x, items(), model, chunk) for chunk in (1, 7, 100)]
    for other in every[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, every[0]))


def test_the_command_writes_what_data_arrays_reads(tmp_path: Path) -> None:
    """Of a model of levels with classes; the same command again has nothing to do, other settings are refused."""
    net = sde.networks.UNet(1, width=8, multipliers=(1,), attention=(), classes=10)
    model = sde.Model(sde.NetworkDenoiser(net, sde.VP()).eval(), Scaling.interval(17), (1, 8, 8), 10)
    sde.save(tmp_path / "a.pt", model)
    keys = ["ckpt=a.pt", "data=digits", "per_class=2", "copies=0", "solver.steps=2", "device=cpu", "out=a.h5"]
    done = here(tmp_path, "augment", *keys)
    assert done.code == 0, done.err
    assert "20 rows, 0 near-copies" in done.out
    assert (tmp_path / "a.png").exists()
    data = sde.data.arrays(tmp_path / "a.h5", train="x", test=None, train_labels="label", levels=17, test_fraction=0.25)
    assert isinstance(data, DataSet)
    assert data.shape == (1, 8, 8)
    assert len(data.train) + len(data.test) == 20
    first = (tmp_path / "a.h5").read_bytes()
    assert here(tmp_path, "augment", *keys).code == 0
    assert (tmp_path / "a.h5").read_bytes() == first
    assert "seed" in here(tmp_path, "augment", *keys, "seed=1").err
    refused(here(tmp_path, "augment", *keys, "data=moons", "out=b.h5"), "this model is for data of shape")
