"""Editing by commands and in Python: files of inverse problems, SDEdit, and their errors."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import options
from PIL import Image

import ddpm_lab
from ddpm_lab.diffusion.analytic_denoisers import GaussianDenoiser
from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.diffusion.guidance import none
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.samplers import DDIM, DDPM, RePaint
from ddpm_lab.diffusion.schedules import cosine, linear
from ddpm_lab.diffusion.variances import Analytic, BetaTilde
from ddpm_lab.reports.grids import read_caption
from ddpm_lab.sampling.codecs import Pixels
from ddpm_lab.sampling.conditions import class_labels
from ddpm_lab.sampling.editing import edit
from ddpm_lab.sampling.inverse_problems import inpainting, read_problem
from ddpm_lab.sampling.pipeline import SamplingPipeline

PROCESS = ForwardProcess(linear())
SHAPE = (1, 8, 8)


def save(pixels, file):
    file.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file)


@pytest.fixture
def files(tmp_path):
    """Folder with an image a.png, a folder `three` of images, and a mask: white above."""
    random = np.random.default_rng(0)
    save(random.integers(256, size=(8, 8)), tmp_path / "a.png")
    for i in range(3):
        save(random.integers(256, size=(8, 8)), tmp_path / "three" / f"{i}.png")
    mask = np.zeros((8, 8))
    mask[:4] = 255
    save(mask, tmp_path / "mask.png")
    save(random.integers(256, size=(4, 4)), tmp_path / "small.png")
    return tmp_path


def pixels(file):
    return np.asarray(Image.open(file))


def model(shape=SHAPE, space=""):
    return SimpleNamespace(shape=shape, space=space)


def test_white_pixels_of_the_mask_are_known(files):
    problem = read_problem(model(), str(files / "a.png"), mask=str(files / "mask.png"))
    image = torch.from_numpy(pixels(files / "a.png") / 127.5 - 1)
    torch.testing.assert_close(problem.y[0, 0, :4].double(), image[:4])
    assert (problem.y[0, 0, 4:] == 0).all() and problem.y.shape == (1, 1, 8, 8)
    assert [*problem.references] == ["image", "measurement"]


def test_noise_is_added_to_measurements_only(files):
    clean, noisy, again = (
        read_problem(model(), str(files / "three"), "downsample", noise=noise)
        for noise in (0.0, 0.5, 0.5)
    )
    assert clean.y.shape == (3, 1, 4, 4) and torch.equal(noisy.y, again.y) and noisy.noise == 0.5
    assert (noisy.y - clean.y).std().item() == pytest.approx(0.5, rel=0.3)
    assert noisy.references["measurement"].shape == (3, 1, 8, 8)


def test_a_measurement_is_read_in_its_own_size(files):
    problem = read_problem(model(), str(files / "small.png"), "downsample", measured=True)
    expected = torch.from_numpy(pixels(files / "small.png") / 127.5 - 1)
    torch.testing.assert_close(problem.y[0, 0].double(), expected)
    assert [*problem.references] == ["measurement"]
    gray = read_problem(model((3, 8, 8)), str(files / "a.png"), "gray", measured=True)
    assert gray.y.shape == (1, 1, 8, 8) and gray.references["measurement"].shape == (1, 3, 8, 8)


def test_masks_may_be_saved_in_color(files):
    rgb = np.repeat(pixels(files / "mask.png")[..., None], 3, axis=2)
    save(rgb, files / "rgb.png")
    one, other = (
        read_problem(model(), str(files / "a.png"), mask=str(files / name))
        for name in ("mask.png", "rgb.png")
    )
    assert torch.equal(one.operator.keep, other.operator.keep)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "mask=null, but operator=mask needs an image; try guidance.mask=FILE"),
        ({"mask": "{}/nowhere.png"}, "mask=.*nowhere.png does not exist; try guidance.mask=FILE"),
        ({"mask": "{}/small.png"}, "mask=.*small.png is 4x4, but the images .* are 8x8"),
        (
            {"mask": "{}/a.png"},
            "mask=.*a.png has [0-9]+ gray or colored pixels; each must be white",
        ),
        ({"mask": "{}/white.png"}, "mask=.*white.png has one color; visible pixels must be white"),
        ({"mask": "{}/text.txt"}, "mask=.*text.txt cannot be read as an image"),
        ({"mask": "{}/mask.png", "amount": 2}, "amount=2 is not for operator=mask"),
        ({"mask": "{}/mask.png", "operator": "box"}, "mask=.* is not for operator=box"),
        ({"operator": "blurs"}, "operator=blurs is not one of mask, box, blur, downsample, gray"),
        ({"operator": "gray"}, "operator=gray needs RGB images"),
        ({"operator": "downsample", "amount": 3}, "amount=3 must divide the sides"),
        ({"image": "{}/nowhere.png"}, "image=.* does not exist; try guidance.image=FILE"),
        (
            {"image": "{}/small.png"},
            "image=.*small.png is 4x4 L, expected 8x8 L; scale or convert it first",
        ),
        ({"image": "{}/color.png"}, "image=.*color.png is 8x8 RGB, expected 8x8 L"),
        ({"image": "{}/empty"}, "image=.*empty contains no images"),
        ({"image": "{}/a.png", "measured": True, "operator": "downsample"}, "expected 4x4"),
    ],
)
def test_wrong_files_raise(kwargs, message, files):
    save(np.full((8, 8), 255), files / "white.png")
    save(np.full((8, 8, 3), [255, 0, 0]), files / "color.png")
    (files / "text.txt").write_text("text")
    (files / "empty").mkdir()
    kwargs = {
        key: value.format(files) if isinstance(value, str) else value
        for key, value in kwargs.items()
    }
    image = kwargs.pop("image", str(files / "a.png"))
    if "expected" in message or "image=" in message[:6]:
        kwargs.setdefault("operator", "box")
    with pytest.raises(ValueError, match=message) as error:
        read_problem(model(), image, **kwargs)
    assert "data.convert" not in str(error.value), "there is no such key"


@pytest.mark.parametrize(
    ("denoiser", "kind"),
    [(model((2,)), "points"), (model(None), "points"), (model((4, 2, 2), "abc"), "latents")],
)
def test_models_without_pixels_raise(denoiser, kind, files):
    with pytest.raises(ValueError, match=f"image=.* is for models of pixels.*samples {kind}"):
        inpainting(denoiser, str(files / "a.png"), str(files / "mask.png"))


def test_every_guidance_by_files_has_a_choice():
    assert {"inpainting", "dps", "pigdm"} <= {*options("guidance")}


@pytest.fixture(scope="module")
def run(tiny):
    return tiny()


def arrays(folder):
    return np.load(folder / "samples.npz")["images"][..., 0]


def test_inpainting_from_the_command_line(run, typed, files):
    command = ["guidance=inpainting", f"guidance.mask={files}/mask.png"]
    outs = [files / name for name in ("one", "folder", "batches", "cfg")]
    each = [f"guidance.image={files}/a.png"], *[[f"guidance.image={files}/three"]] * 3
    extra = [], [], ["batch_size=2"], ["guidance.w=2", "label=[1,2]"]
    for out, image, words in zip(outs, each, extra, strict=True):
        status, text, error = typed(
            "sample", f"run={run}", *command, *image, *words, "count=5", f"out={out}"
        )
        assert status == 0, error
    assert "guidance.png (groups of image, measurement and sample)" in text + error
    assert read_caption(outs[0] / "guidance.png") == "Groups of image, measurement and sample."
    known = pixels(files / "a.png")[:4]
    assert (arrays(outs[0])[:, :4] == known).all() and (arrays(outs[0])[:, 4:] != 128).any()
    for i, image in enumerate(arrays(outs[1])):
        assert (image[:4] == pixels(files / "three" / f"{i % 3}.png")[:4]).all()
    difference = arrays(outs[1]).astype(int) - arrays(outs[2])
    assert np.abs(difference).max() <= 1, "independent of the batches"
    assert (arrays(outs[3]) != arrays(outs[1])).any(), "classifier-free guidance inside"


@pytest.mark.parametrize(
    "words",
    [
        ("guidance=dps", "sampler=ddpm", "sampler.steps=3", "guidance.operator=saturation"),
        ("guidance=pigdm", "guidance.operator=downsample", "guidance.noise=0.1"),
        ("guidance=pigdm", "guidance.operator=blur", "guidance.w=1", "label=3", "sampler=heun"),
        ("guidance=pigdm", "guidance.operator=box", "guidance.amount=0.25", "mode=edit"),
    ],
)
def test_guidances_by_measurements_from_the_command_line(words, run, typed, files):
    steps = [] if any("sampler.steps" in word for word in words) else ["sampler.steps=3"]
    image = f"guidance.image={files}/three"
    status, _, error = typed(
        "sample", f"run={run}", *words, *steps, image, "count=4", f"out={files}/out"
    )
    assert status == 0, error


def test_repaint_from_the_command_line(run, typed, files):
    words = [f"guidance.image={files}/a.png", f"guidance.mask={files}/mask.png", "count=2"]
    repaint = ["sampler=repaint", "sampler.steps=6", "sampler.jump=2", "sampler.resamples=3"]
    status, _, error = typed(
        "sample", f"run={run}", "guidance=inpainting", *repaint, *words, f"out={files}/out"
    )
    assert status == 0, error
    assert (arrays(files / "out")[:, :4] == pixels(files / "a.png")[:4]).all()


def test_python_has_the_numbers_of_the_commands(run, typed, files):
    words = [f"guidance.image={files}/a.png", f"guidance.mask={files}/mask.png"]
    assert (
        typed("sample", f"run={run}", "guidance=inpainting", *words, "count=3", f"out={files}/o")[0]
        == 0
    )
    model = ddpm_lab.load(run)
    samples = model.sample(3, guidance="inpainting", overrides=words)
    assert np.array_equal(samples.tensor[:, 0].numpy(), arrays(files / "o"))
    edits = ["mode=edit", f"input={files}/three", "label=3", "strength=0.3", "seed=5"]
    assert typed("sample", f"run={run}", *edits, f"out={files}/e")[0] == 0
    images = torch.stack([torch.from_numpy(pixels(files / "three" / f"{i}.png")) for i in range(3)])
    edited = model.edit(images[:, None], 0.3, label=3, seed=5)
    assert np.array_equal(edited.tensor[:, 0].numpy(), arrays(files / "e"))
    with pytest.raises(ddpm_lab.UserError, match="strength must be a number above 0"):
        model.edit(images[:, None], 1.5, label=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["guidance=dps", "guidance.operator=box"], "guidance.zeta shifts the means of ancestral"),
        (["guidance=pigdm", "guidance.operator=saturation"], "guidance.operator=saturation is not"),
        (
            ["guidance=pigdm", "guidance.operator=box", "guidance.image={}/x.png"],
            "guidance.image={}/x.png does not exist",
        ),
        (["guidance=pigdm"], "guidance.mask=null, but operator=mask needs an image"),
        (["guidance=inpainting"], "guidance.mask=null, but operator=mask needs an image"),
        (["guidance=pigdm", "guidance.noise=-1"], "guidance.noise must be at least 0"),
        (["guidance=dps", "guidance.zeta=-1"], "guidance.zeta must be at least 0"),
        (["mode=edit", "label=1", "strength=0"], "strength must be above 0 and at most 1 (got 0)"),
        (["mode=edit", "label=1", "strength=1.2"], "strength must be above 0 and at most 1"),
        (["mode=edit", "input={}/x.png"], "input={}/x.png does not exist"),
        (["mode=edit", "input={}/small.png"], "small.png is 4x4 L, expected 8x8 L"),
    ],
)
def test_mistakes_name_the_key(words, message, run, typed, files):
    words = [word.format(files) for word in words]
    if words[0].startswith("guidance") and not any("image" in word for word in words):
        words.append(f"guidance.image={files}/a.png")
    status, _, error = typed(
        "sample", f"run={run}", "sampler=ddim", "sampler.steps=3", *words, "count=2"
    )
    assert status == 2 and message.format(files) in error and "Traceback" not in error, error


def test_edit_of_images(run, typed, files):
    for strength, name in ((0.001, "weak"), (1.0, "strong")):
        words = ["mode=edit", f"input={files}/a.png", "label=2", f"strength={strength}"]
        status, text, error = typed(
            "sample", f"run={run}", *words, "count=3", f"out={files}/{name}"
        )
        assert status == 0, error
    assert "edits.png (groups of input and edited image)" in text + error
    image = pixels(files / "a.png").astype(int)
    assert np.abs(arrays(files / "weak") - image).max() <= 12
    assert np.abs(arrays(files / "strong") - image).mean() > 20
    assert (arrays(files / "strong")[0] != arrays(files / "strong")[1]).any()


def test_edit_of_points(typed, tmp_path):
    words = ["data=toy", "callbacks=none", "trainer=debug", "logger=csv", "sampler.steps=3"]
    status, _, error = typed("train", *words, f"hydra.run.dir={tmp_path}/r")
    assert status == 0, error
    run = [f"run={tmp_path}/r", "weights=raw"]
    status, _, error = typed("sample", *run, "mode=edit", "count=5", f"out={tmp_path}/o")
    assert status == 0, error
    assert np.load(tmp_path / "o" / "samples.npz")["points"].shape == (5, 2)
    words = ["guidance=pigdm", "guidance.operator=box", "guidance.image=a.png", "count=1"]
    status, _, error = typed("sample", *run, *words)
    assert status == 2 and "is for models of pixels, but this one samples points" in error


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_edits_of_gaussian_data_have_the_exact_moments(strength):
    mean, covariance = torch.tensor([0.3, -0.2]), torch.full((2,), 0.25, dtype=torch.float64)
    denoiser = GaussianDenoiser(PROCESS, BetaTilde(), mean.double(), covariance)
    denoiser.variance = Analytic(denoiser.mse())
    spec = DataSpec((2,))
    sampler = DDPM(steps=20, clip=None)
    pipeline = SamplingPipeline(spec, Pixels(spec), denoiser, sampler, partial(none))
    a = torch.tensor([1.0, 0.5])
    samples = edit(pipeline, a.expand(4000, 2), {}, strength, seed=3, batch_size=1500).tensor
    t = round(1000 * strength)
    alpha, sigma = PROCESS.table[t, :2].tolist()
    gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    variance = denoiser.mse()[t].item() + (gain * sigma) ** 2
    expected = mean + gain * alpha * (a - mean)
    torch.testing.assert_close(samples.mean(0), expected, rtol=0, atol=5 * (variance / 4000) ** 0.5)
    assert samples.var(0).tolist() == pytest.approx([variance] * 2, rel=0.12)
    assert torch.corrcoef(samples.T)[0, 1].abs() < 0.08
    again = edit(pipeline, a.expand(7, 2), {}, strength, seed=3).tensor
    torch.testing.assert_close(samples[:7], again)


def test_chains_begin_at_a_time_between_steps():
    process = ForwardProcess(cosine(100))
    start = DDIM(steps=4).starting_at(process, 40)
    assert start.timesteps(process) == [
        40,
        *(t for t in DDIM(steps=4).timesteps(process) if t < 40),
    ]
    zigzag = RePaint(steps=4, resamples=2, jump=1).starting_at(process, 40)
    assert zigzag.timesteps(process) == [40, 34, 40, 34, 1, 34, 1, 0]
    karras = DDIM(steps=5, spacing="karras7:0.03,80")
    later = [t for t in karras.timesteps(process) if t < 40]
    assert karras.starting_at(process, 40).timesteps(process) == [40, *later]


def test_restored_images_have_no_class_unless_one_is_typed(run, typed, files):
    words = ["guidance=inpainting", "guidance.operator=box", f"guidance.image={files}/a.png"]
    for name, label in (("default", []), ("none", ["label=none"]), ("three", ["label=3"])):
        status, _, error = typed(
            "sample", f"run={run}", *words, *label, "count=2", f"out={files / name}"
        )
        assert status == 0, error
    default, none, three = (
        np.load(files / name / "samples.npz") for name in ("default", "none", "three")
    )
    assert "labels" not in default and (default["images"] == none["images"]).all()
    assert three["labels"].tolist() == [3, 3] and (three["images"] != none["images"]).any()
    command = (files / "three" / "sample_command.txt").read_text()
    assert command.startswith("python sample.py run=") and " label=3 " in command


def test_label_none_is_the_name_of_a_class_or_no_class():
    assert class_labels(3, "none", None) is None
    assert class_labels(3, "none", 2, nullable=True) is None
    assert class_labels(2, "none", 2, [["some"], ["None"]], nullable=True).tolist() == [1, 1]
    with pytest.raises(ddpm_lab.UserError, match=r"conditioner\.dropout above 0"):
        class_labels(3, "none", 2)


@pytest.mark.parametrize("strength", [None, 0.4])
def test_interpolation_of_images_begins_and_ends_like_them(strength, run, typed, files):
    """Frame 0 of a row is the edit, or the decoded encoding, of its image."""
    model, folder = ddpm_lab.load(run), files / "three"
    images = torch.from_numpy(np.stack([pixels(folder / f"{i}.png") for i in range(3)]))[:, None]
    words = [] if strength is None else [f"strength={strength}"]
    status, _, error = typed(
        "sample",
        f"run={run}",
        "mode=interpolate",
        f"input={folder}",
        "label=3",
        "frames=3",
        f"out={files / 'out'}",
        *words,
    )
    assert status == 0, error
    frames = torch.from_numpy(arrays(files / "out")).view(2, 3, 1, 8, 8)
    if strength is None:
        ends = model.decode(model.encode(images, label=3), label=3).tensor
    else:
        ends = model.edit(images, strength, label=3).tensor
    assert (frames[:, 0] == ends[:2]).all() and (frames[:, 1] != frames[:, 0]).any()
    rows = model.interpolate(images[:2], images[1:], 3, strength, label=3)
    assert (frames.flatten(0, 1) == rows.tensor).all()
