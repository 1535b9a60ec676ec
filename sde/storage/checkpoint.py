r"""Checkpoints: one file of tensors and plain values, with its digest beside it.

A checkpoint is what `torch.save` makes of a dictionary of tensors and plain values, so that
`torch.load(weights_only=True)` opens it and no code runs. `step_XXXXXXXX.pt` is written once and never changed;
`step_XXXXXXXX.pt.sha256` holds the SHA-256 of the whole file, because the loader alone misses most single bit flips.
The digest is written first: whatever has its name in place is complete. `last.pt` is a link to the newest.

Keys: `format`, `version`, `config` and `model` (JSON text), `data` (fingerprint), `step`, `weights`, `ema`,
    `optimizer`, `rng`.
"""

from __future__ import annotations

__all__ = ["checkpoints", "load_checkpoint", "resolve", "run_directory", "save_checkpoint", "write"]

import os
import re
import secrets
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .files import sha256, write_atomically

FORMAT = 1

_NAME = re.compile(r"step_(\d{8})\.pt")


def save_checkpoint(directory: str | os.PathLike[str], content: Mapping[str, Any], *, keep: int | None = None) -> Path:
    """Writes a checkpoint and points `last.pt` at it.

    Args:
        directory: the directory of a run's checkpoints; created where it is missing.
        content: tensors and plain values; `content["step"]` names the file.
        keep: how many of the newest checkpoints to keep; all by default.

    Returns:
        The path of the new file.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in (*directory.glob(".step_*.staged"), *directory.glob(".last.*")):
        leftover.unlink()  # of a killed process
    path = directory / f"step_{content['step']:08d}.pt"
    staged = directory / f".{path.name}.{secrets.token_hex(8)}.staged"
    try:
        write_atomically(staged, lambda file: torch.save({"format": FORMAT, **content}, file))
        # Where a file of this step is there already, its digest stays listed until the file itself has been replaced.
        listed = [sha256(staged), *([sha256(path)] if path.exists() and sha256(path) in _listed(path) else [])]
        write_atomically(_digest_of(path), lambda file: file.write("".join(d + "\n" for d in listed).encode()))
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    link = directory / f".last.{secrets.token_hex(8)}"
    link.symlink_to(path.name)
    os.replace(link, directory / "last.pt")
    others = [other for other in checkpoints(directory) if other != path]
    for old in others[: max(0, len(others) - keep + 1)] if keep else []:
        old.unlink()
        _digest_of(old).unlink(missing_ok=True)
    return path


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a checkpoint at a path of the user's choice, where it appears whole and with its digest, or not at all.

    Args:
        path: the file, replaced where it is there; its directory exists.
        content: as `sde.interop.read` gives it.
    """
    path = Path(path)
    digest = path.with_name(path.name + ".sha256")
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}.staged")
    try:
        write_atomically(staged, lambda file: torch.save({"format": FORMAT, **content}, file))
        # The digest comes first, and lists that of a file which is replaced until it has been.
        listed = [sha256(staged), *([sha256(path)] if path.exists() else [])]
        write_atomically(digest, lambda file: file.write("".join(line + "\n" for line in listed).encode()))
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def checkpoints(directory: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a directory, oldest first."""
    directory = Path(directory)
    return sorted(p for p in directory.iterdir() if _NAME.fullmatch(p.name)) if directory.is_dir() else []


def resolve(path: str | os.PathLike[str]) -> Path:
    """The checkpoint file that a path means: the file itself, or the newest of a run directory.

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
    """Where what is computed from a checkpoint belongs: its run directory, or its own if it lies outside of one."""
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint or refuses it.

    Args:
        path: a checkpoint file or a run directory.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if the file is empty, truncated, altered, or no checkpoint; the newest sound one beside it is named.
    """
    path = resolve(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty, not a checkpoint{_advice(path)}")
    digest = _digest_of(path)
    if digest.exists() and sha256(path) not in _listed(path):
        raise ValueError(f"{path} is truncated or altered: its SHA-256 is not the one in {digest.name}{_advice(path)}")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("expected a file written by scripts/train.py, whole")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged pickle can raise anything; none of it was run
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{path} is not a checkpoint, or damaged: {reason}{_advice(path)}") from e
    if not digest.exists():
        warnings.warn(f"{path} has no {digest.name} beside it, so that damage may go unnoticed", stacklevel=2)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} is no checkpoint of this library's format {FORMAT}: found {found!r}; other projects' "
            "checkpoints have to be converted"
        )
    return content


def _digest_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _listed(path: Path) -> list[str]:
    """The digests that the file beside a checkpoint lists."""
    digest = _digest_of(path)
    return digest.read_bytes().decode("ascii", errors="replace").split() if digest.exists() else []


def _advice(path: Path) -> str:
    """Names the newest other checkpoint in the directory whose digest is right."""
    for other in reversed(checkpoints(path.parent)):
        if other != path and sha256(other) in _listed(other):
            return f"; the newest sound one beside it is {other}"
    return "; there is no other sound checkpoint beside it"
