"""The faults of `mutations.py`: (file, regular expression for the old text, new text), and the tests that must notice.

Each stands for a mistake that somebody could make: a check left out, a sign, a factor, an end of an interval, an
argument that is not passed on. An expression is matched once, over several lines if it says so.
"""

from __future__ import annotations

__all__ = ["GROUPS", "Group", "Mutant"]

from dataclasses import dataclass
from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault: `old`, a regular expression, becomes `new` at its first match in `file`, a path in the repository."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Group:
    """Faults of one kind, and the test files that must notice them."""

    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]


def within(folder: str, *mutants: tuple[str, str, str]) -> tuple[Mutant, ...]:
    return tuple(Mutant(f"{folder}/{file}", old, new) for file, old, new in mutants)


ARCHITECTURE = Group(
    ("tests/test_architecture.py",),
    within(
        "sde",
        ("noise.py", r"\Z", "\n\ndef late() -> None:\n    from .model import Model\n"),
        ("solvers/base.py", r"\Z", "\n\ndef late() -> None:\n    from ..sampling import sample\n"),
        ("processes/base.py", r"\Z", "\n\ndef late() -> None:\n    from .vp import VP\n"),
        ("data/toys.py", r"\Z", "\n\ndef late() -> None:\n    torch.randn(3)\n"),
        ("training/loop.py", r"\Z", "\n\ndef late() -> None:\n    torch.manual_seed(0)\n"),
        ("networks/unet.py", r"\Z", "\n\ndef late(x) -> None:\n    x.normal_()\n"),
        ("instantiate/tree.py", r"\Z", "\n\ndef late() -> None:\n    from omegaconf import OmegaConf\n"),
        ("trace/exact.py", r"__all__ = .*?\n", ""),
        ("trace/xtrace.py", r'__all__ = \["XTrace"', '__all__ = ["XTrace", "Missing"'),
        ("shapes.py", r'\Ar?""".*?"""', "# shapes"),
        ("utils.py", r"\Z", '"""A drawer."""\n\n__all__: list[str] = []\n'),
        ("plots/samples.py", r"\Z", "\n" * 400),
        ("grids.py", r"import math\n", "import math\nimport scipy.integrate\n"),
        ("__init__.py", r'    "VP",\n', ""),
        ("model.py", r"\Z", "\n\nTYPE_CHECKING = False\n"),
    ),
)

BIND = Group(
    ("tests/solvers/test_contract.py",),
    within(
        "sde/solvers",
        ("base.py", r"start == stop or not all", "not all"),
        ("base.py", r"process\.t_min <= t <= process\.t_max", "process.t_min <= t"),
        ("base.py", r"process\.t_min <= t <= process\.t_max", "t <= process.t_max"),
        (
            "base.py",
            r"all\((process\.t_min <= t <= process\.t_max)",
            r"all(not (t < process.t_min or t > process.t_max)",
        ),
        ("base.py", r"for t in \(start, stop\)\)", "for t in (start,))"),
        ("base.py", r"for t in \(start, stop\)\)", "for t in (stop,))"),
        (
            "base.py",
            r"\(dynamics\.stochastic or self\.draws\) and start < stop",
            "dynamics.stochastic and start < stop",
        ),
        ("base.py", r"\(dynamics\.stochastic or self\.draws\) and start < stop", "self.draws and start < stop"),
        ("base.py", r"\(dynamics\.stochastic or self\.draws\) and start < stop", "start < stop"),
        (
            "base.py",
            r"\(dynamics\.stochastic or self\.draws\) and noise is None",
            "dynamics.stochastic and noise is None",
        ),
        ("base.py", r"\(dynamics\.stochastic or self\.draws\) and noise is None", "self.draws and noise is None"),
        ("base.py", r"process\.check_schedule\(\)", "pass"),
        ("base.py", r"if not isinstance\(dynamics, self\.needs\)", "if False"),
        ("base.py", r"if reason is not None", "if False"),
        ("base.py", r"start = process\.t_max if start is None else float\(start\)", "start = process.t_max"),
        ("base.py", r"stop = process\.t_min if stop is None else float\(stop\)", "stop = process.t_min"),
        ("../shapes.py", r"isinstance\(value, bool\) or ", ""),
        ("../shapes.py", r"not isinstance\(value, numbers\.Integral\) or ", ""),
        ("base.py", r'"steps", self\.steps, 1\)', '"steps", self.steps, 0)'),
        ("base.py", r"len\(self\.times\) - 1", "len(self.times) - 2"),
        ("base.py", r"return Progress\(self\.times\[k\]", "return Progress(self.times[k - 1]"),
        ("base.py", r"if noise and not self\.serves_noise", "if False"),
        ("base.py", r"if len\(dynamics\.tolerances\) > 1 and ", "if False and "),
        ("ancestral.py", r"dynamics\.eta != 1\.0", "False"),
        ("ancestral.py", r"0\.0 <= self\.v <= 1\.0", "0.0 <= self.v"),
        ("ddim.py", r"dynamics\.eta > 1\.0", "False"),
        ("base.py", r"\(noise or self\.draws or not self\.serves", "(self.draws or not self.serves"),
        ("base.py", r"\(noise or self\.draws or not self\.serves", "(noise or not self.serves"),
        ("heun.py", r"return self\.churn > 0\.0", "return False"),
        ("predictor_corrector.py", r"\n    draws = True\n", "\n"),
        ("predictor_corrector.py", r" or self\.predictor\.incompatibility\(dynamics\)", ""),
        ("predictor_corrector.py", r"super\(\)\.incompatibility\(dynamics\) or ", ""),
        ("predictor_corrector.py", r" or self\.predictor\.draws", ""),
        ("predictor_corrector.py", r" and math\.isfinite\(self\.snr\)", ""),
        ("multistep.py", r"dynamics\.stochastic and self\.start\.full_order", "False"),
        ("multistep.py", r"reason = super\(\)\.incompatibility\(dynamics\)", "reason = None"),
        ("unipc.py", r"    needs = Semilinear\n", "    needs = Semilinear\n    serves_noise = True\n"),
        ("midpoint.py", r"(class Midpoint.*?)    def method", r"\1    serves_noise = True\n\n    def method"),
        ("midpoint.py", r"(class DPMSolver2.*?)    needs", r"\1    serves_noise = True\n    needs"),
        ("midpoint.py", r"(class DPMSolver3.*?)    needs", r"\1    serves_noise = True\n    needs"),
        ("midpoint.py", r"(class DPMSolver2.*?)needs = Semilinear", r"\1needs = Dynamics"),
        ("dpm_solver_pp.py", r"(class DPMSolverPP2S.*?)    needs", r"\1    serves_noise = True\n    needs"),
        ("runge_kutta.py", r"    tableau: Tableau", "    serves_noise = True\n    tableau: Tableau"),
        ("scipy_ode.py", r"    def prepare", "    serves_noise = True\n\n    def prepare"),
        ("base.py", r"serves_log_density = False", "serves_log_density = True"),
        ("adaptive.py", r"rtol > 0\.0 and atol > 0\.0", "rtol > 0.0"),
        ("base.py", r"if max_steps < 1", "if max_steps < 0"),
    ),
)

SOLVERS = Group(
    (
        "tests/solvers/test_moments.py",
        "tests/solvers/test_multistep.py",
        "tests/solvers/test_midpoint.py",
        "tests/solvers/test_heun.py",
        "tests/solvers/test_ancestral.py",
        "tests/solvers/test_stochastic_runge_kutta.py",
        "tests/solvers/test_adaptive.py",
        "tests/solvers/test_adaptive_sde.py",
        "tests/solvers/test_runge_kutta.py",
        "tests/solvers/test_order_table.py",
        "tests/solvers/test_orders.py",
        "tests/solvers/test_invariance.py",
        "tests/solvers/test_contract.py",
    ),
    within(
        "sde/solvers",
        ("base.py", r"if values\.requires_grad", "if False"),
        ("euler_maruyama.py", r"dynamics\.diffusion\(t\) \* h\.abs\(\)\.sqrt\(\)", "dynamics.diffusion(t) * h.abs()"),
        ("base.py", r"alpha=score_weight\[k\]", "alpha=score_weight[0]"),
        ("ancestral.py", r"small \*\* \(1\.0 - self\.v\) \* var\*\*self\.v", "small"),
        ("ancestral.py", r"b = a \* var", "b = var"),
        ("ddim.py", r"\(sigma_s\.square\(\) - std\.square\(\)\)\.sqrt\(\)", "sigma_s"),
        ("heun.py", r"\(0\.5 \* h, first\), \(0\.5 \* h, second\)", "(h, first)"),
        ("heun.py", r"Stream\.CORRECTOR", "Stream.STEP"),
        ("heun.py", r"\.clamp\(max=process\.t_max\)", ""),
        ("heun.py", r"self\.churn_noise \* var", "var"),
        ("reverse_diffusion.py", r"sign \* 0\.5 \* \(1\.0 \+ dynamics\.eta\*\*2\) \* var", "sign * 0.5 * var"),
        ("reverse_diffusion.py", r"\(s, t\) if bool\(h\[0\] < 0\) else \(t, s\)", "(s, t)"),
        ("predictor_corrector.py", r"\(2\.0 \* epsilon\)\.sqrt\(\)\.tolist", "epsilon.sqrt().tolist"),
        ("predictor_corrector.py", r"k \* self\.steps \+ j", "k"),
        ("predictor_corrector.py", r"correct\(k \+ 1", "correct(k"),
        ("stochastic_runge_kutta.py", r"1\.5 \* g_s\[k\]", "g_s[k]"),
        ("stochastic_runge_kutta.py", r"math\.sqrt\(12\.0\)", "math.sqrt(3.0)"),
        ("midpoint.py", r"-1\.5 \* nodes\.kappa", "-1.0 * nodes.kappa"),
        ("midpoint.py", r"\(0\.0, 0\.5\)", "(0.0, 0.4)"),
        ("dpm_solver_pp.py", r"\[new \+ old \+ half, -half\]", "[new + old, 0.0 * half]"),
        ("unipc.py", r"if before is not None", "if False"),
        ("multistep.py", r"2\.0 \* sixth, third", "1.0 * sixth, third"),
        ("multistep.py", r"predictions\[: self\.order - 1\]", "predictions[: self.order]"),
        (
            "coordinates.py",
            r"eta\*\*2 \* process\.var\(times\[1:\]\) \* torch\.expm1",
            "process.var(times[1:]) * torch.expm1",
        ),
        ("coordinates.py", r"return -process\.var\(times\[1:\]\)", "return -process.var(times[:-1])"),
        ("coordinates.py", r"newest = 1 if ahead else 0", "newest = 0"),
        ("adaptive.py", r"self\.dynamics\.select\(index\) if len\(index\) else self\.dynamics", "self.dynamics"),
        ("runge_kutta.py", r"\.square\(\)\.mean\(1\)\.sqrt\(\)", ".square().mean().sqrt().expand(len(v))"),
        ("adaptive.py", r"accepted = ratio <= 1\.0", "accepted = ratio <= 100.0"),
        ("adaptive.py", r"self\.path\.select\(index\)", "self.path"),
        ("adaptive_sde.py", r"0\.5 \* \(g_t \+ g_s\)", "g_t"),
    ),
)

PARAMETRISATION = Group(
    ("tests/denoisers/test_parametrisation.py", "tests/denoisers/test_denoiser.py"),
    within(
        "sde/denoisers",
        ("parametrisation.py", r"(class NoisePrediction.*?)1\.0 / alpha, -process", r"\1 1.0 / alpha, process"),
        (
            "parametrisation.py",
            r"(class NoisePrediction.*?)alpha \+ sigma\.square\(\) / alpha",
            r"\1 alpha + sigma / alpha",
        ),
        ("parametrisation.py", r"(class DataPrediction.*?)1\.0 / sigma, -process", r"\1 1.0 / sigma, process"),
        (
            "parametrisation.py",
            r"(class DataPrediction.*?)alpha\.square\(\) \+ sigma\.square\(\)",
            r"\1 torch.ones_like(t)",
        ),
        ("parametrisation.py", r"(class ScorePrediction.*?)process\.var\(t\) / alpha", r"\1 process.sigma(t) / alpha"),
        (
            "parametrisation.py",
            r"(class ScorePrediction.*?)return None, -process\.sigma\(t\)",
            r"\1 return None, process.sigma(t)",
        ),
        ("parametrisation.py", r"(class ScorePrediction.*?)-sigma \* \(alpha", r"\1 -(alpha"),
        (
            "parametrisation.py",
            r"(class ScaledScorePrediction.*?)process\.sigma\(t\) / alpha",
            r"\1 process.var(t) / alpha",
        ),
        ("parametrisation.py", r"(class ScaledScorePrediction.*?)-alpha - sigma", r"\1 -alpha + sigma"),
        ("parametrisation.py", r"(class ScaledScorePrediction.*?)1\.0 / process\.alpha\(t\)", r"\1 torch.ones_like(t)"),
        ("parametrisation.py", r"(class VelocityPrediction.*?)alpha / norm, -sigma / norm", r"\1 alpha, -sigma"),
        (
            "parametrisation.py",
            r"(class VelocityPrediction.*?)sigma / norm, alpha / norm",
            r"\1 alpha / norm, sigma / norm",
        ),
        (
            "parametrisation.py",
            r"(class EDM.*?)alpha \* self\.data_std\*\*2 / norm",
            r"\1 alpha * self.data_std / norm",
        ),
        ("parametrisation.py", r"(class EDM.*?)sigma / norm, -alpha \* self\.data_std", r"\1 sigma / norm, -alpha"),
        ("parametrisation.py", r"1\.0 - self\.data_std\*\*2", "1.0 - self.data_std"),
        (
            "parametrisation.py",
            r"self\.data_std\*\*2 \+ process\.var\(t\)\)\.rsqrt",
            "self.data_std**2 + process.var(t)).sqrt",
        ),
        ("parametrisation.py", r"(process\.alpha\(t\)\.square\(\) \* )self\.data_std\*\*2", r"\1 1.0"),
        ("levels.py", r"self\.scale \* t \+ self\.offset", "self.scale * t"),
        ("levels.py", r"self\.offset - self\.scale \* process\.log_snr", "self.scale * process.log_snr"),
        ("levels.py", r"self\.level\(self\.trained, ", "self.level(process, "),
        ("network.py", r"x\.to\(dtype\), level", "x_t.to(dtype), level"),
        ("network.py", r"torch\.promote_types\(dtype, torch\.float32\)", "dtype"),
        ("network.py", r" if value\.is_floating_point\(\) else value", ""),
        ("network.py", r"\*\*cast\)\.to\(x_t\.dtype\)", "**cast)"),
        ("network.py", r"if tuple\(out\.shape\) != expected", "if False"),
        ("base.py", r"check_condition\(self\.condition, .*?\)\)", "pass"),
        ("base.py", r"value\[index\] if value\.ndim else value", "value"),
        ("base.py", r"index if self\.rows is None else self\.rows\[index\]", "index"),
        ("base.py", r"count \+= each", "count += 1"),
        ("base.py", r"inner\.calls, inner\.vjps", "1, inner.vjps"),
    ),
)

EXACT = Group(
    ("tests/test_exact.py",),
    within(
        "sde",
        ("exact.py", r"weights / weights\.sum\(\)", "weights"),
        ("exact.py", r"weights > 0", "weights >= 0"),
        ("exact.py", r"eigenvalues >= -tolerance", "eigenvalues >= -10.0"),
        ("exact.py", r"eigenvalues\[k\]\.sqrt\(\) \* z", "eigenvalues[k] * z"),
        ("exact.py", r"alpha\.reshape\(-1, 1\) \* shift", "shift"),
        ("exact.py", r"alpha\.square\(\) \* eigenvalues", "alpha * eigenvalues"),
        ("exact.py", r'"kij,bki->bkj"', '"kji,bki->bkj"'),
        ("exact.py", r"\(2\.0 \* math\.pi \* variance\)\.log\(\)", "variance.log()"),
        ("exact.py", r"log_joint\.softmax\(1\)", "log_joint.softmax(0)"),
        ("exact.py", r"if event_dims\(x\) != d", "if False"),
        ("exact.py", r" \+ math\.log\(len\(self\.points\)\)", ""),
        ("exact.py", r"\(expand\(alpha, x\) \* x0 - x\)", "(x0 - x)"),
        ("exact.py", r"torch\.where\(flip, -v, u\), torch\.where\(flip, -u, v\)", "u, v"),
        ("exact.py", r"log_mass - width\.log\(\)", "log_mass"),
        ("exact.py", r"\(y \+ s2 \* score\) / a\)", "(y + s2 * score))"),
        ("exact.py", r"\(x >= a \* low\) & \(x <= a \* high\)", "(x >= a * low)"),
        ("exact.py", r"score\.to\(x\.dtype\)", "score"),
        (
            "exact.py",
            r"u = torch\.rand\(n, \*self\.low\.shape, generator=generator",
            "u = torch.rand(n, *self.low.shape",
        ),
        ("exact.py", r"mean \+ std \* torch\.randn", "mean + torch.randn"),
        ("exact.py", r"\(process is None\) != \(t is None\)", "False"),
        ("exact.py", r"process\.alpha\(t\)\.to\(x\)", "process.alpha(t.float()).to(x)"),
        ("exact.py", r"persistent=False", "persistent=True"),
        ("exact.py", r"if condition:", "if False:"),
        ("exact.py", r"y = x\.double\(\)\n", "y = x\n"),
    ),
)

DYNAMICS = Group(
    ("tests/test_dynamics.py",),
    within(
        "sde",
        ("dynamics.py", r"-0\.5 \* \(1\.0 \+ self\.eta\*\*2\)", "-0.5 * (1.0 + self.eta)"),
        ("dynamics.py", r"self\.eta \* self\.process\.diffusion", "self.process.diffusion"),
        ("dynamics.py", r"if not self\.eta >= 0\.0", "if False"),
        ("dynamics.py", r"return self\.eta > 0\.0", "return True"),
        ("dynamics.py", r"\* divergence \+ event_dims", "* divergence - event_dims"),
        ("dynamics.py", r"return value, -divergence", "return value, divergence"),
        ("dynamics.py", r"log_density - event_dims\(x\) \* change", "log_density - change"),
        ("dynamics.py", r"factor \* divergence", "factor / divergence"),
        ("dynamics.py", r"\(\*self\.flow\.tolerances, self\.atol\)", "(*self.flow.tolerances, None)"),
        ("dynamics.py", r"flow=self\.flow\.select\(index\), trace", "trace"),
        ("dynamics.py", r", trace=self\.trace\.select\(index\)", ""),
        ("dynamics.py", r"replace\(self, denoiser=self\.denoiser\.select\(index\)\)", "self"),
        ("dynamics.py", r"if self\.flow\.stochastic", "if False"),
        ("shapes.py", r" and values\.shape != x\.shape\[:1\]", ""),
        ("shapes.py", r"math\.prod\(x\.shape\[1:\]\)", "x.shape[-1]"),
    ),
)

TRACE = Group(
    ("tests/test_trace.py",),
    within(
        "sde/trace",
        ("exact.py", r"min\(first \+ self\.chunk, d\)", "first + 1"),
        ("exact.py", r"return torch\.zeros_like\(estimates\[:, 0\]\)", "return estimates.std(1)"),
        ("base.py", r"if not value\.requires_grad", "if False"),
        ("base.py", r"value\.detach\(\), divergence\.detach\(\)", "value, divergence"),
        ("base.py", r'"create_graph": differentiable', '"create_graph": False'),
        ("base.py", r"some if len\(some\) > 1 else some\[0\]", "some[0]"),
        ("../shapes.py", r"or value < minimum", "or value < 0"),
        ("hutchinson.py", r"noise\.normal if self\.gaussian else noise\.rademacher", "noise.rademacher"),
        (
            "hutchinson.py",
            r"probe = torch\.arange\(count, device=index\.device\)",
            "probe = torch.zeros(count, dtype=torch.int64)",
        ),
        ("hutchinson.py", r"self\.probes\[:, index\]", "self.probes[:, : len(index)]"),
        ("hutchinson.py", r"1\.0 - self\.probes / d", "1.0"),
        ("hutchinson.py", r"math\.sqrt\(d\) \* rows_of", "rows_of"),
        ("hutchinson.py", r"math\.nan\)", "0.0)"),
        ("hutchinson.py", r"if probes > d", "if False"),
        ("xtrace.py", r"d - m \+ 1", "d - m"),
        ("xtrace.py", r"\+ math\.sqrt\(tiny\.eps\) \* omega / probes", ""),
        ("xtrace.py", r"s = s / s\.norm\(dim=1, keepdim=True\)", "s = s"),
        ("xtrace.py", r"self\.probes, 2\)", "self.probes, 1)"),
    ),
)

PROCESSES = Group(
    ("tests/processes",),
    within(
        "sde/processes",
        ("linear_rate.py", r"0\.25 \* t", "0.5 * t"),
        (
            "vp.py",
            r"return -torch\.expm1\(2\.0 \* self\.log_alpha\(t\)\)",
            "return 1.0 - torch.exp(2.0 * self.log_alpha(t))",
        ),
        ("linear_rate.py", r"0\.0 < self\.beta_min <= self", "self.beta_min <= self"),
        ("vp.py", r"4\.0 \* a \* log_alpha", "2.0 * a * log_alpha"),
        (
            "subvp.py",
            r"torch\.expm1\(2\.0 \* self\.log_alpha\(t\)\)\.square\(\)",
            "-torch.expm1(2.0 * self.log_alpha(t))",
        ),
        ("subvp.py", r"torch\.expm1\(4\.0", "torch.expm1(2.0"),
        ("linear_rate.py", r"return torch\.ones_like\(t\)", "return self.var(t)"),
        ("ve.py", r"return 2\.0 \* self\._log_ratio \* self\.var\(t\)", "return self._log_ratio * self.var(t)"),
        ("ve.py", r"0\.0 < self\.sigma_min < self\.sigma_max", "self.sigma_min < self.sigma_max"),
        ("base.py", r"range\(60\)", "range(12)"),
        ("base.py", r" - 2\.0 \* self\.f\(t\) \* self\.var\(t\)", ""),
        (
            "base.py",
            r"-self\.var\(t\) \* torch\.expm1\(self\.log_snr\(t\) - self\.log_snr\(s\)\)",
            "self.var(t) - self.var(s)",
        ),
        ("base.py", r"g2\.isfinite\(\) & \(g2 >= -1e-9 \* g2\.abs\(\)\.max\(\)\)", "g2.isfinite()"),
        ("base.py", r"0\.0 <= self\.t_min < self\.t_max", "self.t_min < self.t_max"),
        ("base.py", r"self\.t_max if t is None else t, dtype", "self.t_max, dtype"),
        ("chain.py", r"3\.0 \* c\[0\] \* u \+ 2\.0 \* c\[1\]", "3.0 * c[0] * u + c[1]"),
        ("chain.py", r"smallest=0", "smallest=1"),
        (
            "chain.py",
            r"b = \(1\.0 - beta\)\.sqrt\(\) \* var_previous / var_current",
            "b = (1.0 - beta).sqrt() * var_previous",
        ),
        ("chain.py", r"\.clamp\(max=largest\)", ""),
    ),
)

NOISE = Group(
    ("tests/test_noise.py", "tests/test_brownian.py"),
    within(
        "sde",
        ("noise.py", r"\(h >> 27\) & 0x1FFFFFFFFF", "(h >> 27)"),
        ("noise.py", r"ORDER = 6", "ORDER = 11"),
        ("noise.py", r"key = _mix_\(key\) \^ _mix_\(counter \+ _GAMMA\)", "key = _mix_(key) ^ _mix_(counter)"),
        ("noise.py", r"\+ 0\.5\)\.mul_\(2\.0\*\*-32\)", ").mul_(2.0**-32)"),
        ("noise.py", r"53 if dtype == torch\.float64 else 24", "24"),
        ("noise.py", r"\(h >> 62\) & 2", "(h >> 61) & 2"),
        ("noise.py", r"block\[k - first\]", "block[0]"),
        ("noise.py", r"first <= k < first \+ len\(block\)", "k < first + len(block)"),
        ("noise.py", r"self\.noise, self\.index\[index\]", "self.noise, self.index[: len(index)]"),
        ("noise.py", r"self\._blocks\.get\(stream, \(0, None\)\)", "self._blocks.get(Stream.STEP, (0, None))"),
    ),
)

MEASURED = Group(
    ("tests/solvers/test_measured.py", "tests/measurement/test_posterior_denoisers.py"),
    within(
        "sde",
        ("solvers/replacement.py", r"k \* \(self\.repeats - 1\) \+ j", "0"),
        ("solvers/replacement.py", r"back \* x \+ std", "x + std"),
        ("solvers/decoupled.py", r"Renumbered\(source, k \* used\)", "Renumbered(source, 0)"),
        ("solvers/decoupled.py", r"or not inner\.eta", "or True"),
        ("solvers/polish.py", r"uniform\.log\(\) < log_ratio", "uniform.log() < math.inf"),
        ("solvers/polish.py", r"4\.0 \* middle", "2.0 * middle"),
        ("solvers/polish.py", r"\(4\.0 \* size\)", "(2.0 * size)"),
        ("solvers/polish.py", r"if not spread < most", "if False"),
        ("sampling.py", r"\"index\": keys\[rows\]", '"index": keys'),
        ("measurement/measurement.py", r"rowwise\(noise, e\) \* e", "0 * e"),
        ("measurement/measurement.py", r"squares \+ free, squares", "squares + free, 0.5 * squares"),
        ("measurement/measurement.py", r"noise\[kept\], rows", "noise[kept], rows.flip(0)"),
        ("measurement/update.py", r" / var\n        R", "\n        R"),
        ("measurement/update.py", r"- explained", "+ explained"),
        ("measurement/update.py", r"torch\.equal\(blocks, self\.rows\)", "True"),
        ("measurement/variance.py", r"1\.0 \+ places\.exp\(\), 1\.0", "1.0, 1.0"),
    ),
)

GROUPS = {
    "architecture": ARCHITECTURE,
    "bind": BIND,
    "solvers": SOLVERS,
    "parametrisation": PARAMETRISATION,
    "exact": EXACT,
    "dynamics": DYNAMICS,
    "trace": TRACE,
    "processes": PROCESSES,
    "noise": NOISE,
    "measured": MEASURED,
}
