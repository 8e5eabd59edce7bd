"""Cascades: what one stage hands to the next, and which stages fit."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import composed

from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images
from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser
from ddpm_lab.diffusion.samplers import DDPM
from ddpm_lab.networks.autoencoder import KL, Autoencoder
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.sampling.codecs import Latents

TINY = ("model.channels=8", "model.multipliers=[1]", "sampler.steps=4")


def system(*overrides):
    config = composed(*TINY, *overrides)
    data = build(config, "data")
    made = build_system(config, data).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def stages(*overrides):
    return [system("data.resolution=4"), system("conditioner=low_res", *overrides)]


def draw(cascade, count, **how):
    drawn, asked = cascade.lead(cascade.stages[0].ask(count), count, **how)
    last = cascade.stages[-1]
    return drawn, torch.cat(
        [part.pixels for part in last.sample(last.denoiser, count, asked=asked, **how)]
    )


def test_a_cascade_is_its_stages_one_after_another():
    first, second = stages("conditioner.level=0.3")
    (small,), large = draw(Cascade([first, second]), 6, seed=3, batch_size=256)
    assert small.pixels.shape == (6, 1, 4, 4) and small.labels.tolist() == [0, 1, 2, 3, 4, 5]
    (alone,) = first.sample(first.denoiser, 6, asked=first.ask(6), seed=3)
    assert torch.equal(small.pixels, alone.pixels)
    (enlarged,) = second.sample(second.denoiser, 6, asked=second.ask(6, given=alone), seed=3)
    assert torch.equal(large, enlarged.pixels)
    assert large.float().std() > 10


def test_three_stages_chain():
    larger = ("data=synthetic", "conditioner=low_res", "conditioner.label=false")
    three = [
        system("data=synthetic", "data.resolution=4"),
        *(system(*larger, f"data.resolution={side}") for side in (8, 16)),
    ]
    drawn, large = draw(Cascade(three), 2, seed=0, batch_size=2)
    assert [split.pixels.shape[2] for split in drawn] == [4, 8] and large.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("truncated", [False, True])
def test_one_seed_one_picture_whatever_the_batch_size(truncated):
    cascade = Cascade(stages("conditioner.level=0.4", f"conditioner.truncated={truncated}"))
    made = {size: draw(cascade, 7, seed=4, batch_size=size)[1].int() for size in (2, 7)}
    assert (made[2] - made[7]).abs().max() <= 1 and made[7].float().std() > 10


def test_no_stage_draws_from_the_numbers_of_another():
    first, second = stages()
    small = Images(torch.zeros(500, 1, 4, 4).byte(), first.ask(500)["label"])
    starts = []
    for stage, asked in ((first, first.ask(500)), (second, second.ask(500, given=small))):
        _, x = next(stage.walk(stage.denoiser, range(500), asked, seed=0))
        starts.append(x.flatten(1)[:, :16])
    assert (starts[0] * starts[1]).mean(0).abs().max() < 5 / 500**0.5


@pytest.mark.parametrize(
    ("schedule", "level"),
    [
        ("cosine", 0.0),
        ("cosine", 0.2),
        ("cosine", 0.5),
        ("cosine", 1.0),
        ("geometric", 0.5),
        ("cosine", 0.317),
    ],
)
def test_truncated_the_stage_before_hands_over_the_noisy_picture_at_that_level(schedule, level):
    """Of data N(m, s^2), under the closed-form denoiser, the law is known: N(cos m, cos^2 s^2 + sin^2)."""
    first = system("data.resolution=4", f"schedule={schedule}")
    second = system(
        "conditioner=low_res",
        "conditioner.highest=1",
        f"conditioner.level={level}",
        "conditioner.truncated=true",
    )
    mean, std = torch.full((16,), 0.4, dtype=torch.float64), 0.3
    exact = GaussianDenoiser(
        first.process, first.denoiser.variance, mean, torch.eye(16, dtype=torch.float64) * std**2
    )
    exact.classes = 10
    first.draw_with(DDPM(steps=200, clip=None), lambda denoiser: exact)
    count = 1000
    _, asked = Cascade([first, second]).lead(first.ask(count), count, seed=0, batch_size=500)
    found = asked["level"][0].item()
    close = (
        0.0006 if schedule == "cosine" else 0.005
    )  # half a step of the whole table, not of the chain
    assert found == pytest.approx(level, abs=close) and (asked["level"] == found).all()
    x, angle = asked["low_res"].double().flatten(), math.pi / 2 * found
    law = math.cos(angle) * 0.4, math.hypot(math.cos(angle) * std, math.sin(angle))
    assert x.mean().item() == pytest.approx(law[0], abs=5 * law[1] / 16000**0.5)
    assert x.std().item() == pytest.approx(law[1], rel=0.03)


def test_a_truncated_chain_ends_at_its_time_between_two_stops():
    first = system("data.resolution=4")
    walk = first.walk(first.denoiser, [0], first.ask(1), seed=0, until=317)
    assert [t for t, _ in walk] == [1000, 667, 334, 317]
    assert first.sampler.times(1000) == [1000, 667, 334, 1, 0] and first.sampler.times(
        1000, 1000
    ) == [1000]


@pytest.mark.parametrize(
    ("truncated", "level", "steps"),
    [(False, 0.5, 8), (True, 0.2, 7), (True, 0.0, 8), (True, 1.0, 4)],
)
def test_one_bar_hears_every_step(truncated, level, steps):
    class Bar:
        heard = 0

        def update(self, by):
            self.heard += by

    words = (
        "conditioner.highest=1",
        f"conditioner.level={level}",
        f"conditioner.truncated={truncated}",
    )
    cascade, bar = Cascade(stages(*words)), Bar()
    first, last = cascade.stages
    _, asked = cascade.lead(first.ask(5), 5, seed=0, batch_size=2, bar=bar)
    list(last.sample(last.denoiser, 5, asked=asked, batch_size=2, bar=bar))
    assert bar.heard == cascade.steps(5, 2) == 3 * steps


def test_stages_draw_in_their_own_ways_and_the_protocol_says_so():
    first, second = stages("conditioner.level=0.25")
    first.draw_with(replace(first.sampler, steps=2), first.guidance)
    cascade = Cascade([first, second])
    protocol = cascade.protocol()
    assert protocol["steps"] == 4 and protocol["level"] == 0.25 and protocol["truncated"] is False
    assert [stage["steps"] for stage in protocol["after"]] == [2] and cascade.steps(3, 8) == 6
    assert "after" not in Cascade([second]).protocol()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            [],
            ["conditioner=low_res"],
            "stage 1 draws pictures of 1x8x8, and stage 2 enlarges those of 1x4x4 to 1x8x8; they must agree",
        ),
        (
            ["data.resolution=4"],
            [],
            "stage 2 enlarges nothing; it must be trained with conditioner=low_res",
        ),
        (
            ["data.resolution=4", "conditioner=none"],
            ["conditioner=low_res"],
            "no labels are known before stage 2, which must hear one of 10; train that with conditioner.label=false",
        ),
        (
            ["data=synthetic", "data.resolution=8"],
            ["conditioner=low_res"],
            "stage 1 draws pictures of 3x8x8",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused(before, after, told):
    with pytest.raises(ValueError, match=told):
        Cascade([system(*before), system(*after)])


def test_a_label_is_passed_on_by_a_stage_that_does_not_hear_it():
    words = ("data=synthetic", "conditioner=low_res")
    three = [
        system("data=synthetic", "data.resolution=4"),
        system(*words, "data.resolution=8", "conditioner.label=false"),
        system(*words),
    ]
    _, asked = Cascade(three).lead(three[0].ask(3, label=7), 3, seed=0, batch_size=2)
    assert asked["label"].tolist() == [7, 7, 7]


def test_noisy_latents_are_no_pictures():
    def latents(spec):
        return Latents(
            spec, Autoencoder(spec.shape, bottleneck=KL(1), channels=8, multipliers=(1,))
        )

    config = composed(*TINY, "data.resolution=4", "sampler.clip=null")
    data = build(config, "data")
    first = build_system(config, data, codec=latents)
    Cascade([first, system("conditioner=low_res")])
    with pytest.raises(
        ValueError, match=r"truncated=true hands over noisy pictures, and stage 1 .* draws latents"
    ):
        Cascade([first, system("conditioner=low_res", "conditioner.truncated=true")])


def test_a_text_cannot_tell_a_later_stage_the_class_that_it_must_hear():
    first = system("data.resolution=4", "conditioner=text", "model=unet_cross")
    asked = first.ask(2, text="a seven")
    with pytest.raises(
        ValueError, match="text= says no class, which stage 2 of the cascade must hear"
    ):
        Cascade([first, system("conditioner=low_res")]).check(asked)
    deaf = Cascade([first, system("conditioner=low_res", "conditioner.label=false")])
    deaf.check(asked)
    assert {*deaf.lead(asked, 2, seed=0, batch_size=2)[1]} == {"low_res"}
