"""What torch.save and safetensors wrote, read again without unpickling; settings; and weights matched by name."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.fixtures import recorded
from support.score_sde import write as write_score_sde
from torch import Tensor

import sde
from sde.data import Scaling
from sde.interop import IMPORTERS, read
from sde.interop.formats import LazyTensor, Source, read_json, read_state, tensors
from sde.interop.matching import content
from sde.storage.checkpoint import load_checkpoint, save_checkpoint, write

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]

FORMATS: dict[str, dict[str, Any]] = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
    "protocol 5": {"pickle_protocol": 5},
}


def plain(tree: Any) -> Any:
    """A tree with its lazy tensors read."""
    if isinstance(tree, LazyTensor):
        return tree.read()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return type(tree)(plain(value) for value in tree) if isinstance(tree, list | tuple) else tree


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same, types included."""
    if isinstance(b, Tensor):
        return isinstance(a, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(b, dict):
        return isinstance(a, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def trained() -> dict[str, Any]:
    """Everything that a training script keeps."""
    generator = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    base = torch.arange(24.0)
    return {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameters": list(network.parameters()),
        "views": [base[3:7], base.view(4, 6).T, base[::2], base.view(2, 3, 4)[:, 1], base[:0], base.sum()],
        "types": {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in DTYPES},
        "size": tuple(torch.zeros(2, 0).shape),
        "numbers": [0, 255, 256, 65536, -1, 2**40, -(2**70), 1.5, float("inf"), True, False, None],
        "text": ["", "abc", "äö", "x" * 300],
        "nested": {1: [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "o": OrderedDict([("b", 1), ("a", [])])},
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_files_of_torch_save(kind: str, tmp_path: Path) -> None:
    tree = trained()
    torch.save(tree, tmp_path / "x.pt", **FORMATS[kind])
    got = plain(Source(tmp_path / "x.pt").content)
    # Which ordered dictionaries and parameters were plain ones is not kept.
    tree["model"] = dict(tree["model"])
    tree["parameters"] = [value.detach() for value in tree["parameters"]]
    tree["nested"]["o"] = dict(tree["nested"]["o"])
    assert same(got, tree)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_numbers_of_numpy_become_python_s(kind: str, tmp_path: Path) -> None:
    kinds = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
    values = [number(3) for number in kinds] + [np.float64(0.1)]
    torch.save(values, tmp_path / "x.pt", **FORMATS[kind])
    got = Source(tmp_path / "x.pt").content
    assert got == [number(3).item() for number in kinds] + [0.1]
    assert [type(value) for value in got] == [type(value.item()) for value in values]


def test_views_of_one_storage_stay_so(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    torch.save({"a": base, "b": base[2:]}, tmp_path / "x.pt")
    state = Source(tmp_path / "x.pt").state
    assert state is not None
    a, b = (state[name].read() for name in "ab")
    a[2] = -1.0
    assert b[0] == -1.0


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    """Names and shapes come first; a flipped bit is found when its tensor is read."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(100), "b": torch.full((3, 4), 7.25)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(torch.tensor(7.25).numpy().tobytes(), torch.tensor(7.5).numpy().tobytes(), 1))
    state = read_state(path)
    assert {name: tensor.shape for name, tensor in state.items()} == {"a": (100,), "b": (3, 4)}
    assert not state["a"].read().any()
    with pytest.raises(ValueError, match=r"x\.pt is truncated or altered"):
        tensors(state)


def test_safetensors(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "b": torch.tensor(2).short()}
    save_file(state, tmp_path / "x.bin")  # the name does not matter
    source = Source(tmp_path / "x.bin")
    assert source.state is not None
    assert {name: tensor.shape for name, tensor in source.state.items()} == {"a.weight": (3, 4), "b": ()}
    assert same(tensors(source.state), state)


def test_no_length_of_a_header_makes_safetensors_a_pickle(tmp_path: Path) -> None:
    """The first byte is the lowest of the length: that of a pickle, 0x80, in one of 32 files."""
    first = set()
    for padding in range(0, 256, 8):
        save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"padding": "x" * padding})
        assert read_state(tmp_path / "x.safetensors")["w"].read() == 1.0
        first.add((tmp_path / "x.safetensors").read_bytes()[0])
    assert first == set(range(0, 256, 8))


def test_safetensors_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r'x\.safetensors.*pip install "score-sde\[interop\]"'):
        read_state(tmp_path / "x.safetensors")


@pytest.mark.parametrize("tree", [[torch.zeros(1)], {}, {"a": torch.zeros(1), "b": 2}, {1: torch.zeros(1)}], ids=repr)
def test_a_file_of_weights_holds_nothing_else(tree: Any, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / "x.pt")
    assert Source(tmp_path / "x.pt").state is None
    with pytest.raises(ValueError, match=r"x\.pt .*weights"):
        read_state(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_state(tmp_path)


# Wrappers.

WRAPPED = "module._orig_mod._fsdp_wrapped_module._checkpoint_wrapped_module."


def wrapped(state: dict[str, Any]) -> dict[str, Any]:
    return {WRAPPED + name: value for name, value in state.items()}


def score_sde_file(folder: Path) -> tuple[Any, dict[str, Any] | None, Callable[[], Any]]:
    path = write_score_sde("ddpmpp_vp", folder)
    content = torch.load(path, weights_only=False)
    plain = {name.removeprefix("module."): value for name, value in content["model"].items()}
    return path, None, lambda: torch.save({**content, "model": wrapped(plain)}, path)


def state_dict_file(name: str, folder: Path) -> tuple[Any, dict[str, Any] | None, Callable[[], Any]]:
    recording, path = recorded(name), folder / "net.pt"
    torch.save(recording.state, path)
    return path, recording.settings, lambda: torch.save(wrapped(recording.state), path)


def our_file(folder: Path) -> tuple[Any, dict[str, Any] | None, Callable[[], Any]]:
    """As a run on a wrapped network writes it."""
    model = sde.Model(sde.NetworkDenoiser(sde.networks.MLP(2, width=4, depth=1), sde.VP()), Scaling.identity(), (2,))
    sde.save(folder / "net.pt", model)
    content = load_checkpoint(folder / "net.pt")
    weights = {f"network.{WRAPPED}{name.removeprefix('network.')}": v for name, v in content["weights"].items()}
    return folder / "net.pt", None, lambda: write(folder / "net.pt", {**content, "ema": {"default": weights}})


FILES: dict[str, Callable[[Path], tuple[Any, dict[str, Any] | None, Callable[[], Any]]]] = {
    "score_sde": score_sde_file,
    "edm": functools.partial(state_dict_file, "edm_vp_ddpmpp"),
    "openai": functools.partial(state_dict_file, "openai_fixed"),
    "ours": our_file,
}


@pytest.mark.parametrize("name", FILES)
def test_wrappers_of_the_saved_module_do_not_matter(name: str, tmp_path: Path) -> None:
    path, settings, wrap = FILES[name](tmp_path)
    plain = sde.load(path, settings=settings).denoiser.state_dict()
    wrap()
    state = sde.load(path, settings=settings).denoiser.state_dict()
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], value) for name, value in plain.items())


def test_settings_are_given_or_lie_beside(tmp_path: Path) -> None:
    path, other = tmp_path / "net.v2.pt", tmp_path / "other.json"
    torch.save({"w": torch.zeros(1)}, path)
    other.write_text('{"n": 2}')
    assert Source(path).settings is None
    with pytest.raises(ValueError, match=r"net\.v2\.pt .*settings=.*net\.v2\.json"):
        Source(path).need_settings("n")
    (tmp_path / "net.v2.json").write_text('{"n": 1, "m": null}')
    assert Source(path).need_settings("n", "m") == {"n": 1, "m": None}
    assert Source(path, other).settings == Source(path, str(other)).settings == {"n": 2}
    assert Source(path, {"n": 3}).settings == {"n": 3}
    assert Source(path, {"n": (3, 4)}).settings == {"n": [3, 4]}
    with pytest.raises(ValueError, match=r"net\.v2\.pt: settings= .*JSON"):
        _ = Source(path, {"n": np.zeros(1)}).settings
    with pytest.raises(ValueError, match=r"net\.v2\.pt: its settings lack 'a', 'b'; they have 'n'"):
        Source(path, other).need_settings("a", "n", "b")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        _ = Source(path, tmp_path / "gone.json").settings


def test_settings_are_a_json_object_of_sane_size(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, words in (
        ("[1]", "'list'"),
        ("{", "JSON file"),
        (b"\xff\xfe", "JSON file"),
        (json.dumps({"a": "x" * 2**20}), "is too large"),
        ('{"a": ' + "[" * 32 + "]" * 32 + "}", "nested more than 32 levels"),
    ):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=words) as caught:
            read_json(path)
        assert str(path) in str(caught.value)
    path.write_text('{"a": ' + "[" * 31 + "]" * 31 + "}")
    assert "a" in read_json(path)
    with pytest.raises(ValueError, match="JSON file"):
        read_json(tmp_path)


# Matching.

TREE = {
    "process": {"_target_": "sde.VP"},
    "network": {"_target_": "sde.networks.MLP", "features": 2, "width": 4},
    "denoiser": {"_target_": "sde.NetworkDenoiser"},
    "scaling": {"_target_": "sde.data.Scaling", "scale": 1.0, "shift": 0.0},
    "shape": [2],
    "classes": None,
}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    torch.save({}, tmp_path / "net.pt")
    return Source(tmp_path / "net.pt", {"width": 4})


def state() -> dict[str, Tensor]:
    """Weights of their own for every name."""
    shapes = sde.networks.MLP(features=2, width=4).state_dict()
    return {name: torch.full_like(value, float(i)) for i, (name, value) in enumerate(shapes.items())}


def test_weights_that_fit_become_a_checkpoint(source: Source, tmp_path: Path) -> None:
    average = {name: value + 1.0 for name, value in state().items()}
    made = content(source, TREE, state(), {"default": average}, step=7)
    write(tmp_path / "own.pt", made)
    model = sde.load(tmp_path / "own.pt")
    assert all(torch.equal(model.denoiser.state_dict()[f"network.{name}"], value) for name, value in average.items())
    raw = sde.load(tmp_path / "own.pt", ema=None)
    assert all(torch.equal(raw.denoiser.state_dict()[f"network.{name}"], value) for name, value in state().items())
    assert made["step"] == 7
    assert json.loads(made["config"]) == {"source": str(source.path), "settings": {"width": 4}}
    # One set of weights serves as both.
    only = content(source, TREE, average)
    assert all(torch.equal(only["ema"]["default"][name], value) for name, value in only["weights"].items())


def test_weights_that_do_not_fit_are_named(source: Source) -> None:
    weights = state()
    names = list(weights)
    lost, bent = names[0], names[1]
    del weights[lost]
    weights[bent] = torch.zeros(9, 9)
    weights |= {f"more.{i}": torch.zeros(1) for i in range(5)}
    with pytest.raises(ValueError, match=r"net\.pt does not hold") as caught:
        content(source, TREE, weights)
    message = str(caught.value)
    assert f"1 missing ({lost})" in message
    assert "5 not the network's (more.0, more.1, more.2, ...)" in message
    assert f"1 of another shape ({bent} (9, 9) instead of {tuple(state()[bent].shape)})" in message
    # Averages are held to the same.
    with pytest.raises(ValueError, match="1 missing"):
        content(source, TREE, state(), {"default": {k: v for k, v in state().items() if k != lost}})


@pytest.mark.parametrize(
    "part",
    [
        {"network": {**TREE["network"], "width": 10**18}},
        {"network": {**TREE["network"], "width": "wide"}},
        {"network": {**TREE["network"], "breadth": 4}},
        {"network": {"_target_": "os.system", "command": "true"}},
        {"process": {"_target_": "sde.VP", "beta_min": -1.0}},
        {"scaling": {"_target_": "sde.data.Scaling", "scale": 0.0, "shift": 0.0}},
    ],
    ids=str,
)
def test_a_tree_that_describes_no_model_is_refused(source: Source, part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"net\.pt: its settings"):
        content(source, {**TREE, **part}, state())


def test_building_the_network_draws_from_no_generator(source: Source) -> None:
    weights, before = state(), torch.get_rng_state()
    content(source, TREE, weights)
    assert torch.equal(torch.get_rng_state(), before)


# The kinds.


def test_a_checkpoint_of_this_library_is_recognised_by_name_digest_or_content(source: Source, tmp_path: Path) -> None:
    made = content(source, TREE, state(), step=3)
    run = tmp_path / "run"
    path = save_checkpoint(run / "checkpoints", made)
    other = tmp_path / "renamed.bin"
    shutil.copy(path, other)
    for place in (run, path, run / "checkpoints" / "last.pt"):
        assert sde.load(place).shape == (2,)
    with pytest.warns(UserWarning, match="may go unnoticed"):
        assert sde.load(other).shape == (2,)
    # Settings of other projects mean nothing to it.
    assert sde.load(run, settings={"nonsense": 1}).shape == (2,)


def test_a_damaged_checkpoint_of_this_library_is_refused_as_one(source: Source, tmp_path: Path) -> None:
    write(tmp_path / "own.pt", content(source, TREE, state()))
    (tmp_path / "own.pt").write_bytes((tmp_path / "own.pt").read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"own\.pt is truncated or altered"):
        sde.load(tmp_path / "own.pt")


def test_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.pt"):
        sde.load(tmp_path / "gone.pt")


def test_what_is_of_no_known_kind_is_told_and_what_would_be(tmp_path: Path) -> None:
    tree = {"weights": torch.zeros(1), "epoch": 3}
    torch.save(tree, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt .*weights, epoch;") as caught:
        read(tmp_path / "x.pt")
    assert all(importer.WHAT in str(caught.value) for importer in IMPORTERS)
    torch.save([1], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="a list;"):
        read(tmp_path / "x.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"folder .*nothing;"):
        read(tmp_path / "folder")
