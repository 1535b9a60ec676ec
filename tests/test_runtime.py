"""Devices, precision and memory of a program."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from operator import attrgetter

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
        tensors = [torch.ones(2**k) for k in (21, 21, 21, 21, 24)]  # 8 and 64 MiB
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


# Every way to say which float32 products and convolutions may be rounded to TF32 or bfloat16, older ones first.
SWITCHES = {
    "older matmul": [("cuda.matmul.allow_tf32", True)],
    "older, all": [("cuda.matmul.allow_tf32", True), ("cudnn.allow_tf32", True)],
    "older, none": [("cuda.matmul.allow_tf32", False), ("cudnn.allow_tf32", False)],
    "matmul": [("cuda.matmul.fp32_precision", "tf32")],
    "conv": [("cudnn.conv.fp32_precision", "ieee")],
    "rnn": [("cudnn.rnn.fp32_precision", "ieee")],
    "cuda": [("cudnn.fp32_precision", "tf32")],
    "cpu": [("mkldnn.matmul.fp32_precision", "bf16"), ("mkldnn.conv.fp32_precision", "bf16")],
    "all": [("fp32_precision", "tf32")],
    "all but one": [("fp32_precision", "tf32"), ("cudnn.conv.fp32_precision", "ieee")],
    "full precision": [("fp32_precision", "ieee")],
    "both": [("cuda.matmul.allow_tf32", True), ("cudnn.conv.fp32_precision", "ieee")],
}
NEWER = ["fp32_precision", "cudnn.fp32_precision", "cuda.matmul.fp32_precision"]
NEWER += [f"cudnn.{name}.fp32_precision" for name in ("conv", "rnn")]
NEWER += [f"mkldnn.{name}.fp32_precision" for name in ("matmul", "conv", "rnn")]
OLDER = ["cuda.matmul.allow_tf32", "cudnn.allow_tf32"]


def setting(name: str) -> object:
    """The value of a switch, or the name of the error: torch refuses an older one that contradicts a newer one."""
    try:
        return attrgetter(name)(torch.backends)
    except RuntimeError:
        return "RuntimeError"


def assign(name: str, value: object) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(attrgetter(owner)(torch.backends) if owner else torch.backends, attribute, value)


@pytest.fixture
def switches() -> Iterator[None]:
    """Puts all switches back to torch's defaults."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for name in NEWER:
        if not name.startswith("cudnn."):
            assign(name, "none")


@pytest.mark.parametrize("case", SWITCHES)
@pytest.mark.usefixtures("switches")
def test_exact_float32_turns_reduced_precision_off_and_puts_it_back(case: str) -> None:
    for name, value in SWITCHES[case]:
        assign(name, value)
    before = {name: setting(name) for name in (*NEWER, *OLDER)}
    with contextlib.suppress(KeyError), exact_float32():
        assert {setting(name) for name in NEWER} == {"ieee"}
        # What could be read can be read; what could not be may contradict the newer one as before.
        assert all(setting(name) is False for name in OLDER if before[name] != "RuntimeError")
        with exact_float32():
            pass
        assert {setting(name) for name in NEWER} == {"ieee"}
        raise KeyError
    assert {name: setting(name) for name in (*NEWER, *OLDER)} == before


@pytest.mark.usefixtures("switches")
def test_operations_follow_the_switch_of_all_backends_as_before() -> None:
    torch.backends.fp32_precision = "tf32"
    with exact_float32():
        pass
    torch.backends.fp32_precision = "ieee"
    assert {setting(name) for name in NEWER} == {"ieee"}


@pytest.mark.skipif(not GLIBC, reason="the setting is one of glibc")
def test_freed_memory_is_reused() -> None:
    result = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True)
    default, kept = map(int, result.stdout.split())
    once = (4 * 2**23 + 2**26) // 4096
    if kept < once:
        pytest.skip("this system allocates more than a page at a time")
    assert kept < 1.5 * once
    assert default > 2.0 * once


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_memory()
