r"""Distances between the spectra of signals and their references.

With the magnitudes :math:`X_{tf}` of the short-time Fourier transform:

- **log-spectral distance**, in decibels (Gray and Markel 1976, https://doi.org/10.1109/TASSP.1976.1162849):

  .. math:: \operatorname*{mean}_t \sqrt{\operatorname*{mean}_f \big(20 \log_{10} X_{tf} - 20 \log_{10} Y_{tf}\big)^2}

- **multi-resolution distance** (Yamamoto et al. 2020, https://arxiv.org/abs/1910.11480): the mean over three
  resolutions of the spectral convergence and the log-magnitude distance,

  .. math:: \frac{|Y - X|_F}{|Y|_F} + \operatorname*{mean}_{t,f} |\log Y_{tf} - \log X_{tf}| .

Both ignore phase. Magnitudes below `floor`, of full scale 1, count as the floor: silence would be infinitely far from
sound, and the floor decides how far it is, so compare at one floor. A distribution of sounds is compared by
:func:`sde.metrics.frechet_distance` on audio features.
"""

from __future__ import annotations

__all__ = ["Resolution", "log_spectral_distance", "multi_resolution_stft_distance"]

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..shapes import check_count
from .estimate import Estimate, mean_estimate
from .sets import check_paired


@dataclass(frozen=True)
class Resolution:
    """A short-time Fourier transform with a Hann window.

    Args:
        size: the number of samples that are transformed.
        hop: the number of samples between frames.
        window: the width of the window; `size` by default.
    """

    size: int = 2048
    hop: int = 512
    window: int | None = None

    def __post_init__(self) -> None:
        for name in ("size", "hop"):
            check_count("Resolution", name, getattr(self, name))
        if self.window is not None and not 0 < self.window <= self.size:
            raise ValueError(f"Resolution: expected a window of at most size={self.size}, got {self.window}")

    def magnitudes(self, x: Tensor) -> Tensor:
        """The magnitudes of signals (n, L), float64 with shape (n, size / 2 + 1, frames); borders are reflected."""
        width = self.window or self.size
        window = torch.hann_window(width, dtype=torch.float64, device=x.device)
        spectrum = torch.stft(x, self.size, self.hop, width, window, return_complex=True)
        return spectrum.abs()


_RESOLUTIONS = (Resolution(1024, 120, 600), Resolution(2048, 240, 1200), Resolution(512, 50, 240))


def log_spectral_distance(
    x: Tensor, reference: Tensor, *, resolution: Resolution | None = None, floor: float = 1e-5
) -> Estimate:
    r"""The log-spectral distance in decibels, the mean over items.

    Args:
        x: signals with shape (B, \*, L), of full scale 1; channels are averaged.
        reference: their references, with the same shape.
        resolution: the transform; `Resolution(2048, 512)` by default.
        floor: the smallest magnitude.
    """
    resolution = resolution or Resolution()
    values = []
    for a, b in _pairs("log_spectral_distance", x, reference, [resolution], floor):
        levels = [20.0 * resolution.magnitudes(side).clamp(min=floor).log10() for side in (a, b)]
        values.append((levels[0] - levels[1]).square().mean(1).sqrt().mean())
    return mean_estimate(torch.stack(values))


def multi_resolution_stft_distance(
    x: Tensor, reference: Tensor, *, resolutions: Sequence[Resolution] = _RESOLUTIONS, floor: float = 1e-5
) -> Estimate:
    r"""The multi-resolution distance of magnitudes, the mean over items.

    Args:
        x: signals with shape (B, \*, L), of full scale 1; channels are averaged.
        reference: their references, with the same shape; the spectral convergence is relative to them.
        resolutions: the transforms; those of the paper by default.
        floor: the smallest magnitude.
    """
    owner, values = "multi_resolution_stft_distance", []
    for a, b in _pairs(owner, x, reference, resolutions, floor):
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for resolution in resolutions:
            left, right = (resolution.magnitudes(side).clamp(min=floor) for side in (a, b))
            convergence = (right - left).flatten(1).norm(dim=1) / right.flatten(1).norm(dim=1)
            total += convergence.mean() + (right.log() - left.log()).abs().mean()
        values.append(total / len(resolutions))
    return mean_estimate(torch.stack(values))


def _pairs(
    owner: str, x: Tensor, reference: Tensor, resolutions: Sequence[Resolution], floor: float
) -> list[tuple[Tensor, Tensor]]:
    """The signals of each item and its reference as float64 (channels, L), checked."""
    check_paired(owner, x, reference, (2, 3, 4))
    check_count(owner, "number of resolutions", len(resolutions))
    longest = max(resolution.size for resolution in resolutions)
    if x.shape[-1] <= longest // 2 or not floor > 0:
        raise ValueError(
            f"{owner}: expected signals longer than half the transform, {longest // 2}, and a floor > 0, got length "
            f"{x.shape[-1]} and floor={floor}; take smaller resolutions"
        )
    return [(a.double().reshape(-1, x.shape[-1]), b.double().reshape(-1, x.shape[-1])) for a, b in zip(x, reference)]
