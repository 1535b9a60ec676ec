"""Noise-aware classifiers: trained on a mixture whose classifier is known at every noise level, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.classes import Classes
from test_guidance import log_class

import sde
from sde.evaluation import fit_noise_classifier, load_noise_classifier, noise_accuracy, save_noise_classifier
from sde.exact import Gaussian, Mixture
from sde.guidance import Classifier, NoiseClassifier
from sde.networks import Encoder

PROCESS = sde.VP()


def samples(mixture: Mixture, n: int) -> sde.data.Split:
    """As many of each component as its weight says."""
    g = torch.Generator().manual_seed(0)
    counts = (n * mixture.weights).round().long().tolist()
    covs = torch.einsum("kij,kj,klj->kil", mixture.basis, mixture.eigenvalues, mixture.basis)
    x = [Gaussian(m, c).sample(k, generator=g) for m, c, k in zip(mixture.means, covs, counts)]
    return sde.data.Split(torch.cat(x).float(), torch.arange(3).repeat_interleave(torch.tensor(counts)))


def fitted(mixture: Mixture, n: int, steps: int, process: sde.SDE = PROCESS) -> NoiseClassifier:
    torch.manual_seed(0)
    classifier = NoiseClassifier(Encoder((2,), 3, width=8, depth=2, dropout=0.0), process, 3)
    losses = list(fit_noise_classifier(classifier, sde.Batches(samples(mixture, n), 256), None, steps=steps, lr=1e-2))
    assert len(losses) == steps
    return classifier


@pytest.mark.parametrize("process", [PROCESS, sde.VE(sigma_max=20.0)], ids=["VP", "VE"])
def test_it_learns_the_classifier_of_noisy_states(mixture: Mixture, process: sde.SDE) -> None:
    """Its divergence from the exact one, in nats; guidance by it removes most of the error of no guidance."""
    classifier = fitted(mixture, 4000, 250, process)
    d, data = Classes(mixture, process), samples(mixture, 600)
    for level in (1.0, 2.0, 7.0):
        t = process.time(-2.0 * torch.tensor(level, dtype=torch.float64).log())
        mean, std = process.marginal(data.values.double(), t)
        x = mean + std * torch.randn(mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        exact = torch.stack([log_class(mixture, process)(x, t, label=torch.tensor(k)) for k in range(3)], 1)
        found = classifier.log_probs(x, t)
        assert found.dtype == torch.float64
        assert (exact.exp() * (exact - found)).sum(1).mean() < 0.02
        guided, given = Classifier(d.each[3], classifier), {"label": data.labels}  # type: ignore[arg-type]
        error = (guided(x, t, **given) - d(x, t, **given)).square().mean()
        assert error < 0.25 * (d.each[3](x, t) - d(x, t, **given)).square().mean()
    right = noise_accuracy(classifier, data, sde.data.Scaling.identity(), (0.1, 2.0))
    assert right[0.1].value > 0.97
    assert right[2.0].value < 0.9


def test_it_takes_the_label_and_checks_it_before_the_first_call(mixture: Mixture) -> None:
    classifier = NoiseClassifier(Encoder((2,), 3, width=8, depth=1), PROCESS, 3)
    net = sde.networks.MLP(2, width=8, depth=1)
    guided = Classifier(sde.NetworkDenoiser(net, PROCESS), classifier, 2.0)
    assert (guided.names, guided.classes, list(guided.takes or ())) == (("label",), 3, ["label"])
    x, t = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    assert classifier(x, t, label=torch.tensor([0, 1, 3, 3]))[2:].tolist() == [0.0, 0.0]
    condition = {"label": torch.tensor([0, 1, 2, 3])}
    assert sde.sample(guided, x_T=x, solver=sde.solvers.Heun(2), condition=condition).vjps.tolist() == [4] * 4
    for bad, word in (
        (lambda: sde.sample(guided, (1, 2), condition={"label": torch.tensor(4)}), "expected a class 0 ... 2"),
        (lambda: sde.sample(guided, (1, 2)), "needs the condition 'label'"),
        (lambda: Classifier(sde.NetworkDenoiser(net, sde.VE()), classifier), "same process"),
        (lambda: Encoder((1, 2, 3, 4, 5), 2), "1 to 3 spatial axes"),
        (lambda: classifier.log_probs(torch.zeros(1, 3), t), r"\(B, 2\)"),
        (lambda: next(fit_noise_classifier(classifier, sde.Batches(x, 2), None, steps=1)), "needs the condition"),
    ):
        with pytest.raises(ValueError, match=word):
            bad()


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 6, 7), (1, 2, 3, 4)], ids=str)
def test_rows_and_gradients_of_the_encoder_are_their_own(shape: tuple[int, ...]) -> None:
    net = Encoder(shape, 4, width=8, depth=2).double().eval()
    torch.nn.init.normal_(net.outlet.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    classifier, t = NoiseClassifier(net, PROCESS, 4), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    whole = classifier.log_probs(x, t)
    assert torch.allclose(whole[1:2], classifier.log_probs(x[1:2], t[1]), atol=1e-12)
    assert torch.allclose(whole.exp().sum(1), torch.ones(3, dtype=torch.float64))
    one = x[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda y: classifier(y, t[:1], label=torch.tensor([2])), one)


def test_a_file_gives_it_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    classifier = NoiseClassifier(Encoder((1, 4, 4), 3, width=8, depth=1), sde.VE(sigma_max=9.0), 3).eval()
    torch.nn.init.normal_(classifier.network.outlet.weight)  # type: ignore[union-attr, arg-type]
    save_noise_classifier(tmp_path / "c.pt", classifier)
    again = load_noise_classifier(tmp_path / "c.pt")
    x, t = torch.randn(2, 1, 4, 4), torch.tensor(0.3)
    assert torch.equal(again.log_probs(x, t), classifier.log_probs(x, t))
    assert again.process == classifier.process
    content = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(content[:-9])
    with pytest.raises(ValueError, match="truncated or altered"):
        load_noise_classifier(tmp_path / "c.pt")
    other = Gaussian(torch.zeros(2), torch.eye(2)).denoiser(PROCESS)
    sde.save(tmp_path / "m.pt", sde.Model(other, sde.data.Scaling.identity(), (2,)))
    with pytest.raises(ValueError, match="usable noise-aware classifier: it has no 'classifier'"):
        load_noise_classifier(tmp_path / "m.pt")
    with pytest.raises(FileNotFoundError, match="scripts/noise_classifier"):
        load_noise_classifier(tmp_path / "n.pt")
