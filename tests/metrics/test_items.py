"""Measures of items and their references against scikit-image, pytorch-msssim, IPOL and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.sets import normals
from torch import Tensor

from sde import metrics
from sde.metrics import Resolution


def images(*shape: int, noise: float = 20.0) -> tuple[Tensor, Tensor]:
    """Smooth images in [0, 255], and the same with noise."""
    fields = torch.cumsum(normals(*shape), -1)
    for dim in range(2, len(shape)):
        fields = torch.cumsum(fields, dim)
    low, high = fields.flatten(1).min(1).values, fields.flatten(1).max(1).values
    shaped = (-1, *(1,) * (len(shape) - 1))
    clean = 255 * (fields - low.reshape(shaped)) / (high - low).reshape(shaped)
    return (clean + noise * normals(*shape, seed=1)).clamp(0, 255), clean


@pytest.mark.parametrize("shape", [(3, 1, 31, 24), (2, 3, 29, 33), (2, 1, 40), (2, 1, 13, 12, 15)])
def test_ssim_and_psnr_are_those_of_scikit_image(shape: tuple[int, ...]) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    x, y = images(*shape)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    pairs = [(a.numpy(), b.numpy()) for a, b in zip(x, y)]
    theirs = [structural_similarity(a, b, data_range=255, **settings) for a, b in pairs]
    ours = metrics.ssim(x, y, data_range=255)
    assert ours.per_item.tolist() == pytest.approx(theirs, abs=1e-6)
    assert ours.value == pytest.approx(np.mean(theirs), abs=1e-6)
    decibels = metrics.psnr(x, y, data_range=255)
    assert decibels.per_item.tolist() == pytest.approx(
        [peak_signal_noise_ratio(b, a, data_range=255) for a, b in pairs]
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_ms_ssim_and_ssim_are_those_of_pytorch_msssim(channels: int) -> None:
    from pytorch_msssim import ms_ssim, ssim

    def window(size: int) -> Tensor:
        """Theirs in float64; in float32 it moves the covariances of smooth images, and MS-SSIM by 1e-5."""
        weights = torch.exp(-((torch.arange(size) - size // 2).double() ** 2) / 4.5)
        return (weights / weights.sum()).repeat(channels, 1, 1, 1)

    x, y = images(2, channels, 163, 181)
    theirs = ms_ssim(x, y, data_range=255, size_average=False, win=window(11))
    assert metrics.ms_ssim(x, y, data_range=255).per_item.tolist() == pytest.approx(theirs.tolist(), abs=1e-6)
    theirs = ssim(x, y, data_range=255, size_average=False, win=window(11))
    assert metrics.ssim(x, y, data_range=255).per_item.tolist() == pytest.approx(theirs.tolist(), abs=1e-6)
    # Smaller items with a smaller window; and contrast terms below 0, which count as 0.
    small, weights = x[:, :, :103, :97], [0.4, 0.3, 0.3]
    theirs = ms_ssim(small, y[:, :, :103, :97], data_range=255, size_average=False, win=window(7), weights=weights)
    ours = metrics.ms_ssim(small, y[:, :, :103, :97], data_range=255, window=7, weights=weights)
    assert ours.per_item.tolist() == pytest.approx(theirs.tolist(), abs=1e-6)
    rough = 127 + 60 * normals(1, channels, 40, 40)
    assert metrics.ms_ssim(rough, 255 - rough, data_range=255, window=7, weights=weights).value == 0.0


def test_ssim_is_that_of_ipol() -> None:
    """The value of the IPOL article's program (https://www.ipol.im/pub/art/2011/g_lmii/) that the tests of scikit-image
    cite, with their noise."""
    from skimage import data

    camera = data.camera()
    noisy = np.clip(camera + 20.0 * np.random.RandomState(5).randn(*camera.shape), 0, 255).astype(np.uint8)
    found = metrics.ssim(*(torch.from_numpy(image)[None, None] for image in (camera, noisy)), data_range=255)
    assert found.value == pytest.approx(0.357959091663361, abs=1e-3)


def test_psnr_of_a_batch_is_the_mean_over_its_items() -> None:
    """Not of the mean error: one close item of four would then not count."""
    y = torch.zeros(4, 3, 5, 5)
    x = y + torch.tensor([10.0, 20.0, 40.0, 0.01]).reshape(4, 1, 1, 1)
    decibels = [20 * math.log10(255 / error) for error in (10, 20, 40, 0.01)]
    found = metrics.psnr(x, y, data_range=255)
    assert found.per_item.tolist() == pytest.approx(decibels)
    assert found.value == pytest.approx(np.mean(decibels))
    assert found.standard_error == pytest.approx(np.std(decibels, ddof=1) / 2)
    # Unsigned integers do not wrap around, and equal items are said.
    whole = metrics.psnr(torch.tensor([[3], [0]]).byte(), torch.tensor([[3], [255]]).byte(), data_range=255)
    assert whole.per_item.tolist() == [math.inf, 0.0]
    assert "1 items equal" in whole.note


def test_an_item_is_like_itself_and_does_not_know_its_batch() -> None:
    x, y = images(3, 1, 20, 21)
    for measure in (
        metrics.ssim,
        lambda x, y, data_range: metrics.ms_ssim(x, y, data_range=data_range, weights=[0.5, 0.5], window=5),
    ):
        assert measure(y, y, data_range=255).value == pytest.approx(1.0)
        one = measure(x[1:2], y[1:2], data_range=255)
        assert one.per_item[0] == measure(x, y, data_range=255).per_item[1]
        assert one.standard_error == math.inf


def test_what_has_no_ssim_is_refused() -> None:
    x, y = images(2, 1, 20, 10)
    with pytest.raises(ValueError, match=r"at least 11.*\(20, 10\)"):
        metrics.ssim(x, y, data_range=255)
    with pytest.raises(ValueError, match=r"at least 161"):
        metrics.ms_ssim(x, y, data_range=255)
    with pytest.raises(ValueError, match="data_range"):
        metrics.psnr(x, y, data_range=0)
    with pytest.raises(ValueError, match=r"\(2, 1, 20, 10\).*\(2, 1, 20, 9\)"):
        metrics.psnr(x, y[..., 1:], data_range=255)
    x[1, 0, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="item 1"):
        metrics.psnr(x, y, data_range=255)


# ---- features


def test_the_perceptual_distance_by_hand() -> None:
    """Feature vectors (3, 4) and (1, 0) at half of the positions: |(0.6, 0.8) - (1, 0)|^2 = 0.8, or 0.16 + 2 * 0.64."""
    maps = torch.tensor([[3.0, 4.0], [1.0, 0.0]])

    def network(x: Tensor) -> list[Tensor]:
        return [torch.stack([maps[i.long()].T.reshape(2, 1, 4) for i in x.flatten(1)]), x.flatten(1) + 1]

    x, y = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 3), torch.ones(3, 4)
    y[2] = x[2]
    layers = lambda x: network(x)[:1]  # noqa: E731
    found = metrics.perceptual_distance(x, y, layers, batch_size=2)
    assert found.per_item.tolist() == pytest.approx([0.4, 0.4, 0.0])
    weighted = metrics.perceptual_distance(x, y, layers, weights=[torch.tensor([1.0, 2.0])])
    assert weighted.per_item[0] == pytest.approx((0.16 + 2 * 0.64) / 2)
    # Layers add up, one without positions among them.
    both = metrics.perceptual_distance(x, y, network)
    assert both.per_item[0] == pytest.approx(0.4 + 2 - 2 * (6 * 2 / (math.sqrt(10) * 4)))
    with pytest.raises(ValueError, match=r"\[2\].*\[3\]"):
        metrics.perceptual_distance(x, y, layers, weights=[torch.ones(3)])


# ---- spectra


def test_spectral_distances_of_a_change_of_level() -> None:
    """Ten times the amplitude is 20 dB and log 10 louder, at every frequency above the floor, and 9 times the norm."""
    signals = 0.05 * normals(3, 2, 4000)
    level = metrics.log_spectral_distance(10 * signals, signals, resolution=Resolution(512, 128))
    assert level.per_item.tolist() == pytest.approx([20.0] * 3, abs=0.01)
    found = metrics.multi_resolution_stft_distance(10 * signals, signals, floor=1e-9)
    assert found.value == pytest.approx(9 + math.log(10))
    assert metrics.multi_resolution_stft_distance(signals, signals).value == 0.0
    # A tone against silence: magnitudes below the floor count as the floor.
    tone = torch.full((2, 4000), 0.1)
    found = [
        metrics.log_spectral_distance(tone, 0 * tone, resolution=Resolution(64, 16), floor=f) for f in (1e-3, 1e-5)
    ]
    # Of 33 frequencies the first two carry the tone, 3.2 and 1.6 high; the others are at the floor on both sides.
    for floor, estimate in zip((1e-3, 1e-5), found):
        levels = [20 * math.log10(magnitude / floor) for magnitude in (3.2, 1.6)]
        assert estimate.value == pytest.approx(math.sqrt((levels[0] ** 2 + levels[1] ** 2) / 33), rel=1e-6)


def test_the_log_spectral_distance_by_definition() -> None:
    x, y = normals(1, 700), normals(1, 700, seed=1)
    window = np.hanning(65)[:-1]
    spectra = []
    for signal in (x, y):
        padded = np.pad(signal[0].numpy(), 32, mode="reflect")
        frames = np.stack([padded[k : k + 64] * window for k in range(0, len(padded) - 63, 16)])
        spectra.append(20 * np.log10(np.abs(np.fft.rfft(frames, axis=1))))
    expected = np.sqrt(((spectra[0] - spectra[1]) ** 2).mean(1)).mean()
    assert metrics.log_spectral_distance(x, y, resolution=Resolution(64, 16)).value == pytest.approx(expected)


def test_signals_that_are_too_short_are_refused() -> None:
    x = normals(2, 900)
    with pytest.raises(ValueError, match=r"1024.*900"):
        metrics.multi_resolution_stft_distance(x, x)
    with pytest.raises(ValueError, match="floor"):
        metrics.log_spectral_distance(x, x, resolution=Resolution(64, 16), floor=0.0)
    with pytest.raises(ValueError, match="window"):
        Resolution(64, 16, 65)
