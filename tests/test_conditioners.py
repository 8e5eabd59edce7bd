"""Conditioners: their conditions, random choices, sampling inputs and error messages."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from conftest import composed

from ddpm_lab.conditioners.labels import Tokens
from ddpm_lab.conditioners.low_res import LowRes
from ddpm_lab.conditioners.text import PretrainedText, Text
from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images, to_batch
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.networks.text_encoder import decode_text, encode_text

CAPTIONS = [["one", "eins"], ["two", "a two", "zwei"]]
SPEC = DataSpec((1, 8, 8), 2, 2 / 255, CAPTIONS)
LABELS = {"label": torch.tensor([0, 1, 1])}
TINY = ("model.channels=8", "model.multipliers=[1]", "data.batch_size=16", "sampler.steps=3")


@cache
def tiny(*overrides):
    """Return data and system, which the tests share."""
    config = composed(*TINY, *overrides)
    data = build(config, "data")
    return data, build_system(config, data)


def make_conditions(system, count, images=None, **options):
    return system.pipeline.make_conditions(count, images=images, **options)


def upsampled(z):
    return F.interpolate(z, scale_factor=2.0, mode="bilinear")


def test_tokens_are_rows_of_a_table():
    tokens = Tokens(SPEC, count=3, width=5)
    context = tokens(LABELS).context
    assert context.shape == (3, 3, 5)
    assert torch.equal(context[1], context[2]) and not torch.equal(context[0], context[1])
    context.sum().backward()
    assert tokens.table.weight.grad.abs().min() > 0


def test_encoded_text_is_decoded():
    texts = ["a seven", "fünf", "七", "x" * 24]
    rows = encode_text(texts, 24)
    assert rows.shape == (4, 24) and rows.dtype == torch.uint8 and decode_text(rows) == texts
    assert torch.equal(encode_text(["  a seven "], 24)[0], rows[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text is empty"),
        (" ", "text is empty"),
        ("fünfundzwanzig Ziegen!!!", r"25 bytes, .* takes 24"),
    ],
)
def test_empty_and_long_texts_are_rejected(text, message):
    with pytest.raises(ValueError, match=message):
        encode_text(["fine", text], 24)


def test_captions_of_a_label_are_equally_likely():
    conditioner = Text(SPEC, length=8, width=8, heads=2)
    labels = {"label": torch.arange(2).repeat(6000)}
    texts = decode_text(conditioner.text(labels, torch.randn_like))
    for label, captions in enumerate(CAPTIONS):
        for caption in captions:
            share = texts[label::2].count(caption) / 6000
            assert share == pytest.approx(1 / len(captions), abs=0.02)


def test_text_encoding_depends_on_the_text_and_its_order():
    conditioner = Text(SPEC, length=8, width=8, heads=2)
    context = conditioner({"text": encode_text(["one", "eno", "one"], 8)}).context
    assert context.shape == (3, 8, 8)
    torch.testing.assert_close(context[0], context[2])
    assert (context[0].mean(0) - context[1].mean(0)).abs().max() > 1e-3


def test_text_encoder_is_trained():
    data, system = tiny("conditioner=text")
    for parameter in system.denoiser.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = to_batch(data.train.select(slice(16)))
    system.losses(batch, torch.full((16,), 500)).mean().backward()
    for name, parameter in system.denoiser.conditioner.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_pretrained_encoder_is_frozen_and_not_in_checkpoints(pretrained, tmp_path):
    conditioner = PretrainedText(SPEC, str(pretrained), length=12)
    context = conditioner({"text": encode_text(["one", "two", "one"], 12)}).context
    assert context.shape == (3, 12, 16) and conditioner.cond_dims == {"context": 16}
    assert not context.requires_grad
    assert not list(conditioner.parameters()) and not conditioner.state_dict()
    torch.testing.assert_close(context[0], context[2])
    assert (context[0] - context[1]).abs().max() > 1e-3
    first_caption = conditioner(LABELS, lambda like: torch.full_like(like, -9.0)).context
    torch.testing.assert_close(first_caption[0], context[0])
    with pytest.raises(ValueError, match="cannot encode captions of up to length=65"):
        PretrainedText(SPEC, str(pretrained), length=65)
    with pytest.raises(ValueError, match=r"model=.* cannot be read.*try a folder"):
        PretrainedText(SPEC, str(tmp_path))


def test_low_res_image_has_the_noise_level_of_sampling():
    conditioner = LowRes(SPEC, factor=2, max_noise_level=0.5, noise_level=0.25).eval()
    x0, eps = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 4, 4)
    z = F.avg_pool2d(x0, 2)
    cond = conditioner({"x0": x0, **LABELS}, lambda _: eps)
    noisy = math.cos(math.pi / 8) * z + math.sin(math.pi / 8) * eps
    torch.testing.assert_close(cond.image, upsampled(noisy))
    assert cond.noise_level.tolist() == [250.0] * 3 and torch.equal(cond.label, LABELS["label"])
    same = conditioner({"low_res": z, **LABELS}, lambda _: eps)
    torch.testing.assert_close(same.image, cond.image)
    noiseless = LowRes(SPEC).eval()({"x0": x0, **LABELS})
    torch.testing.assert_close(noiseless.image, upsampled(z))


def test_low_res_noise_levels_are_uniform_in_training():
    conditioner = LowRes(SPEC, factor=2, max_noise_level=0.5, noise_level=0.25).train()
    count = 4000
    cond = conditioner({"x0": torch.zeros(count, 1, 8, 8), "label": torch.zeros(count).long()})
    level = cond.noise_level / 1000
    assert 0 <= level.min() < 0.01 and 0.49 < level.max() <= 0.5
    assert level.mean().item() == pytest.approx(0.25, abs=0.01)
    corner = cond.image[:, 0, 0, 0]  # not averaged with neighbors by the interpolation
    sigma = (math.pi / 2 * level).sin()
    for rows in (level < 0.25, level >= 0.25):
        expected = sigma[rows].square().mean().item()
        assert corner[rows].square().mean().item() == pytest.approx(expected, rel=0.1)


def test_low_res_without_labels():
    conditioner = LowRes(DataSpec((3, 8, 6), None, 2 / 255, None), label=False)
    assert conditioner.cond_dims == {"image": 3}
    assert conditioner({"x0": torch.rand(2, 3, 8, 6)}).label is None


@pytest.mark.parametrize(
    ("build_conditioner", "message"),
    [
        (lambda: Tokens(SPEC._replace(classes=None)), "conditioner needs labels"),
        (lambda: Tokens(SPEC, count=0), "count must be at least 1"),
        (lambda: Tokens(SPEC, dropout=1.5), "dropout must be at least 0 and at most 1"),
        (lambda: Text(SPEC._replace(captions=None)), "conditioner needs captions"),
        (lambda: Text(SPEC, width=10, heads=4), "heads=4 must divide the width 10; try heads=2"),
        (
            lambda: Text(SPEC, length=2),
            "length=2 is too short for the captions of this data; try length=5",
        ),
        (
            lambda: LowRes(SPEC, factor=3),
            "factor=3 must divide images of 8x8; try factor=2",
        ),
        (lambda: LowRes(SPEC._replace(shape=(2,))), "low_res is for images"),
        (lambda: LowRes(SPEC, blur=[0.6, 0.4]), r"blur must be \[low, high\].*try \[0.4,0.6\]"),
        (
            lambda: LowRes(SPEC, max_noise_level=-0.1),
            r"max_noise_level must be at least 0 and at most 1 \(got -0.1\)",
        ),
        (
            lambda: LowRes(SPEC, noise_level=0.6),
            r"noise_level must be at most max_noise_level=0.5, the limit of training \(got 0.6\)",
        ),
        (
            lambda: LowRes(SPEC, noise_level=2.0),
            r"^noise_level must be at least 0 and at most 1 \(got 2.0\)",
        ),
        (
            lambda: LowRes(SPEC._replace(classes=None), label=True),
            "label=true needs labels, .*try label=false",
        ),
        (lambda: LowRes(SPEC._replace(shape=(1, 7, 9))), "factor=2 must .*7x9; none does"),
        (lambda: LowRes(SPEC._replace(shape=(1, 9, 9))), "try factor=3"),
    ],
)
def test_invalid_options_are_rejected(build_conditioner, message):
    with pytest.raises(ValueError, match=message):
        build_conditioner()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=mlp", "conditioner=tokens"), "conditioner=tokens .*context.*model=unet_cross"),
        (("model=dit_s", "conditioner=text"), "conditioner=text .*context.*model=unet_cross"),
        (("model=mlp", "conditioner=low_res"), "conditioner=low_res .*image.*model=unet"),
        (
            ("data=toy", "model=mlp", "conditioner=low_res", "sampler.clip=null"),
            "low_res is for images",
        ),
    ],
)
def test_models_without_the_input_are_rejected(overrides, message):
    config = composed(*overrides)
    data = build(config, "data")
    with pytest.raises(ValueError, match=message):
        build_system(config, data)


def test_text_conditions():
    _, system = tiny("conditioner=text")
    conditions = make_conditions(system, 5, text=["a seven", "zwei"])
    assert decode_text(conditions["text"]) == ["a seven", "zwei", "a seven", "zwei", "a seven"]
    with pytest.raises(ValueError, match="label=10 is not a label of"):
        make_conditions(system, 5, label=[10])
    with pytest.raises(ValueError, match="bytes"):
        make_conditions(system, 1, text="a" * 30)
    _, unconditional = tiny()
    with pytest.raises(ValueError, match=r"text=x.* this model was trained without"):
        make_conditions(unconditional, 1, text="x")


def test_low_res_conditions_of_data():
    data, system = tiny("conditioner=low_res")
    conditions = make_conditions(system, 400, data.test)
    assert "x0" not in conditions
    assert torch.equal(conditions["low_res"][360:], F.avg_pool2d(data.test.x0[:40], 2))
    assert torch.equal(conditions["label"], data.test.labels[torch.arange(400) % 360])
    with pytest.raises(ValueError, match=r"this model .* images"):
        make_conditions(system, 5)
    with pytest.raises(ValueError, match=r"label=3.* images .*; try label=null"):
        make_conditions(system, 5, data.test, label=3)
    with pytest.raises(ValueError, match=r"text=x.* this model was trained without"):
        make_conditions(system, 5, data.test, text="x")


def test_low_res_conditions_of_images_without_labels():
    _, system = tiny("conditioner=low_res")
    images = Images(torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8), None)
    conditions = make_conditions(system, 4, images, label=[7, 8])
    assert {*conditions} == {"low_res", "label"}
    assert torch.equal(conditions["low_res"], images.x0[[0, 1, 2, 0]])
    assert conditions["label"].tolist() == [7, 8, 7, 8]
    assert torch.equal(system.pipeline.resolve(conditions)["low_res"], conditions["low_res"])
    large = Images(torch.randint(256, (1, 1, 16, 16), dtype=torch.uint8), None)
    conditions = make_conditions(system, 1, large, label=1)
    torch.testing.assert_close(conditions["low_res"], F.avg_pool2d(large.x0, 4))
    _, unlabeled = tiny("conditioner=low_res", "conditioner.label=false")
    assert {*make_conditions(unlabeled, 4, images)} == {"low_res"}


def test_low_res_conditions_reject_other_sizes_and_labels():
    _, system = tiny("conditioner=low_res")
    pixels = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"class of each input image.*label="):
        make_conditions(system, 4, Images(pixels, None))
    with pytest.raises(ValueError, match=r"labels up to 10, but .* 0\.\.9"):
        make_conditions(system, 4, Images(pixels, torch.tensor([1, 10, 2])))
    with pytest.raises(ValueError, match=r"1x4x4 to 1x8x8, but .* are 1x2x2"):
        make_conditions(system, 4, Images(pixels[..., :2, :2], None))
    for side in (6, 12):
        images = Images(torch.zeros(1, 1, side, 4).byte(), None)
        with pytest.raises(ValueError, match=f"are 1x{side}x4"):
            make_conditions(system, 4, images, label=1)


def test_noisy_low_res_images_get_no_more_noise():
    conditioner, z = LowRes(SPEC, noise_level=0.5).eval(), torch.randn(3, 1, 4, 4)
    cond = conditioner({"low_res": z, "noise_level": torch.tensor([0.1, 0.2, 0.3]), **LABELS})
    torch.testing.assert_close(cond.image, upsampled(z))
    torch.testing.assert_close(cond.noise_level, torch.tensor([100.0, 200.0, 300.0]))


def test_blur_of_half_of_the_training_images():
    conditioner = LowRes(SPEC, max_noise_level=0.0, blur=[0.5, 0.5])
    z = torch.rand(2000, 1, 4, 4)
    batch = {"low_res": z, "label": torch.zeros(2000).long()}
    sharp = conditioner.eval()(batch).image
    torch.testing.assert_close(sharp, upsampled(z))
    side = math.exp(-1 / (2 * 0.5**2))
    kernel = torch.tensor([side, 1, side]) / (1 + 2 * side)
    padded = F.pad(z, (1, 1, 1, 1), mode="replicate")
    blurred = upsampled(F.conv2d(padded, torch.outer(kernel, kernel)[None, None]))
    image = conditioner.train()(batch).image
    is_blurred = (image - blurred).abs().amax((1, 2, 3)) < 1e-5
    is_sharp = (image - sharp).abs().amax((1, 2, 3)) == 0
    assert (is_blurred ^ is_sharp).all()
    assert is_blurred.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_blur_differs_between_images():
    conditioner = LowRes(SPEC, max_noise_level=0.0, blur=[0.2, 2.0]).train()
    z = torch.rand(1, 1, 4, 4).expand(2000, 1, 4, 4)
    image = conditioner({"low_res": z, "label": torch.zeros(2000).long()}).image
    assert len((image - upsampled(z)).abs().amax((1, 2, 3)).unique()) > 500


@pytest.mark.parametrize("conditioner", ["tokens", "text", "low_res"])
@pytest.mark.parametrize("guidance", [[], ["guidance.w=1"]])
def test_samples_do_not_depend_on_the_batch_size(conditioner, guidance):
    """Also if a caption is drawn at random, or noise is added to the low-resolution image."""
    overrides = [f"conditioner={conditioner}", "model.self_conditioning=true", *guidance]
    if conditioner == "low_res":
        overrides += ["conditioner.noise_level=0.3", "conditioner.dropout=0.1"]
    data, system = tiny(*overrides)
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    conditions = make_conditions(system, 7, data.test if conditioner == "low_res" else None)

    def sample(batch_size):
        options = {"conditions": conditions, "seed": 4, "batch_size": batch_size}
        batches = system.pipeline.sample(7, **options)
        return torch.cat([batch.pixels for batch in batches]).int()

    samples = sample(7)
    assert (sample(2) - samples).abs().max() <= 1 and samples.float().std() > 20
