"""Run directories: the same config goes on, another one is refused, and files continue without seam."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tables import rows

import sde
from sde.data import DataSet, Split
from sde.storage.checkpoint import load_checkpoint, save_checkpoint
from sde.storage.files import sha256
from sde.training import NonFiniteLoss, Report, Training, train
from sde.training.run import RESUMABLE_KEYS, Run, assemble, differences

CONFIG: dict[str, Any] = {
    "sde": {"_target_": "sde.VP", "beta_min": 0.1, "beta_max": 20.0},
    "network": {
        "_target_": "sde.networks.UNet",
        "channels": None,
        "rank": None,
        "width": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "dropout": 0.3,
    },
    "denoiser": {
        "_target_": "sde.NetworkDenoiser",
        "parametrisation": {"_target_": "sde.NoisePrediction", "data_std": 1.0},
        "level": {"_target_": "sde.LogSNRLevel", "scale": 50.0},
    },
    "objective": {
        "_target_": "sde.objective.DenoisingScoreMatching",
        "weighting": {"_target_": "sde.objective.Likelihood"},
        "times": {"_target_": "sde.objective.UniformLogSNR"},
    },
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 1e-2},
    "data": {"_target_": "sde.data.digits", "holdout": 0},
    "run_dir": "run",
    "steps": 7,
    "batch_size": 16,
    "seed": 0,
    "device": "cpu",
    "warmup": 3,
    "clip": 1.0,
    "ema": 0.9,
    "conditional": False,
    "log_every": 2,
    "validate_every": 3,
    "save_every": 2,
    "keep": None,
    "trust": [],
    "preview": {"n": 0},
}
STEPS = 7


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def data() -> DataSet:
    """40 digits, so that an epoch ends in the middle of a batch, and 5 held out."""
    whole = sde.data.digits()
    few = [whole.train.select(torch.arange(*ends)) for ends in ((40,), (40, 44), (50, 55))]
    return DataSet("few digits", whole.scaling, *few)


def changed(**changes: Any) -> dict[str, Any]:
    """The config with other entries; a dot in a name is written as two underscores."""
    config = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        *path, last = name.split("__")
        tree = config
        for part in path:
            tree = tree[part]
        tree[last] = value
    return config


def open_run(folder: Path, config: dict[str, Any] | None = None) -> Run:
    """The run in a folder as the script opens it, with JSON for YAML."""
    config = CONFIG if config is None else config
    there = folder / "config.yaml"
    return Run(folder, config, json.dumps(config), json.loads(there.read_text()) if there.exists() else None)


def go(
    folder: Path,
    data: DataSet,
    config: dict[str, Any] | None = None,
    *,
    stop: int = STEPS,
    save: bool = True,
    seed: int = 0,
) -> tuple[list[Report], Training]:
    """One call of the training script, up to the step `stop`."""
    run = open_run(folder, config)
    torch.manual_seed(seed)
    training = run.start(data)
    reports = []
    for report in train(training, stop):
        reports.append(report)
        run.log(report, training)
    if save:
        run.save(training)
    return reports, training


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: DataSet) -> tuple[Path, list[Report]]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reports, _ = go(folder, data)
    torch.set_num_threads(threads)
    return folder, reports


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stops", [(1,), (2, 3), (4,), (6, 6)])
def test_stopped_and_continued_through_its_files_it_is_the_undisturbed_run(
    tmp_path: Path, data: DataSet, undisturbed: tuple[Path, list[Report]], stops: tuple[int, ...]
) -> None:
    """Every number of the newest checkpoint is the same, bit for bit, and so are the losses, in reports and metrics."""
    folder, expected = undisturbed
    reports: list[Report] = []
    for i, stop in enumerate((*stops, STEPS)):
        reports += go(tmp_path / "run", data, stop=stop, seed=0 if i == 0 else 99 + i)[0]
    assert reports == expected
    assert_same_bits(tmp_path / "run", folder)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2, 3, 4, 6]
    assert metrics(tmp_path / "run") == metrics(folder)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings and sequences, by path."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}/{i}")
    else:
        yield path, tree


def assert_same_bits(one: Path, other: Path) -> None:
    """The newest checkpoints of two runs hold the same values."""
    a, b = (dict(leaves(load_checkpoint(folder))) for folder in (one, other))
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], key


def test_steps_that_were_lost_are_taken_again_without_duplicates(
    tmp_path: Path, data: DataSet, undisturbed: tuple[Path, list[Report]]
) -> None:
    folder, _ = undisturbed
    go(tmp_path / "run", data, stop=4)
    go(tmp_path / "run", data, stop=6, save=False)  # killed after step 6, the newest checkpoint being of step 4
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2, 3, 4, 6]
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo\n{"step": 4}\n')  # ... in the middle of a line, behind which nothing counts
    open_run(tmp_path / "run").start(data)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2, 3, 4]
    go(tmp_path / "run", data)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2, 3, 4, 6]
    assert metrics(tmp_path / "run") == metrics(folder)
    assert_same_bits(tmp_path / "run", folder)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path: Path, data: DataSet) -> None:
    go(tmp_path / "run", data, stop=3, save=False)
    reports, _ = go(tmp_path / "run", data, stop=2)
    assert [r.step for r in reports] == [1, 2]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2]


def test_metrics(undisturbed: tuple[Path, list[Report]]) -> None:
    """A loss is the mean since the last line; step 6 has loss and validation in one line."""
    folder, reports = undisturbed
    lines = {int(line["step"]): line for line in metrics(folder)}
    for step in (2, 4, 6):
        expected = math.fsum(r.loss for r in reports[step - 2 : step]) / 2
        assert lines[step]["loss"] == expected
        assert lines[step]["grad_norm"] == reports[step - 1].grad_norm
        assert lines[step]["learning_rate"] == reports[step - 1].learning_rate
    assert sorted(lines[3]) == ["step", "valid_loss"]
    assert "valid_loss" in lines[6]
    assert math.isfinite(lines[6]["valid_loss"])


def test_the_validation_loss_is_that_of_the_averages(tmp_path: Path, data: DataSet) -> None:
    _, training = go(tmp_path / "run", data, stop=3)
    run = open_run(tmp_path / "run")
    run.start(data)
    value = run.valid_loss(training)
    assert value == metrics(tmp_path / "run")[-1]["valid_loss"]
    with torch.no_grad():
        for parameter in training.denoiser.parameters():
            parameter.zero_()
    assert run.valid_loss(training) == value


def test_with_more_steps_it_goes_on(tmp_path: Path, data: DataSet, undisturbed: tuple[Path, list[Report]]) -> None:
    go(tmp_path / "run", data, changed(steps=3), stop=3)
    reports, _ = go(tmp_path / "run", data, changed(steps=7), stop=7)
    assert reports == undisturbed[1][3:]
    assert json.loads((tmp_path / "run" / "config.yaml").read_text())["steps"] == 7
    assert go(tmp_path / "run", data, changed(steps=7), stop=7)[0] == []
    assert_same_bits(tmp_path / "run", undisturbed[0])


def test_a_finished_run_that_is_asked_for_again_keeps_its_checkpoint_byte_for_byte(
    tmp_path: Path, data: DataSet
) -> None:
    """Likelihoods name the checkpoint they are of by its digest: with another one they could not be resumed."""
    go(tmp_path / "run", data)
    before = snapshot(tmp_path)
    for _ in range(2):
        assert go(tmp_path / "run", data)[0] == []
        assert snapshot(tmp_path) == before


def test_the_directory_is_no_part_of_a_result(tmp_path: Path, data: DataSet) -> None:
    """Two runs of one seed in two directories leave the same checkpoint, bit for bit."""
    for name in ("a", "b"):
        go(tmp_path / name, data, changed(run_dir=str(tmp_path / name)), stop=1)
    assert sha256(tmp_path / "a" / "checkpoints" / "last.pt") == sha256(tmp_path / "b" / "checkpoints" / "last.pt")


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "batch_size was 16 and is now 8"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"sde__beta_max": 10.0}, "sde.beta_max was 20.0 and is now 10.0"),
        ({"network__multipliers": [1, 2, 2]}, r"network.multipliers was \[1, 2\] and is now \[1, 2, 2\]"),
        ({"ema": 0.99, "warmup": 4}, "ema was 0.9 and is now 0.99"),
        ({"network__extra": 1}, "network.extra was null and is now 1"),
    ],
)
def test_another_config_is_refused_with_the_first_difference(
    tmp_path: Path, data: DataSet, change: dict[str, Any], message: str
) -> None:
    go(tmp_path / "run", data, stop=0)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=rf"run .*{message}.*run_dir="):
        open_run(tmp_path / "run", changed(**change))
    assert snapshot(tmp_path) == before


def test_what_changes_no_result_may_differ(tmp_path: Path, data: DataSet) -> None:
    go(tmp_path / "run", data, stop=0)
    other = {"steps": 9, "device": "auto", "log_every": 9, "save_every": 9, "validate_every": 9, "keep": 1}
    more = {"run_dir": "elsewhere", "trust": ["math"], "preview": {"n": 3}, "ranks": {"_target_": "sde.training.FSDP2"}}
    more |= {"max_skipped": 3, "requeue_status": 99, "levels": 4, "sample_every": 5, "score_every": 6, "score_n": 7}
    more |= {"loggers": {}}
    more |= {"workers": 0, "unreadable": 1, "evaluate_every": 5, "evaluate": {"n": 9}}
    assert {*other, *more} == set(RESUMABLE_KEYS)
    open_run(tmp_path / "run", changed(**other, **more)).start(data)


def test_differences_are_told_by_dotted_key() -> None:
    old, new = {"a": {"b": 1, "c": [1, 2]}, "steps": 1}, {"a": {"b": 2, "c": (1, 2)}, "steps": 2, "d": "x"}
    assert list(differences(old, new)) == ["a.b was 1 and is now 2", "d was null and is now 'x'"]
    assert list(differences(old, new, free=("a", "d"))) == ["steps was 1 and is now 2"]
    assert list(differences(CONFIG, json.loads(json.dumps(CONFIG)))) == []


def test_a_run_of_version_0_1_0_goes_on(tmp_path: Path, data: DataSet, undisturbed: tuple[Path, list[Report]]) -> None:
    """Its config and its checkpoint may name classes as that version did; what is written then is in public names."""
    old = {
        "sde.NoisePrediction": "sde.parametrisation.NoisePrediction",
        "sde.LogSNRLevel": "sde.parametrisation.LogSNRLevel",
    }
    old |= {"sde.NetworkDenoiser": "sde.denoiser.NetworkDenoiser", "sde.networks.UNet": "sde.networks.unet.UNet"}

    def renamed(text: str) -> str:
        for new, name in old.items():
            assert f'"{new}"' in text
            text = text.replace(f'"{new}"', f'"{name}"')
        return text

    folder = tmp_path / "run"
    go(folder, data, stop=3)
    content = load_checkpoint(folder)
    names = {key: renamed(content[key]) for key in ("config", "model")}
    save_checkpoint(folder / "checkpoints", {**content, **names, "version": "0.1.0"})
    (folder / "config.yaml").write_text(renamed((folder / "config.yaml").read_text()))
    as_before = json.loads(renamed(json.dumps(CONFIG)))
    assert go(folder, data)[0] == undisturbed[1][3:]
    assert_same_bits(folder, undisturbed[0])
    go(tmp_path / "new", data, as_before, stop=0)
    content = load_checkpoint(tmp_path / "new")
    assert "sde.parametrisation" not in content["config"] + content["model"]
    assert sde.load(tmp_path / "new").shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"sde\.beta_max.*20\.0.*9\.0"):
        open_run(folder, changed(sde__beta_max=9.0))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path, data: DataSet) -> None:
    (tmp_path / "run").mkdir()
    open_run(tmp_path / "run")  # an empty one is welcome
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"run .*config\.yaml.*run_dir="):
        open_run(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == ["thesis.tex"]


def test_other_data_is_refused(tmp_path: Path, data: DataSet) -> None:
    go(tmp_path / "run", data, stop=1)
    before = snapshot(tmp_path)
    values = data.train.values.clone()
    values[3, 0, 2, 2] ^= 1
    other = DataSet(data.name, data.scaling, sde.data.Split(values, data.train.labels), data.test, data.valid)
    with pytest.raises(ValueError, match=r"run .*few digits.*run_dir="):
        open_run(tmp_path / "run").start(other)
    assert snapshot(tmp_path) == before


def test_a_damaged_checkpoint_is_refused_and_the_sound_one_before_it_named(tmp_path: Path, data: DataSet) -> None:
    go(tmp_path / "run", data, stop=1)
    go(tmp_path / "run", data, stop=2)
    newest = tmp_path / "run" / "checkpoints" / "step_00000002.pt"
    newest.write_bytes(newest.read_bytes()[:-5])
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"step_00000002\.pt .*SHA-256.*step_00000001\.pt"):
        open_run(tmp_path / "run").start(data)
    assert snapshot(tmp_path) == before


def test_a_run_whose_newest_checkpoint_was_taken_away_does_not_silently_start_anew(
    tmp_path: Path, data: DataSet
) -> None:
    """What a reader of the message above may well do; the metrics of the steps before must not be lost."""
    go(tmp_path / "run", data, stop=2)
    go(tmp_path / "run", data, stop=3)
    (tmp_path / "run" / "checkpoints" / "step_00000003.pt").unlink()
    try:
        training = open_run(tmp_path / "run").start(data)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    else:
        message = f"goes on from step {training.step}"
    assert "step_00000002.pt" in message or message == "goes on from step 2", message
    assert metrics(tmp_path / "run")[0]["step"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sde__beta_mix": 1.0}, "'beta_mix'"),
        ({"optimizer__lrr": 1.0}, "'lrr'"),
        ({"objective__weighting": {"_target_": "sde.objective.Likely"}}, "'sde.objective.Likely'"),
        ({"network": {"_target_": "sde.networks.MLP", "features": 3}}, "3 entries per sample"),
        ({"conditional": True, "network__classes": 9}, r"few digits: train labels\[\d+\] is 9"),
        ({"network__classes": 10}, "conditional=true"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"device": "cuda:77"}, "device='cuda:77'"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"ema": 1.0}, "decay=1.0"),
    ],
)
def test_nothing_is_written_before_all_that_the_config_names_fits(
    tmp_path: Path, data: DataSet, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path / "run", changed(**change)).start(data)
    assert list(tmp_path.iterdir()) == []


# Scaling and labels


def table(values: torch.Tensor, **settings: Any) -> DataSet:
    return DataSet("table", sde.data.Scaling.standardise(values, **settings), Split(values), Split(values[:4]))


def test_a_table_is_trained_column_by_column_and_an_older_run_keeps_its_one_scale(tmp_path: Path) -> None:
    mlp = changed(network={"_target_": "sde.networks.MLP", "features": None, "width": 8, "depth": 1})
    each = table(rows(40))
    go(tmp_path / "new", each, mlp, stop=1)  # a warning would be an error
    assert sde.load(tmp_path / "new").scaling == each.scaling
    one = table(rows(40), one_scale=True)
    with pytest.warns(UserWarning, match="tenfold"):
        undisturbed, _ = go(tmp_path / "undisturbed", one, mlp, stop=4)
    with pytest.warns(UserWarning, match="tenfold"):
        go(tmp_path / "old", one, mlp, stop=2)
    with pytest.warns(UserWarning, match="tenfold"):
        resumed, training = go(tmp_path / "old", each, mlp, stop=4)
    assert training.scaling == one.scaling != each.scaling
    assert resumed == undisturbed[2:]
    assert sde.load(tmp_path / "old").scaling == one.scaling


def labelled(train: list[int], test: list[int]) -> DataSet:
    splits = [Split(torch.randn(len(y), 2), torch.tensor(y)) for y in (train, test)]
    return DataSet("labelled", sde.data.Scaling.identity(), *splits)


def with_labels(**network: Any) -> dict[str, Any]:
    mlp = {"_target_": "sde.networks.MLP", "features": None, "width": 8, "depth": 1, **network}
    return changed(network=mlp, conditional=True)


@pytest.mark.parametrize("classes", [None, 3, 5])
def test_classes_are_those_of_the_data_unless_there_are_more(tmp_path: Path, classes: int | None) -> None:
    given = {} if classes is None else {"classes": classes}
    _, training = go(tmp_path / "run", labelled([0, 1, 2] * 6, [2]), with_labels(**given), stop=1)
    assert training.denoiser.classes == (classes or 3)
    assert sde.load(tmp_path / "run").classes == 3


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([1, 2, 3] * 6, [1], r"train labels\[2\] is 3: expected a class from 0 to 2"),
        ([0, 1, 2] * 6 + [4], [1], r"train labels\[18\] is 4"),  # in a batch that comes at step 2
        ([0, 1, 2] * 6, [0, 3], r"test labels\[1\] is 3"),
    ],
)
def test_a_label_that_the_network_has_not_is_found_before_the_first_step(
    tmp_path: Path, train: list[int], test: list[int], message: str
) -> None:
    """Label 3 of a network of 3 classes means "no label"."""
    with pytest.raises(ValueError, match=message):
        open_run(tmp_path / "run", with_labels(classes=3)).start(labelled(train, test))
    assert list(tmp_path.iterdir()) == []


def test_classes_without_samples_are_refused_unless_their_number_is_declared(tmp_path: Path) -> None:
    for labels, absent in (([1, 2, 3] * 6, "0"), ([0, 3] * 9, "1, 2"), ([0, 1, 2] * 6, "3")):
        with pytest.raises(ValueError, match=rf"no training sample is of class {absent}, .*up to 3.* data\.classes=4"):
            open_run(tmp_path / "run", with_labels()).start(labelled(labels, [3]))
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"of class 0, 1, 2, 3, 4 and 2018 more, and labels go up to 2024"):
        assemble(with_labels(), labelled([2023, 2024], [2024]))
    declared = replace(labelled([1, 2, 3] * 6, [3]), declared_classes=5)
    _, training = go(tmp_path / "run", declared, with_labels(), stop=1)
    assert training.denoiser.classes == sde.load(tmp_path / "run").classes == 5
    with pytest.raises(ValueError, match=r"train labels\[2\] is 3: expected a class from 0 to 2"):
        replace(declared, declared_classes=3)
    with pytest.raises(ValueError, match="labelled needs a whole number classes >= 1, got classes=0"):
        replace(declared, declared_classes=0)
    with pytest.raises(ValueError, match="table: train has no labels, got classes=3"):
        replace(table(rows(40)), declared_classes=3)


def test_what_is_done_later_is_tried_before_the_first_step(tmp_path: Path) -> None:
    """Conditions of every split, the loss of the validation samples, and a score; nothing is written."""

    def split(width: int) -> Split:
        return Split(torch.randn(9, 2), condition={"embedding": torch.randn(9, width)} if width else {})

    def data(test: int, valid: int) -> DataSet:
        return DataSet("pairs", sde.data.Scaling.identity(), *map(split, (3, test, valid)))

    config = with_labels()
    for widths, message in (
        ((0, 3), "train has the condition 'embedding' and test has not"),
        ((3, 0), "train has the condition 'embedding' and valid has not"),
        ((3, 4), r"validate_every: .*embedding.*\(2, 3\)"),
        ((3, 3), "caller: no"),
    ):

        def rehearse(training: Training) -> None:
            assert training.step == 0
            raise ValueError("caller: no")

        with pytest.raises(ValueError, match=message):
            open_run(tmp_path / "run", {**config, "score_every": 2}).start(data(*widths), rehearse)
        assert list(tmp_path.iterdir()) == []
    scored = data(3, 4)
    with pytest.raises(ValueError, match=r"score_every: .*embedding.*\(B, 3\)"):
        open_run(tmp_path / "run", {**config, "score_every": 2}).start(replace(scored, test=scored.valid, valid=None))
    assert list(tmp_path.iterdir()) == []


def test_a_conditional_network_needs_labels() -> None:
    with pytest.raises(ValueError, match=r"conditional.*table has none"):
        assemble(with_labels(), table(rows(40)))


# A loss that is not finite


@dataclass(frozen=True)
class Breaks(sde.objective.Objective):
    """The simple loss, until a batch brings the third step's noise."""

    training: list[Training]

    def __call__(self, denoiser: Any, x0: Any, u: Any, z: Any, **condition: Any) -> Any:
        loss = sde.objective.DenoisingScoreMatching()(denoiser, x0, u, z, **condition)
        return loss * math.nan if self.training and self.training[0].step == 2 else loss


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path: Path, data: DataSet) -> None:
    run = open_run(tmp_path / "run")
    torch.manual_seed(0)
    training = run.start(data)
    training.objective = Breaks([training])
    for report in train(training, 2):
        run.log(report, training)
        run.save(training)
    weights = copy.deepcopy(training.denoiser.state_dict())
    with pytest.raises(NonFiniteLoss, match=r"step 3.*nan"):
        next(train(training, STEPS))
    content = load_checkpoint(tmp_path / "run")
    assert content["step"] == 2
    for name, value in training.denoiser.state_dict().items():
        assert torch.equal(value, weights[name])
        assert torch.equal(value, content["weights"][name])


# Assembling


def test_a_network_is_told_the_facts_of_the_data_where_the_config_leaves_them_open(data: DataSet) -> None:
    denoiser, tree = assemble(CONFIG, data)
    assert tree["network"] | {"channels": 1, "rank": 2} == tree["network"]
    assert tree["shape"] == [1, 8, 8]
    assert json.loads(json.dumps(tree)) == tree
    assert denoiser(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape == (2, 1, 8, 8)
    moons = sde.data.moons(10, 10)
    _, tree = assemble(changed(network={"_target_": "sde.networks.MLP", "features": None, "width": 8}), moons)
    assert tree["network"]["features"] == 2
    assert tree["scaling"]["levels"] is None
    _, tree = assemble(changed(network={"_target_": "sde.networks.MLP", "features": 5, "width": 8}), moons)
    assert tree["network"]["features"] == 5
    assert CONFIG["network"]["channels"] is None


def test_a_checkpoint_holds_all_that_it_takes_to_load_the_model(tmp_path: Path, data: DataSet) -> None:
    _, training = go(tmp_path / "run", data, stop=2)
    content = load_checkpoint(tmp_path / "run")
    keys = {
        "format",
        "version",
        "config",
        "model",
        "data",
        "step",
        "weights",
        "ema",
        "optimizer",
        "rng",
        "cuda_rng",
        "losses",
    }
    assert set(content) == keys
    assert content["version"] == sde.__version__
    assert content["data"] == data.fingerprint
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.3)
    training.denoiser.eval()
    raw = sde.load(tmp_path / "run", ema=None).denoiser(x, t)
    assert torch.equal(raw, training.denoiser(x, t))
    with training.ema["default"].applied_to(training.denoiser):
        assert torch.equal(sde.load(tmp_path / "run").denoiser(x, t), training.denoiser(x, t))
    assert not torch.equal(sde.load(tmp_path / "run").denoiser(x, t), raw)
