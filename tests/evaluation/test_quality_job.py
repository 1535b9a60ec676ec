"""The quality job: sources, shared and resumed extraction, and results that depend on neither batches nor processes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support.sets import normals

import sde
from sde import metrics
from sde.data import Scaling
from sde.evaluation import QualityCheck, QualityJob, Shard, quality_job, quality_table, save_classifier
from sde.evaluation.feature_files import FeatureFiles
from sde.evaluation.item_sets import DrawnItems, StoredItems, items_of_file
from sde.metrics.features import ClassifierNetwork, RawValues
from sde.storage.hdf5 import decode
from sde.storage.store import Store

CONFIG: dict[str, Any] = {
    "samples": "a.npz",
    "restored": None,
    "reference": "b.npz",
    "split": "train",
    "array": "x",
    "levels": None,
    "n": None,
    "metrics": ["frechet", "precision_recall", "energy"],
    "groups": 5,
    "permutations": 19,
    "data_range": None,
    "seed": 0,
    "batch_size": 8,
    "cache": "features",
    "rank": 0,
    "world": 1,
    "ema": "default",
    "device": "cpu",
    "trust": [],
    "features": {"_target_": "sde.metrics.RawValues"},
    "solver": {"_target_": "sde.solvers.Heun", "steps": 2},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two files of items, and in it."""
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=normals(300, 3).numpy(), index=np.arange(300) + 7)
    np.savez("b.npz", x=(0.2 + normals(280, 3, seed=1)).numpy())
    np.savez("c.npz", x=(normals(300, 3) - 0.1).numpy(), index=np.arange(300) + 7)
    return tmp_path


def result(job: QualityJob) -> Any:
    for _ in job.extract():
        pass
    assert job.waiting() is None
    return [state for *_, state in job.measure()][-1]


def numbers(quality: Any) -> dict[str, float]:
    found = {f"{name} {m}": e for name, table in quality.estimates.items() for m, e in table.items()}
    return {f"{key} {x}": getattr(e, x) for key, e in found.items() for x in ("value", "standard_error")}


def test_the_measures_are_those_of_the_library(folder: Path) -> None:
    quality = result(quality_job(CONFIG))
    x, y = (torch.from_numpy(np.load(name)["x"]).float() for name in ("a.npz", "b.npz"))
    index = torch.arange(300) + 7, torch.arange(280)
    expected = metrics.frechet_distance(x, y, groups=5, index=index)
    assert quality.estimates["a"]["frechet"] == expected
    four = metrics.precision_recall(x, y, halvings=5, index=index)
    assert quality.estimates["a"]["coverage"] == four.coverage
    assert set(quality.estimates["a"]) == {"frechet", "precision", "recall", "density", "coverage", "energy"}
    assert "frechet" in quality_table(quality.estimates)
    assert f"{expected.value:.5g} +- {expected.standard_error:.2g}" in quality_table(quality.estimates)


def test_several_sets_have_paired_differences(folder: Path) -> None:
    quality = result(quality_job({**CONFIG, "samples": ["a.npz", "c.npz", "a.npz"]}))
    assert list(quality.estimates) == ["a", "c", "a 2"]
    first, second = (quality.estimates[name]["frechet"] for name in ("a", "c"))
    found = quality.differences["c"]["frechet"]
    assert found.value == pytest.approx(second.value - first.value)
    # a and c have their noise in common, so that a shift of one leaves little error.
    assert found.standard_error < 0.7 * np.hypot(first.standard_error, second.standard_error)
    assert quality.differences["a 2"]["frechet"].value == 0.0


def test_ranks_share_and_killed_jobs_resume_with_the_same_result(folder: Path) -> None:
    """A classifier in float64, in blocks of 7 or 256, by one process or three, killed in between: equal to 1e-10."""
    torch.manual_seed(0)
    save_classifier("c.pt", ClassifierNetwork((3,), 2, width=8))
    features = {"_target_": "sde.evaluation.load_classifier", "path": "c.pt"}
    whole = numbers(result(quality_job({**CONFIG, "features": {**features, "block": 256}})))
    shared = {**CONFIG, "features": {**features, "block": 7}, "cache": "others", "world": 3}
    jobs = [quality_job({**shared, "rank": rank}) for rank in range(3)]
    killed = jobs[0].extract()
    next(killed), next(killed)  # one piece is on the disk
    killed.close()
    pieces = {path: path.stat().st_mtime_ns for path in Path("others").rglob("*.h5")}
    assert len(pieces) == 1
    assert [state.rows for state in jobs[0].extract()][-1] == jobs[0].files[0].own + jobs[0].files[1].own
    assert {path: path.stat().st_mtime_ns for path in pieces} == pieces  # and is not computed again
    waiting = jobs[0].waiting()
    assert waiting is not None
    assert waiting.startswith("process 0 of 3 has finished; ")
    for job in jobs[1:]:
        for _ in job.extract():
            pass
    assert numbers(result(jobs[2])) == pytest.approx(whole, rel=1e-10)


def test_a_damaged_piece_is_computed_again(folder: Path) -> None:
    job = quality_job(CONFIG)
    before = numbers(result(job))
    path = sorted(Path("features").rglob("*.h5"))[1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="missing or damaged"):
        list(job.measure())
    assert numbers(result(job)) == before


def test_a_model_draws_its_samples_once(folder: Path) -> None:
    """Whatever comes at a time, and again for the pictures."""
    d = sde.exact.Gaussian(torch.zeros(2), torch.eye(2)).denoiser(sde.VP())
    model = sde.Model(d, Scaling.identity(), (2,))
    items = DrawnItems("gaussian", model, 300, sde.solvers.Heun(2), seed=3, source="x", batch_size=64)
    files = FeatureFiles(RawValues(), items, folder)
    assert list(files.run()) == [256, 44]
    expected = model.sample(300, solver=sde.solvers.Heun(2), seed=3)
    assert torch.allclose(files.load().features, expected, atol=1e-5)
    index = torch.tensor([299, 0, 260])
    assert torch.allclose(files.values(index), expected[index], atol=1e-5)
    again = FeatureFiles(RawValues(), replace(items, batch_size=7, name="b"), folder, Shard(0, 1))
    assert again.directory == files.directory
    assert FeatureFiles(RawValues(), replace(items, seed=4), folder).directory != files.directory


def test_restorations_are_compared_with_their_true_items(folder: Path) -> None:
    truth = torch.randint(0, 17, (30, 1, 12, 8), generator=torch.Generator().manual_seed(0)).byte()
    index = torch.tensor([3, 5, 5, 9, 20])
    means = lambda values, sizes: [float(part.mean()) for part in values.split(sizes)]  # noqa: E731
    x = (truth[index].int() + torch.tensor([1, 2, 4, 1, 0]).reshape(-1, 1, 1, 1)).clamp(max=16).byte()
    np.savez("truth.npz", x=truth.numpy(), levels=[17])
    columns = {"x": np.dtype((np.uint8, (1, 12, 8))), "psnr": float}  # a result file, as restore.py writes it
    with Store.open("restored.h5", columns, key={}) as store:
        rows = {"index": index.numpy(), "repeat": np.array([0, 0, 1, 0, 0]), "psnr": np.zeros(5), "x": x.numpy()}
        store.append(rows)
    config = {**CONFIG, "samples": None, "restored": "restored.h5", "reference": "truth.npz", "levels": 17}
    quality = result(quality_job({**config, "metrics": ["psnr", "ssim", "perceptual"]}))
    found = quality.estimates["restored"]
    psnr = metrics.psnr(x[:4], truth[index[:4]], data_range=16).per_item
    # Item 20 equals its truth; the two draws of item 5 count as one item.
    assert found["psnr"].per_item.tolist() == pytest.approx([*means(psnr, [1, 2, 1]), np.inf])
    ssim = metrics.ssim(x, truth[index], data_range=16, window=7).per_item
    assert found["ssim"].value == pytest.approx(np.mean(means(ssim, [1, 2, 1, 1])))
    assert found["ssim"].note.startswith("a window of 7")
    assert found["perceptual"].per_item[-1] == 0.0
    np.savez("short.npz", x=truth[:20].numpy(), levels=[17])
    with pytest.raises(ValueError, match="restorations of item 20"):
        quality_job({**config, "reference": "short.npz", "metrics": ["psnr"]})
    with pytest.raises(ValueError, match="psnr compares items with their true ones"):
        quality_job({**config, "samples": "restored.h5", "restored": None, "metrics": ["psnr"]})


def test_what_is_written_can_be_read(folder: Path) -> None:
    config = {**CONFIG, "metrics": ["frechet", "memorisation"], "reference": None, "samples": "d.npz"}
    config["data"] = {"_target_": "sde.data.digits", "holdout": 50}
    np.savez("d.npz", x=sde.data.digits().test.values[:40].numpy())
    quality = result(quality_job(config))
    quality.write(folder / "out" / "a.h5", {"seed": 0})
    rows = json.loads((folder / "out" / "a.json").read_text())
    assert rows["settings"] == {"seed": 0}
    assert [row["measure"] for row in rows["estimates"]] == ["frechet", "distance_ratio", "copies"]

    def read(file: h5py.File, size: int) -> tuple[Any, ...]:
        group, columns = file["items 0"], [file[key][:].tolist() for key in ("measure", "value")]
        return *columns, group["nearest"][:], dict(group.attrs), file.attrs["settings"]

    names, values, nearest, attributes, settings = decode(folder / "out" / "a.h5", read)
    assert names == [b"frechet", b"distance_ratio", b"copies"]
    assert values == [row["value"] for row in rows["estimates"]]
    assert len(nearest) == 40
    assert (attributes, settings) == ({"samples": "d"}, '{"seed": 0}')
    assert quality.memorisation["d"].expected.shape == (50,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": None}, "samples is missing"),
        ({"samples": "none.npz"}, "none.npz does not exist"),
        ({"reference": None}, "reference is missing"),
        ({"reference": "wide.npz"}, r"a has items of shape \(3,\).*wide of \(4,\)"),
        ({"levels": 5}, "is not|expected an integer"),
        ({"samples": "nan.npz"}, r"\[4, 1\] is nan"),
        ({"n": 301}, "a.npz has 300 items, fewer than n=301"),
        ({"metrics": ["memorisation"]}, "give data="),
        ({"samples": "index.npz"}, "one index for each of 5 items"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_extracted(
    folder: Path, change: dict[str, Any], words: str
) -> None:
    bad = normals(5, 3)
    np.savez("index.npz", x=bad.numpy(), index=np.arange(4))
    np.savez("wide.npz", x=normals(20, 4).numpy())
    bad[4, 1] = torch.nan
    np.savez("nan.npz", x=bad.numpy())
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        quality_job({**CONFIG, **change})
    assert not Path("features").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 1}, r"at least \d+ items, the samples has 1"),
        ({"n": 8, "metrics": ["precision_recall"]}, "at least 12 items, the samples has 8"),
        ({"samples": "constant.npz"}, "all 20 items of the samples have the same features"),
        ({"metrics": ["inception_score"]}, "without class logits"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(folder: Path, change: dict[str, Any], words: str) -> None:
    np.savez("constant.npz", x=np.ones((20, 3)))
    reasons = result(quality_job({**CONFIG, **change})).refused
    assert all(re.search(words, reason) for reason in reasons.values())
    assert list(reasons) == [
        f"{Path(change.get('samples', 'a')).stem}: {m}" for m in change.get("metrics", CONFIG["metrics"])
    ]


def test_a_measure_that_is_refused_takes_no_other_with_it(folder: Path) -> None:
    quality = result(quality_job({**CONFIG, "samples": ["a.npz", "c.npz"], "metrics": ["inception_score", "frechet"]}))
    assert [list(table) for table in (*quality.estimates.values(), *quality.differences.values())] == [["frechet"]] * 3
    assert list(quality.refused) == ["a: inception_score", "c: inception_score"]
    quality.write(folder / "a.h5", {})
    assert json.loads((folder / "a.json").read_text())["refused"] == quality.refused


def test_files_of_samples_say_their_levels_and_indices(folder: Path) -> None:
    np.savez("d.npz", x=np.zeros((4, 1, 8, 8), np.uint8), levels=[17], index=np.arange(4) + 5)
    items = items_of_file(Path("d.npz"), n=3)
    assert (items.levels, items.index.tolist(), items.shape) == (17, [5, 6, 7], (1, 8, 8))
    with h5py.File("d.h5", "w") as file:
        file["x"], file["index"], file["levels"] = np.zeros((4, 1, 8, 8), np.uint8), np.arange(4) * 2, [17]
    stored = items_of_file(Path("d.h5"))
    assert (stored.levels, stored.index.tolist()) == (17, [0, 2, 4, 6])
    np.save("e.npy", np.zeros((4, 1, 8, 8), np.uint8))
    assert items_of_file(Path("e.npy")).levels == 256
    assert items_of_file(Path("e.npy"), levels=4).levels == 4
    one, other = (StoredItems("a", sde.data.Split(normals(3, 2)), levels) for levels in (None, 5))
    assert one.fingerprint != other.fingerprint
    assert one.values(torch.tensor([2, 0])).shape == (2, 2)


def test_the_quality_of_a_model_in_training() -> None:
    """The exact model of the data is at its null; one of other data is not, by many errors."""
    x = normals(400, 2).float()
    data = sde.data.DataSet("normals", Scaling.identity(), sde.data.Split(x), sde.data.Split(x[:50]))
    how = {"n": 200, "items": 300, "solver": sde.solvers.Heun(8)}
    check = QualityCheck(data, RawValues(), ("frechet", "precision_recall"), **how)
    assert check.reference.features.shape == (300, 2)
    lines = []
    for scale in (1.0, 0.4):
        d = sde.exact.Gaussian(torch.zeros(2), scale**2 * torch.eye(2)).denoiser(sde.VP())
        model = sde.Model(d, Scaling.identity(), (2,))
        lines.append(check(model, batch_size=64))
    expected = metrics.frechet_distance(model.sample(200, solver=sde.solvers.Heun(8), seed=0), x[:300])
    assert lines[1]["frechet"] == pytest.approx(expected.value, rel=1e-4)
    names = ("frechet", "precision", "recall", "density", "coverage")
    assert lines[0].keys() == {f"{name}{error}" for name in names for error in ("", "_error")}
    assert abs(lines[0]["frechet"]) < 4 * lines[0]["frechet_error"]
    assert lines[1]["frechet"] > 4 * lines[1]["frechet_error"]
    # (1 - 0.4)^2 in each of two dimensions.
    assert lines[1]["frechet"] == pytest.approx(0.72, abs=4 * lines[1]["frechet_error"])
    with pytest.raises(ValueError, match="'fid'"):
        QualityCheck(data, RawValues(), ("fid",))
