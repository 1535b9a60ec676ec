"""Measures side by side: each is its library function's, its terms add up, and on exact models they agree.

Statistics are of fixed seeds; a deviation of 4.5 standard errors has a probability of 7e-6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sde.data import Scaling, Split
from sde.denoisers import Denoiser
from sde.evaluation.bounds_job import BoundsScorer, decoder_std, default_chain
from sde.evaluation.bounds_table import MEASURES, MeasureSummary, columns_of, summarise_measures, table
from sde.evaluation.likelihood_job import FlowScorer, batch_states
from sde.evaluation.plots import against_flow
from sde.evaluation.sharding import BatchPlan, Done, nothing_done
from sde.evaluation.shards import opened
from sde.evaluation.summary import Rows, join
from sde.exact import Empirical, Gaussian, Uniform
from sde.grids import Explicit, LogSNR
from sde.likelihood import chain_bound, continuous_bound, density_bound
from sde.likelihood.dequantisation import TruncatedNormal
from sde.likelihood.truncation import default_end, truncated_at
from sde.model import Model
from sde.processes import VE, VP, DiscreteChain, SubVP
from sde.solvers import Ancestral, Heun, RungeKutta
from sde.storage.store import read
from sde.trace import ExactTrace, Hutchinson

F64 = torch.float64
MANY = 4.5
LEVELS, D = 8, 3
CHEAP: dict[str, Any] = {"draws": 3, "data_draws": 2, "chain": Ancestral(4, LogSNR()), "solver": Heun(3, LogSNR())}
NAMES = tuple(MEASURES)


class Wavy(Denoiser):
    """Additions and products of single numbers, which round alike in any batch, shifted by the label."""

    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.process = VP()
        self.register_buffer("like", torch.zeros(1, dtype=dtype))

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None, **condition: Tensor) -> Tensor:
        y = x_t + 0.3 * x_t.roll(1, dims=1) + (0.0 if label is None else 0.1 * label[:, None])
        return y / (1.0 + y * y)


@pytest.fixture(params=[F64, torch.float32], ids=["float64", "float32"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(Wavy(request.param), Scaling.interval(LEVELS), (D,), classes=3)


@pytest.fixture
def split() -> Split:
    values = torch.randint(0, LEVELS, (10, D), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Split(values, torch.arange(10) % 3)


FLOW = ("solver", "trace", "atol", "dequantiser", "seed")


def measure(
    model: Model,
    split: Split,
    *,
    n: int | None = None,
    repeats: int = 1,
    batch_size: int = 128,
    done: Done = nothing_done,
    **settings: Any,
) -> Iterator[Rows]:
    """The rows of a job, batch by batch."""
    flow = {name: settings.pop(name) for name in FLOW if name in settings}
    scorer = BoundsScorer(FlowScorer(model, split, **flow), **settings)
    return scorer.score(BatchPlan(len(split), n, repeats, batch_size), done)


def collect(model: Model, split: Split, **settings: Any) -> Rows:
    return join(*measure(model, split, **{**CHEAP, **settings}))


def same(one: Rows, two: Rows) -> None:
    assert one.keys() == two.keys()
    for name, values in two.items():
        np.testing.assert_array_equal(one[name], values, err_msg=name)


# ---- what the columns are


def test_every_measure_is_its_library_function_s(model: Model, split: Split) -> None:
    """Of the same noise, with the labels, in bits/dim; the flow's are the rows of the likelihood job."""
    given: dict[str, Any] = {"seed": 4, "index": torch.arange(10), "condition": {"label": split.labels}}
    rows = collect(model, split, seed=4, repeats=2, trace=Hutchinson(2), end=0.4, chain_draws=2)
    scorer = FlowScorer(model, split, seed=4, trace=Hutchinson(2), solver=CHEAP["solver"])
    flow = join(*scorer.score(BatchPlan(10, repeats=2)))
    same({"flow": rows["flow"], "nfe": rows["flow_nfe"]}, {"flow": flow["bits_per_dim"], "nfe": flow["nfe"]})
    unit = D * math.log(2.0)
    np.testing.assert_allclose(rows["flow_prior"], -flow["prior_log_prob"] / unit, rtol=1e-6)
    rounding = 1e-6 * np.abs(rows["flow_prior"]).max()
    np.testing.assert_allclose(rows["flow_divergence"], -flow["divergence"] / unit, rtol=1e-6, atol=rounding)
    np.testing.assert_allclose(rows["flow_standard_error"], flow["standard_error"] / unit, rtol=1e-6)
    late = truncated_at(model.denoiser, model.scaling, 0.4)
    std = decoder_std(late.process, CHEAP["chain"])
    assert std == pytest.approx(0.4 * model.scaling.scale)
    for repeat in (0, 1):
        batch, _ = batch_states(model, split, torch.arange(10), seed=4, repeat=repeat)
        bounds = {
            "density": density_bound(model.denoiser, batch.x, draws=3, repeat=repeat, scaling=model.scaling, **given),
            "continuous": continuous_bound(
                late, split.values, model.scaling, draws=3, data_draws=2, repeat=repeat, **given
            ),
            "chain": chain_bound(
                late, split.values, model.scaling, solver=CHEAP["chain"], draws=2, std=std, repeat=repeat, **given
            ),
        }
        here = rows["repeat"] == repeat
        for name, bound in bounds.items():
            terms = [rows[f"{name}_{term}"][here] for term in MEASURES[name]]
            np.testing.assert_allclose(rows[name][here], bound.bits_per_dim, rtol=1e-12)
            np.testing.assert_allclose(terms[0], -bound.prior / unit, rtol=1e-12)
            np.testing.assert_allclose(terms[1], -bound.diffusion / unit, rtol=1e-12)
            weight = model.scaling.log_det(D) if name == "density" else bound.data
            np.testing.assert_allclose(terms[2], np.broadcast_to(-weight / unit, 10), rtol=1e-12)
            np.testing.assert_allclose(rows[f"{name}_standard_error"][here], bound.standard_error / unit, rtol=1e-12)
            assert rows[f"{name}_nfe"][here].tolist() == bound.nfe.tolist()
    assert rows["density_nfe"][0] == 2 * 3
    assert rows["continuous_nfe"][0] == 3 + 2
    assert rows["chain_nfe"][0] == 2 * 5
    assert bool((rows["chain"][:10] != rows["chain"][10:]).all())


def test_the_terms_add_up(model: Model, split: Split) -> None:
    """To the last digits: of levels, under another dequantisation, and of continuous data on the scale of the data."""
    rule = TruncatedNormal.matched(model.process, model.scaling)
    wide = Model(model.denoiser, Scaling((0.25, 0.5, 1.0), (0.3, -1.0, 0.0)), (D,), classes=3)
    points = Split(split.values.double() / 4.0, split.labels)
    for rows in (collect(model, split), collect(model, split, dequantiser=rule), collect(wide, points)):
        for name, terms in MEASURES.items():
            total = sum(rows[f"{name}_{term}"] for term in terms)
            np.testing.assert_allclose(total, rows[name], rtol=1e-12, atol=1e-12, err_msg=name)
    bound = continuous_bound(
        wide.denoiser, points.values, wide.scaling, draws=3, data_draws=2, condition={"label": points.labels}
    )
    np.testing.assert_allclose(rows["continuous"], bound.bits_per_dim, rtol=1e-12)
    assert rows["flow_weight"] == pytest.approx(1.0)  # the mean of -log2 of the scales


def test_the_columns_are_those_that_are_announced(model: Model, split: Split, tmp_path: Path) -> None:
    for names in (NAMES, ("chain",), ("density", "flow")):
        rows, columns = collect(model, split, measures=names), columns_of(names)
        assert rows.keys() == {"index", "repeat", *columns}
        assert all(rows[name].dtype == kind for name, kind in columns.items())
        with opened(tmp_path / f"{names[0]}.h5", key={}, columns=columns) as target:
            target.store.append(rows)
        same(read(tmp_path / f"{names[0]}.h5").columns, rows)


# ---- batches, and what is done already


def test_rows_do_not_depend_on_batches(split: Split) -> None:
    model = Model(Wavy(), Scaling.interval(LEVELS), (D,), classes=3)
    settings: dict[str, Any] = {"repeats": 2, "end": 0.4}
    whole = collect(model, split, **settings)
    assert list(zip(whole["repeat"], whole["index"])) == [(r, i) for r in range(2) for i in range(10)]
    for size in (1, 3):
        rows = collect(model, split, batch_size=size, **settings)
        for name, values in whole.items():
            np.testing.assert_allclose(rows[name], values, rtol=1e-9, atol=1e-9, err_msg=name)
    first = collect(model, split, n=7, batch_size=5, **settings)
    assert first["index"].tolist() == [*range(7)] * 2
    np.testing.assert_allclose(first["chain"][:7], whole["chain"][:7], rtol=1e-9)


@pytest.mark.parametrize("names", [NAMES, ("chain",)], ids=["all", "one"])
@pytest.mark.parametrize("cut", [0, 1, 2, 4, 5])
def test_a_resumed_job_gives_the_rows_of_an_undisturbed_one(split: Split, cut: int, names: tuple[str, ...]) -> None:
    """After `cut` batches, the last of which was half written: bit for bit."""
    model = Model(Wavy(torch.float32), Scaling.interval(LEVELS), (D,), classes=3)
    rule = TruncatedNormal.matched(model.process, model.scaling)  # its weights differ from image to image
    settings: dict[str, Any] = {**CHEAP, "repeats": 2, "batch_size": 4, "measures": names, "dequantiser": rule}
    parts = list(measure(model, split, **settings))
    kept = parts[:cut]
    if cut:
        kept[-1] = {name: values[::2] for name, values in kept[-1].items()}
    done = {(int(r), int(i)) for part in kept for r, i in zip(part["repeat"], part["index"])}
    rest = measure(model, split, **settings, done=lambda repeat: frozenset(i for r, i in done if r == repeat))
    both = join(*kept, *rest)
    order = np.lexsort((both["index"], both["repeat"]))
    same({name: values[order] for name, values in both.items()}, join(*parts))


def test_measures_do_not_disturb_each_other(model: Model, split: Split) -> None:
    whole = collect(model, split)
    for name in NAMES:
        alone = collect(model, split, measures=[name])
        same(alone, {column: whole[column] for column in alone})


def test_it_runs_in_full_precision_and_leaves_no_graph(split: Split) -> None:
    """Also where the caller allows TF32, and with parameters that ask for gradients; nothing runs before its turn."""

    class Watched(Wavy):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1, dtype=F64))
            self.seen: set[tuple[bool, bool]] = set()

        def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            self.seen.add((torch.backends.cuda.matmul.allow_tf32, torch.is_grad_enabled()))
            return self.scale * super().forward(x_t, t)

    model = Model(Watched(), Scaling.interval(LEVELS), (D,))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        job = measure(model, split, measures=["density", "continuous", "chain"], **CHEAP)
        assert model.denoiser.seen == set()
        next(job)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert model.denoiser.seen == {(False, False)}


# ---- exact models


def test_on_gaussian_data_the_bounds_lie_above_the_flow_which_is_the_truth() -> None:
    """In the mean over 400 points: the density's bound is the flow's density but for the prior, the other two are above
    it, and all of them are what the truth and their stated errors say."""
    target = Gaussian(torch.tensor([0.4, -0.2], dtype=F64), torch.diag(torch.tensor([0.3, 0.8], dtype=F64)))
    scaling, process = Scaling(0.5, -0.3), VP(t_min=1e-3, beta_max=60.0)
    model = Model(target.denoiser(process), scaling, (2,))
    x = target.sample(400, generator=torch.Generator().manual_seed(1))
    split = Split((x + 0.3) / 0.5)
    how: dict[str, Any] = {"solver": RungeKutta(rtol=1e-6, atol=1e-6), "trace": ExactTrace(), "batch_size": 400}
    rows = join(*measure(model, split, draws=64, chain=default_chain(process, 250), **how))
    truth = -(target.log_prob(x, process, process.t_min) + 2.0 * math.log(0.5)) / (2.0 * math.log(2.0))
    np.testing.assert_allclose(rows["flow"], truth, atol=1e-3)
    found = {measure.name: measure for measure in summarise_measures(rows)}
    assert list(found) == list(NAMES)
    assert found["flow"].difference is None
    assert found["flow"].draws == 0.0
    for name in ("density", "continuous", "chain"):
        d = found[name].difference
        assert d is not None
        assert d.samples == 400
        said = found[name].draws / math.sqrt(400) if name != "chain" else d.standard_error
        assert 0.2 * d.standard_error < said < 1.5 * d.standard_error
        assert d.difference > -MANY * d.standard_error
        assert d.difference < (0.6 if name == "chain" else 0.1)
    density, continuous, chain = (found[name].difference for name in ("density", "continuous", "chain"))
    assert density is not None
    assert continuous is not None
    assert chain is not None
    assert abs(density.difference) < MANY * density.standard_error
    assert chain.difference > MANY * chain.standard_error  # 250 steps are not yet continuous time
    assert chain.difference > continuous.difference


def test_with_more_steps_the_chain_comes_down_to_continuous_time() -> None:
    """Of points of one dimension, their slack falls as one over the steps."""
    target, process = Gaussian(torch.zeros(1, dtype=F64), 0.3 * torch.eye(1, dtype=F64)), VP(t_min=1e-2)
    model = Model(target.denoiser(process), Scaling.identity(), (1,))
    split = Split(target.sample(4000, generator=torch.Generator().manual_seed(1)))
    settings: dict[str, Any] = {"batch_size": 4000, "draws": 64}
    limit = join(*measure(model, split, measures=["continuous"], **settings))["continuous"]
    slack, errors = [], []
    for n in (5, 20, 80):
        rows = join(*measure(model, split, measures=["chain"], chain=default_chain(process, n), **settings))
        slack.append(float((rows["chain"] - limit).mean()))
        errors.append(float((rows["chain"] - limit).std()) / math.sqrt(4000))
    assert slack[0] > slack[1] + MANY * errors[1] > slack[2] + MANY * errors[1]
    assert slack[1] / 4.0 == pytest.approx(slack[2], abs=MANY * errors[2])


# ---- truncation


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), DiscreteChain.linear(1000).sde()])
@pytest.mark.parametrize("bins", [0.2, 0.5])
def test_a_process_is_truncated_where_the_noise_is_so_wide(process: Any, bins: float) -> None:
    scaling = Scaling.interval(4)
    d = Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)).denoiser(process)
    late = truncated_at(d, scaling, bins)
    t = torch.tensor(late.process.t_min, dtype=F64)
    assert float(process.sigma(t) / process.alpha(t)) == pytest.approx(bins * 0.5, rel=1e-9)
    assert late.process.t_max == process.t_max
    x = torch.tensor([[0.3, -1.0]], dtype=F64)
    for prediction in ("__call__", "score", "noise"):
        assert torch.equal(getattr(late, prediction)(x, t), getattr(d, prediction)(x, t))
    for name in ("log_alpha", "var", "f", "g2", "log_snr", "prior_var"):
        assert torch.equal(getattr(late.process, name)(t), getattr(process, name)(t)), name
    assert truncated_at(d, scaling, None) is d
    if not isinstance(process, SubVP | VP):
        assert truncated_at(d, scaling, 1e-9) is d  # there the noise is wider than that at t_min


def test_an_end_leaves_the_condition_alone() -> None:
    d, x, t, label = Wavy(), torch.tensor([[0.3, -1.0, 0.2]], dtype=F64), torch.tensor(0.5), torch.tensor([2])
    late = truncated_at(d, Scaling.interval(LEVELS), 0.5)
    assert torch.equal(late(x, t, label=label), d(x, t, label=label))
    assert not torch.equal(late(x, t, label=label), d(x, t))


def test_the_end_of_a_bound_is_one_s_choice_and_matters() -> None:
    """Under the exact denoiser of a density that is uniform within its cells no bound can be below log2 L; at `t_min`
    it lies above by the precision that is asked for, at half a cell by little. Of points, `t_min` is best."""
    scaling, process = Scaling.interval(4, 0.0, 1.0), VP(t_min=1e-4)
    values = torch.arange(4, dtype=torch.uint8).repeat(50)[:, None]
    flat = Model(Uniform(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)).denoiser(process), scaling, (1,))
    middles = scaling.to_model(torch.arange(4)[:, None], dtype=F64)
    points = Model(Empirical(middles).denoiser(process), scaling, (1,))
    bits, errors = {}, {}
    for name, model in (("flat", flat), ("points", points)):
        for end in (None, 0.5):
            rows = join(*measure(model, Split(values), measures=["continuous"], draws=64, end=end, batch_size=200))
            bits[name, end] = rows["continuous"].mean()
            errors[name, end] = rows["continuous"].std() / math.sqrt(200)
            assert bits[name, end] > 2.0 - MANY * errors[name, end]
    t = torch.tensor(process.t_min, dtype=F64)
    precision = math.log2(0.25 / (math.sqrt(2.0 * math.pi * math.e) * float(process.sigma(t) / process.alpha(t))))
    assert bits["flat", None] - 2.0 == pytest.approx(precision, abs=0.25)
    assert bits["flat", 0.5] < 2.0 + 0.25
    assert abs(bits["points", None] - 2.0) < MANY * errors["points", None]
    assert bits["points", 0.5] > bits["points", None]


def test_the_default_ends() -> None:
    levels, chain = Scaling.interval(4), DiscreteChain.linear(30).sde()
    assert default_end(VP(), levels) == 0.5
    assert default_end(VP(), Scaling.identity()) is None
    assert default_end(chain, levels) is None


def test_the_default_chains() -> None:
    """DDPM's own where there is one, N network calls; as many steps as are asked for otherwise."""
    process = DiscreteChain.linear(30).sde()
    own = default_chain(process)
    assert own == default_chain(process, 29) == Ancestral(29)
    times = own.grid.times(process, own.steps, process.t_min, process.t_max)
    torch.testing.assert_close(times, torch.arange(1, 31, dtype=F64) / 30)
    assert decoder_std(process, own) is None
    assert decoder_std(process, Ancestral(29, LogSNR())) == decoder_std(process, Ancestral(28)) > 0.0
    assert default_chain(process, 10) == Ancestral(10, LogSNR())
    assert default_chain(VP()) == Ancestral(250, LogSNR())
    assert default_chain(VE(), 7) == Ancestral(7, LogSNR())
    d = Gaussian(torch.zeros(D, dtype=F64), torch.eye(D, dtype=F64)).denoiser(process)
    model = Model(d, Scaling.interval(LEVELS), (D,))
    values = torch.zeros(2, D, dtype=torch.uint8)
    rows = join(*measure(model, Split(values), measures=["chain"]))
    assert rows["chain_nfe"].tolist() == [30, 30]
    expected = chain_bound(d, values, model.scaling, solver=Ancestral(29))
    np.testing.assert_allclose(rows["chain"], expected.bits_per_dim, rtol=1e-12)


# ---- the summary


def rows_of(**columns: list[float]) -> Rows:
    """Two repeats of three images: the flow and the chain, with a prior of 0 to 5, 2, and what is left of the sum."""
    rows: Rows = {"index": np.array([0, 1, 2] * 2), "repeat": np.repeat([0, 1], 3)}
    for name, bits in columns.items():
        values, terms = np.array(bits), MEASURES[name]
        rows |= {name: values, f"{name}_{terms[0]}": np.arange(6.0), f"{name}_{terms[1]}": np.full(6, 2.0)}
        rows |= {f"{name}_{terms[2]}": values - 2.0 - np.arange(6.0)}
        rows |= {f"{name}_standard_error": np.where(np.isfinite(values), 0.3 + 0.4 * (np.arange(6) % 2), np.nan)}
        rows |= {f"{name}_nfe": np.array([10, 20, 30] * 2)}
    return rows


def test_a_summary_is_over_images_and_its_differences_are_paired() -> None:
    flow, chain = summarise_measures(rows_of(flow=[1.0, 2.0, 6.0, 3.0, 2.0, 4.0], chain=[2.0, 2.0, 7.0, 4.0, 4.0, 5.0]))
    assert (flow.summary.bits_per_dim, flow.summary.samples, flow.summary.rows) == (3.0, 3, 6)
    assert flow.summary.standard_error == pytest.approx(math.sqrt(3.0 / 3.0))
    assert flow.terms == pytest.approx({"prior": 2.5, "divergence": 2.0, "weight": -1.5})
    assert flow.draws == pytest.approx(math.sqrt((0.3**2 + 0.7**2) / 2.0))
    assert flow.summary.nfe == 20.0
    assert chain.terms == pytest.approx({"prior": 2.5, "steps": 2.0, "data": -0.5})
    assert chain.difference is not None
    assert (chain.difference.difference, chain.difference.standard_error) == (1.0, 0.0)


def test_failed_rows_are_counted_and_left_out() -> None:
    """Image 1 failed once in the flow, image 2 always in the chain: the difference is of images 0 and 1."""
    nan, inf = math.nan, math.inf
    flow, chain = summarise_measures(rows_of(flow=[1.0, nan, 6.0, 3.0, 2.0, 4.0], chain=[2.0, 2.0, inf, 6.0, 4.0, nan]))
    assert (flow.summary.failed, flow.summary.samples, flow.summary.bits_per_dim) == (1, 3, 3.0)
    assert (chain.summary.failed, chain.summary.samples, chain.summary.bits_per_dim) == (2, 2, 3.5)
    assert chain.terms == pytest.approx({"prior": 2.0, "steps": 2.0, "data": -0.5})  # of images 0 and 1
    assert math.isfinite(chain.draws)
    assert chain.difference is not None
    assert (chain.difference.samples, chain.difference.difference) == (2, 2.0)
    text = table([flow, chain])
    assert "flow: 1 of 6 rows failed and are left out" in text
    assert "chain: 2 of 6 rows failed" in text
    assert (
        summarise_measures(rows_of(flow=[1.0, nan, nan] * 2, chain=[1.0] * 6))[1].difference is None
    )  # one image is no sample
    every = summarise_measures(rows_of(flow=[nan] * 6, chain=[1.0] * 6))
    assert math.isnan(every[0].summary.bits_per_dim)
    assert every[1].difference is None
    with pytest.raises(ValueError, match="0 rows"):
        summarise_measures({name: values[:0] for name, values in rows_of(flow=[1.0] * 6).items()})


def test_the_picture_has_each_image_once_at_its_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.axes.Axes.scatter", lambda axes, x, y, **style: drawn.append((x, y)))
    nan = math.nan
    assert against_flow(tmp_path / "a.png", rows_of(flow=[1.0, nan, 6.0, 3.0, 2.0, nan], chain=[2.0, 5.0, 7.0] * 2))
    ((x, y),) = drawn
    assert (x.tolist(), y.tolist()) == ([2.0, 2.0, 6.0], [2.0, 5.0, 7.0])
    for rows in (rows_of(flow=[1.0] * 6), rows_of(chain=[1.0] * 6), rows_of(flow=[nan] * 6, chain=[1.0] * 6)):
        assert not against_flow(tmp_path / "b.png", rows)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_the_table_reads_well() -> None:
    """Numbers stand below each other, and a missing one is a dash or a gap."""
    found = summarise_measures(rows_of(flow=[1.0, 2.0, 6.0] * 2, chain=[2.0, 2.0, 700.0] * 2))
    found = [found[0], MeasureSummary("chain", found[1].summary, found[1].terms, math.nan, found[1].difference)]
    head, flow, chain, gap, *_ = table(found).splitlines()
    assert head.split() == ["bits/dim", "minus", "flow", "draws", "calls", "prior", "path", "data"]
    assert gap == ""
    assert len(flow) == len(chain) == len(head)
    assert flow.split() == ["flow", "3.0000", "+-", "1.5275", "0.5385", "20.0", "2.5000", "2.0000", "-1.5000"]
    assert chain.split()[4:8] == ["+231.6667", "+-", "231.1668", "-"]


def test_the_table_of_continuous_data_has_nats() -> None:
    """3 bits/dim in 2 dimensions are -6 log 2 nats, and their errors go together."""
    head, flow, *_ = table(summarise_measures(rows_of(flow=[1.0, 2.0, 6.0] * 2)), 2).splitlines()
    assert head.split()[:4] == ["bits/dim", "log", "p", "(nats)"]
    assert flow.split()[4:7] == [f"{-6.0 * math.log(2.0):.4f}", "+-", f"{2.0 * math.log(2.0) * (7 / 3) ** 0.5:.4f}"]


# ---- what is refused, at once


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"measures": []}, r"flow, density, continuous, chain.*got \[\]"),
        ({"measures": "flow"}, "got 'flow'"),
        ({"measures": ["flow", "flow"]}, r"\['flow', 'flow'\]"),
        ({"measures": ["flow", "elbo"]}, "'elbo'.*flow"),
        ({"draws": 0}, "draws=0"),
        ({"data_draws": 1.5}, "data_draws=1.5"),
        ({"chain_draws": 0}, "chain_draws=0"),
        ({"chain": Heun(3)}, r"Ancestral.*got Heun"),
        ({"chain": Ancestral(3, Explicit((1.0, 0.5, 1e-5)))}, "2 steps"),
        ({"solver": Ancestral(3)}, "Ancestral"),
        ({"atol": 0.1}, r"Heun.*atol=0\.1"),
        ({"n": 11}, "n=11"),
        ({"repeats": 0}, "repeats=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"end": 0.0}, r"end=0\.0"),
        ({"end": 1e9}, r"end=1000000000\.0"),
        ({"end": "auto"}, "end='auto'"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_call(split: Split, settings: dict[str, Any], words: str) -> None:
    model, calls = Model(Wavy(), Scaling.interval(LEVELS), (D,), classes=3), []
    model.denoiser.register_forward_pre_hook(lambda module, given: calls.append(1))
    with pytest.raises(ValueError, match=words):
        measure(model, split, **{**CHEAP, **settings})
    assert calls == []


@pytest.mark.parametrize("names", [NAMES, ("continuous",)], ids=["all", "one"])
def test_data_that_is_not_the_model_s_is_refused_before_a_call(names: tuple[str, ...]) -> None:
    """Whatever is measured."""
    model, calls = Model(Wavy(), Scaling.interval(LEVELS), (D,), classes=3), []
    model.denoiser.register_forward_pre_hook(lambda module, given: calls.append(1))
    for bad, words in (
        (Split(torch.full((4, D), LEVELS, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)), "is 8"),
        (Split(torch.zeros(4, D + 1, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)), r"\(B, 3\), got \(4, 4\)"),
        (Split(torch.zeros(4, D, dtype=torch.uint8)), "no labels"),
    ):
        with pytest.raises(ValueError, match=words):
            measure(model, bad, measures=names, **CHEAP)
    continuous = Model(Wavy(), Scaling.identity(), (D,))
    with pytest.raises(ValueError, match=r"continuous.*end=0\.5"):
        measure(continuous, Split(torch.zeros(4, D)), measures=names, **CHEAP, end=0.5)
    assert calls == []
