r"""PSNR, SSIM and MS-SSIM of items and their references: images, signals, volumes.

All are computed for each item, and the estimate is the mean over items with its standard error. The range L of the
values is given (255 for 8-bit images): the largest minus the smallest value that happens to occur would make a result
depend on the batch.

**PSNR** is :math:`10 \log_{10} (L^2 / \mathrm{MSE})`; the mean is that of the decibels, not of the errors.

**SSIM** (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861) is the mean over channels and positions of

.. math::
    \frac{2 \mu_x \mu_y + c_1}{\mu_x^2 + \mu_y^2 + c_1} \cdot \frac{2 \sigma_{xy} + c_2}{\sigma_x^2 + \sigma_y^2 + c_2},
    \qquad c_1 = (0.01 L)^2, \quad c_2 = (0.03 L)^2,

with local moments weighted by a Gaussian of standard deviation 1.5 that is 11 wide, population covariances, and only
positions where the window lies inside. scikit-image gives the same with ``gaussian_weights=True, sigma=1.5,
use_sample_covariance=False``, which are not its defaults. torchmetrics averages over positions beyond, where it
reflects the border.

**MS-SSIM** (Wang et al. 2003, https://doi.org/10.1109/ACSSC.2003.1292216) multiplies the second factor (contrast and
structure) of five scales and the whole of the last, to the powers of the paper. Between scales come means over 2 wide
blocks; an odd side gets a zero at both ends, as in pytorch-msssim. Factors below 0 count as 0.
"""

from __future__ import annotations

__all__ = ["fitting_window", "ms_ssim", "psnr", "ssim"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, avg_pool2d, avg_pool3d

from ..shapes import check_count
from .estimate import Estimate, mean_estimate
from .sets import check_paired

_POOL = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}
_RANKS = (3, 4, 5)
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr(x: Tensor, reference: Tensor, *, data_range: float) -> Estimate:
    r"""The peak signal-to-noise ratio in decibels, the mean over items.

    Args:
        x: items with shape (B, \*).
        reference: their references, with the same shape.
        data_range: the range L of the values.
    """
    _check_range("psnr", data_range)
    check_paired("psnr", x, reference, tuple(range(2, 7)))
    errors = torch.stack([(a.double() - b.double()).square().mean() for a, b in zip(x, reference)])
    values = 10.0 * (data_range**2 / errors).log10()
    equal = int(errors.eq(0).sum())
    note = f"{equal} items equal their references: their PSNR, and the mean, are infinite" if equal else ""
    if equal:
        return Estimate(math.inf, math.inf, math.inf, note=note, per_item=values)
    return mean_estimate(values)


def ssim(x: Tensor, reference: Tensor, *, data_range: float, window: int = 11, sigma: float = 1.5) -> Estimate:
    r"""The structural similarity, the mean over items.

    Args:
        x: items with shape (B, C, L), (B, C, H, W) or (B, C, D, H, W); every side at least as long as the window.
        reference: their references, with the same shape.
        data_range: the range L of the values.
        window: the width of the window.
        sigma: the standard deviation of its Gaussian.
    """
    _check_range("ssim", data_range)
    kernel = _check_window("ssim", x, reference, window, sigma, 1)
    values = [_factors(x[i].double(), reference[i].double(), data_range, kernel)[0].mean() for i in range(len(x))]
    return mean_estimate(torch.stack(values))


def fitting_window(x: Tensor) -> int:
    """The width of the window of SSIM for items (B, C, *): 11, or the largest odd one within a smaller side."""
    side = min((11, *x.shape[2:]))
    return side - 1 + side % 2


def ms_ssim(
    x: Tensor,
    reference: Tensor,
    *,
    data_range: float,
    window: int = 11,
    sigma: float = 1.5,
    weights: Sequence[float] = _SCALES,
) -> Estimate:
    """The multi-scale structural similarity, the mean over items.

    Args:
        weights: the powers of the scales. Sides must be longer than (window - 1) 2^(scales - 1), 160 by default;
            smaller items need fewer scales or a smaller window. The other arguments are those of :func:`ssim`.
    """
    _check_range("ms_ssim", data_range)
    kernel = _check_window("ms_ssim", x, reference, window, sigma, len(weights))
    values = [_multi_scale(x[i].double(), reference[i].double(), data_range, kernel, weights) for i in range(len(x))]
    return mean_estimate(torch.stack(values))


def _multi_scale(x: Tensor, y: Tensor, data_range: float, kernel: Tensor, weights: Sequence[float]) -> Tensor:
    """MS-SSIM of one item (C, *)."""
    product = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(weights):
        if scale:
            padding = [side % 2 for side in x.shape[1:]]
            x, y = (_POOL[x.ndim - 1](item, 2, padding=padding) for item in (x, y))
        whole, contrast = _factors(x, y, data_range, kernel)
        product = product * (whole if scale == len(weights) - 1 else contrast).clamp(min=0.0) ** weight
    return product.mean()


def _factors(x: Tensor, y: Tensor, data_range: float, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The means over positions of the SSIM and of its second factor, for each channel of one item (C, *)."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y, xx, yy, xy = (_filter(field, kernel) for field in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    contrast = (2 * cov + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * contrast).flatten(1).mean(1), contrast.flatten(1).mean(1)


def _filter(x: Tensor, kernel: Tensor) -> Tensor:
    """The weighted means over windows that lie inside, along every dimension but the first."""
    for dim in range(1, x.ndim):
        length = x.shape[dim] - len(kernel) + 1
        x = torch.stack([weight * x.narrow(dim, k, length) for k, weight in enumerate(kernel.tolist())]).sum(0)
    return x


def _check_range(owner: str, data_range: float) -> None:
    if not 0 < data_range < math.inf:
        raise ValueError(f"{owner}: expected a data_range > 0, 255 for 8-bit images, got {data_range}")


def _check_window(owner: str, x: Tensor, reference: Tensor, window: int, sigma: float, scales: int) -> Tensor:
    """Refuses items smaller than the window at the last scale; returns the weights of the window."""
    check_count(owner, "window", window)
    check_count(owner, "number of weights", scales)
    check_paired(owner, x, reference, _RANKS)
    least = (window - 1) * 2 ** (scales - 1) + 1
    if min(x.shape[2:]) < least:
        raise ValueError(
            f"{owner}: expected sides of at least {least} for a window of {window} and {scales} scales, got "
            f"{tuple(x.shape[2:])}; take a smaller window or fewer scales"
        )
    offsets = torch.arange(window, dtype=torch.float64, device=x.device) - (window - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    return weights / weights.sum()
