r"""Files: samples of which each is a file, with conditions from folders and tables.

Files are found below a folder, recognised by their suffix and sorted by their path relative to it. Symbolic links to
folders are followed; every folder is searched once, so that circles end. Files and folders whose name begins with a dot
are skipped. A warning counts the other files by suffix, and a folder that cannot be listed is an error.
"""

from __future__ import annotations

__all__ = ["Decoder", "Files", "file_splits", "files_below"]

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dataset import Split, check_labels_of, hold_out, split_off
from .source import Item, Source, UnreadableSample, digest_of, evenly
from .table import Named, Table


class Decoder(Protocol):
    """A function from a file to its values; `str` of it tells two of them apart.

    Attributes:
        suffixes: the suffixes of the files, in lower case.
        advice: what to do about files of different sizes.
    """

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    @property
    def advice(self) -> str: ...

    def __call__(self, file: str | os.PathLike[str], /) -> NDArray[Any]:
        """The values, with the event's shape; raises :class:`UnreadableSample`."""


def file_splits(
    path: Path,
    decode: Decoder,
    folders: Mapping[str, str | None],
    *,
    folder_labels: bool,
    table: str | os.PathLike[str] | None,
    columns: Mapping[str, str | Sequence[str]] | None,
    file_column: str,
    test_fraction: float,
    seed: int,
    holdout: float,
    memory: float,
) -> tuple[Source, Source, Source | None]:
    """The training, test and validation samples of a folder; those that take up to `memory` GiB are in memory.

    Args:
        path: the folder.
        decode: the function from a file to its values.
        folders: the folders in `path` of `train`, `test` and `valid`, or None.
        folder_labels, table, columns, file_column, test_fraction, seed, holdout, memory: as in
            :func:`sde.data.images`.
    """
    train, test, valid = folders["train"], folders["test"], folders["valid"]
    if test is None and not 0 < test_fraction < 1:
        raise ValueError(f"expected 0 < test_fraction < 1, got test_fraction={test_fraction}")
    if train is None and (test is not None or valid is not None):
        raise ValueError(f"expected the folder of the training samples too, got train=None with {test=}, {valid=}")
    if valid is not None and holdout != 0:
        raise ValueError(f"expected one validation set, got both valid={valid!r} and holdout={holdout}")
    if folder_labels and table is not None and "label" in (columns or {"label": ""}):
        raise ValueError("expected labels from folders or from the table, got both: give columns= without label")
    roots = {"train": os.path.normpath(train or "."), "test": test, "valid": valid}
    below = {split: files_below(path / root, decode.suffixes) for split, root in roots.items() if root is not None}
    known = None if table is None else Table(table, columns, file_column)
    classes = _folders(path, roots, below) if folder_labels else None
    sources: dict[str, Source] = {}
    for split, names in below.items():
        root = os.path.normpath(roots[split] or ".")
        inside = names if root == "." else [f"{root}/{name}" for name in names]
        named = Named() if known is None else known.of(inside)
        if classes is not None:
            number = {name: i for i, name in enumerate(classes)}
            labels = torch.tensor([number[file.split("/")[0]] for file in names], device="cpu")
            named = replace(named, labels=labels, classes=classes)
        source = Files.of(path, inside, decode, named)
        sources[split] = source if source.nbytes > memory * 2**30 else source.in_memory()
    if test is None:
        sources["train"], sources["test"] = split_off(sources["train"], test_fraction, seed=seed)
    rest, held_out = hold_out(sources["train"], holdout, seed=seed)
    return rest, sources["test"], sources.get("valid", held_out)


def _folders(path: Path, roots: Mapping[str, str | None], files: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The names of the classes: the first folders of all files."""
    for split, names in files.items():
        for name in names:
            if "/" not in name:
                raise ValueError(
                    f"{path / (roots[split] or '')}: the file {name!r} lies in no folder of its own: expected "
                    "CLASS/... for folder_labels=true"
                )
    return tuple(sorted({name.split("/")[0] for names in files.values() for name in names}))


@dataclass(frozen=True, eq=False)
class Files(Source):
    """Samples in files, one in each, which are read as they are needed.

    Args:
        path: the folder.
        files: the paths of the files relative to it, as the system stores them, bytes with shape (N,).
        decode: the function from a file to its values.
        named: labels and other conditions.
    """

    path: Path
    files: NDArray[np.bytes_]
    decode: Decoder
    named: Named = Named()

    @classmethod
    def of(cls, path: Path, files: Sequence[str], decode: Decoder, named: Named) -> Files:
        """The samples in files with these paths relative to a folder."""
        return cls(path, np.array([os.fsencode(file) for file in files]), decode, named)

    def __post_init__(self) -> None:
        check_labels_of(self.named.labels, len(self))

    @property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        return self.named.labels

    @property
    def classes(self) -> tuple[str, ...] | None:  # type: ignore[override]
        return self.named.classes

    @property
    def captions(self) -> Sequence[str] | None:  # type: ignore[override]
        return self.named.captions

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor) -> Item:
        positions = index.tolist()
        values = self._values([self._name(i) for i in positions])
        condition = {} if self.labels is None else {"label": self.labels[index]}
        condition |= {name: value[index] for name, value in self.named.condition.items()}
        if (others := self.named.images) is not None:
            # The middles of 256 bins in [-1, 1].
            condition["image"] = (self._values([others[i] for i in positions]).float() + 0.5) / 128.0 - 1.0
        return values, condition

    @property
    def nbytes(self) -> int:
        """The size of all values in memory, in bytes."""
        return len(self) * self._example.nbytes

    def in_memory(self) -> Split:
        """All samples in memory."""
        values, condition = self[torch.arange(len(self), device="cpu")]
        labels = condition.pop("label", None)
        return Split(values, labels, condition, self.classes, self.captions)

    def describe(self, position: int) -> str:
        return str(self.path / self._name(position))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the names of all files, the content of some, and the settings; not of damage to the others."""
        texts = [str(self.decode), *(self.captions or ()), *(self.named.images or ())]
        tensors = [self.named.labels, *(value for _, value in sorted(self.named.condition.items()))]
        parts = ["\n".join(texts).encode(), *(t.numpy().tobytes() for t in tensors if t is not None)]
        some = ((self.path / self._name(i)).read_bytes() for i in evenly(len(self)).tolist())
        return digest_of([b"\n".join(self.files.tolist()), *parts, *some])

    @cached_property
    def _example(self) -> NDArray[Any]:
        return self.decode(self.path / self._name(0))

    def _name(self, position: int) -> str:
        return os.fsdecode(self.files[position])

    def _values(self, files: Sequence[str]) -> Tensor:
        first = self._example
        result = np.empty((len(files), *first.shape), dtype=first.dtype)
        for row, file in enumerate(files):
            values = self.decode(self.path / file)
            if values.shape != first.shape:
                sizes = ("x".join(map(str, each.shape[1:])) for each in (first, values))
                one, other = (f"{self.path / name} is {size}" for name, size in zip((self._name(0), file), sizes))
                raise UnreadableSample(f"expected samples of one size, but {one} and {other}: {self.decode.advice}")
            result[row] = values
        return torch.from_numpy(result)


def files_below(path: Path, suffixes: Sequence[str]) -> list[str]:
    """The paths of the files with one of the suffixes below a folder, relative to it and sorted."""
    if not path.is_dir():
        raise NotADirectoryError(f"the folder {path} does not exist")
    files = sorted(file.relative_to(path).as_posix() for file in _all_below(path))
    endings = [os.path.splitext(file)[1].lower() for file in files]
    others = Counter(suffix for suffix in endings if suffix not in suffixes)
    kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in others.most_common())
    passed_over = f"{others.total()} other files" + (f" ({kinds})" if kinds else "")
    if others.total() == len(files):
        raise ValueError(
            f"{path} contains no file of this kind: expected files that end in {', '.join(suffixes)}, got {passed_over}"
        )
    if others:
        warnings.warn(f"{path}: {passed_over} are of another kind and are passed over", stacklevel=5)
    return [file for file, suffix in zip(files, endings) if suffix in suffixes]


def _all_below(path: Path) -> Iterator[Path]:
    """The files below a folder without a leading dot: first those of its own folders, then those behind links."""
    roots, searched = [str(path)], set()

    def refuse(error: OSError) -> None:
        raise error

    for root in roots:  # grows by the links that are found
        for folder, folders, names in os.walk(root, onerror=refuse):
            if os.path.realpath(folder) in searched:
                folders.clear()
                continue
            searched.add(os.path.realpath(folder))
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            roots += [link for link in (os.path.join(folder, each) for each in folders) if os.path.islink(link)]
            yield from (Path(folder, name) for name in names if not name.startswith("."))
