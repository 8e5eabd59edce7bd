"""Published weights: outputs equal to those of other codebases, round trips, and bad input.

Other codebases are diffusers, and the outputs in peer_outputs.json, which
scripts/peer_outputs.py wrote.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import peer_outputs
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, composed
from omegaconf import OmegaConf
from PIL import Image

import ddpm_lab
from ddpm_lab.cli.export_weights import export_weights
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.interop.conversion import import_weights
from ddpm_lab.interop.layout import qkv_rows, shift_time
from ddpm_lab.interop.schedulers import scheduler_overrides
from ddpm_lab.networks.autoencoder import NO_CONDITIONING
from ddpm_lab.networks.dit import sincos_pos_embed
from ddpm_lab.networks.layers import SinusoidalEmbedding, TimeEncoding
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.utils.errors import CorruptFileError, UnsafeFileError, UserError

PEERS = json.loads((ROOT / "tests" / "peer_outputs.json").read_text())
TIMES = torch.tensor(peer_outputs.TIMES)
FLAT = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
COARSE = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SMALL = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, **COARSE}
UNETS = {
    "defaults": SMALL,
    "ddpm": SMALL
    | {
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "groups and heads": SMALL | {"norm_num_groups": 8, "attention_head_dim": 16},
    "labels, rectangle, gray": SMALL
    | {
        "sample_size": [16, 24],
        "in_channels": 1,
        "out_channels": 1,
        "num_class_embeds": 5,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
    },
    "resnet resampling": SMALL
    | {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "no attention, one level more": SMALL
    | {
        "block_out_channels": (32, 32, 96),
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
        "layers_per_block": 2,
    },
}
AUTOENCODERS = {
    "kl": (diffusers.AutoencoderKL, {"layers_per_block": 2}),
    "kl without 1x1 convolutions": (
        diffusers.AutoencoderKL,
        {"use_quant_conv": False, "use_post_quant_conv": False, "norm_num_groups": 16},
    ),
    "vq with attention": (
        diffusers.VQModel,
        {
            "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
            "num_vq_embeddings": 50,
        },
    ),
}
OPENAI = {
    "unet": ["model.heads=2"],
    "three levels": ["model.heads=4"],
    "new order": ["model.heads=null", "model.head_channels=16", "attention_order=new"],
    "half channels": ["model.heads=null", "model.head_channels=8"],
    "upsampler": ["model.heads=4", "conditioner.factor=4"],
}
OPENAI_OPTIONS = ["schedule=linear", "data.resolution=16", "model.time_shift=-1"]


def filled(network):
    """Return `network` in evaluation mode with random tensors, also where it starts at 0."""
    peer_outputs.fill(network)
    return network


def assert_close(actual, expected, tolerance=1e-5):
    error = (actual - expected).norm() / expected.norm()
    assert error < tolerance, f"relative error {error:.1e}"


def assert_equals_peer(output, expected):
    values = torch.tensor(expected["values"], dtype=torch.float64)
    assert_close(output.double().flatten()[::37], values)
    assert output.double().norm().item() == pytest.approx(expected["norm"], rel=1e-5)


def save_pipeline(folder, scheduler=None, **options):
    """Write a pipeline of diffusers with random weights, and return its U-Net."""
    unet = filled(diffusers.UNet2DModel(**options))
    scheduler = scheduler or diffusers.DDPMScheduler(variance_type="fixed_large")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return unet


def load_denoiser(folder):
    return RunDir(str(folder)).pipeline.denoiser


@torch.no_grad()
def both_outputs(unet, denoiser, seed=0):
    """Return the outputs of a U-Net of diffusers and of a network for the same inputs."""
    shape = denoiser.shape
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    labels = None if denoiser.classes is None else torch.arange(3) % denoiser.classes
    ours = denoiser.network(x, 1.0 + TIMES, Condition(labels))
    return ours, unet(x, TIMES, class_labels=labels).sample


@pytest.mark.parametrize("name", UNETS)
def test_unets_of_diffusers(name, tmp_path):
    unet = save_pipeline(tmp_path / "peer", **UNETS[name])
    import_weights(tmp_path / "peer", tmp_path / "run")
    assert_close(*both_outputs(unet, load_denoiser(tmp_path / "run")))


@pytest.mark.parametrize("name", UNETS)
def test_exported_unets_have_the_outputs_and_tensors_of_the_originals(name, tmp_path):
    save_pipeline(tmp_path / "peer", **UNETS[name])
    import_weights(tmp_path / "peer", tmp_path / "run")
    export_weights(tmp_path / "run", tmp_path / "export", ["format=diffusers"])
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "export")
    denoiser = load_denoiser(tmp_path / "run")
    assert_close(*both_outputs(pipeline.unet.eval(), denoiser)[::-1])
    import_weights(tmp_path / "export", tmp_path / "again")
    again = load_denoiser(tmp_path / "again").state_dict()
    for key, value in denoiser.state_dict().items():
        assert torch.equal(again[key], value), key


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_autoencoders_of_diffusers(name, tmp_path):
    kind, options = AUTOENCODERS[name]
    types = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    peer = filled(kind(block_out_channels=(32, 64), **{**types, **options}))
    peer.save_pretrained(tmp_path / "peer")
    import_weights(tmp_path / "peer", tmp_path / "run")
    export_weights(tmp_path / "run", tmp_path / "export", ["format=diffusers"])
    exported = kind.from_pretrained(tmp_path / "export").eval()
    own = RunDir(str(tmp_path / "run")).load_autoencoder()
    x, z = peer_outputs.inputs(2, 3, 32, 32), peer_outputs.inputs(2, *own.latent_shape)
    h = own.quant_conv(own.encoder(own.first(x), NO_CONDITIONING))
    for one in (peer, exported):
        encoded = one.encode(x)
        is_kl = kind is diffusers.AutoencoderKL
        assert_close(h, encoded.latent_dist.parameters if is_kl else encoded.latents)
        assert_close(own.decode(z), one.decode(z).sample)
        if not is_kl:
            codes, _ = own.bottleneck.quantize(z)
            _, _, (_, _, indices) = one.quantize(z)
            assert torch.equal(codes.flatten(), indices.flatten())


@pytest.mark.parametrize("name", OPENAI)
@torch.no_grad()
def test_unets_of_openai(name, tmp_path):
    torch.save(peer_outputs.random_tensors(PEERS[name]["shapes"]), tmp_path / "model.pt")
    import_weights(tmp_path / "model.pt", tmp_path / "run", [*OPENAI[name], *OPENAI_OPTIONS])
    denoiser, more = load_denoiser(tmp_path / "run"), {}
    if name == "upsampler":
        image = F.interpolate(
            peer_outputs.inputs(3, 3, 4, 4, seed=2), scale_factor=4.0, mode="bilinear"
        )
        more = {"image": image, "noise_level": torch.full((3,), 300.0)}  # which has no effect
    labels = torch.tensor([1, 0, 3]) if denoiser.classes else None
    x = peer_outputs.inputs(3, 3, 16, 16)
    output = denoiser.network(x, 1.0 + TIMES, Condition(labels, **more))
    assert_equals_peer(output, PEERS[name]["output"])


@torch.no_grad()
def test_classifiers_of_openai(tmp_path):
    torch.save(peer_outputs.random_tensors(PEERS["classifier"]["shapes"]), tmp_path / "c.pt")
    options = ["model.heads=null", "model.head_channels=16", "model.time_shift=-1"]
    import_weights(tmp_path / "c.pt", tmp_path / "run", [*options, "schedule=linear"])
    classifier = RunDir(str(tmp_path / "run")).load_classifier().eval()
    assert classifier.classes == 7 and classifier.shape == (3, 16, 16)
    output = classifier.network(peer_outputs.inputs(3, 3, 16, 16), 1.0 + TIMES, Condition())
    assert_equals_peer(output, PEERS["classifier"]["output"])


@torch.no_grad()
def test_unets_of_pytorch_diffusion(tmp_path):
    shapes = PEERS["pytorch_diffusion"]["shapes"]
    torch.save(peer_outputs.random_tensors(shapes), tmp_path / "model.ckpt")
    import_weights(tmp_path / "model.ckpt", tmp_path / "run")
    run = RunDir(str(tmp_path / "run"))
    assert run.pipeline.shape == (3, 32, 32), "attention is at 16x16"
    x = peer_outputs.inputs(3, 3, 32, 32)
    output = run.pipeline.denoiser.network(x, 1.0 + TIMES, Condition())
    assert_equals_peer(output, PEERS["pytorch_diffusion"]["output"])


class Callback:
    """A class in the checkpoints of Lightning, which are no tensors."""

    def __reduce__(self):
        return print, ("code of the file was executed",)


def save_latent_diffusion(file, kind="kl", average=True):
    """Write a checkpoint of latent-diffusion; its raw weights are 0 if it has averages."""
    state = peer_outputs.random_tensors(PEERS["latent-diffusion"]["shapes"])
    content = state
    if average:
        content = {name: torch.zeros_like(value) for name, value in state.items()}
        for name, value in state.items():
            content[f"model_ema.{name.removeprefix('model.').replace('.', '')}"] = value
    first_stage = peer_outputs.random_tensors(PEERS[f"first stage {kind}"]["shapes"])
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    extra = {"betas": betas.float(), "scale_factor": torch.tensor(0.25)}
    torch.save({"state_dict": {**content, **first_stage, **extra}, "epoch": 3}, file)


@pytest.mark.parametrize("kind", ["kl", "vq"])
@torch.no_grad()
def test_latent_diffusion(kind, tmp_path):
    save_latent_diffusion(tmp_path / "model.ckpt", kind)
    options = ["data.resolution=32", "model.heads=2"]
    import_weights(tmp_path / "model.ckpt", tmp_path / "run", options)
    run = RunDir(str(tmp_path / "run"))
    assert run.config.schedule.start == 0.0015 and run.config.schedule.end == 0.0195
    x = peer_outputs.inputs(3, 4, 16, 16)
    output = run.pipeline.denoiser.network(x, 1.0 + TIMES, Condition())
    assert_equals_peer(output, PEERS["latent-diffusion"]["output"])
    own, expected = (
        run.pipeline.codec._autoencoder(torch.device("cpu")),
        PEERS[f"first stage {kind}"],
    )
    image = peer_outputs.inputs(2, 3, 32, 32)
    h = own.quant_conv(own.encoder(own.first(image), NO_CONDITIONING))
    assert_equals_peer(h, expected["output"])
    z = own.latent_conv(peer_outputs.inputs(2, 4, 16, 16))
    decoded = own.last(own.end(own.decoder(own.post_quant_conv(z), NO_CONDITIONING)))
    assert_equals_peer(decoded, expected["decoded"])
    z = peer_outputs.inputs(2, 4, 16, 16)
    torch.testing.assert_close(run.pipeline.codec.decode(z), own.decode(z / 0.25))


@torch.no_grad()
def test_diffusion_transformers(tmp_path):
    shapes = PEERS["first stage kl"]["shapes"]
    autoencoder = peer_outputs.random_tensors(shapes)
    first_stage = {
        name.removeprefix("first_stage_model."): value for name, value in autoencoder.items()
    }
    torch.save({"state_dict": first_stage}, tmp_path / "kl.ckpt")
    import_weights(tmp_path / "kl.ckpt", tmp_path / "kl", ["data.resolution=16"])
    state = peer_outputs.random_tensors(PEERS["DiT"]["shapes"])
    with pytest.raises(UserError, match="pos_embed is not that of sines"):
        torch.save(state, tmp_path / "learned.pt")
        import_weights(tmp_path / "learned.pt", tmp_path / "run", ["model.heads=4"])
    state["pos_embed"] = sincos_pos_embed(4, 4, 48)[None]
    raw = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"ema": state, "model": raw, "opt": {}, "args": None}, tmp_path / "dit.pt")
    options = ["model.heads=4", f"codec.run={tmp_path}/kl"]
    import_weights(tmp_path / "dit.pt", tmp_path / "run", options)
    denoiser = load_denoiser(tmp_path / "run")
    dropped = torch.tensor([False, True, False])  # as the label 6 there, the last one
    cond = Condition(torch.tensor([1, 0, 3]), dropped=dropped)
    output = denoiser.network(peer_outputs.inputs(3, 4, 8, 8), 1.0 + TIMES, cond)
    assert_equals_peer(output, PEERS["DiT"]["output"])
    assert denoiser.supports_cfg and denoiser.classes == 6
    with pytest.raises(UserError, match=r"inputs of 8x8, but those of codec.run=.* are 16x16"):
        import_weights(tmp_path / "kl.ckpt", tmp_path / "large", ["data.resolution=32"])
        options = ["model.heads=4", f"codec.run={tmp_path}/large"]
        import_weights(tmp_path / "dit.pt", tmp_path / "other", options)


SCHEDULERS = {
    "linear": {"beta_end": 0.03},
    "quadratic": {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.015},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "v, unbounded": {"prediction_type": "v_prediction", "clip_sample": False},
    "x_0, half the bound": {"prediction_type": "sample", "clip_sample_range": 0.5},
    "fewer steps": {"num_train_timesteps": 500},
}


@pytest.mark.parametrize("name", SCHEDULERS)
@torch.no_grad()
def test_steps_equal_those_of_the_schedulers(name, tmp_path):
    options = SCHEDULERS[name]
    for kind, variance, run in (
        (diffusers.DDPMScheduler, {"variance_type": "fixed_small"}, "ddpm"),
        (diffusers.DDPMScheduler, {"variance_type": "fixed_large"}, "large"),
        (diffusers.DDIMScheduler, {}, "ddim"),
    ):
        if run == "ddim" and name == "sigmoid":
            continue  # only the DDPMScheduler has it
        scheduler = kind(**options, **variance)
        unet = save_pipeline(tmp_path / f"{run}-peer", scheduler, **UNETS["groups and heads"])
        import_weights(tmp_path / f"{run}-peer", tmp_path / run)
        pipeline = RunDir(str(tmp_path / run)).pipeline
        steps = pipeline.process.steps
        scheduler.set_timesteps(steps)
        x = peer_outputs.inputs(2, 3, 16, 16)
        t, s = torch.tensor(steps // 2 + 1), torch.tensor(steps // 2)
        estimate = pipeline.denoiser(x, t.expand(2))
        clip = pipeline.sampler.clip
        if clip is not None:
            estimate = estimate._replace(x0=estimate.x0.clamp(-clip, clip))
        output = unet(x, t - 1).sample
        step = scheduler.step(output, t - 1, x, generator=torch.Generator().manual_seed(3))
        assert_close(estimate.x0, step.pred_original_sample)
        if kind is diffusers.DDIMScheduler:
            alpha, sigma = (value.float() for value in pipeline.process.alpha_sigma(s))
            alpha_t, sigma_t = (value.float() for value in pipeline.process.alpha_sigma(t))
            # diffusers keeps the eps of the unclipped estimate unless use_clipped_model_output.
            eps = (x - alpha_t * pipeline.denoiser(x, t.expand(2)).x0) / sigma_t
            assert_close(alpha * estimate.x0 + sigma * eps, step.prev_sample)
        else:
            reverse = pipeline.denoiser.reverse(estimate, x, t, s)
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
            sample = reverse.mean + (0.5 * reverse.log_var).exp() * noise
            assert_close(sample.float(), step.prev_sample)


SDE = {"algorithm_type": "sde-dpmsolver++"}


@pytest.mark.parametrize(
    ("name", "options", "sampler", "spacing"),
    [
        ("EulerDiscreteScheduler", {}, "ddim", None),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "ddim", "karras"),
        ("EulerAncestralDiscreteScheduler", {}, "ancestral", None),
        ("UniPCMultistepScheduler", {}, "uni_pc", None),
        ("DPMSolverMultistepScheduler", {}, "dpm_solver", None),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++"},
            "dpm_solver_sde",
            None,
        ),
    ],
)
def test_schedulers_select_the_sampler(name, options, sampler, spacing):
    config = dict(getattr(diffusers, name)(**options).config) | {"_class_name": name}
    overrides = scheduler_overrides(config, False)
    assert overrides["sampler"] == sampler and overrides.get("sampler.spacing") == spacing
    composed(*(f"{key}={value}" for key, value in overrides.items() if value is not None))


def test_imported_runs_are_sampled_and_measured(tmp_path, typed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pipeline("peer", **UNETS["labels, rectangle, gray"])
    import_weights("peer", Path("run"))
    status, output, error = typed("sample", "run=run", "count=2", "sampler.steps=2", "label=3")
    assert status == 0 and "grid.png" in output, error
    model = ddpm_lab.load("run")
    samples = model.sample(2, label=3, steps=2)
    saved = np.load(next(Path("run/samples").glob("*/samples.npz")))
    assert np.array_equal(samples.arrays()["images"], saved["images"])
    with pytest.raises(UserError, match="trained with some conditions dropped"):
        model.sample(2, guidance=2.0, overrides=["guidance=classifier_free"])
    assert ddpm_lab.load("peer").sample(2, label=3, steps=2).tensor.equal(samples.tensor)
    assert ddpm_lab.import_weights("peer", "other") == Path("other")
    assert ddpm_lab.export("other", "back") == Path("back") and Path("back/unet").is_dir()
    with pytest.raises(UserError, match="format must be"):
        ddpm_lab.export("other", "again", format="jax")


@pytest.mark.slow
def test_trained_runs_are_exported(tiny, tmp_path):
    overrides = ("schedule.steps=1000", "model.norm_groups=8", "conditioner=none", "guidance=none")
    run = tiny(*overrides)
    export_weights(run, tmp_path / "export", ["format=diffusers", "license=mit"])
    card = (tmp_path / "export" / "README.md").read_text()
    assert 'license: "mit"' in card and "python train.py" in card and "| fid |" in card
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "export")
    # The network was trained with times 1..1000, and takes 0..999 in diffusers.
    assert_close(*both_outputs(pipeline.unet.eval(), load_denoiser(run))[::-1])
    images = pipeline(num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 1)


@pytest.mark.parametrize("dry", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_ablations_measure_published_weights(dry, tmp_path, typed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_LAB_CACHE", str(tmp_path / "cache"))
    small = {"block_out_channels": (32,), "sample_size": 8, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    save_pipeline("peer", **small, **blocks)
    generator = np.random.default_rng(0)
    Path("images").mkdir()
    for i in range(30):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"images/{i}.png")
    table = ["ablation=ddim_table2", "tier=published", "weights=peer", "data=folder"]
    table += ["data.path=images", "evaluate.reconstruction.count=2"]
    options = ["dry=true"] if dry else ["jobs=1"]
    status, output, error = typed("train", *table, *options)
    assert status == 0 and "ddim_table2 error, 1000" in output, error + output
    status, output, error = typed("report", *table)
    assert status == 0, error
    reports = "".join(file.read_text() for file in Path("runs/reports/ddim_table2").glob("*.csv"))
    assert "published" in reports and ("done" in reports) != dry
    status, _, error = typed("train", "ablation=ddim_table2", "weights=peer")
    assert status == 2 and "weights= is for tier=published" in error
    status, output, _ = typed("train", "ablation=ddpm_table2", "tier=published")
    assert "weights of its models were not published" in output


def test_openai_files_are_read_again(tmp_path):
    save_pipeline(tmp_path / "peer", **UNETS["defaults"])
    import_weights(tmp_path / "peer", tmp_path / "run", ["schedule.rescale=true"])
    export_weights(tmp_path / "run", tmp_path / "export", ["format=openai"])
    card = (tmp_path / "export" / "README.md").read_text()
    assert "--num_channels 32" in card and "--attention_resolutions 8" in card
    options = [*OPENAI_OPTIONS, "model.heads=null", "model.head_channels=8"]
    import_weights(tmp_path / "export" / "model.pt", tmp_path / "again", options)
    one, two = (load_denoiser(tmp_path / name).state_dict() for name in ("run", "again"))
    assert all(torch.equal(two[name], value) for name, value in one.items())


def test_times_of_openai_must_be_stated_unless_there_are_1000(tmp_path):
    write_file("", tmp_path / "x.pt")
    options = ["schedule=linear", "data.resolution=16", "model.heads=2"]
    with pytest.raises(UserError, match=r"add model.time_scale=1 model.time_shift=-1000/T"):
        import_weights(tmp_path / "x.pt", tmp_path / "run", [*options, "schedule.steps=4000"])
    import_weights(tmp_path / "x.pt", tmp_path / "run", options)
    assert RunDir(str(tmp_path / "run")).config.model.time_shift == -1
    # The hint for head_channels works as it stands.
    options[-1] = "model.head_channels=16"
    import_weights(tmp_path / "x.pt", tmp_path / "other", options)


def test_runs_start_from_imported_networks(tmp_path, typed):
    save_pipeline(tmp_path / "peer", **UNETS["ddpm"])
    import_weights(tmp_path / "peer", tmp_path / "imported")
    options = ["data=synthetic", "data.resolution=16", "data.channels=3", "optimizer.lr=1e-9"]
    status, output, error = typed(
        "train",
        *(f"init={tmp_path}/imported", *options, "variance=beta", "schedule=linear"),
        *(
            "conditioner=none",
            "guidance=none",
            "trainer.max_steps=1",
            "extractor=none",
            "callbacks=none",
        ),
        *("logger=csv", f"hydra.run.dir={tmp_path}/run"),
    )
    assert status == 0, error + output
    one = load_denoiser(tmp_path / "imported")
    two = RunDir(str(tmp_path / "run"), OmegaConf.create({"weights": "raw"})).pipeline.denoiser
    x, t = peer_outputs.inputs(2, 3, 16, 16), torch.tensor([500, 3])
    assert_close(two(x, t).x0, one(x, t).x0)


def test_latent_models_move_with_their_autoencoder(tmp_path):
    save_latent_diffusion(tmp_path / "model.ckpt")
    options = ["data.resolution=32", "model.heads=2"]
    import_weights(tmp_path / "model.ckpt", tmp_path / "run", options)
    (tmp_path / "run").rename(tmp_path / "moved")
    ddpm_lab.share(tmp_path / "moved", tmp_path / "shared")
    (tmp_path / "moved").rename(tmp_path / "again")
    samples = [
        ddpm_lab.load(tmp_path / name).sample(1, steps=1).tensor for name in ("again", "shared")
    ]
    assert torch.equal(*samples)


def test_shifted_time_is_a_rotation():
    weight, t = torch.randn(5, 16, dtype=torch.float64), torch.linspace(1, 999, 7)
    for frequency_shift in (0, 1):
        encodings = [TimeEncoding(1.0, shift, frequency_shift) for shift in (0.0, 0.75)]
        plain, later = (SinusoidalEmbedding(16, encoding)(t).double() for encoding in encodings)
        turned = shift_time(weight, 0.75, frequency_shift)
        torch.testing.assert_close(plain @ turned.T, later @ weight.T, atol=2e-3, rtol=0)


def test_orders_of_attention_differ_with_several_heads():
    assert torch.equal(qkv_rows(4, 1, "old"), qkv_rows(4, 1, "new"))
    assert qkv_rows(4, 2, "old").tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


def test_half_precision_becomes_single(tmp_path):
    unet = filled(diffusers.UNet2DModel(**UNETS["defaults"])).half()
    scheduler = diffusers.DDPMScheduler()
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "peer")
    import_weights(tmp_path / "peer", tmp_path / "run")
    assert_close(*both_outputs(unet.float(), load_denoiser(tmp_path / "run")))


def rewrite(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def broken(case, folder):
    """Write a source with a fault, and return it."""
    source = folder / "peer"
    save_pipeline(source, **UNETS["defaults"])
    unet, scheduler = source / "unet" / "config.json", source / "scheduler/scheduler_config.json"
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"
    match case:
        case "no config":
            unet.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "scheduler":
            rewrite(scheduler, _class_name="PNDMScheduler")
        case "betas":
            rewrite(scheduler, trained_betas=[0.1] * 1000)
        case "groups":
            rewrite(unet, norm_num_groups=24)
        case "class":
            rewrite(unet, _class_name="UNet2DConditionModel")
        case "block":
            types = ["DownBlock2D", "CrossAttnDownBlock2D"]
            rewrite(unet, down_block_types=types)
        case "width":
            rewrite(unet, block_out_channels=[32, 96])
        case "single file":
            return weights
    return source


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("no config", UserError, "has no config.json"),
        ("truncated", CorruptFileError, "is truncated"),
        ("scheduler", UserError, "PNDMScheduler has no counterpart"),
        ("betas", UserError, "trained_betas of DDPMScheduler has no counterpart"),
        ("groups", UserError, "norm_groups=24 must divide the channels"),
        ("class", UserError, "UNet2DConditionModel is not a network of this project"),
        ("block", UserError, "CrossAttnDownBlock2D is not a block"),
        ("width", UserError, "does not fit the model"),
        ("single file", UserError, "options are in config.json; try its folder"),
    ],
)
def test_broken_folders(case, error, message, tmp_path):
    source = broken(case, tmp_path)
    with pytest.raises(error, match=message) as caught:
        import_weights(source, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def write_file(case, file):
    state = peer_outputs.random_tensors(PEERS["unet"]["shapes"])
    match case:
        case "text":
            file.write_text("weights")
        case "code":
            file.write_bytes(pickle.dumps({"a": Callback()}))
        case "code in a zip":
            torch.save({**state, "callback": Callback()}, file)
        case "unknown":
            torch.save({"a.weight": torch.zeros(2)}, file)
        case "no tensors":
            torch.save({"a": 1}, file)
        case "incomplete":
            torch.save({k: v for k, v in state.items() if k != "out.2.bias"}, file)
        case "transformer":
            name = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
            torch.save({**state, name: torch.zeros(2, 2)}, file)
        case "left over":
            torch.save({**state, "extra.weight": torch.zeros(2)}, file)
        case "no average":
            save_latent_diffusion(file, average=False)
        case _:
            torch.save(state, file)


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("missing", UserError, "does not exist"),
        ("text", CorruptFileError, "is not a file of tensors"),
        ("code", UnsafeFileError, "more than tensors"),
        ("unknown", UserError, r"no known format \(its first tensor is a.weight\); the formats"),
        ("no tensors", CorruptFileError, "has no tensors"),
        ("incomplete", CorruptFileError, "the tensor out.2.bias is missing"),
        ("transformer", UserError, "input_blocks.1.1 is a SpatialTransformer"),
        ("left over", UserError, "1 tensors have no place .* such as extra.weight"),
        ("no average", UserError, "no averaged weights .*; try weights=raw"),
        ("heads", UserError, "add data.resolution=64; model.heads=4, or .*; schedule=linear"),
        ("target", UserError, "exists, and nothing is overwritten"),
        ("order", UserError, "attention_order must be old or new"),
        ("raw", UserError, "weights=raw is not an option of guided-diffusion"),
        ("wrong heads", UserError, "heads=5 must divide"),
    ],
)
def test_broken_files(case, error, message, tmp_path, capsys):
    file, target = tmp_path / "x.ckpt", tmp_path / "run"
    if case != "missing":
        write_file(case, file)
    words = [] if case == "heads" else [*OPENAI_OPTIONS, "model.heads=2"]
    words += {
        "order": ["attention_order=bad"],
        "raw": ["weights=raw"],
        "wrong heads": ["model.heads=5"],
    }.get(case, [])
    if case == "target":
        target.mkdir()
    with pytest.raises(error, match=message) as caught:
        import_weights(file, target, words)
    assert str(caught.value).count("\n") <= 1 and (case == "target") == target.exists()
    assert "executed" not in capsys.readouterr().out


def test_objects_in_a_file_are_ignored_and_not_executed(tmp_path, capsys):
    write_file("code in a zip", tmp_path / "x.pt")
    import_weights(tmp_path / "x.pt", tmp_path / "run", [*OPENAI_OPTIONS, "model.heads=2"])
    assert "executed" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "format", "message"),
    [
        ((), "diffusers", "conditioner.dropout=0.1: the embedding of dropped labels"),
        (("conditioner=none", "guidance=none"), "diffusers", r"norms .* have \[2, 4\] groups"),
        (
            ("conditioner=none", "guidance=none", "variance=learned_range", "objective=hybrid"),
            "diffusers",
            "variance=LearnedRange has no counterpart",
        ),
        (("conditioner=none", "guidance=none"), "openai", "its images have 3 channels, and these"),
        (
            ("conditioner=none", "guidance=none"),
            "jax",
            "format must be diffusers or openai or onnx",
        ),
    ],
)
def test_exports_refuse_what_a_format_cannot_state(overrides, format, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        export_weights(tiny(*overrides), tmp_path / "export", [f"format={format}"])
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_commands_import_and_export(tmp_path):
    save_pipeline(tmp_path / "peer", **UNETS["defaults"])

    def run(program, *words):
        return subprocess.run(
            [sys.executable, str(ROOT / f"{program}.py"), *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    result = run("import", "peer", "run")
    assert result.returncode == 0 and "sample.py run=run" in result.stdout, result.stderr
    result = run("export", "run", "back", "format=diffusers")
    assert result.returncode == 0 and "README.md" in result.stdout, result.stderr
    result = run("import", "nowhere", "other")
    assert result.returncode == UserError.status
    assert result.stderr == "error: SOURCE=nowhere does not exist\n"
