r"""Devices, the precision of float32 matrix products, and the memory allocator of the CPU."""

from __future__ import annotations

__all__ = ["choose_device", "exact_float32", "keep_memory", "peak_memory"]

import contextlib
import ctypes
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

if sys.platform != "win32":
    import resource

# Parameters of mallopt(3): nothing has a mapping of its own, and free memory at the end of the heap stays. The first is
# in place of a threshold of size, because that can be 32 MiB at most, and tensors may be larger.
_MMAP_MAX = (-4, 0)
_TRIM_THRESHOLD = (-1, 2**31 - 1)


def choose_device(name: str = "auto") -> torch.device:
    """The device with a name: `auto` (a GPU if there is one, else the CPU), or a name of torch.

    Raises:
        ValueError: if torch does not know the name, or this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not a device: expected auto, cpu, cuda, cuda:0, ...") from error
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= available.get(device.type, 0):
        raise ValueError(
            f"device={name!r} is not available: this machine has {available['cuda']} CUDA devices; "
            "use device=auto or device=cpu"
        )
    return device


# The precision of products, convolutions and recurrences, from the switch of all backends to that of one operation. One
# that is "none" has the value of the switch above it.
_BACKENDS: Any = torch.backends
_SWITCHES = (
    _BACKENDS,
    _BACKENDS.cudnn,
    *(_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn),
    *(_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv, _BACKENDS.mkldnn.rnn),
)
# The older switches: what reads each, what sets it, and the value for full precision.
_OLDER: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (partial(getattr, _BACKENDS.cudnn, "allow_tf32"), partial(setattr, _BACKENDS.cudnn, "allow_tf32"), False),
)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Computes float32 products and convolutions in full precision: turns off TF32, of 10 bits, and bfloat16.

    All of torch's switches are set, the older ones too: torch refuses to read an older one that contradicts its newer
    one. Those that contradict each other before are left for the newer ones to decide.
    """
    older = []
    for read, write, full in _OLDER:
        with contextlib.suppress(RuntimeError):
            older.append((write, full, read()))
    before = [switch.fp32_precision for switch in _SWITCHES]
    try:
        for write, full, _ in older:
            write(full)
        for switch in _SWITCHES:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for write, _, value in older:
            write(value)
        for switch, value in zip(_SWITCHES, before):
            switch.fp32_precision = "none"
            if switch.fp32_precision != value:
                switch.fp32_precision = value


def keep_memory() -> bool:
    """Makes the allocator of this process reuse the memory of freed tensors.

    By default glibc, the C library of Linux, returns the memory of large tensors to the system, and new memory comes
    page by page: at a batch size of 64, one likelihood call of DDPM++ with width 64 took 6.0 seconds by default and 4.3
    with this setting. The setting applies to the whole process, so it is for programs and not for libraries.

    Returns:
        Whether the setting was made; it exists in glibc only.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) == 1 for setting in (_MMAP_MAX, _TRIM_THRESHOLD))


def peak_memory(device: torch.device) -> int:
    """The largest memory that was in use so far, in bytes: of a GPU, that of torch's tensors; of the CPU, that of the
    process, and 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
