"""Guidance against its formula, and its limits."""

import pytest
import torch

from ddpm_lab.conditioners.labels import Label
from ddpm_lab.diffusion.analytic_denoisers import Mixture, MixtureDenoiser
from ddpm_lab.diffusion.conditioning import Condition, DataSpec
from ddpm_lab.diffusion.denoiser import Denoiser, Estimate
from ddpm_lab.diffusion.guidance import Autoguidance, ClassifierFreeGuidance, Guidance
from ddpm_lab.diffusion.predictions import Eps
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.diffusion.schedules import cosine, linear
from ddpm_lab.diffusion.variances import BetaTilde, LearnedRange
from ddpm_lab.networks.unet import UNet

COND = Condition(label=torch.tensor([0, 1, 2]))
T = torch.tensor([10, 500, 1000])


PROCESS = ForwardProcess(cosine())


def unet(**kwargs):
    network = UNet((1, 8, 8), classes=3, channels=8, multipliers=(1,), blocks=1, **kwargs)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def denoiser(supports_cfg=True, variance=BetaTilde(), **kwargs):
    label = Label(DataSpec((1, 8, 8), 3, None, None), dropout=0.1 if supports_cfg else 0.0)
    return Denoiser(unet(**kwargs), PROCESS, Eps(), variance, label, (1, 8, 8))


def test_cfg_w_0_is_off_bit_for_bit():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    assert torch.equal(ClassifierFreeGuidance(plain, w=0)(x, T, COND).x0, plain(x, T, COND).x0)


def test_cfg_matches_ho_salimans():
    plain, x = denoiser().double(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    conditional, null = (plain.run_network(x, T, c).prediction for c in (COND, COND.null()))
    guided = plain.process.eps(x, ClassifierFreeGuidance(plain, w=2.0)(x, T, COND).x0, T)
    torch.testing.assert_close(guided, 3 * conditional - 2 * null)
    assert (conditional - null).abs().max() > 1e-3


def test_cfg_uses_the_conditional_variance():
    plain, x = denoiser(variance=LearnedRange(), outputs=2), torch.randn(3, 1, 8, 8)
    conditional, null = plain(x, T, COND), plain(x, T, COND.null())
    guided = ClassifierFreeGuidance(plain, w=2.0)
    estimate = guided(x, T, COND)
    torch.testing.assert_close(estimate.variance_output, conditional.variance_output)
    assert (conditional.variance_output - null.variance_output).abs().max() > 1e-3
    torch.testing.assert_close(
        guided.reverse(estimate, x, T, T - 1).log_var,
        plain.reverse(conditional, x, T, T - 1).log_var,
    )


def test_cfg_runs_the_network_once_with_twice_the_batch():
    sizes = []

    class Spy:
        process, supports_cfg, reverse = PROCESS, True, None
        shape = classes = None
        self_conditioning, cond_dims, space = False, {}, ""

        def __call__(self, x_t, t, cond):
            sizes.append((len(x_t), len(t), cond.dropped.tolist()))
            return Estimate(x_t)

    ClassifierFreeGuidance(Spy(), w=1.0)(torch.randn(3, 1, 8, 8), T, COND)
    assert sizes == [(6, 6, [False] * 3 + [True] * 3)]


def test_cfg_requires_dropped_conditions_in_training():
    with pytest.raises(ValueError, match=r"conditioner\.dropout"):
        ClassifierFreeGuidance(denoiser(supports_cfg=False), w=1.0)
    ClassifierFreeGuidance(denoiser(supports_cfg=False), w=0.0)


def test_cfg_requires_a_condition():
    with pytest.raises(ValueError, match="needs conditions"):
        ClassifierFreeGuidance(denoiser(), w=1.0)(torch.randn(3, 1, 8, 8), T, Condition())


@pytest.mark.parametrize("w", [-0.5, float("nan"), float("inf")])
def test_cfg_rejects_w(w):
    with pytest.raises(ValueError, match="w must"):
        ClassifierFreeGuidance(denoiser(), w=w)


def test_cfg_scale_is_1_plus_w():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)

    def guided(**kwargs):
        return ClassifierFreeGuidance(plain, **kwargs)(x, T, COND).x0

    assert torch.equal(guided(scale=3.0), guided(w=2.0))
    assert torch.equal(guided(scale=1.0), plain(x, T, COND).x0), "1 is off"
    torch.testing.assert_close(guided(scale=0.0), plain(x, T, COND.null()).x0)  # unconditional
    ClassifierFreeGuidance(denoiser(supports_cfg=False), scale=1.0)
    with pytest.raises(ValueError, match="scale=2 needs a conditional model"):
        ClassifierFreeGuidance(denoiser(supports_cfg=False), scale=2.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"w": 1.0, "scale": 2.0}, "both set the strength"),
        ({"scale": -1.0}, "scale must"),
        ({"w": 1.0, "rescale": 1.5}, "rescale"),
        ({"w": 1.0, "interval": (5, 5)}, "interval="),
        ({"w": 1.0, "interval": (0, 1001)}, r"0\.\.1000"),
        ({"w": 1.0, "interval": (1, 2, 3)}, "two times"),
    ],
)
def test_cfg_rejects_invalid_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ClassifierFreeGuidance(denoiser(), **kwargs)


def test_cfg_interval():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    x0 = ClassifierFreeGuidance(plain, w=1.0, interval=(11, 500))(x, T, COND).x0
    torch.testing.assert_close(x0[[0, 2]], plain(x, T, COND).x0[[0, 2]])
    torch.testing.assert_close(x0[1], ClassifierFreeGuidance(plain, w=1.0)(x, T, COND).x0[1])


@pytest.mark.parametrize("rescale", [0.0, 0.4, 1.0])
def test_cfg_rescale_interpolates_the_std(rescale):
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    guided = ClassifierFreeGuidance(plain, w=4.0)
    rescaled = ClassifierFreeGuidance(plain, w=4.0, rescale=rescale)
    a, b, x0 = (each(x, T, COND).x0.flatten(1) for each in (plain, guided, rescaled))
    torch.testing.assert_close(x0.std(1), rescale * a.std(1) + (1 - rescale) * b.std(1))
    torch.testing.assert_close(x0 / x0.std(1, keepdim=True), b / b.std(1, keepdim=True))


def test_cfg_on_a_mixture():
    means, weights = torch.tensor([[[-0.5], [0.5]], [[0.5], [0.5]]], dtype=torch.float64)
    mixture = Mixture(means, weights[:, 0], 0.2, torch.tensor([0, 1]))
    exact = MixtureDenoiser(PROCESS, BetaTilde(), mixture)
    x, cond = torch.randn(4, 1, dtype=torch.float64), Condition(torch.ones(4, dtype=torch.long))
    sampler = DDIM(steps=20)
    plain, off, guided = (
        sampler(each, x, cond)
        for each in (exact, *(ClassifierFreeGuidance(exact, w=w) for w in (0.0, 2.0)))
    )
    assert torch.equal(off, plain), "the conditional distribution"
    assert (guided > plain).all(), "away from the other component"


def test_autoguidance_extrapolates_from_the_weak_model():
    strong, weak, x = denoiser(), denoiser(), torch.randn(3, 1, 8, 8)
    a, b = strong(x, T, COND).x0, weak(x, T, COND).x0
    torch.testing.assert_close(Autoguidance(strong, weak, w=1.5)(x, T, COND).x0, a + 1.5 * (a - b))
    assert torch.equal(Autoguidance(strong, weak, w=0.0)(x, T, COND).x0, a)
    assert (a - b).abs().max() > 1e-3
    inside = Autoguidance(strong, weak, w=1.5, interval=(11, 500))(x, T, COND).x0
    torch.testing.assert_close(inside[[0, 2]], a[[0, 2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (3, 8, 8)}, "data of shape"),
        ({"classes": 4}, "data of classes 4"),
        ({"process": ForwardProcess(cosine(500))}, "T = 500"),
        ({"process": ForwardProcess(linear())}, "another schedule"),
    ],
)
def test_autoguidance_rejects_incompatible_weak_model(change, message):
    strong, weak = denoiser(), denoiser()
    for name, value in change.items():
        setattr(weak, name, value)
    with pytest.raises(ValueError, match=f"weak was.*{message}"):
        Autoguidance(strong, weak)


def test_autoguidance_rejects_other_conditioners():
    strong, weak = denoiser(), denoiser()
    strong.cond_dims = weak.cond_dims = {"context": 64}
    with pytest.raises(ValueError, match="weak must have the conditioner"):
        Autoguidance(strong, weak)
    strong.cond_dims, weak.cond_dims = {"classes": 3}, {"classes": 3, "image": 1}
    with pytest.raises(ValueError, match="weak must have the conditioner"):
        Autoguidance(strong, weak)


class Recorder(Guidance):
    """Record the x_0 estimates of a denoiser."""

    estimates = ()

    def __call__(self, x_t, t, cond):
        estimate = super().__call__(x_t, t, cond)
        self.estimates = (*self.estimates, estimate.x0)
        return estimate


def test_self_conditioning_under_guidance():
    plain = denoiser(self_conditioning=True)
    cfg, autoguidance = ClassifierFreeGuidance(plain, w=1.0), Autoguidance(plain, denoiser(), w=1.0)
    for guided in (plain, cfg, autoguidance):
        inputs, recorder = [], Recorder(guided)
        hook = plain.network.register_forward_pre_hook(
            lambda _, args, inputs=inputs: inputs.append(args[2].previous_x0)
        )
        DDIM(steps=3)(recorder, torch.randn(3, 1, 8, 8), COND)
        hook.remove()
        assert [previous is None for previous in inputs] == [True, False, False]
        assert recorder.estimates[0].abs().max() > 0.1
        for previous, estimate in zip(inputs[1:], recorder.estimates[:2], strict=True):
            for half in previous.split(
                3
            ):  # both halves of a doubled batch have the guided estimate
                torch.testing.assert_close(half, estimate.clamp(-1, 1))


def test_only_dropped_rows_use_the_null():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    mixed = Condition(COND.label, dropped=torch.tensor([False, True, False]))
    x0 = plain(x, T, mixed).x0
    torch.testing.assert_close(x0[0], plain(x, T, COND).x0[0])
    torch.testing.assert_close(x0[1], plain(x, T, Condition()).x0[1])


def test_drop_rate():
    cond = Condition(label=torch.zeros(10_000, dtype=torch.long))
    assert cond.drop(0.2).dropped.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert cond.drop(0).dropped is None and Condition().drop(0.5) == Condition()
