"""Every config composes, is what the library takes, and is explained."""

from __future__ import annotations

import inspect
import re
import warnings
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from support.published import idx, tar, write_faces

import sde
from sde.data import DataSet, Scaling, Split
from sde.evaluation import save_classifier, save_noise_classifier
from sde.evaluation.dequantiser_file import save_dequantiser
from sde.evaluation.job_setup import dequantiser_of
from sde.instantiate import build, describe, find
from sde.metrics.features import ClassifierNetwork, Features
from sde.training.run import assemble

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
TOPS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def leaves(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def composed(name: str, *overrides: str) -> dict[str, Any]:
    config = compose(name, overrides=[*overrides])
    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    # The name of a run's directory asks Hydra for its choices, which only a running script has.
    if "run_dir" in tree:
        config.run_dir = "run"
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def test_these_are_the_configs() -> None:
    assert TOPS == [
        "augment",
        "bounds",
        "compare",
        "convert",
        "demo",
        "dequantiser_training",
        "diagnose",
        "edit",
        "evaluate",
        "feature_classifier",
        "likelihood",
        "noise_classifier",
        "paired",
        "restore",
        "sample",
        "train",
        "translate",
    ]
    groups = (
        "augmentation data decay denoiser density dequantise encoder experiment features grid guidance logger method"
    )
    assert f"{groups} network objective optimizer ranks sde solver task trace".split() == GROUPS


@pytest.mark.parametrize("leaf", leaves("sde"))
def test_sde(leaf: str) -> None:
    process = build(composed("train", f"sde={leaf}")["sde"])
    kinds = {"vp": sde.VP(), "ve": sde.VE(), "subvp": sde.SubVP()}
    if leaf == "learned":
        assert describe(process) == describe(sde.LearnedVP())
        return
    kinds |= {"bridge": sde.Bridge(sde.VP(0.1, 2.0)), "brownian_bridge": sde.Bridge()}
    kinds |= {"cosine": sde.Cosine(), "karras_ve": sde.KarrasVE(), "rectified_flow": sde.RectifiedFlow()}
    if leaf in kinds:
        assert process == kinds[leaf]
    else:
        chain = {"ddpm": sde.DiscreteChain.linear(), "ddpm_cosine": sde.DiscreteChain.cosine()}[leaf]
        assert torch.equal(process.chain.betas, chain.betas)


IMAGES = DataSet("images", Scaling.interval(4), *(Split(torch.ones(2, 3, 6, 6, dtype=torch.uint8)) for _ in range(2)))
VECTORS = DataSet("vectors", Scaling.identity(), *(Split(torch.zeros(2, 5)) for _ in range(2)))


@pytest.mark.parametrize(
    ("leaf", "process"),
    [
        *((leaf, "vp") for leaf in leaves("denoiser") if leaf not in ("learned_variance", "quantised")),
        *(("noise", sde) for sde in leaves("sde") if sde != "vp"),
    ],
)
def test_denoiser_and_sde(leaf: str, process: str) -> None:
    """The defaults of every file are the library's own, and a fresh network answers finite readings."""
    config = composed("train", f"denoiser={leaf}", f"sde={process}", "network=mlp", "network.width=8")
    denoiser, _ = assemble(config, VECTORS)
    x = torch.ones(2, 5)
    for t in (denoiser.process.t_min, 0.5, denoiser.process.t_max):
        for reading in (denoiser, denoiser.score, denoiser.noise, denoiser.velocity):
            y = reading(x, torch.tensor(t))
            assert y.shape == x.shape
            assert y.isfinite().all()


@pytest.mark.parametrize("leaf", leaves("network"))
def test_network(leaf: str) -> None:
    data, facts = (VECTORS, {"features": 5}) if leaf == "mlp" else (IMAGES, {"channels": 3, "rank": 2})
    with torch.device("meta"):  # the published sizes take gigabytes
        denoiser, tree = assemble(composed("train", f"network={leaf}"), data)
        x = torch.zeros(2, *data.shape)
        assert denoiser(x, torch.tensor(0.5)).shape == x.shape
    assert facts.items() <= tree["network"].items()


# The keys that a source of data needs.
SOUND = ["data.length=8", "data.rate=8000"]
NEEDED = {leaf: ["data.path=x"] for leaf in ("arrays", "celeba", "huggingface", "images")}
NEEDED["audio"] = ["data.path=x", *SOUND]


@pytest.mark.parametrize("leaf", leaves("data"))
def test_a_source_of_data_has_a_key_for_every_argument(leaf: str) -> None:
    """All but the name of the data set."""
    tree = composed("train", f"data={leaf}", *NEEDED.get(leaf, []))["data"]
    parameters = inspect.signature(find(tree.pop("_target_"))).parameters
    assert tree.keys() == parameters.keys() - {"name"}


@pytest.mark.parametrize("leaf", leaves("augmentation"))
def test_augmentation(leaf: str) -> None:
    """The defaults of the files are the library's, and the network is made for the vectors of the changes."""
    config = composed("train", f"augmentation={leaf}", "network.width=8", "network.multipliers=[1,1]")
    rule = build(config["augmentation"])
    assert rule == type(rule)()
    denoiser, tree = assemble(config, IMAGES)
    assert tree["network"].get("augment", 0) == rule.length
    batch = sde.Batches(IMAGES.train, 2, augmentation=rule)[0]
    assert denoiser(torch.ones(2, 3, 6, 6), torch.tensor(0.5), **batch.condition).isfinite().all()


@pytest.mark.parametrize("leaf", leaves("dequantise"))
def test_dequantise(leaf: str, tmp_path: Path) -> None:
    d = sde.exact.Gaussian(torch.zeros(3), torch.eye(3)).denoiser(sde.VP())
    model = sde.Model(d, Scaling.interval(4), (3,))
    overrides = [f"dequantise={leaf}"]
    if leaf == "variational":
        overrides += [f"dequantise.path={tmp_path / 'a.pt'}"]
        rule = sde.likelihood.VariationalDequantiser((3,), 4, width=8)
        save_dequantiser(tmp_path / "a.pt", rule, checkpoint_sha256="")
    tree = composed("likelihood", *overrides)["dequantise"]
    assert isinstance(dequantiser_of(tree, model), sde.likelihood.Dequantiser)


@pytest.mark.parametrize("leaf", leaves("density"))
def test_density(leaf: str) -> None:
    d = sde.exact.Gaussian(torch.zeros(3), torch.eye(3)).denoiser(sde.VP())
    x, index = torch.zeros(2, 3), torch.arange(2)
    nats = build(composed("dequantiser_training", f"density={leaf}")["density"])(
        d, x, seed=0, index=index, condition={}
    )
    assert nats.shape == (2,)
    assert nats.isfinite().all()


@pytest.mark.parametrize("leaf", leaves("features"))
def test_features(leaf: str, tmp_path: Path) -> None:
    """Every file has a key for every argument; those that need no other package are built."""
    tree = OmegaConf.to_container(OmegaConf.load(CONFIGS / "features" / f"{leaf}.yaml"))
    assert isinstance(tree, dict)
    parameters = inspect.signature(find(tree["_target_"])).parameters
    assert tree.keys() - {"_target_"} == parameters.keys() - {"device"}
    path = tmp_path / "a.pt"
    if leaf == "classifier":
        save_classifier(path, ClassifierNetwork((3,), 2, width=8))
    elif leaf == "program":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)), str(path))
    elif leaf != "raw":
        return
    features = build({**tree, **({"path": str(path)} if "path" in tree else {})})
    assert isinstance(features, Features)


@pytest.mark.parametrize("leaf", leaves("objective"))
def test_objective(leaf: str) -> None:
    chains = dict.fromkeys(("ddpm", "chain_bound", "hybrid"), "ddpm")
    process = {**chains, "learned_schedule": "learned"}.get(leaf, "vp")
    config = composed("train", f"objective={leaf}", f"sde={process}", "network=mlp", "network.width=8")
    denoiser, _ = assemble(config, VECTORS)
    loss = build(config["objective"])(denoiser, torch.ones(2, 5), torch.tensor([0.1, 0.9]), torch.ones(2, 5))
    assert loss.shape == (2,)
    assert loss.isfinite().all()


def test_the_ddpm_loss_takes_its_steps_from_the_chain() -> None:
    assert composed("train", "experiment=ddpm", "sde.chain.n=77")["objective"]["times"]["n"] == 77
    with pytest.raises(OmegaConfBaseException, match=r"sde\.chain\.n"):
        composed("train", "sde=vp", "objective=ddpm")


@pytest.mark.parametrize("leaf", leaves("optimizer"))
def test_optimizer(leaf: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = build(composed("train", f"optimizer={leaf}")["optimizer"], params=[weight])
    assert type(optimizer).__name__.lower() == leaf


@pytest.mark.parametrize("leaf", leaves("data"))
def test_data(leaf: str, tmp_path: Path) -> None:
    overrides = [f"data={leaf}"]
    if leaf in {"moons", "checkerboard", "swissroll", "rings", "gaussians"}:
        overrides += ["data.n_train=20", "data.n_test=10"]
    if leaf == "images":
        for i in range(4):
            Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
        overrides += [f"data.path={tmp_path}", "data.test_fraction=0.25"]
    if leaf == "huggingface":
        datasets = pytest.importorskip("datasets", reason="the extra `huggingface` is not installed")
        rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (4, 4))] * 4})
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path))
        overrides += [f"data.path={tmp_path}", "data.size=4"]
    if leaf == "audio":
        for i in range(4):
            with wave.open(str(tmp_path / f"{i}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(bytes(range(i, i + 20)))
        overrides += [f"data.path={tmp_path}", "data.test_fraction=0.25", *SOUND]
    if leaf == "celeba":
        overrides += [f"data.path={write_faces(tmp_path)}", "data.size=8"]
    if leaf == "cifar10":
        parts = [np.zeros((300, 3073), np.uint8)] * 6
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tar(parts))
        overrides += [f"data.path={tmp_path}"]
    if leaf == "fashion_mnist":
        for name, n in (("train", 1100), ("t10k", 3)):
            (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((n, 4, 5), np.uint8)))
            (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(n, np.uint8)))
        overrides += [f"data.path={tmp_path}"]
    if leaf in {"arrays", "mnist"}:
        x, y = np.zeros((1100, 4, 5), np.uint8), np.zeros(1100, np.int64)
        np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:3], y_train=y, y_test=y[:3])
        overrides += [f"data.path={tmp_path / 'a.npz'}"]
    data = build(composed("train", *overrides)["data"])
    assert isinstance(data, DataSet)
    assert data.name == {
        "images": tmp_path.name,
        "audio": tmp_path.name,
        "huggingface": tmp_path.name,
        "arrays": "a",
        "false_colours": "coloured_digits",
    }.get(leaf, leaf)
    # The data of a likelihood job is given by the same files.
    assert composed("likelihood", *overrides)["data"] == composed("train", *overrides)["data"]


def test_a_path_that_is_not_given_is_missing() -> None:
    for leaf, given in NEEDED.items():
        missing = OmegaConf.missing_keys(compose("train", overrides=[f"data={leaf}", "run_dir=x"]))
        assert missing == {override.split("=")[0] for override in given}


@pytest.mark.parametrize("leaf", leaves("solver"))
def test_solver(leaf: str) -> None:
    """In the place of a sampler, short enough to be run."""
    tree = OmegaConf.create({"solver": OmegaConf.load(CONFIGS / "solver" / f"{leaf}.yaml")})
    steps = [key for key in ("solver.steps", "solver.predictor.steps") if OmegaConf.select(tree, key, default=0) != 0]
    short = build(composed("sample", f"solver={leaf}", *(f"{key}=3" for key in steps))["solver"])
    d = sde.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(sde.VP())
    y = sde.Measurement(sde.measurement.Identity(), torch.zeros(1, 2), 0.1)
    d = sde.measurement.Unguided(d, y)  # for the solvers that need a measurement
    assert sde.sample(d, (2, 2), solver=short).x.isfinite().all()


@pytest.mark.parametrize("leaf", leaves("task"))
def test_task(leaf: str) -> None:
    tree = composed("restore", f"task={leaf}")["task"]
    assert tree.keys() - {"_target_"} == inspect.signature(find(tree["_target_"])).parameters.keys()
    y = build(tree).operator((3, 4, 4), torch.arange(2), 0)(torch.zeros(2, 3, 4, 4))
    assert len(y) == 2


@pytest.mark.parametrize("leaf", leaves("method"))
def test_method(leaf: str) -> None:
    d = sde.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(sde.VP())
    y = sde.Measurement(sde.measurement.Identity(), torch.zeros(2, 2), 1.0)
    guided = build(composed("restore", f"method={leaf}")["method"], inner=d, measurement=y)
    assert guided.score(torch.zeros(2, 2), torch.tensor(0.5)).isfinite().all()


@pytest.mark.parametrize("leaf", leaves("grid"))
def test_grid(leaf: str) -> None:
    grid = build(composed("sample", "solver=heun", f"grid@solver.grid={leaf}")["solver"]).grid
    assert type(grid).__name__.lower() == leaf.replace("_", "")
    assert len(grid.times(sde.VP(), 5, 1.0, 1e-3)) == 6


@pytest.mark.parametrize("leaf", leaves("encoder"))
def test_encoder(leaf: str) -> None:
    given = ["encoder.path=nowhere"] if leaf == "transformers" else []
    encoder = build(composed("train", f"encoder={leaf}", *given)["encoder"])
    if leaf == "transformers":
        with pytest.raises(ValueError, match="no directory of a text model"):
            encoder(["a seven"])
    else:
        assert encoder(["a seven"])[0].shape[2] == 32


@pytest.mark.parametrize("leaf", leaves("guidance"))
def test_guidance(leaf: str, tmp_path: Path) -> None:
    """The model itself as its reference, and as its own classifier: what is guided is sampled from."""
    tree = composed("train", "network=mlp", "network.width=8", "network.classes=10", "conditional=true")
    labelled = DataSet("vectors", Scaling.identity(), *(Split(torch.zeros(9, 5), torch.arange(9)) for _ in range(2)))
    denoiser, _ = assemble(tree, labelled)
    sde.save(tmp_path / "a.pt", sde.Model(denoiser.eval(), Scaling.identity(), (5,), 10))
    given = {
        "autoguidance": [f"guidance.reference.path={tmp_path / 'a.pt'}"],
        "classifier": [f"guidance.log_prob.path={tmp_path / 'c.pt'}", "guidance.shared=true"],
        "function": ["guidance.log_prob={_target_: sde.shapes.sum_event}"],
        "composed": ["guidance.weights={label: 2.0}"],
    }
    network = sde.networks.Encoder((5,), 10, width=8, depth=1)
    save_noise_classifier(tmp_path / "c.pt", sde.guidance.NoiseClassifier(network, denoiser.process, 10))
    config = composed("sample", f"guidance={leaf}", *given.get(leaf, []))
    if leaf == "function":
        config["guidance"]["log_prob"] = lambda x_t, t: -x_t.square().sum(1)
    guided = build(config["guidance"], inner=denoiser)
    assert isinstance(guided, sde.guidance.Guidance)
    condition = {"label": torch.tensor(3)}
    assert sde.sample(guided, (2, 5), solver=sde.solvers.Heun(2), condition=condition).x.isfinite().all()


@pytest.mark.parametrize("leaf", leaves("trace"))
def test_trace(leaf: str) -> None:
    assert isinstance(build(composed("likelihood", f"trace={leaf}")["trace"]), sde.Trace)


@pytest.mark.parametrize("leaf", leaves("experiment"))
def test_experiment(leaf: str, tmp_path: Path) -> None:
    given = []
    if leaf == "mnist":
        x, y = np.zeros((1100, 28, 28), np.uint8), np.zeros(1100, np.int64)
        np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:3], y_train=y, y_test=y[:3])
        given = [f"data.path={tmp_path / 'a.npz'}"]
    config = composed("train", f"experiment={leaf}", *given)
    data = build(config["data"])
    denoiser, _ = assemble(config, data)
    build(config["objective"])
    build(config["preview"]["solver"])
    assert denoiser(torch.zeros(2, *data.shape), torch.tensor(0.5)).shape == (2, *data.shape)
    # The chosen experiment can be changed further on the command line.
    assert composed("train", f"experiment={leaf}", "steps=1")["steps"] == 1


@pytest.mark.parametrize("top", TOPS)
def test_every_key_is_explained_in_the_help(top: str) -> None:
    """A key, or the group that fills it, stands in the help text with an explanation."""
    text = (CONFIGS / f"{top}.yaml").read_text()
    explained = set(re.findall(r"^ {8}(\w+) {2,}\w", text, re.MULTILINE))
    keys = composed(top).keys()
    groups = re.findall(r"^  - (\w+)(?:@(\w+))?:", text, re.MULTILINE)
    by_group = {name for pair in groups for name in pair if name}
    assert keys - explained - by_group == set()
    assert explained <= keys | by_group


# Where a group is part of an option of another, that option.
WITHIN = {
    "grid@solver.grid": "solver=heun",
    "grid@chain.grid": "solver@chain=ancestral",
    "solver@solver.predictor": "solver=predictor_corrector",
    "solver@density.solver": "density=flow",
    "grid@density.solver.grid": "density=flow",
    "trace@density.trace": "density=flow",
}


@pytest.mark.parametrize("top", TOPS)
def test_the_help_lists_the_groups_that_a_script_takes_and_no_other(top: str) -> None:
    text = (CONFIGS / f"{top}.yaml").read_text()
    lists = re.findall(r"\$\{options:([^}]*)\}", text)
    listed = lists[0].split(",") if lists else []
    choices = compose(top, return_hydra_config=True).hydra.runtime.choices
    assert {key for key in choices if not key.startswith("hydra/")} <= {*listed}
    for key in listed:
        compose(top, [*([WITHIN[key]] if key in WITHIN else []), f"{key}={leaves(key.partition('@')[0])[0]}"])
    assert "APP_CONFIG_GROUPS" not in text
