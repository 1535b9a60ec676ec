"""EDM networks: D(x; sigma) as the original computes it, in the process of the training and in others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fixtures import recorded
from torch import Tensor

import sde
from sde.denoisers import EDM, LogSNRLevel, MatchedLevel, NoisePrediction, ScaledScorePrediction, TimeLevel
from sde.interop import edm
from sde.interop.formats import Source
from sde.model import Model, from_checkpoint
from sde.processes import SDE

CASES = ["edm_ddpmpp", "edm_adm", "edm_skip", "edm_vp_ddpmpp", "edm_ve_ncsnpp", "edm_iddpm_adm"]
STEPS = [1, 300, 700, 999]  # of the iDDPM chain, whose levels sigma were recorded
OTHERS: list[SDE] = [sde.VP(t_min=1e-6), sde.VE(sigma_min=1e-3, sigma_max=1e4), sde.SubVP(beta_max=60.0, t_min=1e-6)]


def load(recording: Any, folder: Path, process: SDE | None = None, **changes: Any) -> Model:
    """The model in float64, so that results do not depend on a processor; the records are float32."""
    path = folder / "network.pt"
    torch.save(recording.state, path)
    source = Source(path, recording.settings | changes)
    assert edm.recognises(source)
    model = from_checkpoint(edm.read(source, process), process=process)
    model.denoiser.double()
    return model


def log_snr(recording: Any, model: Model) -> Tensor:
    """The log-SNR of the recorded samples. The original computes its table of iDDPM levels in float32, off by up to
    3e-6 at the smallest; its network was told the steps, which the chain's own levels give."""
    if recording.settings["class_name"] == "iDDPMPrecond":
        chain = sde.DiscreteChain.cosine(1000).sde()
        own = chain.log_snr(torch.tensor(STEPS, dtype=torch.float64) / 1000)
        torch.testing.assert_close((-0.5 * own).exp(), recording["sigma"].double(), rtol=1e-5, atol=4e-6)
        return own
    return -2.0 * recording["sigma"].double().log()


def denoised(model: Model, x: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
    """D(x; sigma): E[x0 | x_t] at x_t = alpha x."""
    t = model.process.time(log_snr)
    condition = {} if label is None else {"label": label}
    with torch.no_grad():
        return model.denoiser(model.process.alpha(t)[:, None, None, None] * x.double(), t, **condition)


def assert_close(value: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest value of each sample."""
    error = (value - expected).abs().flatten(1).amax(1) / expected.abs().flatten(1).amax(1)
    assert bool((error < 1e-5).all()), error


@pytest.mark.parametrize("name", CASES)
def test_the_denoised_are_the_original_s(name: str, tmp_path: Path) -> None:
    r = recorded(name)
    model = load(r, tmp_path)
    none = None if model.classes is None else torch.tensor(model.classes)
    assert_close(denoised(model, r["x"], log_snr(r, model), none), r["denoised"])
    assert (model.classes is None) == ("label" not in r.arrays)
    if model.classes is not None:
        assert_close(denoised(model, r["x"], log_snr(r, model), r["label"]), r["denoised_label"])
        assert not torch.allclose(r["denoised"], r["denoised_label"], rtol=1e-2)


@pytest.mark.parametrize("process", OTHERS, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("name", CASES)
def test_any_process_serves_the_same_network(name: str, process: SDE, tmp_path: Path) -> None:
    r = recorded(name)
    model = load(r, tmp_path, process)
    assert model.process is process
    none = None if model.classes is None else torch.tensor(model.classes)
    log_snrs = log_snr(r, model)
    assert_close(denoised(model, r["x"], log_snrs, none), r["denoised"])


def test_the_process_and_its_conventions(tmp_path: Path) -> None:
    def parts(name: str, **changes: Any) -> tuple[Any, ...]:
        d = load(recorded(name), tmp_path, **changes).denoiser
        return d.process, d.parametrisation, d.level

    assert parts("edm_adm") == (sde.VE(0.002, 80.0, t_min=0.0), EDM(0.5), LogSNRLevel(0.125))
    assert parts("edm_skip", sigma_min=0.01, sigma_max=50)[:2] == (sde.VE(0.01, 50.0, t_min=0.0), EDM(0.7))
    assert parts("edm_vp_ddpmpp") == (sde.VP(0.1, 20.0, t_min=1e-5), NoisePrediction(), TimeLevel(999.0))
    changed = parts("edm_vp_ddpmpp", beta_d=9.9, beta_min=0.2, M=500, epsilon_t=1e-3)
    assert changed == (sde.VP(0.2, 10.1, t_min=1e-3), NoisePrediction(), TimeLevel(499.0))
    expected = sde.VE(0.02, 100.0, t_min=0.0), ScaledScorePrediction(), LogSNRLevel(0.5, -math.log(2.0))
    assert parts("edm_ve_ncsnpp") == expected
    process, parametrisation, level = parts("edm_iddpm_adm")
    assert torch.equal(process.chain.betas, sde.DiscreteChain.cosine(1000).betas)
    assert (parametrisation, level) == (NoisePrediction(), TimeLevel(1000.0, -1.0))
    r = recorded("edm_vp_ddpmpp")
    matched = load(r, tmp_path, sde.VE()).denoiser.level
    assert matched == MatchedLevel(sde.VP(0.1, 20.0, t_min=1e-5), TimeLevel(999.0))


def test_the_table_of_an_iddpm_chain_is_compared(tmp_path: Path) -> None:
    r = recorded("edm_iddpm_adm")
    for change in ({"C_2": 0.01}, {"M": 999}):
        with pytest.raises(ValueError, match=r"u .*M, C_1 and C_2"):
            load(r, tmp_path, **change)
    del r.state["u"]  # it is no weight: parameters alone do
    assert load(r, tmp_path).process.t_min == 1 / 1000


def test_a_sample_is_an_image(tmp_path: Path) -> None:
    model = load(recorded("edm_ddpmpp"), tmp_path)
    x = model.sample(2, solver=sde.solvers.Heun(2, grid=sde.grids.Karras()))
    assert (x.shape, x.dtype, model.classes) == ((2, 3, 8, 8), torch.uint8, 4)
    # Level v is shown to the network as v / 127.5 - 1, the middle of its cell.
    v, u = torch.tensor([0, 128, 255]), torch.full((3,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(model.scaling.to_model(v, u, dtype=torch.float64), v.double() / 127.5 - 1.0)


def test_settings_lie_beside_or_within(tmp_path: Path) -> None:
    r = recorded("edm_adm")
    model, path = load(r, tmp_path), tmp_path / "beside.pt"
    torch.save(r.state, path)
    inner = {key: value for key, value in r.settings.items() if key != "class_name"}
    path.with_suffix(".json").write_text(
        json.dumps({"class_name": "training.networks.EDMPrecond", "init_kwargs": {**inner, "sigma_max": math.inf}})
    )
    again = sde.load(path)
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    label = torch.tensor([0, 4])
    assert torch.equal(again.denoiser.double()(x, t, label=label), model.denoiser(x, t, label=label))
    assert again.process == model.process


def test_a_file_of_safetensors_serves_too(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    r = recorded("edm_vp_ddpmpp")
    path = tmp_path / "network.safetensors"
    safetensors.save_file(r.state, path)
    x, t = torch.zeros(1, 3, 8, 8), torch.tensor(0.5)
    again, model = sde.load(path, settings=r.settings), load(r, tmp_path)
    assert torch.equal(again.denoiser.double()(x, t), model.denoiser(x, t))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("edm_adm", {"class_name": "Precond"}, "class_name='Precond': expected one of VPPrecond, .* EDMPrecond"),
        ("edm_adm", {"init_kwargs": 3}, "as a mapping in init_kwargs"),
        ("edm_adm", {"model_type": "UNet"}, "model_type='UNet' is not supported: .*'SongUNet' or 'Dhariwal"),
        ("edm_adm", {"encoder_type": "skip"}, "are not those of EDMPrecond with model_type='DhariwalUNet': 'encoder_"),
        ("edm_adm", {"beta_d": 19.9}, "are not those of EDMPrecond .*'beta_d'"),
        ("edm_adm", {"model_channels": 10**9}, "model_channels=1000000000 is not supported: .* whole number from 1 to"),
        ("edm_adm", {"model_channels": 64}, "does not hold the .* weights"),
        ("edm_adm", {"num_blocks": 10**9}, "num_blocks=1000000000 is not supported"),
        ("edm_adm", {"num_blocks": 2}, "missing"),
        ("edm_adm", {"channel_mult": [2] * 10**4}, "channel_mult=.* is not supported"),
        ("edm_adm", {"channel_mult": [10**12, 4]}, "channel_mult=.* is not supported: expected whole numbers from 1"),
        ("edm_adm", {"channel_mult": [2, 0]}, "channel_mult=.* is not supported: expected whole numbers from 1"),
        ("edm_adm", {"attn_resolutions": [8]}, "not the network's"),
        ("edm_adm", {"label_dim": 0}, "not the network's .*model.map_label.weight"),
        ("edm_adm", {"label_dim": 5}, r"label_dim=5: expected model.map_label.weight .* got \(128, 4\)"),
        ("edm_adm", {"label_dim": 10**9}, "label_dim=1000000000 is not supported"),
        ("edm_adm", {"augment_dim": 0}, "context.augment.weight"),
        ("edm_adm", {"sigma_min": "0"}, "sigma_min='0' is not supported"),
        ("edm_adm", {"sigma_min": 90}, "VE.*sigma_min=90"),
        ("edm_adm", {"sigma_data": math.nan}, "sigma_data=nan is not supported"),
        ("edm_iddpm_adm", {"C_1": 1.0}, "betas.* 0 at step 1 "),
        ("edm_iddpm_adm", {"M": 1}, "n >= 2"),
        ("edm_vp_ddpmpp", {"beta_d": -1.0}, "VP.*beta_max=-0.9"),
        ("edm_ddpmpp", {"label_dim": 5}, r"map_label.bias for vectors of that length, got \(16, 4\) and \(16,\)"),
        ("edm_ddpmpp", {"resample_filter": [1, 3, 3, 1]}, "conv0.resample_filter"),
        ("edm_ddpmpp", {"resample_filter": "box"}, "resample_filter='box' is not supported"),
        ("edm_ddpmpp", {"encoder_type": "cat"}, "encoder_type='cat' is not supported: .*'residual'"),
        ("edm_ddpmpp", {"embedding_type": "fourier"}, "context.embedding.parts"),
        ("edm_skip", {"decoder_type": "standard"}, "does not hold the .* weights"),
        ("edm_vp_ddpmpp", {"img_resolution": 16}, "does not hold the"),
    ],
)
def test_wrong_settings_are_one_error(name: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(recorded(name), tmp_path, **change)
    assert str(caught.value).startswith(str(tmp_path / "network.pt"))


def test_settings_are_asked_for(tmp_path: Path) -> None:
    r, path = recorded("edm_adm"), tmp_path / "network.pt"
    torch.save(r.state, path)
    with pytest.raises(ValueError, match="settings="):
        edm.read(Source(path), None)
    with pytest.raises(ValueError, match="lack 'class_name'"):
        edm.read(Source(path, {"img_resolution": 8}), None)
    with pytest.raises(ValueError, match=r"lack some of EDMPrecond .*'img_channels', 'img_resolution'"):
        edm.read(Source(path, {"class_name": "EDMPrecond"}), None)


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("edm_adm", "model.out_conv.bias", r"1 missing \(outlet.2.bias\)"),
        ("edm_adm", "model.dec.4x4_in0.qkv.weight", r"1 missing \(middle.0.attention.qkv.weight\)"),
        ("edm_adm", "model.map_label.weight", "expected model.map_label.weight .* got none"),
        ("edm_ddpmpp", "model.map_label.bias", r"expected .* got \(16, 4\) and none"),
        ("edm_iddpm_adm", "model.out_conv.weight", r"1 missing \(outlet.2.weight\)"),
    ],
)
def test_a_missing_weight_is_named(name: str, gone: str, message: str, tmp_path: Path) -> None:
    r = recorded(name)
    del r.state[gone]
    with pytest.raises(ValueError, match=message):
        load(r, tmp_path)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("edm_adm", "model.extra.weight"),
        ("edm_adm", "module.map_layer0.weight"),
        ("edm_adm", "model.enc.8x8_block7.conv0.weight"),
        ("edm_adm", "model.enc.3x3_block0.conv0.weight"),
        ("edm_adm", "model.dec.8x8_block0.conv9.weight"),
        ("edm_ddpmpp", "model.map_noise.freqs"),
        ("edm_adm", "u"),
    ],
)
def test_an_extra_weight_is_named(name: str, extra: str, tmp_path: Path) -> None:
    r = recorded(name)
    r.state[extra] = torch.zeros(3)
    with pytest.raises(ValueError, match="1 not the network's") as caught:
        load(r, tmp_path)
    assert "conv9" in str(caught.value) or "missing" not in str(caught.value)


def test_no_two_weights_share_a_place(tmp_path: Path) -> None:
    r = recorded("edm_adm")
    r.state["map_layer0.weight"] = r.state["model.map_layer0.weight"]
    with pytest.raises(ValueError, match=r"1 not the network's \(map_layer0\.weight\)"):
        load(r, tmp_path)


@pytest.mark.parametrize(
    ("name", "bent", "shape", "message"),
    [
        ("edm_adm", "model.out_conv.weight", (3, 64, 3, 1), r"outlet.2.weight \(3, 64, 3, 1\) instead of"),
        ("edm_adm", "model.dec.4x4_in0.qkv.weight", (7,), r"middle.0.attention.qkv.weight \(7,\) instead of"),
        ("edm_adm", "model.dec.4x4_in0.qkv.bias", (), r"middle.0.attention.qkv.bias \(\) instead of"),
        ("edm_iddpm_adm", "model.out_conv.bias", (), r"outlet.2.bias \(\) instead of"),
        ("edm_iddpm_adm", "model.out_conv.bias", (3,), r"outlet.2.bias \(2,\) instead of"),
        ("edm_adm", "model.map_label.weight", (), r"got \(\)"),
        ("edm_adm", "model.enc.4x4_down.conv0.resample_filter", (1, 1, 4, 4), "conv0.resample_filter"),
        ("edm_ve_ncsnpp", "model.map_noise.freqs", (5,), r"context.embedding.parts \(3, 5\) instead of"),
    ],
)
def test_a_misshapen_weight_is_named(
    name: str, bent: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    r = recorded(name)
    r.state[bent] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        load(r, tmp_path)


def test_other_files_are_not_recognised(tmp_path: Path) -> None:
    for content in (recorded("openai_fixed").state, {"model": {}}, [1, 2]):
        torch.save(content, tmp_path / "other.pt")
        assert not edm.recognises(Source(tmp_path / "other.pt"))
    assert not edm.recognises(Source(tmp_path))
