"""Pipelines of diffusers: the same network, chain and steps to 1e-5, and every refusal by its name."""

from __future__ import annotations

import inspect
import json
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from support.rounding import rounding
from torch import Tensor

import sde
from sde.denoisers import Clip, Denoiser, DynamicThreshold
from sde.dynamics import Reverse
from sde.grids import Explicit
from sde.interop import diffusers as importer
from sde.interop import read
from sde.interop.diffusers_unet import AVERAGING, NETWORK
from sde.interop.formats import Source
from sde.model import from_checkpoint
from sde.noise import StepNoise
from sde.sampling import sample
from sde.solvers import DDIM, Ancestral, Solver

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def hf() -> ModuleType:
    """The package itself, whose import takes seconds and warns of other packages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("diffusers", reason="compares with diffusers itself, of the test extra")
        module.logging.set_verbosity_error()
        module.utils.logging.disable_progress_bar()
        return module


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": None,
}

# Of google/ddpm-cifar10-32, and what else is supported.
NETWORKS: dict[str, dict[str, Any]] = {
    "google": {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6},
    "default": {"attention_head_dim": 8},
    "heads": {
        "attention_head_dim": 4,
        "layers_per_block": 2,
        "dropout": 0.3,
        "down_block_types": ("UNetResDownBlock2D", "UNetResAttnDownBlock2D"),
        "act_fn": "gelu",
    },
    "scale_shift": {"resnet_time_scale_shift": "scale_shift", "act_fn": "relu"},
    "scale_shift, norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "middle": {"mid_block_scale_factor": 2.0, "add_attention": False, "center_input_sample": True},
    "middle, attention": {"mid_block_scale_factor": math.sqrt(2.0), "time_embedding_dim": 24, "act_fn": "swish"},
    "residual": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "upsample_type": "resnet",
        "act_fn": "mish",
    },
    "residual, attention": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
    },
    "three levels": {
        "sample_size": (8, 12),
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (12, 8, 20),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
    "labels": {"num_class_embeds": 5},
}


def unet(hf: ModuleType, **settings: Any) -> Any:
    """A network with random weights, none at its initial 0 or 1."""
    torch.manual_seed(0)
    net = hf.UNet2DModel(**SMALL | settings).eval()
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.add_(0.1 * normal(*parameter.shape, seed=seed))
    return net


def exact(net: Any) -> Any:
    """Their network in float64, where results do not depend on a processor. The angles of its embedding, which it
    computes in float32 always, are replaced by exact ones, to which they are held."""

    def in_float64(embedding: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        half = embedding.num_channels // 2
        rates = torch.arange(half, dtype=torch.float64) / (half - embedding.downscale_freq_shift)
        angles = inputs[0].double()[:, None] * (-math.log(10_000.0) * rates).exp()
        parts = [angles.sin(), angles.cos()]
        result = torch.cat(parts[::-1] if embedding.flip_sin_to_cos else parts, 1)
        assert (output - result).abs().max() <= 2.0**-22 * (1.0 + angles.max())
        return result

    net.time_proj.register_forward_hook(in_float64)
    return net.double()


def exact_denoiser(path: Path) -> Denoiser:
    return sde.load(path).denoiser.double()


def saved(hf: ModuleType, path: Path, net: Any, scheduler: Any) -> Path:
    assert net.dtype == torch.float32
    pipeline = hf.DDIMPipeline if isinstance(scheduler, hf.DDIMScheduler) else hf.DDPMPipeline
    pipeline(net, scheduler).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(hf: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(hf, tmp_path_factory.mktemp("diffusers") / "pipeline", unet(hf), hf.DDPMScheduler())


def edited(file: str, **values: Any) -> Edit:
    """Puts other values into a file of settings."""

    def edit(path: Path) -> None:
        content = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps({**content, **values}))

    return edit


def network(**values: Any) -> Edit:
    return edited("unet/config.json", **values)


def scheduler(**values: Any) -> Edit:
    return edited("scheduler/scheduler_config.json", **values)


def copied(pipeline: Path, path: Path, *edits: Edit) -> Path:
    shutil.copytree(pipeline, path / "model")
    for edit in edits:
        edit(path / "model")
    return path / "model"


# The network


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_the_same(hf: ModuleType, tmp_path: Path, name: str) -> None:
    net = unet(hf, **NETWORKS[name])
    path = saved(hf, tmp_path / "pipeline", net, hf.DDPMScheduler(clip_sample=False))
    model = sde.load(path)
    channels, size = net.config.in_channels, net.config.sample_size
    assert model.shape == (channels, *((size, size) if isinstance(size, int) else size))
    x, i = normal(3, *model.shape, dtype=torch.float64), torch.tensor([1, 417, 1000])
    label = None if name != "labels" else torch.tensor([4, 0, 2])
    condition = {} if label is None else {"label": label}
    assert model.classes == (None if label is None else 5)

    def noise(dtype: torch.dtype = torch.float64) -> Tensor:
        return model.denoiser.noise(x.to(dtype), i.to(dtype) / 1000, **condition)

    with torch.no_grad():
        float32 = noise(torch.float32)
        model.denoiser.double()
        expected = exact(net)(x, i - 1, class_labels=label).sample
        torch.testing.assert_close(noise(), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.1
    assert (float32 - expected).abs().max() <= rounding(noise)


def test_old_files_are_read(hf: ModuleType, pipeline: Path, tmp_path: Path) -> None:
    """All in one place, weights of torch.save, and the attention under the names it had until 2023."""

    def old(path: Path) -> None:
        net = hf.UNet2DModel.from_pretrained(path / "unet")
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        state = {}
        for name, value in net.state_dict().items():
            for new, former in names.items():
                name = name.replace(f".{new}.", f".{former}.")
            state[name] = value
        assert any("query" in name for name in state)
        torch.save(state, path / "diffusion_pytorch_model.bin")
        shutil.move(path / "unet" / "config.json", path / "config.json")
        shutil.move(path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json")
        for folder in ("unet", "scheduler"):
            shutil.rmtree(path / folder)

    x, t = normal(2, 3, 8, 8), torch.tensor(0.3)
    new, former = sde.load(pipeline), sde.load(copied(pipeline, tmp_path, old))
    with torch.no_grad():
        assert torch.equal(former.denoiser.score(x, t), new.denoiser.score(x, t))


def test_a_network_alone_needs_to_be_told_its_chain(pipeline: Path) -> None:
    with pytest.raises(ValueError, match=r"unet.*scheduler_config\.json.*settings=.*beta_schedule.*\{\}"):
        read(pipeline / "unet")
    x, t = normal(2, 3, 8, 8), torch.tensor(0.3)
    whole, alone = sde.load(pipeline), sde.load(pipeline / "unet", settings={})
    with torch.no_grad():
        assert torch.equal(alone.denoiser(x, t), whole.denoiser(x, t))
    other = sde.load(pipeline / "unet", settings={"beta_schedule": "squaredcos_cap_v2", "clip_sample": False})
    expected = sde.DiscreteChain.cosine(1000).alphas_bar[299].sqrt()
    assert other.process.alpha(torch.tensor(0.3, dtype=torch.float64)).item() == pytest.approx(expected.item())
    file = pipeline / "scheduler" / "scheduler_config.json"
    told = sde.load(pipeline / "unet", settings=str(file))
    with torch.no_grad():
        assert torch.equal(told.denoiser(x, t), whole.denoiser(x, t))
    assert isinstance(sde.load(pipeline, settings={"clip_sample": False}).denoiser, sde.NetworkDenoiser)
    with pytest.raises(ValueError, match=r"settings= .*'clip_samples'.*clip_sample,"):
        read(pipeline, settings={"clip_samples": False})
    assert read(pipeline, settings={"sample_size": [16, 4]})["model"].count("16") == 1


def test_the_settings_and_their_defaults_are_those_of_diffusers(hf: ModuleType) -> None:
    theirs = inspect.signature(hf.UNet2DModel.__init__).parameters
    assert NETWORK.keys() <= theirs.keys()
    for name, value in NETWORK.items():
        default = theirs[name].default
        assert value == (list(default) if isinstance(default, tuple) else default), name
    for name in importer._CHAINS:
        theirs = inspect.signature(getattr(hf, name).__init__).parameters
        ours = importer._SCHEDULER | importer._DEFAULTS.get(name, {})
        for key in ours.keys() & theirs.keys() - {"variance_type"}:  # which None leaves fixed, too
            assert ours[key] == theirs[key].default, (name, key)
        for key, classes in (("clip_sample", importer._CLIPPING), ("thresholding", importer._THRESHOLDING)):
            assert (key in theirs) == (name in classes), (name, key)


# Layouts


def raw_and_averaged(hf: ModuleType, path: Path, **settings: Any) -> tuple[Any, Any]:
    """A checkpoint of the training script of diffusers, in `unet` and `unet_ema`, after three steps."""
    net = unet(hf)
    average = hf.training_utils.EMAModel(net.parameters(), 0.9, model_cls=hf.UNet2DModel, model_config=net.config)
    for _ in range(3):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.1)
        average.step(net.parameters())
    net.save_pretrained(path / "unet", **settings)
    average.save_pretrained(path / "unet_ema")
    averaged = hf.UNet2DModel.from_pretrained(path / "unet_ema")
    return net, averaged


def assert_has_weights_of(model: Any, net: Any) -> None:
    x, i = normal(1, 3, 8, 8), torch.tensor([500])
    with torch.no_grad():
        noise, expected = model.denoiser.inner.noise(x, i / 1000), net(x, i - 1).sample
    torch.testing.assert_close(noise, expected, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_of_the_training_script(hf: ModuleType, tmp_path: Path) -> None:
    raw, averaged = raw_and_averaged(hf, tmp_path)
    extra = json.loads((tmp_path / "unet_ema" / "config.json").read_text()).keys() - NETWORK.keys()
    assert {name for name in extra if name[:1] != "_"} == AVERAGING
    for path in (tmp_path, tmp_path / "unet_ema"):
        assert_has_weights_of(sde.load(path, settings={}), averaged)
        assert_has_weights_of(sde.load(path, settings={}, ema=None), raw)
        assert read(path, settings={})["step"] == 3
    assert_has_weights_of(sde.load(tmp_path / "unet", settings={}), raw)
    edited("unet/config.json", flip_sin_to_cos=False)(tmp_path)
    with pytest.raises(ValueError, match=r"unet_ema and of unet .* two networks"):
        read(tmp_path, settings={})
    shutil.rmtree(tmp_path / "unet")
    alone = sde.load(tmp_path, settings={}, ema=None)
    assert_has_weights_of(alone, averaged)


@pytest.mark.parametrize(
    ("variant", "size", "end"),
    [(None, "10GB", "bin"), (None, "40KB", "safetensors"), ("fp16", "40KB", "bin"), ("fp16", "10GB", "safetensors")],
)
def test_files_of_weights(hf: ModuleType, tmp_path: Path, variant: str | None, size: str, end: str) -> None:
    net = unet(hf)
    net.save_pretrained(tmp_path, variant=variant, max_shard_size=size, safe_serialization=end == "safetensors")
    weights = list(tmp_path.glob(f"*.{end}"))
    assert (len(weights) > 2) == (size == "40KB")
    assert_has_weights_of(sde.load(tmp_path, settings={}), net)
    if variant:
        assert_has_weights_of(sde.load(tmp_path, settings={"variant": variant}), net)


def test_variants_are_chosen_by_name(hf: ModuleType, tmp_path: Path) -> None:
    nets = {name: unet(hf, center_input_sample=False) for name in (None, "non_ema", "fp16")}
    for k, (name, net) in enumerate(nets.items()):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.0 + 0.1 * k)
        net.save_pretrained(tmp_path, variant=name)
        assert_has_weights_of(sde.load(tmp_path, settings={} if name is None else {"variant": name}), net)
    assert_has_weights_of(sde.load(tmp_path, settings={}), nets[None])
    with pytest.raises(ValueError, match=r"no weights of the variant 'fp8', .*'fp16', .*no variant: "):
        read(tmp_path, settings={"variant": "fp8"})
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights without a variant, .*'non_ema'.*settings="):
        read(tmp_path, settings={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda places: dict.fromkeys(places, "../elsewhere.bin"), r"'\.\./elsewhere\.bin', which is not beside it"),
        (lambda places: dict.fromkeys(places, ".."), "'..', which is not beside it"),
        (lambda places: dict.fromkeys(places, "gone.safetensors"), "'gone.safetensors', which is not beside it"),
        (lambda places: dict.fromkeys(places, 3), "not an index"),
        (lambda places: {**places, "more": places["conv_in.bias"]}, "does not agree with"),
        (lambda places: {k: v for k, v in places.items() if k != "conv_in.bias"}, "does not agree with"),
        (lambda places: {}, "not an index"),
    ],
)
def test_an_index_that_does_not_agree_is_refused(
    hf: ModuleType, tmp_path: Path, change: Callable[[dict[str, str]], Any], message: str
) -> None:
    unet(hf).save_pretrained(tmp_path, max_shard_size="40KB")
    (index,) = tmp_path.glob("*.index.json")
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "weight_map": change(content["weight_map"])}))
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, settings={})
    assert str(caught.value).startswith(str(index))


def test_wrappers_of_the_saved_network_do_not_matter(hf: ModuleType, tmp_path: Path) -> None:
    net = unet(hf)
    net.save_pretrained(tmp_path)
    state = {f"module._orig_mod.{name}": value for name, value in net.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    assert_has_weights_of(sde.load(tmp_path, settings={}), net)


# The chain

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
    "sigmoid": {"beta_schedule": "sigmoid", "beta_end": 0.03, "num_train_timesteps": 300},
    "laplace": {"beta_schedule": "laplace", "num_train_timesteps": 200},
    "trained": {"trained_betas": [0.1, 0.05, 0.3, 0.2], "num_train_timesteps": 4},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_chain_is_the_same(hf: ModuleType, pipeline: Path, tmp_path: Path, name: str) -> None:
    theirs = hf.DDPMScheduler(**SCHEDULES[name])
    path = copied(pipeline, tmp_path, lambda path: theirs.save_pretrained(path / "scheduler"))
    process = sde.load(path).process
    n = len(theirs.betas)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert process.t_min == 1 / n
    # The scheduler sums its logarithms in float32.
    torch.testing.assert_close(process.alpha(t).square(), theirs.alphas_cumprod.double(), rtol=5e-5, atol=1e-8)


def test_schedulers_of_the_same_chain(hf: ModuleType, pipeline: Path) -> None:
    """Each as it is after from_config of another, with settings that it does not read in its file."""
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    first = hf.DDPMScheduler(num_train_timesteps=100, beta_end=0.03, thresholding=True)
    for name in importer._CHAINS:
        if name == "DPMSolverSDEScheduler":
            continue  # it needs another package
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy
            theirs = getattr(hf, name).from_config(first.config)
        content = read(pipeline, settings={**theirs.config, "_class_name": name})
        model = from_checkpoint(content)
        alphas_bar = theirs.alphas_cumprod.double()
        torch.testing.assert_close(model.process.alpha(t).square(), alphas_bar, rtol=5e-5, atol=1e-8)
        clips = name in importer._CLIPPING and theirs.config.clip_sample
        expected = DynamicThreshold if name in importer._THRESHOLDING else Clip if clips else sde.NetworkDenoiser
        assert type(model.denoiser) is expected, name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exponential = hf.HeunDiscreteScheduler(num_train_timesteps=100, beta_schedule="exp")
    settings = {**exponential.config, "_class_name": "HeunDiscreteScheduler"}
    process = from_checkpoint(read(pipeline, settings=settings)).process
    alphas_bar = exponential.alphas_cumprod.double()
    torch.testing.assert_close(process.alpha(t).square(), alphas_bar, rtol=5e-4, atol=1e-8)


def test_every_other_scheduler_is_refused_by_its_name(hf: ModuleType, pipeline: Path) -> None:
    names = {name for name in dir(hf) if name.endswith("Scheduler")} - set(importer._CHAINS)
    assert {"ScoreSdeVeScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"} <= names
    for name in names:
        with pytest.raises(ValueError, match=f"_class_name='{name}' is not supported"):
            read(pipeline, settings={"_class_name": name})


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_type(hf: ModuleType, pipeline: Path, tmp_path: Path, prediction: str) -> None:
    path = copied(pipeline, tmp_path, scheduler(prediction_type=prediction, clip_sample=False))
    theirs, d = hf.DDIMScheduler.from_pretrained(path / "scheduler"), exact_denoiser(path)
    theirs.set_timesteps(1000)
    in_float64(theirs)
    net = exact(hf.UNet2DModel.from_pretrained(path / "unet"))
    x = normal(2, 3, 8, 8, dtype=torch.float64)
    for i in (1, 300, 1000):
        with torch.no_grad():
            out = net(x, i - 1).sample
            found = d(x, torch.tensor(i / 1000, dtype=torch.float64))
        expected = theirs.step(out, i - 1, x).pred_original_sample
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "Clip(low=-1.0, high=1.0)"),
        ({"clip_sample_range": 2.5}, "Clip(low=-2.5, high=2.5)"),
        ({"clip_sample": False}, None),
        ({"clip_sample": None}, None),
        ({"thresholding": True}, "DynamicThreshold(quantile=0.995, bound=1.0, maximum=1.0)"),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3},
            "DynamicThreshold(quantile=0.9, bound=1.0, maximum=3.0)",
        ),
    ],
)
def test_limits_become_wrappers(pipeline: Path, tmp_path: Path, settings: dict[str, Any], expected: str | None) -> None:
    d = sde.load(copied(pipeline, tmp_path, scheduler(**settings))).denoiser
    if expected is None:
        assert isinstance(d, sde.NetworkDenoiser)
    else:
        assert isinstance(d, Clip | DynamicThreshold)
        assert isinstance(d.inner, sde.NetworkDenoiser)
        assert f"{type(d).__name__}({d.extra_repr()})" == expected


# Steps


class Recorded(StepNoise):
    """The normals that a scheduler drew, in its order."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.draws = draws

    def normal(self, stream: Any, k: Any, start: Any, stop: Any) -> Tensor:
        return self.draws[k]

    def batch(self, index: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Recorded:
        return self

    def select(self, index: Tensor) -> Recorded:
        raise AssertionError("no sample leaves this batch")


# A chain that keeps a fifth of the signal's power: at the end of the usual one x0 is the state times 160.
MILD = {"beta_end": 0.003}

LIMITS: dict[str, dict[str, Any]] = {
    "free": {"clip_sample": False},
    "clipped": {"clip_sample": True},
    "thresholded": {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 2.0},
}
each_limit = pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS.keys())


def in_float64(theirs: Any) -> None:
    """Puts a scheduler's constants into float64: its own give 1 - alphas_cumprod at timestep 0 to 2e-4 only."""
    theirs.alphas_cumprod = (1.0 - theirs.betas.double()).cumprod(0)
    theirs.one = torch.ones((), dtype=torch.float64)
    theirs.final_alpha_cumprod = theirs.one if theirs.config.get("set_alpha_to_one", True) else theirs.alphas_cumprod[0]


def descent(net: Any, theirs: Any, x: Tensor, **settings: Any) -> tuple[Tensor, list[float], list[Tensor]]:
    """The loop of their pipelines: where it ends, the times it begins each step from, and what it draws."""
    in_float64(theirs)
    draws = [normal(*x.shape, seed=100 + k, dtype=x.dtype) for k in range(len(theirs.timesteps))]
    for k, timestep in enumerate(theirs.timesteps):
        with torch.no_grad():
            out = net(x, timestep).sample
        if "eta" in settings:
            noise = {"variance_noise": draws[k]} if settings["eta"] else {}
        else:
            noise = {"generator": torch.Generator().manual_seed(100 + k)}
        x = theirs.step(out, timestep, x, **settings, **noise).prev_sample
    n = theirs.config.num_train_timesteps
    return x, [(int(timestep) + 1) / n for timestep in theirs.timesteps], draws


def ours(d: Denoiser, solver: Callable[..., Solver], times: list[float], x: Tensor, draws: list[Tensor]) -> Tensor:
    """The same times with a solver of this library, and then the clean end."""
    method = solver(len(times) - 1, grid=Explicit(times))
    with torch.no_grad():
        (x,) = method(Reverse(d, method.eta), (x,), Recorded(draws), start=times[0], stop=times[-1])
        return d(x, torch.tensor(times[-1], dtype=torch.float64))


@each_limit
@pytest.mark.parametrize(("variance", "v"), [("fixed_small", 0.0), ("fixed_large", 1.0), ("fixed_small", None)])
def test_ddpm_takes_the_same_steps(
    hf: ModuleType, tmp_path: Path, limit: dict[str, Any], variance: str, v: float | None
) -> None:
    """All steps of a short chain, and the step to its clean end."""
    net = unet(hf)
    theirs = hf.DDPMScheduler(num_train_timesteps=20, beta_end=0.4, variance_type=variance, **limit)
    d = exact_denoiser(saved(hf, tmp_path / "pipeline", net, theirs))
    x = normal(2, 3, 8, 8, dtype=torch.float64)
    expected, times, draws = descent(exact(net), theirs, x)
    assert times == [i / 20 for i in range(20, 0, -1)]
    found = sample(d, x_T=x, solver=Ancestral(19, v=v), noise=Recorded(draws), denoise=True)
    torch.testing.assert_close(found.x, expected, rtol=1e-5, atol=1e-5)
    assert found.nfe.tolist() == [20, 20]


@each_limit
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddpm_takes_the_same_long_steps(hf: ModuleType, tmp_path: Path, limit: dict[str, Any], spacing: str) -> None:
    net = unet(hf)
    theirs = hf.DDPMScheduler(timestep_spacing=spacing, **MILD, **limit)
    theirs.set_timesteps(8)
    d = exact_denoiser(saved(hf, tmp_path / "pipeline", net, theirs))
    x = normal(2, 3, 8, 8, dtype=torch.float64)
    expected, times, draws = descent(exact(net), theirs, x)
    found = ours(d, Ancestral, times, x, draws)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_learned_variance_takes_the_same_steps(hf: ModuleType, tmp_path: Path) -> None:
    net = unet(hf, out_channels=6)
    theirs = hf.DDPMScheduler(num_train_timesteps=20, beta_end=0.4, variance_type="learned_range")
    d = exact_denoiser(saved(hf, tmp_path / "pipeline", net, theirs))
    x = normal(2, 3, 8, 8, dtype=torch.float64)
    expected, times, draws = descent(exact(net), theirs, x)
    torch.testing.assert_close(ours(d, Ancestral, times, x, draws), expected, rtol=1e-5, atol=1e-5)


@each_limit
@pytest.mark.parametrize(("eta", "spacing"), [(0.0, "leading"), (0.5, "trailing"), (1.0, "leading")])
def test_ddim_takes_the_same_steps(
    hf: ModuleType, tmp_path: Path, limit: dict[str, Any], eta: float, spacing: str
) -> None:
    """Their `leading` ends at timestep 0, their `trailing` far above it; both then go to the clean end."""
    net, theirs = unet(hf), hf.DDIMScheduler(timestep_spacing=spacing, **MILD, **limit)
    theirs.set_timesteps(8)
    d = exact_denoiser(saved(hf, tmp_path / "pipeline", net, theirs))
    x = normal(2, 3, 8, 8, dtype=torch.float64)
    expected, times, draws = descent(exact(net), theirs, x, eta=eta, use_clipped_model_output=True)
    assert times[-1] == (0.001 if spacing == "leading" else 0.125)
    found = ours(d, lambda steps, grid: DDIM(steps, eta=eta, grid=grid), times, x, draws)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_may_mix_the_limited_x0_with_the_networks_noise(hf: ModuleType, tmp_path: Path, eta: float) -> None:
    """Their default, `use_clipped_model_output=False`: of two readings that do not add up to the state."""
    net, theirs = unet(hf), hf.DDIMScheduler(**MILD)
    theirs.set_timesteps(8)
    d = exact_denoiser(saved(hf, tmp_path / "pipeline", net, theirs))
    assert isinstance(d, Clip)
    x = x_t = normal(2, 3, 8, 8, dtype=torch.float64)
    expected, times, draws = descent(exact(net), theirs, x, eta=eta)
    proper, *_ = descent(net, theirs, x, eta=eta, use_clipped_model_output=True)
    process, grid = d.process, torch.tensor(times, dtype=torch.float64)
    for t, s, z in zip(grid, grid[1:], draws, strict=False):
        spread = eta * (process.var(s) * process.transition(s, t)[1] / process.var(t)).sqrt()
        with torch.no_grad():
            x0, noise = d(x_t, t), d.inner.noise(x_t, t)
        x_t = process.alpha(s) * x0 + (process.var(s) - spread.square()).sqrt() * noise + spread * z
    with torch.no_grad():
        torch.testing.assert_close(d(x_t, grid[-1]), expected, rtol=1e-5, atol=1e-5)
    assert (proper - expected).abs().max() > 0.01


def test_ddim_ends_at_step_1_where_alpha_is_not_set_to_one(hf: ModuleType, tmp_path: Path) -> None:
    """As latent diffusion has it: the last step, from an offset of 1, ends at step 1 of the chain."""
    net = unet(hf)
    theirs = hf.DDIMScheduler(**MILD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(8)
    d = exact_denoiser(saved(hf, tmp_path / "pipeline", net, theirs))
    x = normal(2, 3, 8, 8, dtype=torch.float64)
    expected, times, _ = descent(exact(net), theirs, x, eta=0.0)
    assert times[-1] == 0.002
    times.append(0.001)
    with torch.no_grad():
        (found,) = DDIM(8, grid=Explicit(times))(Reverse(d, 0.0), (x,), start=times[0], stop=0.001)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# The model


def test_pixels_are_those_of_the_pipeline(pipeline: Path) -> None:
    scaling = sde.load(pipeline).scaling
    y = torch.linspace(-1.1, 1.1, 10_001, dtype=torch.float64)
    expected = ((y / 2 + 0.5).clamp(0, 1) * 255).round()
    assert torch.equal(scaling.to_data(y).double(), expected)


def test_a_model_samples_and_scores_pixels(pipeline: Path) -> None:
    model = sde.load(pipeline)
    x = model.sample(2, solver=Ancestral(5))
    assert x.dtype == torch.uint8
    assert x.shape == (2, 3, 8, 8)
    bits = model.bits_per_dim(x, solver=sde.solvers.Heun(3))
    assert bits.shape == (2,)
    assert bits.isfinite().all()


def test_foreign_directories_are_not_recognised(tmp_path: Path) -> None:
    assert not importer.recognises(Source(tmp_path))
    (tmp_path / "model.txt").write_text("model_index.json")
    assert not importer.recognises(Source(tmp_path))
    assert not importer.recognises(Source(tmp_path / "model.txt"))


# Refusals


def without(*names: str) -> Edit:
    def edit(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return edit


REFUSALS: dict[str, tuple[list[Edit], str]] = {
    "conditional": ([network(_class_name="UNet2DConditionModel")], "describes a UNet2DConditionModel"),
    "latents": (
        [edited("model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"])],
        r"UNet2DModel.*LDMPipeline.*'vqvae'",
    ),
    "another network": (
        [edited("model_index.json", unet=["diffusers", "UNet2DConditionModel"])],
        "unet=.*'UNet2DConditionModel'",
    ),
    "no network": ([edited("model_index.json", unet=None)], "unet=None"),
    "skips": (
        [network(down_block_types=["SkipDownBlock2D", "AttnSkipDownBlock2D"])],
        "down_block_types=.*SkipDownBlock2D.* is not supported: expected DownBlock2D, AttnDownBlock2D",
    ),
    "up skips": ([network(up_block_types=["AttnUpBlock2D", "SkipUpBlock2D"])], "up_block_types=.*is not supported"),
    "fourier": ([network(time_embedding_type="fourier")], "time_embedding_type='fourier' .*'positional'"),
    "activation": ([network(act_fn="tanh")], "act_fn='tanh' is not supported: expected 'silu' or 'swish' or 'mish'"),
    "learned embedding": ([network(time_embedding_type="learned")], "time_embedding_type='learned'"),
    "flow": ([scheduler(use_flow_sigmas=True)], "use_flow_sigmas=True"),
    "continuous": ([scheduler(timestep_type="continuous")], "timestep_type='continuous' .*'discrete'"),
    "no middle": ([network(mid_block_type=None)], "mid_block_type=None"),
    "class embedding": ([network(class_embed_type="timestep")], "class_embed_type='timestep'"),
    "spatial": ([network(resnet_time_scale_shift="spatial")], "resnet_time_scale_shift='spatial'"),
    "attention groups": ([network(attn_norm_num_groups=2)], "attn_norm_num_groups=2 .*null, or norm_num_groups=4"),
    "middle scale": ([network(mid_block_scale_factor=0)], "mid_block_scale_factor=0 .*a positive number"),
    "shift": ([network(freq_shift=0.5)], "freq_shift=0.5"),
    "flag": ([network(flip_sin_to_cos=1)], "flip_sin_to_cos=1 .*True or False"),
    "padding": ([network(downsample_padding=2)], "downsample_padding=2"),
    "mixed": (
        [
            network(
                down_block_types=["ResnetDownsampleBlock2D", "DownBlock2D", "DownBlock2D"],
                up_block_types=["UpBlock2D"] * 3,
                block_out_channels=[8, 8, 8],
            )
        ],
        "down_block_types=.*downsample_type='conv'",
    ),
    "levels": ([network(block_out_channels=[8, 8, 16])], "one entry for each of down_block_types"),
    "new setting": ([network(turbo=True)], "the setting 'turbo' of its network is not known"),
    "no size": ([network(sample_size=None)], r'sample_size=None .*settings=\{"sample_size": 32\}'),
    "a large size": ([network(sample_size=10**30)], "sample_size=.*the height and width"),
    "no sizes": ([network(sample_size=[8, 8, 8])], "sample_size=.*the height and width"),
    "outputs": ([network(out_channels=6)], "out_channels=6 .*expected 3, for variance_type='fixed_small'"),
    "no outputs": ([scheduler(variance_type="learned_range")], "out_channels=3 .*expected 6, for .*'learned_range'"),
    "variance": ([scheduler(variance_type="learned")], "variance_type='learned' .*'learned_range'"),
    "widths": ([network(block_out_channels=[10**12, 16])], "block_out_channels=.* 1 to 32"),
    "no width": ([network(block_out_channels=[0, 16])], "block_out_channels="),
    "no list": ([network(block_out_channels=8)], "block_out_channels=8 .*a list of 1 to"),
    "text": ([network(block_out_channels=["8", 16])], "block_out_channels=.*no such entry as '8'"),
    "depth": ([network(layers_per_block=10**9)], "layers_per_block=1000000000"),
    "groups": ([network(norm_num_groups=10**12)], "norm_num_groups="),
    "heads": ([network(attention_head_dim=10**12)], "attention_head_dim="),
    "classes": ([network(num_class_embeds=True)], "num_class_embeds=True"),
    "a class more": ([network(num_class_embeds=3)], r"does not hold the .*1 missing \(context.table.weight\)"),
    "dropout": ([network(dropout="much")], "dropout='much' .*a finite number"),
    "other weights": ([network(layers_per_block=2)], "does not hold the .* missing .*check settings="),
    "other widths": ([network(block_out_channels=[8, 24])], "of another shape"),
    "no weights": ([without("unet/diffusion_pytorch_model.safetensors")], "unet.*diffusion_pytorch_model"),
    "no chain": ([scheduler(_class_name="ScoreSdeVeScheduler")], "_class_name='ScoreSdeVeScheduler'"),
    "zero snr": ([scheduler(rescale_betas_zero_snr=True)], "rescale_betas_zero_snr=True"),
    "schedule": ([scheduler(beta_schedule="zigzag")], "beta_schedule='zigzag' .*'squaredcos_cap_v2'"),
    "prediction": ([scheduler(prediction_type="flow_prediction")], "prediction_type='flow_prediction'"),
    "steps": ([scheduler(num_train_timesteps=10**12)], "num_train_timesteps=1000000000000"),
    "betas": ([scheduler(beta_end=1.5)], "n=1000.*1.5"),
    "negative betas": ([scheduler(beta_start=-0.1)], "betas.*-0.1"),
    "trained betas": ([scheduler(trained_betas=[0.1, 0.2])], "trained_betas=.*as many as num_train_timesteps=1000"),
    "no betas": ([scheduler(trained_betas=[None])], "trained_betas=.*no such entry as None"),
    "range": ([scheduler(clip_sample_range=0)], "clip_sample_range=0 .*a positive number"),
    "quantile": ([scheduler(thresholding=True, dynamic_thresholding_ratio=2)], "dynamic_thresholding_ratio=2"),
    "maximum": ([scheduler(thresholding=True, sample_max_value=0.5)], "sample_max_value=0.5 .*at least 1"),
    "infinite": ([scheduler(beta_end=math.inf)], "beta_end=inf .*a finite number"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_done_is_refused_by_its_name(pipeline: Path, tmp_path: Path, name: str) -> None:
    edits, message = REFUSALS[name]
    path = copied(pipeline, tmp_path, *edits)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
