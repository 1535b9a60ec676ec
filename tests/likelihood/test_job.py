"""The likelihood job: every (index, repeat) once, rows that do not depend on interruptions, and their summary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde.data import Scaling, Split
from sde.denoiser import Denoiser
from sde.exact import Gaussian
from sde.likelihood.job import COLUMNS, Rows, score, summarise
from sde.model import Model
from sde.processes import VP
from sde.solvers import Heun, RungeKutta
from sde.trace import Exact, Hutchinson

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


def collect(rows: list[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}


def test_every_pair_once_in_order(model: Model, split: Split) -> None:
    parts = list(score(model, split, repeats=3, batch_size=4, solver=Heun(3)))
    assert [len(part["index"]) for part in parts] == [4, 4, 2] * 3
    rows = collect(parts)
    pairs = list(zip(rows["repeat"].tolist(), rows["index"].tolist()))
    assert pairs == [(repeat, index) for repeat in range(3) for index in range(10)]
    assert set(rows) == {"index", "repeat", *COLUMNS}
    assert all(np.isfinite(rows[name]).all() for name in ("bits_per_dim", "log_prob", "prior_log_prob", "divergence"))
    assert all(rows[name].dtype == kind for name, kind in COLUMNS.items())


def test_rows_are_the_model_s(model: Model, split: Split) -> None:
    (part,) = score(model, split, repeats=1, batch_size=10, seed=5, solver=SOLVER, trace=Hutchinson(2))
    r = model.log_prob(split.values, seed=5, index=torch.arange(10), repeat=0, solver=SOLVER, trace=Hutchinson(2))
    for name, value in (
        ("log_prob", r.nats),
        ("prior_log_prob", r.prior),
        ("divergence", r.divergence),
        ("standard_error", r.standard_error),
        ("nfe", r.nfe),
    ):
        assert np.array_equal(part[name], value.numpy()), name
    volume = math.log(2.0 / LEVELS)  # the width of a level's cell in [-1, 1]
    bits = -(part["log_prob"] / D + volume) / math.log(2.0)
    np.testing.assert_allclose(part["bits_per_dim"], bits, rtol=1e-12)
    np.testing.assert_allclose(part["log_prob"], part["prior_log_prob"] + part["divergence"], rtol=1e-12)


def test_repeats_differ_in_dequantisation_and_probes(model: Model, split: Split) -> None:
    rows = collect(list(score(model, split, repeats=2, solver=Heun(3))))
    assert bool((rows["log_prob"][:10] != rows["log_prob"][10:]).all())
    # Continuous data has no dequantisation noise, so that what differs is the probes.
    continuous = Model(Wavy(), Scaling.identity(), (D,))
    rows = collect(list(score(continuous, Split(split.values.double() / 4.0 - 1.0), repeats=2, solver=Heun(3))))
    assert np.array_equal(rows["prior_log_prob"][:10], rows["prior_log_prob"][10:])
    assert not np.array_equal(rows["divergence"][:10], rows["divergence"][10:])


def test_seeds(model: Model, split: Split) -> None:
    runs = [collect(list(score(model, split, seed=seed, solver=Heun(3)))) for seed in (0, 0, 1)]
    assert np.array_equal(runs[0]["log_prob"], runs[1]["log_prob"])
    assert bool((runs[0]["log_prob"] != runs[2]["log_prob"]).all())


@pytest.mark.parametrize("cut", [0, 1, 2, 4, 5])
def test_a_resumed_job_gives_the_rows_of_an_undisturbed_one(model: Model, split: Split, cut: int) -> None:
    """After `cut` batches, the last of which was half written: bit for bit, in the same order."""
    settings: dict[str, Any] = {"repeats": 2, "batch_size": 4, "solver": SOLVER}
    parts = list(score(model, split, **settings))
    whole = collect(parts)
    kept = parts[:cut]
    if cut:
        kept[-1] = {name: values[::2] for name, values in kept[-1].items()}
    done = {(int(r), int(i)) for part in kept for r, i in zip(part["repeat"], part["index"])}

    def ready(repeat: int) -> frozenset[int]:
        return frozenset(i for r, i in done if r == repeat)

    both = collect([*kept, *score(model, split, **settings, done=ready)])
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
    runs = [collect(list(score(model, split, batch_size=size, solver=SOLVER))) for size in (1, 3, 10)]
    for run in runs[1:]:
        np.testing.assert_allclose(run["log_prob"], runs[0]["log_prob"], rtol=1e-9)
        assert np.array_equal(run["nfe"], runs[0]["nfe"])


def test_the_first_n(model: Model, split: Split) -> None:
    whole, some = (collect(list(score(model, split, n=n, batch_size=5, solver=Heun(3)))) for n in (None, 7))
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
def test_settings_out_of_range_are_refused(model: Model, split: Split, given: dict[str, int]) -> None:
    name, value = next(iter(given.items()))
    with pytest.raises(ValueError, match=rf"1 <= n <= 10 \(the samples there are\).*{name}={value}"):
        next(score(model, split, **given))  # type: ignore[arg-type]


def test_an_exact_model_s_bits() -> None:
    """Continuous data of a Gaussian model: the log-density of the data at `t_min`, on the scale of the raw values."""
    mean, cov = torch.zeros(2, dtype=torch.float64), torch.diag(torch.tensor([0.5, 1.5], dtype=torch.float64))
    target, scaling = Gaussian(mean, cov), Scaling(scale=0.5, shift=-1.0)
    model = Model(target.denoiser(VP()), scaling, (2,))
    values = torch.tensor([[1.0, 2.0], [3.0, -1.0], [2.0, 2.5]], dtype=torch.float64)
    (part,) = score(model, Split(values), trace=Exact(), solver=RungeKutta(rtol=1e-7, atol=1e-7))
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
    with pytest.raises(ValueError, match="no row to summarise"):
        summarise(rows([], [], []))


def test_summary_of_a_job(model: Model, split: Split) -> None:
    table = collect(list(score(model, split, repeats=2, batch_size=4, solver=Heun(3))))
    s = summarise(table)
    means = table["bits_per_dim"].reshape(2, 10).mean(0)
    assert s.bits_per_dim == pytest.approx(means.mean(), rel=1e-12)
    assert s.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(10), rel=1e-12)
    assert (s.samples, s.rows, s.nfe) == (10, 20, 6.0)
