"""Conditions at training: dropout that is a function of (seed, step, 0, 64), sizes from data, stored encodings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sde
from sde.networks import MLP, Conditions
from sde.noise import Noise
from sde.training.conditions import captioned, dropout_of, dropped, sizes_of


def denoiser(**settings: Any) -> sde.NetworkDenoiser:
    return sde.NetworkDenoiser(MLP(2, width=8, depth=1, classes=4, **settings), sde.VP())


def given(n: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "label": torch.arange(n) % 4,
        "embedding": torch.randn(n, 3, generator=g),
        "tokens": torch.randn(n, 2, 5, generator=g),
        "image": torch.randn(n, 1, 2, 2, generator=g),
    }


def test_each_name_is_left_out_with_its_own_probability() -> None:
    """Frequencies to 5 standard errors, and pairs of names independent."""
    n, rates = 20000, {"label": 0.1, "embedding": 0.3, "tokens": 0.5}
    condition = dropped(denoiser(), given(n), rates, Noise(0), 7, 0, n)
    gone = {
        "label": condition["label"] == 4,
        "embedding": condition["embedding"].isnan().all(1),
        "tokens": ~condition["tokens_mask"].any(1),
        "image": condition["image"].isnan().flatten(1).any(1),
    }
    for name, mask in gone.items():
        p = rates.get(name, 0.0)
        assert abs(mask.double().mean() - p) <= 5.0 * math.sqrt(p * (1.0 - p) / n)
    both = (gone["label"] & gone["embedding"]).double().mean()
    assert abs(both - 0.03) < 5.0 * math.sqrt(0.03 / n)
    kept = ~gone["embedding"]
    assert torch.equal(condition["embedding"][kept], given(n)["embedding"][kept])


def test_it_is_a_function_of_seed_step_and_place() -> None:
    d, rates = denoiser(), {"label": 0.5, "embedding": 0.5}
    whole = dropped(d, given(64), rates, Noise(1), 3, 0, 64)
    part = {name: value[40:] for name, value in given(64).items()}
    rest = dropped(d, part, rates, Noise(1), 3, 40, 24)
    assert torch.equal(rest["label"], whole["label"][40:])
    alone = dropped(d, given(64), {"embedding": 0.5}, Noise(1), 3, 0, 64)  # whatever else is left out
    assert torch.equal(alone["embedding"].isnan(), whole["embedding"].isnan())
    for other in (dropped(d, given(64), rates, Noise(2), 3, 0, 64), dropped(d, given(64), rates, Noise(1), 4, 0, 64)):
        assert not torch.equal(other["label"], whole["label"])
    mask = torch.tensor([[True, False]]).expand(64, 2)
    tokens = dropped(d, {**given(64), "tokens_mask": mask}, {"tokens": 0.5}, Noise(1), 3, 0, 64)
    assert not tokens["tokens_mask"][:, 1].any()


def test_a_dropout_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        dropout_of(denoiser(), {"label": 1.0})
    unet = sde.NetworkDenoiser(sde.networks.UNet(1, width=8, classes=4, null_class=False), sde.VP())
    with pytest.raises(ValueError, match="no null for it"):
        dropout_of(unet, {"label": 0.1})
    assert dropout_of(unet, {"label": 0.0}) == {"label": 0.0}
    assert dropout_of(unet, ["label"]) == {}


def test_the_sizes_of_a_network_follow_from_the_data() -> None:
    assert sizes_of(given(3), False) == {"embedding": 3, "tokens": 5, "image": 1}
    assert Conditions(**sizes_of(given(3), True)) == Conditions(3, 5, 4)
    with pytest.raises(ValueError, match=r"condition 'age' of torch.float32 with shape \(N, \): .* take label"):
        sizes_of({"age": torch.ones(3)}, False)


@dataclass(frozen=True)
class Counted:
    """An encoder that remembers for how many texts it was called."""

    texts: list[str]

    def __repr__(self) -> str:
        return "Counted()"

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.texts.extend(texts)
        return sde.data.Words(3, 4)(texts)


def test_captions_are_encoded_once_and_stored(tmp_path: Path) -> None:
    captions, encoder = ["a seven", "a two", "a seven", ""], Counted([])
    first = captioned(captions, encoder, tmp_path)
    assert sorted(encoder.texts) == ["", "a seven", "a two"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    again = captioned(captions, encoder, tmp_path)
    assert len(encoder.texts) == 3
    tokens, mask = sde.data.Words(3, 4)(captions)
    for result in (first, again):
        assert torch.equal(result["tokens"], tokens)
        assert torch.equal(result["tokens_mask"], mask)
    captioned(captions[:2], encoder, tmp_path)  # other texts are other encodings
    assert len(encoder.texts) == 5
    next(iter(tmp_path.iterdir())).write_bytes(b"damaged")
    assert torch.equal(captioned(captions, encoder, tmp_path)["tokens"], tokens)
    captioned(captions, encoder, None)


class Recorder(sde.Denoiser):
    """A denoiser that writes down the conditions that it is given."""

    process, classes = sde.VP(), 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []
        self.takes = {"label": sde.networks.Taken(classes=4)}

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.seen.append(condition["label"].clone())
        return self.weight * x_t


def test_a_training_leaves_out_what_its_steps_say() -> None:
    """In parts of a batch as in the whole, in a run that goes on, and not in validation."""
    data = sde.data.Split(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4)

    def labels(steps: int, start: int = 0, **settings: Any) -> list[list[int]]:
        d = Recorder()
        training = sde.Training(d, sde.Batches(data, 8, seed=1), conditions={"label": 0.5}, seed=5, **settings)
        training.step = start
        for _ in training.run(start + steps):
            pass
        size = settings.get("accumulate", 1)
        return [torch.cat(d.seen[k * size : (k + 1) * size]).tolist() for k in range(steps)]

    whole = labels(6)
    assert 0.25 < sum(row.count(4) for row in whole) / 48 < 0.75
    assert labels(6, accumulate=4) == whole
    assert labels(2, start=4) == whole[4:]
    d = Recorder()
    training = sde.Training(d, sde.Batches(data, 8), conditions={"label": 0.5})
    training.validate(sde.Batches(data, 8))
    assert 4 not in torch.cat(d.seen).tolist()
