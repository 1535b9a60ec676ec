"""Batches of sources: the same from any process, after any stop, for any number of ranks, with unreadable samples."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde import Batches, Training
from sde.data import Scaling, Source, Split, UnreadableSample
from sde.data.source import Item, digest_of
from sde.training import validate
from sde.training.batches import Batch


class Numbers(Source):
    """Samples that consist of their own number; some of them cannot be read."""

    def __init__(self, n: int, bad: tuple[int, ...] = (), labels: Tensor | None = None) -> None:
        self.n, self.bad, self.labels = n, bad, labels

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Tensor) -> Item:
        for position in index.tolist():
            if position in self.bad:
                raise UnreadableSample(f"the file {position}.png cannot be read")
        label = {} if self.labels is None else {"label": self.labels[index]}
        return index[:, None].float(), {**label, "process": torch.full((len(index),), os.getpid())}

    def describe(self, position: int) -> str:
        return f"{position}.png"

    @property
    def fingerprint(self) -> str:
        return digest_of([bytes(self.n)])


def positions(batch: Batch) -> list[int]:
    assert batch.values[:, 0].tolist() == batch.index.tolist()
    return batch.index.tolist()


def test_workers_read_the_same_batches_ahead() -> None:
    """In other processes, from the second of two consecutive numbers on; jumps and torch's generator do not matter."""
    here, ahead = Batches(Numbers(10), 4, seed=1), Batches(Numbers(10), 4, seed=1, workers=2)
    state = torch.get_rng_state()
    elsewhere = [8, 9, 10, 11, 12, 3, 4]
    for number in (0, 7, 7, 8, 9, 10, 1, 11, 12, 2, 3, 4):
        batch = ahead[number]
        assert positions(batch) == positions(here[number])
        assert torch.equal(batch.counter, here[number].counter)
        assert (batch.condition["process"] != os.getpid()).all() == (number in elsewhere)
    assert [positions(b) for b in ahead.epoch()] == [positions(b) for b in here.epoch()]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_batches_of_one_process(world: int) -> None:
    whole = Batches(Numbers(10), 4, seed=1)
    shards = [whole.shard(rank, world) for rank in range(world)]
    for number in range(6):
        assert [i for shard in shards for i in positions(shard[number])] == positions(whole[number])
    read = sorted(i for shard in shards for batch in shard.epoch() for i in positions(batch))
    assert read == list(range(10))
    with pytest.raises(ValueError, match=r"rank < world <= 4.*got 1 and 1"):
        whole.shard(1, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_an_error_at_its_step_and_the_run_goes_on_when_it_is_repaired(workers: int) -> None:
    bad, good = Batches(Numbers(12, bad=(5,)), 4, workers=workers), Batches(Numbers(12), 4)
    step = next(i for i in range(3) if 5 in positions(good[i]))
    for number in range(step):
        assert positions(bad[number]) == positions(good[number])
    for _ in range(2):
        with pytest.raises(UnreadableSample, match=r"^the file 5\.png cannot be read$"):
            bad[step]
    bad.data.bad = ()  # type: ignore[attr-defined]
    assert positions(bad[step]) == positions(good[step])


@pytest.mark.parametrize("workers", [0, 1])
def test_other_samples_take_the_places_of_unreadable_ones(workers: int) -> None:
    """The next ones that can be read, the same for any number of workers; each is warned of once, up to a number."""
    batches = Batches(Numbers(12, bad=(5, 6, 11)), 4, workers=workers, unreadable=3)
    good = Batches(Numbers(12), 4)
    with pytest.warns(UserWarning, match="takes the place") as warned:
        drawn = [positions(batches[i]) for i in range(6)]
    put = {5: 7, 6: 7, 11: 0}
    assert drawn == [[put.get(i, i) for i in positions(good[n])] for n in range(6)]
    assert sorted(str(w.message).split()[-4] for w in warned) == ["11.png", "5.png", "6.png"]
    few = Batches(Numbers(12, bad=(5, 6, 11)), 1, workers=workers, unreadable=2)
    with (
        pytest.warns(UserWarning, match="takes the place"),
        pytest.raises(UnreadableSample, match=r"unreadable=2.*(5|6|11)\.png"),
    ):
        list(map(few.__getitem__, range(12)))
    with pytest.raises(UnreadableSample):
        Batches(Numbers(3, bad=(0, 1, 2)), 3, unreadable=2)[0]


class Line(sde.Denoiser):
    """E[x0 | x_t] = weight."""

    def __init__(self) -> None:
        super().__init__()
        self.process = sde.VP()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.weight.expand_as(x_t)


def training(data: Any, **how: Any) -> Training:
    return Training(Line(), Batches(data, 4, seed=2, **how), Scaling(0.1, -0.5), conditions=[])


def test_a_training_from_workers_stopped_anywhere_is_that_from_memory() -> None:
    values = torch.arange(10.0)[:, None]
    states = []
    straight = training(Split(values))
    losses = [report.loss for report in straight.run(6)]
    for stop in (2, 5):
        first = training(Numbers(10), workers=2)
        assert [report.loss for report in first.run(stop)] == losses[:stop]
        resumed = training(Numbers(10), workers=1 if stop == 5 else 0)
        resumed.restore(first.state())
        assert [report.loss for report in resumed.run(6)] == losses[stop:]
        states.append(resumed.denoiser.weight)
    assert all(torch.equal(w, straight.denoiser.weight) for w in states)
    held_out = [
        validate(Line(), straight.objective, Batches(d, 4), conditions=[]) for d in (Split(values), Numbers(10))
    ]
    assert held_out[0] == held_out[1]


def test_labels_of_a_source_are_checked_before_a_sample_is_read() -> None:
    network = sde.networks.MLP(1, width=8, depth=1, classes=3)
    data = Numbers(6, bad=tuple(range(6)), labels=torch.tensor([0, 2, 1, 7, 2, 5]))
    with pytest.raises(ValueError, match=r"labels\[3\] is 7 \(3\.png\).*0 to 2.*from 0 to 7"):
        Training(sde.NetworkDenoiser(network, sde.VP()), Batches(data, 4))


def test_splits_of_sources() -> None:
    source = Numbers(20, labels=torch.arange(20))
    rest, part = sde.data.split_off(source, 5, seed=3)
    memory = sde.data.split_off(Split(torch.arange(20.0)[:, None], torch.arange(20)), 5, seed=3)
    for lazy, held in zip((rest, part), memory):
        index = torch.arange(len(held))
        values, condition = lazy[index]
        assert torch.equal(values, held[index][0])
        assert torch.equal(condition["label"], lazy.labels)
        assert torch.equal(lazy.labels, held.labels)
    assert part.describe(0) == f"{int(part.labels[0])}.png"
    assert part.select(torch.tensor([1])).describe(0) == part.describe(1)
    assert len({source.fingerprint, rest.fingerprint, part.fingerprint, part.select(torch.arange(4)).fingerprint}) == 4
    data = sde.data.DataSet("numbers", Scaling.identity(), rest, part)
    assert (data.shape, data.classes) == ((1,), 20)
    with pytest.raises(ValueError, match=r"numbers: test has dtype torch\.float32"):
        sde.data.DataSet("numbers", Scaling.interval(20), Split(torch.zeros(2, 1, dtype=torch.uint8)), part)


def test_a_stream_is_standardised_by_samples_that_are_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    from sde.data import dataset

    values = torch.arange(1000.0)[:, None]
    exact = Scaling.standardise(values)
    assert dataset.standardise(Numbers(1000)) == exact
    monkeypatch.setattr(dataset, "_MEMORY", 200 * 4)
    some = dataset.standardise(Numbers(1000))
    assert some.scale == pytest.approx(exact.scale, rel=0.01)
    assert some != exact
