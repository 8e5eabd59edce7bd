"""Mistakes of many kinds, each typed as a user types it: a line or three that say what would do, and nothing is left.

The numbers are those of the list that the framework was asked to answer. 38 and 41: tests/test_resume.py
"""

import errno
import os
import random
import re
import shutil
import time
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from conftest import CONFIGS, FAST, composed, options
from omegaconf import DictConfig, OmegaConf
from PIL import Image

BETWEEN = "must lie between 0 and 1"
STRENGTH = "must be a number of at least 0, and at most 10000"
FOLDER = "train data=folder extractor=none data.batch_size=4"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
BRIEF = ("callbacks=none", "logger=csv", "model.channels=8", "trainer.max_steps=1")
TABLE = [
    (
        1,
        "train schedule=cosin",
        2,
        "schedule=cosin is not a choice (did you mean cosine?); choices: constant, cosine,",
    ),
    (
        1,
        "train hydra/launcher=procesess",
        2,
        "hydra/launcher=procesess is not a choice (did you mean processes?)",
    ),
    (1, "sample run=RUN sampler=ddmp", 2, "sampler=ddmp is not a choice (did you mean ddpm?)"),
    (
        2,
        "train optimizer.weight_dacay=0.1",
        2,
        "optimizer has no key weight_dacay (did you mean weight_decay?); keys:",
    ),
    (
        2,
        "train shedule.steps=10",
        2,
        "the configuration has no key shedule (did you mean schedule?)",
    ),
    (2, "train callbacks.emma.decay=0.9", 2, "callbacks has no key emma (did you mean ema?)"),
    (2, "train --multirn", 2, "--multirn is no option (did you mean --multirun?)"),
    (2, "train ~callbacks.emma", 2, "callbacks has no key emma (did you mean ema?)"),
    (
        3,
        "train schedule.steps=abc",
        2,
        "schedule.steps=abc is of the wrong kind: it should be a valid integer",
    ),
    (
        3,
        "train schedule.steps=1.5",
        2,
        "schedule.steps=1.5 is of the wrong kind: it should be a valid integer",
    ),
    (
        3,
        "train optimizer.lr=1e-4x",
        2,
        "optimizer.lr=1e-4x is of the wrong kind: it should be a valid number",
    ),
    (
        3,
        "train optimizer.lr=true",
        2,
        "optimizer.lr=True is of the wrong kind: it should be a valid number",
    ),
    (
        3,
        "train model.blocks=true",
        2,
        "model.blocks=True is of the wrong kind: it should be a valid number",
    ),
    (
        3,
        "train optimizer.betas=[0.9]",
        2,
        "optimizer.betas=[0.9] is of the wrong kind: it has too few entries",
    ),
    (3, "evaluate run=RUN metrics=[nll] nll.steps=abc", 2, "nll.steps must lie in 1..1000"),
    (3, "evaluate run=RUN metrics=[nll] nll.spacing=-3", 2, "nll.spacing=-3 is not one of uniform"),
    (
        3,
        "evaluate model=exact conditional=maybe sampler=ddim",
        2,
        "conditional=maybe is not one of true, false",
    ),
    (3, "evaluate model=exact mean=[a]", 2, "mean=['a'] and covariance="),
    (4, "train schedule.steps=", 2, "schedule.steps= is of the wrong kind"),
    (4, "train optimizer.lr=", 2, "optimizer.lr= is of the wrong kind"),
    (
        5,
        "train schedule.steps=0",
        2,
        "of the chain, must be at least 1 (got 0); try schedule.steps=1000",
    ),
    (
        5,
        "train schedule.steps=-5",
        2,
        "schedule.steps, the T of the chain, must be at least 1 (got -5)",
    ),
    (
        7,
        "train schedule=linear schedule.start=-0.1",
        2,
        f"schedule.start is a beta and {BETWEEN} (got -0.1)",
    ),
    (8, "train schedule=linear schedule.end=1", 2, f"schedule.end is a beta and {BETWEEN} (got 1)"),
    (
        8,
        "train schedule=constant schedule.beta=nan",
        2,
        f"schedule.beta is a beta and {BETWEEN} (got nan)",
    ),
    (
        8,
        "train schedule=linear schedule.start=[0.1,0.2]",
        2,
        "schedule.start=[0.1, 0.2] is of the wrong kind",
    ),
    (8, "train schedule.offset=nan", 2, "schedule.offset must be at least 0 (got nan); try 0.008"),
    (
        9,
        "train schedule=linear schedule.start=0.02 schedule.end=1e-4",
        2,
        "schedule.start=0.02 is above end=0.0001",
    ),
    (
        9,
        "train schedule=sigmoid schedule.start=0.02 schedule.end=1e-4",
        2,
        "schedule.start=0.02 is above end=0.0001",
    ),
    (
        11,
        "train model.multipliers=[1,2,2,2,2]",
        2,
        "8x8 does not allow; try a resolution of 16, or fewer multipliers",
    ),
    (
        12,
        "train model.attention=[5]",
        2,
        "resolution 5 does not occur; images of 8x8 reach [8, 4]",
    ),
    (13, "train model.heads=5", 2, "model.heads=5 must divide the 64 channels"),
    (
        13,
        "train model.heads=null model.head_channels=7",
        2,
        "model.head_channels=7 must divide the 64 channels",
    ),
    (13, "train model.channels=33", 2, "model.channels must be even"),
    (
        14,
        "train model.multipliers=[]",
        2,
        "model.multipliers must be one or more numbers above 0 (got [])",
    ),
    (14, "train model.blocks=0", 2, "model.blocks must be at least 1 (got 0)"),
    (
        15,
        "sample run=RUN variance=learned_range",
        2,
        "variance=learned_range must be learned, and this run was",
    ),
    (
        16,
        "train variance=learned_range",
        2,
        "which objective=simple does not contain; try objective=hybrid",
    ),
    (
        16,
        "train variance=learned_diagonal objective=min_snr",
        2,
        "which objective=min_snr does not contain; try",
    ),
    (
        17,
        "train sampler.steps=2000",
        2,
        "sampler.steps must lie in 1..1000, the T of the schedule (got 2000)",
    ),
    (
        17,
        "sample run=RUN sampler.steps=2000",
        2,
        "sampler.steps must lie in 1..1000, the T of the schedule (got 2000)",
    ),
    (
        18,
        "train sampler.steps=0",
        2,
        "sampler.steps must lie in 1..1000, the T of the schedule (got 0)",
    ),
    (18, "train sampler.eta=1.5", 2, "sampler.eta must lie in [0, 1] (got 1.5)"),
    (
        18,
        "train sampler=dpm_solver sampler.order=9",
        2,
        "sampler has no key order; keys: steps, spacing",
    ),
    (
        19,
        "sample run=DEAF guidance=classifier_free guidance.w=1",
        2,
        "guidance.w=1 needs a conditional model",
    ),
    (
        20,
        "train conditioner.dropout=0 guidance.w=1",
        2,
        "try guidance.w=0, or train with conditioner=label",
    ),
    (21, "train guidance.w=nan", 2, f"guidance.w {STRENGTH} (got nan)"),
    (21, "train guidance.w=-1", 2, f"guidance.w {STRENGTH} (got -1.0)"),
    (21, "sample run=RUN guidance.scale=1e9", 2, f"guidance.scale {STRENGTH} (got 1000000000.0)"),
    (
        21,
        "train guidance=classifier guidance.classifier.run=NAMED guidance.scale=nan",
        2,
        f"guidance.scale {STRENGTH}",
    ),
    (
        22,
        "sample run=RUN label=10",
        2,
        "label=10 is not a label of this model: 0 zero, 1 one, 2 two",
    ),
    (22, "sample run=RUN label=[1,sevne]", 2, "8 eight, 9 nine (did you mean seven?)"),
    (23, "train guidance=classifier", 2, "guidance.classifier.run must be given"),
    (
        23,
        "train guidance=classifier guidance.classifier.run=nowhere",
        2,
        "guidance.classifier.run=nowhere is no run",
    ),
    (
        23,
        "train guidance=classifier guidance.classifier.run=RUN",
        2,
        "is not a classifier but a diffusion model",
    ),
    (
        24,
        "train guidance=classifier guidance.classifier.run=NAMED schedule.steps=500",
        2,
        "guidance.classifier was trained with another schedule (T = 1000) than this model (T = 500)",
    ),
    (
        24,
        "train guidance=classifier guidance.classifier.run=NAMED data.resolution=4",
        2,
        "guidance.classifier was trained on data of shape (1, 8, 8), and this model on (1, 4, 4)",
    ),
    (
        24,
        "train guidance=classifier guidance.classifier.run=NAMED data=synthetic data.resolution=8 data.channels=1 "
        "data.classes=5",
        2,
        "guidance.classifier was trained on data of classes 10, and this model on 5",
    ),
    (
        25,
        "train data=folder",
        2,
        "data.path must be a folder of images (got None); try data.path=DIR",
    ),
    (
        25,
        "train data=folder data.path=nowhere",
        2,
        "data.path must be a folder of images (got nowhere)",
    ),
    (
        25,
        "train data=folder data.path=a_file",
        2,
        "data.path must be a folder of images (got a_file)",
    ),
    (
        25,
        "train data=folder data.path=EMPTY",
        2,
        "data.path=EMPTY holds 0 images and at least 4 are needed",
    ),
    (
        26,
        f"{FOLDER} data.path=MIXED",
        2,
        "MIXED/20.png; a model needs squares of one size; try data.convert=true",
    ),
    (27, f"{FOLDER} data.path=MODES", 2, ", expected 8x8 RGB; try data.convert=true"),
    (
        28,
        f"{FOLDER} data.path=DEEP",
        2,
        "DEEP/20.png is 8x8 I;16, expected 8x8 RGB; try data.convert=true",
    ),
    (29, f"{FOLDER} data.path=BROKEN", 2, "BROKEN/03.png cannot be read as an image"),
    (
        29,
        f"{FOLDER} data.path=BROKEN data.on_error=skip",
        2,
        "data.on_error=skip leaves out at most 1% of 20 images",
    ),
    (
        30,
        "train data.batch_size=5000",
        2,
        "data.batch_size must lie in 1..1437, the number of training samples",
    ),
    (31, "train data.batch_size=0", 2, "data.batch_size must lie in 1..1437"),
    (
        31,
        f"{FOLDER} data.path=PLAIN data.workers=-1",
        2,
        "data.workers are processes that read images, 0 to 64",
    ),
    (
        31,
        f"{FOLDER} data.path=PLAIN data.workers=500",
        2,
        "data.workers are processes that read images, 0 to 64",
    ),
    (32, "train optimizer.lr=0", 2, "optimizer.lr must be a number above 0 (got 0)"),
    (32, "train optimizer.lr=inf", 2, "optimizer.lr must be a number above 0 (got inf)"),
    (
        32,
        "train optimizer.weight_decay=-1",
        2,
        "optimizer.weight_decay must be a number of at least 0 (got -1)",
    ),
    (
        32,
        "train callbacks.ema.decay=1",
        2,
        "decay must lie in [0, 1) (got 1); try callbacks.ema.decay=0.999",
    ),
    (
        32,
        "train lr_schedule.warmup=900",
        2,
        "lr_schedule.warmup=900 is longer than the training, trainer.max_steps=",
    ),
    (
        33,
        "train callbacks.fid.count=1",
        2,
        "callbacks.fid.count must be at least 2 (got 1)",
    ),
    (33, "evaluate run=RUN count=1", 2, "count must be a whole number of at least 2 (got 1)"),
    (
        35,
        "evaluate run=RUN extractor=inception extractor.weights=nowhere",
        2,
        f"extractor.weights=nowhere is not a file; the usual name is {INCEPTION}",
    ),
    (
        35,
        "evaluate run=RUN extractor=inception extractor.weights=a_file",
        2,
        "its SHA-256 begins with",
    ),
    (36, "train trainer=gpu", 3, "trainer.accelerator=gpu, and there is no GPU; try trainer=cpu"),
    (36, "train trainer=ddp", 3, "trainer.accelerator=gpu, and there is no GPU; try trainer=cpu"),
    (
        36,
        "train trainer.accelerator=tpu",
        2,
        "trainer.accelerator=tpu is not one of cpu, gpu, cuda, mps, auto",
    ),
    (
        36,
        "train trainer.devices=0",
        2,
        "trainer.devices=0 must be auto, or a whole number of at least 1",
    ),
    (
        36,
        "train trainer.devices=2",
        2,
        "trainer.devices=2 is more than one device; try trainer=ddp",
    ),
    (36, "train trainer.precision=16", 2, "trainer.precision=16 would lose the float64 tables"),
    (37, "sample run=nowhere", 2, "run=nowhere is no run, for it holds no config.yaml"),
    (37, "sample run=runs/today/1O", 2, "holds no config.yaml; did you mean runs/today/10?"),
    (37, "sample run=runs/today/10", 2, "run=runs/today/10 holds no checkpoint yet"),
    (37, "sample", 2, "run must be given; try run=..."),
    (
        42,
        "train hydra.run.dir=a_file/run",
        3,
        "a_file/run cannot be made a folder (Not a directory)",
    ),
    (42, "train trainer.default_root_dir=a_file/run", 3, "a_file/run cannot be written to: "),
    (
        42,
        "sample run=RUN out=a_file/here",
        3,
        "out=a_file/here cannot be made a folder (Not a directory)",
    ),
    (43, "train codec=autoencoder", 2, "codec.run must be given"),
    (43, "train codec=autoencoder codec.run=nowhere", 2, "codec.run=nowhere is no run"),
    (43, "train codec=autoencoder codec.run=RUN", 2, "is not an autoencoder but a diffusion model"),
    (
        43,
        "train codec=autoencoder codec.run=CODER data=synthetic data.resolution=8",
        2,
        "was trained on data of shape (1, 8, 8), and this data has (3, 8, 8); they must agree",
    ),
    (
        44,
        "sample cascade=[RUN,RUN]",
        2,
        "cascade: stage 2 does not upsample; it must be trained with",
    ),
    (
        44,
        "sample cascade=[RUN,LARGER]",
        2,
        "cascade: stage 1 samples images of 1x8x8, and stage 2 upsamples",
    ),
    (44, "sample cascade=[]", 2, "cascade=[] must be a list of runs"),
    (
        44,
        "train conditioner=low_res conditioner.factor=3",
        2,
        "conditioner.factor=3 must be at least 2 and divide",
    ),
    (
        45,
        "train -m seed=range(0,100000)",
        2,
        "this sweep has more than 1000 jobs, and at most hydra.launcher.limit=",
    ),
    (
        45,
        "train -m seed=range(0,900) model.channels=range(2,900,2)",
        2,
        "this sweep has 900 x 449 jobs, and at most",
    ),
    (
        45,
        "train -m seed=range(0,0)",
        2,
        "seed=range(0,0) has no values, so this sweep has no jobs; try seed=A,B",
    ),
    (45, "train ablation=[]", 2, "ablation=[] selects nothing"),
]


def test_the_table_is_whole():
    elsewhere = {6, 10, 34, 39, 40}  # below
    assert {number for number, *_ in TABLE} | elsewhere | {38, 41} == {*range(1, 46)}


@pytest.fixture(scope="session")
def trained(typed, tmp_path_factory):
    """Runs of ten steps, by what they are called in the table."""
    where = tmp_path_factory.mktemp("trained")
    coder = (
        "system=autoencoder",
        "trainer=debug",
        "logger=csv",
        "model.channels=8",
        "callbacks.losses.every=5",
        "callbacks.reconstructions.every=10",
    )
    named = (
        "system=classifier",
        "trainer=debug",
        "logger=csv",
        "model.channels=8",
        "callbacks.losses.every=5",
    )
    small = (*(word for word in FAST if not word.startswith("callbacks")), "callbacks=none")
    made = {
        "RUN": FAST,
        "DEAF": (*small, "conditioner=none"),
        "LARGER": (*FAST[:-1], "conditioner=low_res", "data.batch_size=16"),
        "NAMED": named,
        "CODER": coder,
    }
    for name, overrides in made.items():
        status, _, error = typed("train", *overrides, f"hydra.run.dir={where}/{name}")
        assert status == 0, error
    return {name: str(where / name) for name in made}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with what the table names, in which no training begins."""
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
    Path("a_file").write_text("not a folder")
    Path("runs/today/10").mkdir(parents=True)
    OmegaConf.save(composed(), "runs/today/10/config.yaml", resolve=False)
    monkeypatch.setattr(lightning.Trainer, "fit", lambda *_, **__: pytest.fail("training began"))
    return tmp_path


def files(*places):
    return {str(file) for place in places for file in Path(place).rglob("*") if file.is_file()}


def refused(found, status, told):
    """What a refusal must be like."""
    code, _, error = found
    assert code == status and told in error, error
    assert error.startswith("error: ") and error.count("\n") <= 3 and "Traceback" not in error, (
        error
    )


@pytest.mark.parametrize(
    ("number", "line", "status", "told"), TABLE, ids=[f"{row[0]} {row[1]}" for row in TABLE]
)
def test_a_mistake_is_told_before_anything_is_made(
    number, line, status, told, trained, typed, here
):
    if "no GPU" in told and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    verb, *overrides = re.sub("|".join(trained), lambda found: trained[found[0]], line).split()
    before, started = files(here, *trained.values()), time.perf_counter()
    refused(typed(verb, *overrides, *["logger=csv"] * (verb == "train")), status, told)
    assert time.perf_counter() - started < 10
    assert files(here, *trained.values()) == before, "nothing is left behind"


def test_6_a_chain_of_one_step_is_trained_and_drawn_without_nan(typed, tmp_path):
    overrides = ("schedule.steps=1", "sampler.steps=1", f"hydra.run.dir={tmp_path}/r")
    assert typed("train", *FAST, *overrides)[0] == 0
    losses = (tmp_path / "r" / "metrics.csv").read_text() + (
        tmp_path / "r" / "metrics.json"
    ).read_text()
    assert "nan" not in losses.lower() and '"fid"' in losses


def test_10_a_chain_that_does_not_end_in_noise_is_warned_of(typed, tmp_path):
    overrides = ("schedule=linear", "schedule.steps=50", "schedule.rescale=false")
    status, said, error = typed("train", *overrides, *BRIEF, f"hydra.run.dir={tmp_path}/r")
    assert (
        status == 0
        and "warning: schedule ends at t = 50, where alpha_bar = 0.6 is above 1e-3" in said
    ), error


def test_27_and_29_what_is_converted_and_left_out_is_said(typed, here, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(here)
    for i in range(20, 150):
        Image.new("RGB", (8, 8), (i, i, i)).save(f"MODES/{i}.png")
    Path("MODES/20.png").write_bytes(b"no image")
    overrides = ("data.path=MODES", "data.convert=true", "data.on_error=skip", "hydra.run.dir=out")
    status, said, _ = typed("train", *FOLDER.split()[1:], *overrides, *BRIEF)
    assert (
        status == 0
        and "left out 1 of 153 images; the first: MODES/20.png cannot be read as an image" in said
    )
    assert (
        "converted: 1 from CMYK to RGB, 1 from L to RGB, 1 from RGBA to RGB, 1 laid over white"
        in said
    )


def test_34_statistics_that_the_cache_lost_or_garbled_are_made_anew(
    trained, typed, tmp_path, monkeypatch
):
    monkeypatch.setenv("DDPM_LAB_CACHE", str(tmp_path / "cache"))
    found = []
    for i in range(3):
        assert typed("evaluate", f"run={trained['RUN']}", "count=20", f"out={tmp_path}/{i}")[0] == 0
        found.append((tmp_path / str(i) / "metrics.json").read_text())
        for file in (tmp_path / "cache").iterdir():
            file.write_bytes(file.read_bytes()[:100]) if i == 0 else file.unlink()
    assert found[0] == found[1] == found[2]


def test_35_the_place_and_the_hash_of_weights_that_cannot_be_had_are_told(
    trained, typed, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(
        torch.hub,
        "download_url_to_file",
        lambda *_, **__: (_ for _ in ()).throw(OSError("offline")),
    )
    found = typed("evaluate", f"run={trained['RUN']}", "extractor=inception")
    refused(
        found,
        2,
        f"put {INCEPTION}, whose SHA-256 begins with 6726825d, at {tmp_path}/hub/checkpoints/{INCEPTION}",
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            "trainer=gpu trainer.devices=4",
            "trainer.devices=4, and this machine has 2; try trainer.devices=2",
        ),
        ("trainer=gpu trainer.devices=[0,7]", "trainer.devices=[0, 7], and this machine has 2"),
        (
            "trainer=gpu",
            "trainer.precision=bf16-mixed, which this GPU cannot; try trainer.precision=32-true",
        ),
    ],
)
def test_36_what_gpus_cannot_is_told(overrides, told, typed, here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    refused(typed("train", *overrides.split(), "logger=csv"), 3, told)


def test_36_bf16_on_a_cpu_is_warned_of(typed, tmp_path):
    status, said, error = typed(
        "train", "trainer.precision=bf16-mixed", *BRIEF, f"hydra.run.dir={tmp_path}/r"
    )
    assert status == 0 and "warning: trainer.precision=bf16-mixed is many times slower" in said, (
        error
    )


@pytest.mark.slow
def test_39_without_a_key_a_run_is_kept_offline_and_nothing_is_asked(typed, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    overrides = (
        "logger=wandb",
        "callbacks=none",
        "trainer.max_steps=1",
        f"hydra.run.dir={tmp_path}/r",
    )
    status, said, error = typed("train", *overrides)
    assert (
        status == 0
        and "W&B: no key found, so this run is kept offline; to log in: wandb login" in said
    ), error


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc in the environment is no number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment is no number"),
        ({"RANK": "3"}, "RANK=3 in the environment must be below the number of processes, 1"),
        (
            {"RANK": "5", "WORLD_SIZE": "2"},
            "RANK=5 in the environment must be below the number of processes, 2",
        ),
        (
            {"LOCAL_RANK": "1"},
            "LOCAL_RANK=1 in the environment must be below the number of processes, 1",
        ),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 in the environment is no number"),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2 in the environment, and no RANK says which of them this is",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE=2 in the environment, and no MASTER_ADDR where they meet",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "WORLD_SIZE=2 in the environment, and trainer.devices=1 makes 1; try trainer=ddp",
        ),
    ],
)
def test_40_ranks_that_make_no_sense_are_told(variables, told, typed, here, monkeypatch):
    for name in (
        "RANK",
        "LOCAL_RANK",
        "NODE_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(typed("train", "logger=csv"), 2, told)


def test_42_a_disk_without_room_is_told_before_training(typed, here, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    refused(
        typed("train", "logger=csv"),
        3,
        "there are 1 MiB of room, and checkpoints of this model take",
    )
    assert not files("outputs") and len(files("runs")) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_42_what_the_system_denies_is_no_bug(number, trained, typed, here, monkeypatch):
    def denied(*_, **__):
        raise OSError(number, os.strerror(number), "config.yaml")

    monkeypatch.setattr(OmegaConf, "save", denied)
    refused(
        typed("train", "logger=csv", "callbacks=none"),
        3,
        f"config.yaml: {os.strerror(number)}; make room",
    )


def leaves(node, prefix=""):
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            yield from leaves(child, f"{prefix}{key}.")
        elif not str(key).startswith("_"):
            yield f"{prefix}{key}"


# Names of files and runs, and what loggers call things, are texts; of trainer.default_root_dir anything is a folder.
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
TYPED = [
    (f"{group}={option}", group)
    for group in (
        "schedule",
        "sampler",
        "objective",
        "lr_schedule",
        "timesteps",
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
def test_every_key_refuses_a_word_that_it_has_no_meaning_for(choice, group, typed, here):
    config = composed(choice, "logger=csv")
    taken = []
    for key in leaves(config):
        if key in TEXTS or key.startswith("system.") or (group and not key.startswith(f"{group}.")):
            continue
        logger = [] if choice.startswith("logger") else ["logger=csv"]
        status, _, error = typed("train", choice, *logger, f"{key}=zzz")
        if (
            status != 2
            or not error.startswith("error: ")
            or key not in error
            or error.count("\n") > 3
        ):
            taken.append((key, status, error))
    assert not taken


ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Of a keyboard"""


def slipped(word, how, stream):
    """`word` with one slip, in any of its letters."""
    i = stream.choice([i for i in range(how == "swap", len(word)) if word[i].isalpha()])
    if how == "drop":
        return word[:i] + word[i + 1 :]
    if how == "double":
        return word[: i + 1] + word[i:]
    if how == "swap":
        return word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]
    row = next(row for row in ROWS if word[i] in row)
    at = row.index(word[i])
    return word[:i] + row[at + (1 if at + 1 < len(row) else -1)] + word[i + 1 :]


def misspelled(count):
    """So many slips of real keys and options of every verb: (line, what was meant)."""
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
        if group.is_dir() and group.name not in ("hydra", "ablation")
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
    stream, found = random.Random(0), []
    overrides = {
        part
        for key in (*keys["train"], *keys["exact"], *own["sample"], *own["evaluate"], *groups)
        for part in key.split(".")
    } | {option for group in groups for option in options(group)}
    while len(found) < count:
        verb, text, part = stream.choice(sorted(cases))
        parts = re.split("[.=]", text)
        how = stream.choice(("drop", "swap", "double", "neighbour"))
        if len(parts[part]) < 3:
            continue  # such as eps of v: what is left could be anything
        wrong = slipped(parts[part], how, stream)
        if wrong == parts[part] or wrong in overrides:
            continue  # another real word is no slip that could be seen
        line = (
            text.replace(parts[part], wrong, 1)
            if part == 0
            else text[: len(text) - len(parts[-1])] + wrong
        )
        if part and part < len(parts) - 1:
            line = ".".join([*parts[:part], wrong, *parts[part + 1 :]])
        found.append(
            (
                verb,
                line if "=" in line or line.startswith("-") else f"{line}=1",
                parts[part].lstrip("-"),
            )
        )
    return found


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.nightly)])
def test_a_slip_is_answered_with_what_was_meant(count, trained, typed, here):
    slips, wrong = misspelled(count), []
    for verb, line, meant in slips:
        overrides = {
            "sample": [f"run={trained['RUN']}"],
            "evaluate": [f"run={trained['RUN']}"],
            "exact": ["model=exact", "sampler=ddim"],
        }.get(verb, [])
        status, _, error = typed("evaluate" if verb == "exact" else verb, *overrides, line)
        if status != 2 or f"did you mean {meant}?" not in error.replace("mean --", "mean "):
            wrong.append((verb, line, meant, error[:160]))
    right = 1 - len(wrong) / len(slips)
    print(f"{right:.1%} of {len(slips)}", *wrong, sep="\n")
    assert right >= 0.95
