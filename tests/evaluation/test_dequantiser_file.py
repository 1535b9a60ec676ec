"""Files of learned dequantisers: what was written comes back, and anything else is refused, none of it run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sde.data import Scaling
from sde.evaluation.dequantiser_file import check_free, load_dequantiser, save_dequantiser
from sde.likelihood.variational import VariationalDequantiser
from sde.noise import Noise
from sde.storage.checkpoint import load_checkpoint, save_checkpoint, write
from sde.storage.files import sha256

SHAPE, LEVELS = (2, 3, 4), 8


def learned(seed: int = 2, width: int = 6) -> VariationalDequantiser:
    rule = VariationalDequantiser(SHAPE, LEVELS, layers=3, width=width, alpha=0.75)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return rule


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_dequantiser(tmp_path / "a.pt", learned(), checkpoint_sha256="abc", settings='{"lr": 1}')
    return tmp_path / "a.pt"


def test_what_was_written_comes_back(path: Path) -> None:
    """Settings, and the noise with its log-density bit for bit; no gradients are asked of it."""
    rule, loaded, index = learned(), load_dequantiser(path), torch.arange(5)
    assert repr(loaded) == repr(rule)
    assert repr(rule) == "VariationalDequantiser(shape=(2, 3, 4), levels=8, layers=3, width=6, alpha=0.75)"
    v = torch.randint(LEVELS, (5, *SHAPE), generator=torch.Generator().manual_seed(0))
    for one, other in zip(rule.draw(v, Noise(1), index, index), loaded.draw(v, Noise(1), index, index)):
        assert torch.equal(one.detach(), other)
        assert not other.requires_grad
    content = load_checkpoint(path)
    assert (content["checkpoint_sha256"], content["settings"]) == ("abc", '{"lr": 1}')
    assert sorted(os.listdir(path.parent)) == ["a.pt", "a.pt.sha256"]


def test_the_file_is_a_function_of_its_content(path: Path) -> None:
    save_dequantiser(path.with_name("b.pt"), learned(), checkpoint_sha256="abc", settings='{"lr": 1}')
    save_dequantiser(path.with_name("c.pt"), learned(3), checkpoint_sha256="abc", settings='{"lr": 1}')
    assert sha256(path.with_name("b.pt")) == sha256(path) != sha256(path.with_name("c.pt"))


def one_sentence(error: pytest.ExceptionInfo[ValueError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("place", [10, 400, -2000, -30])
def test_a_flipped_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="dequantiser") as error:
        load_dequantiser(path)
    one_sentence(error, "truncated or altered", "scripts/dequantise.py")


def test_a_truncated_file(path: Path) -> None:
    whole = path.read_bytes()
    for size in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="dequantiser") as error:
            load_dequantiser(path)
        one_sentence(error)
    path.with_name("a.pt.sha256").unlink()  # and nothing to tell it by
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="dequantiser"):
        load_dequantiser(path)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.filterwarnings("ignore:.*has no .*sha256:UserWarning")
def test_foreign_files(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "checkpoints", {"step": 1, "weights": {}, "model": "{}", "ema": {}})
    (tmp_path / "text.pt").write_text("hello")
    np.savez(tmp_path / "numbers.npz", a=np.zeros(3))
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    torch.save({"format": 1, "dequantiser": Malicious(tmp_path / "ran")}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    names = ["text.pt", "numbers.npz", "pickle.pt", "code.pt", "list.pt"]
    for file in (model, *(tmp_path / name for name in names)):
        with pytest.raises(ValueError, match=f"{file.name}.*dequantiser") as error:
            load_dequantiser(file)
        one_sentence(error)
    with pytest.raises(ValueError, match="'dequantiser'"):
        load_dequantiser(model)
    assert not (tmp_path / "ran").exists()
    for gone in (tmp_path / "gone.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="dequantise"):
            load_dequantiser(gone)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"width": 7}, "of width 7"),
        ({"width": 10**5}, "of width 100000"),
        ({"width": 10**9}, ""),
        ({"layers": 2}, "12 tensors, got 18"),
        ({"layers": 10**9}, "got 18"),
        ({"shape": [4]}, "the shape"),
        ({"shape": []}, "1 to 4 sizes"),
        ({"shape": None}, "None"),
        ({"width": None}, ""),
        ({"layers": None}, ""),
    ],
    ids=str,
)
def test_facts_that_are_not_those_of_the_weights(path: Path, changes: dict[str, object], word: str) -> None:
    content = load_checkpoint(path)
    write(path, {**content, "dequantiser": {**content["dequantiser"], **changes}})
    with pytest.raises(ValueError, match=f"{path.name}.*{word}") as error:
        load_dequantiser(path)
    one_sentence(error)


def test_weights_that_are_not_finite(path: Path) -> None:
    content = load_checkpoint(path)
    content["weights"]["networks.1.0.bias"][2] = float("nan")
    write(path, content)
    with pytest.raises(ValueError, match="not finite"):
        load_dequantiser(path)


def test_other_data(path: Path) -> None:
    assert load_dequantiser(path, shape=SHAPE, scaling=Scaling.interval(LEVELS)).shape == SHAPE
    for shape, scaling, words in (
        ((2, 4, 3), Scaling.interval(LEVELS), ["(B, 2, 3, 4) with 8 levels", "8 levels of shape (B, 2, 4, 3)"]),
        (SHAPE, Scaling.interval(9), ["with 8 levels", "for 9 levels"]),
        (SHAPE, Scaling.identity(), ["continuous data"]),
    ):
        with pytest.raises(ValueError, match="8 levels") as error:
            load_dequantiser(path, shape=shape, scaling=scaling)
        one_sentence(error, *words)


def test_a_failure_on_the_way_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    def full(content: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_dequantiser(path, learned(5), checkpoint_sha256="")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_only_a_dequantiser_may_be_written_over(path: Path) -> None:
    check_free(path.with_name("new.pt"))
    check_free(path, overwrite=True)
    with pytest.raises(ValueError, match="overwrite=true"):
        check_free(path)
    with pytest.raises(ValueError, match="is a directory"):
        check_free(path.parent, overwrite=True)
    with pytest.raises(ValueError, match="nothing can be written"):
        check_free(path / "new.pt")
    other = path.with_name("config.yaml")
    other.write_text("a: 1")
    with pytest.raises(ValueError, match="dequantiser"):
        check_free(other, overwrite=True)
