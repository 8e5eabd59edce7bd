"""Guidance against its formula, and its limits."""

import pytest
import torch

from ddpm_lab.conditioners.base import DataSpec, Label
from ddpm_lab.diffusion.analytic_denoisers import Mixture, MixtureDenoiser
from ddpm_lab.diffusion.conditioning import Condition
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


def told(supports_cfg=True):
    return Label(DataSpec((1, 8, 8), 3, None, None), dropout=0.1 if supports_cfg else 0.0)


def denoiser(supports_cfg=True):
    network = UNet((1, 8, 8), classes=3, channels=8, multipliers=(1,), blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(
        network, ForwardProcess(cosine()), Eps(), BetaTilde(), told(supports_cfg), (1, 8, 8)
    )


def test_w_0_is_no_guidance_bit_for_bit():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    assert torch.equal(ClassifierFreeGuidance(plain, w=0)(x, T, COND).x0, plain(x, T, COND).x0)


def test_it_is_ho_and_salimans_in_eps():
    plain, x = denoiser().double(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    given, absent = (plain.run_network(x, T, cond).prediction for cond in (COND, COND.null()))
    guided = plain.process.eps(x, ClassifierFreeGuidance(plain, w=2.0)(x, T, COND).x0, T)
    torch.testing.assert_close(guided, 3 * given - 2 * absent)
    assert (given - absent).abs().max() > 1e-3


def test_a_learned_variance_is_that_of_the_given_condition():
    network = UNet((1, 8, 8), outputs=2, classes=3, channels=8, multipliers=(1,), blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain = Denoiser(network, ForwardProcess(cosine()), Eps(), LearnedRange(), told())
    x = torch.randn(3, 1, 8, 8)
    given, absent = plain(x, T, COND), plain(x, T, COND.null())
    estimate = ClassifierFreeGuidance(plain, w=2.0)(x, T, COND)
    torch.testing.assert_close(estimate.variance_output, given.variance_output)
    assert (given.variance_output - absent.variance_output).abs().max() > 1e-3
    torch.testing.assert_close(
        ClassifierFreeGuidance(plain, w=2.0).reverse(estimate, x, T, T - 1).log_var,
        plain.reverse(given, x, T, T - 1).log_var,
    )


def test_it_calls_the_network_once_with_twice_the_batch():
    sizes = []

    class Spy:
        process, supports_cfg, reverse = ForwardProcess(cosine()), True, None
        shape = classes = None
        self_conditioning, cond_dims, space = False, {}, ""

        def __call__(self, x_t, t, cond):
            sizes.append((len(x_t), len(t), cond.dropped.tolist()))
            return Estimate(x_t)

    ClassifierFreeGuidance(Spy(), w=1.0)(torch.randn(3, 1, 8, 8), T, COND)
    assert sizes == [(6, 6, [False] * 3 + [True] * 3)]


def test_it_is_refused_where_the_null_was_never_trained():
    with pytest.raises(ValueError, match=r"conditioner\.dropout"):
        ClassifierFreeGuidance(denoiser(supports_cfg=False), w=1.0)
    ClassifierFreeGuidance(denoiser(supports_cfg=False), w=0.0)


def test_it_is_refused_where_nothing_is_said():
    with pytest.raises(ValueError, match="needs conditions"):
        ClassifierFreeGuidance(denoiser(), w=1.0)(torch.randn(3, 1, 8, 8), T, Condition())


@pytest.mark.parametrize("w", [-0.5, float("nan"), float("inf")])
def test_w_is_a_number_of_at_least_0(w):
    with pytest.raises(ValueError, match="w must"):
        ClassifierFreeGuidance(denoiser(), w=w)


def test_scale_is_1_and_w():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    assert torch.equal(
        ClassifierFreeGuidance(plain, scale=3.0)(x, T, COND).x0,
        ClassifierFreeGuidance(plain, w=2.0)(x, T, COND).x0,
    )
    assert torch.equal(
        ClassifierFreeGuidance(plain, scale=1.0)(x, T, COND).x0, plain(x, T, COND).x0
    ), "1 is off"
    alone = ClassifierFreeGuidance(plain, scale=0.0)(x, T, COND).x0
    torch.testing.assert_close(
        alone, plain(x, T, COND.null()).x0
    )  # 0 is the model without its condition
    ClassifierFreeGuidance(denoiser(supports_cfg=False), scale=1.0)
    with pytest.raises(ValueError, match="scale=2 needs a model"):
        ClassifierFreeGuidance(denoiser(supports_cfg=False), scale=2.0)


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"w": 1.0, "scale": 2.0}, "both set the strength"),
        ({"scale": -1.0}, "scale must"),
        ({"w": 1.0, "rescale": 1.5}, "rescale"),
        ({"w": 1.0, "interval": (5, 5)}, "interval="),
        ({"w": 1.0, "interval": (0, 1001)}, r"0\.\.1000"),
        ({"w": 1.0, "interval": (1, 2, 3)}, "two times"),
    ],
)
def test_what_cannot_be_said_of_strength_is_refused(kwargs, told):
    with pytest.raises(ValueError, match=told):
        ClassifierFreeGuidance(denoiser(), **kwargs)


def test_an_interval_guides_between_its_times_only():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    found = ClassifierFreeGuidance(plain, w=1.0, interval=(11, 500))(x, T, COND).x0
    torch.testing.assert_close(found[[0, 2]], plain(x, T, COND).x0[[0, 2]])
    torch.testing.assert_close(found[1], ClassifierFreeGuidance(plain, w=1.0)(x, T, COND).x0[1])


@pytest.mark.parametrize("rescale", [0.0, 0.4, 1.0])
def test_rescaling_goes_that_part_of_the_way_to_the_contrast_without_guidance(rescale):
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    guided = [
        plain,
        ClassifierFreeGuidance(plain, w=4.0),
        ClassifierFreeGuidance(plain, w=4.0, rescale=rescale),
    ]
    given, loud, found = (each(x, T, COND).x0.flatten(1) for each in guided)
    torch.testing.assert_close(found.std(1), rescale * given.std(1) + (1 - rescale) * loud.std(1))
    torch.testing.assert_close(found / found.std(1, keepdim=True), loud / loud.std(1, keepdim=True))


def test_guidance_of_an_exact_mixture_is_its_conditional_at_0_and_moves_away_from_the_rest():
    process = ForwardProcess(cosine())
    means = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    mixture = Mixture(
        means, torch.tensor([0.5, 0.5], dtype=torch.float64), 0.2, torch.tensor([0, 1])
    )
    exact, x = (
        MixtureDenoiser(process, BetaTilde(), mixture),
        torch.randn(4, 1, dtype=torch.float64),
    )
    cond = Condition(torch.ones(4, dtype=torch.long))
    sampler = DDIM(steps=20)
    assert torch.equal(
        sampler(ClassifierFreeGuidance(exact, w=0.0), x, cond), sampler(exact, x, cond)
    )
    assert (sampler(ClassifierFreeGuidance(exact, w=2.0), x, cond) > sampler(exact, x, cond)).all()


def test_autoguidance_moves_away_from_the_weaker_model():
    strong, weak, x = denoiser(), denoiser(), torch.randn(3, 1, 8, 8)
    a, b = strong(x, T, COND).x0, weak(x, T, COND).x0
    torch.testing.assert_close(Autoguidance(strong, weak, w=1.5)(x, T, COND).x0, a + 1.5 * (a - b))
    assert (
        torch.equal(Autoguidance(strong, weak, w=0.0)(x, T, COND).x0, a)
        and (a - b).abs().max() > 1e-3
    )
    inside = Autoguidance(strong, weak, w=1.5, interval=(11, 500))(x, T, COND).x0
    torch.testing.assert_close(inside[[0, 2]], a[[0, 2]])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shape": (3, 8, 8)}, "data of shape"),
        ({"classes": 4}, "data of classes 4"),
        ({"process": ForwardProcess(cosine(500))}, "T = 500"),
        ({"process": ForwardProcess(linear())}, "another schedule"),
    ],
)
def test_a_weaker_model_of_something_else_is_refused(change, told):
    strong, weak = denoiser(), denoiser()
    for name, value in change.items():
        setattr(weak, name, value)
    with pytest.raises(ValueError, match=f"weak was.*{told}"):
        Autoguidance(strong, weak)


def test_a_weaker_model_with_tokens_of_its_own_is_refused():
    strong, weak = denoiser(), denoiser()
    strong.cond_dims = weak.cond_dims = {"context": 64}
    with pytest.raises(ValueError, match="weak must have the conditioner"):
        Autoguidance(strong, weak)
    strong.cond_dims, weak.cond_dims = {"classes": 3}, {"classes": 3, "image": 1}
    with pytest.raises(ValueError, match="weak must have the conditioner"):
        Autoguidance(strong, weak)


class Spied(Guidance):
    """Remembers what it said."""

    said = ()

    def __call__(self, x_t, t, cond):
        estimate = super().__call__(x_t, t, cond)
        self.said = (*self.said, estimate.x0)
        return estimate


def test_guided_walks_remember_the_guess_before():
    network = UNet(
        (1, 8, 8), classes=3, channels=8, multipliers=(1,), blocks=1, self_conditioning=True
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain = Denoiser(network, ForwardProcess(cosine()), Eps(), BetaTilde(), told(), (1, 8, 8))
    for guided in (
        plain,
        ClassifierFreeGuidance(plain, w=1.0),
        Autoguidance(plain, denoiser(), w=1.0),
    ):
        heard, spied = [], Spied(guided)
        hook = network.register_forward_pre_hook(
            lambda _, inputs, heard=heard: heard.append(inputs[2].previous)
        )
        DDIM(steps=3)(spied, torch.randn(3, 1, 8, 8), COND)
        hook.remove()
        assert [previous is None for previous in heard] == [True, False, False] and spied.said[
            0
        ].abs().max() > 0.1
        for previous, before in zip(heard[1:], spied.said[:2], strict=True):
            for part in previous.split(
                3
            ):  # both halves of a doubled batch hear what was guessed with guidance
                torch.testing.assert_close(part, before.clamp(-1, 1))


def test_dropped_rows_hear_the_null_and_the_others_do_not():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    mixed = Condition(COND.label, dropped=torch.tensor([False, True, False]))
    said = plain(x, T, mixed).x0
    torch.testing.assert_close(said[0], plain(x, T, COND).x0[0])
    torch.testing.assert_close(said[1], plain(x, T, Condition()).x0[1])


def test_conditions_are_dropped_at_their_rate():
    cond = Condition(label=torch.zeros(10_000, dtype=torch.long))
    assert cond.drop(0.2).dropped.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert cond.drop(0).dropped is None and Condition().drop(0.5) == Condition()
