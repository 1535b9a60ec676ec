"""Several ranks take the steps of one process: the same data, the same weights, and every stop goes on bit for bit."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.fsdp
from support.ranks import on_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sde
from sde.noise import Noise
from sde.training import DDP, FSDP2, Execution, Muon, Ranks, Training
from sde.training.fingerprints import of_code
from sde.training.loss import keyed_dropout
from sde.training.ranks import agree, anywhere, full, group, sharded_as, together, total

KINDS = {"DDP": DDP(), "FSDP2": FSDP2()}


class Shifted(sde.Denoiser):
    """A denoiser with parameters outside of its network: a vector, a number, and one that no loss depends on."""

    def __init__(self, inner: sde.Denoiser) -> None:
        super().__init__()
        self.inner, self.process = inner, inner.process
        self.shift, self.unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.number = nn.Parameter(torch.zeros(()))

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.inner(x_t, t, **condition) + self.shift + self.number


def training(
    ranks: Ranks | None = None,
    *,
    dropout: float = 0.0,
    workers: int = 0,
    muon: bool = False,
    batches: Any = None,
    **settings: Any,
) -> Training:
    """An MLP on points in the plane with a learned schedule, and an objective with three weights, which two ranks
    cannot share evenly. Adam has an eps far above rounding, by whose sign it would move weights otherwise."""
    rng = torch.get_rng_state()
    torch.manual_seed(0)
    network = sde.networks.MLP(2, width=10, depth=1, dropout=dropout)
    denoiser = Shifted(sde.NetworkDenoiser(network, sde.LearnedVP(units=4)))
    objective = sde.objective.LearnedUncertainty(channels=3)
    x = torch.randn(20, 2)
    torch.set_rng_state(rng)
    parameters = [*denoiser.parameters(), *objective.parameters()]
    return Training(
        denoiser,
        sde.Batches(x, 8, seed=2, workers=workers) if batches is None else batches,
        objective=objective,
        optimizer=Muon(parameters) if muon else torch.optim.Adam(parameters, lr=1e-3, eps=1e-3),
        ema={"default": 0.9, "power": sde.training.PowerEMA(denoiser, 0.1)},
        seed=2,
        clip=0.5,
        ranks=ranks,
        **settings,
    )


def saved(state: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def tensors(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from tensors(value, f"{path}/{key}")
    elif isinstance(tree, list):
        yield from tensors(dict(enumerate(tree)), path)
    elif isinstance(tree, Tensor):
        yield path, tree


def same_bits(a: Any, b: Any) -> bool:
    one, other = dict(tensors(a)), dict(tensors(b))
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def all_of_it(
    ranks: Ranks | None, steps: int, stops: list[int], settings: dict[str, Any], begun: Any = None
) -> dict[str, Any]:
    """A straight run, every stop of it in one group, its validation and its models; and one that others have begun."""
    run, states, losses = training(ranks, **settings), [], []
    run.check()
    states.append(saved(run.state()))
    for report in run.run(steps):
        losses.append(report.loss)
        states.append(saved(run.state()))
    for stop in stops:
        torch.manual_seed(99)
        again = training(ranks, **settings)
        again.restore(states[stop])
        assert [report.loss for report in again.run(steps)] == losses[stop:], stop
        assert same_bits({**saved(again.state()), "rng": 0}, {**states[-1], "rng": 0}), stop
    x, t = torch.linspace(-1.0, 1.0, 22).reshape(11, 2), torch.tensor(0.4)
    levels = [run.validate(sde.Batches(x, size), levels=3).levels for size in (4, 11)]  # three batches, and one
    models = [run.model(ema=ema).denoiser(x, t) for ema in ("default", "power", None)]
    result = {"losses": losses, "levels": levels, "models": models, "states": states}
    return result if begun is None else {**result, "continued": continued(ranks, begun, steps, settings)}


def assert_close(found: Any, expected: Any) -> None:
    """Up to rounding, which Adam enlarges: it divides by the root of the second moment."""
    one, other = dict(tensors(found)), dict(tensors(expected))
    assert one.keys() == other.keys()
    for name, value in one.items():
        if "rng" not in name:
            torch.testing.assert_close(value, other[name], rtol=0, atol=1e-5)


def check_two_ranks(kind: str, steps: int, stops: list[int], **settings: Any) -> None:
    one = all_of_it(None, steps, [], settings)
    begun = one["states"][stops[0]]
    first, second = on_ranks(2, all_of_it, KINDS[kind], steps, stops, settings, begun, seconds=600.0)
    assert first["losses"] == second["losses"]
    assert same_bits(first["states"], second["states"])
    assert all(map(torch.equal, first["models"], second["models"]))
    if settings.get("dropout"):
        assert len(set(first["losses"])) == steps
        return
    np.testing.assert_allclose(first["losses"], one["losses"], atol=1e-5)
    np.testing.assert_allclose(first["levels"], one["levels"], atol=1e-5)
    assert_close(dict(enumerate(first["models"])), dict(enumerate(one["models"])))
    assert_close(first["states"][-1], one["states"][-1])
    last = first["states"][-1]
    assert last["weights"]["number"].abs() > 2e-5
    assert last["objective"]["objective.weights"].abs().min() > 2e-5
    moved = {
        name for name, value in last["weights"].items() if not torch.equal(value, one["states"][0]["weights"][name])
    }
    assert {name for name in last["weights"] if "process" in name} <= moved
    # The run goes on with one rank where two have stopped, and with two where one has.
    assert_close(continued(None, first["states"][stops[0]], steps, settings), one["states"][-1])
    assert_close(first["continued"], one["states"][-1])


def continued(ranks: Ranks | None, state: dict[str, Any], steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    run = training(ranks, **settings)
    run.restore(state)
    for _ in run.run(steps):
        pass
    return saved(run.state())


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_take_the_steps_of_one_and_go_on_from_any(kind: str) -> None:
    check_two_ranks(kind, 4, [2], accumulate=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate": 2}, {"accumulate": 2, "workers": 2}, {"dropout": 0.2, "muon": True, "workers": 2}],
    ids=["plain", "parts", "parts from workers", "dropout, Muon, workers"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_stopped_at_every_step(kind: str, settings: dict[str, Any]) -> None:
    check_two_ranks(kind, 20, list(range(1, 20)), **settings)


def matrices(ranks: Ranks | None) -> list[Tensor]:
    """Weights and momenta after three steps of Muon with large gradients, of which rounding would show."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(30, 17), nn.Linear(17, 40))
    if ranks is not None:
        ranks.shard(module)
    optimizer = Muon(module.parameters(), lr=0.01)
    for _ in range(3):
        for p in module.parameters():
            p.grad = sharded_as(torch.randn(p.shape), p)
        optimizer.step()
    return [full(value) for p in module.parameters() for value in (p.detach(), *optimizer.state[p].values())]


def convolutions(ranks: Ranks | None) -> list[Tensor]:
    """The weights after two steps on images with the channels last, whose activations are computed twice."""
    torch.manual_seed(0)
    network = sde.networks.UNet(2, width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0)
    denoiser, images = sde.NetworkDenoiser(network, sde.VP()), torch.randn(8, 2, 4, 4)
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=0.1)
    how: dict[str, Any] = {"execution": Execution(channels_last=True, checkpointing=True), "ranks": ranks}
    run = Training(denoiser, sde.Batches(images, 4), optimizer=optimizer, **how)
    formats: list[bool] = []
    inner = next(module for module in network.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 8)
    inner.register_forward_hook(lambda m, x, y: formats.append(y.is_contiguous(memory_format=torch.channels_last)))
    list(run.run(2))
    assert formats == [True] * len(formats) != []
    return list(run.model(ema=None).denoiser.state_dict().values())


def masks() -> list[Any]:
    """What dropout draws from, and whether the generator is what it was."""
    torch.manual_seed(5)
    before, found = torch.get_rng_state(), []
    for step in (3, 4, 3):
        with keyed_dropout(Noise(7), step, torch.device("cpu")):
            found.append(torch.rand(9))
        found.append(torch.equal(torch.get_rng_state(), before))
    return found


def test_sharded_ranks_take_the_step_of_muon_and_of_other_ways_to_compute_it() -> None:
    (first, second), expected = on_ranks(2, sharded), (matrices(None), convolutions(None))
    assert all(map(torch.equal, first[0], expected[0]))
    assert len(first[0]) == len(expected[0]) == 12
    torch.testing.assert_close(first[1], expected[1], rtol=0, atol=1e-5)
    # Each rank has other dropout, that of the step.
    (a, kept, other, _, again, _), (b, *_) = first[2], second[2]
    assert kept
    assert torch.equal(a, again)
    assert not torch.equal(a, other)
    assert not torch.equal(a, b)


def sharded() -> tuple[Any, ...]:
    return matrices(FSDP2()), convolutions(FSDP2()), masks()


def met_again(port: int, restart: int) -> float:
    """The sum of the ranks that torchrun starts, the second time with one that is late."""
    rank = dist.get_rank()
    dist.barrier()
    dist.destroy_process_group()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"GROUP_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"TORCHELASTIC_RESTART_COUNT": str(restart)}
    time.sleep(0.5 * restart * rank)
    with group("cpu"):
        return total(torch.ones(())).item()


def test_ranks_that_are_started_again_meet_each_other_and_not_those_before() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert [on_ranks(2, met_again, store.port, restart) for restart in (0, 1)] == [[2.0, 2.0]] * 2


def conditional(ranks: Ranks | None) -> tuple[list[float], Any]:
    """The losses and the weights of a training with three conditions, each of which is left out for half of the rows;
    one of the vectors is not known in part."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    sizes = sde.networks.Conditions(embedding=2, tokens=3)
    network = sde.networks.MLP(2, width=8, depth=1, classes=3, conditions=sizes)
    denoiser = sde.NetworkDenoiser(network, sde.VP())
    embedding, tokens = torch.randn(20, 2, generator=g), torch.randn(20, 4, 3, generator=g)
    embedding[3, 1] = torch.nan
    data = sde.data.Split(
        torch.randn(20, 2, generator=g), torch.arange(20) % 3, {"embedding": embedding, "tokens": tokens}
    )
    run = Training(
        denoiser,
        sde.Batches(data, 8, seed=2),
        optimizer=torch.optim.SGD(denoiser.parameters(), lr=0.1),
        conditions={"label": 0.5, "embedding": 0.5, "tokens": 0.5},
        accumulate=2,
        ranks=ranks,
    )
    return [report.loss for report in run.run(6)], saved(run.state())["weights"]


def test_conditions_are_left_out_on_two_ranks_as_on_one() -> None:
    losses, weights = conditional(None)
    for found, same in on_ranks(2, conditional, DDP()):
        np.testing.assert_allclose(found, losses, atol=1e-5)
        assert_close(same, weights)
    assert weights["network.context.table.weight"][3].abs().max() > 0.0


def refused(what: str) -> str:
    rank = dist.get_rank()
    torch.manual_seed(rank)
    if what == "data":
        run = training(batches=sde.Batches(torch.randn(20, 2), 8))
    elif what == "a loader in another order":
        run = training(batches=DataLoader(TensorDataset(torch.arange(16.0).reshape(8, 2)), 8, shuffle=True))
    elif what == "weights":
        run = training()
        with torch.no_grad():
            next(run.denoiser.parameters()).add_(rank)
        run = Training(run.denoiser, run.batches)
    elif what == "an uneven batch":
        run = training(batches=[torch.zeros(7, 2)])
    else:
        run = training(batches=sde.Batches(torch.zeros(20, 2), 8), accumulate=3)
    before = saved(run.state()["weights"])
    with pytest.raises(ValueError, match=r"rank 1 has other|does not divide") as error:
        next(run.run(1))
    assert same_bits(before, run.state()["weights"])
    return str(error.value)


def test_ranks_that_differ_are_refused_before_the_first_step() -> None:
    cases = {
        "data": "rank 1 has other data than rank 0",
        "a loader in another order": "rank 1 has other data than rank 0",
        "weights": "rank 1 has other weights than rank 0",
        "an uneven batch": "7 samples does not divide into 2 ranks",
        "an accumulation": "8 samples does not divide into 2 ranks times accumulate=3",
    }
    for found in on_ranks(2, all_refused, list(cases)):
        assert all(words in text for words, text in zip(cases.values(), found)), found


def all_refused(cases: list[str]) -> list[str]:
    return [refused(what) for what in cases]


def failing() -> list[Any]:
    rank, found = dist.get_rank(), []
    agree({"code": "a"})
    try:
        agree({"version": "1", "code": str(rank)})
    except ValueError as error:
        found.append(str(error))
    for failed in (0, 1):
        try:
            with together():
                if rank == failed:
                    raise FileNotFoundError("no data.npy here")
        except (ValueError, FileNotFoundError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return [*found, anywhere(rank == 1), anywhere(False)]


def test_an_error_of_one_rank_is_an_error_of_all() -> None:
    first, second = on_ranks(2, failing)
    other = "rank 1 has other code than rank 0 (1 instead of 0): all ranks need the same"
    own, told = "FileNotFoundError: no data.npy here", "ValueError: rank {}: no data.npy here"
    assert first == [other, own, told.format(1), True, False]
    assert second == [other, told.format(0), own, True, False]


def left_alone() -> str:
    run = training()
    next(run.run(2))
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError):
        list(run.run(9))
    assert run.step <= 2
    return "alone"


def test_the_death_of_a_rank_is_an_error_of_the_others() -> None:
    start = time.monotonic()
    assert on_ranks(2, left_alone, killed=1) == ["alone"]
    assert time.monotonic() - start < 30


def test_the_digest_of_the_code_is_that_of_the_files_of_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of the user's own counts, a module of torch is known by torch's version."""
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for factor in (1, 1, 2):
        (tmp_path / "own_network.py").write_text(f"import torch\nclass Own(torch.nn.Linear):\n    factor = {factor}\n")
        sys.modules.pop("own_network", None)
        importlib.invalidate_caches()
        found.append(of_code(importlib.import_module("own_network").Own(1, 1)))
    assert found[0] == found[1] != found[2]
    assert of_code(nn.Linear(1, 1)) == of_code(nn.SiLU())
