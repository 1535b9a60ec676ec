r"""Checkpoints: one file of tensors and plain values, with its SHA-256 digest beside it.

A checkpoint is a dictionary of tensors and plain values in the format of `torch.save`, so that
`torch.load(weights_only=True)` opens it and no code runs. `NAME.pt.sha256` contains the SHA-256 digest of the whole
file, because the loader alone misses most single bit flips. The digest is written first, and then the file is renamed
into place: a file that has its name is complete. In the directory of a run, `step_XXXXXXXX.pt` is written once and
never changed, and `last.pt` is a link to the newest.

Keys: `format`, `version`, `config` and `model` (JSON text), `data` (fingerprint), `step`, `weights`, `ema`,
    `optimizer`, `rng`.
"""

from __future__ import annotations

__all__ = [
    "checkpoints",
    "load_checkpoint",
    "misfits",
    "remove_strays",
    "resolve",
    "run_directory",
    "save_checkpoint",
    "write",
]

import os
import re
import secrets
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import sha256, sync_directory, write_atomically

FORMAT = 1

_NAME = re.compile(r"step_(\d{8})\.pt")
_STRAY = re.compile(r"\.{1,2}step_.*\.(staged|tmp)$|\.last\.[0-9a-f]{16}$")


def save_checkpoint(directory: str | os.PathLike[str], content: Mapping[str, Any], *, keep: int | None = None) -> Path:
    """Writes a checkpoint of a run and links `last.pt` to it.

    Args:
        directory: the directory of the run's checkpoints; created if it is missing.
        content: tensors and plain values; `content["step"]` gives the name of the file.
        keep: the number of the newest checkpoints to keep; all by default.

    Returns:
        The path of the new file.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    remove_strays(directory)
    path = directory / f"step_{content['step']:08d}.pt"
    write(path, content)
    link = directory / f".last.{secrets.token_hex(8)}"
    link.symlink_to(path.name)
    os.replace(link, directory / "last.pt")
    others = [other for other in checkpoints(directory) if other != path]
    for old in others[: max(0, len(others) - keep + 1)] if keep else []:
        old.unlink()
        _digest_of(old).unlink(missing_ok=True)
    return path


def remove_strays(directory: str | os.PathLike[str]) -> None:
    """Deletes the file that a killed process has left unfinished in a directory of checkpoints, and digests without a
    checkpoint; only the single writer of the directory may call it."""
    directory = Path(directory)
    for path in directory.iterdir() if directory.is_dir() else ():
        unfinished = _STRAY.match(path.name) is not None
        alone = path.name.endswith(".pt.sha256") and not path.with_name(path.name.removesuffix(".sha256")).exists()
        if unfinished or alone:
            path.unlink()


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a checkpoint with its digest; if anything fails, the path is as it was before.

    Args:
        path: the file; an existing one is replaced. Its directory exists.
        content: tensors and plain values.
    """
    path = Path(path)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}.staged")
    try:
        write_atomically(staged, lambda file: torch.save({"format": FORMAT, **content}, file))
        # The digest of an undamaged file that is replaced stays listed until the file itself has been replaced.
        old = [sha256(path)] if path.exists() else []
        listed = [sha256(staged), *(digest for digest in old if digest in (_listed(path) or old))]
        _write_digest(_digest_of(path), listed)
        os.replace(staged, path)
        sync_directory(path.parent)
    finally:
        staged.unlink(missing_ok=True)


def _write_digest(path: Path, listed: Sequence[str]) -> None:
    """Writes the digests of a file; a new one without a temporary file, so that a kill leaves one of them at most."""
    text = "".join(digest + "\n" for digest in listed).encode()
    if path.exists():
        write_atomically(path, lambda file: file.write(text))
        return
    with open(path, "xb") as file:  # nothing has this digest yet: half of it does no harm
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def misfits(expected: Mapping[str, Sequence[int]], weights: Mapping[str, Tensor]) -> str:
    """Differences between the names and shapes of weights and the expected ones, as text; empty if they agree.

    Args:
        expected: the shapes by name.
        weights: the weights by name.
    """
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    differences = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "not the network's": sorted(shapes.keys() - expected.keys()),
        "of another shape": [
            f"{name} {shapes[name]} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if shapes.get(name, tuple(shape)) != tuple(shape)
        ],
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in differences.items()
        if names
    )


def checkpoints(directory: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run in its directory, oldest first."""
    directory = Path(directory)
    return sorted(p for p in directory.iterdir() if _NAME.fullmatch(p.name)) if directory.is_dir() else []


def resolve(path: str | os.PathLike[str]) -> Path:
    """The checkpoint file of a path: the file itself, or the newest one of a run directory.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if path.is_dir():
        last = path / "checkpoints" / "last.pt"
        if not last.exists() and checkpoints(last.parent):
            last = checkpoints(last.parent)[-1]
        if not last.exists():
            raise FileNotFoundError(
                f"{path} is a directory without checkpoints/last.pt: expected a run directory of scripts/train.py, "
                f"or the path of a checkpoint file{_advice(last)}"
            )
        path = last
    if not path.exists():
        raise FileNotFoundError(
            f"no checkpoint at {path}: expected a checkpoint file or a run directory{_advice(path)}"
        )
    return path.resolve()


def run_directory(path: Path) -> Path:
    """The directory for results of a checkpoint: its run directory, or the directory of a file outside of a run."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a checkpoint, whose digest is compared first.

    Args:
        path: a checkpoint file or a run directory.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if the file is empty, truncated, altered, or not a checkpoint; the error names the newest undamaged
            one in its directory.
    """
    path = resolve(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty, not a checkpoint{_advice(path)}")
    digest = _digest_of(path)
    if digest.exists() and sha256(path) not in _listed(path):
        raise ValueError(f"{path} is truncated or altered: its SHA-256 is not the one in {digest.name}{_advice(path)}")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("expected a whole file that scripts/train.py or sde.save has written")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged pickle can raise anything; none of it was run
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{path} is not a checkpoint, or damaged: {reason}{_advice(path)}") from e
    if not digest.exists():
        warnings.warn(f"{path} has no {digest.name} beside it: damage may go unnoticed", stacklevel=2)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        kind = f"format {content.get('format')!r}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(
            f"{path} is not a checkpoint of this library: expected format {FORMAT}, got {kind}; scripts/convert.py "
            "converts those of other projects"
        )
    return content


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _listed(path: Path) -> list[str]:
    """The digests in the file beside a checkpoint."""
    digest = _digest_of(path)
    return digest.read_bytes().decode("ascii", errors="replace").split() if digest.exists() else []


def _advice(path: Path) -> str:
    """The end of an error message that names the newest undamaged checkpoint in the directory."""
    for other in reversed(checkpoints(path.parent)):
        if other != path and sha256(other) in _listed(other):
            return f"; the newest undamaged one beside it is {other}"
    return "; there is no other undamaged checkpoint beside it"
