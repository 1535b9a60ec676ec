"""The likelihood job: every (index, repeat) once, rows that do not depend on interruptions, and their summary."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde.data import Scaling, Split
from sde.denoisers import Denoiser
from sde.evaluation.forecast import forecast
from sde.evaluation.job import Job, waiting
from sde.evaluation.likelihood_job import COLUMNS, FlowScorer
from sde.evaluation.sharding import WHOLE, BatchPlan, Done, Shard, nothing_done
from sde.evaluation.shards import done_in, opened
from sde.evaluation.summary import Rows, RunningMean, join, summarise
from sde.exact import Gaussian
from sde.likelihood.dequantisation import TruncatedNormal, UniformDequantiser, discrete_log_prob
from sde.model import Model
from sde.processes import VP
from sde.solvers import Heun, RungeKutta
from sde.storage.files import Lock
from sde.storage.store import Store, read
from sde.trace import ExactTrace, Hutchinson

LEVELS, D = 8, 3
SOLVER = RungeKutta(rtol=1e-3, atol=1e-3)


class Wavy(Denoiser):
    """Additions and products of single numbers, which round alike in any batch, and a Jacobian off its diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.process = VP()
        self.register_buffer("like", torch.zeros(1, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        y = x_t + 0.3 * x_t.roll(1, dims=1)
        return y / (1.0 + y * y)


@pytest.fixture
def model() -> Model:
    return Model(Wavy(), Scaling.interval(LEVELS), (D,))


@pytest.fixture
def split() -> Split:
    values = torch.randint(0, LEVELS, (10, D), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Split(values)


def score(
    model: Model,
    split: Split,
    *,
    n: int | None = None,
    repeats: int = 1,
    batch_size: int = 128,
    shard: Shard = WHOLE,
    done: Done = nothing_done,
    **settings: Any,
) -> Iterator[Rows]:
    """The rows of a job, batch by batch."""
    scorer = FlowScorer(model, split, **settings)
    return scorer.score(BatchPlan(len(split), n, repeats, batch_size, shard), done)


def test_every_pair_once_in_order(model: Model, split: Split) -> None:
    parts = list(score(model, split, repeats=3, batch_size=4, solver=Heun(3)))
    assert [len(part["index"]) for part in parts] == [4, 4, 2] * 3
    rows = join(*parts)
    pairs = list(zip(rows["repeat"].tolist(), rows["index"].tolist()))
    assert pairs == [(repeat, index) for repeat in range(3) for index in range(10)]
    assert set(rows) == {"index", "repeat", *COLUMNS}
    assert all(np.isfinite(rows[name]).all() for name in ("bits_per_dim", "log_prob", "prior_log_prob", "divergence"))
    assert all(rows[name].dtype == kind for name, kind in COLUMNS.items())


def test_rows_are_the_model_s(model: Model, split: Split) -> None:
    (part,) = score(model, split, repeats=1, batch_size=10, seed=5, solver=SOLVER, trace=Hutchinson(2))
    r = model.log_prob(split.values, seed=5, index=torch.arange(10), repeat=0, solver=SOLVER, trace=Hutchinson(2))
    for name, value in (
        ("log_prob", r.prior + r.divergence),  # in the model's range
        ("prior_log_prob", r.prior),
        ("divergence", r.divergence),
        ("standard_error", r.standard_error),
        ("nfe", r.nfe),
    ):
        assert np.array_equal(part[name], value.numpy()), name
    volume = math.log(2.0 / LEVELS)  # the width of a level's cell in [-1, 1]
    bits = -(part["log_prob"] / D + volume) / math.log(2.0)
    np.testing.assert_allclose(part["bits_per_dim"], bits, rtol=1e-12)
    np.testing.assert_allclose(part["bits_per_dim"], -r.nats / (D * math.log(2.0)), rtol=1e-12)
    np.testing.assert_allclose(part["log_prob"], part["prior_log_prob"] + part["divergence"], rtol=1e-12)


def test_repeats_differ_in_dequantisation_and_probes(model: Model, split: Split) -> None:
    rows = join(*score(model, split, repeats=2, solver=Heun(3)))
    assert bool((rows["log_prob"][:10] != rows["log_prob"][10:]).all())
    # Continuous data has no dequantisation noise, so that what differs is the probes.
    continuous = Model(Wavy(), Scaling.identity(), (D,))
    rows = join(*score(continuous, Split(split.values.double() / 4.0 - 1.0), repeats=2, solver=Heun(3)))
    assert np.array_equal(rows["prior_log_prob"][:10], rows["prior_log_prob"][10:])
    assert not np.array_equal(rows["divergence"][:10], rows["divergence"][10:])


def test_seeds(model: Model, split: Split) -> None:
    runs = [join(*score(model, split, seed=seed, solver=Heun(3))) for seed in (0, 0, 1)]
    assert np.array_equal(runs[0]["log_prob"], runs[1]["log_prob"])
    assert bool((runs[0]["log_prob"] != runs[2]["log_prob"]).all())


@pytest.mark.parametrize("cut", [0, 1, 2, 4, 5])
def test_a_resumed_job_gives_the_rows_of_an_undisturbed_one(model: Model, split: Split, cut: int) -> None:
    """After `cut` batches, the last of which was half written: bit for bit, in the same order."""
    settings: dict[str, Any] = {"repeats": 2, "batch_size": 4, "solver": SOLVER}
    parts = list(score(model, split, **settings))
    whole = join(*parts)
    kept = parts[:cut]
    if cut:
        kept[-1] = {name: values[::2] for name, values in kept[-1].items()}
    done = {(int(r), int(i)) for part in kept for r, i in zip(part["repeat"], part["index"])}

    def ready(repeat: int) -> frozenset[int]:
        return frozenset(i for r, i in done if r == repeat)

    both = join(*kept, *score(model, split, **settings, done=ready))
    order = np.lexsort((both["index"], both["repeat"]))
    for name, values in whole.items():
        assert np.array_equal(both[name][order], values, equal_nan=True), name


def test_finished_batches_cost_nothing(model: Model, split: Split) -> None:
    """All samples of the first two batches done: only the third is computed, and a job all done yields nothing."""
    calls = []
    model.denoiser.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    settings: dict[str, Any] = {"batch_size": 4, "solver": Heun(3)}
    rest = list(score(model, split, **settings, done=lambda repeat: frozenset(range(8))))
    assert [part["index"].tolist() for part in rest] == [[8, 9]]
    assert calls == [2] * 6
    assert list(score(model, split, **settings, done=lambda repeat: frozenset(range(10)))) == []
    assert len(calls) == 6


def test_rows_do_not_depend_on_batches(model: Model, split: Split) -> None:
    runs = [join(*score(model, split, batch_size=size, solver=SOLVER)) for size in (1, 3, 10)]
    for run in runs[1:]:
        np.testing.assert_allclose(run["log_prob"], runs[0]["log_prob"], rtol=1e-9)
        assert np.array_equal(run["nfe"], runs[0]["nfe"])


def test_the_first_n(model: Model, split: Split) -> None:
    whole, some = (join(*score(model, split, n=n, batch_size=5, solver=Heun(3))) for n in (None, 7))
    assert some["index"].tolist() == list(range(7))
    np.testing.assert_allclose(some["log_prob"], whole["log_prob"][:7], rtol=1e-9)


def test_it_works_batch_by_batch(model: Model, split: Split) -> None:
    """A generator: nothing is computed before it is asked for."""
    calls = []
    model.denoiser.register_forward_pre_hook(lambda module, given: calls.append(1))
    job = score(model, split, batch_size=5, solver=Heun(2))
    assert calls == []
    next(job)
    assert len(calls) == 4


@pytest.mark.parametrize("given", [{"repeats": 0}, {"batch_size": 0}, {"n": 0}, {"n": 11}])
def test_settings_out_of_range_are_refused(model: Model, split: Split, given: dict[str, Any]) -> None:
    name, value = next(iter(given.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        score(model, split, **given)


def test_an_exact_model_s_bits() -> None:
    """Continuous data of a Gaussian model: the log-density of the data at `t_min`, on the scale of the raw values."""
    mean, cov = torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([0.5, 1.5], dtype=torch.float64))
    target, scaling = Gaussian(mean, cov), Scaling(scale=0.5, shift=-1.0)
    model = Model(target.denoiser(VP()), scaling, (2,))
    values = torch.tensor([[1.0, 2.0], [3.0, -1.0], [2.0, 2.5]], dtype=torch.float64)
    (part,) = score(model, Split(values), trace=ExactTrace(), solver=RungeKutta(rtol=1e-7, atol=1e-7))
    y = 0.5 * values - 1.0
    nats = target.log_prob(y, VP(), VP().t_min) + 2.0 * math.log(0.5)
    np.testing.assert_allclose(part["bits_per_dim"], (-nats / (2.0 * math.log(2.0))).numpy(), atol=2e-3)
    assert part["standard_error"].tolist() == [0.0] * 3


# ---- the summary


def rows(index: list[int], bits: list[float], nfe: list[int]) -> Rows:
    return {"index": np.array(index), "bits_per_dim": np.array(bits), "nfe": np.array(nfe)}


def test_summary_is_over_samples_not_over_rows() -> None:
    """Samples 3, 7 and 9 with means 2, 4 and 9: mean 5, standard deviation sqrt(13); the rows may come in any order."""
    s = summarise(rows([7, 3, 9, 3, 7, 7], [3.0, 1.0, 9.0, 3.0, 4.0, 5.0], [10, 20, 30, 40, 50, 60]))
    assert (s.samples, s.rows) == (3, 6)
    assert s.bits_per_dim == pytest.approx(5.0, rel=1e-15)
    assert s.standard_error == pytest.approx(math.sqrt(13.0 / 3.0), rel=1e-15)
    assert s.nfe == pytest.approx(35.0, rel=1e-15)
    assert str(s).startswith(f"5.0000 +- {math.sqrt(13.0 / 3.0):.4f} bits/dim")
    assert "3 samples" in str(s)


def test_summary_of_a_single_sample_has_no_error() -> None:
    s = summarise(rows([4, 4], [1.0, 3.0], [5, 5]))
    assert s.bits_per_dim == 2.0
    assert math.isnan(s.standard_error)


def test_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        summarise(rows([], [], []))


def test_summary_of_a_job(model: Model, split: Split) -> None:
    table = join(*score(model, split, repeats=2, batch_size=4, solver=Heun(3)))
    s = summarise(table)
    means = table["bits_per_dim"].reshape(2, 10).mean(0)
    assert s.bits_per_dim == pytest.approx(means.mean(), rel=1e-12)
    assert s.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(10), rel=1e-12)
    assert (s.samples, s.rows, s.nfe) == (10, 20, 6.0)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_running_means_are_those_of_the_summary(size: int) -> None:
    """After every batch, in any order of samples and repeats, with values that are not finite among them."""
    rng = np.random.RandomState(0)
    index, bits = rng.permutation(np.repeat(np.arange(20), 3)), 1e3 + rng.normal(size=60)
    bits[[3, 17, 40]] = [math.nan, math.inf, math.nan]
    mean = RunningMean()
    assert str(mean) == "nan +- nan"
    for end in range(size, 61, size):
        mean.add(index[end - size : end], bits[end - size : end])
        s = summarise(rows(index[:end], bits[:end], np.ones(end)))  # type: ignore[arg-type]
        assert str(mean) == f"{s.bits_per_dim:.4f} +- {s.standard_error:.4f}"


# ---- rows that failed


def test_failed_rows_are_counted_and_left_out() -> None:
    """Sample 2 failed once and counts with its other row; sample 5 failed in both and does not count."""
    nan = math.nan
    s = summarise(rows([1, 2, 5, 1, 2, 5], [1.0, nan, nan, 3.0, 6.0, nan], [10, 99, 99, 20, 30, 99]))
    assert (s.samples, s.rows, s.failed) == (2, 6, 3)
    assert (s.bits_per_dim, s.standard_error, s.nfe) == (4.0, 2.0, 20.0)
    assert str(s).endswith("over 2 samples, 20.0 network calls each; 3 of 6 rows failed and are left out)")
    s = summarise(rows([1, 2], [nan, nan], [3, 3]))
    assert (s.samples, s.rows, s.failed) == (0, 2, 2)
    assert math.isnan(s.bits_per_dim)
    assert math.isnan(s.standard_error)


class Breaking(Wavy):
    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        broken = (x_t[:, :1] > 1.5) & (condition["label"][:, None] == 1)
        return super().forward(x_t, t).where(~broken, math.nan)


def test_a_failure_is_one_row_s(split: Split) -> None:
    """Samples that the solver marks: the other rows are as they would be without them."""
    model = Model(Breaking(), Scaling.interval(LEVELS), (D,), classes=2)
    solver = RungeKutta(rtol=1e-3, atol=1e-3, on_failure="mark")
    sound, bad = (
        join(*score(model, Split(split.values, labels), solver=solver))
        for labels in (torch.zeros(10, dtype=torch.int64), torch.arange(10) % 2)
    )
    failed = np.isnan(bad["log_prob"])
    assert 0 < failed.sum() <= 5
    assert np.array_equal(bad["bits_per_dim"][~failed], sound["bits_per_dim"][~failed])
    assert summarise(bad).failed == failed.sum()


# ---- what is refused, at once


def called(model: Model) -> list[int]:
    calls: list[int] = []
    model.denoiser.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    return calls


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            torch.full((4, D), LEVELS, dtype=torch.uint8),
            rf"\[0, 0\] is {LEVELS}.*0 to 7",
        ),
        (torch.zeros(0, D, dtype=torch.uint8), r"shape \(0, 3\)"),
        (torch.zeros(4, D + 1, dtype=torch.uint8), r"\(B, 3\), got \(4, 4\)"),
        (torch.tensor([[0.0, 1.0, 2.5]]), r"\[0, 2\] is 2.5"),
        (torch.tensor([[0.0, 1.0, math.nan]]), r"\[0, 2\] is nan"),
    ],
    ids=["level", "empty", "shape", "fraction", "nan"],
)
def test_bad_data_is_refused_before_a_call(model: Model, values: Tensor, words: str) -> None:
    calls = called(model)
    with pytest.raises(ValueError, match=words):
        score(model, Split(values))
    assert calls == []


def test_continuous_data_has_its_own_refusals(split: Split) -> None:
    model = Model(Wavy(), Scaling.identity(), (D,))
    calls = called(model)
    bad = torch.zeros(4, D)
    bad[2, 1] = math.inf
    with pytest.raises(ValueError, match=r"\[2, 1\] is inf"):
        score(model, Split(bad))
    with pytest.raises(ValueError, match=r"floating.*torch\.uint8"):
        score(model, split)
    with pytest.raises(ValueError, match=r"continuous.*UniformDequantiser"):
        score(model, Split(bad.nan_to_num(posinf=0.0)), dequantiser=UniformDequantiser())
    assert calls == []


def test_labels_are_the_model_s(split: Split) -> None:
    model = Model(Wavy(), Scaling.interval(LEVELS), (D,), classes=3)
    with pytest.raises(ValueError, match=r"3 classes.*no labels"):
        score(model, split)
    with pytest.raises(ValueError, match=r"labels\[3\] is 3.*0 to 2"):
        score(model, Split(split.values, torch.arange(10)))


@pytest.mark.parametrize("atol", [0.1, -1.0])
def test_a_tolerance_that_nothing_holds_is_refused(model: Model, split: Split, atol: float) -> None:
    with pytest.raises(ValueError, match=f"atol={atol}"):
        score(model, split, solver=Heun(2) if atol > 0 else SOLVER, atol=atol)


# ---- shards


@pytest.mark.parametrize("world", [1, 2, 3, 7, 30])
def test_shards_make_up_the_whole(model: Model, split: Split, world: int) -> None:
    """Every batch belongs to one shard, and its rows are those of a single process, bit for bit."""
    settings: dict[str, Any] = {"repeats": 2, "batch_size": 3, "solver": Heun(2)}
    whole = join(*score(model, split, **settings))
    parts = [part for rank in range(world) for part in score(model, split, shard=Shard(rank, world), **settings)]
    assert len(parts) == 2 * -(-10 // min(3, -(-10 // world)))  # of three samples, or fewer to give each process some
    both = join(*parts)
    order = np.lexsort((both["index"], both["repeat"]))
    for name, values in whole.items():
        assert np.array_equal(both[name][order], values, equal_nan=True), name
    plans = [BatchPlan(10, None, 2, 3, Shard(rank, world)) for rank in range(world)]
    assert sum(plan.pending() for plan in plans) == 20
    counts = [len(list(plan.batches())) for plan in plans]
    assert max(counts) - min(counts) <= 1


def test_every_process_has_some_of_few_samples() -> None:
    """Of 10 samples in one batch, two processes score five each."""
    plans = [BatchPlan(10, batch_size=128, shard=Shard(rank, 2)) for rank in range(2)]
    assert [[index.tolist() for _, index, _ in plan.batches()] for plan in plans] == [
        [[0, 1, 2, 3, 4]],
        [[5, 6, 7, 8, 9]],
    ]


def test_what_is_pending() -> None:
    done = {0: frozenset({0, 1, 2, 4}), 1: frozenset(range(10))}
    assert BatchPlan(10, None, 3, 3).pending(lambda repeat: done.get(repeat, frozenset())) == 6 + 0 + 10
    batches = BatchPlan(10, None, 1, 3).batches(lambda repeat: done[repeat])
    assert [(index.tolist(), new.tolist()) for _, index, new in batches] == [
        ([3, 4, 5], [True, False, True]),
        ([6, 7, 8], [True] * 3),
        ([9], [True]),
    ]


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0), ("0", 1), (0.0, 1), (True, 2)])
def test_a_shard_is_one_of_its_world(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"rank={rank!r}, world={world}"):
        Shard(rank, world)


def test_processes_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Shard(rank, 3).device("auto") for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert Shard(1, 3).device("cpu") == "cpu"
    assert Shard().device("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert Shard(1, 3).device("auto") == "auto"


# ---- dequantisation, grids, forecasts


def test_another_dequantisation_has_its_weight_in_the_bits(model: Model, split: Split) -> None:
    rule = TruncatedNormal.matched(model.process, model.scaling)
    (part,) = score(model, split, dequantiser=rule, seed=4, solver=SOLVER, trace=ExactTrace())
    bound = discrete_log_prob(
        model.denoiser, split.values, model.scaling, dequantiser=rule, seed=4, solver=SOLVER, trace=ExactTrace()
    )
    np.testing.assert_allclose(part["bits_per_dim"], bound.bits_per_dim.numpy(), rtol=1e-12)


class Slow(Wavy):
    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        time.sleep(0.01)
        return super().forward(x_t, t, **condition)


def test_a_forecast(split: Split) -> None:
    """Calls exactly, for fixed steps; time by the clock of the second batch; memory grows with the batch."""
    model = Model(Slow(), Scaling.interval(LEVELS), (D,))
    calls = called(model)
    scorer = FlowScorer(model, split, solver=Heun(2))
    f = forecast(scorer, BatchPlan(10, None, 3, 2))
    assert (f.rows, f.nfe, f.calls, f.pilot) == (30, 4.0, 120.0, 4)
    assert len(calls) == 8
    # Fifteen batches of four calls of 10 ms each, and what the machine's other work takes.
    assert 0.6 < f.seconds < 6.0
    assert str(f).startswith("30 rows, 120 network calls (4.0 a row), about 0:00:0")
    assert forecast(scorer, BatchPlan(10, None, 3, 5)).bytes > f.bytes > 0
    half = forecast(scorer, BatchPlan(10, None, 3, 2, Shard(1, 2)), lambda repeat: frozenset(range(10 * (repeat == 0))))
    assert half.rows == 10
    assert forecast(scorer, BatchPlan(10, None, 3, 2), lambda repeat: frozenset(range(10))).rows == 0


def test_a_forecast_of_one_batch(model: Model, split: Split) -> None:
    f = forecast(FlowScorer(model, split, solver=Heun(2)), BatchPlan(10, None, 1, 10))
    assert (f.rows, f.calls, f.pilot) == (10, 40.0, 10)
    assert f.seconds > 0.0


# ---- the file


def job(model: Model, split: Split, path: Path, config: str = "{}", **plan: Any) -> Job[FlowScorer]:
    scorer = FlowScorer(model, split, solver=Heun(2))
    return Job("data", scorer, BatchPlan(len(split), **plan), path, {"config": config}, {"note": "a"})


def test_a_job_writes_its_rows_and_shows_their_means(model: Model, split: Split, tmp_path: Path) -> None:
    """Begun with fewer samples, and continued; the means are those of all rows so far."""
    path, plan = tmp_path / "new" / "a.h5", {"repeats": 2, "batch_size": 4}
    first, whole = job(model, split, path, n=4, **plan), job(model, split, path, **plan)
    assert [(state.rows, state.total) for state in first.run()] == [(0, 8), (4, 8), (8, 8)]
    assert waiting([first]) is None
    states = list(whole.run())
    assert [(state.rows, state.total) for state in states] == [(8, 20), (12, 20), (14, 20), (18, 20), (20, 20)]
    table = whole.table()
    assert sorted(zip(table["repeat"], table["index"])) == [(r, i) for r in range(2) for i in range(10)]
    s = summarise(table)
    assert states[-1].means == f"bits_per_dim {s.bits_per_dim:.4f} +- {s.standard_error:.4f}"
    assert read(path).attributes == {"config": "{}", "note": "a"}
    more = waiting([whole, job(model, split, path, repeats=3, batch_size=4)])
    assert more is not None
    assert "10 rows" in more


def test_a_file_with_the_names_of_an_older_version_is_continued(model: Model, split: Split, tmp_path: Path) -> None:
    """Its config names classes as version 0.1.0 did and lacks a key that is null. It stays as it is, and any other
    difference counts."""
    trees: list[dict[str, Any]] = [
        {"trace": {"_target_": exact, "chunk": 64}, "dequantise": {"_target_": f"{module}.TruncatedNormal.matched"}}
        for exact, module in (("sde.Exact", "sde.likelihood.dequantise"), ("sde.ExactTrace", "sde.likelihood"))
    ]
    trees[1]["data"] = {"valid_labels": None}
    old, new = (json.dumps(tree, sort_keys=True, indent=1) for tree in trees)
    path = tmp_path / "a.h5"
    for config, n in ((old, 2), (new, 4), (new, 6), (old, 10)):
        assert list(job(model, split, path, config, n=n).run())[-1].rows == n
        assert read(path).attributes["config"] == old
    for config in (new.replace("64", "32"), new.replace("ExactTrace", "Hutchinson"), "not a tree"):
        with pytest.raises(ValueError, match=r"another job.*'config'"):
            next(job(model, split, path, config).run())
    # The shards of two processes have the names of the file that they belong to.
    for rank in (0, 1):
        list(job(model, split, path, new, repeats=2, batch_size=5, shard=Shard(rank, 2)).run())
    assert len(read(path).columns["index"]) == 20


def test_shards_of_a_killed_job_are_gathered_by_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their journals too; a row that stands in two places comes once; parts of another job are refused."""
    path, key, unlink = tmp_path / "a.h5", {"seed": 1}, Path.unlink

    def checked(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".h5":  # a kill here must find its rows in the file
            assert set(read(self).columns["index"].tolist()) <= set(read(path).columns["index"].tolist())
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", checked)
    block = {name: np.zeros(2, kind) for name, kind in COLUMNS.items()}
    for rank, index in ((0, [0, 1]), (2, [4, 5])):
        part = Store.open(tmp_path / f"a.part{rank}.h5", COLUMNS, key=key)
        part.append({**block, "index": np.array(index), "repeat": np.zeros(2, np.int64)})
        part._lock.release()  # as the kill leaves it: the rows in the journal, and no holder of the lock
        part._open = False
    with Store.open(path, COLUMNS, key=key) as store:
        store.append({**block, "index": np.array([1, 7]), "repeat": np.zeros(2, np.int64)})
    assert done_in(path)(0) == {1, 7}
    assert done_in(path)(1) == done_in(tmp_path / "none.h5")(0) == frozenset()
    with pytest.raises(ValueError, match=r"another job.*'seed'"), opened(path, columns=COLUMNS, key={"seed": 2}):
        pass
    with opened(path, columns=COLUMNS, key=key, shard=Shard(1, 2)) as target:
        assert target.rows["index"].tolist() == [0, 1, 4, 5, 7]
        assert target.done(0) == {0, 1, 4, 5, 7}
        assert sorted(p.name for p in tmp_path.glob("*.h5")) == ["a.h5", "a.part1.h5"]
        # While it is written nobody else may write it, nor the whole file alone; the other process may.
        for shard in (Shard(1, 2), Shard()):
            with pytest.raises(BlockingIOError, match="part1"), opened(path, columns=COLUMNS, key=key, shard=shard):
                pass
        with opened(path, columns=COLUMNS, key=key, shard=Shard(0, 2)) as other:
            other.store.append({**block, "index": np.array([2, 3]), "repeat": np.zeros(2, np.int64)})
        target.store.append({**block, "index": np.array([8, 9]), "repeat": np.zeros(2, np.int64)})
        assert read(path).columns["index"].tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert read(path).columns["index"].tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5"]


def test_a_busy_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    lock = Lock(f"{path}.lock")
    with pytest.raises(BlockingIOError), opened(path, columns=COLUMNS, key={}):
        pass
    with pytest.raises(BlockingIOError), opened(path, columns=COLUMNS, key={}, shard=Shard(0, 2), patience=0.05):
        pass
    timer = threading.Timer(0.1, lock.release)
    timer.start()
    with opened(path, columns=COLUMNS, key={}, shard=Shard(0, 2), patience=30.0) as target:
        assert len(target.rows["index"]) == 0
    timer.join()
