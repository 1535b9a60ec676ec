"""What a step may be besides the plain one: in parts, with other precision, with memory saved, or left out."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde
from sde.objective import DenoisingScoreMatching, Objective
from sde.training import Cosine, Execution, Muon, NonFiniteLoss, PowerEMA, Report, Training
from sde.training.execution import LossScale, blocks


def unet(**settings: Any) -> Training:
    """A small U-Net on images of 8 x 8."""
    torch.manual_seed(0)
    network = sde.networks.UNet(1, width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0)
    denoiser = sde.NetworkDenoiser(network, sde.VP())
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
    x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Training(denoiser, sde.Batches(x, 6), optimizer=optimizer, ema=0.5, **settings)


def weights(training: Training) -> Tensor:
    return torch.cat([p.detach().flatten() for p in training.denoiser.parameters()])


@pytest.fixture(scope="module")
def plain() -> tuple[list[Report], Tensor]:
    torch.set_num_threads(1)
    training = unet()
    return list(training.run(3)), weights(training)


@dataclass(frozen=True)
class Seen(Objective):
    """The simple loss, which remembers what it was given."""

    draws: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(self, denoiser: Any, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        self.draws.append((x0, u, z))
        return DenoisingScoreMatching()(denoiser, x0, u, z, **condition)


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_has_the_draws_and_the_step_of_the_whole(
    plain: tuple[list[Report], Tensor], parts: int
) -> None:
    whole, cut = Seen(), Seen()
    unet(objective=whole).advance()
    training = unet(objective=cut, accumulate=parts)
    reports = list(training.run(3))
    assert [len(x0) for x0, *_ in cut.draws] == [6 // parts] * 3 * parts
    for one, several in zip(whole.draws[0], zip(*cut.draws[:parts])):
        assert torch.equal(one, torch.cat(several))
    for report, expected in zip(reports, plain[0]):
        assert report.loss == pytest.approx(expected.loss, rel=1e-6)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    torch.testing.assert_close(weights(training), plain[1], rtol=0, atol=1e-6)


def test_an_accumulation_that_does_not_divide_is_refused_before_the_first_step() -> None:
    for batches in (sde.Batches(torch.zeros(9, 1, 8, 8), 6), [torch.zeros(6, 1, 8, 8)]):
        training = unet(accumulate=4)
        training.batches, before = training.batches if isinstance(batches, list) else batches, weights(training)
        for call in (training.check, training.advance):
            with pytest.raises(ValueError, match=r"6 samples does not divide into 1 ranks times accumulate=4"):
                call()
        assert torch.equal(weights(training), before)
    with pytest.raises(ValueError, match="accumulate=0"):
        unet(accumulate=0)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, of inductor
@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [
        (Execution(channels_last=True), 1e-5),
        (Execution(checkpointing=True), 0.0),
        pytest.param(Execution(compile="eager"), 0.0, marks=pytest.mark.slow),
        (Execution(autocast="bf16"), 0.02),  # 8 digits of the gradient's 24
        (Execution(autocast="fp16", channels_last=True, checkpointing=True), 0.004),  # 11 digits
        pytest.param(Execution(compile="inductor", autocast="bf16"), 0.02, marks=pytest.mark.slow),
    ],
    ids=lambda value: "",
)
def test_other_ways_to_compute_a_step_are_the_step_up_to_rounding(
    plain: tuple[list[Report], Tensor], execution: Execution, tolerance: float
) -> None:
    """Relative to the length of the three steps; the models are float32, and have no trace of how they were trained."""
    start, training = weights(unet()), unet(execution=execution)
    training.check()
    reports = list(training.run(3))
    length = (plain[1] - start).norm()
    error = (weights(training) - plain[1]).norm() / length
    assert error <= tolerance
    assert error > 0.0 or not execution.autocast
    assert [report.loss for report in reports] == pytest.approx([report.loss for report in plain[0]], rel=0.02)
    model, other = training.model(), unet().model()
    other.denoiser.load_state_dict(training.ema["default"].weights)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.5)
    assert torch.equal(model.denoiser(x, t), other.denoiser(x, t))
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in model.denoiser.parameters())
    assert all("forward" not in vars(module) for module in model.denoiser.modules())


def test_checkpointing_computes_the_blocks_twice_and_stores_less() -> None:
    kept: dict[bool, list[int]] = {}
    for checkpointing in (False, True):
        training, calls = unet(execution=Execution(checkpointing=checkpointing)), [0, 0]
        for block in list(blocks(training.denoiser))[2:]:  # those after the attention, where recomputing may stop early
            inner = next(module for module in block.modules() if isinstance(module, nn.Conv2d))
            inner.register_forward_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))

        def count(tensor: Tensor, calls: list[int] = calls) -> Tensor:
            calls[1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            training.advance()
        kept[checkpointing] = calls
    assert kept[True][0] == 2 * kept[False][0] > 0
    assert kept[True][1] < 0.5 * kept[False][1]


def test_what_cannot_be_executed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"autocast.*bf16, fp16.*'int8'"):
        Execution(autocast="int8")
    with pytest.raises(ValueError, match=r"compile='fast'.*inductor"):
        Execution(compile="fast")
    denoiser = sde.NetworkDenoiser(nn.Linear(2, 2), sde.VP())
    with pytest.raises(ValueError, match="ModuleList"):
        Training(denoiser, [torch.zeros(2, 2)], execution=Execution(checkpointing=True))


# Steps left out


class Line(sde.Denoiser):
    def __init__(self) -> None:
        super().__init__()
        self.process, self.weight = sde.VP(), nn.Parameter(torch.zeros(2))

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.weight.expand_as(x_t)


@dataclass(frozen=True)
class Broken(Objective):
    """(w - 1)^2, times infinity at some calls."""

    at: tuple[int, ...]
    calls: list[int] = field(default_factory=list)

    def __call__(self, denoiser: Any, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        self.calls.append(1)
        loss = (denoiser.weight - 1.0).square().sum().expand(len(x0))
        return loss * math.inf if len(self.calls) in self.at else loss


def line(objective: Objective, **settings: Any) -> Training:
    denoiser = Line()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.1)
    return Training(denoiser, sde.Batches(torch.zeros(8, 2), 4), None, objective, optimizer, 0.5, **settings)


def test_steps_that_are_not_finite_are_left_out_a_bounded_number_of_times() -> None:
    """As if they had not been: the weights, moments and averages are those of the steps that remain."""
    training, whole = line(Broken((2, 3, 6)), max_skipped=2), line(Broken(()))
    with pytest.warns(RuntimeWarning, match=r"step 2 is left out, number 1 of at most 2: the loss is inf"):
        reports = [training.advance(), training.advance()]
    with pytest.warns(RuntimeWarning, match=r"step 3 .*number 2"):
        reports.append(training.advance())
    assert [report.skipped for report in reports] == [False, True, True]
    assert (training.step, training.skipped) == (3, 2)
    # The count is part of the state, so that continuing does not renew it.
    again = line(Broken((4,)), max_skipped=2)
    again.objective.calls.append(1)
    state = copy.deepcopy(training.state())
    again.restore(state)
    for run in (training, again):
        run.advance(), run.advance()
        with pytest.raises(NonFiniteLoss, match="step 6 after 2 steps were left out"):
            run.advance()
        assert run.step == 5
    list(whole.run(3))
    assert torch.equal(weights(training), weights(whole))
    assert torch.equal(weights(again), weights(whole))


def test_the_scale_of_the_loss_moves_with_overflow_and_is_saved() -> None:
    """In float16, gradients beyond its range halve the scale and are no failure; a loss that is not finite is one."""
    scale = LossScale(value=4.0, interval=3)
    for finite, value in ((True, 4.0), (True, 4.0), (True, 8.0), (True, 8.0), (False, 4.0), (True, 4.0), (True, 4.0)):
        scale.update(finite)
        assert scale.value == value
    assert not scale.exhausted

    @dataclass(frozen=True)
    class Steep(Objective):
        """A gradient whose norm is finite in float32 with a scale of 2^14 at most."""

        def __call__(self, denoiser: Any, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
            return (denoiser.weight * 6e14).sum().expand(len(x0))

    training = line(Steep(), execution=Execution(autocast="fp16"))
    reports = list(training.run(4))
    assert [report.skipped for report in reports] == [True, True, False, False]
    assert training.scale is not None
    assert (training.scale.value, training.scale.steps, training.skipped) == (2.0**14, 2, 0)
    other = line(Steep(), execution=Execution(autocast="fp16"))
    other.restore(copy.deepcopy(training.state()))
    assert other.scale == training.scale
    with pytest.raises(NonFiniteLoss):
        line(Broken((1,)), execution=Execution(autocast="fp16")).advance()


# Parameters of the objective


class Head(nn.Module, Objective):
    """A learned weight of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.ones(1))

    def forward(self, denoiser: sde.Denoiser, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
        return DenoisingScoreMatching()(denoiser, x0, u, z, **condition) * (-self.level).exp() + self.level


def test_parameters_of_the_objective_are_trained_clipped_and_saved() -> None:
    denoiser, head = Line(), Head()
    data = sde.Batches(torch.ones(8, 2), 4)
    training = Training(denoiser, data, objective=head, clip=1e-3)
    report = training.advance()
    gradients = torch.cat([p.grad.flatten() for p in (denoiser.weight, head.level) if p.grad is not None])
    assert gradients.norm() == pytest.approx(1e-3, rel=1e-4)
    assert report.grad_norm > 1e-3
    assert head.level.item() != 1.0
    other = Training(Line(), data, objective=Head(), clip=1e-3)
    other.restore(copy.deepcopy(training.state()))
    assert [r.loss for r in other.run(3)] == [r.loss for r in training.run(3)]
    with pytest.raises(ValueError, match=r"another objective.*objective\.level"):
        other.restore({k: v for k, v in training.state().items() if k != "objective"})
    with pytest.raises(ValueError, match=r"lacks the parameter objective\.level"):
        Training(denoiser, data, objective=head, optimizer=torch.optim.Adam(denoiser.parameters()))


def test_validation_by_noise_level_is_the_mean_over_its_samples() -> None:
    @dataclass(frozen=True)
    class Level(Objective):
        def __call__(self, denoiser: Any, x0: Tensor, u: Tensor, z: Tensor, **condition: Tensor) -> Tensor:
            return (4 * u).floor() + 0 * denoiser.weight.sum()

    found = line(Level()).validate(sde.Batches(torch.zeros(40, 2), 20), levels=4)
    assert found.levels == (0.0, 1.0, 2.0, 3.0)
    assert found.loss == pytest.approx(1.5)


# Stopping and going on


def everything(workers: int) -> Training:
    """Dropout, parts, float16 with its scale, a learned schedule and a learned uncertainty, two kinds of averages, a
    decay."""
    torch.manual_seed(0)
    network = sde.networks.UNet(1, width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.2)
    denoiser, head = sde.NetworkDenoiser(network, sde.LearnedVP()), sde.objective.LearnedUncertainty()
    x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Training(
        denoiser,
        sde.Batches(x, 8, workers=workers),
        None,
        head,
        Muon([*denoiser.parameters(), *head.parameters()], lr=0.01),
        {"default": 0.9, "power": PowerEMA(denoiser, 0.1)},
        warmup=5,
        decay=Cosine(20),
        accumulate=2,
        execution=Execution(autocast="fp16"),
    )


def bits(value: Any) -> Any:
    """A tree with tensors as bytes, to be compared exactly."""
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [bits(each) for each in value]
    return value.numpy().tobytes() if isinstance(value, Tensor) else value


@pytest.mark.parametrize(
    ("stops", "workers"),
    [([3], 0), *(pytest.param(list(range(1, 20)), workers, marks=pytest.mark.slow) for workers in (0, 2))],
    ids=["one", "each", "each, from workers"],
)
def test_stopped_anywhere_it_goes_on_bit_for_bit_with_all_that_a_step_may_be(stops: list[int], workers: int) -> None:
    steps = max(stops) + 1
    training, states, losses = everything(workers), [], []
    assert training.scale is not None
    training.scale.interval = 4  # so that it grows on the way
    for report in training.run(steps):
        losses.append(report.loss)
        buffer = io.BytesIO()
        torch.save(training.state(), buffer)
        states.append(buffer.getvalue())
    expected = bits(torch.load(io.BytesIO(states[-1]), weights_only=True))
    for stop in stops:
        again = everything(workers)
        torch.manual_seed(99)
        again.restore(torch.load(io.BytesIO(states[stop - 1]), weights_only=True))
        assert [report.loss for report in again.run(steps)] == losses[stop:], stop
        assert bits(again.state()) == expected, stop
