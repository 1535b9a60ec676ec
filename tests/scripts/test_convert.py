"""`scripts/convert.py`: what it writes opens everywhere, and what it refuses leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.commands import CHEAP, files, here, refused
from support.score_sde import write

import sde
from sde.storage.checkpoint import load_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint of score_sde with its settings beside it."""
    return write("ddpmpp_vp", tmp_path)


def same(a: sde.Model, b: sde.Model) -> bool:
    weights, others = a.denoiser.state_dict(), b.denoiser.state_dict()
    values = weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    return values and (a.process, a.scaling, a.shape, a.classes) == (b.process, b.scaling, b.shape, b.classes)


def test_a_converted_checkpoint_is_one_of_ours(source: Path, tmp_path: Path) -> None:
    """It is loaded, without settings, and sampled from."""
    result = here(tmp_path, "convert", f"source={source.name}", "out=models/net.pt")
    assert (result.code, result.err) == (0, "")
    assert "converted ddpmpp_vp.pth, " in result.out
    assert "wrote models/net.pt" in result.out
    out = tmp_path / "models" / "net.pt"
    assert sorted(path.name for path in out.parent.iterdir()) == ["net.pt", "net.pt.sha256"]
    for ema in (None, "default"):
        assert same(sde.load(out, ema=ema), sde.load(source, ema=ema))
    content = load_checkpoint(out)
    assert (content["format"], content["step"]) == (1, 7)
    assert json.loads(content["config"])["settings"]["model"]["name"] == "ncsnpp"
    drawn = here(tmp_path, "sample", "ckpt=models/net.pt", "n=2", *CHEAP)
    assert drawn.code == 0, drawn.err
    assert list((out.parent / "samples").glob("*.png"))


def test_the_name_settings_and_process_may_be_given(source: Path, tmp_path: Path) -> None:
    settings = tmp_path / "elsewhere" / "s.json"
    settings.parent.mkdir()
    source.with_suffix(".json").rename(settings)
    result = here(tmp_path, "convert", f"source={source}", f"settings={settings}", "sde=subvp", "sde.beta_max=12")
    assert result.code == 0, result.err
    assert sde.load(tmp_path / "ddpmpp_vp.pt").process == sde.SubVP(beta_max=12)


def test_what_is_there_is_replaced_only_when_asked(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.pt"
    out.write_text("precious")
    theirs = shutil.copy(source, tmp_path / "theirs.pt")
    shutil.copy(source.with_suffix(".json"), tmp_path / "theirs.json")
    before = files(tmp_path)
    refused(here(tmp_path, "convert", f"source={source}", "out=net.pt"), "net.pt", "out=", "overwrite=true")
    refused(here(tmp_path, "convert", f"source={source}", "out=.", "overwrite=true"), "out: ", "directory")
    refused(here(tmp_path, "convert", f"source={source}", "out=net.pth", "overwrite=true"), "out: ", "ends in .pt")
    refused(here(tmp_path, "convert", "source=theirs.pt", f"out={theirs}", "overwrite=true"), str(theirs), "out=")
    assert files(tmp_path) == before
    assert here(tmp_path, "convert", f"source={source}", "out=net.pt", "overwrite=true").code == 0
    assert same(sde.load(out), sde.load(source))
    assert here(tmp_path, "convert", f"source={source}", "out=net.pt", "overwrite=true", "sde=subvp").code == 0
    assert sde.load(out).process == sde.SubVP()


def test_what_cannot_be_converted_is_told_in_a_line_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "bad.json").write_text("{")
    here(tmp_path, "convert", f"source={source}", "out=own.pt")
    before = files(tmp_path)
    for keys, *words in (
        ([], "source is missing: give source=..."),
        (["source=gone.pth"], "source: there is nothing at 'gone.pth'"),
        (["source=nothing"], "score_sde_pytorch"),
        (["source=text.pth"], "text.pth is not a checkpoint"),
        ([f"source={source}", "settings=bad.json"], "bad.json is not a JSON file"),
        ([f"source={source}", "settings=gone.json"], "settings: there is nothing at 'gone.json'"),
        ([f"source={source}", "settings={model: {}}"], "lack", "is missing"),
        ([f"source={source}", "sde=subvp", "sde.beta_min=-1"], "beta_min=-1"),
        (["source=own.pt"], "own.pt is a checkpoint of this library already"),
    ):
        result = here(tmp_path, "convert", *keys, "out=new/x.pt")
        refused(result)
        assert any(word in result.err for word in words), result.err
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_a_write_that_fails_leaves_the_old_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here(tmp_path, "convert", f"source={source}", "out=net.pt").code == 0
    before = files(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    result = here(tmp_path, "convert", f"source={source}", "out=net.pt", "overwrite=true")
    refused(result, "No space left")
    assert files(tmp_path) == before
