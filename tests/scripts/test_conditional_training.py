"""Training with conditions by the commands: from arrays with all of them and captions to samples of a prompt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from support.commands import TINY, here, refused

import sde
from sde.storage.checkpoint import load_checkpoint

DATA = [
    *("data=arrays", "data.path=a.npz", "data.train_labels=y_train", "data.test_labels=y_test", "data.levels=17"),
    "data.train_conditions={embedding: e_train, tokens: t_train, tokens_mask: m_train, image: i_train}",
    "data.test_conditions={embedding: e_test, tokens: t_test, tokens_mask: m_test, image: i_test}",
]
TRAIN = [*TINY, "network.attention=[0]", "preview.n=0", "steps=1", "run_dir=run"]


def arrays(folder: Path) -> None:
    g = np.random.RandomState(0)
    named = {}
    for split in ("train", "test"):
        named |= {
            f"x_{split}": g.randint(0, 17, (12, 6, 6)).astype(np.uint8),
            f"y_{split}": np.arange(12) % 3,
            f"e_{split}": g.randn(12, 2).astype(np.float32),
            f"t_{split}": g.randn(12, 3, 5).astype(np.float32),
            f"m_{split}": np.ones((12, 3), bool),
            f"i_{split}": g.randn(12, 1, 6, 6).astype(np.float32),
        }
    np.savez(folder / "a.npz", **named)


def test_every_condition_of_the_data_is_one_of_the_model(tmp_path: Path) -> None:
    arrays(tmp_path)
    done = here(tmp_path, "train", *TRAIN, *DATA, "conditional=true", "condition_dropout={image: 0.2}")
    assert done.code == 0, done.err
    model = sde.load(tmp_path / "run")
    assert model.denoiser.takes is not None
    assert list(model.denoiser.takes) == ["label", "embedding", "tokens", "tokens_mask", "image"]
    assert model.denoiser.takes["embedding"].shape == (2,)
    tree = json.loads(load_checkpoint(tmp_path / "run")["model"])
    expected = {"label": 0.1, "embedding": 0.1, "tokens": 0.1, "tokens_mask": 0.0, "image": 0.2}
    assert tree["dropout"] == expected
    keys = ["label=2", "embedding=[0.3,1.2]", "n=2", "solver.steps=2", "device=cpu", "out=s.png"]
    drawn = here(tmp_path, "sample", "ckpt=run", *keys)
    assert drawn.code == 0, drawn.err
    refused(here(tmp_path, "sample", "ckpt=run", "prompt=a", *keys[2:]), "takes no prompt")
    # The likelihood of the data is that given all of its conditions.
    scored = here(tmp_path, "likelihood", "ckpt=run", "n=2", "solver=heun", "solver.steps=2", "budget=0", "device=cpu")
    assert scored.code == 0, scored.err


def test_some_of_the_conditions_are_chosen_by_name(tmp_path: Path) -> None:
    arrays(tmp_path)
    drawn = ["steps=2", "sample_every=1", "preview.n=2", "preview.solver.steps=1"]
    done = here(tmp_path, "train", *TRAIN, *DATA, *drawn, "conditional=[embedding]", "condition_dropout=0.3")
    assert done.code == 0, done.err
    model = sde.load(tmp_path / "run")
    assert list(model.denoiser.takes or ()) == ["embedding"]
    assert model.classes is None
    for keys, word in (
        (["conditional=[age]"], "has no condition 'age': it has label, embedding"),
        (["conditional=true", "condition_dropout={age: 0.1}"], "condition_dropout of 'age'"),
        (["conditional=true", "encoder=words"], "needs captions"),
        (["conditional=true", "network.attention=[]"], "beside self-attention"),
    ):
        changed = [key for key in TRAIN if not key.startswith("run_dir")]
        result = here(tmp_path, "train", *changed, "run_dir=other", *DATA, *keys)
        if "attention" not in keys[-1]:
            refused(result, word)
        assert not (tmp_path / "other").exists() or "attention" in keys[-1]


def test_captions_become_tokens_of_a_model_that_takes_a_prompt(tmp_path: Path) -> None:
    """Pictures with captions in a table, encoded once beside them."""
    from PIL import Image

    g = np.random.RandomState(0)
    lines = ["file,caption"]
    for i in range(8):
        Image.fromarray(g.randint(0, 255, (4, 4), np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,a {'seven' if i % 2 else 'two'}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    data = [f"data.path={tmp_path}", "data.table=table.csv", "data.columns={caption: caption}", "data.channels=1"]
    train = [*TRAIN, "data=images", *data, "data.test_fraction=0.25", "conditional=true", "encoder=words"]
    done = here(tmp_path, "train", *train)
    assert done.code == 0, done.err
    stored = list(tmp_path.glob("captions-*.npz"))
    assert len(stored) >= 1
    model = sde.load(tmp_path / "run")
    assert model.encoder == sde.data.Words()
    assert torch.is_tensor(model.condition(1, prompt="a seven")["tokens"])
    drawn = here(tmp_path, "sample", "ckpt=run", "prompt=a seven", "n=2", "solver.steps=2", "device=cpu", "out=s.png")
    assert drawn.code == 0, drawn.err
