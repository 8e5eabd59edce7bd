"""Latent diffusion: bottlenecks, autoencoder losses, the discriminator, codecs and their errors."""

import itertools
import urllib.error
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate
from torch.distributions import Normal, kl_divergence

from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images, to_batch
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.diffusion.guidance import Autoguidance
from ddpm_lab.evaluation.analytic_variance import estimate_variance
from ddpm_lab.networks.autoencoder import KL, VQ, Autoencoder, PatchDiscriminator
from ddpm_lab.sampling.codecs import Latents, Pixels
from ddpm_lab.systems.autoencoder_system import total
from ddpm_lab.systems.base import DataModule

SPEC = DataSpec((1, 8, 8), 10, 2 / 255, None)


def make_autoencoder(bottleneck=None, shape=(1, 8, 8), multipliers=(1, 2)):
    options = {"bottleneck": bottleneck or KL(2), "channels": 8, "multipliers": multipliers}
    autoencoder = Autoencoder(shape, **options)
    for parameter in autoencoder.parameters():  # residual branches start as 0
        torch.nn.init.normal_(parameter, std=0.15)
    return autoencoder


def make_latents(origin="", seed=3):
    torch.manual_seed(seed)
    return Latents(SPEC, make_autoencoder(), origin)


@cache
def digits():
    return build(composed(), "data")


def autoencoder_system(*overrides):
    config = composed("system=autoencoder", "model.channels=8", *overrides)
    data = build(config, "data")
    return data, build_system(config, data)


def diffusion_system(codec, *overrides):
    options = ("model.channels=8", "sampler.clip=null", "sampler.steps=3", *overrides)
    config = composed(*options)
    return build_system(config, build(config, "data"), codec=codec)


def test_kl_bottleneck_is_a_normal_with_its_divergence():
    h, eps = torch.randn(3, 4, 5, 5), torch.randn(3, 2, 5, 5)
    output = KL(latent=2, weight=0.5)(h, lambda _: eps)
    normal = Normal(h[:, :2], (h[:, 2:] / 2).exp())
    torch.testing.assert_close(output.z, normal.mean + normal.stddev * eps)
    kl = kl_divergence(normal, Normal(torch.zeros(()), torch.ones(()))).flatten(1).sum(1)
    torch.testing.assert_close(output.penalty, 0.5 * kl)


def test_vq_takes_the_nearest_code_and_each_loss_term_moves_one_side():
    vq = VQ(latent=2, codes=5, commitment=0.25, weight=3.0)
    h = torch.randn(2, 2, 3, 3, requires_grad=True)
    output = vq(h)
    for b, i, j in itertools.product(range(2), range(3), range(3)):
        assert output.codes[b, i, j] == (vq.codebook - h[b, :, i, j]).norm(dim=1).argmin()
    nearest = vq.codebook[output.codes].movedim(-1, 1)
    penalty = 3 * 1.25 * (nearest - h).square().flatten(1).sum(1)
    torch.testing.assert_close(output.penalty, penalty)
    output.penalty.sum().backward()
    torch.testing.assert_close(h.grad, 3 * 0.25 * 2 * (h - nearest).detach())
    differences = (nearest - h).detach().movedim(1, -1).flatten(0, 2)
    sums = torch.zeros(5, 2).index_add_(0, output.codes.flatten(), differences)
    torch.testing.assert_close(vq.codebook.grad, 3 * 2 * sums)


def test_vq_passes_gradients_straight_through():
    vq, z = VQ(latent=2, codes=5), torch.randn(2, 2, 3, 3, requires_grad=True)
    restored = vq.restore(z)
    torch.testing.assert_close(restored, vq.quantize(z)[1])
    weight = torch.arange(9.0).view(3, 3)
    (restored * weight).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, weight.expand(2, 2, 3, 3))


@pytest.mark.parametrize("bottleneck", [KL(3), VQ(3)])
@pytest.mark.parametrize(
    ("shape", "multipliers", "latent_shape"),
    [
        ((1, 8, 8), (1,), (3, 8, 8)),
        ((1, 8, 8), (1, 2), (3, 4, 4)),
        ((3, 16, 8), (1, 1, 2), (3, 4, 2)),
    ],
)
def test_latents_are_smaller_by_the_factor(bottleneck, shape, multipliers, latent_shape):
    autoencoder = make_autoencoder(bottleneck, shape, multipliers)
    z = autoencoder.encode(torch.rand(2, *shape)).z
    assert autoencoder.latent_shape == latent_shape and z.shape == (2, *latent_shape)
    assert autoencoder.decode(z).shape == (2, *shape)


@pytest.mark.parametrize("bottleneck", [KL(2, weight=1.0), VQ(2)])
def test_autoencoder_uses_every_parameter(bottleneck):
    autoencoder = make_autoencoder(bottleneck)
    encoding = autoencoder.encode(torch.rand(8, 1, 8, 8))
    loss = autoencoder.decode(encoding.z).square().mean() + encoding.penalty.mean()
    loss.backward()
    for name, parameter in autoencoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_autoencoder_has_the_published_number_of_parameters():
    """Rombach et al.'s KL-f8, 83.65 M, without the 92 of two 1x1 convolutions at the bottleneck."""
    options = {"channels": 128, "multipliers": [1, 2, 4, 4], "blocks": 2}
    with torch.device("meta"):
        network = instantiate(composed("model=autoencoder_kl").model, **options)((3, 256, 256))
    assert sum(parameter.numel() for parameter in network.parameters()) == 83_653_863 - 92


def test_discriminator_output_is_a_map_of_patches():
    assert PatchDiscriminator(3, 8, 2)(torch.rand(2, 3, 32, 16)).shape == (2, 1, 8, 4)


def test_autoencoder_loss_is_l1_plus_the_penalty_per_pixel():
    data, system = autoencoder_system("model=autoencoder_vq")
    x = data.test.x0[:4]
    encoding = system.autoencoder.encode(x)
    decoded = system.autoencoder.decode(encoding.z)
    terms, reconstruction = system.losses(x)
    expected = (decoded - x).abs().mean((1, 2, 3)) + encoding.penalty / 64
    torch.testing.assert_close(total(terms), expected)
    torch.testing.assert_close(reconstruction, decoded)


def test_reconstructions_are_deterministic_and_keep_the_training_state():
    data, system = autoencoder_system()
    x, state = data.test.x0[:4], torch.get_rng_state()
    system.train()
    reconstruction, codes = system.reconstruct(x)
    assert torch.equal(torch.get_rng_state(), state) and system.autoencoder.training
    assert torch.equal(reconstruction, system.reconstruct(x)[0])
    assert codes is None and reconstruction.abs().max() <= 1
    _, vq_system = autoencoder_system("model=autoencoder_vq")
    assert vq_system.reconstruct(x)[1].shape == (4, 4, 4)


def test_adversarial_losses_have_gradients_for_one_side_each():
    data, system = autoencoder_system("system.adversarial=0.7")
    x, discriminator = data.test.x0[:4], system.discriminator
    terms, reconstruction = system.losses(x)
    loss = total(terms).mean()
    both = sum(system._adversarial_losses(discriminator, x, reconstruction, loss))
    last = system.autoencoder.last.weight

    def gradients(value, parameters):
        return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)

    parameters = list(discriminator.parameters())
    real = (1 - discriminator(x)).relu().mean()
    fake = (1 + discriminator(reconstruction.detach())).relu().mean()
    expected = gradients((real + fake) / 2, parameters)
    torch.testing.assert_close(gradients(both, parameters), expected)

    fooled = -discriminator(reconstruction).mean()
    weight = gradients(loss, [last])[0].norm() / (gradients(fooled, [last])[0].norm() + 1e-4)
    parameters = list(system.autoencoder.parameters())
    expected = gradients(0.7 * weight.detach() * fooled, parameters)
    for gradient, reference in zip(gradients(both, parameters), expected, strict=True):
        assert (gradient is None) == (reference is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, reference)
    assert gradients(both, [last])[0].abs().max() > 0


def test_discriminator_starts_at_its_step(tmp_path):
    from lightning import Trainer

    overrides = ("system.adversarial=1", "system.start=3", "data.batch_size=4")
    data, system = autoencoder_system(*overrides)
    steps = []

    def adversarial_losses(discriminator, x, reconstruction, loss):
        steps.append(system.trainer.global_step)
        return loss.detach() * 0, loss.detach() * 0

    system._adversarial_losses = adversarial_losses
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
    ).fit(system, DataModule(data))
    assert steps == [3, 4, 5]


def test_gradients_of_both_sides_are_clipped_independently():
    _, system = autoencoder_system("system.adversarial=1")
    parts = (system.autoencoder, system.discriminator)
    for part, norm in zip(parts, (0.001, 100.0), strict=True):
        count = sum(parameter.numel() for parameter in part.parameters())
        for parameter in part.parameters():
            parameter.grad = torch.full_like(parameter, norm / count**0.5)
    system._trainer = SimpleNamespace(global_step=0)
    system.configure_gradient_clipping(torch.optim.SGD(system.parameters(), lr=1.0), 1.0)
    norms = [
        sum(parameter.grad.square().sum() for parameter in part.parameters()).sqrt().item()
        for part in parts
    ]
    assert norms == pytest.approx([0.001, 1.0], rel=1e-3)


def test_unavailable_lpips_weights_are_reported_before_training(monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", offline)
    message = r"system\.perceptual=0\.1 needs the weights of VGG.*no route.*perceptual=0"
    with pytest.raises(ValueError, match=message):
        autoencoder_system("system.perceptual=0.1", "data=synthetic")


def test_lpips_takes_three_channels_and_is_not_in_checkpoints(monkeypatch):
    class Distance(torch.nn.Conv2d):
        def forward(self, x, reconstruction):
            assert x.shape == reconstruction.shape == (4, 3, 16, 16)
            assert reconstruction.abs().max() <= 1
            return (x - reconstruction).square().mean()

    module = "ddpm_lab.systems.autoencoder_system"
    monkeypatch.setattr(f"{module}._load_lpips", lambda weight: Distance(1, 1, 1))
    overrides = ("system.perceptual=2", "data=synthetic", "data.channels=1")
    data, system = autoencoder_system(*overrides)
    x = data.test.x0[:4]
    terms, reconstruction = system.losses(x)
    assert not any("lpips" in name for name in system.state_dict())
    expected = 2 * (x - reconstruction.clamp(-1, 1)).square().mean()
    torch.testing.assert_close(terms["lpips"], expected)
    torch.testing.assert_close(total(terms), terms["l1"] + terms["penalty"] + terms["lpips"])


@pytest.mark.slow
def test_lpips_runs_on_the_smallest_images(monkeypatch):
    """With random weights instead of those that torchvision downloads."""
    import torchvision

    vgg16 = torchvision.models.vgg16
    monkeypatch.setattr("torchvision.models.vgg16", lambda **kwargs: vgg16(weights=None))
    data, system = autoencoder_system("system.perceptual=1", "data=synthetic")
    terms, reconstruction = system.losses(data.test.x0[:2])
    reconstruction.retain_grad()
    terms["lpips"].sum().backward()
    assert terms["lpips"] > 0 and reconstruction.grad.abs().max() > 0


@pytest.mark.parametrize("weak", ["pixels", "different latents"])
def test_autoguidance_rejects_models_of_another_space(weak):
    codecs = [Latents(SPEC, make_autoencoder(KL(1), multipliers=(1,))) for _ in range(2)]

    def make_denoiser(codec):
        return diffusion_system(codec, "prediction=v").denoiser

    denoiser = make_denoiser(lambda spec: codecs[0])
    other = make_denoiser(Pixels if weak == "pixels" else lambda spec: codecs[1])
    message = r"weak was trained in (pixels|latents .*), but this model in latents"
    with pytest.raises(ValueError, match=message):
        Autoguidance(denoiser, other)
    Autoguidance(denoiser, make_denoiser(lambda spec: codecs[0]))


def test_analytic_variance_includes_the_noise_of_the_latents():
    """For a network with output 0 the error is the second moment of the latents, which is 1."""
    noisy = make_autoencoder()
    torch.nn.init.zeros_(noisy.quant_conv[-1].weight[2:].data)  # the log variances
    overrides = ("prediction=x0", "schedule.steps=20")
    system = diffusion_system(lambda spec: Latents(spec, noisy), *overrides)
    data = digits()
    system.codec.measure(data.train)
    mse = estimate_variance(system.pipeline, data, samples=40).mse[1:]
    assert mse.mean().item() == pytest.approx(1, abs=0.03)


def test_latents_have_mean_0_and_variance_1_over_the_training_split():
    data, codec = digits(), make_latents()
    (frozen,) = codec._frozen
    with torch.no_grad():
        frozen.quant_conv[-1].weight.mul_(3)
    unscaled = codec.encode(data.train.x0)
    assert (unscaled.std((0, 2, 3)) - 1).abs().max() > 0.5
    codec.measure(data.train)
    z = codec.encode(data.train.x0)
    assert z.shape == (1437, *codec.shape) == (1437, 2, 4, 4)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=0.03)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), rtol=0, atol=0.03)
    x0 = data.test.x0
    expected = frozen.decode(frozen.encode(x0, torch.zeros_like).z)
    torch.testing.assert_close(codec.decode(codec.encode(x0, torch.zeros_like)), expected)


def test_checkpoints_hold_the_scale_and_not_the_autoencoder():
    codec = make_latents("runs/a")
    codec.measure(digits().train)
    state = codec.state_dict()
    assert {*state} == {"mean", "std", "_extra_state"} and not list(codec.parameters())
    same = make_latents("runs/a")
    same.load_state_dict(state)
    assert torch.equal(same.mean, codec.mean) and torch.equal(same.std, codec.std)
    message = "run=runs/b has changed since this model was trained on its latents"
    with pytest.raises(ValueError, match=message):
        make_latents("runs/b", seed=4).load_state_dict(state)
    assert codec.space == same.space != make_latents(seed=4).space


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_nonfinite_and_constant_latents_are_rejected(value):
    codec = make_latents("runs/a")
    (frozen,) = codec._frozen
    for parameter in frozen.quant_conv.parameters():
        torch.nn.init.constant_(parameter, value)
    codec.encode = lambda x: frozen.encode(x, torch.zeros_like).z
    images = Images(torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8), None)
    message = r"run=runs/a: the channels of its latents have standard deviations \["
    with pytest.raises(ValueError, match=message):
        codec.measure(images)


def test_pixel_codec_is_the_identity():
    x, codec = torch.rand(2, 1, 8, 8), Pixels(SPEC)
    assert codec.encode(x) is x and codec.decode(x) is x
    assert (codec.shape, codec.bin_width) == ((1, 8, 8), 2 / 255)
    assert not codec.state_dict()


def test_diffusion_trains_and_samples_in_latents():
    data = digits()
    system = diffusion_system(lambda spec: Latents(spec, make_autoencoder()), "prediction=v")
    system.codec.measure(data.train)
    batch, t = to_batch(data.test.select(slice(4))), torch.full((4,), 300)
    torch.manual_seed(1)
    noised = system.noise_batch(batch, t)
    torch.manual_seed(1)
    torch.testing.assert_close(noised.x0, system.codec.encode(batch["x0"]))
    assert noised.x_t.shape == noised.eps.shape == (4, 2, 4, 4) and noised.bin_width is None
    assert system.losses(batch, t).shape == (4,)
    conditions = system.pipeline.make_conditions(3)
    (samples,) = system.pipeline.sample(3, conditions=conditions)
    assert samples.pixels.shape == (3, 1, 8, 8)
    z = torch.randn(3, 2, 4, 4)
    expected = ((system.codec.decode(z).clamp(-1, 1) + 1) * 127.5).round().byte()
    assert torch.equal(system.pipeline.to_images(z, None).pixels, expected)


@pytest.mark.parametrize(
    ("build_part", "message"),
    [
        (lambda: KL(latent=0), "latent must be at least 1"),
        (lambda: KL(weight=-1.0), "weight must be at least 0"),
        (lambda: VQ(codes=0), "codes must be at least 1"),
        (lambda: VQ(commitment=-1.0), "commitment must be at least 0"),
        (lambda: make_autoencoder(shape=(2,)), "shape of the data must be that of images"),
        (lambda: make_autoencoder(multipliers=()), "multipliers must be one or more"),
        (lambda: make_autoencoder(multipliers=(0.01, 1)), "leave a level without channels"),
        (
            lambda: make_autoencoder(multipliers=(1, 1, 1, 1, 1)),
            "halves images 4 times, which 8x8 does not allow",
        ),
        (
            lambda: Latents(DataSpec((3, 8, 8), None, 2 / 255, None), make_autoencoder(), "a"),
            r"run=a was trained on data of shape \(1, 8, 8\), but this data has shape \(3, 8, 8\)",
        ),
    ],
)
def test_invalid_autoencoders_and_codecs_are_rejected(build_part, message):
    with pytest.raises(ValueError, match=message):
        build_part()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=toy", "model=autoencoder_kl"], "system=autoencoder is for images"),
        (["model=unet"], "model is not an autoencoder"),
        (["model=classifier"], "model is not an autoencoder"),
        (["system.start=-1"], r"system.start must be at least 0 \(got -1\)"),
        (["system.adversarial=nan"], "system.adversarial must be at least 0"),
        (["system.perceptual=1"], "system.perceptual=1 needs images of at least 16x16 .*1x8x8"),
        (
            ["system.adversarial=1", "data.resolution=2"],
            "system.adversarial=1 needs images of at least 4x4",
        ),
    ],
)
def test_invalid_autoencoder_systems_are_rejected(overrides, message):
    with pytest.raises(ValueError, match=message):
        autoencoder_system(*overrides)
