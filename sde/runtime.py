r"""Where and how to compute: devices, the precision of float32 matrix products, and the memory of the CPU."""

from __future__ import annotations

__all__ = ["choose_device", "exact_float32", "keep_memory"]

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

# Parameters of mallopt(3): the largest that the first may be, and all that an int holds.
_MMAP_THRESHOLD = (-3, 32 * 2**20)
_TRIM_THRESHOLD = (-1, 2**31 - 1)


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


def keep_memory() -> bool:
    """Lets this process keep the memory that it frees, for its next tensors.

    The C library of Linux, glibc, gives the memory of large tensors back to the system, which then hands out the
    next ones page by page: at a batch of 64, a call of a likelihood of DDPM++ of width 64 took 6.0 seconds with that
    and 4.3 without. This is a setting of the whole process, for programs to choose and not for libraries.

    Returns:
        Whether there is such a setting; other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) == 1 for setting in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
