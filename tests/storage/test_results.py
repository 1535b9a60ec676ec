"""The result file: what goes in comes out, and nothing that a file claims is believed or followed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from sde.storage.hdf5 import with_checksum
from sde.storage.results import Job, Plain, encode, read

IDENTITY: dict[str, Plain] = {
    "config": "sde: vp\n" * 20_000,  # more than the 64 KiB that HDF5 keeps with the attribute itself
    "seed": 2**64 - 1,
    "rtol": 1e-5,
    "nothing": math.nan,
    "exact": True,
    "empty": "",
    "Größe": "σ(t)",
}
JOB = Job.of({"nfe": "i4", "bits_per_dim": "f8", "ok": bool}, IDENTITY, {"version": "0.1.0"})


def rows(job: Job = JOB, n: int = 5) -> np.ndarray:
    table = np.zeros(n, job.row_type)
    table["index"] = np.arange(n)
    table["bits_per_dim"] = np.linspace(-1, 1, n)
    return table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.h5"


@pytest.mark.parametrize("n", [0, 1, 5])
def test_columns_and_attributes_come_back(path: Path, n: int) -> None:
    path.write_bytes(encode(rows(n=n), JOB))
    results = read(path)
    assert list(results.columns) == ["index", "repeat", "bits_per_dim", "nfe", "ok"]
    for name, values in results.columns.items():
        assert values.dtype == JOB.row_type[name]
        np.testing.assert_array_equal(values, rows(n=n)[name], strict=True)
    expected = {**IDENTITY, "version": "0.1.0"}
    assert {name: repr(value) for name, value in results.attributes.items()} == {
        name: repr(value) for name, value in expected.items()
    }


def test_other_programs_read_the_file_and_opening_it_for_writing_does_not_break_it(path: Path) -> None:
    path.write_bytes(encode(rows(), JOB))
    with h5py.File(path, "r+") as file:
        assert file.attrs["config"] == IDENTITY["config"]
        np.testing.assert_array_equal(file["bits_per_dim"][:], rows()["bits_per_dim"])
    assert len(read(path).columns["index"]) == 5


def test_a_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.h5"):
        read(path)
    with pytest.raises(ValueError, match=path.parent.name):
        read(path.parent)


def test_a_truncated_file_is_refused_at_every_length(path: Path) -> None:
    whole = encode(rows(), Job.of({"bits_per_dim": float}, {}, {}))
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="SDERES1" if length < 8 else "SHA-256"):
            read(path)


def test_an_altered_byte_is_noticed_wherever_it_stands(path: Path) -> None:
    whole = encode(rows(), Job.of({"bits_per_dim": float}, {}, {}))
    for offset in range(8, len(whole), 13):
        altered = bytearray(whole)
        altered[offset] ^= 1
        path.write_bytes(altered)
        with pytest.raises(ValueError, match="SHA-256"):
            read(path)


def test_foreign_files_are_refused(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["index"] = file["repeat"] = np.arange(3)
    with pytest.raises(ValueError, match="SDERES1"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="SDERES1"):
        read(path)


def _external_link(file: h5py.File) -> None:
    file["nfe"] = h5py.ExternalLink("other.h5", "nfe")


def _soft_link(file: h5py.File) -> None:
    file["nfe"] = h5py.SoftLink("/index")


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("nfe", (3,), "i8", external=[("secret", 0, 24)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "nfe", (3,))
    file.create_virtual_dataset("nfe", layout)


def _compressed(file: h5py.File) -> None:
    file.create_dataset("nfe", (3,), "i8", compression="gzip")


def _huge(file: h5py.File) -> None:
    for name in ("index", "repeat", "nfe"):
        file.pop(name, None)
        file.create_dataset(name, (10**12,), "i8")


def _many_names(file: h5py.File) -> None:
    del file["index"], file["repeat"]
    file["index"], file["repeat"] = np.arange(1000), np.zeros(1000, int)
    for i in range(40):
        file[f"name{i}"] = file["index"]


def _group(file: h5py.File) -> None:
    file.create_group("nfe")


def _matrix(file: h5py.File) -> None:
    del file["index"]
    file["index"] = np.zeros((3, 2), np.int64)


def _text(file: h5py.File) -> None:
    file["nfe"] = np.array([b"a", b"b", b"c"])


def _other_length(file: h5py.File) -> None:
    file["nfe"] = np.zeros(4)


def _no_repeat(file: h5py.File) -> None:
    del file["repeat"]


def _float_index(file: h5py.File) -> None:
    del file["index"]
    file["index"] = np.arange(3.0)


def _twice(file: h5py.File) -> None:
    file["index"][:] = [0, 1, 1]


def _unsorted(file: h5py.File) -> None:
    file["repeat"][:] = [0, 1, 0]


def _array_attribute(file: h5py.File) -> None:
    file.attrs["seed"] = np.zeros(5)


def _no_identity(file: h5py.File) -> None:
    del file.attrs["identity_names"]


def _missing_identity(file: h5py.File) -> None:
    file.attrs["identity_names"] = "seed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external_link, "nfe.*ExternalLink"),
        (_soft_link, "nfe.*SoftLink"),
        (_external_storage, "nfe.*file itself"),
        (_virtual, "nfe.*file itself"),
        (_compressed, "nfe.*filters"),
        (_huge, r"index.*\(1000000000000,\).* 0 bytes"),
        (_many_names, r" 336000 bytes.* \d+"),
        (_group, "nfe.*not a data set"),
        (_matrix, r"index.*shape \(N,\)"),
        (_text, "nfe.*S1"),
        (_other_length, r"\(3,\), \(4,\)"),
        (_no_repeat, r"'repeat'.*\['index'\]"),
        (_float_index, "int64.*index.*float64"),
        (_twice, r"\(repeat, index\)"),
        (_unsorted, r"\(repeat, index\)"),
        (_array_attribute, "'seed' is not a"),
        (_no_identity, "identity_names"),
        (_missing_identity, "seed"),
    ],
)
def test_hostile_files_are_refused(path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file["index"], file["repeat"] = np.arange(3), np.zeros(3, int)
        file.attrs["identity_names"] = ""
    path.write_bytes(with_checksum(path.read_bytes()[512:]))
    assert list(read(path).columns) == ["index", "repeat"]
    with h5py.File(path, "r+") as file:
        change(file)
    path.write_bytes(with_checksum(path.read_bytes()[512:]))
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_header_with_a_false_size_is_refused(path: Path) -> None:
    """1e12 rows are written over the true number of rows and bytes of each column, as no HDF5 library would."""
    n = 0x1234
    data = encode(rows(Job.of({"bits_per_dim": float}, {}, {}), n), Job.of({"bits_per_dim": float}, {}, {}))[512:]
    assert data.count(n.to_bytes(8, "little")) >= 3
    assert data.count((8 * n).to_bytes(8, "little")) >= 3
    data = data.replace(n.to_bytes(8, "little"), (10**12).to_bytes(8, "little"))
    data = data.replace((8 * n).to_bytes(8, "little"), (8 * 10**12).to_bytes(8, "little"))
    path.write_bytes(with_checksum(data))
    with pytest.raises(ValueError, match=r"a\.h5.*checksum"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "key", "metadata", "message"),
    [
        ({"a/b": float}, {}, {}, "'a/b'"),
        ({"x": complex}, {}, {}, "'x'.*complex128"),
        ({"x": np.longdouble}, {}, {}, f"'x'.*{np.dtype(np.longdouble)}"),
        ({"index": float}, {}, {}, "int64.*'index'.*float64"),
        ({}, {"path": Path("a")}, {}, "'path'.*PosixPath"),
        ({}, {"identity_names": "a"}, {}, "'identity_names'"),
        ({}, {"a\nb": 1}, {}, r"a\\nb"),
        ({}, {"a": 2**64}, {}, f"'a'.*64 bits.*{2**64}"),
        ({}, {"a": "x\0y"}, {}, "NUL.*'a'"),
        ({}, {"a": 1}, {"a": 1}, r"\['a'\]"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    columns: dict[str, type], key: dict[str, Plain], metadata: dict[str, Plain], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Job.of(columns, key, metadata)


def test_numpy_scalars_are_plain_values() -> None:
    assert Job.of({}, {"a": np.float32(0.5), "b": np.int64(3), "c": np.True_}, {}).key == {
        "a": 0.5,
        "b": 3,
        "c": True,
    }
