r"""Features of networks: any module, and programs of TorchScript or `torch.export` in files.

**Resizing.** A network for images of one size gets others resized as clean-fid does (Parmar et al. 2022,
https://arxiv.org/abs/2104.11222): by Pillow's bicubic filter, which widens with the reduction and so does not alias,
on floats, without rounding to 8 bits, clipped to the range. Other ways change a Frechet distance more than good models
differ: clean-fid reports 2 on CIFAR-10.
"""

from __future__ import annotations

__all__ = ["ModuleFeatures", "load_program", "resize"]

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...shapes import as_tensor, check_count
from .base import Extracted, Features, digest


def resize(x: Tensor, size: int | Sequence[int]) -> Tensor:
    """Images (B, C, H, W) in [0, 1] at another size, by the antialiased bicubic filter of Pillow."""
    height, width = (size, size) if isinstance(size, int) else size
    if x.ndim != 4:
        raise ValueError(f"resize: expected images (B, C, H, W), got {tuple(x.shape)}; give no size for other items")
    if x.shape[2:] == (height, width):
        return x
    return interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0.0, 1.0)


class ModuleFeatures(Features):
    r"""The features of a module, in evaluation mode.

    The module is given items (B, \*) and answers with features (B, D), with a pair of features and logits (B, C), or
    with :class:`Extracted`.

    Args:
        module: the module. It is moved and cast in place.
        name: the name of the features.
        size: the side, or the height and width, of the images that it takes; items are not resized by default.
        channels: the number of channels that it takes: items of one channel are repeated. By default they stay.
        mean: what is subtracted from items, a number or one for each channel.
        std: what they are divided by after that, likewise.
        block: the number of items of every call.
        dtype: the dtype of the module. In float64, results do not depend on blocks and threads to 1e-12; float32 is
            faster.
        device: the device of the module.
        source: what else the fingerprint depends on, for modules whose weights are not in their state.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        size: int | Sequence[int] | None = None,
        channels: int | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        block: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        source: str = "",
    ) -> None:
        check_count(name, "block", block)
        self._name, self._block, self._device, self._dtype = name, block, torch.device(device), dtype
        self.module = module.to(device, dtype).eval().requires_grad_(False)
        self._size, self._channels = size, channels
        self._mean, self._std = (as_tensor(value, torch.float64).reshape(-1).to(device) for value in (mean, std))
        state = [part for key, value in module.state_dict().items() for part in (key, value)]
        settings = f"{type(module).__qualname__} {size} {channels} {self._mean.tolist()} {self._std.tolist()} {dtype}"
        self._fingerprint = digest(settings, source, *state)

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def block(self) -> int:
        return self._block

    def __call__(self, x: Tensor, /) -> Extracted:
        x = x.to(self._device, self._dtype)
        if self._size is not None:
            x = resize(x, self._size)
        if self._channels is not None and x.shape[1] == 1:
            x = x.expand(-1, self._channels, *x.shape[2:])
        axes = (-1, *[1] * (x.ndim - 2))
        x = (x - self._mean.to(x.dtype).reshape(axes)) / self._std.to(x.dtype).reshape(axes)
        try:
            output = self.module(x)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()
            raise ValueError(
                f"{self.name}: the network does not take items of shape {tuple(x.shape)}: "
                f"{reason[-1] if reason else type(error).__name__}"
            ) from error
        return output if isinstance(output, Extracted) else _extracted(self.name, output)


def _extracted(name: str, output: Any) -> Extracted:
    pair = tuple(output) if isinstance(output, (tuple, list)) else (output,)
    if not 1 <= len(pair) <= 2 or not all(isinstance(part, Tensor) and part.ndim == 2 for part in pair):
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in pair]
        raise ValueError(
            f"{name}: expected the network to give features (B, D), or a pair of features and logits (B, C), got "
            f"{shapes}"
        )
    return Extracted(*pair)


def load_program(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    size: int | Sequence[int] | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    block: int = 64,
    device: torch.device | str = "cpu",
) -> ModuleFeatures:
    """The features of a program in a file: of `torch.jit.save`, or, with the suffix `.pt2`, of `torch.export.save`.

    A program is code: open only a file that you trust. It runs in float32 on its own weights.

    Args:
        path: the file.
        name: the name of the features; that of the file without its suffix by default.
        block: the number of items of every call; that of the example for a program of a fixed batch size.
        size, channels, mean, std, device: as in :class:`ModuleFeatures`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no program at {path}: expected a file of torch.jit.save or torch.export.save (.pt2)")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on its older formats
            if path.suffix == ".pt2":
                function: Callable[[Tensor], Any] = torch.export.load(path).module()
                function = function.to(device) if isinstance(function, nn.Module) else function
            else:
                function = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # the loaders raise exceptions of any type on other files
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{path} is not a program of torch.jit.save, or of torch.export.save for the suffix .pt2: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error
    return ModuleFeatures(
        _Program(function),
        name=path.stem if name is None else name,
        size=size,
        channels=channels,
        mean=mean,
        std=std,
        block=block,
        device=device,
        source=content,
    )


class _Program(nn.Module):
    """A loaded program, which cannot be cast or put into evaluation mode by its user."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.functions = (function,)  # a tuple, because a module would become a part of this one

    def forward(self, x: Tensor) -> Any:
        return self.functions[0](x)
