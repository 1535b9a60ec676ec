"""The commands that edit, translate and draw with conditions: what they write, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from support.commands import here, refused

import sde
from sde.data.captions import Words
from sde.networks import MLP, Conditions
from sde.solvers import Heun

DATA = ["data=moons", "data.n_train=20", "data.n_test=12"]
CHEAP = ["solver.steps=2", "device=cpu"]
HEUN = Heun(2, grid=sde.grids.LogSNR())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Two models of the plane with other processes, one with every condition, and no data of their own."""
    scaling = sde.data.Scaling.identity()
    net = MLP(2, width=8, depth=1, classes=2, conditions=Conditions(embedding=2, tokens=4, image=2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    a = sde.Model(sde.NetworkDenoiser(net, sde.VP()).eval(), scaling, (2,), 2, Words(4, 4))
    b = sde.Model(sde.NetworkDenoiser(MLP(2, width=8, depth=1), sde.VE()).eval(), scaling, (2,))
    short = sde.Model(sde.NetworkDenoiser(MLP(2, width=8, depth=1), sde.VE(sigma_max=2.0)).eval(), scaling, (2,))
    for name, model in {"a": a, "b": b, "short": short}.items():
        sde.save(tmp_path / f"{name}.pt", model)
    with mock.patch("sde.plots.samples._plane", return_value=False):  # a density takes longer than all else here
        yield tmp_path


def test_edits_are_those_of_the_model_beside_their_sources(folder: Path) -> None:
    done = here(folder, "edit", "ckpt=a.pt", "strength=0.3", "n=5", "first=2", "out=e.png", *DATA, *CHEAP)
    assert done.code == 0, done.err
    with np.load(folder / "e.npz") as archive:
        arrays = dict(archive)
    data = sde.data.moons(n_train=20, n_test=12).test
    assert arrays["index"].tolist() == [2, 3, 4, 5, 6]
    assert np.array_equal(arrays["source"], data.values[2:7].numpy())
    model = sde.load(folder / "a.pt")
    label = {"label": data.labels[2:7]} if data.labels is not None else {}
    expected = model.edit(data.values[2:7], 0.3, solver=HEUN, first=2, condition=label or None)
    assert np.allclose(arrays["x"], expected.numpy(), atol=1e-5)
    assert json.loads(str(arrays["settings"]))["strength"] == 0.3
    again = here(folder, "edit", "ckpt=a.pt", "strength=0.4", "n=5", "first=2", "out=e.png", *DATA, *CHEAP)
    refused(again, "strength was 0.3 and is now 0.4")
    for first in ("first=12", "first=1000"):
        refused(here(folder, "edit", "ckpt=a.pt", first, *DATA, *CHEAP), first)
    rings = ["data=rings", "data.n_train=20", "data.n_test=12"]  # of 4 classes
    refused(here(folder, "edit", "ckpt=a.pt", *rings, *CHEAP), "rings: test labels[", "a class from 0 to 1")


def test_translations_go_there(folder: Path) -> None:
    done = here(folder, "translate", "source=a.pt", "target=b.pt", "n=3", "out=t.png", *DATA, *CHEAP)
    assert done.code == 0, done.err
    with np.load(folder / "t.npz") as archive:
        assert archive["x"].shape == (3, 2)
        assert np.isfinite(archive["x"]).all()
    result = here(folder, "translate", "source=a.pt", "target=short.pt", "out=u.png", *DATA, *CHEAP)
    refused(result, "cannot be matched")
    refused(here(folder, "translate", "source=a.pt", "target=b.pt", "first=1000", *DATA, *CHEAP), "first=1000")
    assert not (folder / "u.png").exists()


def test_samples_have_the_conditions_of_the_command(folder: Path) -> None:
    np.save(folder / "image.npy", np.ones((2,), np.float32))
    keys = ["label=1", "embedding=[0.3,1.2]", "prompt=a seven", "image=image.npy"]
    done = here(folder, "sample", "ckpt=a.pt", "n=3", "out=s.png", *keys, *CHEAP)
    assert done.code == 0, done.err
    model = sde.load(folder / "a.pt")
    given = model.condition(3, label=1, embedding=[0.3, 1.2], prompt="a seven", image=torch.ones(2))
    with np.load(folder / "s.npz") as archive:
        assert np.allclose(archive["x"], model.sample(3, solver=HEUN, condition=given).numpy(), atol=1e-5)
    done = here(folder, "sample", "ckpt=a.pt", "n=3", "out=n.png", "label=[1,none]", *CHEAP)
    assert done.code == 0, done.err
    with np.load(folder / "n.npz") as archive:
        given = {"label": torch.tensor([1, 2, 1])}  # the network's label of no class is 2
        assert np.allclose(archive["x"], model.sample(3, solver=HEUN, condition=given).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("label=2", ["label", "a class 0 ... 1, or none, got 2"]),
        ("label=[0,-1]", ["label", "a class 0 ... 1, or none, got -1"]),
        ("embedding=[1.0]", ["'embedding'", "(B, 2)", "tokens: (B, any, 4)"]),
        ("prompt=one two three four five", ["at most 4 words"]),
        ("image=none.npy", ["image: ", "none.npy"]),
        ("image=a.pt", ["image: ", "a.pt"]),
    ],
)
def test_a_condition_that_does_not_fit_is_one_line(folder: Path, key: str, words: list[str]) -> None:
    refused(here(folder, "sample", "ckpt=a.pt", key, "out=s.png", *CHEAP), *words)
    assert not (folder / "s.png").exists()


def test_a_model_without_conditions_takes_none(folder: Path) -> None:
    for key, word in (("label=7", "the conditions of this model are none"), ("prompt=a", "no prompt")):
        refused(here(folder, "sample", "ckpt=b.pt", key, "out=s.png", *CHEAP), word)
    guided = here(folder, "sample", "ckpt=b.pt", "guidance=classifier_free", "out=s.png", *CHEAP)
    refused(guided, "guidance by label needs the condition 'label'")


def test_guidance_by_a_key(folder: Path) -> None:
    keys = ["ckpt=a.pt", "n=3", "label=1", "guidance=classifier_free", "guidance.weight=3", "out=g.png", *CHEAP]
    done = here(folder, "sample", *keys)
    assert done.code == 0, done.err
    model = sde.load(folder / "a.pt")
    guided = sde.Model(sde.guidance.ClassifierFree(model.denoiser, 3.0), model.scaling, (2,), 2)
    x = guided.sample(3, solver=HEUN, condition=model.condition(3, label=1))
    with np.load(folder / "g.npz") as archive:
        assert np.allclose(archive["x"], x.numpy(), atol=1e-5)


def test_a_noise_aware_classifier_guides_a_model_without_classes(folder: Path) -> None:
    """Its classes are those of samples, of balanced data, and of the likelihoods of the flow."""
    small = ["ckpt=b.pt", "steps=3", "width=8", "depth=1", "device=cpu"]
    np.savez(folder / "a.npz", x_train=np.zeros((20, 2)))
    bare = ["data=arrays", "data.path=a.npz", "data.test=null", "data.standardise=false"]
    refused(here(folder, "noise_classifier", *small, *bare), "has no labels")
    done = here(folder, "noise_classifier", *small, *DATA)
    assert done.code == 0, done.err
    assert "held-out items; wrote" in done.out
    assert here(folder, "noise_classifier", *small, *DATA).code == 0  # the same settings
    refused(here(folder, "noise_classifier", *small, *DATA, "seed=1"), "overwrite=true")
    guided = ["ckpt=b.pt", "guidance=classifier", "guidance.log_prob.path=noise_classifier.pt", *CHEAP]
    assert here(folder, "sample", *guided, "n=3", "label=1", "out=s.png").code == 0
    refused(here(folder, "sample", *guided, "n=3", "label=2", "out=t.png"), "a class 0 ... 1, or none, got 2")
    more = ["augment", "ckpt=b.pt", *DATA, "per_class=2", "copies=0", "out=more.h5", "device=cpu"]
    refused(here(folder, *more, "solver=replacement"), "Replacement cannot serve")
    assert not list(folder.glob("more*"))  # which would stand in the way of another solver
    assert here(folder, "augment", *guided, *DATA, "per_class=2", "copies=0", "out=more.h5").code == 0
    assert sorted(sde.storage.store.read(folder / "more.h5").columns["label"].tolist()) == [0, 0, 1, 1]
    scored = [*guided, *DATA, "n=2", "solver=heun", "budget=0", "out=l.h5"]
    refused(here(folder, "likelihood", *scored), "guided=true scores the flow itself")
    done = here(folder, "likelihood", *scored, "guided=true")
    assert done.code == 0, done.err


def test_default_names_tell_what_differs(folder: Path) -> None:
    """Options of one class, targets, and checkpoints of one directory; what the class tells is not said twice."""
    commands = {
        ("sample", "ckpt=b.pt"): "solver=heun,tsitouras,bogacki_shampine",
        ("translate", "source=b.pt", *DATA, "label=0", "solver.steps=2"): "target=a.pt,b.pt",
        ("likelihood", *DATA, "solver=heun", "solver.steps=2", "budget=0"): "ckpt=b.pt,short.pt",
    }
    for (script, *keys), values in commands.items():
        done = here(folder, script, "-m", *keys, "n=2", "device=cpu", values)
        assert done.code == 0, done.err
    assert {path.name for path in folder.glob("samples/*.png")} == {
        "b-Heun-seed0-n_2.png",
        "b-RungeKutta-seed0-n_2-solver_tsitouras.png",
        "b-RungeKutta-seed0-n_2-solver_bogacki_shampine.png",
    }
    ends = [path.stem.rpartition("target_")[2] for path in sorted(folder.glob("translations/*.png"))]
    assert ends == ["a.pt", "b.pt"]
    assert [path.name.rpartition("-")[2] for path in sorted(folder.glob("likelihood/*.h5"))] == ["b.h5", "short.h5"]
