"""Experiments: settings as published, and one training step of each."""

from pathlib import Path

import pytest
import sets
import torch
from conftest import composed, options
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ddpm_lab.diffusion.conditioning import DataSpec
from ddpm_lab.runs import weights

EXPERIMENTS = [name for name in options("experiment") if name != "distill"]  # of no data set
CLASSIFIER = "adm_imagenet64_classifier"
LATENT = ("digits_latent", "ldm_celebahq256", "ldm_imagenet256")

# name: (batch size, learning rate, T, steps), with the source. T is None without diffusion.
PUBLISHED = {
    # Ho et al. (2020), appendix B; scripts/run_cifar.py and run_lsun.py of hojonathanho/diffusion.
    "ddpm_cifar10": (128, 2e-4, 1000, 800_000),
    "ddpm_lsun": (64, 2e-5, 1000, 1_200_000),  # steps from memory
    # Nichol & Dhariwal (2021), tables 1 and 2; flags in the README of openai/improved-diffusion.
    "iddpm_cifar10": (128, 1e-4, 4000, 500_000),
    # Karras et al. (2022), table 7: 200 million images.
    "edm_cifar10": (512, 1e-3, 1000, 390_625),
    "iddpm_imagenet64": (128, 1e-4, 4000, 1_500_000),
    # Dhariwal & Nichol (2021), table 11.
    "adm_imagenet64": (2048, 3e-4, 1000, 540_000),
    "adm_imagenet64_classifier": (1024, 6e-4, 1000, 300_000),  # table 12
    # Ho & Salimans (2022), section 4: the hyper-parameters of ADM; steps from memory.
    "cfg_imagenet64": (2048, 3e-4, 1000, 400_000),
    # Rombach et al. (2022): configs; steps of KL-f8 from the README of CompVis/latent-diffusion.
    "ldm_autoencoder": (24, 24 * 4.5e-6, None, 246_803),
    "ldm_celebahq256": (48, 48 * 2e-6, 1000, 410_000),
    "ldm_imagenet256": (1200, 1e-4, 1000, 178_000),
    # Ho et al. (2022), Cascaded diffusion models, appendix B; batch and T of stage 2 from memory.
    "cascade_base32": (2048, 1e-4, 4000, 700_000),
    "cascade_32to64": (2048, 1e-4, 4000, 400_000),
    "cascade_64to256": (1024, 1e-4, 2000, 500_000),
    # Small versions: network, rate and steps derived from the data, diffusion as in the papers.
    "digits_ddpm": (64, None, 100, None),
    "digits_iddpm": (64, None, 400, None),
    "digits_cfg": (64, None, 1000, None),
    "digits_flow": (64, None, 1000, None),
    "digits_latent": (64, None, 1000, None),
    "digits_cascade": (64, None, 1000, None),
}

# Schedule, prediction, variance, objective, conditioner and sampler.
CHOICES = {
    "ddpm_cifar10": "linear Eps Beta Simple Unconditional DDPM",
    "ddpm_lsun": "linear Eps BetaTilde Simple Unconditional DDPM",
    "iddpm_cifar10": "cosine Eps LearnedRange Hybrid Unconditional DDPM",
    "edm_cifar10": "edm V BetaTilde Simple Unconditional EDM",
    "iddpm_imagenet64": "cosine Eps LearnedRange Hybrid Unconditional DDPM",
    "adm_imagenet64": "cosine Eps LearnedRange Hybrid Label DDPM",
    "cfg_imagenet64": "cosine Eps BetaTilde Simple Label DDPM",
    "ldm_celebahq256": "quadratic Eps BetaTilde Simple Unconditional DDIM",
    "ldm_imagenet256": "quadratic Eps BetaTilde Simple Tokens DDIM",
    "cascade_base32": "cosine Eps LearnedRange Hybrid Label DDPM",
    "cascade_32to64": "cosine Eps LearnedRange Hybrid LowRes DDPM",
    "cascade_64to256": "cosine Eps LearnedRange Hybrid LowRes DDPM",
    "digits_ddpm": "linear Eps Beta Simple Label DDPM",
    "digits_iddpm": "cosine Eps LearnedRange Hybrid Label DDPM",
    "digits_cfg": "cosine Eps BetaTilde Simple Label DDPM",
    "digits_flow": "flow Velocity BetaTilde Simple Label DDIM",
    "digits_latent": "cosine V BetaTilde Simple Label DDIM",
    "digits_cascade": "cosine Eps BetaTilde Simple LowRes DDIM",
}

# name: (millions of parameters, input shape of the network). Without ldm_imagenet256 (400 M), whose
# yaml explains its smaller size, and without networks of which the papers give no size.
PARAMETERS = {
    "ddpm_cifar10": (35.7, (3, 32, 32)),  # Ho et al. (2020), appendix B
    "ddpm_lsun": (114, (3, 256, 256)),
    "iddpm_imagenet64": (120, (3, 64, 64)),  # Nichol & Dhariwal (2021), section 4
    "adm_imagenet64": (296, (3, 64, 64)),  # Dhariwal & Nichol (2021), table 11
    "ldm_celebahq256": (274, (3, 64, 64)),  # Rombach et al. (2022), appendix
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_matches_publication(name):
    batch, rate, steps, length = PUBLISHED[name]
    config = composed(f"experiment={name}", "trainer.default_root_dir=DIR")
    if name in LATENT:
        assert OmegaConf.is_missing(config.codec, "run"), "only the user can set it"
        config.codec.run = "DIR"
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert config.data.batch_size * config.trainer.accumulate_grad_batches == batch
    assert config.optimizer.lr == (rate and pytest.approx(rate))
    assert config.optimizer.weight_decay == (0.2 if name == CLASSIFIER else 0)
    assert config.trainer.max_steps == length and config.trainer.devices == 1
    if not name.startswith("digits"):
        # In batches: validation must not fall between accumulated gradients.
        assert config.trainer.val_check_interval % config.trainer.accumulate_grad_batches == 0
        assert config.trainer.accelerator == "gpu" and config.lr_schedule._target_.endswith(
            ".Constant"
        )
    if steps is None:
        assert (
            config.system._target_.endswith(".AutoencoderSystem")
            and config.model.bottleneck.weight == 1e-6
        )
        return
    assert config.schedule.steps == steps
    if name == CLASSIFIER:
        return
    assert config.callbacks.fid.every is None
    groups = ("schedule", "prediction", "variance", "objective", "conditioner", "sampler")
    assert " ".join(config[group]._target_.rpartition(".")[2] for group in groups) == CHOICES[name]
    unbounded = (*LATENT, "edm_cifar10")  # latents; EDM does not clip
    assert (config.sampler.clip is None) == (name in unbounded), "only pixels are bounded"
    if not name.startswith("digits"):
        half_life = 0.5 ** (512 / 500_000)  # of 500,000 images, for EDM
        decay = half_life if name == "edm_cifar10" else 0.9999
        assert config.callbacks.ema.decay == pytest.approx(decay, abs=1e-6)
        assert config.callbacks.fid.count == (10_000 if name == "iddpm_imagenet64" else 50_000)


def test_tables_list_every_experiment():
    assert sorted(PUBLISHED) == EXPERIMENTS and {*PUBLISHED} - {*CHOICES} == {
        "ldm_autoencoder",
        CLASSIFIER,
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_match_publication(name):
    millions, shape = PARAMETERS[name]
    config = composed(f"experiment={name}")
    conditioner = instantiate(config.conditioner)(DataSpec(shape, 1000, 2 / 255, None))
    with torch.device("meta"):
        network = instantiate(config.model)(
            shape, outputs=instantiate(config.variance).outputs, **conditioner.cond_dims
        )
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)


def test_overrides_win_over_experiment():
    overrides = [
        "optimizer.lr=1",
        "conditioner=label",
        "sampler=ddim",
        "model=unet",
        "trainer=cpu",
        "data.batch_size=7",
    ]
    config = composed("experiment=ddpm_cifar10", *overrides)
    assert (
        config.optimizer.lr == 1
        and config.data.batch_size == 7
        and config.trainer.accelerator == "cpu"
    )
    assert config.conditioner._target_.endswith(".Label") and config.sampler._target_.endswith(
        ".DDIM"
    )
    assert config.model.channels == 64 and config.data.path == "data/cifar10"
    bound = composed("experiment=iddpm_cifar10", "objective=vlb", "timestep_sampler=importance")
    assert bound.objective._target_.endswith(".Vlb") and bound.timestep_sampler._target_.endswith(
        ".Importance"
    )


def test_unknown_experiment_is_rejected_with_choices(typed):
    status, _, error = typed("train", "experiment=ddpm_cifar")
    assert (
        status == 2
        and "experiment=ddpm_cifar is not a choice (did you mean ddpm_cifar10?); choices: " in error
    )
    assert all(name in error for name in EXPERIMENTS)


SHRUNK = (
    "model.channels=8",
    "model.blocks=1",
    "trainer=cpu",
    "trainer.max_steps=1",
    "logger=csv",
    "trainer.accumulate_grad_batches=1",
    "trainer.val_check_interval=1",
    "trainer.limit_val_batches=1",
    "callbacks.losses.every=1",
    "lr_schedule.warmup=0",
)
SAMPLED = (
    "~callbacks.fid",
    "sampler.steps=2",
    "callbacks.sample_grid.rows=1",
    "callbacks.sample_grid.columns=2",
)
"""Overrides for diffusion: sample at the end, without FID."""
# Downsampling by 4, so that latents of 256x256 are as large as in the papers
AUTOENCODER = (
    "model.multipliers=[1,1,1]",
    "system.perceptual=0",
    "system.start=0",
    "callbacks.reconstructions.rows=1",
    "callbacks.reconstructions.columns=2",
    "extractor.weights=nowhere",
)


@pytest.fixture(scope="module")
def trained(typed, tmp_path_factory):
    """Function that trains a shrunk experiment for one step and returns the run."""

    def train(name, *overrides):
        config, folder = composed(f"experiment={name}"), tmp_path_factory.mktemp(name)
        overrides = [*SHRUNK, *overrides, "data.batch_size=2"]
        overrides += ["model.head_channels=8"] if config.model.get("head_channels") else []
        with pytest.MonkeyPatch.context() as patch:
            if "path" in config.data:
                option = Path(config.data.path).name
                option += str(config.data.resolution) * (option == "imagenet")
                overrides += sets.overrides(option, folder, patch, config.data.resolution)
            status, _, error = typed(
                "train", f"experiment={name}", *overrides, f"hydra.run.dir={folder}/r"
            )
        assert status == 0, error
        return folder / "r"

    return train


@pytest.fixture(scope="module")
def autoencoders(trained, typed, tmp_path_factory):
    """Function that returns the run of a tiny autoencoder, trained once, for latent experiments."""
    runs: dict[bool, Path] = {}

    def make(digits):
        if digits not in runs and digits:
            runs[digits] = tmp_path_factory.mktemp("autoencoder") / "r"
            overrides = ["system=autoencoder", "data.batch_size=2", f"hydra.run.dir={runs[digits]}"]
            status, _, error = typed("train", *SHRUNK, *overrides)
            assert status == 0, error
        elif digits not in runs:
            runs[digits] = trained("ldm_autoencoder", *AUTOENCODER)
        return runs[digits]

    return make


OFTEN = (
    "adm_imagenet64_classifier",
    "cascade_base32",
    "digits_iddpm",
    "digits_latent",
    "ldm_autoencoder",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in OFTEN else pytest.mark.nightly)
        for name in EXPERIMENTS
    ],
)
def test_experiment_takes_a_step_and_samples(name, trained, autoencoders):
    if name == "ldm_autoencoder":
        run = autoencoders(digits=False)
        assert (run / "images" / "reconstructions-000001.png").is_file()
    elif name == CLASSIFIER:
        run = trained(name)
        assert "accuracy" in (run / "metrics.json").read_text()
    else:
        overrides = (
            [f"codec.run={autoencoders(name.startswith('digits'))}"] if name in LATENT else []
        )
        run = trained(name, *SAMPLED, *overrides)
        assert (run / "images" / "samples-000001.png").is_file()
    content = torch.load(weights.checkpoint_files(run)[0], weights_only=True)
    assert content["global_step"] == 1
    assert all(
        torch.isfinite(value).all()
        for value in content["state_dict"].values()
        if torch.is_tensor(value)
    )
