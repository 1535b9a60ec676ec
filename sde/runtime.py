r"""Where and how precisely to compute: devices, and the precision of float32 matrix products."""

from __future__ import annotations

__all__ = ["choose_device", "exact_float32"]

import contextlib
from collections.abc import Iterator

import torch


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name: `auto` (a GPU where there is one, else the CPU), or torch's names.

    Raises:
        ValueError: if the name is not torch's, or there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not a device: expected auto, cpu, cuda, cuda:0, ...") from error
    available = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if device.type == "mps" and torch.backends.mps.is_available():
        return device
    if (device.index or 0) >= available.get(device.type, 0):
        raise ValueError(
            f"device={name!r} was asked for, but this machine has {available['cuda']} CUDA devices; "
            "use device=auto or device=cpu"
        )
    return device


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """float32 matrix products and convolutions in full precision for a while: TF32, with its 10 bits, is off."""
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv
