"""Draws a data set from a model, for training on: `python scripts/augment.py ckpt=PATH per_class=100`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from command import command, show, swept

from sde.evaluation import Augmentation, JobSetup
from sde.evaluation.outputs import relevant
from sde.plots import save_samples
from sde.storage.store import read

# The keys on which the rows of the file do not depend.
RESUMABLE_KEYS = ("ckpt", "out", "device", "trust", "per_class", "batch_size")


@command("augment")
def main(config: dict[str, Any]) -> None:
    setup = JobSetup.load(config)
    model, solver = setup.model, setup.build("solver")
    training = setup.split("train")
    kind = "new" if config["strength"] is None else f"strength{config['strength']}"
    name = f"{setup.path.stem}-{kind}-seed{config['seed']}{swept(*RESUMABLE_KEYS, 'strength', 'seed')}.h5"
    path = Path(config["out"] or setup.directory / "augmented" / name)
    settings = {key: config[key] for key in ("per_class", "seed", "strength", "copies", "batch_size")}
    key = {**setup.key(*RESUMABLE_KEYS), "fingerprint": training.fingerprint}
    job = Augmentation(model, training, path, solver=solver, key=key, metadata=setup.metadata, **settings)
    show(job.run(), unit="row")
    columns = read(path).columns
    picture = path.with_suffix(".png")
    shown = torch.from_numpy(columns["x"][: 8 * job.classes])
    across = job.classes if shown.ndim > 2 and job.classes > 1 else None
    save_samples(picture, shown, model.scaling, settings=relevant(config), columns=across)
    dropped = sum(1 + columns["candidate"][columns["index"] % job.classes == c].max() for c in range(job.classes))
    near = int(dropped) - len(columns["index"])
    print(f"{len(columns['index'])} rows, {near} near-copies of training items dropped; wrote {path} and {picture}")
    labels = "" if model.classes is None else " data.train_labels=label"
    levels = "" if model.scaling.levels in (None, 256) else f" data.levels={model.scaling.levels}"
    print(f"train on it by data=arrays data.path={path} data.train=x data.test=null{labels}{levels}")


if __name__ == "__main__":
    main()
