"""Conditions: what they say, what they leave to chance, and who can hear it."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import composed

from ddpm_lab.conditioners.base import DataSpec, PretrainedText, Text, Tokens
from ddpm_lab.conditioners.low_res import LowRes
from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images, to_batch
from ddpm_lab.networks.text_encoder import decode_text, encode_text

CAPTIONS = [["one", "eins"], ["two", "a two", "zwei"]]
SPEC = DataSpec((1, 8, 8), 2, 2 / 255, CAPTIONS)
LABELS = {"label": torch.tensor([0, 1, 1])}
TINY = ("model.channels=8", "model.multipliers=[1]", "data.batch_size=16", "sampler.steps=3")


def system(*overrides):
    config = composed(*TINY, *overrides)
    data = build(config, "data")
    return data, build_system(config, data)


def test_tokens_are_rows_of_a_table():
    tokens = Tokens(SPEC, count=3, width=5)
    said = tokens(LABELS).context
    assert (
        said.shape == (3, 3, 5)
        and torch.equal(said[1], said[2])
        and not torch.equal(said[0], said[1])
    )
    said.sum().backward()
    assert tokens.table.weight.grad.abs().min() > 0


def test_any_text_is_spelled_and_read_back():
    texts = ["a seven", "fünf", "七", "x" * 24]
    rows = encode_text(texts, 24)
    assert rows.shape == (4, 24) and rows.dtype == torch.uint8 and decode_text(rows) == texts
    assert torch.equal(encode_text(["  a seven "], 24)[0], rows[0])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "text is empty"),
        (" ", "text is empty"),
        ("fünfundzwanzig Ziegen!!!", r"25 bytes, .* hears 24"),
    ],
)
def test_texts_that_cannot_be_heard_are_refused(text, told):
    with pytest.raises(ValueError, match=told):
        encode_text(["fine", text], 24)


def test_a_label_is_told_by_one_of_its_captions_each_as_often():
    text = Text(SPEC, length=8, width=8, heads=2)
    many = {"label": torch.arange(2).repeat(6000)}
    told = decode_text(text.text(many, torch.randn_like))
    for label, captions in enumerate(CAPTIONS):
        found = told[label::2]
        for caption in captions:
            assert found.count(caption) / 6000 == pytest.approx(1 / len(captions), abs=0.02)


def test_a_text_is_told_as_it_is_and_order_matters():
    text = Text(SPEC, length=8, width=8, heads=2)
    rows = encode_text(["one", "eno", "one"], 8)
    said = text({"text": rows}).context
    assert said.shape == (3, 8, 8)
    torch.testing.assert_close(said[0], said[2])
    assert (said[0].mean(0) - said[1].mean(0)).abs().max() > 1e-3


def test_the_text_encoder_learns_along():
    data, model = system("conditioner=text")
    for parameter in model.denoiser.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    t = torch.full((16,), 500)
    model.losses(to_batch(data.train.select(slice(16))), t).mean().backward()
    heard = [
        name for name, p in model.denoiser.conditioner.named_parameters() if p.grad.abs().max() > 0
    ]
    assert heard == [name for name, _ in model.denoiser.conditioner.named_parameters()]


def test_a_pretrained_encoder_is_frozen_and_in_no_checkpoint(pretrained, tmp_path):
    text = PretrainedText(SPEC, str(pretrained), length=12)
    said = text({"text": encode_text(["one", "two", "one"], 12)}).context
    assert (
        said.shape == (3, 12, 16) and text.cond_dims == {"context": 16} and not said.requires_grad
    )
    torch.testing.assert_close(said[0], said[2])
    assert (said[0] - said[1]).abs().max() > 1e-3
    assert not list(text.parameters()) and not text.state_dict()
    first = text(LABELS, lambda like: torch.full_like(like, -9.0)).context
    torch.testing.assert_close(first[0], said[0])  # "one", computed once
    with pytest.raises(ValueError, match="cannot encode captions of up to length=65"):
        PretrainedText(SPEC, str(pretrained), length=65)
    with pytest.raises(ValueError, match=r"model=.* cannot be read.*give a folder"):
        PretrainedText(SPEC, str(tmp_path))


def test_low_res_is_the_mean_of_pixels_made_as_noisy_as_it_says():
    conditioner, x0 = (
        LowRes(SPEC, factor=2, max_noise_level=0.5, noise_level=0.25),
        torch.rand(3, 1, 8, 8),
    )
    given = {"x0": x0, **LABELS}

    def enlarged(z):
        return F.interpolate(z, scale_factor=2.0, mode="bilinear")

    z, eps = F.avg_pool2d(x0, 2), torch.randn(3, 1, 4, 4)
    said = conditioner.eval()(given, lambda _: eps)
    angle = math.pi / 8
    torch.testing.assert_close(said.image, enlarged(math.cos(angle) * z + math.sin(angle) * eps))
    assert said.noise_level.tolist() == [250.0] * 3 and torch.equal(said.label, LABELS["label"])
    torch.testing.assert_close(
        conditioner({"low_res": z, **LABELS}, lambda _: eps).image, said.image
    )
    torch.testing.assert_close(
        LowRes(SPEC).eval()(given).image, enlarged(z)
    )  # level 0 adds nothing

    many = {"x0": torch.zeros(4000, 1, 8, 8), "label": torch.zeros(4000, dtype=torch.long)}
    drawn = conditioner.train()(many)
    level = drawn.noise_level / 1000
    assert (
        0 <= level.min() < 0.01
        and 0.49 < level.max() <= 0.5
        and level.mean().item() == pytest.approx(0.25, abs=0.01)
    )
    corner = drawn.image[:, 0, 0, 0]  # no mean of neighbours there
    sine = (math.pi / 2 * level).sin()
    low, high = level < 0.25, level >= 0.25
    for some in (low, high):
        assert corner[some].square().mean().item() == pytest.approx(
            sine[some].square().mean().item(), rel=0.1
        )


def test_without_labels_low_res_says_the_image_alone():
    bare = LowRes(DataSpec((3, 8, 6), None, 2 / 255, None), label=False)
    assert bare.cond_dims == {"image": 3} and bare({"x0": torch.rand(2, 3, 8, 6)}).label is None


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Tokens(SPEC._replace(classes=None)), "conditioner needs labels"),
        (lambda: Tokens(SPEC, count=0), "count must be at least 1"),
        (lambda: Tokens(SPEC, dropout=1.5), "dropout is a probability"),
        (lambda: Text(SPEC._replace(captions=None)), "conditioner needs captions"),
        (lambda: Text(SPEC, width=10, heads=4), "heads=4 must divide the width 10; try heads=2"),
        (
            lambda: Text(SPEC, length=2),
            "length=2 is too short for the captions of this data; try length=5",
        ),
        (
            lambda: LowRes(SPEC, factor=3),
            "factor=3 must be at least 2 and divide images of 8x8; try factor=2",
        ),
        (lambda: LowRes(SPEC._replace(shape=(2,))), "low_res is for images"),
        (lambda: LowRes(SPEC, blur=[0.6, 0.4]), r"blur must be \[low, high\].*try \[0.4,0.6\]"),
        (
            lambda: LowRes(SPEC, max_noise_level=-0.1),
            r"max_noise_level is a noise level and must lie in \[0, 1\] \(got -0.1\)",
        ),
        (
            lambda: LowRes(SPEC, noise_level=0.6),
            r"noise_level must be at most max_noise_level=0.5, that of training \(got 0.6\)",
        ),
        (
            lambda: LowRes(SPEC, noise_level=2.0),
            r"noise_level is a noise level and must lie in \[0, 1\] \(got 2\)",
        ),
        (
            lambda: LowRes(SPEC._replace(classes=None), label=True),
            "label=true needs labels, .*try label=false",
        ),
        (lambda: LowRes(SPEC._replace(shape=(1, 7, 9))), "factor=2 must .*7x9; none does"),
        (lambda: LowRes(SPEC._replace(shape=(1, 9, 9))), "try factor=3"),
    ],
)
def test_what_cannot_be_said_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("model=mlp", "conditioner=tokens"),
            "conditioner=tokens speaks by context.*model=unet_cross",
        ),
        (
            ("model=dit_s", "conditioner=text"),
            "conditioner=text speaks by context.*model=unet_cross",
        ),
        (("model=mlp", "conditioner=low_res"), "conditioner=low_res speaks by image.*model=unet"),
        (
            ("data=toy", "model=mlp", "conditioner=low_res", "sampler.clip=null"),
            "low_res is for images",
        ),
    ],
)
def test_a_model_that_cannot_hear_it_is_refused(overrides, told):
    config = composed(*overrides)
    data = build(config, "data")
    with pytest.raises(ValueError, match=told):
        build_system(config, data)


def test_what_is_asked_is_what_is_heard():
    data, model = system("conditioner=text")
    conditions = model.make_conditions(5, text=["a seven", "zwei"])
    assert decode_text(conditions["text"]) == ["a seven", "zwei", "a seven", "zwei", "a seven"]
    with pytest.raises(ValueError, match="label=10 is not among"):
        model.make_conditions(5, label=[10])
    with pytest.raises(ValueError, match="bytes"):
        model.make_conditions(1, text="a" * 30)
    _, deaf = system()
    with pytest.raises(ValueError, match="text=x asks for what this model was not trained with"):
        deaf.make_conditions(1, text="x")

    _, large = system("conditioner=low_res")
    conditions = large.make_conditions(400, given=data.test)
    assert (
        torch.equal(conditions["low_res"][360:], F.avg_pool2d(data.test.x0[:40], 2))
        and "x0" not in conditions
    )
    assert torch.equal(conditions["label"], data.test.labels[torch.arange(400) % 360])
    with pytest.raises(ValueError, match="enlarges images, and none were given"):
        large.make_conditions(5)
    with pytest.raises(
        ValueError, match="label=3 cannot be chosen for images that bring their own"
    ):
        large.make_conditions(5, label=3, given=data.test)
    with pytest.raises(ValueError, match="text=x asks for what"):
        large.make_conditions(5, text="x", given=data.test)


def test_small_images_are_taken_as_they_are_and_asked_for_by_label_where_they_say_none():
    _, large = system("conditioner=low_res")
    pixels = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    conditions = large.make_conditions(4, label=[7, 8], given=Images(pixels, None))
    assert torch.equal(conditions["low_res"], Images(pixels, None).x0[[0, 1, 2, 0]]) and conditions[
        "label"
    ].tolist() == [
        7,
        8,
        7,
        8,
    ]
    assert "x0" not in conditions and torch.equal(
        large.resolve(conditions)["low_res"], conditions["low_res"]
    )
    with pytest.raises(ValueError, match=r"must know of what class the images are.*label="):
        large.make_conditions(4, given=Images(pixels, None))
    with pytest.raises(ValueError, match=r"labels up to 10, and it knows 0\.\.9"):
        large.make_conditions(4, given=Images(pixels, torch.tensor([1, 10, 2])))
    with pytest.raises(
        ValueError, match="enlarges images of 1x4x4 to 1x8x8, and those given are 1x2x2"
    ):
        large.make_conditions(4, given=Images(pixels[..., :2, :2], None))
    for side in (6, 12):
        with pytest.raises(ValueError, match=f"those given are 1x{side}x4"):
            large.make_conditions(4, label=1, given=Images(torch.zeros(1, 1, side, 4).byte(), None))
    wide = torch.randint(256, (1, 1, 16, 16), dtype=torch.uint8)
    conditions = large.make_conditions(1, label=1, given=Images(wide, None))
    torch.testing.assert_close(conditions["low_res"], F.avg_pool2d(Images(wide, None).x0, 4))
    _, deaf = system("conditioner=low_res", "conditioner.label=false")
    assert {*deaf.make_conditions(4, given=Images(pixels, None))} == {"low_res"}


def test_a_image_that_is_noisy_already_gets_no_more_noise():
    conditioner, z = LowRes(SPEC, noise_level=0.5).eval(), torch.randn(3, 1, 4, 4)
    said = conditioner({"low_res": z, "noise_level": torch.tensor([0.1, 0.2, 0.3]), **LABELS})
    torch.testing.assert_close(said.image, F.interpolate(z, scale_factor=2.0, mode="bilinear"))
    torch.testing.assert_close(said.noise_level, torch.tensor([100.0, 200.0, 300.0]))


def test_half_of_the_small_images_of_training_are_blurred_and_none_at_sampling():
    def kernel(std):
        side = math.exp(-1 / (2 * std**2))
        return torch.tensor([side, 1, side]) / (1 + 2 * side)

    conditioner = LowRes(SPEC, max_noise_level=0.0, blur=[0.5, 0.5])
    given = {"low_res": torch.rand(2000, 1, 4, 4), "label": torch.zeros(2000, dtype=torch.long)}
    plain = conditioner.eval()(given).image
    torch.testing.assert_close(
        plain, F.interpolate(given["low_res"], scale_factor=2.0, mode="bilinear")
    )
    filtered = F.conv2d(
        F.pad(given["low_res"], (1, 1, 1, 1), mode="replicate"),
        torch.outer(kernel(0.5), kernel(0.5))[None, None],
    )
    expected = F.interpolate(filtered, scale_factor=2.0, mode="bilinear")
    image = conditioner.train()(given).image
    blurred = (image - expected).abs().amax((1, 2, 3)) < 1e-5
    left = (image - plain).abs().amax((1, 2, 3)) == 0
    assert (blurred ^ left).all() and blurred.float().mean().item() == pytest.approx(0.5, abs=0.05)
    wide = LowRes(SPEC, max_noise_level=0.0, blur=[0.2, 2.0]).train()(given).image
    rough = (wide[1:] - wide[:-1]).abs().amax((1, 2, 3))
    assert rough.std() > 0.05  # each has a blur of its own


@pytest.mark.parametrize("conditioner", ["tokens", "text", "low_res"])
@pytest.mark.parametrize("guidance", [[], ["guidance.w=1"]])
def test_one_seed_one_image_whatever_the_batch_size(conditioner, guidance):
    """Also where a caption is left to chance, or noise is added to the image that is enlarged."""
    level = (
        ["conditioner.noise_level=0.3", "conditioner.dropout=0.1"]
        if conditioner == "low_res"
        else []
    )
    data, model = system(
        f"conditioner={conditioner}", "model.self_conditioning=true", *guidance, *level
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    given = data.test if conditioner == "low_res" else None
    made = {}
    for size in (2, 7):
        batches = model.sample(
            model.denoiser,
            7,
            conditions=model.make_conditions(7, given=given),
            seed=4,
            batch_size=size,
        )
        made[size] = torch.cat([to_batch.pixels for to_batch in batches]).int()
    assert (made[2] - made[7]).abs().max() <= 1 and made[7].float().std() > 20
