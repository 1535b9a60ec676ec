r"""Reports of a comparison: Markdown tables with aligned columns, and CSV."""

from __future__ import annotations

__all__ = ["csv_text", "markdown", "write_report"]

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from ..storage.files import write_atomically
from .plan import FAILED, OK, REFUSED, TOO_SMALL
from .plots import work_precision
from .table import Row

_MIB = 2.0**20


def markdown(rows: Sequence[Row]) -> str:
    """The Markdown tables of a comparison.

    `0.012 ±9%` is a number with its 95 % band, where 9 % is the larger side of the band. The smallest number of a
    column is bold, and so are all numbers whose band reaches down to it.
    """
    ok = [row for row in rows if row.status == OK]
    budgets = sorted({row.calls for row in rows if row.calls})
    deterministic = [row for row in rows if row.calls and not row.stochastic]
    stochastic = [row for row in rows if (row.calls and row.stochastic) or row.solver == "exact"]
    adaptive = [row for row in ok if row.tolerance]
    distances = {"sliced": "Sliced Wasserstein distance", "mean": "Error of the mean"}
    distances["covariance"] = "Error of the covariance"
    parts = _tables("deterministic", deterministic, budgets, {"strong": "Strong error", "median": "Median error"})
    parts += _tables("stochastic", stochastic, budgets, distances)
    if adaptive:
        parts.append(f"**Adaptive solvers, by tolerance**\n\n{_by_tolerance(adaptive)}")
    if ok:
        parts.append(f"**Cost of the longest run**\n\n{_costs(ok)}")
    if designs := [row for row in ok if row.pilot_samples]:
        parts.append(f"**Cost of the pilot runs that designed solvers**\n\n{_pilots(designs)}")
    without_result = [row for row in rows if row.status in (REFUSED, FAILED)]
    lines = dict.fromkeys(f"- {row.solver} {row.grid}: {row.status}: {row.reason}" for row in without_result)
    if lines:
        parts.append("**Refused or failed**\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write_report(rows: Sequence[Row], folder: Path, title: str) -> str:
    """Writes `compare.md`, `compare.csv` and, if there are results, `compare.png` into a directory.

    Args:
        rows: the rows of a comparison.
        folder: the directory.
        title: the title of the report, in one line.

    Returns:
        The tables, and a last line with the names of the files.
    """
    text = f"{title}\n\n{markdown(rows)}"
    names = {"compare.md": text.encode(), "compare.csv": csv_text(rows).encode()}
    for name, data in names.items():
        write_atomically(folder / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
    files = ["compare.h5", *names]
    if any(row.status == OK and row.nfe > 0 for row in rows):
        work_precision(rows, folder / "compare.png", title)
        files.append("compare.png")
    return f"{text}\nwrote {', '.join(files)} in {folder}"


def csv_text(rows: Sequence[Row]) -> str:
    """All rows with all columns, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _tables(kind: str, rows: Sequence[Row], budgets: Sequence[int], titles: Mapping[str, str]) -> list[str]:
    """The tables of the solvers of one kind, one for each error in `titles`; none if there are no results."""
    if not any(row.status == OK for row in rows):
        return []
    tables = {title: _by_budget(rows, budgets, name) for name, title in titles.items()}
    return [f"**{title} of {kind} solvers, by calls**\n\n{table}" for title, table in tables.items()]


def _by_budget(rows: Sequence[Row], budgets: Sequence[int], name: str) -> str:
    methods = list(dict.fromkeys((row.solver, row.grid) for row in rows))
    best = {budget: _best([row for row in rows if row.calls == budget], name) for budget in budgets}
    table = [["solver", "grid", *map(str, budgets)]]
    for solver, grid in methods:
        selection = [row for row in rows if (row.solver, row.grid) == (solver, grid)]
        if solver == "exact":
            # Exact samples take no calls: the Monte-Carlo floor is the same for every budget.
            table.append(["exact samples", "", *[_with_band(selection[0], name)] * len(budgets)])
            continue
        entries = {row.calls: _entry(row, name, best[row.calls]) for row in selection}
        table.append([solver, grid, *(entries.get(budget, "") for budget in budgets)])
    return _aligned(table)


def _by_tolerance(rows: Sequence[Row]) -> str:
    table = [["solver", "tolerance", "calls", "most calls", "strong error", "median error", "sliced Wasserstein"]]
    for row in rows:
        calls = [f"{row.nfe:.1f}", str(row.nfe_max)]
        errors = [_with_band(row, name) for name in ("strong", "median", "sliced")]
        table.append([row.solver, f"{row.tolerance:g}", *calls, *errors])
    return _aligned(table)


def _costs(rows: Sequence[Row]) -> str:
    table = [["solver", "grid", "calls", "ms", "network ms", "own µs/call", "peak MiB", "own MiB"]]
    longest: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.nfe > 0 and row.nfe >= longest.get((row.solver, row.grid), row).nfe:
            longest[row.solver, row.grid] = row
    for row in longest.values():
        overhead = (row.seconds - row.network_seconds) / row.nfe
        seconds = [f"{1e3 * row.seconds:.1f}", f"{1e3 * row.network_seconds:.1f}", f"{1e6 * overhead:.0f}"]
        memory = [f"{row.memory / _MIB:.2f}", f"{row.own_memory / _MIB:.2f}"]
        table.append([row.solver, row.grid, f"{row.nfe:.0f}", *seconds, *memory])
    return _aligned(table)


def _pilots(rows: Sequence[Row]) -> str:
    table = [["solver", "calls", "pilot samples", "pilot seconds", "pilot calls", "pilot calls/sample"]]
    for row in rows:
        cost = [f"{row.pilot_seconds:.1f}", str(row.pilot_calls), f"{row.pilot_calls / row.pilot_samples:.0f}"]
        table.append([row.solver, str(row.steps), str(row.pilot_samples), *cost])
    return _aligned(table)


def _entry(row: Row, name: str, best: float) -> str:
    if row.status != OK:
        return "-" if row.status == TOO_SMALL else row.status
    text = _with_band(row, name)
    return f"**{text}**" if getattr(row, f"{name}_low") <= best else text


def _best(rows: Sequence[Row], name: str) -> float:
    return min((getattr(row, name) for row in rows if row.status == OK), default=math.nan)


def _with_band(row: Row, name: str) -> str:
    value, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return ""
    if not value > 0.0:
        return "0"
    text = f"{value:.0f}" if value >= 10.0 else f"{value:.2g}"
    return f"{text} ±{max(high - value, value - low) / value:.0%}"


def _aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths)) + " |" for line in table]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
