"""Classifier guidance on mixtures, where classifier and denoiser are exact."""

import itertools

import pytest
import torch

from ddpm_lab.diffusion.analytic_denoisers import Mixture, MixtureClassifier, MixtureDenoiser
from ddpm_lab.diffusion.classifier_guidance import ClassifierGuidance
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM, DDPM
from ddpm_lab.diffusion.schedules import cosine, geometric, linear
from ddpm_lab.diffusion.variances import Beta, BetaTilde

MIXTURE = Mixture(
    torch.tensor([[-0.7, 0.3], [0.1, -0.5], [0.6, 0.4], [0.3, 0.9]], dtype=torch.float64),
    torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64),
    0.2,
    torch.tensor([0, 1, 0, 2]),
)
PROCESSES = {f.__name__: ForwardProcess(f()) for f in (linear, cosine, geometric)}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
T = torch.tensor([1, 30, 300, 600, 900, 999])
COND = Condition(torch.tensor([0, 1, 2, 0, 1, 2]))


class IgnoreLabels:
    """An unconditional denoiser."""

    supports_cfg = self_conditioning = False
    shape = classes = None
    space, cond_dims = "", {}

    def __init__(self, denoiser):
        self.denoiser, self.process, self.reverse = denoiser, denoiser.process, denoiser.reverse

    def __call__(self, x_t, t, cond=None):
        return self.denoiser(x_t, t)


def build(process, variance=BetaTilde(), **kwargs):
    exact = MixtureDenoiser(process, variance, MIXTURE)
    return exact, ClassifierGuidance(
        IgnoreLabels(exact), MixtureClassifier(process, MIXTURE), **kwargs
    )


@EVERY_PROCESS
def test_mixture_classifier_matches_bayes_rule(process):
    x_t = torch.randn(6, 2, dtype=torch.float64)
    p = MixtureClassifier(process, MIXTURE)(x_t, T).exp()
    alpha, sigma = (process.table[T, i, None] for i in (0, 1))
    std, joint = ((0.2 * alpha) ** 2 + sigma**2).sqrt(), torch.zeros(6, 3, dtype=torch.float64)
    components = zip(MIXTURE.means, MIXTURE.weights, MIXTURE.labels.tolist(), strict=True)
    for mean, weight, label in components:
        normal = torch.distributions.Normal(alpha * mean, std)
        joint[:, label] += weight * normal.log_prob(x_t).sum(1).exp()
    torch.testing.assert_close(p, joint / joint.sum(1, keepdim=True))


@EVERY_PROCESS
def test_scale_1_turns_unconditional_into_conditional(process):
    exact, guided = build(process)
    x_t = torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(guided(x_t, T, COND).x0, exact(x_t, T, COND).x0)
    assert (exact(x_t, T).x0 - exact(x_t, T, COND).x0).abs().max() > 0.1


def test_guidance_in_inference_mode():
    exact, guided = build(PROCESSES["cosine"])
    x = torch.randn(6, 2, dtype=torch.float64)
    with torch.inference_mode():
        samples = [DDIM(steps=10)(each, x.clone(), COND) for each in (guided, exact)]
    torch.testing.assert_close(*samples)


@pytest.mark.parametrize(
    "kwargs", [{"form": "score"}, {"form": "mean"}, {"form": "mean", "at": "mean"}]
)
def test_samples_have_the_conditional_distribution(kwargs):
    _, guided = build(PROCESSES["linear"], Beta(), **kwargs)
    count = 4000
    cond = Condition(torch.zeros(count, dtype=torch.long))
    sampler = DDPM(steps=500, clip=None)
    x = sampler(guided, torch.randn(count, 2, dtype=torch.float64), cond)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    conditional = Mixture(MIXTURE.means[[0, 2]], weights, 0.2, None)
    expected, _ = conditional.sample(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), expected.mean(0), rtol=0, atol=5 * 0.6 / count**0.5)
    torch.testing.assert_close(x.T.cov(), expected.T.cov(), rtol=0, atol=0.03)


def test_forms_agree_to_first_order_in_the_step():
    process, t = PROCESSES["cosine"], torch.full((6,), 600)
    x_t = torch.randn(6, 2, dtype=torch.float64)
    gaps = []
    for stride in (8, 4, 2):
        s = t - stride
        means = []
        for kwargs in ({}, {"form": "mean"}, {"form": "mean", "at": "mean"}):
            _, guided = build(process, Beta(), **kwargs)
            means.append(guided.reverse(guided(x_t, t, COND), x_t, t, s, COND).mean)
        gaps.append([(means[0] - other).abs().max().item() for other in means[1:]])
    for coarse, fine in itertools.pairwise(gaps):
        ratios = [a / b for a, b in zip(coarse, fine, strict=True)]
        assert ratios == pytest.approx([4, 4], rel=0.15), "errors of second order"


def test_scale_multiplies_the_gradient():
    process, t = PROCESSES["cosine"], torch.full((6,), 600)
    x_t, eps = torch.randn(6, 2, dtype=torch.float64), []
    for scale in (0.0, 1.0, 3.0):
        estimate = build(process, scale=scale)[1](x_t, t, COND)
        eps.append(process.eps(x_t, estimate.x0, t))
    torch.testing.assert_close(eps[2] - eps[0], 3 * (eps[1] - eps[0]))
    leaf = x_t.clone().requires_grad_()
    MixtureClassifier(process, MIXTURE)(leaf, t).gather(1, COND.label[:, None]).sum().backward()
    # Dhariwal & Nichol, eq. 14
    torch.testing.assert_close(eps[1] - eps[0], -process.table[600, 1] * leaf.grad)
    assert torch.equal(build(process, scale=0.0)[1](x_t, t, COND).x0, build(process)[0](x_t, t).x0)


def test_dropped_rows_are_not_guided():
    process = PROCESSES["cosine"]
    x_t, dropped = torch.randn(6, 2, dtype=torch.float64), torch.tensor([True, False] * 3)
    exact, guided = build(process)
    x0 = guided(x_t, T, Condition(COND.label, dropped=dropped)).x0
    torch.testing.assert_close(x0[dropped], exact(x_t, T).x0[dropped])
    torch.testing.assert_close(x0[~dropped], guided(x_t, T, COND).x0[~dropped])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": -1.0}, "scale must"),
        ({"form": "both"}, "form=both"),
        ({"at": "mean"}, "at=mean must be x_t"),
        ({"form": "mean", "at": "x_0"}, "at=x_0"),
    ],
)
def test_invalid_options_raise(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(PROCESSES["linear"], **kwargs)


def test_incompatible_classifier_raises():
    exact = MixtureDenoiser(PROCESSES["linear"], BetaTilde(), MIXTURE)
    with pytest.raises(ValueError, match="classifier was trained with another schedule"):
        ClassifierGuidance(exact, MixtureClassifier(PROCESSES["cosine"], MIXTURE))
    exact.classes = 4
    with pytest.raises(ValueError, match="trained on data of classes 3, but this model on 4"):
        ClassifierGuidance(exact, MixtureClassifier(PROCESSES["linear"], MIXTURE))
    with pytest.raises(ValueError, match="needs labels"):
        build(PROCESSES["linear"])[1](torch.randn(6, 2), T, Condition())
