"""The processes against what the original implementation of Song et al. 2021 computed, in float32."""

from __future__ import annotations

import pytest
import torch
from support.score_sde import outputs

import sde

CASES = [
    ("ddpm_vp", "vp", sde.VP()),
    ("ddpmpp_vp", "vp", sde.VP()),
    ("ddpmpp_vp", "subvp", sde.SubVP()),
    ("ncsnpp_ve", "ve", sde.VE()),
    ("ncsnpp_256_ve", "ve", sde.VE()),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def recorded(request):
    file, key, process = request.param
    return process, {k.removeprefix(f"{key}/"): value for k, value in outputs(file).items()}


def test_the_forward_sde_is_the_original_s(recorded):
    process, r = recorded
    torch.testing.assert_close(process.drift(r["x"], r["t"]), r["drift"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(process.diffusion(r["t"]), r["diffusion"], rtol=1e-5, atol=1e-7)
    mean, std = process.marginal(r["x"], r["t"])
    torch.testing.assert_close(mean, r["mean"], rtol=1e-5, atol=1e-7)
    # The original's 1 - exp(-u) in float32 carries a rounding error of 2^-24, which its square root divides by 2 std:
    # 1.2e-4 of std at t = 1e-3, the smallest time recorded.
    allowed = 1e-5 * std + 2.0**-24 / std
    assert bool(((std - r["std"]).abs() <= allowed).all())


def test_the_prior_is_the_original_s(recorded):
    process, r = recorded
    torch.testing.assert_close(process.prior_log_prob(r["x"]), r["prior_logp"], rtol=1e-5, atol=1e-5)
