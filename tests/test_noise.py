"""Noise: the hash against its reference, independence of the batch, and the moments of the numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from sde.noise import KeyedNoise, Noise, Stream, repeat_key, sample_index

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(h: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014) in Python integers."""
    h &= MASK
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB & MASK
    return h ^ (h >> 31)


def hashes(seed: int, stream: int, index: int, counter: int, n: int) -> list[int]:
    """The hashes of one address, as the module's docstring defines them."""
    key = mix(mix(seed + GAMMA))
    for part in (stream, index, counter):
        key = mix(key ^ mix(part + GAMMA))
    return [mix(key + (e + 1) * GAMMA) for e in range(n)]


def unsigned(bits: Tensor) -> list[int]:
    return [b & MASK for b in bits.tolist()]


def test_the_reference_is_splitmix64() -> None:
    # The published first outputs of SplitMix64 seeded with 0 and with 1234567.
    assert [mix((e + 1) * GAMMA) for e in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mix(1234567 + (e + 1) * GAMMA) for e in range(2)] == [6457827717110365317, 3203168211198807973]


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3, 2**63 - 1, -1])
@pytest.mark.parametrize("stream", list(Stream))
def test_bits_are_the_reference(seed: int, stream: Stream) -> None:
    index, counter = torch.tensor([0, 17, 2**33]), torch.tensor([5, 0, 2**31])
    bits = Noise(seed).bits(stream, index, counter, 4)
    assert bits.dtype == torch.int64
    for row, i, c in zip(bits, index.tolist(), counter.tolist()):
        assert unsigned(row) == hashes(seed, stream, i, c, 4)


def test_streams_keep_their_numbers() -> None:
    # The number of a stream is part of the address of every draw.
    assert {s.name: s.value for s in Stream} == {
        "PRIOR": 1,
        "STEP": 2,
        "CORRECTOR": 3,
        "PROBE": 4,
        "DEQUANTISE": 5,
        "ORDER": 6,
        "TIME": 7,
        "PERTURB": 8,
        "PATH": 9,
        "AREA": 10,
        "RESAMPLE": 11,
        "MEASUREMENT": 12,
        "GROUP": 21,
        "PERMUTATION": 22,
        "DIRECTION": 23,
        "SPLIT": 24,
        "HALF": 25,
        "NETWORK": 31,
        "CONDITION": 41,
        "TEXT": 42,
        "AUGMENT": 51,
    }


GOLDEN_BITS = {
    # (seed, stream, sample, counter): the first two hashes
    (0, Stream.PRIOR, 0, 0): (0x84F3CE533E84F0D1, 0x1D39C0A14CB51C63),
    (1, Stream.STEP, 0, 0): (0x49353E3878108634, 0x220C2AFC6EF36C9F),
    (42, Stream.STEP, 17, 3): (0xEE3F81DA357ADBA7, 0x5FEE80DA4132A19F),
    (42, Stream.CORRECTOR, 17, 3): (0x0EFF3C1A8FF8C7F7, 0xF4C4D91DF4861ABF),
    (-7, Stream.PROBE, 1000000000000, 999): (0x851DC25735AC2E41, 0xD4BEB409964E7DAC),
    (18446744073709551615, Stream.PERTURB, 5, 0): (0x1A1C2C2511D6B2CF, 0xEE56BEE0CF1B22C0),
}


@pytest.mark.parametrize("address", GOLDEN_BITS)
def test_golden_bits(address: tuple[int, Stream, int, int]) -> None:
    seed, stream, index, counter = address
    bits = Noise(seed).bits(stream, torch.tensor(index), torch.tensor(counter), 2)
    assert tuple(unsigned(bits)) == GOLDEN_BITS[address]


def test_golden_draws() -> None:
    # These numbers must not change: every published result with a seed depends on them.
    noise, index, counter = Noise(42), torch.tensor(17), torch.tensor(3)
    normal = noise.normal(Stream.STEP, index, counter, (5,), torch.float64)
    assert normal.tolist() == pytest.approx(
        [0.09680470653142369, -0.04118349785957547, -0.05378309839813381, 0.3665498750840492, 1.4004952034723075],
        abs=1e-12,
    )
    uniform = noise.uniform(Stream.TIME, index, counter, (3,), torch.float64)
    assert uniform.tolist() == pytest.approx([0.04972823755604494, 0.6683712313264492, 0.9985455201126086], abs=1e-15)
    assert noise.rademacher(Stream.PROBE, index, counter, (8,)).tolist() == [
        -1.0,
        -1.0,
        1.0,
        1.0,
        -1.0,
        -1.0,
        1.0,
        -1.0,
    ]
    generator = noise.generator(Stream.ORDER, 17, 3)
    assert generator.initial_seed() == 4258810671745108697


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draw", ["normal", "uniform", "rademacher"])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 4, 5)])
def test_a_sample_does_not_depend_on_its_batch(draw: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    index, counter = torch.arange(100, 164), torch.arange(3)[:, None]
    function = getattr(Noise(5), draw)
    whole = function(Stream.STEP, index, counter, shape, dtype)
    assert whole.shape == (3, 64, *shape)
    assert whole.dtype == dtype
    for batch in (1, 7):
        parts = [function(Stream.STEP, part, counter, shape, dtype) for part in index.split(batch)]
        assert torch.equal(torch.cat(parts, 1), whole)
    for k in range(3):
        assert torch.equal(function(Stream.STEP, index, counter[k], shape, dtype), whole[k])
    order = torch.arange(63, -1, -1)
    assert torch.equal(function(Stream.STEP, index[order], counter, shape, dtype), whole[:, order])


@pytest.mark.parametrize(("batch", "shape"), [(1, (2,)), (7, (2,)), (64, (33,)), (64, (3, 1000)), (2, (70000,))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_steps_do_not_show(batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    noise, index = Noise(3), torch.arange(10, 10 + batch)
    steps = noise.batch(index, shape, dtype)
    # Forward over the edges of blocks, then back, then two streams in turn.
    for k in (0, 1, 2, 63, 64, 65, 5, 200, 0):
        for stream in (Stream.STEP, Stream.CORRECTOR):
            expected = noise.normal(stream, index, torch.tensor(k), shape, dtype)
            assert torch.equal(steps.normal(stream, k, 0.5, 0.4), expected)


def test_steps_of_their_own() -> None:
    # Samples may be at different steps: each one gets the draw of its step.
    steps = Noise(3).batch(torch.arange(3), (4,), torch.float64)
    k = torch.tensor([2, 0, 70])
    values = steps.normal(Stream.STEP, k, torch.full((3,), 0.5), torch.full((3,), 0.4))
    for i in range(3):
        assert torch.equal(values[i], steps.normal(Stream.STEP, int(k[i]), 0.5, 0.4)[i])


def test_select_keeps_the_samples() -> None:
    steps = Noise(3).batch(torch.tensor([4, 9, 2, 7]), (5,), torch.float32)
    whole = steps.normal(Stream.STEP, 11, 1.0, 0.9)
    index = torch.tensor([3, 1])
    some = steps.select(index)
    assert isinstance(some, KeyedNoise)
    assert torch.equal(some.normal(Stream.STEP, 11, 1.0, 0.9), whole[index])
    assert torch.equal(some.select(torch.tensor([1])).normal(Stream.STEP, 11, 1.0, 0.9), whole[1:2])
    assert steps.select(torch.tensor([], dtype=torch.int64)).normal(Stream.STEP, 0, 1.0, 0.9).shape == (0, 5)


def test_no_address_shares_its_hash() -> None:
    # Small seeds, streams, samples and counters in every combination, in which sums and differences coincide often.
    index, counter = torch.arange(12), torch.arange(12)[:, None]
    bits = torch.stack([Noise(seed).bits(s, index, counter, 3) for seed in range(12) for s in Stream])
    assert bits.unique().numel() == bits.numel()
    assert (
        len({unsigned(Noise(s).bits(Stream.STEP, *torch.zeros(2, dtype=torch.int64), 1))[0] for s in (-1, 2**63 - 1)})
        == 2
    )


N = 100_000
INDEX, ZERO = torch.arange(N), torch.tensor(0)
# Five standard errors: 6e-7 for each statement about one mean.
FIVE = 5.0 / math.sqrt(N)


def test_draws_are_not_correlated() -> None:
    # 45 correlations of 10 addresses that differ in one part: 3e-5 for all of them.
    def draw(seed: int = 0, stream: Stream = Stream.STEP, shift: int = 0, counter: int = 0) -> Tensor:
        return Noise(seed).normal(stream, INDEX + shift, torch.tensor(counter), (1,), torch.float64)[:, 0]

    draws = [draw(), draw(seed=1), draw(seed=2), draw(seed=2**32), draw(shift=N), draw(shift=1), draw(counter=1)]
    draws += [draw(counter=2), draw(stream=Stream.CORRECTOR), draw(stream=Stream.PRIOR)]
    for a, b in itertools.combinations(draws, 2):
        assert abs((a * b).mean().item()) < FIVE
        # Nor are their sizes: the variance of a^2 b^2 - 1 is 8.
        assert abs((a.square() * b.square()).mean().item() - 1.0) < FIVE * math.sqrt(8.0)


def test_elements_and_steps_are_not_correlated() -> None:
    # 10 pairs of elements of one event (the two halves of Box and Muller among them) and 10 of steps: 1e-5.
    event = Noise(0).normal(Stream.STEP, INDEX, ZERO, (5,), torch.float64).T
    steps = Noise(0).normal(Stream.STEP, torch.tensor(3), INDEX[:, None], (1,), torch.float64)[:, 0, 0]
    lags = [steps[: N - 10], *(steps[k : N - 10 + k] for k in range(1, 11))]
    pairs = [*itertools.combinations(event, 2), *((lags[0], lag) for lag in lags[1:])]
    assert len(pairs) == 20
    for a, b in pairs:
        assert abs((a * b).mean().item()) < FIVE * math.sqrt(N / len(a))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals(dtype: torch.dtype) -> None:
    # Five standard errors for four moments: 2e-6; Kolmogorov-Smirnov at 1e-4.
    z = Noise(0).normal(Stream.PRIOR, INDEX, ZERO, (2,), dtype).double().flatten()
    five = 5.0 / math.sqrt(2 * N)
    assert abs(z.mean().item()) < five
    assert abs(z.square().mean().item() - 1.0) < five * math.sqrt(2.0)
    assert abs((z**3).mean().item()) < five * math.sqrt(15.0)
    assert abs((z**4).mean().item() - 3.0) < five * math.sqrt(96.0)
    assert scipy.stats.kstest(z.numpy(), "norm").pvalue > 1e-4
    assert bool(z.isfinite().all())
    assert 4.0 < z.abs().max().item() < 6.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms(dtype: torch.dtype) -> None:
    # Five standard errors twice: 1e-6; Kolmogorov-Smirnov at 1e-4.
    u = Noise(0).uniform(Stream.DEQUANTISE, INDEX, ZERO, (2,), dtype)
    assert bool((u >= 0.0).all())
    assert bool((u < 1.0).all())
    grid = u.double() * (2.0**24 if dtype == torch.float32 else 2.0**53)
    assert torch.equal(grid, grid.round())
    u = u.double().flatten()
    five = 5.0 / math.sqrt(2 * N)
    assert abs(u.mean().item() - 0.5) < five / math.sqrt(12.0)
    assert abs((u - 0.5).square().mean().item() - 1.0 / 12.0) < five / math.sqrt(180.0)
    assert scipy.stats.kstest(u.numpy(), "uniform").pvalue > 1e-4


def test_rademacher() -> None:
    # Five standard errors of the mean and of one correlation: 1e-6.
    signs = Noise(0).rademacher(Stream.PROBE, INDEX, ZERO, (2,), torch.float64)
    assert signs.unique().tolist() == [-1.0, 1.0]
    assert abs(signs.mean().item()) < 5.0 / math.sqrt(2 * N)
    assert abs((signs[:, 0] * signs[:, 1]).mean().item()) < FIVE


def test_both_precisions_give_one_noise() -> None:
    noise = Noise(0)
    single = noise.normal(Stream.STEP, INDEX, ZERO, (2,), torch.float32).double()
    double = noise.normal(Stream.STEP, INDEX, ZERO, (2,), torch.float64)
    error = (single - double).abs()
    # A uniform within 6e-8 of 1 leaves sqrt(-2 log u) only half of float32's digits.
    assert error.max().item() < 1e-3
    assert error.quantile(0.99).item() < 5e-6
    uniforms = [
        noise.uniform(Stream.STEP, INDEX, ZERO, (2,), dtype).double() for dtype in (torch.float32, torch.float64)
    ]
    assert (uniforms[0] - uniforms[1]).abs().max().item() < 2.0**-24
    signs = [
        noise.rademacher(Stream.STEP, INDEX, ZERO, (2,), dtype).double() for dtype in (torch.float32, torch.float64)
    ]
    assert torch.equal(*signs)


def test_generator() -> None:
    noise = Noise(8)

    def draw(generator: torch.Generator) -> list[float]:
        return torch.rand(4, generator=generator).tolist()

    first = draw(noise.generator(Stream.ORDER, 3, 1))
    assert draw(noise.generator(Stream.ORDER, 3, 1)) == first
    others = [(Stream.TIME, 3, 1), (Stream.ORDER, 4, 1), (Stream.ORDER, 3, 2), (Stream.ORDER, 3)]
    for address in others:
        assert draw(noise.generator(*address)) != first


def test_global_state_is_neither_read_nor_written() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = Noise(0).normal(Stream.STEP, INDEX[:5], ZERO, (3,))
    Noise(0).generator(Stream.ORDER, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(Noise(0).normal(Stream.STEP, INDEX[:5], ZERO, (3,)), a)


def test_odd_and_empty_events() -> None:
    noise = Noise(0)
    assert noise.normal(Stream.STEP, INDEX[:3], ZERO, ()).shape == (3,)
    assert noise.normal(Stream.STEP, INDEX[:3], ZERO, (0,)).shape == (3, 0)
    assert noise.uniform(Stream.STEP, INDEX[:3], ZERO, ()).shape == (3,)
    assert noise.rademacher(Stream.STEP, INDEX[:0], ZERO, (2,)).shape == (0, 2)


def test_every_repeat_has_keys_of_its_own() -> None:
    """Those of 0.1.0: 2^40 apart, for positions and for single draws; the first repeat's are the positions."""
    index = torch.tensor([0, 3, 2**40 - 1])
    keys = [repeat_key(index, repeat) for repeat in range(3)]
    assert torch.equal(keys[0], index)
    assert len(torch.cat(keys).unique()) == 9
    assert repeat_key(5, 2) == 5 + 2 * 2**40 == int(keys[2][1]) + 2


def test_samples_are_numbered_unless_they_have_positions() -> None:
    x = torch.zeros(3, 2)
    assert sample_index(x, None).tolist() == [0, 1, 2]
    assert sample_index(x, torch.tensor([7, 7, 1])).tolist() == [7, 7, 1]
    for bad in (torch.arange(2), torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"int64 with shape \(3,\), got torch"):
            sample_index(x, bad)


# ---- half precision

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
ADDRESS = Stream.STEP, torch.tensor(3), torch.tensor(0), (10**6,)


def before(value: Tensor) -> Tensor:
    """The next smaller number in half precision than a positive one."""
    return (value.view(torch.int16) - 1).view(value.dtype)


def within(probability: float, hits: Tensor) -> bool:
    """Whether a share of hits is within 5 standard errors of their probability, as it is but for 6e-7 of all seeds."""
    error = math.sqrt(probability * (1.0 - probability) / len(hits))
    return abs(hits.double().mean().item() - probability) <= 5.0 * error


@HALF
def test_normals_in_half_precision_have_the_tails_of_a_normal(dtype: torch.dtype) -> None:
    z = Noise(5).normal(*ADDRESS, dtype=dtype)
    assert z.dtype == dtype
    assert int((z == 0).sum()) <= 3  # 0.06 are expected, of float16: those within 3e-8
    for edge in torch.tensor([0.002, 0.1, 3.0, 4.0], dtype=dtype):
        # What is rounded to the edge begins in the middle between it and the number before it.
        middle = 0.5 * (edge.double() + before(edge).double()).item()
        assert within(2.0 * scipy.stats.norm.sf(middle), z.abs() >= edge)


@HALF
def test_uniforms_in_half_precision_are_rounded_towards_0(dtype: torch.dtype) -> None:
    u, fine = Noise(5).uniform(*ADDRESS, dtype=dtype), Noise(5).uniform(*ADDRESS)
    assert u.dtype == dtype
    assert bool((u <= fine).all())
    assert bool(((u.view(torch.int16) + 1).view(dtype) > fine).all())
    for edge in torch.tensor([2.0**-8, 0.25, 1.0 - 2.0**-8], dtype=dtype):
        assert within(1.0 - edge.item(), u >= edge)
