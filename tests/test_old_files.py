"""Files of version 0.1.0 open, and answer what that version answered; the names in them and in configs resolve."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from support.fixtures import OLD, arrays
from torch import Tensor

import sde
from sde.comparison import plan
from sde.evaluation import load_dequantiser, save_classifier, save_noise_classifier
from sde.evaluation.dequantiser_file import save_dequantiser
from sde.evaluation.feature_files import FeatureFiles
from sde.evaluation.item_sets import StoredItems
from sde.evaluation.outputs import relevant
from sde.instantiate import find, public
from sde.metrics.features import ClassifierNetwork
from sde.model import from_checkpoint
from sde.noise import Noise
from sde.storage.checkpoint import load_checkpoint
from sde.training.conditions import captioned
from sde.training.settings import differences
from sde.tuning import save_solver

MODELS = ["vp", "subvp_v", "ve", "chain", "labels", "moons", "diffusers_clip"]
NAMES = (OLD / "names.txt").read_text().split()

GRID = sde.grids.LogSNR()


@pytest.fixture(params=MODELS)
def old(request: pytest.FixtureRequest) -> tuple[sde.Model, dict[str, Tensor], dict[str, Tensor]]:
    """A model of version 0.1.0, what that version answered, and the condition of its questions."""
    model = sde.load(OLD / f"{request.param}.pt")
    condition = {"label": torch.tensor([0, 3, 7, 9])} if model.classes else {}
    return model, arrays(OLD / f"{request.param}.npz"), condition


def test_the_score(old: tuple[sde.Model, dict[str, Tensor], dict[str, Tensor]]) -> None:
    model, recorded, condition = old
    with torch.no_grad():
        score = model.denoiser.score(recorded["x"], recorded["t"], **condition)
    error = (score - recorded["score"]).flatten(1).abs().amax(1) / recorded["score"].flatten(1).abs().amax(1)
    assert error.max() < 1e-4


@pytest.mark.parametrize(
    ("key", "solver"),
    [
        ("sample_heun6_seed3", sde.solvers.Heun(6, grid=GRID)),
        ("sample_em20_seed3", sde.solvers.EulerMaruyama(20, grid=GRID)),
    ],
    ids=["Heun", "EulerMaruyama"],
)
def test_samples(
    old: tuple[sde.Model, dict[str, Tensor], dict[str, Tensor]], key: str, solver: sde.solvers.Solver
) -> None:
    model, recorded, condition = old
    x = model.sample(4, solver=solver, seed=3, condition=condition or None)
    assert x.dtype == recorded[key].dtype
    assert x.shape == recorded[key].shape
    # Rounding decides which of two neighbouring levels a value on their border gets.
    allowed = 1e-3 if x.dtype == torch.float32 else 1
    assert (x.double() - recorded[key].double()).abs().max() <= allowed


def test_bits_per_dim(old: tuple[sde.Model, dict[str, Tensor], dict[str, Tensor]]) -> None:
    model, recorded, condition = old
    bits = model.bits_per_dim(
        recorded["data"],
        solver=sde.solvers.Heun(20, grid=GRID),
        trace=sde.Hutchinson(probes=2),
        seed=1,
        condition=condition or None,
    )
    assert (bits - recorded["bits_per_dim_heun20_seed1"]).abs().max() < 1e-3


def test_the_dequantiser() -> None:
    recorded, index = arrays(OLD / "vp_dequantiser.npz"), torch.arange(4)
    dequantiser = load_dequantiser(OLD / "vp_dequantiser.pt", shape=(1, 8, 8), scaling=sde.load(OLD / "vp.pt").scaling)
    u, log_q = dequantiser.draw(recorded["values"], Noise(1), index, torch.zeros_like(index))
    torch.testing.assert_close(u, recorded["u"], rtol=0, atol=1e-4)
    torch.testing.assert_close(log_q, recorded["log_q"], rtol=0, atol=1e-3 * 64 * math.log(2.0))


def test_every_name_of_0_1_0_resolves() -> None:
    for name in NAMES:
        assert find(name), name


def test_what_the_modules_of_0_1_0_exported_is_still_there() -> None:
    """As attributes in Python, for the modules that `sde` itself exports."""
    rooms = [room for room in sde.__all__ if room.islower()]
    exported = [name.split(".")[1:] for name in NAMES if len(name.split(".")) == 3 and name.split(".")[1] in rooms]
    gone = [f"{room}.{name}" for room, name in exported if not hasattr(getattr(sde, room), name)]
    assert ["likelihood", "paired"] in exported
    assert gone == []


CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.yaml"))


def rooms_of(name: str) -> list[str]:
    """The rooms in a dotted name of the package: `sde.data` has one, `sde.DiscreteChain.linear` none."""
    return [part for part in name.split(".")[1:-1] if part.islower()]


def deep(text: str) -> set[str]:
    """The dotted names in a text that lead through more than one room."""
    return {name for name in re.findall(r"\bsde(?:\.\w+){2,}", text) if len(rooms_of(name)) > 1}


def check_short(name: str) -> None:
    """A name that files hold is the public one, at most one room deep, and leads to what it names."""
    new = public({"_target_": name})["_target_"]
    assert not new.startswith("sde.") or len(rooms_of(new)) <= 1, (name, new)
    assert find(new) == find(name)
    assert public({"_target_": new})["_target_"] == new


def test_files_name_what_users_name() -> None:
    """At most one room deep: `sde.VP`, `sde.networks.UNet`, `sde.DiscreteChain.linear`."""
    for name in NAMES:
        check_short(name)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_configs_name_what_users_name(config: Path) -> None:
    text = config.read_text()
    for name in re.findall(r"_target_: *(sde[\w.]+|torch[\w.]+)", text):
        check_short(name)
        assert public({"_target_": name})["_target_"] == name
    assert deep(text) == set()


def test_what_the_library_writes_names_what_users_name(tmp_path: Path) -> None:
    """Models, dequantisers, classifiers, encoded captions, features, designed solvers, the solvers of a comparison, and
    the settings of jobs, also where a config has the names of the modules."""
    process, scaling = sde.VP(), sde.data.Scaling.interval(4)
    network = sde.networks.MLP(3, width=8, depth=1, conditions=sde.networks.Conditions(tokens=32))
    denoiser = sde.Clip(sde.NetworkDenoiser(network, process, sde.EDM(), sde.LogSNRLevel()), -1.0, 1.0)
    sde.save(tmp_path / "model.pt", sde.Model(denoiser, scaling, (3,), encoder=sde.data.Words()))
    rule = sde.likelihood.VariationalDequantiser((3,), 4, layers=1, width=8)
    save_dequantiser(tmp_path / "dequantiser.pt", rule, checkpoint_sha256="")
    save_classifier(tmp_path / "classifier.pt", ClassifierNetwork((3,), 2, width=8))
    encoder = sde.networks.Encoder((3,), 2, width=8, depth=1)
    save_noise_classifier(tmp_path / "noise_classifier.pt", sde.guidance.NoiseClassifier(encoder, process, 2))
    captioned(["a seven"], sde.data.Words(), tmp_path)
    for _ in FeatureFiles(sde.metrics.RawValues(), StoredItems("x", sde.data.Split(torch.zeros(2, 3))), tmp_path).run():
        pass
    save_solver(tmp_path, sde.solvers.Designed.of(sde.solvers.UniPC(2), process, 1.0, 1e-3), "sampling")
    modules = {"encoder": "sde.data.captions.Words", "features": "sde.metrics.features.RawValues"}
    modules["optimizer"] = "sde.training.optimizers.Muon"
    settings = relevant({key: {"_target_": name} for key, name in modules.items()})
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (experiment,) = plan(
        "heun", {"_target_": "sde.solvers.heun.Heun", "steps": 1}, process, grids={}, calls=[2], tolerances=[]
    )
    (tmp_path / "experiment.json").write_text(experiment.config)
    written = {
        str(p.relative_to(tmp_path)): p.read_bytes().decode("latin1") for p in tmp_path.rglob("*") if p.is_file()
    }
    assert len(written) >= 10
    assert {name: deep(text) for name, text in written.items() if deep(text)} == {}
    for name in ("sde.data.Words", "sde.networks.MLP", "sde.networks.Conditions", "sde.Clip", "sde.VP"):
        assert f'"{name}"' in written["model.pt"].replace("\\", "")
    # Settings that an earlier version wrote with other names of the same things are the same settings.
    assert list(differences({key: {"_target_": name} for key, name in modules.items()}, settings)) == []


@pytest.mark.parametrize("name", MODELS)
def test_a_tree_with_the_new_names_is_the_same_model(name: str) -> None:
    content, recorded = load_checkpoint(OLD / f"{name}.pt"), arrays(OLD / f"{name}.npz")
    tree = public(json.loads(content["model"]))
    assert "parametrisation.Noise" not in json.dumps(tree)
    models = [from_checkpoint(content), from_checkpoint({**content, "model": json.dumps(tree)})]
    condition = {"label": torch.tensor([0, 3, 7, 9])} if models[0].classes else {}
    with torch.no_grad():
        scores = [model.denoiser.score(recorded["x"], recorded["t"], **condition) for model in models]
    assert torch.equal(*scores)
    assert models[0].scaling == models[1].scaling
