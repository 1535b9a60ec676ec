"""Editing, dual bridges and interpolation against closed forms of Gaussians and mixtures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.classes import Classes
from torch import Tensor

import sde
from sde.data import Scaling
from sde.data.captions import Bytes, Transformers, Words
from sde.exact import Gaussian, Mixture
from sde.model.translation import edit, edit_time, interpolate, matched, slerp, translate
from sde.processes import SDE
from sde.solvers import EulerMaruyama, Heun, RungeKutta, Tableau

TIGHT = RungeKutta(tableau=Tableau.dormand_prince_8(), rtol=1e-9, atol=1e-9)
PROCESSES = [sde.VP(), sde.VE(), sde.SubVP(), sde.Cosine(), sde.KarrasVE(), sde.RectifiedFlow()]


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def line(mean: float, std: float) -> Gaussian:
    return Gaussian(f64([mean]), f64([[std**2]]))


# Editing


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_strength_is_an_angle_whatever_the_process(process: SDE) -> None:
    t = f64(edit_time(process, 0.5))
    end = f64(process.t_max)
    angle = torch.atan2(process.sigma(end), process.alpha(end))
    assert torch.allclose(torch.atan2(process.sigma(t), process.alpha(t)), angle / 2.0, atol=1e-6)
    assert edit_time(process, 1.0) == process.t_max
    assert process.t_min <= edit_time(process, 1e-9) < t


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_edits_of_a_gaussian_are_the_closed_form(eta: float) -> None:
    """Given x, noised and denoised by the reverse SDE: E and Var of x0' ~ p(x0 | x_t), x_t ~ q(x_t | x). By the flow,
    x_t is moved by an affine map to the marginal of the data end."""
    n, m, s, x0, process = 20000, 0.5, 0.4, 2.0, sde.VP()
    solver: Any = EulerMaruyama(200, grid=sde.grids.LogSNR()) if eta else Heun(40, grid=sde.grids.LogSNR())
    x = edit(line(m, s).denoiser(process), torch.full((n, 1), x0).double(), 0.4, solver=solver, denoise=False).x
    t = f64(edit_time(process, 0.4))
    a, v = process.alpha(t).item(), process.var(t).item()
    if eta:
        k = a * s**2 / (a**2 * s**2 + v)
        mean, var = m + k * a * (x0 - m), k**2 * v + s**2 * v / (a**2 * s**2 + v)
    else:
        k = s / math.sqrt(a**2 * s**2 + v)
        mean, var = m + k * a * (x0 - m), k**2 * v
    assert abs(x.mean().item() - mean) < 5.0 * math.sqrt(var / n) + 2e-3
    assert abs(x.var().item() / var - 1.0) < 5.0 * math.sqrt(2.0 / n) + 5e-3


def test_an_edit_of_each_sample_is_its_own() -> None:
    d, x = line(0.5, 0.4).denoiser(sde.VP()), f64([[0.1], [0.2], [0.3]])
    whole, last = edit(d, x, 0.3, seed=3).x, edit(d, x[2:], 0.3, seed=3, first=2).x
    assert torch.allclose(whole[2:], last, atol=1e-12)
    assert not torch.equal(edit(d, x, 0.3, seed=4).x, whole)
    with pytest.raises(ValueError, match="0 < strength <= 1"):
        edit(d, x, 1.5)


# Dual bridges


@pytest.mark.parametrize("source", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("target", [sde.VP(), sde.KarrasVE()], ids=lambda p: type(p).__name__)
def test_a_bridge_of_gaussians_is_the_affine_map(source: SDE, target: SDE) -> None:
    """x -> m' + s'/s (x - m), up to the mean that is left at the level L where both are matched, (m - m') / L."""
    a, b = line(1.0, 0.5).denoiser(source), line(-0.5, 0.8).denoiser(target)
    x = f64([[0.3], [1.0], [1.9]])
    y = translate(a, x, b, solver=TIGHT)
    t, s, _ = matched(source, target)
    first, second = (p.sigma(f64(u)) / p.alpha(f64(u)) for p, u in ((source, t), (target, s)))
    assert math.isinf(first) or torch.allclose(first, second, rtol=1e-6)
    level = min(first.item(), second.item())
    # The data ends have some noise of their own.
    ends = [(p.alpha(f64(p.t_min)).item(), p.var(f64(p.t_min)).item()) for p in (source, target)]
    (a0, v0), (a1, v1) = ends
    z = (x - a0 * 1.0) / math.sqrt(a0**2 * 0.25 + v0)
    spread = [math.sqrt(std**2 + level**2) for std in (0.5, 0.8)]
    shift = (spread[0] * z + 1.5) / spread[1] if math.isfinite(level) else z
    assert torch.allclose(y, a1 * -0.5 + math.sqrt(a1**2 * 0.64 + v1) * shift, atol=2e-5)


def test_between_mixtures_it_goes_there_and_back_and_has_the_right_marginal(mixture: Mixture) -> None:
    """The round trip to 1e-5; mean and covariance of 2000 translated samples to 5 standard errors."""
    means = f64([[1.0, -0.5], [-0.8, 0.9]])
    other = Mixture(f64([0.4, 0.6]), means, 0.1 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2))
    a, b, n = mixture.denoiser(sde.VP()), other.denoiser(sde.VE()), 2000
    x = mixture.sample(n, generator=torch.Generator().manual_seed(0))
    y = translate(a, x[:5], b, solver=TIGHT)
    assert (translate(b, y, a, solver=TIGHT) - x[:5]).abs().max() < 1e-5
    y = translate(a, x, b, solver=Heun(60, grid=sde.grids.LogSNR()))
    mean = (other.weights[:, None] * means).sum(0)
    centred = means - mean
    cov = (other.weights[:, None, None] * centred[:, :, None] * centred[:, None]).sum(0) + 0.1 * torch.eye(2)
    spread = cov.diagonal().sqrt()
    assert ((y.mean(0) - mean).abs() < 5.0 * spread / n**0.5 + 0.01).all()  # 0.01: the means left at the level of 50
    assert ((y.T.cov() - cov).abs() < (5.0 * (2.0 / n) ** 0.5 + 0.01) * torch.outer(spread, spread)).all()


def test_processes_that_do_not_reach_the_noise_cannot_be_matched() -> None:
    d, x = line(0.0, 1.0), f64([[0.0]])
    with pytest.raises(ValueError, match=r"cannot be matched: the largest noise level .* 2,"):
        translate(d.denoiser(sde.VP()), x, d.denoiser(sde.VE(sigma_max=2.0)))


# Interpolation


def test_the_great_circle() -> None:
    a, b = f64([[3.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), f64([[0.0, 3.0], [1.0, 1.0], [-1.0, -2.0]])
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, b, 1.0)[:2], b[:2])
    middle = slerp(a, b, f64([1.0 / 3.0, 0.5, 0.5]))
    assert torch.allclose(middle[0], 3.0 * f64([math.cos(math.pi / 6), math.sin(math.pi / 6)]))
    assert torch.allclose(middle[1], a[1])
    assert middle.isfinite().all()


def test_a_path_joins_its_ends() -> None:
    d = Gaussian(f64([1.0, 0.0]), 0.25 * torch.eye(2).double()).denoiser(sde.VP())
    a, b = f64([[1.5, 0.0]]), f64([[1.0, 0.5]])
    path = interpolate(d, a, b, 3, solver=TIGHT)
    assert torch.allclose(path[:, 0], a, atol=1e-6)
    assert torch.allclose(path[:, 2], b, atol=1e-6)
    # On a circle around the mean, to the accuracy to which the prior is centred.
    assert torch.allclose(path[:, 1] - f64([1.0, 0.0]), 0.5 * math.sqrt(0.5) * torch.ones(2).double(), atol=0.01)
    with pytest.raises(ValueError, match="steps=1"):
        interpolate(d, a, b, 1)


# Models


def test_a_model_edits_and_translates_data_values(mixture: Mixture) -> None:
    first, second = (
        Scaling.identity(),
        Scaling.standardise(10.0 + 3.0 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))),
    )
    a = sde.Model(Classes(mixture, sde.VP()), first, (2,), 3)
    b = sde.Model(mixture.denoiser(sde.VE()), second, (2,))
    x, label = mixture.means[:2], {"label": torch.tensor([0, 1])}
    y = a.translate(x, b, condition=label, solver=TIGHT)
    assert ((y - 10.0).abs() < 12.0).all()
    assert torch.allclose(b.translate(y, a, target_condition=label, solver=TIGHT), x, atol=1e-5)
    assert a.edit(x, 0.2, condition=label).shape == x.shape
    assert (a.edit(x, 1e-3, condition=label) - x).abs().max() < 0.02
    assert torch.allclose(a.interpolate(x[:1], x[1:], 3, condition={"label": torch.tensor(3)})[:, 2], x[1:], atol=1e-2)
    with pytest.raises(ValueError, match="the other model is for data of shape"):
        a.translate(x, sde.Model(line(0.0, 1.0).denoiser(sde.VP()), first, (1,)))


def conditional() -> sde.Model:
    net = sde.networks.MLP(2, width=8, depth=1, classes=3, conditions=sde.networks.Conditions(embedding=2, tokens=8))
    return sde.Model(sde.NetworkDenoiser(net, sde.VP()), Scaling.identity(), (2,), 3, Words(4, 8))


def test_conditions_from_plain_values() -> None:
    model = conditional()
    given = model.condition(5, first=1, label=[0, 2], embedding=[0.3, 1.2], prompt=["a seven", "seven"])
    assert given["label"].tolist() == [2, 0, 2, 0, 2]
    assert torch.equal(given["embedding"], torch.tensor([[0.3, 1.2]]).expand(5, 2))
    assert given["tokens_mask"].sum(1).tolist() == [1, 2, 1, 2, 1]
    assert model.condition(2, label=1)["label"].tolist() == [1, 1]
    assert model.sample(5, condition=given, solver=Heun(2)).shape == (5, 2)
    for bad, word in (
        ({"label": 3}, "expected label to be a class 0 ... 2, or none, got 3"),
        ({"label": [0, -1]}, "expected label to be a class 0 ... 2, or none, got -1"),
        ({"label": 0.5}, "expected label to be a class 0 ... 2, or none, got 0.5"),
        ({"label": "seven"}, "expected label to be a class 0 ... 2, or none, got 'seven'"),
        ({"embedding": [1.0]}, r"expected shape \(B, 2\), got \(2, 1\)"),
        ({"colour": 1}, "unknown condition 'colour': the conditions of this model are label"),
        ({"prompt": "a b c d e"}, "at most 4 words, got 5"),
        ({"embedding": ["a"]}, "expected embedding to be numbers"),
    ):
        with pytest.raises(ValueError, match=word):
            model.condition(2, **bad)
    with pytest.raises(ValueError, match="takes no prompt"):
        sde.Model(line(0.0, 1.0).denoiser(sde.VP()), Scaling.identity(), (1,)).condition(2, prompt="a")


def test_a_label_is_a_class_and_no_label_is_said_in_words() -> None:
    """Truth values are the classes 0 and 1; the classes are those of the data, of which the network may have more."""
    model = conditional()
    for label, rows in ((True, [1, 1]), (torch.tensor([False, True]), [0, 1]), (np.array([2], np.int32), [2, 2])):
        given = model.condition(2, label=label)["label"]
        assert (given.dtype, given.tolist()) == (torch.int64, rows)
    assert model.condition(3, first=1, label=[1, "none"])["label"].tolist() == [3, 1, 3]
    assert model.condition(1, label="none")["label"].tolist() == [3]
    unknown = {"label": torch.tensor([3, 1])}  # tensors by name say so as the networks have it
    first = model.sample(2, condition={"label": torch.tensor([False, True])}, solver=Heun(2))
    assert torch.equal(first, model.sample(2, condition={"label": torch.tensor([0, 1])}, solver=Heun(2)))
    assert model.sample(2, condition=unknown, solver=Heun(2)).shape == (2, 2)
    fewer = sde.Model(model.denoiser, model.scaling, (2,), 2)
    with pytest.raises(ValueError, match=r"a class 0 \.\.\. 1, or none, got 2"):
        fewer.condition(2, label=2)
    assert fewer.condition(1, label="none")["label"].tolist() == [3]
    own = sde.Model(line(0.0, 1.0).denoiser(sde.VP()), Scaling.identity(), (1,), 2)  # a denoiser that lists nothing
    with pytest.raises(ValueError, match=r"a class 0 \.\.\. 1, got 2"):
        own.condition(2, label=2)


def test_a_file_holds_the_encoder(tmp_path: Any) -> None:
    sde.save(tmp_path / "a.pt", conditional())
    assert sde.load(tmp_path / "a.pt").encoder == Words(4, 8)


@pytest.mark.parametrize("encoder", [Words(6, 9), Bytes(20, 9)])
def test_texts_are_tokens_that_know_word_and_place(encoder: Any) -> None:
    tokens, mask = encoder(["A seven", "seven a", "", "a seven"])
    assert tokens.shape[::2] == (4, 9)
    assert torch.equal(tokens[0], tokens[3]) == isinstance(encoder, Words)
    assert not torch.allclose(tokens[1, 1], tokens[3, 0])  # the same word in another place
    assert mask.sum(1).tolist()[2] == 0
    assert torch.equal(encoder(["a seven"])[0][0], tokens[3])  # whatever the batch
    with pytest.raises(ValueError, match="at most"):
        encoder(["a b c d e f g h i j k l m"])


def test_a_text_model_needs_a_directory() -> None:
    with pytest.raises(ValueError, match="no directory of a text model"):
        Transformers("nowhere")(["a"])
