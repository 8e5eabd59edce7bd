"""Latent diffusion: what a bottleneck lets through, what an adversary may touch, and whose latents a run is of."""

import itertools
import urllib.error
from types import SimpleNamespace

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from torch.distributions import Normal, kl_divergence

from ddpm_lab.conditioners.base import DataSpec
from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images, to_batch
from ddpm_lab.diffusion.guidance import Autoguidance
from ddpm_lab.evaluation.analytic_variance import estimate_variance
from ddpm_lab.networks.autoencoder import KL, VQ, Autoencoder, PatchDiscriminator
from ddpm_lab.sampling.codecs import Latents, Pixels
from ddpm_lab.systems.autoencoder_system import total

SPEC = DataSpec((1, 8, 8), 10, 2 / 255, None)


def autoencoder(bottleneck=None, shape=(1, 8, 8), multipliers=(1, 2)):
    found = Autoencoder(shape, bottleneck=bottleneck or KL(2), channels=8, multipliers=multipliers)
    for parameter in found.parameters():  # it starts with residual branches that say nothing
        torch.nn.init.normal_(parameter, std=0.15)
    return found


def system(*overrides):
    config = composed("system=autoencoder", "model.channels=8", *overrides)
    data = build(config, "data")
    return data, build_system(config, data)


def test_the_kl_bottleneck_is_a_normal_with_its_divergence_to_the_standard_one():
    h, eps = torch.randn(3, 4, 5, 5), torch.randn(3, 2, 5, 5)
    passed = KL(latent=2, weight=0.5)(h, lambda _: eps)
    law = Normal(h[:, :2], (h[:, 2:] / 2).exp())
    torch.testing.assert_close(passed.z, law.mean + law.stddev * eps)
    expected = kl_divergence(law, Normal(torch.zeros(()), torch.ones(()))).flatten(1).sum(1)
    torch.testing.assert_close(passed.penalty, 0.5 * expected)


def test_vector_quantisation_takes_the_nearest_and_each_term_moves_its_own_side():
    vq = VQ(latent=2, codes=5, commitment=0.25, weight=3.0)
    h = torch.randn(2, 2, 3, 3, requires_grad=True)
    passed = vq(h)
    for b, i, j in itertools.product(range(2), range(3), range(3)):
        assert passed.codes[b, i, j] == (vq.codebook - h[b, :, i, j]).norm(dim=1).argmin()
    nearest = vq.codebook[passed.codes].movedim(-1, 1)
    torch.testing.assert_close(passed.penalty, 3 * 1.25 * (nearest - h).square().flatten(1).sum(1))
    passed.penalty.sum().backward()
    torch.testing.assert_close(h.grad, 3 * 0.25 * 2 * (h - nearest).detach())
    counts = torch.zeros(5, 2).index_add_(
        0, passed.codes.flatten(), (nearest - h).detach().movedim(1, -1).flatten(0, 2)
    )
    torch.testing.assert_close(vq.codebook.grad, 3 * 2 * counts)

    z = torch.randn(2, 2, 3, 3, requires_grad=True)
    given = vq.restore(z)
    torch.testing.assert_close(given, vq.quantise(z)[1])
    (given * torch.arange(9.0).view(3, 3)).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.arange(9.0).view(3, 3).expand(2, 2, 3, 3)), "straight through"


@pytest.mark.parametrize("bottleneck", [KL(3), VQ(3)])
@pytest.mark.parametrize(
    ("shape", "multipliers", "latent"),
    [
        ((1, 8, 8), (1,), (3, 8, 8)),
        ((1, 8, 8), (1, 2), (3, 4, 4)),
        ((3, 16, 8), (1, 1, 2), (3, 4, 2)),
    ],
)
def test_latents_are_smaller_by_the_factor(bottleneck, shape, multipliers, latent):
    found = autoencoder(bottleneck, shape, multipliers)
    z = found.encode(torch.rand(2, *shape)).z
    assert (
        found.latent_shape == latent
        and z.shape == (2, *latent)
        and found.decode(z).shape == (2, *shape)
    )


def test_every_parameter_is_heard():
    for bottleneck in (KL(2, weight=1.0), VQ(2)):
        found = autoencoder(bottleneck)
        passed = found.encode(torch.rand(8, 1, 8, 8))
        (found.decode(passed.z).square().mean() + passed.penalty.mean()).backward()
        silent = [
            name
            for name, p in found.named_parameters()
            if p.grad is None or not p.grad.abs().max() > 0
        ]
        assert silent == []


def test_it_has_the_published_number_of_parameters():
    """Rombach et al.'s KL-f8: 83.65 M, of which 92 are two 1x1 convolutions around the bottleneck."""
    settings = {"channels": 128, "multipliers": [1, 2, 4, 4], "blocks": 2}
    with torch.device("meta"):
        found = instantiate(composed("model=autoencoder_kl").model, **settings)((3, 256, 256))
    assert sum(p.numel() for p in found.parameters()) == 83_653_863 - 92


def test_the_loss_is_the_mean_difference_of_pixels_and_the_penalty_per_pixel():
    data, model = system("model=autoencoder_vq")
    x = data.test.x0[:4]
    passed = model.autoencoder.encode(x)
    found = model.autoencoder.decode(passed.z)
    parts, reconstruction = model.losses(x)
    torch.testing.assert_close(
        total(parts), (found - x).abs().mean((1, 2, 3)) + passed.penalty / 64
    )
    torch.testing.assert_close(reconstruction, found)


def test_reconstructions_leave_nothing_to_chance_and_training_as_it_was():
    data, model = system()
    x = data.test.x0[:4]
    model.train()
    state = torch.get_rng_state()
    once, codes = model.reconstruct(x)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(once, model.reconstruct(x)[0])
    assert model.autoencoder.training and codes is None and once.abs().max() <= 1
    assert system("model=autoencoder_vq")[1].reconstruct(x)[1].shape == (4, 4, 4)


def test_autoencoder_and_adversary_learn_from_one_loss_and_are_blind_to_each_other():
    data, model = system("system.adversarial=0.7")
    x = data.test.x0[:4]
    parts, found = model.losses(x)
    loss = total(parts).mean()
    both = sum(model._adversary(model.discriminator, x, found, loss))
    evaluator, made = model.discriminator, list(model.autoencoder.parameters())
    last = model.autoencoder.last.weight

    def gradients(value, parameters):
        return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)

    hinge = ((1 - evaluator(x)).relu().mean() + (1 + evaluator(found.detach())).relu().mean()) / 2
    for mine, wanted in zip(
        gradients(both, [*evaluator.parameters()]),
        gradients(hinge, [*evaluator.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)
    fooled = -evaluator(found).mean()
    weight = gradients(loss, [last])[0].norm() / (gradients(fooled, [last])[0].norm() + 1e-4)
    for mine, wanted in zip(
        gradients(both, made), gradients(0.7 * weight.detach() * fooled, made), strict=True
    ):
        assert (mine is None) == (wanted is None)
        if mine is not None:
            torch.testing.assert_close(mine, wanted)
    assert gradients(both, [last])[0].abs().max() > 0


def test_patches_are_judged():
    assert PatchDiscriminator(3, 8, 2)(torch.rand(2, 3, 32, 16)).shape == (2, 1, 8, 4)


@pytest.mark.parametrize("weak", ["pixels", "another"])
def test_a_guide_that_lives_in_another_space_is_refused(weak):
    def model(codec):
        config = composed("model.channels=8", "prediction=v", "sampler.clip=null")
        data = build(config, "data")
        return build_system(config, data, codec=codec)

    f1 = [Latents(SPEC, autoencoder(KL(1), multipliers=(1,))) for _ in range(2)]
    own = model(lambda spec: f1[0])
    with pytest.raises(
        ValueError, match=r"weak was trained in (pixels|latents .*), and this model in latents"
    ):
        Autoguidance(
            own.denoiser, model(Pixels if weak == "pixels" else lambda spec: f1[1]).denoiser
        )
    Autoguidance(own.denoiser, model(lambda spec: f1[0]).denoiser)


def test_the_analytic_variance_is_that_of_the_latents_that_were_trained_on():
    """Of a network that says 0 the error is the latents' second moment: 1, their own noise included."""
    config = composed(
        "model.channels=8",
        "prediction=x0",
        "sampler.clip=null",
        "schedule.steps=20",
        "sampler.steps=3",
    )
    data = build(config, "data")
    noisy = autoencoder()
    torch.nn.init.zeros_(noisy.quant_conv[-1].weight[2:].data)  # the log variance: 1 at every place
    model = build_system(config, data, codec=lambda spec: Latents(spec, noisy))
    model.codec.measure(data.train)
    found = estimate_variance(model, model.denoiser, data, samples=40).mse[1:]
    assert found.mean().item() == pytest.approx(1, abs=0.03)


def test_the_adversary_waits_for_its_step(tmp_path):
    from lightning import Trainer

    seen = []
    data, model = system("system.adversarial=1", "system.start=3", "data.batch_size=4")
    model._adversary = lambda evaluator, x, found, loss: (
        seen.append(model.trainer.global_step) or loss.detach() * 0,
        loss.detach() * 0,
    )
    Trainer(
        accelerator="cpu",
        max_steps=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        limit_val_batches=0,
    ).fit(model, data)
    assert seen == [3, 4, 5]


def test_weights_of_lpips_that_cannot_be_had_are_named_before_training(monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", offline)
    with pytest.raises(
        ValueError,
        match=r"system\.perceptual=0\.1 needs the weights of VGG.*no route.*perceptual=0",
    ):
        system("system.perceptual=0.1", "data=synthetic")


def test_lpips_is_added_in_three_channels_and_is_in_no_checkpoint(monkeypatch):
    class Distance(torch.nn.Conv2d):
        def forward(self, x, found):
            assert x.shape == found.shape == (4, 3, 16, 16) and found.abs().max() <= 1
            return (x - found).square().mean()

    monkeypatch.setattr(
        "ddpm_lab.systems.autoencoder_system._lpips", lambda weight: Distance(1, 1, 1)
    )
    data, model = system("system.perceptual=2", "data=synthetic", "data.channels=1")
    x = data.test.x0[:4]
    parts, found = model.losses(x)
    assert not any("lpips" in name for name in model.state_dict())
    torch.testing.assert_close(parts["lpips"], 2 * (x - found.clamp(-1, 1)).square().mean())
    torch.testing.assert_close(total(parts), parts["l1"] + parts["penalty"] + parts["lpips"])


@pytest.mark.slow
def test_the_real_lpips_runs_on_the_smallest_images_that_are_let_in(monkeypatch):
    """With random weights in place of those that torchvision downloads."""
    import torchvision

    vgg16 = torchvision.models.vgg16
    monkeypatch.setattr("torchvision.models.vgg16", lambda **kwargs: vgg16(weights=None))
    data, model = system("system.perceptual=1", "data=synthetic")
    parts, found = model.losses(data.test.x0[:2])
    found.retain_grad()
    parts["lpips"].sum().backward()
    assert parts["lpips"] > 0 and found.grad.abs().max() > 0


def test_each_side_of_an_adversary_is_clipped_alone():
    _, model = system("system.adversarial=1")
    for scale, part in ((0.001, model.autoencoder), (100.0, model.discriminator)):
        for parameter in part.parameters():
            parameter.grad = torch.full_like(
                parameter, scale / sum(p.numel() for p in part.parameters()) ** 0.5
            )
    model._trainer = SimpleNamespace(global_step=0)
    model.configure_gradient_clipping(torch.optim.SGD(model.parameters(), lr=1.0), 1.0)
    norms = [
        sum(p.grad.square().sum() for p in part.parameters()).sqrt().item()
        for part in (model.autoencoder, model.discriminator)
    ]
    assert norms == pytest.approx([0.001, 1.0], rel=1e-3)


def latents(origin="", seed=3):
    torch.manual_seed(seed)
    return Latents(SPEC, autoencoder(), origin)


def test_latents_have_mean_0_and_variance_1_over_the_training_split():
    data = build(composed(), "data")
    codec = latents()
    (frozen,) = codec._frozen
    with torch.no_grad():
        frozen.quant_conv[-1].weight.mul_(3)
    assert (codec.encode(data.train.x0).std((0, 2, 3)) - 1).abs().max() > 0.5, (
        "as the autoencoder makes them, not"
    )
    codec.measure(data.train)
    z = codec.encode(data.train.x0)
    assert z.shape == (1437, *codec.shape) == (1437, 2, 4, 4)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=0.03)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), rtol=0, atol=0.03)
    exact = frozen.encode(data.test.x0, torch.zeros_like).z
    torch.testing.assert_close(
        codec.decode(codec.encode(data.test.x0, torch.zeros_like)), frozen.decode(exact)
    )


def test_a_run_holds_the_scale_and_not_the_autoencoder():
    codec = latents("runs/a")
    codec.measure(build(composed(), "data").train)
    state = codec.state_dict()
    assert {*state} == {"mean", "std", "_extra_state"} and not list(codec.parameters())
    same = latents("runs/a")
    same.load_state_dict(state)
    assert torch.equal(same.mean, codec.mean) and torch.equal(same.std, codec.std)
    with pytest.raises(
        ValueError, match="run=runs/b has changed since this model was trained in its latents"
    ):
        latents("runs/b", seed=4).load_state_dict(state)
    assert codec.space == same.space != latents(seed=4).space


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_latents_that_are_no_numbers_or_say_nothing_are_refused(value):
    codec = latents("runs/a")
    (frozen,) = codec._frozen
    for parameter in frozen.quant_conv.parameters():
        torch.nn.init.constant_(parameter, value)
    codec.encode = lambda x: frozen.encode(x, torch.zeros_like).z
    with pytest.raises(
        ValueError, match=r"run=runs/a makes latents whose channels have standard deviations \["
    ):
        codec.measure(Images(torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8), None))


def test_pixels_are_left_as_they_are():
    x, codec = torch.rand(2, 1, 8, 8), Pixels(SPEC)
    assert (
        codec.encode(x) is x
        and codec.decode(x) is x
        and (codec.shape, codec.bin_width) == ((1, 8, 8), 2 / 255)
    )
    assert not codec.state_dict()


def test_diffusion_works_on_what_the_codec_makes():
    config = composed("model.channels=8", "prediction=v", "sampler.clip=null", "sampler.steps=3")
    data = build(config, "data")
    torch.manual_seed(0)
    model = build_system(config, data, codec=lambda spec: Latents(spec, autoencoder()))
    model.codec.measure(data.train)
    given = to_batch(data.test.select(slice(4)))
    torch.manual_seed(1)
    draw = model.noise_batch(given, torch.full((4,), 300))
    torch.manual_seed(1)
    torch.testing.assert_close(draw.x0, model.codec.encode(given["x0"]))
    assert draw.x_t.shape == draw.eps.shape == (4, 2, 4, 4) and draw.bin_width is None
    assert model.losses(given, torch.full((4,), 300)).shape == (4,)
    (made,) = model.sample(model.denoiser, 3, conditions=model.make_conditions(3))
    assert made.pixels.shape == (3, 1, 8, 8)
    z = torch.randn(3, 2, 4, 4)
    expected = ((model.codec.decode(z).clamp(-1, 1) + 1) * 127.5).round().byte()
    assert torch.equal(model.to_images(z, None).pixels, expected)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: KL(latent=0), "latent must be at least 1"),
        (lambda: KL(weight=-1.0), "weight must be at least 0"),
        (lambda: VQ(codes=0), "codes must be at least 1"),
        (lambda: VQ(commitment=-1.0), "commitment must be at least 0"),
        (lambda: autoencoder(shape=(2,)), "shape of the data must be that of images"),
        (lambda: autoencoder(multipliers=()), "multipliers must hold"),
        (
            lambda: autoencoder(multipliers=(1, 1, 1, 1, 1)),
            "makes latents 16 times smaller, and 8x8 cannot be",
        ),
        (
            lambda: Latents(DataSpec((3, 8, 8), None, 2 / 255, None), autoencoder(), "a"),
            r"run=a was trained on data of shape \(1, 8, 8\), and this data has \(3, 8, 8\)",
        ),
        (lambda: system("data=toy", "model=autoencoder_kl"), "system=autoencoder is for images"),
        (lambda: system("model=unet"), "model is not an autoencoder"),
        (lambda: system("model=classifier"), "model is not an autoencoder"),
        (
            lambda: system("system.start=-1"),
            r"system.start must be a number of at least 0 \(got -1\)",
        ),
        (
            lambda: system("system.adversarial=nan"),
            "system.adversarial must be a number of at least 0",
        ),
        (
            lambda: system("system.perceptual=1"),
            "system.perceptual=1 looks at images of at least 16x16, .*1x8x8",
        ),
        (
            lambda: system("system.adversarial=1", "data.resolution=2"),
            "system.adversarial=1 looks at images of at",
        ),
        (lambda: autoencoder(multipliers=(0.01, 1)), "leave a level without any"),
    ],
)
def test_what_cannot_be_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()
