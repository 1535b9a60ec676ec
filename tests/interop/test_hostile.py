"""Files made to do harm: every one is refused with its name and the reason, cheaply, and nothing in it is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from sde.interop import read

ROOT = Path(__file__).resolve().parents[2]
MAKERS: dict[str, tuple[Callable[[Path], None], str]] = {}


def hostile(name: str, reason: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Notes how the file of that name is made, and words of the refusal."""

    def note(make: Callable[[Path], None]) -> Callable[[Path], None]:
        MAKERS[name] = (make, reason)
        return make

    return note


class Command:
    """Pickles as the call of a command that makes the canary."""

    def __init__(self, canary: Path, function: Callable[..., Any] = os.system) -> None:
        self.canary, self.function = canary, function

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.function, (f"touch {self.canary}" if self.function is os.system else str(self.canary),)


def canary(path: Path) -> Path:
    return path.parent / "canary"


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def members_of(tree: Any) -> dict[str, bytes]:
    """What torch.save makes of a tree, member by member, in the folder `archive`."""
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def altered(path: Path, tree: Any, old: bytes, new: bytes) -> None:
    """A file of torch.save with other bytes in its pickle."""
    members = members_of(tree)
    assert members["archive/data.pkl"].count(old) == 1
    zipped(path, {**members, "archive/data.pkl": members["archive/data.pkl"].replace(old, new)})


FOUR = {"w": torch.arange(4.0)}


@hostile("command.pth", r"names '(posix|nt)\.system'")
def command(path: Path) -> None:
    torch.save({"model": Command(canary(path)), "optimizer": {}, "ema": {}, "step": 0}, path)


@hostile("nested.pth", r"names '(posix|nt)\.system'")
def nested(path: Path) -> None:
    """The call is an argument of calls that are allowed."""
    inner: Any = OrderedDict(w=OrderedDict(v=[(Command(canary(path)),)]))
    torch.save({"optimizer": inner}, path)


@hostile("evaluates.pth", "names '(__builtin__|builtins)\\.(eval|exec)'")
def evaluates(path: Path) -> None:
    torch.save([Command(canary(path), eval)], path)


@hostile("legacy_command.pth", r"names '(posix|nt)\.system'")
def legacy_command(path: Path) -> None:
    torch.save([torch.zeros(2), Command(canary(path))], path, _use_new_zipfile_serialization=False)


@hostile("edm.pkl", r"Python pickle.*torch\.save\(net\.state_dict\(\).*init_kwargs.*(posix|nt)\.system")
def edm(path: Path) -> None:
    path.write_bytes(pickle.dumps({"ema": Command(canary(path))}))


@hostile("magic_method.pth", "byte order '>'")
def magic_method(path: Path) -> None:
    """A NumPy number whose type is given a state of its own."""
    altered(path, {"lr": np.float64(1.0)}, b"<", b">")


@hostile("whole_network.pth", r"names 'torch\.nn\.modules\.linear\.Linear'")
def whole_network(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


@hostile("program.pt", "TorchScript")
def program(path: Path) -> None:
    zipped(path, {"archive/data.pkl": b"\x80\x02}.", "archive/constants.pkl": b"", "archive/code/a.py": b"import os"})


@hostile("bomb.pth", "claim more than the")
def bomb(path: Path) -> None:
    """32 MiB of zeros in 32 kB."""
    zipped(path, {"archive/data.pkl": b"\x80\x02}.", "archive/data/0": bytes(2**25)}, zipfile.ZIP_DEFLATED)


@hostile("compressed.pth", "'archive/data/0' is compressed")
def compressed(path: Path) -> None:
    """Too small to claim more than the file has."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(100), zipfile.ZIP_DEFLATED)


@hostile("overlap.pth", "claim more than")
def overlap(path: Path) -> None:
    """Many entries of the directory that are the same bytes of the file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(2**20))
        archive.filelist.extend([archive.filelist[1]] * 5000)
    path.write_bytes(buffer.getvalue())


@hostile("two_names.pth", "overlaps another")
def two_names(path: Path) -> None:
    """Two small members, the second inside the first."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(1000))
        archive.filelist[1].header_offset = archive.filelist[0].header_offset
        archive.filelist[1].file_size = archive.filelist[1].compress_size = 4
    path.write_bytes(inner.getvalue())


@hostile("directory.pth", "directory claims 2147483647 bytes")
def directory(path: Path) -> None:
    """An archive whose directory claims 2 GB, in a file that has them (as a hole)."""
    with open(path, "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**31 + 4)
        file.seek(0, io.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**31 - 1, 4, 0))


@hostile("large_pickle.pth", "data.pkl, or with too large a one")
def large_pickle(path: Path) -> None:
    """A string of 64 MiB, read and copied before it is seen to be one."""
    zipped(path, {"archive/data.pkl": b"\x80\x02X" + struct.pack("<I", 2**26) + bytes(2**26) + b"."})


@hostile("parent.pth", "outside of the archive")
def parent(path: Path) -> None:
    zipped(path, {"archive/data.pkl": b"\x80\x02}.", "archive/../../canary": b"x"})


@hostile("absolute.pth", "outside of the archive")
def absolute(path: Path) -> None:
    zipped(path, {"archive/data.pkl": b"\x80\x02}.", "/tmp/canary": b"x"})


@hostile("truncated.pth", "not a zip file")
def truncated(path: Path) -> None:
    torch.save(FOUR, path)
    path.write_bytes(path.read_bytes()[:-200])


@hostile("flipped.pth", "truncated or altered")
def flipped(path: Path) -> None:
    torch.save(FOUR, path)
    path.write_bytes(path.read_bytes().replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3", 1))


@hostile("empty.pth", "is empty")
def empty(path: Path) -> None:
    path.touch()


@hostile("magic.pth", "begins with b'GIF89a")
def magic(path: Path) -> None:
    path.write_bytes(b"GIF89a" + bytes(100))


@hostile("short_storage.pth", "claims 1048576 elements")
def short_storage(path: Path) -> None:
    """A storage that is said to be longer than the member which holds it."""
    altered(path, FOUR, b"K\x04tq", b"J\x00\x00\x10\x00tq")


@hostile("long_tensor.pth", r"tensor of size \(1048576,\).* of a storage with 4 elements")
def long_tensor(path: Path) -> None:
    altered(path, FOUR, b"K\x04\x85", b"J\x00\x00\x10\x00\x85")


@hostile("strided_tensor.pth", r"stride \(200,\).* of a storage with 4 elements")
def strided_tensor(path: Path) -> None:
    altered(path, FOUR, b"K\x01\x85", b"K\xc8\x85")


@hostile("expanded.pth", "of a storage with 1 elements")
def expanded(path: Path) -> None:
    """One element that claims to be 10^12 by a stride of 0."""
    torch.save({"w": torch.zeros(1).expand(10**12)}, path)


@hostile("negative.pth", "claims a tensor of offset -1")
def negative(path: Path) -> None:
    altered(path, FOUR, b"QK\x00K\x04\x85", b"QJ\xff\xff\xff\xffK\x04\x85")


@hostile("legacy_short.pth", "claims 10000 elements for storage")
def legacy_short(path: Path) -> None:
    torch.save({"w": torch.zeros(10000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])


@hostile("legacy_claim.pth", "claims 1000000000000 elements for storage")
def legacy_claim(path: Path) -> None:
    torch.save({"w": torch.zeros(77)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x4d", b"\x8a\x06" + (10**12).to_bytes(6, "little")))


@hostile("memo.pth", "memo.pth .*nothing")
def memo(path: Path) -> None:
    """An entry of the memo at a number for which an array would take 32 GB."""
    zipped(path, {"archive/data.pkl": b"\x80\x02}r\xff\xff\xff\x7f."})


@hostile("long_string.pth", "expected 1099511627776 bytes")
def long_string(path: Path) -> None:
    zipped(path, {"archive/data.pkl": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"abc."})


@hostile("deep_key.pth", "dictionary with a key of type 'tuple'")
def deep_key(path: Path) -> None:
    """A key of nested tuples, so deep that hashing it would overrun the stack."""
    zipped(path, {"archive/data.pkl": b"\x80\x02}" + DEEP + b"K\x01s."})


@hostile("doubling_key.pth", "dictionary with a key of type 'tuple'")
def doubling_key(path: Path) -> None:
    """A key of 2^100 leaves in 100 tuples of twice the one before."""
    zipped(path, {"archive/data.pkl": b"\x80\x02}" + DOUBLED + b"K\x01s."})


# 2^100 leaves in 100 tuples of twice the one before, and 150 000 levels of tuples.
DOUBLED = b")" + b"".join(b"q" + bytes([100 + i]) + b"h" + bytes([100 + i]) + b"\x86" for i in range(100))
DEEP = b")" + b"\x85" * 150_000


@hostile("doubling_size.pth", "claims a tensor of offset 0, size \\(tuple\\)")
def doubling_size(path: Path) -> None:
    """Writing it into a message would never end."""
    altered(path, FOUR, b"K\x04\x85", DOUBLED + b"\x85")


@hostile("doubling_storage.pth", "claims a storage tuple")
def doubling_storage(path: Path) -> None:
    altered(path, FOUR, b"X\x01\x00\x00\x000", DOUBLED)


@hostile("doubling_legacy.pth", "claims a storage tuple")
def doubling_legacy(path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    first = whole.index(b"X", whole.index(b"FloatStorage"))
    length = int.from_bytes(whole[first + 1 : first + 5], "little")
    path.write_bytes(whole[:first] + DOUBLED + whole[first + 5 + length :])


@hostile("doubling_dtype.pth", "NumPy value of type tuple")
def doubling_dtype(path: Path) -> None:
    altered(path, {"lr": np.float64(1.0)}, b"X\x02\x00\x00\x00f8", DOUBLED)


@hostile("deep_names.pth", "deep_names.pth has no known format")
def deep_names(path: Path) -> None:
    """Names with a hundred thousand parts, and with a few million together."""
    tensor = torch.zeros(1)
    torch.save({"a." * 100_000: tensor} | {f"{k}" + ".a" * 100: tensor for k in range(20_000)}, path)


@hostile("many.pth", "more than 524288 instructions")
def many(path: Path) -> None:
    """Half a million empty dictionaries, a byte each."""
    zipped(path, {"archive/data.pkl": b"\x80\x02(" + b"}" * 550_000 + b"l."})


def safetensors(path: Path, header: dict[str, Any], data: bytes = b"", length: int | None = None) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@hostile("claim.safetensors", "not fully covered")
def claim(path: Path) -> None:
    safetensors(path, {"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, bytes(16))


@hostile("shape.safetensors", "invalid shape")
def shape(path: Path) -> None:
    safetensors(path, {"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 16]}}, bytes(16))


@hostile("product.safetensors", "overflow|invalid")
def product(path: Path) -> None:
    """2^64 elements, which are 0 in 64 bits."""
    safetensors(path, {"w": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}})


@hostile("offsets.safetensors", "invalid offset")
def offsets(path: Path) -> None:
    """Two tensors on the same bytes."""
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    safetensors(path, {"v": one, "w": one}, bytes(16))


@hostile("dtype.safetensors", "F31")
def dtype(path: Path) -> None:
    safetensors(path, {"w": {"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}}, bytes(16))


@hostile("header.safetensors", "begins with")
def header(path: Path) -> None:
    """A header that is said to be longer than the file."""
    safetensors(path, {}, length=10**12)


@hostile("links.h5", "HDF5 file")
def links(path: Path) -> None:
    """External links to another file and to the outside."""
    with h5py.File(path, "w") as file:
        file["model"] = h5py.ExternalLink("/etc/passwd", "/")
        file["optimizer"] = h5py.ExternalLink("other.h5", "/w")


@hostile("nothing_known", "nothing_known .*readme.txt")
def nothing_known(path: Path) -> None:
    path.mkdir()
    (path / "readme.txt").write_text("nothing")


@hostile("loop.pth", "cannot be opened")
def loop(path: Path) -> None:
    path.symlink_to(path.name)


@hostile("pipe.pth", "neither a file nor a directory")
def pipe(path: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(path)


def sound(path: Path, settings: str) -> None:
    """A sound checkpoint with bad settings beside it."""
    content = {"optimizer": {}, "model": {"module.w": torch.zeros(1)}, "ema": {"shadow_params": []}, "step": 1}
    torch.save(content, path)
    path.with_suffix(".json").write_text(settings)


@hostile("large_json.pth", "large_json.json is too large for settings")
def large_json(path: Path) -> None:
    sound(path, json.dumps({"model": "x" * 2**21}))


@hostile("deep_json.pth", "deep_json.json .*JSON file")
def deep_json(path: Path) -> None:
    sound(path, '{"model": ' + "[" * 200_000 + "]" * 200_000 + "}")


@hostile("nested_json.pth", "nested_json.json is nested more than 32 levels deep")
def nested_json(path: Path) -> None:
    sound(path, '{"model": ' + "[" * 40 + "]" * 40 + "}")


@hostile("cut_json.pth", "cut_json.json .*JSON file")
def cut_json(path: Path) -> None:
    sound(path, '{"model": ')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, in one directory."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (make, _) in MAKERS.items():
        make(folder / name)
    return folder


@pytest.mark.parametrize("name", MAKERS)
def test_refused_by_name_and_reason(folder: Path, name: str) -> None:
    _, reason = MAKERS[name]
    with pytest.raises(ValueError, match=reason) as caught:
        read(folder / name)
    assert (folder / name).stem in str(caught.value)
    assert not canary(folder / name).exists()


def test_they_do_harm_where_they_are_let(folder: Path) -> None:
    """The test above would pass with harmless files too."""
    with open(folder / "edm.pkl", "rb") as file:
        pickle.load(file)
    assert canary(folder / "edm.pkl").exists()
    canary(folder / "edm.pkl").unlink()
    torch.load(folder / "command.pth", weights_only=False)
    assert canary(folder / "edm.pkl").exists()
    canary(folder / "edm.pkl").unlink()


# The peak is that of /proc, because getrusage begins with the peak of the process that started this one.
MEASURE = """
import re, sys
from pathlib import Path
import sde
from sde.interop import read
import safetensors.torch

def memory(line):
    return 1024 * int(re.search(line + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = memory("VmRSS")
refused = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    if path.suffix in (".json", ".txt"):
        continue
    try:
        read(path)
    except ValueError:
        refused += 1
print(refused, memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the /proc of Linux")
def test_they_take_little_memory_together(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=True, cwd=ROOT, timeout=600
    )
    refused, peak = map(int, done.stdout.split())
    assert refused == len(MAKERS) >= 12
    assert peak < 3e8
    assert not canary(folder / "edm.pkl").exists()
