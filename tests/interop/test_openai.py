"""Networks of improved-diffusion and guided-diffusion: output, reverse steps and bound as the originals have them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fixtures import recorded
from torch import Tensor

import sde
from sde.denoisers import (
    Clip,
    Conditioned,
    DataPrediction,
    Denoiser,
    LearnedVarianceDenoiser,
    MatchedLevel,
    NetworkDenoiser,
    NoisePrediction,
    TimeLevel,
)
from sde.dynamics import Reverse
from sde.interop import openai
from sde.interop.formats import Source
from sde.model import Model, from_checkpoint
from sde.noise import StepNoise, Stream
from sde.processes import SDE
from sde.solvers import DDIM, Ancestral, Solver

LEARNED = ["openai_improved", "openai_guided"]
CASES = [*LEARNED, "openai_fixed"]
CHAINS = [("openai_improved", "full"), ("openai_improved", "respaced_10"), ("openai_guided", "full")]
CHAINS += [("openai_guided", "respaced_ddim25"), ("openai_fixed", "full")]


@dataclass(frozen=True)
class Given(StepNoise):
    """The same normals at every step."""

    z: Tensor

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        return self.z

    def select(self, index: Tensor) -> StepNoise:
        raise AssertionError("a fixed-step solver keeps its batch")


def load(recording: Any, folder: Path, process: SDE | None = None, **changes: Any) -> Model:
    """The model in float64, so that results do not depend on a processor; the records are float32."""
    path = folder / "model.pt"
    torch.save(recording.state, path)
    source = Source(path, recording.settings | changes)
    assert openai.recognises(source)
    model = from_checkpoint(openai.read(source, process), process=process)
    model.denoiser.double()
    return model


def condition(recording: Any) -> dict[str, Tensor]:
    return {name: recording[name] for name in ("label",) if name in recording.arrays}


def assert_close(value: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """To 1e-5 of the largest value."""
    error = (value - expected).abs().max() / expected.abs().max()
    assert error < rtol, error


def step(denoiser: Denoiser, recording: Any, solver: Solver, x: Tensor, z: Tensor, start: float, stop: float) -> Tensor:
    """One step in float64 between two times, or to the clean end at stop = 0."""
    nfe = torch.zeros(len(x), dtype=torch.int64)
    dynamics = Reverse(Conditioned(denoiser, condition(recording), nfe), solver.eta)
    with torch.no_grad():
        if stop == 0.0:
            (y,) = dynamics.x0((x.double(),), torch.tensor(start, dtype=torch.float64))
        else:
            (y,) = solver(dynamics, (x.double(),), Given(z.double()), start, stop)
    assert nfe.tolist() == [1] * len(x)
    return y


def times(recording: Any, key: str, t: int) -> tuple[float, float]:
    """The times of a step of a recorded chain: those of the full chain at its timesteps."""
    kept, n = recording[f"{key}/timestep_map"].tolist(), recording.settings["diffusion_steps"]
    return (kept[t] + 1) / n, (kept[t - 1] + 1) / n if t else 0.0


def timesteps(recording: Any, key: str) -> list[int]:
    n = len(recording[f"{key}/timestep_map"])
    return [0, 1, n // 2, n - 1]


@pytest.mark.parametrize("name", CASES)
def test_the_network_s_output_is_the_original_s(name: str, tmp_path: Path) -> None:
    r = recorded(name)
    denoiser = load(r, tmp_path).denoiser
    for t in timesteps(r, "full"):
        level = denoiser.level(denoiser.process, torch.tensor(times(r, "full", t)[0], dtype=torch.float64))
        assert_close(denoiser.network(r["x"].double(), level, **condition(r)), r[f"full/{t}/output"])


@pytest.mark.parametrize("name", CASES)
def test_the_chain_is_the_original_s(name: str, tmp_path: Path) -> None:
    r = recorded(name)
    chain = load(r, tmp_path).process.chain
    n = r.settings["diffusion_steps"]
    assert len(chain) == n
    torch.testing.assert_close(chain.alphas_bar[[0, 1, n // 2, n - 1]], r["alphas_cumprod"], rtol=1e-11, atol=0.0)


@pytest.mark.parametrize(("name", "key"), CHAINS)
def test_ancestral_steps_are_the_original_s(name: str, key: str, tmp_path: Path) -> None:
    """Mean, variance and a sample, on the full chain and on respaced ones, the step to the clean end included."""
    r = recorded(name)
    denoiser = load(r, tmp_path).denoiser
    solver = Ancestral(1) if name in LEARNED else Ancestral(1, v=1.0)
    for t in timesteps(r, key):
        start, stop = times(r, key, t)
        assert_close(step(denoiser, r, solver, r["x"], r["noise"], start, stop), r[f"{key}/{t}/sample"])
        mean = step(denoiser, r, solver, r["x"], torch.zeros_like(r["x"]), start, stop)
        assert_close(mean, r[f"{key}/{t}/mean"])
        if t > 0:
            std = step(denoiser, r, solver, r["x"], torch.ones_like(r["x"]), start, stop) - mean
            log_variance = 2.0 * std.log()
            expected = r[f"{key}/{t}/log_variance"].double().expand_as(log_variance)
            torch.testing.assert_close(log_variance, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_the_learned_variance_is_no_fixed_one(name: str, tmp_path: Path) -> None:
    r = recorded(name)
    denoiser, x = load(r, tmp_path).denoiser, recorded(name)["x"].double()
    with torch.no_grad():
        fraction = denoiser.score_and_variance(x, torch.tensor(0.5), **condition(r))[1]
    assert isinstance(denoiser, LearnedVarianceDenoiser)
    assert fraction.shape == x.shape
    assert fraction.std() > 0.1
    for v in (0.0, 1.0):
        sample = step(denoiser, r, Ancestral(1, v=v), r["x"], r["noise"], *times(r, "full", 1))
        assert (sample - r["full/1/sample"]).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "key"), CHAINS)
def test_clipped_steps_are_the_original_s(name: str, key: str, tmp_path: Path) -> None:
    r = recorded(name)
    t = timesteps(r, key)[2]
    solver = Ancestral(1) if name in LEARNED else Ancestral(1, v=1.0)
    sample = step(Clip(load(r, tmp_path).denoiser), r, solver, r["x"], r["noise"], *times(r, key, t))
    assert_close(sample, r[f"{key}/{t}/clipped_sample"])


@pytest.mark.parametrize(("name", "key"), CHAINS)
def test_ddim_steps_are_the_original_s(name: str, key: str, tmp_path: Path) -> None:
    r = recorded(name)
    t = timesteps(r, key)[2]
    sample = step(load(r, tmp_path).denoiser, r, DDIM(1), r["x"], r["noise"], *times(r, key, t))
    assert_close(sample, r[f"{key}/{t}/ddim"])


@pytest.mark.parametrize(("name", "key"), [case for case in CHAINS if case[0] in LEARNED])
def test_the_terms_of_the_bound_are_the_original_s(name: str, key: str, tmp_path: Path) -> None:
    """The score and the fraction of one call give every term of the bound, in bits/dim."""
    r = recorded(name)
    denoiser = load(r, tmp_path).denoiser
    process, x0, z = denoiser.process, r["x_start"].double(), r["noise"].double()
    for t in timesteps(r, key)[1:]:
        late, early = (torch.tensor(u, dtype=torch.float64) for u in times(r, key, t))
        x_t = process.alpha(late) * x0 + process.sigma(late) * z
        with torch.no_grad():
            score, fraction = denoiser.score_and_variance(x_t, late, **condition(r))
        log_alpha, var = process.transition(early, late)
        small = var * process.var(early) / process.var(late)
        # KL of N(m_1, v_1) from N(m_2, v_2), whose means differ as the scores do.
        log_ratio = fraction * (var / small).log()
        apart = (var * (-log_alpha).exp() * (score + z / process.sigma(late))).square()
        kl = 0.5 * (log_ratio + (-log_ratio).exp() - 1.0 + apart * (-log_ratio).exp() / small)
        torch.testing.assert_close(
            kl.flatten(1).mean(1) / math.log(2.0), r[f"{key}/{t}/vb"].double(), rtol=2e-5, atol=1e-7
        )
    mean, std = process.marginal(x0, torch.tensor(times(r, key, t)[0], dtype=torch.float64))
    kl = 0.5 * (mean.square() + std.square() - 1.0 - 2.0 * std.log())
    torch.testing.assert_close(
        kl.flatten(1).mean(1) / math.log(2.0), r[f"{key}/prior_bpd"].double(), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("process", [sde.VE(sigma_min=1e-3, sigma_max=1e4), sde.SubVP()], ids=["VE", "SubVP"])
@pytest.mark.parametrize("name", CASES)
def test_any_process_serves_the_same_network(name: str, process: SDE, tmp_path: Path) -> None:
    r = recorded(name)
    own, other = load(r, tmp_path).denoiser, load(r, tmp_path, process).denoiser
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    s = process.time(own.process.log_snr(t))
    x = own.process.alpha(t)[:, None, None, None] * r["x"].double()
    y = process.alpha(s)[:, None, None, None] * r["x"].double()
    with torch.no_grad():
        assert_close(other(y, s, **condition(r)), own(x, t, **condition(r)))
    assert isinstance(other.level, MatchedLevel)


def test_the_conventions(tmp_path: Path) -> None:
    def parts(name: str, **changes: Any) -> tuple[Any, ...]:
        d = load(recorded(name), tmp_path, **changes).denoiser
        return type(d), d.parametrisation, d.level

    assert parts("openai_guided") == (LearnedVarianceDenoiser, NoisePrediction(), TimeLevel(1000.0, -1.0))
    level = TimeLevel(1000.0, -0.25)
    changed = parts("openai_guided", diffusion_steps=4000, rescale_timesteps=True)
    assert changed == (LearnedVarianceDenoiser, NoisePrediction(), level)
    level = TimeLevel(4000.0, -1.0)
    assert parts("openai_guided", diffusion_steps=4000, rescale_timesteps=False)[2] == level
    assert parts("openai_guided", rescale_timesteps=None)[2] == TimeLevel(1000.0, -1.0)
    assert parts("openai_fixed") == (NetworkDenoiser, DataPrediction(), TimeLevel(1000.0, -10.0))
    r = recorded("openai_guided")
    assert load(r, tmp_path).classes == 1000
    assert load(r, tmp_path).shape == (3, 8, 8)
    assert load(recorded("openai_fixed"), tmp_path).classes is None


def test_lists_and_texts_say_the_same(tmp_path: Path) -> None:
    r = recorded("openai_improved")
    x, t = r["x"], torch.tensor(0.5)
    first = load(r, tmp_path).denoiser(x, t)
    again = load(r, tmp_path, channel_mult=[1, 2], attention_resolutions=[4]).denoiser(x, t)
    assert torch.equal(first, again)


def test_the_size_of_the_images_gives_the_levels(tmp_path: Path) -> None:
    """Left to the size of the images, channel_mult is (1, 2, 2, 2) for 32 in improved-diffusion."""
    r = recorded("openai_improved")
    with pytest.raises(ValueError, match=r"missing .*decoder\.2\.0\."):
        load(r, tmp_path, image_size=32, channel_mult="", attention_resolutions="16")
    with pytest.raises(ValueError, match=r"image_size=8 is not supported: expected one of 512, .*channel_mult"):
        load(r, tmp_path, channel_mult="")


def test_sampling_counts_one_call_a_step(tmp_path: Path) -> None:
    r = recorded("openai_guided")
    model = load(r, tmp_path)
    drawn = sde.sample(
        model.denoiser, (2, 3, 8, 8), solver=Ancestral(3), condition=condition(r), denoise=True, dtype=torch.float64
    )
    assert drawn.nfe.tolist() == [4, 4]
    alone = sde.sample(
        model.denoiser,
        (1, 3, 8, 8),
        solver=Ancestral(3),
        first=1,
        condition={"label": r["label"][1:]},
        denoise=True,
        dtype=torch.float64,
    )
    torch.testing.assert_close(alone.x, drawn.x[1:], rtol=1e-9, atol=1e-9 * drawn.x.abs().max().item())
    x = model.sample(2, solver=Ancestral(3))
    assert (x.shape, x.dtype) == ((2, 3, 8, 8), torch.uint8)


def test_it_opens_by_its_path(tmp_path: Path) -> None:
    r, path = recorded("openai_guided"), tmp_path / "model.pt"
    torch.save(r.state, path)
    model, again = load(r, tmp_path), sde.load(path, settings=r.settings)
    x, t = r["x"], torch.tensor(0.5)
    assert torch.equal(again.denoiser.double()(x, t, **condition(r)), model.denoiser(x, t, **condition(r)))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("openai_guided", {"num_chanels": 32}, "'num_chanels'.*image_size, "),
        ("openai_guided", {"num_channels": 64}, "does not hold the .* weights"),
        ("openai_guided", {"num_channels": 10**9}, "num_channels=1000000000 is not supported"),
        ("openai_guided", {"num_res_blocks": 10**9}, "num_res_blocks=1000000000 is not supported"),
        ("openai_guided", {"num_res_blocks": 2}, "does not hold the .* weights"),
        ("openai_guided", {"channel_mult": "1,2,"}, "channel_mult='1,2,' is not supported: expected whole numbers"),
        ("openai_guided", {"channel_mult": [1, -2]}, "channel_mult=.* positive numbers"),
        ("openai_guided", {"channel_mult": "1,999999"}, "channel_mult=.* positive numbers up to 65536"),
        ("openai_guided", {"channel_mult": "1,2,2"}, "does not hold the .* weights"),
        ("openai_guided", {"channel_mult": "1," * 999 + "1"}, "channel_mult=.* is not supported"),
        ("openai_guided", {"attention_resolutions": "0"}, "attention_resolutions=.* is not supported"),
        ("openai_guided", {"attention_resolutions": "8"}, "does not hold the .* weights"),
        ("openai_guided", {"attention_resolutions": None}, "does not hold the .* weights"),
        ("openai_guided", {"learn_sigma": False}, r"outlet.2.weight \(6, 32, 3, 3\) instead of \(3, "),
        ("openai_guided", {"learn_sigma": "True"}, "learn_sigma='True' is not supported"),
        ("openai_guided", {"class_cond": False}, r"context.table.weight"),
        ("openai_improved", {"class_cond": True}, "class_cond=True is not supported: .* without label_emb.weight"),
        ("openai_guided", {"use_scale_shift_norm": False}, "of another shape"),
        ("openai_guided", {"resblock_updown": False}, "does not hold the .* weights"),
        ("openai_improved", {"resblock_updown": True}, "does not hold the .* weights"),
        ("openai_guided", {"num_head_channels": 24}, "head_channels=24 .*64 channels"),
        ("openai_improved", {"num_heads_upsample": 2}, "num_heads_upsample=2 is not supported: expected num_heads=4"),
        ("openai_improved", {"noise_schedule": "sqrt"}, "noise_schedule='sqrt' is not supported"),
        ("openai_improved", {"diffusion_steps": 0}, "diffusion_steps=0 is not supported"),
        ("openai_guided", {"diffusion_steps": 20}, "diffusion_steps=20 is not supported: expected more than 20"),
        ("openai_guided", {"diffusion_steps": 4000, "rescale_timesteps": None}, "true .the default of improved"),
        ("openai_guided", {"image_size": "8"}, "image_size='8' is not supported"),
        ("openai_guided", {"dropout": "0"}, "dropout='0' is not supported"),
    ],
)
def test_wrong_settings_are_one_error(name: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(recorded(name), tmp_path, **change)
    assert str(caught.value).startswith(str(tmp_path / "model.pt"))


def test_flags_that_leave_the_model_as_it_is(tmp_path: Path) -> None:
    flags = {"timestep_respacing": "250", "use_fp16": True, "use_checkpoint": False, "use_kl": False}
    flags |= {"rescale_learned_sigmas": True, "sigma_small": True, "num_heads_upsample": -1, "dropout": 0.3}
    r = recorded("openai_improved")
    x, t = r["x"], torch.tensor(0.5)
    assert torch.equal(load(r, tmp_path, **flags).denoiser(x, t), load(r, tmp_path).denoiser(x, t))


def test_settings_are_asked_for(tmp_path: Path) -> None:
    torch.save(recorded("openai_fixed").state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="settings="):
        openai.read(Source(tmp_path / "model.pt"), None)
    with pytest.raises(ValueError, match="lack 'image_size'"):
        openai.read(Source(tmp_path / "model.pt", {"num_channels": 32}), None)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("out.2.bias", r"1 missing \(outlet.2.bias\)"),
        ("middle_block.1.qkv.bias", r"1 missing \(middle.0.attention.qkv.bias\)"),
        ("output_blocks.1.2.in_layers.2.weight", r"1 missing \(upsample.0.residual.conv1.weight\)"),
        ("label_emb.weight", "class_cond=True is not supported"),
    ],
)
def test_a_missing_weight_is_named(gone: str, message: str, tmp_path: Path) -> None:
    r = recorded("openai_guided")
    del r.state[gone]
    with pytest.raises(ValueError, match=message):
        load(r, tmp_path)


@pytest.mark.parametrize(
    "extra",
    ["out.3.weight", "input_blocks.9.0.in_layers.0.weight", "output_blocks.0.1.in_layers.0.weight", "low_res.weight"],
)
def test_an_extra_weight_is_named(extra: str, tmp_path: Path) -> None:
    r = recorded("openai_improved")
    r.state[extra] = torch.zeros(3)
    with pytest.raises(ValueError, match="1 not the network's"):
        load(r, tmp_path)


@pytest.mark.parametrize(
    ("bent", "shape", "message"),
    [
        ("out.2.weight", (6, 32, 3, 1), r"outlet.2.weight \(6, 32, 3, 1\) instead of"),
        ("middle_block.1.qkv.weight", (192, 64, 2), r"middle.0.attention.qkv.weight \(192, 64, 2\) instead of"),
        ("middle_block.1.qkv.bias", (), r"middle.0.attention.qkv.bias \(\) instead of"),
        ("label_emb.weight", (), "context.table.weight"),
        ("input_blocks.0.0.weight", (), "inlet.weight"),
    ],
)
def test_a_misshapen_weight_is_named(bent: str, shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    r = recorded("openai_guided")
    r.state[bent] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        load(r, tmp_path)


def test_other_files_are_not_recognised(tmp_path: Path) -> None:
    for content in (recorded("edm_adm").state, {"model": {}}, [1, 2]):
        torch.save(content, tmp_path / "other.pt")
        assert not openai.recognises(Source(tmp_path / "other.pt"))
    assert not openai.recognises(Source(tmp_path))
