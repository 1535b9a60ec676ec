"""Recordings: samples of every width have their values, and are cut or filled up; what cannot be used is named."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import sde
from sde.data import Scaling, UnreadableSample, audio
from sde.data.audio import Recording

RANDOM = np.random.RandomState(0)


def save(file: Path, values: np.ndarray, width: int = 2, rate: int = 8000) -> Path:
    """Whole numbers with shape (channels, n), in units of the last place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as target:
        target.setnchannels(len(values))
        target.setsampwidth(width)
        target.setframerate(rate)
        numbers = values.T.reshape(-1).astype(np.int64) + (128 if width == 1 else 0)
        target.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in numbers))
    return file


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_values(tmp_path: Path, width: int) -> None:
    unit = 2 ** (8 * width - 1)
    values = RANDOM.randint(-unit, unit, size=(2, 7))
    values[:, :2] = [-unit, unit - 1]
    file = save(tmp_path / "a.wav", values, width)
    expected = (values / unit).astype(np.float32)
    assert np.array_equal(Recording(7, 8000, channels=2)(file), expected)
    assert np.array_equal(Recording(3, 8000, channels=2)(file), expected[:, 2:5])
    longer = Recording(10, 8000, channels=2)(file)
    assert np.array_equal(longer[:, :7], expected)
    assert not longer[:, 7:].any()
    np.testing.assert_allclose(Recording(7, 8000)(file), (values / unit).mean(0, keepdims=True), atol=1e-7)


def test_a_folder_is_a_data_set(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "set" / str(i % 3) / f"{i}.WAV", RANDOM.randint(-999, 999, size=(1, 20 + i)))
    whole = audio(tmp_path / "set", length=24, rate=8000, folder_labels=True, holdout=2)
    stream = audio(tmp_path / "set", length=24, rate=8000, folder_labels=True, holdout=2, memory=0)
    assert (whole.shape, whole.classes, whole.name) == ((1, 24), 3, "set")
    assert whole.scaling == stream.scaling
    for name, split in whole.splits.items():
        index = torch.arange(len(split))
        (x, condition), (other, others) = split[index], stream.split(name)[index]
        assert torch.equal(x, other)
        assert torch.equal(condition["label"], others["label"])
    y = whole.scaling.to_model(whole.train[torch.arange(len(whole.train))][0])
    assert float(y.std(correction=0)) == pytest.approx(1.0, rel=1e-4)
    assert audio(tmp_path / "set", length=24, rate=8000, standardise=False).scaling == Scaling.identity()
    flipped = sde.Batches(stream.train, 4, augmentation=sde.data.HorizontalFlip())[0]
    assert flipped.values.shape == (4, 1, 24)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    good = save(tmp_path / "a.wav", RANDOM.randint(-99, 99, size=(2, 30)))
    content = good.read_bytes()
    for rule, message in (
        (Recording(8, 16000), "8000 samples.*rate=16000"),
        (Recording(8, 8000, 3), "2 channels.*channels=3"),
    ):
        with pytest.raises(UnreadableSample, match=rf"a\.wav cannot be read: it has {message}"):
            rule(good)
    for damaged in (content[:60], content[:20], b"", b"RIFF" + bytes(50)):
        good.write_bytes(damaged)
        with pytest.raises(UnreadableSample, match=r"a\.wav cannot be read"):
            Recording(8, 8000)(good)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"no file of this kind.*\.wav"):
        audio(tmp_path / "none", length=8, rate=8000)


@pytest.mark.parametrize("wrong", [(0, 8), (8, 0), (8, 8, 0)])
def test_settings_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="=0"):
        Recording(*wrong)
