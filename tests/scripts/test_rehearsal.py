"""What a training does later only is tried before its first step: one line with the key, and nothing written."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support.commands import here, refused

import sde

TRAIN = ["network=mlp", "network.width=8", "network.depth=1", "batch_size=8", "device=cpu", "steps=2", "run_dir=run"]
PROGRAM = ["evaluate_every=2", "features@evaluate.features=program"]
MOONS = ["data=moons", "data.n_train=50", "data.n_test=40"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["solver@preview.solver=particles"], ["preview.solver: Particles", "log_potential"]),
        (["solver@preview.solver=decoupled"], ["preview.solver: Decoupled", "measure"]),
        (["solver@preview.solver=replacement"], ["preview.solver: Replacement", "measure"]),
        (["solver@preview.solver=particles", "preview.n=0", "evaluate_every=2"], ["preview.solver: Particles"]),
        (["evaluate_every=2", "evaluate.metrics=[inception_score]"], ["evaluate: ", "logits"]),
        ([*PROGRAM, f"evaluate.features.path={__file__}"], ["evaluate: "]),
        (["+loggers.mine._target_=sde.VP"], ["loggers.mine: expected a logger", "got a VP"]),
        (["sde=bridge"], ["Bridge needs the condition 'image'", "batches with label", "conditional=true"]),
        (["sde=bridge", "conditional=true"], ["Bridge needs the condition 'image'", "given label"]),
    ],
)
def test_it_is_refused_before_the_first_step(tmp_path: Path, keys: list[str], words: list[str]) -> None:
    with mock.patch.object(sde.Training, "advance", side_effect=AssertionError("a step")):
        refused(here(tmp_path, "train", *TRAIN, *MOONS, *keys), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_solver_that_is_not_used_is_not_tried(tmp_path: Path) -> None:
    """The message of the end names what there is."""
    done = here(tmp_path, "train", *TRAIN, *MOONS, "solver@preview.solver=particles", "preview.n=0")
    assert (done.code, done.err) == (0, "")
    last = done.out.splitlines()[-1]
    assert last.startswith("trained to step 2; wrote run/checkpoints/step_00000002.pt; last loss "), last
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints", "config.yaml"]
    more = ["steps=3", "log_every=1", "preview.solver.steps=2", "preview.n=2"]
    done = here(tmp_path, "train", *TRAIN, *MOONS, *more)
    assert (done.code, done.err) == (0, "")
    files = "samples/*.png, loss.png, metrics.jsonl in run"
    assert f"wrote run/checkpoints/step_00000003.pt; {files}; last loss" in done.out
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 1


def test_a_bridge_is_previewed_from_its_ends(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    x = {split: g.normal(size=(12, 2)).astype(np.float32) for split in ("train", "test")}
    np.savez(tmp_path / "a.npz", **{f"x_{k}": v for k, v in x.items()}, **{f"i_{k}": -v for k, v in x.items()})
    np.save(tmp_path / "end.npy", x["test"][0])
    data = ["data=arrays", "data.path=a.npz", "data.train_conditions={image: i_train}"]
    data += ["data.test_conditions={image: i_test}", "conditional=true", "sde=bridge", "denoiser=edm"]
    preview = ["preview.n=3", "preview.solver.steps=2", "sample_every=1", "evaluate_every=1", "evaluate.n=4"]
    seen: list[np.ndarray] = []
    draw = sde.Model.sample

    def sample(model: sde.Model, n: int, **how: object) -> object:
        seen.append(how["condition"]["image"].numpy())  # type: ignore[index]
        return draw(model, n, **how)  # type: ignore[arg-type]

    with mock.patch.object(sde.Model, "sample", sample):
        done = here(tmp_path, "train", *TRAIN, *data, *preview, "evaluate.metrics=[energy]")
    assert (done.code, done.err) == (0, "")
    assert len(seen) == 4
    for ends, split, n in zip(seen, ("train", "test", "train", "test"), (4, 3, 4, 3)):
        assert np.array_equal(ends, -x[split][:n])
    keys = ["ckpt=run", "n=2", "solver.steps=2", "device=cpu", "out=s.png"]
    refused(here(tmp_path, "sample", *keys), "a model of Bridge draws given the condition 'image'", "image=FILE")
    done = here(tmp_path, "sample", *keys, "image=end.npy")
    assert (done.code, done.err) == (0, "")
