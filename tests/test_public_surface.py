"""The public surface: the names on which code outside relies, with their arguments in order and their defaults."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest

import sde

# As a caller writes them: arguments in the order in which they may be given, then keywords with their defaults.
SURFACE = """
VP(beta_min=0.1, beta_max=20.0)
SubVP(beta_min=0.1, beta_max=20.0)
VE(sigma_min=0.01, sigma_max=50.0)
Cosine()
KarrasVE(sigma_min, sigma_max)
RectifiedFlow()
SDE.log_alpha(t)
SDE.alpha(t)
SDE.var(t)
SDE.sigma(t)
SDE.log_snr(t)
SDE.drift(x, t)
SDE.diffusion(t)
SDE.marginal(x0, t)
SDE.prior_sample(shape, generator=..., t=None)
SDE.prior_log_prob(x)
DiscreteChain(betas)
DiscreteChain.linear(n=1000)
DiscreteChain.cosine(n)
DiscreteChain.quadratic(n)
DiscreteChain.posterior(x0, x_t, i)
DiscreteChain.sde()
exact.Mixture(weights, means, covs)
exact.Gaussian(mean, cov)
exact.Uniform(low, high)
exact.Empirical(points)
exact.Target.sample(n, generator=...)
exact.Target.log_prob(x, process, t)
exact.Target.denoiser(process)
exact.Mixture.posterior(A=..., y=..., noise=...)
Denoiser.forward(x_t, t)
Denoiser.score(x_t, t)
Denoiser.noise(x_t, t)
Denoiser.predict(what, x_t, t)
sample(denoiser, shape, solver=None, seed=0, first=0, condition=None, prior=None, denoise=False, dtype=None)
sample(denoiser, device=None, start=None, x_start=None, x_T=None)
log_prob(denoiser, x, solver=None, trace=None, seed=0, index=None, condition=None, prior=None, atol=None)
log_prob(denoiser, x, error=None, error_per_image=None)
Hutchinson(probes=1)
ExactTrace()
encode(denoiser, x, solver=None)
solvers.EulerMaruyama(steps, grid=...)
solvers.Ancestral(steps, grid=...)
solvers.ReverseDiffusion(steps, grid=...)
solvers.PredictorCorrector(predictor, corrector)
solvers.Langevin(snr, steps=1)
solvers.Langevin.song(snr)
solvers.Euler(steps, grid=...)
solvers.Heun(steps, grid=...)
solvers.DDIM(steps, eta=0.0, grid=...)
solvers.DPMSolverPP(steps, order, start=..., grid=...)
solvers.UniPC(steps, start=..., grid=...)
solvers.DEIS(steps, order=3, start=..., grid=...)
solvers.AdamsBashforth(steps, order=4, start=..., grid=...)
solvers.ScipyODE(method="RK45", rtol=1e-5, atol=1e-5)
solvers.RungeKutta(tableau=..., rtol=..., atol=...)
solvers.TorchSDE()
solvers.Particles(steps, particles=16, draws=1)
solvers.Replacement(predictor)
solvers.Ramp()
solvers.RungeKuttaStart()
grids.Uniform()
grids.LogSNR()
grids.Karras(rho=7.0)
grids.Explicit(points)
tune_grid(denoiser, shape, solver, seed=0, seconds=None, data=None, trace=None)
tune_solver(denoiser, shape, steps, seed=0, seconds=None, data=None)
tune_particles(denoiser, shape)
guidance.ClassifierFree(inner, weight=2.0, null=..., low=None, high=None)
guidance.Autoguidance(inner, reference, weight=2.0, low=None, high=None)
guidance.Composed(inner, weights, null=...)
guidance.Classifier(inner, log_prob, scale=1.0)
measurement.Mask(mask)
measurement.Downsample(factor, kernel)
measurement.Blur(kernel)
measurement.Grayscale()
measurement.Fourier(mask)
measurement.Matrix(A)
measurement.Identity()
measurement.Linear(forward, adjoint)
measurement.Compose(operators)
measurement.Operator()
Measurement(operator, y, noise)
measurement.PiGDM(inner, measurement)
measurement.MMPS(inner, measurement, iterations=3)
measurement.DPS(inner, measurement, scale=1.0)
measurement.DiffPIR(inner, measurement)
load(path, ema="default", settings=None, process=None, network=None)
save(path, model)
Model.to(device)
Model.sample(n, solver=None, seed=0, condition=None, batch_size=None)
Model.log_prob(x)
Model.bits_per_dim(x)
Model.encode(x)
Model.restore(y, operator, noise, method=None, n=1)
Model.inpaint(x, mask)
Model.edit(x, strength)
Model.translate(x, other)
Training(denoiser, batches, scaling=None, objective=None, optimizer=None, ema=0.999)
Training.run(steps)
Training.model(scaling=..., ema="default")
EMA(module, decay)
"""
# Keywords that a caller may also give in order.
ORDERED = {"load", "guidance.ClassifierFree", "guidance.Autoguidance", "VP", "SubVP", "VE", "Training"}


@pytest.mark.parametrize("line", SURFACE.split("\n")[1:-1])
def test_a_call_fits_the_signature(line: str) -> None:
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    name, value = ast.unparse(call.func), sde
    for part in name.split("."):
        value: Any = getattr(value, part)
    parameters = [p for p in inspect.signature(value).parameters.values() if p.name != "self"]
    by_name = {p.name: p for p in parameters}
    order = [ast.unparse(argument) for argument in call.args]
    order += [str(keyword.arg) for keyword in call.keywords] if name in ORDERED else []
    assert [p.name for p in parameters[: len(order)]] == order
    assert all(p.kind is not p.KEYWORD_ONLY for p in parameters[: len(order)])
    for keyword in call.keywords:
        assert keyword.arg in by_name
        default = ast.literal_eval(keyword.value)
        assert default is ... or by_name[keyword.arg].default == default
    needed = {
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    given = {*order, *(str(keyword.arg) for keyword in call.keywords)}
    assert needed <= given, f"{name} needs {needed - given}"
