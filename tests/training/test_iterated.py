"""Batches of loaders of one's own: those with a state go on with the next batch, others at the start of an epoch."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sde
from sde.training import Training


def loader(n: int = 5) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(2.0 * n).reshape(n, 2)), batch_size=2, drop_last=True)


class Going:
    """A loader with a state, as torchdata's: the number of batches of this pass that were handed out."""

    def __init__(self) -> None:
        self.number = self.start = 0

    def __iter__(self) -> Any:
        self.number, self.start = self.start, 0
        while self.number < 5:
            self.number += 1
            yield torch.full((2, 2), float(self.number))

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = self.number = state["number"]


def training(batches: Any) -> Training:
    torch.manual_seed(0)
    return Training(sde.NetworkDenoiser(sde.networks.MLP(2, width=4, depth=1), sde.VP()), batches)


def saved(run: Training) -> Any:
    buffer = io.BytesIO()
    torch.save(run.state(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("stop", [1, 4, 5, 6])
@pytest.mark.parametrize("check", [False, True])
def test_a_loader_with_a_state_goes_on_bit_for_bit(stop: int, check: bool) -> None:
    """Also if the next batch had been looked at when the state was saved, and at the end of a pass."""
    straight, first, second = training(Going()), training(Going()), training(Going())
    losses = [report.loss for report in straight.run(9)]
    list(first.run(stop))
    if check:
        first.check()
    second.restore(saved(first))
    if check:
        second.check()
    assert [report.loss for report in second.run(9)] == losses[stop:]


def test_a_loader_without_a_state_goes_on_at_the_start_of_an_epoch_and_says_so() -> None:
    first, second = training(loader()), training(loader())
    list(first.run(3))
    with pytest.warns(UserWarning, match="the DataLoader has no state: .* start of its next epoch"):
        second.restore(saved(first))
    assert second.batches[3].values.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert [report.step for report in second.run(5)] == [4, 5]
    # Nothing is lost before the first step.
    second.restore(saved(training(loader())))
    assert second.step == 0


def test_the_shards_of_a_loader_are_the_rows_of_its_batches_and_every_other_batch_of_an_epoch() -> None:
    source = training([torch.arange(8.0).reshape(4, 2), torch.ones(4, 2), torch.zeros(4, 2)]).batches
    first, second = source.shard(0, 2), source.shard(1, 2)
    assert first[0].values.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert second[0].values.tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert second[0].index.tolist() == [2, 3]
    assert [batch.values.mean().item() for batch in first.epoch()] == [3.5, 0.0]
    assert [batch.values.mean().item() for batch in second.epoch()] == [1.0]
    with pytest.raises(ValueError, match="4 samples does not divide into 3 ranks"):
        source.shard(0, 3)[1]
