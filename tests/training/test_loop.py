"""Training: its state is a function of seed and step, so that a run stopped anywhere goes on bit for bit."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import sde
from sde import EMA, Batches, Training
from sde.data import Scaling, Split
from sde.noise import Noise
from sde.objective import DenoisingScoreMatching, Objective
from sde.training import NonFiniteLoss, Report, train, validate
from sde.training.batches import to_model

STEPS = 7


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def digits() -> sde.data.DataSet:
    return sde.data.digits()


def unet_training(digits: sde.data.DataSet, *, warmup: int = 3, conditional: bool = False) -> Training:
    """A tiny U-Net with dropout on 40 digits, in batches of 16: an epoch ends in the middle of every fifth batch."""
    classes = 10 if conditional else None
    network = sde.networks.UNet(1, width=8, multipliers=(1, 2), blocks=1, dropout=0.3, classes=classes)
    denoiser = sde.NetworkDenoiser(network, sde.VP(), level=sde.LogSNRLevel(50.0))
    return Training(
        denoiser,
        Batches(digits.train.select(torch.arange(40)), 16, seed=3),
        digits.scaling,
        optimizer=torch.optim.Adam(denoiser.parameters(), lr=1e-2),
        ema={"default": 0.9, "slow": EMA(denoiser, 0.99)},
        warmup=warmup,
        seed=3,
        conditions=["label"] if conditional else [],
    )


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings and sequences, by path."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}/{i}")
    else:
        yield path, tree


def assert_same_bits(a: Any, b: Any) -> None:
    one, other = dict(leaves(a)), dict(leaves(b))
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        assert same, key


def saved(training: Training) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(training.state(), buffer)
    buffer.seek(0)
    state: dict[str, Any] = torch.load(buffer, weights_only=True)
    return state


def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(digits: sde.data.DataSet) -> None:
    torch.manual_seed(0)
    undisturbed = unet_training(digits, conditional=True)
    states, reports = [saved(undisturbed)], []
    for report in train(undisturbed, STEPS):
        reports.append(report)
        states.append(saved(undisturbed))
    assert len({r.loss for r in reports}) == STEPS

    for stop in (1, 3, 5):
        torch.manual_seed(99)  # the fresh process has other weights and another state of the global generator
        resumed = unet_training(digits, conditional=True)
        resumed.restore(states[stop])
        assert list(train(resumed, STEPS)) == reports[stop:]
        assert_same_bits(resumed.state(), states[STEPS])


def test_dropout_is_at_work_in_the_test_above(digits: sde.data.DataSet) -> None:
    """With another state of the global generator the second step comes out differently: restoring it matters."""
    torch.manual_seed(0)
    training = unet_training(digits)
    for _ in train(training, 3):
        pass
    state, losses = saved(training), []
    for seed in (1, 2):
        training.restore(state)
        torch.manual_seed(seed)
        losses.append(training.advance().loss)
    assert losses[0] != losses[1]


def test_two_runs_of_one_seed_are_the_same_and_of_two_seeds_are_not(digits: sde.data.DataSet) -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        training = unet_training(digits)
        training.noise = Noise(seed)
        results.append([r.loss for r in train(training, 2)])
    assert results[0] == results[1]
    assert results[0][0] != results[2][0]


# Batches


def numbers(n: int) -> Split:
    """Samples that contain their own number."""
    return Split(torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n))


@pytest.mark.parametrize(("n", "size"), [(10, 4), (10, 10), (3, 8), (7, 1)])
def test_batches_are_permutations_end_to_end(n: int, size: int) -> None:
    batches = Batches(numbers(n), size)
    epochs = 24
    drawn = [batches[i] for i in range(epochs * n // size)]
    order = torch.cat([batch.condition["label"] for batch in drawn])
    assert torch.equal(torch.cat([batch.values for batch in drawn])[:, 0], order.float())
    whole = order[: len(order) // n * n].reshape(-1, n)
    assert torch.equal(whole.sort(1).values, torch.arange(n).expand_as(whole))
    assert len({tuple(row) for row in whole.tolist()}) > 1
    # In reverse order, the batches are the same: they depend only on their number.
    for i in reversed(range(len(drawn))):
        assert torch.equal(batches[i].values, drawn[i].values)


def test_every_place_of_an_epoch_is_equally_likely() -> None:
    n, epochs = 4, 1200
    batches = Batches(numbers(n), n, seed=5)
    orders = torch.stack([batches[i].values[:, 0].long() for i in range(epochs)])
    rank = orders @ torch.tensor([64, 16, 4, 1])
    counts = rank.unique(return_counts=True)[1].double()
    assert len(counts) == math.factorial(n)
    expected = epochs / math.factorial(n)
    # Chi-square with 23 degrees of freedom: above 49.7 with probability 1e-3.
    assert float(((counts - expected) ** 2 / expected).sum()) < 49.7


def test_dequantisation_is_fresh_in_every_epoch_and_the_same_for_any_batch_size() -> None:
    values, scaling = torch.arange(6, dtype=torch.uint8).reshape(6, 1), Scaling.interval(6)
    sequences = []
    for size in (1, 3, 4):
        batches = Batches(values, size, seed=1)
        states = [to_model(batches[i], scaling, batches.noise, torch.float32) for i in range(12 // size)]
        sequences.append(torch.cat(states))
    assert torch.equal(sequences[0], sequences[1])
    assert torch.equal(sequences[0], sequences[2])
    first, second = sequences[0][:6].sort(0).values, sequences[0][6:].sort(0).values
    assert torch.equal(scaling.to_data(first), values)
    assert torch.equal(scaling.to_data(second), values)
    assert not torch.isclose(first, second).any()


def test_batches_of_named_tensors() -> None:
    x, condition = torch.randn(5, 3), {"label": torch.arange(5), "embedding": torch.arange(10.0).reshape(5, 2)}
    batch = Batches(x, 4, condition=condition)[0]
    assert torch.equal(batch.values, x[batch.condition["label"]])
    assert torch.equal(batch.condition["embedding"], condition["embedding"][batch.condition["label"]])
    with pytest.raises(ValueError, match=r"'label'.*5"):
        Batches(x, 4, condition={"label": torch.arange(4)})


@pytest.mark.parametrize(("n", "size"), [(3, 0), (0, 3)])
def test_a_batch_has_at_least_one_sample(n: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={size} and {n}"):
        Batches(torch.zeros(n, 2), size)


# Steps


class Line(sde.Denoiser):
    """E[x0 | x_t] = weight, one number for each dimension."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        self.process = sde.VP()
        self.weight = torch.nn.Parameter(torch.zeros(dims))

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.weight.expand_as(x_t)


@dataclass(frozen=True)
class Given(Objective):
    """The loss sum(weight * gradient), whose gradient at step k is what the list says; remembers what it was given."""

    gradients: list[Tensor]
    seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, denoiser: Any, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        step = len(self.seen)
        self.seen.append((x0, u, z))
        loss: Tensor = (denoiser.weight * self.gradients[step % len(self.gradients)]).sum().expand(len(x0))
        return loss


@dataclass(frozen=True)
class Recorded(Objective):
    """A loss without a gradient, which records the data and the conditions of every step."""

    seen: list[tuple[Tensor, dict[str, Tensor]]] = field(default_factory=list)

    def __call__(self, denoiser: Any, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        self.seen.append((x0, condition))
        loss: Tensor = (denoiser.weight * 0.0).sum().expand(len(x0))
        return loss


def line_training(
    objective: Objective | None = None, n: int = 5, size: int = 4, batches: Any = None, **settings: Any
) -> Training:
    denoiser = Line()
    return Training(
        denoiser,
        Batches(torch.arange(2.0 * n).reshape(n, 2), size) if batches is None else batches,
        objective=objective,
        optimizer=torch.optim.SGD(denoiser.parameters(), lr=0.5, momentum=0.5),
        **{"ema": 0.5, **settings},
    )


def test_warm_up_clipping_and_the_report() -> None:
    gradients = [torch.tensor(g) for g in ([0.3, 0.4], [3.0, 4.0], [0.0, -1.0], [0.6, 0.0])]
    training = line_training(Given(gradients), warmup=2, clip=1.0)
    weight, momentum = torch.zeros(2), torch.zeros(2)
    for step, report in enumerate(train(training, 4), start=1):
        gradient = gradients[step - 1]
        rate = 0.5 * min(1.0, step / 2)
        momentum = 0.5 * momentum + gradient / max(1.0, float(gradient.norm()))
        loss = float((weight * gradient).sum())
        weight = weight - rate * momentum
        assert report.step == step == training.step
        assert report.learning_rate == pytest.approx(rate)
        assert report.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-6)
        assert report.loss == pytest.approx(loss, abs=1e-6)
        torch.testing.assert_close(training.denoiser.get_parameter("weight").detach(), weight, rtol=1e-5, atol=1e-6)


def test_train_counts_earlier_steps_and_takes_none_too_many() -> None:
    training = line_training()
    assert [r.step for r in train(training, 3)] == [1, 2, 3]
    assert [r.step for r in train(training, 5)] == [4, 5]
    assert list(train(training, 5)) == []
    assert list(train(training, 2)) == []


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_before_the_step(kind: str) -> None:
    @dataclass(frozen=True)
    class Breaks(Objective):
        def __call__(self, denoiser: Any, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
            loss: Tensor = (denoiser.weight - 1.0).square().sum().expand(len(x0))
            if training.step == 2:
                # The root of 0 is a finite loss with an infinite slope.
                loss = loss * math.inf if kind == "loss" else loss + (denoiser.weight * 0.0).sum().sqrt()
            return loss

    training = line_training(Breaks())
    reports: list[Report] = []
    generator = train(training, 9)
    reports += [next(generator), next(generator)]
    before = saved(training)
    with pytest.raises(NonFiniteLoss, match=r"step 3: .*(inf|[0-9.]+).*(nan|inf)"):
        next(generator)
    assert training.step == 2
    assert_same_bits(saved(training), before)
    assert issubclass(NonFiniteLoss, ArithmeticError)


def test_times_are_spread_evenly_and_noise_is_new_in_every_step() -> None:
    objective = Given([torch.zeros(2)])
    training = line_training(objective, size=8)
    list(train(training, 200))
    us = torch.stack([u for _, u, _ in objective.seen])
    assert ((us >= 0) & (us < 1)).all()
    gaps = us.sort(1).values.diff(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 8), rtol=0, atol=1e-6)
    offsets = us.min(1).values * 8  # uniform on [0, 1): mean 1/2 +- 0.02
    assert len(offsets.unique()) == 200
    assert abs(float(offsets.mean()) - 0.5) < 0.1
    z = torch.stack([z for *_, z in objective.seen])
    assert len(z.unique()) == z.numel()
    assert abs(float(z.mean())) < 0.1
    assert abs(float(z.std()) - 1.0) < 0.1


def test_check_computes_the_loss_of_two_samples_and_changes_nothing() -> None:
    objective = Given([torch.zeros(2)])
    training = line_training(objective)
    training.denoiser.train()
    before, rng = saved(training), torch.get_rng_state()
    training.check()
    assert [len(x0) for x0, *_ in objective.seen] == [2]
    assert training.denoiser.training
    assert_same_bits(saved(training), before)
    assert torch.equal(torch.get_rng_state(), rng)


def test_check_runs_in_evaluation_mode() -> None:
    training = line_training(Mean())
    assert training.denoiser.training
    training.check()


def test_check_finds_a_network_that_does_not_fit(digits: sde.data.DataSet) -> None:
    training = unet_training(digits)
    training.batches, training.scaling = Batches(torch.zeros(4, 3, 8, 8), 2), None
    with pytest.raises(ValueError, match=r"\(B, 1, n_1, n_2\).*\(2, 3, 8, 8\)"):
        training.check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": -1}, "warmup=-1"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"clip": math.nan}, "clip=nan"),
        ({"ema": 1.0}, "decay=1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        line_training(**settings)


def test_a_state_without_an_average_that_is_wanted_is_refused() -> None:
    training = line_training()
    state = training.state()
    training.ema["other"] = EMA(training.denoiser, 0.9)
    with pytest.raises(ValueError, match=r"'other'.*default"):
        training.restore(state)


# Validation


@dataclass(frozen=True)
class Mean(Objective):
    """The first entry of x0, plus a share of the noise."""

    noise: float = 0.0

    def __call__(self, denoiser: Any, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        assert not denoiser.training
        return x0[:, 0] + self.noise * (z[:, 0] + u) + condition.get("label", torch.zeros(()))


@pytest.mark.parametrize("size", [1, 3, 4, 7, 20])
def test_validation_sees_every_sample_once(size: int) -> None:
    squares = Split(torch.arange(7.0).square()[:, None], torch.arange(7))
    denoiser = Line()
    loader = DataLoader(TensorDataset(squares.values, torch.arange(7)), batch_size=size)
    for batches in (Batches(squares, size), loader):
        assert validate(denoiser, Mean(), batches, conditions=[]) == pytest.approx(91 / 7, rel=1e-6)
        assert validate(denoiser, Mean(), batches) == pytest.approx(91 / 7 + 3, rel=1e-6)
    assert denoiser.training


def test_validation_has_the_same_noise_at_every_call() -> None:
    values = torch.arange(7, dtype=torch.uint8)[:, None]
    for batches in (Batches(values, 3), list(values.split(3))):
        first = validate(Line(), Mean(1.0), batches, Scaling.interval(7))
        assert validate(Line(), Mean(1.0), batches, Scaling.interval(7)) == first
        assert validate(Line(), Mean(1.0), batches, Scaling.interval(7), seed=1) != first


# Any iterable


def test_a_data_loader_is_started_again_when_it_is_exhausted() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0).reshape(5, 2)), batch_size=2)
    objective = Recorded()
    reports = list(line_training(objective, batches=loader).run(7))
    assert [report.step for report in reports] == list(range(1, 8))
    epoch = [[0.0, 2.0], [4.0, 6.0], [8.0]]
    assert [x0[:, 0].tolist() for x0, _ in objective.seen] == [*epoch, *epoch, epoch[0]]


def test_checking_uses_up_no_batch() -> None:
    objective = Recorded()
    training = line_training(objective, batches=iter([torch.zeros(2, 2), torch.ones(2, 2)]))
    training.check()
    assert training.model().shape == (2,)
    list(training.run(2))
    assert [float(x0.mean()) for x0, _ in objective.seen] == [0.0, 0.0, 1.0]
    assert training.model().shape == (2,)


@pytest.mark.parametrize("batches", [[], iter([torch.zeros(2, 2)])], ids=["empty", "one pass"])
def test_batches_that_end_are_an_error(batches: Any) -> None:
    with pytest.raises(ValueError, match="exhausted"):
        list(line_training(batches=batches).run(2))


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (None, {}),
        (torch.tensor([3, 4], dtype=torch.int32), {"label": [3, 4]}),
        ([3, 4], {"label": [3, 4]}),
        (7, {"label": 7}),
        (torch.tensor([0.5, 1.5]), {"label": [0.5, 1.5]}),
        ({"tokens": torch.tensor([[1, 2], [3, 4]]), "scale": 2.0}, {"tokens": [[1, 2], [3, 4]], "scale": 2.0}),
    ],
    ids=["none", "int32", "list", "scalar", "float", "named"],
)
def test_conditions_of_any_name(condition: Any, expected: dict[str, Any]) -> None:
    objective = Recorded()
    list(line_training(objective, batches=[(torch.zeros(2, 2), condition)]).run(1))
    seen = objective.seen[0][1]
    assert {name: value.tolist() for name, value in seen.items()} == expected
    assert all(value.dtype in (torch.int64, torch.float32) for value in seen.values())


def test_the_denoiser_takes_the_conditions_that_are_named() -> None:
    batch = (torch.zeros(2, 2), {"label": torch.arange(2), "text": torch.ones(2)})
    for names, expected in ((None, ["label", "text"]), (["text"], ["text"]), ([], [])):
        objective = Recorded()
        list(line_training(objective, batches=[batch], conditions=names).run(1))
        assert sorted(objective.seen[0][1]) == expected
    with pytest.raises(ValueError, match=r"'audio'.*label, text"):
        line_training(batches=[batch], conditions=["audio"]).check()


@pytest.mark.parametrize("call", [lambda t: next(t.run(1)), Training.check], ids=["step", "check"])
def test_an_unconditional_network_with_labels_is_told_the_way_out(call: Any) -> None:
    data, network = sde.data.gaussians(n_train=9), sde.networks.MLP(features=2, width=8, depth=1)
    batches = Batches(data.train, 4)

    def training(**settings: Any) -> Training:
        return Training(sde.NetworkDenoiser(network, sde.VP()), batches, data.scaling, **settings)

    with pytest.raises(ValueError, match=r"no label.*conditions \(label\).*conditions=\[\]"):
        call(training())
    call(training(conditions=[]))
    # Another error stays as it is, and so does that of conditions that were chosen.
    with pytest.raises(ValueError, match=r"no label[^()]*$"):
        call(training(conditions=["label"]))
    network = sde.networks.MLP(features=2, width=8, depth=1, classes=1)
    with pytest.raises(ValueError, match=r"labels\[0\] is 1: expected a class from 0 to 0[^()]*$"):
        call(training())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (torch.zeros(6, 2), r"Tensor.*sde\.Batches"),
        (np.zeros((6, 1, 2)), r"ndarray.*sde\.Batches"),
        (numbers(6), r"Split.*sde\.Batches"),
        (TensorDataset(torch.zeros(6, 2)), "TensorDataset"),
        ([torch.zeros(2)], r"\(B, \*\).*\(2,\)"),
        ([torch.zeros(0, 2)], r"\(0, 2\)"),
        ([(torch.zeros(2, 2), None, None)], "3 parts"),
        ([(torch.zeros(2, 2), torch.arange(3))], r"'label'.*2.*\(3,\)"),
        ([torch.zeros(2, 2, dtype=torch.uint8)], r"uint8.*scaling="),
    ],
    ids=["tensor", "array", "split", "dataset", "no batch axis", "no sample", "parts", "labels", "integers"],
)
def test_what_is_not_batches_is_refused(batches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(line_training(batches=batches).run(1))


def test_data_units_go_through_the_scaling() -> None:
    """Continuous values exactly, integers with noise within their bin that is new at every visit."""
    objective, values = Recorded(), torch.tensor([[3.0, 5.0]])
    list(line_training(objective, batches=[values], scaling=Scaling(0.5, -1.0)).run(1))
    assert objective.seen[0][0].tolist() == [[0.5, 1.5]]
    objective, scaling, levels = Recorded(), Scaling.interval(4), torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
    list(line_training(objective, batches=[levels], scaling=scaling).run(2))
    first, second = (x0 for x0, _ in objective.seen)
    assert torch.equal(scaling.to_data(first), levels)
    assert torch.equal(scaling.to_data(second), levels)
    assert not torch.isclose(first, second).any()
    assert len(first.unique()) == 4
    with pytest.raises(ValueError, match="levels=4"):
        line_training(batches=[levels + 4], scaling=scaling).check()


def test_the_defaults() -> None:
    training = Training(Line(), [torch.ones(4, 2)])
    assert training.objective == DenoisingScoreMatching()
    assert isinstance(training.optimizer, torch.optim.Adam)
    assert [group["lr"] for group in training.optimizer.param_groups] == [2e-4]
    assert {name: average.decay for name, average in training.ema.items()} == {"default": 0.999}


def test_a_network_without_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="requires_grad_"):
        Training(Line().requires_grad_(False), [torch.ones(4, 2)])


# Labels


def labelled_training(batches: Any) -> Training:
    network = sde.networks.MLP(2, width=8, depth=1, classes=3)
    return Training(sde.Clip(sde.NetworkDenoiser(network, sde.VP()), -9.0, 9.0), batches)


def test_labels_of_data_are_classes_and_never_the_one_that_means_no_label() -> None:
    """Those of a split or in a pair; where a mapping names the `label`, no label is a choice."""
    x, y = torch.randn(40, 2), torch.arange(40) % 3
    y[37] = 3
    no_label, unknown = {"label": y}, {"label": y + (y == 3)}
    for whole, known in (
        (Batches(Split(x[:37], y[:37]), 4), True),
        (Batches(x, 4, condition=no_label), True),
        (Batches(Split(x, y), 4), False),
        (Batches(x, 4, condition=unknown), False),
    ):
        if known:
            labelled_training(whole).advance()
        else:
            with pytest.raises(ValueError, match=rf"labels\[37\] is {whole.condition['label'][37]}.* 0 to 2"):
                labelled_training(whole)
    for batch, known in (((x, y % 3), True), ((x, no_label), True), ((x, y), False), ((x, unknown), False)):
        training = labelled_training([batch])
        if known:
            training.advance()
        else:
            with pytest.raises(ValueError, match=r"labels\[37\]"):
                training.advance()
    for labels in (y % 2 == 0, (y % 3).int()):  # truth values and whole numbers of any dtype
        labelled_training([(x, labels)]).advance()
        labelled_training([(x, {"label": labels})]).advance()
    with pytest.raises(ValueError, match=r"whole numbers, got torch\.float32"):
        labelled_training([(x, y.float())]).advance()
    assert training.model(classes=3).classes == 3
    with pytest.raises(ValueError, match=r"up to 3.*got 4"):
        training.model(classes=4)


def test_columns_that_differ_tenfold_are_warned_of() -> None:
    x = torch.randn(30, 2) * torch.tensor([1.0, 99.0])
    for scaling in (None, Scaling.standardise(x, one_scale=True)):
        with pytest.warns(UserWarning, match="tenfold"):
            Training(Line(), Batches(x, 4), scaling)
    Training(Line(), Batches(x, 4), Scaling.standardise(x))


class Streamed(sde.data.Source):
    """Rows that are read as they are needed."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> sde.data.source.Item:
        return self.values[index], {}

    @property
    def fingerprint(self) -> str:
        return "rows"


def test_columns_of_streams_and_loaders_that_differ_tenfold_are_warned_of() -> None:
    """By the first 32 samples at least."""
    x = torch.randn(96, 2) * torch.tensor([1.0, 99.0])
    own = Scaling.standardise(x)
    with pytest.warns(UserWarning, match=r"tenfold.*\(of 96 samples\)"):
        Training(Line(), Batches(Streamed(x), 4))
    Training(Line(), Batches(Streamed(x), 4), own).advance()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=16)
    training = Training(Line(), loader)
    training.advance()  # 16 samples do not tell
    with pytest.warns(UserWarning, match=r"tenfold.*\(of 32 samples\)"):
        training.advance()
    training.advance()
    for report in Training(Line(), loader, own).run(3):
        assert not report.skipped


# The model of a training


def test_the_model_is_a_copy_with_the_averages_or_the_raw_weights() -> None:
    training = line_training(scaling=Scaling(0.5, -1.0))
    list(training.run(3))
    raw, average = training.denoiser.get_parameter("weight"), training.ema["default"].weights["weight"]
    averaged, as_trained = training.model(), training.model(ema=None, shape=(1, 2), classes=4)
    assert torch.equal(averaged.denoiser.get_parameter("weight"), average)
    assert torch.equal(as_trained.denoiser.get_parameter("weight"), raw)
    assert (averaged.shape, averaged.scaling, averaged.classes) == ((2,), Scaling(0.5, -1.0), None)
    assert (as_trained.shape, as_trained.classes) == ((1, 2), 4)
    assert training.model(scaling=Scaling.identity()).scaling == Scaling.identity()
    assert not averaged.denoiser.training
    assert not averaged.denoiser.get_parameter("weight").requires_grad
    before = average.clone()
    list(training.run(6))
    assert torch.equal(averaged.denoiser.get_parameter("weight"), before)
    assert not torch.equal(average, before)
    assert averaged.sample(2, solver=sde.solvers.Euler(2)).shape == (2, 2)
    with pytest.raises(ValueError, match=r"'fast'.*default"):
        training.model(ema="fast")


def test_a_state_of_another_network_is_refused_and_changes_nothing() -> None:
    training, other = line_training(), Training(Line(3), [torch.ones(4, 3)], ema=0.5)
    list(training.run(1))
    before = saved(training)
    with pytest.raises(ValueError, match=r"weight \(3,\) instead of \(2,\)"):
        training.restore(other.state())
    assert_same_bits(saved(training), before)


def test_a_state_is_restored_with_and_without_wrappers() -> None:
    def training(wrapped: bool) -> Training:
        network = sde.networks.MLP(2, width=4, depth=1)
        data = torch.zeros(8, 2)
        denoiser = sde.NetworkDenoiser(torch.nn.DataParallel(network) if wrapped else network, sde.VP())
        return Training(denoiser, Batches(data, 4))

    for saved_wrapped in (False, True):
        one, other = training(saved_wrapped), training(not saved_wrapped)
        assert not one.denoiser.state_dict().keys() & other.denoiser.state_dict().keys()
        list(one.run(2))
        other.restore(saved(one))
        for mine, theirs in zip(other.state()["ema"]["default"].values(), one.state()["ema"]["default"].values()):
            assert torch.equal(mine, theirs)
        assert all(map(torch.equal, other.denoiser.parameters(), one.denoiser.parameters()))


def test_an_average_in_a_loop_of_ones_own() -> None:
    """After one step of size 1 from 0, with (1 + 1) / (10 + 1) of the old weight."""
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    ema = EMA(net, 0.9)
    with torch.no_grad():
        net.weight += 1.0
    ema.update(net, 1)
    with ema.applied_to(net):
        assert net.weight.item() == pytest.approx(9 / 11)
    assert net.weight.item() == 1.0
