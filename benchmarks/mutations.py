"""Mutations: small faults put into the package one after the other, to see which of them the tests notice.

`mutants.py` beside this file lists the faults. Each is made in a copy of the repository, and the tests named with it
run there until the first one fails. A mutant that survives is a fault that those tests would let through; after a
change of the tests no mutant may survive that was killed before.

    python benchmarks/mutations.py                        all of them, about fifteen minutes
    python benchmarks/mutations.py exact dynamics         those of the groups whose names contain a word
    python benchmarks/mutations.py --list                 what there is
    python benchmarks/mutations.py --out before.csv       the outcome of each as a line of a table
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mutants import GROUPS, Mutant

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("sde", "scripts", "tests", "configs", "benchmarks", "docs")


def mutated(mutant: Mutant, text: str) -> str:
    """The text with the fault in it.

    Raises:
        ValueError: if the fault does not fit the text, which has changed since it was written.
    """
    result, count = re.subn(mutant.old, mutant.new, text, count=1, flags=re.DOTALL)
    if count == 0 or result == text:
        raise ValueError(f"{mutant.file}: no place for {mutant.old!r}; adapt it in benchmarks/mutants.py")
    return result


@contextlib.contextmanager
def fault(mutant: Mutant, tree: Path) -> Iterator[None]:
    """The fault in a tree, for a while."""
    path = tree / mutant.file
    text = path.read_text() if path.exists() else None
    cache = Path(importlib.util.cache_from_source(str(path)))
    path.write_text(mutated(mutant, text or ""))
    try:
        cache.unlink(missing_ok=True)
        yield
    finally:
        cache.unlink(missing_ok=True)
        if text is None:
            path.unlink()
        else:
            path.write_text(text)


def copied(root: Path, tree: Path) -> None:
    """The files of a repository that the tests need."""
    for name in FOLDERS:
        if (root / name).exists():
            shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for path in root.iterdir():
        if path.is_file():
            shutil.copy(path, tree / path.name)


def outcome(tree: Path, tests: tuple[str, ...], timeout: float) -> tuple[str, str]:
    """Whether the tests killed what is in the tree, and the first that failed."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "killed", "ran out of time"
    if done.returncode == 0:
        return "survived", ""
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if done.returncode not in (1, 2) or not failures:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return "killed", failures[0].split(" ", 1)[1].partition(" - ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Faults in the package, and whether the tests notice them.")
    parser.add_argument("words", nargs="*", help="groups to run, by a part of their name; all by default")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository, this one by default")
    parser.add_argument("--out", type=Path, help="a CSV file for the outcomes; those it holds are not run again")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one mutant")
    settings = parser.parse_args()
    chosen = [
        (f"{name}-{number}", mutant, group.tests)
        for name, group in GROUPS.items()
        if not settings.words or any(word in name for word in settings.words)
        for number, mutant in enumerate(group.mutants, 1)
    ]
    known = {}
    if settings.out and settings.out.exists():
        with settings.out.open(newline="") as file:
            known = {row[0]: row[1] for row in csv.reader(file)}
    if settings.list:
        for key, mutant, _ in chosen:
            print(f"{key:20} {mutant.file}: {mutant.old!r} -> {mutant.new!r}")
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copied(settings.root, tree)
        for key, mutant, tests in chosen:
            if key in known:
                continue
            begun = time.monotonic()
            with fault(mutant, tree):
                result, by = outcome(tree, tests, settings.timeout)
            known[key] = result
            print(f"{key:20} {result:8} {time.monotonic() - begun:5.1f} s  {by or mutant}", flush=True)
            if settings.out:
                with settings.out.open("a", newline="") as file:
                    csv.writer(file).writerow([key, result, mutant.file, by])
    survivors = [key for key, *_ in chosen if known[key] == "survived"]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed; survivors: {', '.join(survivors) or 'none'}")


if __name__ == "__main__":
    main()
