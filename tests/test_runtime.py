"""Devices, precision and memory of a program."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys

import pytest
import torch

from sde.runtime import choose_device, exact_float32, keep_memory

GLIBC = platform.libc_ver()[0] == "glibc"

# Rounds of a dozen tensors of 8 MiB, all freed after each round; prints the number of page faults by default and when
# memory is kept.
ROUNDS = """
import resource, torch
from sde.runtime import keep_memory
torch.set_num_threads(1)
for keep in (False, True):
    if keep:
        assert keep_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(6):
        tensors = [torch.ones(2**21) for _ in range(12)]
        del tensors
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_devices_are_chosen_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", "device='gpu'.*cpu"), ("cuda:77", "device='cuda:77'.*device=cpu")]
)
def test_a_missing_device_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_device(name)


def test_exact_float32_turns_tf32_off_and_puts_it_back() -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    try:
        for state in ((True, True), (True, False), (False, False)):
            matmul.allow_tf32, conv.allow_tf32 = state
            with contextlib.suppress(RuntimeError), exact_float32():
                assert (matmul.allow_tf32, conv.allow_tf32) == (False, False)
                raise RuntimeError
            assert (matmul.allow_tf32, conv.allow_tf32) == state
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before


@pytest.mark.skipif(not GLIBC, reason="the setting is one of glibc")
def test_freed_memory_is_reused() -> None:
    result = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True)
    default, kept = map(int, result.stdout.split())
    once = 12 * 2**23 // 4096
    if kept < once:
        pytest.skip("this system allocates more than a page at a time")
    assert kept < 1.5 * once
    assert default > 2.0 * once


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_memory()
