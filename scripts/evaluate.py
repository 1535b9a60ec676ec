"""Measures samples: `python scripts/evaluate.py samples=PATH data=digits`; `--help` lists the keys."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from command import command, progress, show

from sde.evaluation import Quality, QualityJob, quality_job, quality_table
from sde.evaluation.outputs import check_replaceable, relevant
from sde.plots import fidelity_and_diversity, histograms, measures, save_neighbours
from sde.storage.files import Lock

# The keys that results do not depend on, and those of sources, which count by their content.
IRRELEVANT_KEYS = ("cache", "rank", "world", "batch_size", "samples", "restored", "reference")


@command("evaluate")
def main(config: dict[str, Any]) -> None:
    job = quality_job(config)
    settings = relevant(config, *IRRELEVANT_KEYS, facts=job.facts)
    name = "-".join(files.items.name for files in (*job.samples, job.reference))[:80].replace(" ", "_")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    out = Path(config["out"] or f"runs/evaluation/{name}-{digest}.h5")
    check_replaceable(out, settings, overwrite=config["overwrite"])
    show(job.extract(), unit="item")
    if text := job.waiting():
        print(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(f"{out}.lock")
    except BlockingIOError:
        print("another process computes the measures")
        return
    result = Quality({}, {})
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        for (*what, so_far), bar in progress(job.measure(), job.steps, unit="measure"):
            bar.set_postfix_str(" ".join(what), refresh=False)
            result = so_far
        if any(result.estimates.values()):
            result.write(out, settings)
            print(f"{quality_table(result.estimates)}\n")
            if result.differences:
                print(f"minus {next(iter(result.estimates))}:\n{quality_table(result.differences)}\n")
            written = out.with_suffix(".json"), *pictures(out, job, result)
            print(f"wrote {out}, {', '.join(path.name for path in written)}")
    if result.refused:
        raise ValueError("not computed: " + "; ".join(f"{what} ({reason})" for what, reason in result.refused.items()))


def pictures(out: Path, job: QualityJob, result: Quality) -> list[Path]:
    """Writes the pictures beside the result file."""
    written = [out.with_suffix(".png")]
    measures(result.estimates, result.differences).savefig(written[0])
    more = {
        "precision-recall": fidelity_and_diversity(result.estimates),
        "histograms": histograms(result.estimates, result.memorisation),
    }
    for name, figure in more.items():
        if figure is not None:
            written.append(out.with_name(f"{out.stem}-{name}.png"))
            figure.savefig(written[-1])
    for number, files in enumerate(job.samples):
        if (copies := result.memorisation.get(files.items.name)) is None or job.training is None:
            continue
        assert copies.ratio.per_item is not None
        closest = copies.ratio.per_item.argsort()[:12]
        written.append(out.with_name(f"{out.stem}-nearest{number if len(job.samples) > 1 else ''}.png"))
        pair = files.values(closest), job.training.values(copies.nearest[closest])
        save_neighbours(written[-1], *pair, files.items.levels)
    return written


if __name__ == "__main__":
    main()
