"""Checkpoints of yang-song/score_sde_pytorch: everything that the original computed from them, recorded in float32.

Arrays are compared sample by sample, relative to the largest value of the sample (`close`), to 1e-5. Where more is
allowed the original is at fault, and the place says how and by how much:

- ROUNDING: its standard deviation is 1 - exp(-u) in float32 (sub-VP) or the root of that (VP), off by up to
  2^-24 / std or 2^-24 / std^2 of itself: 5e-4 at t = 1e-3.
- PHASE: it computes the angles of its embedding of the noise level in float32, off by up to 2^-24 of themselves, and
  they go up to 1000.
- KERNEL: its reverse-diffusion and ancestral steps take the kernel of entry `floor(999 t)` of a table of 1000 steps,
  for VP that of the chain, and the score at t. The steps are compared with that kernel, and with the kernel of the
  process between t and t - 1/1000 within what the two differ by.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.score_sde import NAMES, outputs, write
from torch import Tensor

import sde
from sde.denoisers import Prediction
from sde.dynamics import Reverse
from sde.instantiate import build
from sde.interop import score_sde_checkpoint
from sde.model import Model
from sde.noise import Noise, StepNoise, Stream
from sde.objective import DenoisingScoreMatching, Likelihood, Simple
from sde.solvers import Solver
from sde.trace import BoundTrace, Probes, Trace

CASES = [
    ("ddpm_vp", "vp", None),
    ("ddpmpp_vp", "vp", None),
    ("ddpmpp_vp", "subvp", sde.SubVP()),
    ("ncsnpp_ve", "ve", None),
    ("ncsnpp_256_ve", "ve", None),
]


@dataclass(frozen=True)
class Case:
    """A checkpoint under a process, and what the original computed from it."""

    name: str
    kind: str
    model: Model
    arrays: dict[str, Tensor]

    def __getitem__(self, key: str) -> Tensor:
        return self.arrays[f"{self.kind}/{key}"]

    def __contains__(self, key: str) -> bool:
        return f"{self.kind}/{key}" in self.arrays

    def phase(self, label: Tensor) -> Tensor:
        """What the original's angles are off by at a noise level c: they go up to c, or to 2 pi w log(c)."""
        state = self.model.denoiser.state_dict()
        if "network.context.embedding.parts" in state:
            largest = 2.0 * math.pi * state["network.context.embedding.parts"].double().sum(0).abs().max()
            return 2.0**-24 * largest * label.double().log().abs()
        return 2.0**-24 * label.double()

    def label(self, t: Tensor) -> Tensor:
        """What the original tells the network at a time."""
        return self.model.process.sigma(t.double()) if self.kind == "ve" else 999.0 * t.double()


@functools.cache
def loaded(name: str, kind: str, process: sde.SDE | None, ema: str | None = "default") -> Case:
    """The model in float64, so that results do not depend on a processor; the records are float32."""
    with tempfile.TemporaryDirectory() as folder:
        model = sde.load(write(name, Path(folder)), ema=ema, process=process)
    model.denoiser.double()
    return Case(name, kind, model, {key: value.double() for key, value in outputs(name).items()})


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    return loaded(*request.param)


def close(actual: Tensor, recorded: Tensor, tolerance: float | Tensor = 1e-5) -> None:
    """Holds each sample to `tolerance` times its largest recorded value."""
    assert actual.shape == recorded.shape
    axes = tuple(range(1, recorded.ndim))
    error = (actual.double() - recorded.double()).abs()
    scale = recorded.double().abs()
    relative = error.amax(axes) / scale.amax(axes) if axes else error / scale
    assert bool((relative <= torch.as_tensor(tolerance, dtype=torch.float64)).all()), relative.tolist()


def rounding(case: Case, t: Tensor) -> Tensor:
    """The relative error of the original's standard deviation."""
    std = case.model.process.sigma(t.double())
    return {"vp": 2.0**-24 / std**2, "subvp": 2.0**-24 / std, "ve": 0.0 * std}[case.kind]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ema", [None, "default"])
def test_the_network_s_output(name: str, ema: str | None) -> None:
    """In the original's units: the noise for VP, and for VE what it calls the score, already divided by sigma."""
    kind = name.rpartition("_")[2]
    case = loaded(name, kind, None, ema)
    denoiser, x, label = case.model.denoiser, case.arrays["x"], case.arrays["raw_in_label"].double()
    if kind == "vp":
        out = denoiser.noise(x, label / 999.0)
    else:
        out = denoiser.score(x, math.log(50.0 / 0.01) ** -1 * (label / 0.01).log())
    close(out, case.arrays["raw_out" if ema is None else "raw_out_ema"], 1e-5 + case.phase(label))


def test_the_score(case: Case) -> None:
    t = case.arrays["t"]
    slack = case.phase(case.label(t)) + rounding(case, t)
    close(case.model.denoiser.score(case.arrays["x"], t), case["score_ema"], 1e-5 + slack)


def test_the_forward_process(case: Case) -> None:
    process, x, t = case.model.process, case.arrays["x"], case.arrays["t"]
    if case.kind == "ve":
        assert not process.drift(x, t).any()
        assert not case["drift"].any()
    else:
        close(process.drift(x, t), case["drift"])
    # Under sub-VP the diffusion is the root of beta (1 - exp), with an error like that of the standard deviation.
    slack = 2.0**-24 / process.sigma(t.double()) if case.kind == "subvp" else 0.0
    close(process.diffusion(t), case["diffusion"], 1e-5 + slack)
    mean, std = process.marginal(x, t)
    close(mean, case["mean"])
    close(std, case["std"], 1e-5 + rounding(case, t))
    close(process.prior_log_prob(x), case["prior_logp"])


@dataclass(frozen=True)
class Recorded(StepNoise):
    """Noise that answers what was recorded."""

    z: Tensor

    def normal(self, stream: Stream, k: int | Tensor, start: float | Tensor, stop: float | Tensor) -> Tensor:
        assert k == 0
        return self.z

    def select(self, index: Tensor) -> StepNoise:
        return Recorded(self.z[index])


class At(sde.Denoiser):
    """The score of a denoiser at one time, under whatever process a step takes its kernel from."""

    def __init__(self, inner: sde.Denoiser, t: float, process: sde.SDE) -> None:
        super().__init__()
        self.inner, self.t, self.process = inner, torch.tensor(t), process

    def forward(self, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        raise NotImplementedError

    def predict(self, what: Prediction, x_t: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.inner.predict(what, x_t, self.t)


def original_s_kernel(case: Case) -> tuple[sde.SDE, float, float]:
    """The process and the two times between which the original's step at t = 0.5 goes: entry 499 of its table."""
    if case.kind == "ve":
        return case.model.process, 499 / 999, 498 / 999
    return sde.DiscreteChain.linear(1000).sde(), 500 / 1000, 499 / 1000


def stepped(solver: Solver, denoiser: sde.Denoiser, case: Case, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """One step from the recorded x with the recorded noise, and without."""
    x, z = case.arrays["x"], case["z"]
    with torch.no_grad():
        run = solver.bind(Reverse(denoiser, eta=1.0), start, stop)
        return run((x,), Recorded(z))[0], run((x,), Recorded(torch.zeros_like(z)))[0]


def agree(case: Case, step: str, results: tuple[Tensor, Tensor], x: float = 1e-5, x_mean: float = 1e-5) -> None:
    close(results[0], case[f"{step}/x"], x)
    close(results[1], case[f"{step}/x_mean"], x_mean)


def test_euler_maruyama(case: Case) -> None:
    assert case["step_t"].eq(0.5).all()
    agree(case, "euler_maruyama", stepped(sde.solvers.EulerMaruyama(1), case.model.denoiser, case, 0.5, 0.499))


def test_reverse_diffusion(case: Case) -> None:
    if case.kind == "subvp":  # for which the original's reverse diffusion is its Euler-Maruyama
        solver: Solver = sde.solvers.EulerMaruyama(1)
        agree(case, "reverse_diffusion", stepped(solver, case.model.denoiser, case, 0.5, 0.499))
    else:
        process, start, stop = original_s_kernel(case)
        denoiser = At(case.model.denoiser, 0.5, process)
        agree(case, "reverse_diffusion", stepped(sde.solvers.ReverseDiffusion(1), denoiser, case, start, stop))


# The transition's variance for VP, the posterior's for VE: the original's choices.
CHOICE = {"vp": 1.0, "ve": 0.0}


def test_ancestral_sampling(case: Case) -> None:
    if case.kind not in CHOICE:
        assert "ancestral_sampling/x" not in case
        return
    process, start, stop = original_s_kernel(case)
    denoiser = At(case.model.denoiser, 0.5, process)
    solver = sde.solvers.Ancestral(1, v=CHOICE[case.kind])
    agree(case, "ancestral_sampling", stepped(solver, denoiser, case, start, stop))


# KERNEL: at t = 0.5 the chain's step has beta = 1e-2 where the process's own has 1 - exp(-beta), which makes beta / 4
# of the noise and beta / 2 of the score's part; the step of VE's table is longer by 1/999 and begins half a step early.
DIFFERENCES = {"vp": (1e-3, 2e-4), "subvp": (1e-3, 2e-4), "ve": (1.5e-3, 3e-4)}


def test_steps_with_the_kernel_of_their_own_times(case: Case) -> None:
    denoiser, allowed = case.model.denoiser, DIFFERENCES[case.kind]
    agree(case, "reverse_diffusion", stepped(sde.solvers.ReverseDiffusion(1), denoiser, case, 0.5, 0.499), *allowed)
    if case.kind in CHOICE:
        solver = sde.solvers.Ancestral(1, v=CHOICE[case.kind])
        agree(case, "ancestral_sampling", stepped(solver, denoiser, case, 0.5, 0.499), *allowed)


def test_langevin(case: Case) -> None:
    """Its step size is even in z, so that the mean of the steps with z and -z is the one without noise."""
    if "langevin_0.16/x" not in case:
        assert case.kind == "subvp"
        return
    process, start, stop = original_s_kernel(case)
    dynamics = Reverse(At(case.model.denoiser, 0.5, process))
    times = torch.tensor([start, stop], dtype=torch.float64)
    step = sde.solvers.Langevin.song(0.16).method(dynamics, times)
    with torch.no_grad():
        ways = [step(0, (case.arrays["x"],), None, Recorded(sign * case["z"]))[0][0] for sign in (1.0, -1.0)]
    agree(case, "langevin_0.16", (ways[0], 0.5 * (ways[0] + ways[1])))


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("weighting", [Simple(), Likelihood()], ids=["simple", "likelihood"])
def test_the_losses(case: Case, weighting: Simple | Likelihood, mean: bool) -> None:
    objective = DenoisingScoreMatching(weighting, mean=mean)
    with torch.no_grad():
        loss = objective(case.model.denoiser, case.arrays["x"], case.arrays["t"], case["z"]).mean()
    # The loss weighted for likelihood is all but the part of t = 1e-3, and goes with 1 / std^2.
    likelihood = isinstance(weighting, Likelihood)
    slack = 2.0 * rounding(case, case.arrays["t"][0]) if likelihood else rounding(case, case.arrays["t"][0])
    close(loss, case[f"loss_lw{int(likelihood)}_mean{int(mean)}"], 1e-5 + slack)


@dataclass(frozen=True)
class RecordedProbe(Trace):
    """Hutchinson's estimator with the recorded probe."""

    probe: Tensor

    def bind(self, noise: Noise, index: Tensor, x: Tensor) -> BoundTrace:
        return Probes(self.probe.to(x)[None])


@dataclass(frozen=True)
class RoundedVP(sde.VP):
    """VP with the original's standard deviation, which by ROUNDING jumps, by 3 % at t = 1e-5."""

    def var(self, t: Tensor) -> Tensor:
        std = (1.0 - (2.0 * self.log_alpha(t.float())).exp()).sqrt()
        return std.to(t.dtype).square()


def bits(case: Case, model: Model, nudge: int = 0) -> tuple[Tensor, sde.LogProb]:
    """With the recorded probe, method and tolerances, and the batch as one system in float64, as SciPy has it; from
    starts that are 1e-7 away, where there is a seed for it."""
    x = case.arrays["x"].double()
    if nudge:
        z = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(nudge))
        x = x * (1.0 + 1e-7 * z)
    x = (x + 1.0) / 2.0 if case.kind == "ve" else x
    solver = sde.solvers.ScipyODE("RK45", rtol=1e-5, atol=1e-5)
    r = sde.log_prob(model.denoiser, x, solver=solver, trace=RecordedProbe(case["probe"]), atol=1e-5)
    return model.scaling.bits_per_dim(r.nats, x[0].numel()), r


# How far two solves of a VP flow in float32 may be apart, in bits/dim. The original's standard deviation jumps in t, so
# that its last bits, which differ between implementations of exp, choose the steps. Eight solves of ddpmpp_vp, from
# starts one float32 rounding apart and with exp one unit in the last place apart, network in float32 or float64, took
# 1520 to 1532 calls (the record 1514) and scattered by up to 1.08e-3 around their mean in one sample; the bound is five
# times the standard deviation of a difference, 5 sqrt(2) 1.08e-3. Their tolerance of 1e-5 itself costs 0.02.
# ddpm_vp took as many calls as the record, and was 8e-5 away with a network in float32, 2.5e-4 in float64.
SCATTER = {"ddpmpp_vp": 7.6e-3, "ddpm_vp": 2e-3}


@pytest.mark.slow
def test_bits_per_dim(case: Case) -> None:
    if "bpd" not in case:
        assert case.name == "ncsnpp_256_ve"
        return
    found, r = bits(case, case.model)
    # Flows of random weights are sensitive: a tolerance of 1e-6 moves these values by 0.02, as does ROUNDING for VP,
    # where the score goes with 1 / std. With it put back, what is left is the scatter.
    # Under sub-VP g^2 goes with the variance, and the jumps cancel: in float32 and float64 with the record's calls, the
    # values were within 6e-6 of it.
    assert (found - case["bpd"]).abs().max() < {"vp": 0.02, "subvp": 2e-4, "ve": 2e-3}[case.kind]
    if case.kind == "vp":
        found, r = bits(case, loaded(case.name, case.kind, RoundedVP()).model)
        assert (found - case["bpd"]).abs().max() < SCATTER[case.name]
    latents = [r.latent]
    if case.kind == "ve":
        # The rounding of a float32 network steers the steps, too: six solves from starts 1e-7 apart scattered by up to
        # 1.3e-2 around their mean, as then does the recorded one. Our part of that goes by taking a mean.
        latents += [bits(case, case.model, nudge)[1].latent for nudge in (1, 2, 3)]
    close(torch.stack(latents).mean(0), case["latent"], 1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_s_shape_scaling_and_process(name: str) -> None:
    model = loaded(name, name.rpartition("_")[2], None).model
    assert model.shape == ((3, 32, 32) if name == "ncsnpp_256_ve" else (3, 16, 16))
    assert model.classes is None
    if name.endswith("vp"):
        assert model.process == sde.VP(0.1, 20.0)
        assert model.scaling == sde.data.Scaling.interval(256, -1.0, 1.0)
    else:
        assert model.process == sde.VE(0.01, 50.0)
        assert model.scaling == sde.data.Scaling.interval(256, 0.0, 1.0)


# What the importer refuses, and what follows from the settings alone.


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the smallest checkpoint with its settings beside it."""
    source = write("ddpmpp_vp", tmp_path)
    source.with_suffix(".json").rename(tmp_path / "net.json")
    return source.rename(tmp_path / "net.pth")


def settings_of(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return settings


def changed(path: Path, **model: Any) -> dict[str, Any]:
    settings = settings_of(path)
    return {**settings, "model": {**settings["model"], **model}}


def test_settings_are_found_beside_it_and_may_be_given(checkpoint: Path) -> None:
    beside = sde.load(checkpoint).denoiser.state_dict()
    settings = settings_of(checkpoint)
    other = checkpoint.with_name("other.json")
    checkpoint.with_suffix(".json").rename(other)
    with pytest.raises(ValueError, match=r"net\.pth .*settings=.*net\.json"):
        sde.load(checkpoint)
    nested = {"model": settings["model"], "data": {k: v for k, v in settings.items() if k != "model"}}
    for given in (settings, other, str(other), nested):
        state = sde.load(checkpoint, settings=given).denoiser.state_dict()
        assert all(torch.equal(state[name], value) for name, value in beside.items())


def test_weights_without_the_prefix_of_data_parallel_training(checkpoint: Path) -> None:
    expected = sde.load(checkpoint).denoiser.state_dict()
    content = torch.load(checkpoint, weights_only=False)
    content["model"] = {name.removeprefix("module."): value for name, value in content["model"].items()}
    torch.save(content, checkpoint)
    state = sde.load(checkpoint).denoiser.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_the_raw_weights_and_their_averages_are_two(checkpoint: Path) -> None:
    raw, average = (sde.load(checkpoint, ema=ema).denoiser.state_dict() for ema in (None, "default"))
    assert raw.keys() == average.keys()
    assert not any(torch.equal(raw[name], average[name]) for name in raw if "weight" in name)
    with pytest.raises(ValueError, match="no EMA 'fast': it has default"):
        sde.load(checkpoint, ema="fast")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"nf": 32}, "of another shape"),
        ({"nf": 10**18}, "its settings|another shape"),
        ({"nf": "wide"}, "its settings"),
        ({"num_res_blocks": 10**9}, "the settings describe a (module|weight)"),
        ({"num_res_blocks": 2}, "net.pth"),
        ({"ch_mult": [1]}, "net.pth"),
        ({"ch_mult": 3}, "TypeError"),
        ({"attn_resolutions": []}, "net.pth"),
        ({"embedding_type": "fourier"}, "net.pth"),
        ({"name": "ncsnv2"}, "name is 'ncsnv2'"),
        ({"beta_min": None}, "TypeError"),
        ({"scale_by_sigma": True, "sigma_max": "large"}, "could not convert"),
    ],
    ids=str,
)
def test_settings_of_another_network_are_refused(checkpoint: Path, model: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        sde.load(checkpoint, settings=changed(checkpoint, **model))
    assert str(checkpoint) in str(caught.value)


@pytest.mark.parametrize("name", ["model", "image_size", "num_channels", "centered"])
def test_settings_that_lack_something_are_refused(checkpoint: Path, name: str) -> None:
    settings = {key: value for key, value in settings_of(checkpoint).items() if key != name}
    with pytest.raises(ValueError, match=f"{name}'( is missing|; they have)") as caught:
        sde.load(checkpoint, settings=settings)
    assert str(checkpoint) in str(caught.value)


def test_averages_that_do_not_fit_are_refused(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=False)
    last = content["ema"]["shadow_params"].pop()
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match=r"net\.pth: ema lists 153 parameters, and model has 154 trained ones"):
        sde.load(checkpoint)
    content["ema"]["shadow_params"] = [last, *content["ema"]["shadow_params"]]
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match=r"net\.pth: ema .*\(3,\).* all_modules"):
        sde.load(checkpoint)


def tree(checkpoint: Path, settings: dict[str, Any], process: sde.SDE | None = None) -> dict[str, Any]:
    return score_sde_checkpoint._tree(settings, process)[0]


def test_the_process_follows_from_the_settings(checkpoint: Path) -> None:
    assert tree(checkpoint, changed(checkpoint, beta_max=12.0))["process"]["beta_max"] == 12.0
    exploding = changed(checkpoint, scale_by_sigma=True, sigma_max=300)
    assert tree(checkpoint, exploding)["process"] == {"_target_": "sde.VE", "sigma_min": 0.01, "sigma_max": 300.0}
    trained = {**settings_of(checkpoint), "training": {"sde": "subvpsde"}}
    assert tree(checkpoint, trained)["process"]["_target_"] == "sde.SubVP"
    with pytest.raises(ValueError, match=r"training\.sde is 'vdm'"):
        tree(checkpoint, {**trained, "training": {"sde": "vdm"}})
    with pytest.raises(ValueError, match=r"process=sde\.VE.*scale_by_sigma"):
        tree(checkpoint, exploding, sde.VP())


def test_the_noise_levels_of_the_discrete_ve_are_counted_from_the_largest(checkpoint: Path) -> None:
    """The original's table of N sigmas falls geometrically; a network with positional embeddings is told the entry."""
    settings = changed(checkpoint, scale_by_sigma=True, num_scales=100)
    told = tree(checkpoint, settings)["denoiser"]["level"]
    process = sde.VE(0.01, 50.0)
    sigmas = torch.linspace(math.log(50.0), math.log(0.01), 100, dtype=torch.float64).exp()
    level = build(told)(process, process.time(-2.0 * sigmas.log()))
    torch.testing.assert_close(level, torch.arange(100.0, dtype=torch.float64), rtol=0, atol=1e-10)


def test_ddpm_has_positional_embeddings_whatever_its_settings_say(checkpoint: Path) -> None:
    """The original's default is `fourier`, which only NCSN++ reads."""
    settings = changed(checkpoint, name="ddpm", embedding_type="fourier", scale_by_sigma=True, num_scales=100)
    assert tree(checkpoint, settings)["denoiser"]["level"] == {
        "_target_": "sde.TimeLevel",
        "scale": -99.0,
        "offset": 99.0,
    }


def test_a_chain_of_other_length_is_told_its_own_steps(checkpoint: Path) -> None:
    settings = changed(checkpoint, num_scales=100)
    for training, scale in (({}, 999.0), ({"continuous": True}, 999.0), ({"continuous": False}, 99.0)):
        level = tree(checkpoint, {**settings, "training": training})["denoiser"]["level"]
        assert level == {"_target_": "sde.TimeLevel", "scale": scale}
    training = {"continuous": False, "sde": "subvpsde"}
    assert tree(checkpoint, {**settings, "training": training})["denoiser"]["level"]["scale"] == 999.0


def test_without_scale_by_sigma_a_network_for_ve_gives_the_score(checkpoint: Path) -> None:
    settings = changed(checkpoint, embedding_type="fourier")
    made, sign = score_sde_checkpoint._tree(settings, sde.VE())
    assert made["denoiser"]["parametrisation"] == {"_target_": "sde.ScorePrediction", "data_std": None}
    assert (sign, made["network"]["embedding"]["logarithm"]) == (1.0, False)
    level = build(made["denoiser"]["level"])(sde.VE(), torch.tensor([0.25, 1.0], dtype=torch.float64))
    torch.testing.assert_close(level, sde.VE().sigma(torch.tensor([0.25, 1.0], dtype=torch.float64)).log())
