"""Guidance against its formula, and its limits."""

import pytest
import torch

from ddpm_lab.diffusion.condition import Condition
from ddpm_lab.diffusion.denoiser import Denoiser, Estimate
from ddpm_lab.diffusion.guidance import ClassifierFree
from ddpm_lab.diffusion.predictions import Eps
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.schedules import cosine
from ddpm_lab.diffusion.variances import BetaTilde, LearnedRange
from ddpm_lab.networks.unet import UNet

COND = Condition(label=torch.tensor([0, 1, 2]))
T = torch.tensor([10, 500, 1000])


def denoiser(knows_null=True):
    network = UNet((1, 8, 8), classes=3, channels=8, multipliers=(1,), blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(network, ForwardProcess(cosine()), Eps(), BetaTilde(), knows_null)


def test_w_0_is_no_guidance_bit_for_bit():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    assert torch.equal(ClassifierFree(plain, w=0)(x, T, COND).x0, plain(x, T, COND).x0)


def test_it_is_ho_and_salimans_in_eps():
    plain, x = denoiser().double(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    given, absent = (plain.answer(x, T, cond).own for cond in (COND, COND.null()))
    guided = plain.process.eps(x, ClassifierFree(plain, w=2.0)(x, T, COND).x0, T)
    torch.testing.assert_close(guided, 3 * given - 2 * absent)
    assert (given - absent).abs().max() > 1e-3


def test_a_learned_variance_is_that_of_the_given_condition():
    network = UNet((1, 8, 8), outputs=2, classes=3, channels=8, multipliers=(1,), blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain = Denoiser(network, ForwardProcess(cosine()), Eps(), LearnedRange(), knows_null=True)
    x = torch.randn(3, 1, 8, 8)
    given, absent = plain(x, T, COND), plain(x, T, COND.null())
    guess = ClassifierFree(plain, w=2.0)(x, T, COND)
    torch.testing.assert_close(guess.spread, given.spread)
    assert (given.spread - absent.spread).abs().max() > 1e-3
    torch.testing.assert_close(ClassifierFree(plain, w=2.0).reverse(guess, x, T, T - 1).log_var,
                               plain.reverse(given, x, T, T - 1).log_var)  # fmt: skip


def test_it_calls_the_network_once_with_twice_the_batch():
    sizes = []

    class Spy:
        process, knows_null, reverse = None, True, None

        def __call__(self, x_t, t, cond):
            sizes.append((len(x_t), len(t), cond.dropped.tolist()))
            return Estimate(x_t)

    ClassifierFree(Spy(), w=1.0)(torch.randn(3, 1, 8, 8), T, COND)
    assert sizes == [(6, 6, [False] * 3 + [True] * 3)]


def test_it_is_refused_where_the_null_was_never_trained():
    with pytest.raises(ValueError, match=r"conditioner\.dropout"):
        ClassifierFree(denoiser(knows_null=False), w=1.0)
    ClassifierFree(denoiser(knows_null=False), w=0.0)


def test_it_is_refused_where_nothing_is_said():
    with pytest.raises(ValueError, match="needs a condition"):
        ClassifierFree(denoiser(), w=1.0)(torch.randn(3, 1, 8, 8), T, Condition())


@pytest.mark.parametrize("w", [-0.5, float("nan"), float("inf")])
def test_w_is_a_number_of_at_least_0(w):
    with pytest.raises(ValueError, match="w must"):
        ClassifierFree(denoiser(), w=w)


def test_dropped_rows_hear_the_null_and_the_others_do_not():
    plain, x = denoiser(), torch.randn(3, 1, 8, 8)
    mixed = Condition(COND.label, torch.tensor([False, True, False]))
    said = plain(x, T, mixed).x0
    torch.testing.assert_close(said[0], plain(x, T, COND).x0[0])
    torch.testing.assert_close(said[1], plain(x, T, Condition()).x0[1])


def test_conditions_are_dropped_at_their_rate():
    cond = Condition(label=torch.zeros(10_000, dtype=torch.long))
    assert cond.drop(0.2).dropped.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert cond.drop(0).dropped is None and Condition().drop(0.5) == Condition()
