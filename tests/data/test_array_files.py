"""Files of arrays: what is missing, damaged or stored elsewhere is refused, and nothing in a file is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sde.data import arrays


def pixels(*shape: int, levels: int = 256, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(levels, size=shape).astype(dtype)


def save(path: Path, **members: Any) -> Path:
    if path.suffix.lower() == ".npz":
        with path.open("wb") as stream:
            np.savez(stream, **members)
    else:
        with h5py.File(path, "w") as file:
            for name, member in members.items():
                file[name] = member
    return path


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        arrays(tmp_path / "nowhere.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder\.npz"):
        arrays(tmp_path / "folder.npz")
    with pytest.raises(ValueError, match=r"'\.csv'.*\.npy, \.npz, \.h5, \.hdf5"):
        arrays(tmp_path / "table.csv")


def test_missing_array_names_those_there_are(tmp_path: Path) -> None:
    path = save(tmp_path / "set.npz", x_train=pixels(5, 8), data=pixels(5, 8))
    with pytest.raises(ValueError, match=r"set\.npz.*'x_test'.*'x_train', 'data'"):
        arrays(path)
    path = save(tmp_path / "set.h5", **{"x_train": pixels(5, 8), "group/data": pixels(5, 8)})
    for name in ("x_test", "group/x_test", "x_train/x", "group//data", "group/./data", "", "."):
        with pytest.raises(ValueError, match=rf"'{name}'.*'group/data', 'x_train'"):
            arrays(path, test=name)
    with pytest.raises(ValueError, match=r"'group'.*group/"):
        arrays(path, test="group")


class Trap:
    """Unpickling it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "trace")], dtype=object)
    np.savez(tmp_path / "set.npz", x_train=trap, x_test=pixels(5, 8))
    with pytest.raises(ValueError, match=r"set\.npz.*'x_train'.*Object arrays"):
        arrays(tmp_path / "set.npz")
    np.save(tmp_path / "set.npy", trap)
    with pytest.raises(ValueError, match=r"set\.npy.*Object arrays"):
        arrays(tmp_path / "set.npy", test=None)
    (tmp_path / "raw.npy").write_bytes(trap.dumps())
    with pytest.raises(ValueError, match=r"raw\.npy"):
        arrays(tmp_path / "raw.npy", test=None)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, keep: float) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".npy":
        np.save(whole, pixels(50, 64))
    else:
        save(whole, x_train=pixels(50, 64))
    content = whole.read_bytes()
    (tmp_path / f"part{suffix}").write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"part\{suffix}"):
        arrays(tmp_path / f"part{suffix}", test=None)


def test_damaged_member_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "set.npz", x_train=pixels(50, 64), x_test=pixels(5, 64))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"'x_train'.*CRC-32"):
        arrays(path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    save(tmp_path / "secret.h5", x=pixels(5, 8))
    path = save(tmp_path / "set.h5", x_train=pixels(5, 8))
    with h5py.File(path, "r+") as file:
        file["soft"] = h5py.SoftLink("/x_train")
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["external"] = h5py.ExternalLink("secret.h5", "/x")
        file["absent"] = h5py.ExternalLink("nowhere.h5", "/x")
        file["outside"] = h5py.ExternalLink("secret.h5", "/")
        file["hard"] = file["x_train"]
    for name in ("soft", "dangling", "external", "absent", "outside/x"):
        with pytest.raises(ValueError, match=f"'{name}'.*link"):
            arrays(path, test=name)
    assert arrays(path, test="hard").test.fingerprint == arrays(path, test="hard").train.fingerprint


def test_data_stored_elsewhere_is_not_read(tmp_path: Path) -> None:
    save(tmp_path / "secret.h5", x=pixels(5, 8))
    (tmp_path / "secret.bin").write_bytes(bytes(40))
    path = save(tmp_path / "set.h5", x_train=pixels(5, 8))
    layout = h5py.VirtualLayout(shape=(5, 8), dtype=np.uint8)
    layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "x", shape=(5, 8))
    with h5py.File(path, "r+") as file:
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("outside", (5, 8), np.uint8, external=[(str(tmp_path / "secret.bin"), 0, 40)])
    for name in ("virtual", "outside"):
        with pytest.raises(ValueError, match=f"'{name}'.*other files"):
            arrays(path, test=name)


def test_what_is_no_numbers_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["x_train"] = pixels(5, 8)
        file["text"] = ["a", "b"]
        file["empty"] = h5py.Empty("f4")
        file["complex"] = np.ones((5, 8), dtype=np.complex64)
        file["scalar"] = 3.0
        file.create_dataset("ragged", (5,), dtype=h5py.vlen_dtype(np.uint8))
    for name in ("text", "empty", "complex", "ragged"):
        with pytest.raises(ValueError, match=f"'{name}'.*dtype"):
            arrays(tmp_path / "set.h5", test=name)
    with pytest.raises(ValueError, match=r"'scalar'.*\(\)"):
        arrays(tmp_path / "set.h5", test="scalar")
    path = save(
        tmp_path / "set.npz",
        x_train=pixels(5, 8),
        text=np.array(["a"]),
        none=pixels(0, 8),
        scalar=np.float32(2.0),
        huge=np.full((5, 8), 2**63, dtype=np.uint64),
    )
    for name in ("text", "huge"):
        with pytest.raises(ValueError, match=f"'{name}'.*dtype"):
            arrays(path, test=name, levels=256)
    for name in ("none", "scalar"):
        with pytest.raises(ValueError, match=rf"'{name}'.*shape \("):
            arrays(path, test=name, levels=256)


def test_wrong_suffix(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", pixels(5, 8))
    (tmp_path / "set.npy").rename(tmp_path / "set.npz")
    with pytest.raises(ValueError, match=r"set\.npz.*zip"):
        arrays(tmp_path / "set.npz")
    np.savez(tmp_path / "other.npz", x_train=pixels(5, 8))
    (tmp_path / "other.npz").rename(tmp_path / "other.npy")
    with pytest.raises(ValueError, match=r"other\.npy"):
        arrays(tmp_path / "other.npy", test=None)
