"""Mistakes as a user types them: each gets a short message with a hint, and leaves no files."""

import errno
import os
import random
import re
import shutil
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import wandb
from conftest import CONFIGS, FAST, composed, options
from omegaconf import OmegaConf
from PIL import Image

FOLDER = ("data=folder", "extractor=none", "data.batch_size=4")
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
BRIEF = ("callbacks=none", "logger=csv", "model.channels=8", "trainer.max_steps=1")
MISTAKES = """
train schedule=cosin
    2 schedule=cosin is not a choice (did you mean cosine?); choices: constant, cosine,
train hydra/launcher=procesess
    2 hydra/launcher=procesess is not a choice (did you mean processes?)
sample run=RUN sampler=ddmp
    2 sampler=ddmp is not a choice (did you mean ddpm?)
train optimizer.weight_dacay=0.1
    2 optimizer has no key weight_dacay (did you mean weight_decay?)
train shedule.steps=10
    2 the configuration has no key shedule (did you mean schedule?)
train callbacks.emma.decay=0.9
    2 callbacks has no key emma (did you mean ema?)
train --multirn
    2 --multirn is not an option (did you mean --multirun?)
train ~callbacks.emma
    2 callbacks has no key emma (did you mean ema?)
train schedule.steps=abc
    2 schedule.steps=abc has the wrong type: it should be a valid integer
train schedule.steps=1.5
    2 schedule.steps=1.5 has the wrong type: it should be a valid integer
train optimizer.lr=1e-4x
    2 optimizer.lr=1e-4x has the wrong type: it should be a valid number
train optimizer.lr=true
    2 optimizer.lr=True has the wrong type: it should be a valid number
train model.blocks=true
    2 model.blocks=True has the wrong type: it should be a valid number
train optimizer.betas=[0.9]
    2 optimizer.betas=[0.9] has the wrong type: it has too few entries
evaluate run=RUN metrics=[nll] nll.steps=abc
    2 nll.steps=abc has the wrong type: it should be a valid integer
evaluate run=RUN metrics=[nll] nll.spacing=-3
    2 nll.spacing=-3 has the wrong type: it should be a valid string
evaluate model=exact conditional=maybe sampler=ddim
    2 conditional=maybe has the wrong type: it should be a valid boolean
evaluate model=exact mean=[a]
    2 mean=['a'] and covariance=
train schedule.steps=
    2 schedule.steps= has the wrong type
train optimizer.lr=
    2 optimizer.lr= has the wrong type
train schedule.steps=0
    2 schedule.steps must be at least 1 (got 0); try schedule.steps=1000
train schedule.steps=-5
    2 schedule.steps must be at least 1 (got -5)
train schedule=linear schedule.start=-0.1
    2 schedule.start must be above 0 and below 1 (got -0.1)
train schedule=linear schedule.end=1
    2 schedule.end must be above 0 and below 1 (got 1)
train schedule=constant schedule.beta=nan
    2 schedule.beta must be above 0 and below 1 (got nan)
train schedule=linear schedule.start=[0.1,0.2]
    2 schedule.start=[0.1, 0.2] has the wrong type
train schedule.offset=nan
    2 schedule.offset must be at least 0 (got nan); try schedule.offset=0.008
train schedule=linear schedule.start=0.02 schedule.end=1e-4
    2 schedule.start=0.02 is above end=0.0001
train schedule=sigmoid schedule.start=0.02 schedule.end=1e-4
    2 schedule.start=0.02 is above end=0.0001
train model.multipliers=[1,2,2,2,2]
    2 8x8 does not allow; try model.multipliers=[1,2,2,2], or a resolution of 16
train model.attention=[5]
    2 resolution 5 does not occur; images of 8x8 reach [8, 4]
train model.heads=5
    2 model.heads=5 must divide the 64 channels
train model.heads=null model.head_channels=7
    2 model.head_channels=7 must divide the 64 channels
train model.channels=33
    2 model.channels must be even
train model.multipliers=[]
    2 model.multipliers must be one or more numbers above 0 (got [])
train model.blocks=0
    2 model.blocks must be at least 1 (got 0)
sample run=RUN variance=learned_range
    2 variance=learned_range must be learned, but this run was
sample run=RUN strength=null
    2 strength=null has the wrong type: it should be a valid number
train callbacks.sample_grid.every=null
    2 callbacks.sample_grid.every=null has the wrong type: it should be a valid integer
sample run=RUN guidance=pigdm guidance.image=gray.png guidance.operator=gray
    2 guidance.operator=gray needs RGB images (this model has 1 channel)
evaluate run=RUN metrics=[memorisation]
    2 ode_nll, prc, reconstruction (did you mean memorization?)
evaluate run=RUN metrics=[xyz]
    2 ode_nll, prc, reconstruction; try metrics=[nll]
train init=nowhere experiment=distill
    2 init=nowhere is not a run directory
train variance=learned_range
    2 which objective=simple does not contain; try objective=hybrid
train variance=learned_diagonal objective=min_snr
    2 which objective=min_snr does not contain; try
train sampler.steps=2000
    2 sampler.steps must be in 1..1000, the T of the schedule (got 2000)
sample run=RUN sampler.steps=2000
    2 sampler.steps must be in 1..1000, the T of the schedule (got 2000)
train sampler.steps=0
    2 sampler.steps must be at least 1 (got 0)
train sampler.eta=1.5
    2 sampler.eta must be at least 0 and at most 1 (got 1.5)
train sampler=dpm_solver sampler.order=9
    2 sampler has no key order; keys: steps, spacing
train sampler=edm sampler.s_tmin=5 sampler.s_tmax=1
    2 sampler.s_tmin=5 is above s_tmax=1, so no step would add noise; try sampler.s_tmin=0.05
train sampler=edm sampler.s_churn=-1
    2 sampler.s_churn must be at least 0 (got -1)
train sampler=dpm_solver_3m sampler.steps=3
    2 sampler.steps=3 are too few for the order of this solver; try sampler.steps=4
train sampler.spacing=karas
    2 sampler.spacing=karas is not one of uniform, quadratic
train sampler.spacing="karras7:0.001,80"
    2 must descend from at most 2.029e+04 to at least 0.006425, the noise levels of the schedule
train sampler.spacing="sigmas:1,10" sampler.steps=null
    2 sampler.spacing=sigmas:1,10 must descend
evaluate run=RUN metrics=[nll] nll.spacing=karras
    2 nll.spacing=karras has times between those of the schedule
sample run=RUN sampler=ddpm sampler.spacing=karras sampler.steps=4 variance=analytic
    2 variance=analytic is estimated at the times of the schedule
sample run=RUN mode=interpolate sampler=ddpm sampler.steps=4 count=2
    2 sampler=ddpm adds noise, so its samples do not follow x_T; try sampler=ddim sampler.eta=0
sample run=RUN mode=interpolate sampler.eta=0.5 count=2
    2 sampler=ddim adds noise
sample run=RUN mode=interpolate strength=0.4 count=2
    2 strength=0.4 needs images for mode=interpolate; try input=test
sample run=RUN strength=0.3 count=2
    2 strength=0.3 has no effect in mode=sample; try mode=edit or interpolate
sample run=RUN mode=encode sampler=edm sampler.s_churn=5 sampler.steps=4
    2 cannot be run backwards; try sampler=ddim
train timestep_sampler=log_normal timestep_sampler.std=0
    2 timestep_sampler.std must be above 0 (got 0)
train objective=vlb variance=learned_range timestep_sampler=log_normal
    2 objective=vlb is a bound over uniform times, not over those of timestep_sampler=log_normal
train schedule=edm schedule.data_std=0
    2 schedule.data_std must be above 0 (got 0)
sample run=DEAF guidance=classifier_free guidance.w=1
    2 guidance.w=1 needs a conditional model
train conditioner.dropout=0 guidance.w=1
    2 try guidance.w=0, or train with conditioner=label
train guidance.w=nan
    2 guidance.w must be at least 0 and at most 10000 (got nan)
train guidance.w=-1
    2 guidance.w must be at least 0 and at most 10000 (got -1)
sample run=RUN guidance.scale=1e9
    2 guidance.scale must be at least 0 and at most 10000 (got 1000000000.0)
train guidance=classifier guidance.classifier.run=NAMED guidance.scale=nan
    2 guidance.scale must be at least 0 and at most 10000
sample run=RUN label=10
    2 label=10 is not a label of this model: 0 zero, 1 one, 2 two
sample run=RUN label=[1,sevne]
    2 8 eight, 9 nine (did you mean seven?)
train guidance=classifier
    2 guidance.classifier.run must be given
train guidance=classifier guidance.classifier.run=nowhere
    2 guidance.classifier.run=nowhere is not a run directory
train guidance=classifier guidance.classifier.run=RUN
    2 is a diffusion model, not a classifier
train guidance=classifier guidance.classifier.run=NAMED schedule.steps=500
    2 try schedule=cosine schedule.steps=1000 schedule.offset=0.008 schedule.max_beta=0.999 for both
train guidance=classifier guidance.classifier.run=NAMED data.resolution=4
    2 guidance.classifier was trained on data of shape (1, 8, 8), but this model on (1, 4, 4)
train guidance=classifier guidance.classifier.run=NAMED data=synthetic data.resolution=8 \
data.channels=1 data.classes=5
    2 guidance.classifier was trained on data of classes 10, but this model on 5
train data=folder
    2 data.path must be a folder of images (got None); try data.path=DIR
train data=folder data.path=nowhere
    2 data.path must be a folder of images (got nowhere)
train data=folder data.path=a_file
    2 data.path must be a folder of images (got a_file)
train data=folder data.path=EMPTY
    2 data.path=EMPTY holds 0 images, but at least 4 are needed
train data=folder extractor=none data.batch_size=4 data.path=MIXED
    2 MIXED/20.png; a model needs images of one size; try data.convert=true
train data=folder extractor=none data.batch_size=4 data.path=MODES
    2 expected 8x8 RGB; try data.convert=true
train data=folder extractor=none data.batch_size=4 data.path=DEEP
    2 DEEP/20.png is 8x8 I;16, expected 8x8 RGB; try data.convert=true
train data=folder extractor=none data.batch_size=4 data.path=BROKEN
    2 BROKEN/03.png cannot be read as an image
train data=folder extractor=none data.batch_size=4 data.path=BROKEN data.on_error=skip
    2 data.on_error=skip leaves out at most 1% of 20 images
train data.batch_size=5000
    2 data.batch_size must be in 1..1437, the number of training samples
train data.batch_size=0
    2 data.batch_size must be in 1..1437
train data=folder extractor=none data.batch_size=4 data.path=PLAIN data.workers=-1
    2 data.workers must be at least 0 and at most 64
train data=folder extractor=none data.batch_size=4 data.path=PLAIN data.workers=500
    2 data.workers must be at least 0 and at most 64
train optimizer.lr=0
    2 optimizer.lr must be above 0 (got 0)
train optimizer.lr=inf
    2 optimizer.lr must be above 0 (got inf)
train optimizer.weight_decay=-1
    2 optimizer.weight_decay must be at least 0 (got -1)
train callbacks.ema.decay=1
    2 callbacks.ema.decay must be at least 0 and below 1 (got 1); try callbacks.ema.decay=0.9999
train lr_schedule.warmup=900
    2 lr_schedule.warmup=900 is longer than the training, trainer.max_steps=
train callbacks.fid.count=1
    2 callbacks.fid.count must be at least 2 (got 1)
evaluate run=RUN count=1
    2 count must be at least 2 (got 1)
evaluate run=RUN extractor=inception extractor.weights=nowhere
    2 extractor.weights=nowhere is not a file; the usual name is weights-inception-2015
evaluate run=RUN extractor=inception extractor.weights=a_file
    2 its SHA-256 begins with
train trainer=gpu
    3 trainer.accelerator=gpu, but this machine has no GPU; try trainer=cpu
train trainer=ddp
    3 trainer.accelerator=gpu, but this machine has no GPU; try trainer=cpu
train system=classifier model=classifier callbacks=classifier trainer=fsdp trainer.accelerator=cpu
    2 trainer.strategy: FSDP shards the layers in the module lists of a denoiser, and this system
train trainer.accelerator=tpu
    2 trainer.accelerator=tpu is not one of cpu, gpu, cuda, mps, auto
train trainer.devices=0
    2 trainer.devices=0 must be auto, or at least 1
train trainer.devices=2
    2 trainer.devices=2 is more than one device; try trainer=ddp
train trainer.precision=16
    2 trainer.precision=16 would round the float64 tables
sample run=nowhere
    2 run=nowhere is not a run directory (no config.yaml in it)
sample run=runs/today/1O
    2 (no config.yaml in it); did you mean runs/today/10?
sample run=runs/today/10
    2 run=runs/today/10 has no checkpoint yet
sample
    2 run must be given; try run=...
train hydra.run.dir=a_file/run
    3 a_file/run cannot be created as a directory (Not a directory)
train trainer.default_root_dir=a_file/run
    3 a_file/run cannot be written to: 
sample run=RUN out=a_file/here
    3 out=a_file/here cannot be created (Not a directory)
train codec=autoencoder
    2 codec.run must be given
train codec=autoencoder codec.run=nowhere
    2 codec.run=nowhere is not a run directory
train codec=autoencoder codec.run=RUN
    2 is a diffusion model, not an autoencoder
train codec=autoencoder codec.run=CODER data=synthetic data.resolution=8
    2 was trained on data of shape (1, 8, 8), but this data has shape (3, 8, 8); they must agree
sample cascade=[RUN,RUN]
    2 cascade: stage 2 does not upsample; it must be trained with
sample cascade=[RUN,LARGER]
    2 cascade: stage 1 samples images of 1x8x8, but stage 2 upsamples
sample cascade=[]
    2 cascade=[] must be a list of runs
train conditioner=low_res conditioner.factor=3
    2 conditioner.factor=3 must divide images of 8x8
train -m seed=range(0,100000)
    2 this sweep has more than 1000 jobs, but at most hydra.launcher.limit=
train -m seed=range(0,900) model.channels=range(2,900,2)
    2 this sweep has 900 x 449 jobs, but at most
train -m seed=range(0,0)
    2 seed=range(0,0) has no values, so this sweep has no jobs; try seed=A,B
train ablation=[]
    2 ablation=[] selects nothing
"""
"""A command line, then its exit status and a part of its message; capitals name fixtures"""


@pytest.fixture(scope="session")
def trained(typed, tmp_path_factory):
    """Return the directories of runs of ten steps by their names in `MISTAKES`."""
    root = tmp_path_factory.mktemp("trained")
    no_sampling = ("trainer=debug", "logger=csv", "model.channels=8", "callbacks.losses.every=5")
    small = (*(word for word in FAST if not word.startswith("callbacks")), "callbacks=none")
    commands = {
        "RUN": FAST,
        "DEAF": (*small, "conditioner=none"),
        "LARGER": (*FAST[:-1], "conditioner=low_res", "data.batch_size=16"),
        "NAMED": ("system=classifier", *no_sampling),
        "CODER": ("system=autoencoder", *no_sampling, "callbacks.reconstructions.every=10"),
    }
    for name, overrides in commands.items():
        status, _, error = typed("train", *overrides, f"hydra.run.dir={root}/{name}")
        assert status == 0, error
    return {name: str(root / name) for name in commands}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the working directory with the files that `MISTAKES` names; training fails in it."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    for name in ("EMPTY", "PLAIN", "MIXED", "MODES", "DEEP", "BROKEN"):
        Path(name).mkdir()
        for i in range(0 if name == "EMPTY" else 20):
            Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                f"{name}/{i:02}.png"
            )
    Image.new("RGB", (9, 8)).save("MIXED/20.png")
    for mode, suffix in {"L": "png", "RGBA": "png", "CMYK": "jpg"}.items():
        Image.new(mode, (8, 8)).save(f"MODES/{mode}.{suffix}")
    Image.fromarray(noise.integers(0, 2**16, (8, 8), dtype=np.uint16)).save("DEEP/20.png")
    Path("BROKEN/03.png").write_bytes(Path("BROKEN/03.png").read_bytes()[:60])
    Image.new("L", (8, 8)).save("gray.png")
    Path("a_file").write_text("not a folder")
    Path("runs/today/10").mkdir(parents=True)
    OmegaConf.save(composed(), "runs/today/10/config.yaml", resolve=False)
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *_, **__: pytest.fail("training began"))
    return tmp_path


def files(*places):
    return {str(file) for place in places for file in Path(place).rglob("*") if file.is_file()}


def check_error(result, status, message):
    """Check the exit status, the message and the form of an error."""
    code, _, error = result
    assert code == status and message in error, error
    assert error.startswith("error: ") and "Traceback" not in error, error
    assert error.count("\n") <= 3, error


LINES = MISTAKES.strip().splitlines()


@pytest.mark.parametrize(
    ("line", "result"), zip(LINES[::2], LINES[1::2], strict=True), ids=LINES[::2]
)
def test_mistake_is_reported_before_any_file_is_written(line, result, trained, typed, here):
    status, message = result.split(maxsplit=1)
    if "has no GPU" in message and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    verb, *overrides = re.sub("|".join(trained), lambda match: trained[match[0]], line).split()
    before = files(here, *trained.values())
    result = typed(verb, *overrides, *["logger=csv"] * (verb == "train"))
    check_error(result, int(status), message)
    assert files(here, *trained.values()) == before


def test_single_step_chain_trains_and_samples_without_nan(typed, tmp_path):
    overrides = ("schedule.steps=1", "sampler.steps=1", f"hydra.run.dir={tmp_path}/r")
    assert typed("train", *FAST, *overrides)[0] == 0
    names = ("metrics.csv", "metrics.json")
    metrics = "".join((tmp_path / "r" / name).read_text() for name in names)
    assert "nan" not in metrics.lower() and '"fid"' in metrics


def test_nonzero_terminal_snr_logs_a_warning(typed, tmp_path):
    overrides = ("schedule=linear", "schedule.steps=50", "schedule.rescale=false")
    status, out, error = typed("train", *overrides, *BRIEF, f"hydra.run.dir={tmp_path}/r")
    assert status == 0, error
    assert "warning: schedule ends at t = 50, where alpha_bar = 0.6 is above 1e-3" in out


def test_converted_and_skipped_images_are_logged(typed, here, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(here)
    for i in range(20, 150):
        Image.new("RGB", (8, 8), (i, i, i)).save(f"MODES/{i}.png")
    Path("MODES/20.png").write_bytes(b"no image")
    overrides = ("data.path=MODES", "data.convert=true", "data.on_error=skip", "hydra.run.dir=out")
    status, out, _ = typed("train", *FOLDER, *overrides, *BRIEF)
    assert status == 0
    assert "left out 1 of 153 images; the first: MODES/20.png cannot be read as an image" in out
    conversions = "1 composited over white, 1 from CMYK to RGB, 1 from L to RGB, 1 from RGBA to RGB"
    assert f"converted: {conversions}" in out


def test_damaged_cached_statistics_are_computed_again(trained, typed, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_LAB_CACHE", str(tmp_path / "cache"))
    metrics = set()
    for i in range(3):
        assert typed("evaluate", f"run={trained['RUN']}", "count=20", f"out={tmp_path}/{i}")[0] == 0
        metrics.add((tmp_path / str(i) / "metrics.json").read_text())
        for file in (tmp_path / "cache").iterdir():
            file.write_bytes(file.read_bytes()[:100]) if i == 0 else file.unlink()
    assert len(metrics) == 1


def test_failed_download_names_path_and_hash_of_weights(trained, typed, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    result = typed("evaluate", f"run={trained['RUN']}", "extractor=inception")
    file = f"{tmp_path}/hub/checkpoints/{INCEPTION}"
    message = f"save {INCEPTION}, whose SHA-256 begins with 6726825d, as {file}"
    check_error(result, 2, message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "trainer=gpu trainer.devices=4",
            "trainer.devices=4, but this machine has 2; try trainer.devices=2",
        ),
        ("trainer=gpu trainer.devices=[0,7]", "trainer.devices=[0, 7], but this machine has 2"),
        (
            "trainer=gpu",
            "trainer.precision=bf16-mixed is not supported by this GPU; try trainer.precision=",
        ),
    ],
)
def test_missing_gpus_and_precision_are_reported(overrides, message, typed, here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    check_error(typed("train", *overrides.split(), "logger=csv"), 3, message)


def test_bf16_on_a_cpu_logs_a_warning(typed, tmp_path):
    overrides = ("trainer.precision=bf16-mixed", f"hydra.run.dir={tmp_path}/r")
    status, out, error = typed("train", *BRIEF, *overrides)
    assert status == 0, error
    assert "warning: trainer.precision=bf16-mixed is many times slower" in out


@pytest.mark.slow
def test_wandb_without_a_key_logs_offline_without_a_prompt(typed, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    wandb.teardown()  # earlier tests of this process have set its mode
    overrides = ("logger=wandb", "callbacks=none", "trainer.max_steps=1")
    status, out, error = typed("train", *overrides, f"hydra.run.dir={tmp_path}/r")
    assert status == 0, error
    assert "W&B: no key found, so this run is kept offline; to log in: wandb login" in out


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "abc"},
            "WORLD_SIZE=abc in the environment must be a whole number of at least 1",
        ),
        (
            {"WORLD_SIZE": "0"},
            "WORLD_SIZE=0 in the environment must be a whole number of at least 1",
        ),
        ({"RANK": "3"}, "RANK=3 in the environment must be below the number of processes, 1"),
        (
            {"RANK": "5", "WORLD_SIZE": "2"},
            "RANK=5 in the environment must be below the number of processes, 2",
        ),
        (
            {"LOCAL_RANK": "1"},
            "LOCAL_RANK=1 in the environment must be below the number of processes, 1",
        ),
        (
            {"LOCAL_RANK": "-1"},
            "LOCAL_RANK=-1 in the environment must be a whole number of at least 0",
        ),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2 in the environment needs RANK as well",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE=2 in the environment needs MASTER_ADDR as well",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "WORLD_SIZE=2 in the environment, but trainer.devices=1 makes 1; try trainer=ddp",
        ),
    ],
)
def test_inconsistent_ranks_are_reported(variables, message, typed, here, monkeypatch):
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    for name in (*ranks, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_error(typed("train", "logger=csv"), 2, message)


def test_full_disk_is_reported_before_training(typed, here, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    message = "has 1 MiB of free space, but checkpoints of this model take"
    check_error(typed("train", "logger=csv"), 3, message)
    assert not files("outputs") and len(files("runs")) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_denied_writes_are_resource_errors(number, trained, typed, here, monkeypatch):
    def denied(*_, **__):
        raise OSError(number, os.strerror(number), "config.yaml")

    monkeypatch.setattr(OmegaConf, "save", denied)
    result = typed("train", "logger=csv", "callbacks=none")
    check_error(result, 3, f"config.yaml: {os.strerror(number)}; free space")


def leaves(config):
    """Yield the dotted keys of all values."""
    return nested_keys(OmegaConf.to_container(config, resolve=False))


def nested_keys(node, prefix=""):
    for key, child in node.items():
        if isinstance(child, dict):
            yield from nested_keys(child, f"{prefix}{key}.")
        elif not str(key).startswith("_"):
            yield f"{prefix}{key}"


TEXTS = {
    "resume",
    "trust",
    "logger.csv.name",
    "logger.csv.version",
    "logger.csv.save_dir",
    "logger.tensorboard.name",
    "logger.tensorboard.version",
    "logger.tensorboard.save_dir",
    "trainer.default_root_dir",
    "callbacks.fid.extractor",
    "callbacks.reconstructions.extractor",
    "data.seed",
}
"""Keys that accept any text: names of files, runs and loggers, and seeds of others"""
TYPED = [
    (f"{group}={option}", group)
    for group in (
        "schedule",
        "sampler",
        "objective",
        "lr_schedule",
        "timestep_sampler",
        "logger",
        "conditioner",
    )
    for option in options(group)
    if option not in ("wandb", "pretrained_text")
]
ALSO = ("schedule=geometric", "sampler=heun", "conditioner=low_res", "timestep_sampler=importance")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "group"),
    [
        pytest.param("seed=0", None, id="all defaults"),
        *(
            pytest.param(
                choice, group, id=choice, marks=[] if choice in ALSO else pytest.mark.nightly
            )
            for choice, group in TYPED
        ),
    ],
)
def test_every_key_rejects_an_invalid_word(choice, group, typed, here):
    config = composed(choice, "logger=csv")
    accepted = []
    for key in leaves(config):
        if key in TEXTS or key.startswith("system.") or (group and not key.startswith(f"{group}.")):
            continue
        logger = [] if choice.startswith("logger") else ["logger=csv"]
        status, _, error = typed("train", choice, *logger, f"{key}=zzz")
        reported = error.startswith("error: ") and key in error and error.count("\n") <= 3
        if status != 2 or not reported:
            accepted.append((key, status, error))
    assert not accepted


KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def misspell(word, how, generator):
    """Return `word` with one typing error in a random letter."""
    i = generator.choice([i for i in range(how == "swap", len(word)) if word[i].isalpha()])
    if how == "drop":
        return word[:i] + word[i + 1 :]
    if how == "double":
        return word[: i + 1] + word[i:]
    if how == "swap":
        return word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]
    row = next(row for row in KEYBOARD if word[i] in row)
    at = row.index(word[i])
    return word[:i] + row[at + (1 if at + 1 < len(row) else -1)] + word[i + 1 :]


def misspellings(count):
    """Return (verb, misspelled override, correct word) for random keys and choices."""
    keys = {
        "train": [*leaves(composed())],
        "exact": [*leaves(composed("sampler=ddim", verb="exact"))],
    }
    own = {
        verb: [
            str(key)
            for key in OmegaConf.load(CONFIGS / f"{verb}.yaml")
            if key not in ("defaults", "hydra")
        ]
        for verb in ("sample", "evaluate")
    }
    groups = [
        group.name
        for group in CONFIGS.iterdir()
        if group.is_dir() and group.name not in ("hydra", "ablation", "metric")
    ]
    cases = [("train", key, part) for key in keys["train"] for part in range(len(key.split(".")))]
    cases += [("exact", key, part) for key in keys["exact"] for part in range(len(key.split(".")))]
    cases += [(verb, key, 0) for verb, some in own.items() for key in some]
    cases += [
        ("train", f"{group}={option}", part)
        for group in groups
        for option in options(group)
        for part in (0, 1)
    ]
    cases += [
        ("train", f"ablation={name}", part) for name in options("ablation") for part in (0, 1)
    ]
    cases += [("train", f"{flag}", 0) for flag in ("--multirun", "--resolve", "--config-name")]
    cases += [("report", f"{key}=x", 0) for key in ("ablation", "dir", "tier", "jobs_dir", "wandb")]
    generator, result = random.Random(0), []
    overrides = {
        part
        for key in (*keys["train"], *keys["exact"], *own["sample"], *own["evaluate"], *groups)
        for part in key.split(".")
    } | {option for group in groups for option in options(group)}
    while len(result) < count:
        verb, text, part = generator.choice(sorted(cases))
        parts = re.split("[.=]", text)
        how = generator.choice(("drop", "swap", "double", "neighbour"))
        if len(parts[part]) < 3:
            continue  # too short, such as v and eps
        wrong = misspell(parts[part], how, generator)
        if wrong == parts[part] or wrong in overrides:
            continue  # a valid word
        line = (
            text.replace(parts[part], wrong, 1)
            if part == 0
            else text[: len(text) - len(parts[-1])] + wrong
        )
        if part and part < len(parts) - 1:
            line = ".".join([*parts[:part], wrong, *parts[part + 1 :]])
        if "=" not in line and not line.startswith("-"):
            line += "=1"
        result.append((verb, line, parts[part].lstrip("-")))
    return result


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.nightly)])
def test_misspelled_keys_get_the_right_suggestion(count, trained, typed, here):
    cases, wrong = misspellings(count), []
    for verb, line, word in cases:
        overrides = {
            "sample": [f"run={trained['RUN']}"],
            "evaluate": [f"run={trained['RUN']}"],
            "exact": ["model=exact", "sampler=ddim"],
        }.get(verb, [])
        status, _, error = typed("evaluate" if verb == "exact" else verb, *overrides, line)
        if status != 2 or f"did you mean {word}?" not in error.replace("mean --", "mean "):
            wrong.append((verb, line, word, error[:160]))
    accuracy = 1 - len(wrong) / len(cases)
    print(f"{accuracy:.1%} of {len(cases)}", *wrong, sep="\n")
    assert accuracy >= 0.95
