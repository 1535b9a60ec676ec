"""Converts a checkpoint of another project: `python scripts/convert.py source=PATH`; `--help` lists the keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from command import command

from sde.instantiate import MODEL_ROOMS, build, public
from sde.interop import read
from sde.model import from_checkpoint
from sde.storage.checkpoint import write


@command("convert")
def main(config: dict[str, Any]) -> None:
    source = Path(config["source"])
    out = Path(config["out"] or f"{source.stem}.pt")
    if out.exists() and (out.is_dir() or out.samefile(source) or not config["overwrite"]):
        advice = "" if out.is_dir() or out.samefile(source) else ", or overwrite=true"
        raise ValueError(f"{out} exists already: give another out={advice}")
    process = build(config["sde"], rooms=MODEL_ROOMS) if config.get("sde") else None
    content = read(source, config["settings"], process)
    if "format" in content:
        raise ValueError(f"{source} is a checkpoint of this library already")
    tree = json.loads(content["model"])
    if process is not None:
        tree["process"] = config["sde"]
    content = {**content, "model": json.dumps(public(tree), indent=1)}
    model = from_checkpoint(content)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, content)
    n = sum(value.numel() for value in model.denoiser.parameters())
    print(f"converted {source}, {n} parameters for data of shape {model.shape} under {model.process}; wrote {out}")


if __name__ == "__main__":
    main()
