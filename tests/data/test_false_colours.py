"""False colours: one saturated hue for each image, by which its grey levels can be told."""

from __future__ import annotations

import colorsys

import pytest
import torch

from sde.data import DataSet, Scaling, Source, Split, digits, false_colours
from sde.noise import Noise, Stream


def test_each_image_has_one_hue() -> None:
    """The colours of the standard library's conversion from hues, of the levels of the grey image."""
    grey, coloured = digits(holdout=100), false_colours(digits(holdout=100), seed=3)
    assert (coloured.name, coloured.shape, coloured.scaling) == ("coloured_digits", (3, 8, 8), grey.scaling)
    assert coloured.valid is not None
    assert torch.equal(coloured.train.labels, grey.train.labels)  # type: ignore[arg-type]
    index = torch.tensor([5, 0])
    for number, name in enumerate(("train", "test", "valid")):
        hues = Noise(3).uniform(Stream.AUGMENT, index, torch.full_like(index, number), (1,), torch.float64)
        colours = torch.tensor([colorsys.hsv_to_rgb(float(hue), 1.0, 1.0) for hue in hues], dtype=torch.float64)
        expected = (grey.split(name)[index][0] * colours[:, :, None, None]).round().to(torch.uint8)
        assert torch.equal(coloured.split(name)[index][0], expected)
    assert torch.equal(coloured.train[index][0].amax(1), grey.train[index][0][:, 0])  # one channel is saturated
    assert coloured.fingerprint == false_colours(digits(holdout=100), seed=3).fingerprint
    assert coloured.fingerprint != false_colours(digits(holdout=100)).fingerprint


class Stored(Source):
    fingerprint = "stored"

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.zeros(len(index), 1, 2, 2, dtype=torch.uint8), {}


@pytest.mark.parametrize(
    ("scaling", "split", "message"),
    [
        (Scaling.interval(256), Split(torch.zeros(2, 3, 2, 2, dtype=torch.uint8)), r"grey .* levels of \(3, 2, 2\)"),
        (Scaling.identity(), Split(torch.zeros(2, 1, 2, 2)), "continuous"),
        (Scaling.interval(256), Stored(), "in memory"),
    ],
)
def test_what_is_not_grey_is_refused(scaling: Scaling, split: Source, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        false_colours(DataSet("a", scaling, split, split))
