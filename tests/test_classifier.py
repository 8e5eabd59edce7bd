"""Classifier guidance: exact on mixtures, where classifier and denoiser are known."""

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
PROCESSES = {
    "linear": ForwardProcess(linear()),
    "cosine": ForwardProcess(cosine()),
    "geometric": ForwardProcess(geometric()),
}
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
T = torch.tensor([1, 30, 300, 600, 900, 999])


class Deaf:
    """A denoiser that hears no label, as an unconditional model."""

    def __init__(self, denoiser):
        self.denoiser, self.process, self.reverse = denoiser, denoiser.process, denoiser.reverse
        self.supports_cfg, self.self_conditioning, self.shape, self.classes, self.space = (
            False,
            False,
            None,
            None,
            "",
        )
        self.cond_dims = {}

    def __call__(self, x_t, t, cond=None):
        return self.denoiser(x_t, t)


def parts(process, variance=BetaTilde(), **kwargs):  # noqa: B008
    exact = MixtureDenoiser(process, variance, MIXTURE)
    return exact, ClassifierGuidance(Deaf(exact), MixtureClassifier(process, MIXTURE), **kwargs)


@EVERY_PROCESS
def test_the_exact_classifier_is_bayes_rule(process):
    x_t = torch.randn(6, 2, dtype=torch.float64)
    found = MixtureClassifier(process, MIXTURE)(x_t, T).exp()
    (alpha, noise), normal = (process.table[T, i] for i in (0, 1)), torch.distributions.Normal
    joint = torch.zeros(6, 3, dtype=torch.float64)
    for mean, weight, label in zip(
        MIXTURE.means, MIXTURE.weights, MIXTURE.labels.tolist(), strict=True
    ):
        std = ((0.2 * alpha) ** 2 + noise**2).sqrt()[:, None]
        joint[:, label] += weight * normal(alpha[:, None] * mean, std).log_prob(x_t).sum(1).exp()
    torch.testing.assert_close(found, joint / joint.sum(1, keepdim=True))


@EVERY_PROCESS
def test_at_scale_1_an_unconditional_model_becomes_the_conditional_one(process):
    exact, guided = parts(process)
    x_t, cond = torch.randn(6, 2, dtype=torch.float64), Condition(torch.tensor([0, 1, 2, 0, 1, 2]))
    torch.testing.assert_close(guided(x_t, T, cond).x0, exact(x_t, T, cond).x0)
    assert (exact(x_t, T).x0 - exact(x_t, T, cond).x0).abs().max() > 0.1


def test_it_works_where_sampling_works_without_gradients():
    exact, guided = parts(PROCESSES["cosine"])
    x, cond = torch.randn(6, 2, dtype=torch.float64), Condition(torch.tensor([0, 1, 2, 0, 1, 2]))
    with torch.inference_mode():
        made, wanted = (DDIM(steps=10)(one, x.clone(), cond) for one in (guided, exact))
    torch.testing.assert_close(made, wanted)


@pytest.mark.parametrize(
    "kwargs", [{"form": "score"}, {"form": "mean"}, {"form": "mean", "at": "mean"}]
)
def test_samples_have_the_law_of_their_label(kwargs):
    _, guided = parts(PROCESSES["linear"], Beta(), **kwargs)
    count = 4000
    cond = Condition(torch.zeros(count, dtype=torch.long))
    sampler = DDPM(steps=500, clip=None)
    x = sampler(guided, torch.randn(count, 2, dtype=torch.float64), cond)
    mine = Mixture(
        MIXTURE.means[[0, 2]], torch.tensor([0.25, 0.75], dtype=torch.float64), 0.2, None
    )
    wanted, _ = mine.sample(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), wanted.mean(0), rtol=0, atol=5 * 0.6 / count**0.5)
    torch.testing.assert_close(x.T.cov(), wanted.T.cov(), rtol=0, atol=0.03)


def test_the_forms_agree_to_first_order_in_the_step():
    process, t = PROCESSES["cosine"], torch.full((6,), 600)
    x_t, cond = torch.randn(6, 2, dtype=torch.float64), Condition(torch.tensor([0, 1, 2, 0, 1, 2]))
    gaps = []
    for stride in (8, 4, 2):
        s = t - stride
        means = []
        for kwargs in ({}, {"form": "mean"}, {"form": "mean", "at": "mean"}):
            _, guided = parts(process, Beta(), **kwargs)
            means.append(guided.reverse(guided(x_t, t, cond), x_t, t, s, cond).mean)
        gaps.append([(means[0] - other).abs().max().item() for other in means[1:]])
    for coarse, fine in itertools.pairwise(gaps):
        assert [a / b for a, b in zip(coarse, fine, strict=True)] == pytest.approx(
            [4, 4], rel=0.15
        ), "second order"


def test_scale_multiplies_the_gradient_and_0_is_off():
    process, t = PROCESSES["cosine"], torch.full((6,), 600)
    x_t, cond = torch.randn(6, 2, dtype=torch.float64), Condition(torch.tensor([0, 1, 2, 0, 1, 2]))
    eps = []
    for scale in (0.0, 1.0, 3.0):
        estimate = parts(process, scale=scale)[1](x_t, t, cond)
        eps.append(process.eps(x_t, estimate.x0, t))
    torch.testing.assert_close(eps[2] - eps[0], 3 * (eps[1] - eps[0]))
    leaf = x_t.clone().requires_grad_()
    MixtureClassifier(process, MIXTURE)(leaf, t).gather(1, cond.label[:, None]).sum().backward()
    torch.testing.assert_close(
        eps[1] - eps[0], -process.table[600, 1] * leaf.grad
    )  # Dhariwal & Nichol, eq. 14
    assert torch.equal(parts(process, scale=0.0)[1](x_t, t, cond).x0, parts(process)[0](x_t, t).x0)


def test_rows_whose_label_was_dropped_are_not_moved():
    process = PROCESSES["cosine"]
    x_t, label = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    dropped = torch.tensor([True, False] * 3)
    exact, guided = parts(process)
    found = guided(x_t, T, Condition(label, dropped=dropped)).x0
    torch.testing.assert_close(found[dropped], exact(x_t, T).x0[dropped])
    torch.testing.assert_close(found[~dropped], guided(x_t, T, Condition(label)).x0[~dropped])


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"scale": -1.0}, "scale must"),
        ({"form": "both"}, "form=both"),
        ({"at": "mean"}, "at=mean must be x_t"),
        ({"form": "mean", "at": "x_0"}, "at=x_0"),
    ],
)
def test_what_cannot_be_is_refused(kwargs, told):
    with pytest.raises(ValueError, match=told):
        parts(PROCESSES["linear"], **kwargs)


def test_a_classifier_of_something_else_is_refused():
    exact = MixtureDenoiser(PROCESSES["linear"], BetaTilde(), MIXTURE)
    with pytest.raises(ValueError, match="classifier was trained with another schedule"):
        ClassifierGuidance(exact, MixtureClassifier(PROCESSES["cosine"], MIXTURE))
    exact.classes = 4
    with pytest.raises(
        ValueError, match="classifier was trained on data of classes 3, and this model on 4"
    ):
        ClassifierGuidance(exact, MixtureClassifier(PROCESSES["linear"], MIXTURE))
    with pytest.raises(ValueError, match="needs labels"):
        parts(PROCESSES["linear"])[1](torch.randn(6, 2), T, Condition())
