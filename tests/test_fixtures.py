"""The fixtures stay small, and the tests read nothing outside of the repository."""

from __future__ import annotations

from pathlib import Path

from support.fixtures import FIXTURES

TESTS = Path(__file__).resolve().parent


def test_the_fixtures_take_at_most_8_mb() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) <= 8e6


def test_no_test_reads_what_lies_beside_the_repository() -> None:
    outside = "/".join(["..", "shared"])
    for path in TESTS.rglob("*.py"):
        text = path.read_text()
        assert outside not in text, path
        assert '"shared"' not in text or path == Path(__file__), path
