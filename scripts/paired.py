"""Compares two result files sample by sample: `python scripts/paired.py first=PATH second=PATH`."""

from __future__ import annotations

from typing import Any

from command import command

from sde.evaluation import paired


@command("paired")
def main(config: dict[str, Any]) -> None:
    first, second, column = config["first"], config["second"], config["column"]
    result = paired(first, second, column=column)
    dropped = f"; {result.dropped} rows without a finite partner are left out" if result.dropped else ""
    print(f"{column}, {second} - {first}: {result}{dropped}")


if __name__ == "__main__":
    main()
