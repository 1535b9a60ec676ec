"""The store: rows are added once, found again, and never mixed with those of another job."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import sde
from sde.storage.results import Plain
from sde.storage.store import Store, read

COLUMNS = {"nfe": np.int64, "bits_per_dim": np.float64}
KEY: dict[str, Plain] = {"config": "sde: vp\nsolver:\n  rtol: 1e-5\n", "seed": 1, "rtol": 1e-5}


def batch(*index: int, repeat: int = 0) -> dict[str, np.ndarray]:
    at = np.array(index, np.int64)
    return {"index": at, "repeat": np.full_like(at, repeat), "nfe": 7 * at + repeat, "bits_per_dim": at / 3 + repeat}


def start(path: Path, key: Mapping[str, Plain] = KEY, **options: Any) -> Store:
    return Store.open(path, COLUMNS, key=key, **options)


def keys(path: Path) -> list[tuple[int, int]]:
    columns = read(path).columns
    return list(zip(columns["repeat"].tolist(), columns["index"].tolist()))


def kill(store: Store) -> None:
    """Leaves the store as the end of its process would: no snapshot, the journal and the lock file stay."""
    store._journal.close()
    os.close(store._lock._descriptor)
    store._open = False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.h5"


def test_rows_come_back_sorted_by_repeat_and_index(path: Path) -> None:
    with start(path, metadata={"version": "1"}) as store:
        store.append(batch(5, 2))
        store.append(batch(0, 3, repeat=1))
        store.append(batch(1, repeat=0))
        assert len(store) == 5
    assert os.listdir(path.parent) == ["test.h5"]
    results = read(path)
    expected = {name: np.append(a, b) for (name, a), b in zip(batch(1, 2, 5).items(), batch(0, 3, repeat=1).values())}
    for name, values in results.columns.items():
        np.testing.assert_array_equal(values, expected[name], strict=True)
    assert results.attributes == {**KEY, "version": "1"}


def test_readers_see_finished_snapshots_only(path: Path) -> None:
    with start(path) as store:
        assert keys(path) == []
        store.append(batch(0, 1))
        assert keys(path) == []
        store.snapshot()
        store.append(batch(2))
        assert keys(path) == [(0, 0), (0, 1)]
    assert keys(path) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("rows", [3, 4])
def test_snapshot_every_counts_rows_since_the_last_snapshot(path: Path, rows: int) -> None:
    with start(path, snapshot_every=rows) as store:
        seen = []
        for index in range(0, 12, 2):
            store.append(batch(index, index + 1))
            seen.append(len(keys(path)))
    assert seen == [0, 0, 4, 4, 8, 8]
    with pytest.raises(ValueError, match="snapshot_every=0"):
        start(path, snapshot_every=0)


def test_a_job_is_resumed(path: Path) -> None:
    with start(path) as store:
        store.append(batch(0, 1))
        store.append(batch(1, repeat=2))
    with start(path) as store:
        assert (store.done(), store.done(1), store.done(2)) == ({0, 1}, set(), {1})
        assert (store.recovered, store.torn, len(store)) == (0, 0, 3)
        store.append(batch(2))
        assert store.done(0) == {0, 1, 2}
    assert keys(path) == [(0, 0), (0, 1), (0, 2), (2, 1)]


def test_opening_a_finished_file_does_not_change_it(path: Path) -> None:
    with start(path, metadata={"version": "1"}) as store:
        store.append(batch(0))
    before = path.stat()
    with start(path, metadata={"version": "2"}):
        pass
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_acknowledged_rows_survive_a_kill(path: Path) -> None:
    store = start(path)
    store.append(batch(0))
    store.snapshot()
    store.append(batch(1, 2))
    kill(store)
    (path.parent / ".test.h5.0123456789abcdef.tmp").touch()
    (path.parent / ".test.h5.journal.0123456789abcdef.tmp").touch()
    with start(path) as store:
        assert (store.recovered, store.torn, store.done()) == (2, 0, {0, 1, 2})
    assert keys(path) == [(0, 0), (0, 1), (0, 2)]
    assert os.listdir(path.parent) == ["test.h5"]


def test_a_record_torn_at_every_byte_loses_its_rows_and_no_other(path: Path) -> None:
    store = start(path)
    store.append(batch(0, 1))
    begin = os.path.getsize(f"{path}.journal")
    store.append(batch(2, 3))
    kill(store)
    snapshot, journal = path.read_bytes(), Path(f"{path}.journal").read_bytes()
    for end in range(begin, len(journal)):
        path.write_bytes(snapshot)
        Path(f"{path}.journal").write_bytes(journal[:end])
        with start(path) as store:
            assert (store.done(), store.recovered, store.torn) == ({0, 1}, 2, end - begin)
            store.append(batch(2, 3))
        assert keys(path) == [(0, index) for index in range(4)]


def test_a_damaged_journal_is_refused_and_nothing_changed(path: Path) -> None:
    store = start(path)
    store.append(batch(0))
    store.append(batch(1))
    kill(store)
    journal = bytearray(Path(f"{path}.journal").read_bytes())
    journal[70] ^= 1
    Path(f"{path}.journal").write_bytes(journal)
    with pytest.raises(ValueError, match=r"journal.* byte 40"):
        start(path)
    assert Path(f"{path}.journal").read_bytes() == journal
    assert keys(path) == []


def test_a_crash_between_the_snapshot_and_the_restart_of_the_journal_is_harmless(path: Path) -> None:
    store = start(path)
    store.append(batch(0, 1))
    journal = Path(f"{path}.journal").read_bytes()
    store.snapshot()
    assert os.path.getsize(f"{path}.journal") < len(journal)
    kill(store)
    Path(f"{path}.journal").write_bytes(journal)
    with start(path) as store:
        assert (len(store), store.recovered) == (2, 0)
        store.append(batch(2))
    assert keys(path) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("rows", [batch(0, 4), batch(4, 4), batch(4, 1)])
def test_duplicates_are_refused_before_anything_is_written(path: Path, rows: dict[str, np.ndarray]) -> None:
    with start(path) as store:
        store.append(batch(0))
        store.snapshot()
        store.append(batch(1))
        size = os.path.getsize(f"{path}.journal")
        with pytest.raises(ValueError, match=r"\(index, repeat\).* \([014], 0\)"):
            store.append(rows)
        assert os.path.getsize(f"{path}.journal") == size
        store.append(batch(0, 4, repeat=1))
    assert keys(path) == [(0, 0), (0, 1), (1, 0), (1, 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [1.0, 2.0]}, r"unknown=\['x'\]"),
        ({"nfe": [1]}, r"\(n,\).*nfe \(1,\)"),
        ({"nfe": [1.0, 2.0]}, "int64.*'nfe'.*float64"),
        ({"bits_per_dim": ["a", "b"]}, "float64.*'bits_per_dim'"),
    ],
)
def test_rows_that_do_not_fit_are_refused(path: Path, change: dict[str, Any], message: str) -> None:
    with start(path) as store:
        with pytest.raises(ValueError, match=message):
            store.append({**batch(0, 1), **change})
        with pytest.raises(ValueError, match=r"missing=\['nfe'\]"):
            store.append({name: values for name, values in batch(0).items() if name != "nfe"})
        with pytest.raises(ValueError, match=r"nfe \(\)"):
            store.append(dict.fromkeys(batch(0), 1))
        assert len(store) == 0
        store.append(batch())
        assert not os.path.exists(f"{path}.journal")


def test_tensors_are_rows_too(path: Path) -> None:
    with start(path) as store:
        store.append(
            {
                "index": torch.arange(2),
                "repeat": torch.zeros(2, dtype=torch.int64),
                "nfe": torch.tensor([3, 4], dtype=torch.int32),
                "bits_per_dim": torch.tensor([0.5, -torch.inf]),
            }
        )
    assert read(path).columns["bits_per_dim"].tolist() == [0.5, -np.inf]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({**KEY, "seed": 2, "rtol": 1e-3}, "'seed' is 1 .*2"),
        ({**KEY, "rtol": 1e-3}, r"'rtol' is 1e-05 .*0\.001"),
        ({**KEY, "seed": True}, "'seed' is 1 .*True"),
        ({**KEY, "guidance": 2.0}, r"'guidance' is absent .*2\.0"),
        ({"config": KEY["config"], "seed": 1}, "'rtol' is 1e-05 .*absent"),
        (
            {**KEY, "config": "sde: vp\nsolver:\n  rtol: 1e-3\n"},
            r"line 3 .*'config' is '  rtol: 1e-5\\n' .*'  rtol: 1e-3\\n'",
        ),
        ({**KEY, "config": "sde: vp\n"}, r"line 2 .*'config' is 'solver:\\n' .*absent"),
    ],
)
def test_another_job_is_refused_by_its_first_difference(path: Path, key: dict[str, Plain], message: str) -> None:
    with start(path) as store:
        store.append(batch(0))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        start(path, key)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["test.h5"]


def test_other_columns_are_another_job(path: Path) -> None:
    start(path).close()
    with pytest.raises(ValueError, match=r"'nfe' is 'int64' .*'int32'"):
        Store.open(path, {**COLUMNS, "nfe": np.int32}, key=KEY)
    with pytest.raises(ValueError, match=r"'nfe' is 'int64' .*absent"):
        Store.open(path, {"bits_per_dim": float}, key=KEY)


def test_the_order_of_columns_and_attributes_does_not_matter(path: Path) -> None:
    kill_me = start(path)
    kill_me.append(batch(0, 1))
    kill(kill_me)
    with Store.open(path, dict(reversed(COLUMNS.items())), key=dict(reversed(KEY.items()))) as store:
        assert store.recovered == 2
    assert read(path).columns["nfe"].tolist() == [0, 7]


def test_the_journal_of_another_job_is_refused_and_kept(path: Path) -> None:
    store = start(path)
    store.append(batch(0))
    kill(store)
    path.unlink()
    with pytest.raises(ValueError, match=r"test\.h5\.journal.*digest"):
        start(path, {"seed": 2})
    assert not path.exists()
    with start(path) as store:
        assert store.done() == {0}


def test_notes_may_differ_and_those_of_the_latest_writer_stand(path: Path) -> None:
    with start(path, metadata={"version": "1", "host": "a"}) as store:
        store.append(batch(0))
    with start(path, metadata={"version": "2"}) as store:
        store.append(batch(1))
    assert read(path).attributes == {**KEY, "version": "2", "host": "a"}


def test_a_file_that_is_not_ours_is_never_overwritten(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["index"] = np.arange(3)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"test\.h5.*SDERES1"):
        start(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["test.h5"]


def test_a_missing_directory_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        start(path.parent / "missing" / "test.h5")


def test_a_second_writer_is_refused_also_through_a_link(path: Path) -> None:
    link = path.parent / "link.h5"
    link.symlink_to(path)
    code = (  # the store alone: the whole package would load torch
        "import sys, types\n"
        "sys.modules['sde'] = types.ModuleType('sde')\n"
        "sys.modules['sde'].__path__ = [sys.argv[2]]\n"
        "from sde.storage.store import Store\n"
        "try:\n"
        "    Store.open(sys.argv[1], {}, key={})\n"
        "except BlockingIOError as error:\n"
        "    print(error)\n"
    )
    with start(path) as store:
        store.append(batch(0))
        call = [sys.executable, "-c", code, str(link), os.path.dirname(sde.__file__)]
        said = subprocess.run(call, capture_output=True, text=True, check=True).stdout
        assert f"process {os.getpid()} on " in said
        assert "test.h5.lock" in said
        with pytest.raises(BlockingIOError):
            start(path)
    start(path).close()
    assert link.is_symlink()
    assert keys(link) == [(0, 0)]


def test_after_an_exception_in_the_block_the_rows_are_in_the_file(path: Path) -> None:
    store = start(path)
    store.append(batch(0))
    with pytest.raises(KeyboardInterrupt), store:
        raise KeyboardInterrupt
    assert keys(path) == [(0, 0)]
    assert os.listdir(path.parent) == ["test.h5"]


def test_a_closed_store_takes_no_rows(path: Path) -> None:
    store = start(path)
    store.close()
    store.close()
    with pytest.raises(ValueError, match=r"test\.h5.*Store\.open"):
        store.append(batch(0))
    with pytest.raises(ValueError, match=r"test\.h5.*Store\.open"):
        store.snapshot()


def full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_at_append_loses_the_new_rows_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(path) as store:
        store.append(batch(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(OSError, match="No space left"):
                store.append(batch(1))
        assert store.done() == {0}
        store.append(batch(1, 2))
    assert keys(path) == [(0, 0), (0, 1), (0, 2)]


def test_a_full_disk_at_the_snapshot_leaves_the_file_before_and_the_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(path, snapshot_every=2) as store:
        store.append(batch(0, 1))
        store.append(batch(2, 3))
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                store.snapshot()
            with pytest.raises(OSError, match="No space left"):
                store.append(batch(4))  # takes the snapshot first: its own rows are refused with it
        assert path.read_bytes() == before
        assert store.done() == {0, 1, 2, 3}
        store.append(batch(4))
    assert keys(path) == [(0, index) for index in range(5)]


def test_a_full_disk_at_the_end_is_reported_and_the_job_can_be_resumed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = start(path)
    store.append(batch(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"), store:
            pass
    with start(path) as store:
        assert (store.recovered, store.done()) == (1, {0})


def test_the_first_exception_is_the_one_that_propagates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = start(path)
    store.append(batch(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ZeroDivisionError), store:
            raise ZeroDivisionError
    with start(path) as store:
        assert store.done() == {0}


def test_columns_may_have_arrays_of_one_shape(tmp_path: Path) -> None:
    """They are written, recovered from a journal and read like numbers; another shape is refused."""
    path, columns = tmp_path / "a.h5", {"x": np.dtype((np.uint8, (2, 3))), "y": np.float64}
    x = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    rows = {"index": np.array([0, 1]), "repeat": np.zeros(2, np.int64), "x": x, "y": np.zeros(2)}
    with Store.open(path, columns, key={}) as store:
        store.append(rows)
        with pytest.raises(ValueError, match="one shape"):
            store.append({**rows, "index": np.array([2, 3]), "x": x[:, 0]})
    np.testing.assert_array_equal(read(path).columns["x"], x)
    with pytest.raises(ValueError, match=r"uint8\[2, 3\]"):
        Store.open(path, {**columns, "x": np.uint8}, key={})
    with Store.open(path, columns, key={}) as store:
        assert store.done() == {0, 1}
