"""Cascades: conditions passed between stages, and compatibility of stages."""

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
    module = build_system(config, data).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.pipeline


def stages(*overrides):
    return [system("data.resolution=4"), system("conditioner=low_res", *overrides)]


def sample(cascade, count, **options):
    earlier, conditions = cascade.sample_earlier_stages(
        cascade.stages[0].make_conditions(count), count, **options
    )
    last = cascade.stages[-1]
    return earlier, torch.cat(
        [part.pixels for part in last.sample(count, conditions=conditions, **options)]
    )


def test_cascade_equals_stages_in_sequence():
    first, second = stages("conditioner.noise_level=0.3")
    (small,), large = sample(Cascade([first, second]), 6, seed=3, batch_size=256)
    assert small.pixels.shape == (6, 1, 4, 4) and small.labels.tolist() == [0, 1, 2, 3, 4, 5]
    (single,) = first.sample(6, conditions=first.make_conditions(6), seed=3)
    assert torch.equal(small.pixels, single.pixels)
    (enlarged,) = second.sample(6, conditions=second.make_conditions(6, images=single), seed=3)
    assert torch.equal(large, enlarged.pixels)
    assert large.float().std() > 10


def test_three_stages_chain():
    larger = ("data=synthetic", "conditioner=low_res", "conditioner.label=false")
    three = [
        system("data=synthetic", "data.resolution=4"),
        *(system(*larger, f"data.resolution={side}") for side in (8, 16)),
    ]
    earlier, large = sample(Cascade(three), 2, seed=0, batch_size=2)
    assert [split.pixels.shape[2] for split in earlier] == [4, 8] and large.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("truncated_conditioning", [False, True])
def test_cascade_samples_do_not_depend_on_batch_size(truncated_conditioning):
    cascade = Cascade(
        stages(
            "conditioner.noise_level=0.4",
            f"conditioner.truncated_conditioning={truncated_conditioning}",
        )
    )
    images = {size: sample(cascade, 7, seed=4, batch_size=size)[1].int() for size in (2, 7)}
    assert (images[2] - images[7]).abs().max() <= 1 and images[7].float().std() > 10


def test_stages_have_independent_noise():
    first, second = stages()
    small = Images(torch.zeros(500, 1, 4, 4).byte(), first.make_conditions(500)["label"])
    starts = []
    for stage, conditions in (
        (first, first.make_conditions(500)),
        (second, second.make_conditions(500, images=small)),
    ):
        _, x = next(stage.trajectory(range(500), conditions, seed=0))
        starts.append(x.flatten(1)[:, :16])
    assert (starts[0] * starts[1]).mean(0).abs().max() < 5 / 500**0.5


@pytest.mark.parametrize(
    ("schedule", "level"),
    [
        ("cosine", 0.0),
        ("cosine", 0.317),
        ("geometric", 0.5),
        *(pytest.param("cosine", level, marks=pytest.mark.nightly) for level in (0.2, 0.5, 1.0)),
    ],
)
def test_truncated_conditioning_passes_exact_marginal(schedule, level):
    """Compare with the marginal N(cos m, cos^2 s^2 + sin^2) of data N(m, s^2).

    The denoiser is the closed form.
    """
    first = system("data.resolution=4", f"schedule={schedule}")
    second = system(
        "conditioner=low_res",
        "conditioner.max_noise_level=1",
        f"conditioner.noise_level={level}",
        "conditioner.truncated_conditioning=true",
    )
    mean, std = torch.full((16,), 0.4, dtype=torch.float64), 0.3
    exact = GaussianDenoiser(
        first.process, first.denoiser.variance, mean, torch.eye(16, dtype=torch.float64) * std**2
    )
    exact.classes = 10
    first.set_sampler(DDPM(steps=200, clip=None), lambda denoiser: exact)
    count = 1000
    _, conditions = Cascade([first, second]).sample_earlier_stages(
        first.make_conditions(count), count, seed=0, batch_size=500
    )
    actual = conditions["noise_level"][0].item()
    # Half a step of the full schedule, not of the sampler's timesteps.
    tolerance = 0.0006 if schedule == "cosine" else 0.005
    assert actual == pytest.approx(level, abs=tolerance)
    assert (conditions["noise_level"] == actual).all()
    x, angle = conditions["low_res"].double().flatten(), math.pi / 2 * actual
    marginal = math.cos(angle) * 0.4, math.hypot(math.cos(angle) * std, math.sin(angle))
    assert x.mean().item() == pytest.approx(marginal[0], abs=5 * marginal[1] / 16000**0.5)
    assert x.std().item() == pytest.approx(marginal[1], rel=0.03)


def test_truncated_trajectory_ends_between_timesteps():
    first = system("data.resolution=4")
    trajectory = first.trajectory([0], first.make_conditions(1), seed=0, t_end=317)
    assert [t for t, _ in trajectory] == [1000, 667, 334, 317]
    assert first.sampler.timesteps(first.process) == [1000, 667, 334, 1, 0]
    assert first.sampler.timesteps(first.process, 1000) == [1000]


@pytest.mark.parametrize(
    ("truncated_conditioning", "level", "steps"),
    [(False, 0.5, 8), (True, 0.2, 7), (True, 0.0, 8), (True, 1.0, 4)],
)
def test_progress_bar_counts_every_step(truncated_conditioning, level, steps):
    class Bar:
        steps = 0

        def update(self, by):
            self.steps += by

    overrides = (
        "conditioner.max_noise_level=1",
        f"conditioner.noise_level={level}",
        f"conditioner.truncated_conditioning={truncated_conditioning}",
    )
    cascade, bar = Cascade(stages(*overrides)), Bar()
    first, last = cascade.stages
    _, conditions = cascade.sample_earlier_stages(
        first.make_conditions(5), 5, seed=0, batch_size=2, bar=bar
    )
    list(last.sample(5, conditions=conditions, batch_size=2, bar=bar))
    assert bar.steps == cascade.num_steps(5, 2) == 3 * steps


def test_protocol_lists_sampler_of_each_stage():
    first, second = stages("conditioner.noise_level=0.25")
    first.set_sampler(replace(first.sampler, steps=2), first.guidance)
    cascade = Cascade([first, second])
    protocol = cascade.protocol()
    assert (
        protocol["steps"] == 4
        and protocol["noise_level"] == 0.25
        and protocol["truncated_conditioning"] is False
    )
    assert [stage["steps"] for stage in protocol["after"]] == [2] and cascade.num_steps(3, 8) == 6
    assert "after" not in Cascade([second]).protocol()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            [],
            ["conditioner=low_res"],
            "stage 1 samples images of 1x8x8, but stage 2 upsamples 1x4x4 to 1x8x8; the "
            "sizes must agree",
        ),
        (
            ["data.resolution=4"],
            [],
            "stage 2 does not upsample; it must be trained with conditioner=low_res",
        ),
        (
            ["data.resolution=4", "conditioner=none"],
            ["conditioner=low_res"],
            "stage 1 has no labels, but stage 2 needs one of 10; train stage 2 with "
            "conditioner.label=false",
        ),
        (
            ["data=synthetic", "data.resolution=8"],
            ["conditioner=low_res"],
            "stage 1 samples images of 3x8x8",
        ),
    ],
)
def test_incompatible_stages_are_rejected(first, second, message):
    with pytest.raises(ValueError, match=message):
        Cascade([system(*first), system(*second)])


def test_labels_pass_through_unconditional_stage():
    overrides = ("data=synthetic", "conditioner=low_res")
    three = [
        system("data=synthetic", "data.resolution=4"),
        system(*overrides, "data.resolution=8", "conditioner.label=false"),
        system(*overrides),
    ]
    _, conditions = Cascade(three).sample_earlier_stages(
        three[0].make_conditions(3, label=7), 3, seed=0, batch_size=2
    )
    assert conditions["label"].tolist() == [7, 7, 7]


def test_truncated_conditioning_rejects_latents():
    def latents(spec):
        return Latents(
            spec, Autoencoder(spec.shape, bottleneck=KL(1), channels=8, multipliers=(1,))
        )

    config = composed(*TINY, "data.resolution=4", "sampler.clip=null")
    data = build(config, "data")
    first = build_system(config, data, codec=latents).pipeline
    Cascade([first, system("conditioner=low_res")])
    with pytest.raises(
        ValueError,
        match=r"truncated_conditioning=true passes on noisy images, but stage 1 .* samples latents",
    ):
        Cascade([first, system("conditioner=low_res", "conditioner.truncated_conditioning=true")])


def test_text_conditions_lack_labels_of_later_stages():
    first = system("data.resolution=4", "conditioner=text", "model=unet_cross")
    conditions = first.make_conditions(2, text="a seven")
    with pytest.raises(
        ValueError, match="text= sets no label, but stage 2 of the cascade needs one"
    ):
        Cascade([first, system("conditioner=low_res")]).check_conditions(conditions)
    unlabelled = Cascade([first, system("conditioner=low_res", "conditioner.label=false")])
    unlabelled.check_conditions(conditions)
    assert {*unlabelled.sample_earlier_stages(conditions, 2, seed=0, batch_size=2)[1]} == {
        "low_res"
    }
