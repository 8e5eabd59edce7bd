"""Several processes compute the same results as one."""

import json
import os
import shutil
import subprocess
import sys
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file

from ddpm_lab.data.datasets import Images
from ddpm_lab.data.module import TrainBatches
from ddpm_lab.diffusion.rng import BatchGenerator, bernoulli, uniform
from ddpm_lab.runs import weights

OVERRIDES = (
    "trainer.max_steps=6",
    "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=3",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "logger=csv",
    "model.channels=8",
    "callbacks.losses.every=3",
    "data.batch_size=32",
    "optimizer.lr=1.33333e-3",
    "lr_schedule.warmup=6",
)
"""The learning rates are those of the first six of 20 warm-up steps to 4e-3"""
TWO = ("trainer=ddp", "trainer.devices=2")
SAMPLING = (
    "callbacks.sample_grid.every=6",
    "callbacks.sample_grid.rows=30",
    "callbacks.fid.count=50",
    "callbacks.fid.batch_size=15",
    "sampler.steps=3",
)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


PORT = 29543
"""Port of the first of two machines"""


def run(verb, folder, *words, launcher=(), **environment):
    """Run a script in other processes, with one thread each, and return its output.

    Runs have their own caches of reference statistics. More threads would change the order of
    sums, and thus their last digits.
    """
    command = [sys.executable, *launcher, str(ROOT / f"{verb}.py"), *words]
    result = subprocess.run(
        [*command, f"hydra.run.dir={folder}"],
        capture_output=True,
        text=True,
        cwd=folder.parent,
        timeout=300,
        env={
            **os.environ,
            "DDPM_LAB_CACHE": f"{folder}-cache",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def run_here(typed, monkeypatch):
    """Function like `run`, in this process."""

    def run_here(verb, folder, *words):
        monkeypatch.setenv("DDPM_LAB_CACHE", f"{folder}-cache")
        status, output, error = typed(verb, *words, f"hydra.run.dir={folder}")
        assert status == 0, error
        return output

    return run_here


def results(folder):
    """Return the newest checkpoint and the metrics of a training run."""
    content = torch.load(weights.checkpoint_files(folder)[0], weights_only=True)
    return content, json.loads((folder / "metrics.json").read_text())


def test_shards_of_a_batch_equal_the_whole_batch():
    def generator(before, after):
        return BatchGenerator(before, after, torch.Generator().manual_seed(3))

    like = torch.empty(6, 2, 3)
    for sample in (BatchGenerator.__call__, uniform):
        whole = sample(generator(0, 0), like)
        parts = [
            sample(generator(0, 4), like[:2]),
            sample(generator(2, 1), like[2:5]),
            sample(generator(5, 0), like[5:]),
        ]
        assert torch.equal(torch.cat(parts), whole) and whole.unique().numel() == 36
    assert len({bernoulli(generator(before, 0)) for before in range(5)}) == 1
    split = Images(torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(20))
    single = iter(TrainBatches(split, 6, flip=True, seed=0))
    shards = [
        iter(TrainBatches(split, 6, flip=True, seed=0, rank=rank, world=3)) for rank in range(3)
    ]
    for _ in range(7):
        labels = torch.cat([next(shard)["label"] for shard in shards])
        assert torch.equal(next(single)["label"], labels)


@pytest.mark.slow
def test_two_processes_train_sample_and_evaluate_like_one(run_here, tmp_path):
    run_here("train", tmp_path / "one", *OVERRIDES, *SAMPLING)
    out = run("train", tmp_path / "two", *OVERRIDES, *SAMPLING, *TWO)
    (one, metrics_of_one), (two, metrics_of_two) = map(
        results, (tmp_path / "one", tmp_path / "two")
    )
    torch.testing.assert_close(two["state_dict"], one["state_dict"], atol=1e-6, rtol=1e-5)
    averages = (content["callbacks"]["EMA"]["average"] for content in (two, one))
    torch.testing.assert_close(*averages, atol=1e-6, rtol=1e-5)
    for name in ("fid", "intra_fid", "inception_score", "class_accuracy"):
        assert metrics_of_two[name] == pytest.approx(metrics_of_one[name], rel=1e-4), name
    losses = (metrics["training"]["val_loss"] for metrics in (metrics_of_two, metrics_of_one))
    assert next(losses) == pytest.approx(next(losses), rel=1e-5)
    grids = {
        Image.open(tmp_path / name / "images" / "samples-000006.png").size
        for name in ("one", "two")
    }
    assert len(grids) == 1, "300 images are two batches"
    for name in ("real", "noise"):
        # Square roots of eigenvalues near 0 lose half of the digits.
        assert metrics_of_two[name]["fid"] == pytest.approx(metrics_of_one[name]["fid"], rel=1e-7)
    assert out.count("1437 training images") == 1, "only rank zero logs"

    def once_and_twice(verb, *words):
        folders = [tmp_path / f"{verb}-{count}" for count in (1, 2)]
        words = (f"run={tmp_path}/one", "batch_size=15", *words)
        assert str(folders[0]) in run_here(verb, folders[0], *words)
        assert str(folders[1]) in run(verb, folders[1], *words, launcher=TORCHRUN)
        return folders

    folders = once_and_twice("evaluate", "count=50", "metrics=[kid,prc,memorization]")
    once, twice = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert twice["memorization"] == once["memorization"]
    for name in ("fid", "fid_held_out", "kid", "precision", "recall", "inception_score"):
        assert twice[name] == pytest.approx(once[name], rel=1e-9), name
    once, twice = (
        np.load(folder / "samples.npz") for folder in once_and_twice("sample", "count=30")
    )
    assert all(np.array_equal(once[name], twice[name]) for name in once)
    names = [{file.name for file in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert names[0] == names[1]


@pytest.mark.slow
def test_sharded_training_equals_that_of_whole_weights_and_resumes_exactly(tmp_path):
    words = (
        *OVERRIDES,
        "callbacks=averages",
        "callbacks.ema.snapshots=2",
        "~callbacks.fid",
        "callbacks.sample_grid.every=3",
        "callbacks.checkpoints.every=3",
        "sampler.steps=3",
    )
    whole, sharded, again, alone = (
        tmp_path / name for name in ("whole", "sharded", "again", "alone")
    )
    run("train", whole, *words, *TWO)
    run("train", sharded, *words, "trainer=fsdp", "trainer.devices=2")
    for folder in (again, alone):
        shutil.copytree(sharded, folder)
        (folder / "checkpoints" / "step-000006.ckpt").unlink()
        (folder / "metrics.json").unlink()
    run("train", again, f"resume={again}")
    run("train", alone, f"resume={alone}", "trainer.devices=1")
    contents = [training_state(folder) for folder in (whole, sharded, again, alone)]
    torch.testing.assert_close(contents[1], contents[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(contents[2], contents[1], atol=0, rtol=0)
    torch.testing.assert_close(contents[3], contents[0], atol=1e-6, rtol=1e-5)
    snapshots, grids = ("averages/step-0000006.safetensors", "images/samples-000006.png")
    tensors = [load_file(folder / snapshots) for folder in (whole, sharded, again)]
    torch.testing.assert_close(tensors[1], tensors[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tensors[2], tensors[1], atol=0, rtol=0)
    assert (sharded / grids).read_bytes() == (again / grids).read_bytes()
    pixels = [np.array(Image.open(each / grids)).astype(int) for each in (whole, sharded)]
    assert abs(pixels[0] - pixels[1]).max() <= 1


@pytest.mark.nightly
@pytest.mark.parametrize("model", ["unet", "dit_s"])
def test_compiled_and_recomputed_units_of_sharded_training_equal_whole_ones(model, tmp_path):
    words = [word for word in OVERRIDES if not word.startswith("model")]
    words += ["~callbacks.fid", "callbacks.sample_grid.every=1000", f"model={model}"]
    size = ["model.channels=8", "model.multipliers=[1,2]"]
    words += size if model == "unet" else ["model.channels=32", "model.blocks=2", "model.heads=2"]
    run("train", tmp_path / "whole", *words, *TWO)
    sharded = ["trainer=fsdp", "trainer.devices=2", "compile=default", "model.checkpointing=true"]
    run("train", tmp_path / "sharded", *words, *sharded)
    whole, parts = (training_state(tmp_path / name) for name in ("whole", "sharded"))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def training_state(folder):
    """Return the weights, optimizer state and averages of the last checkpoint."""
    content, _ = results(folder)
    averages = content["callbacks"]["EMA"]
    return [content["state_dict"], content["optimizer_states"], content["lr_schedulers"], averages]


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_two_machines_train_like_two_processes(launcher, tmp_path):
    """Node ranks differ, on one host. The nodes of SLURM are its environment variables."""
    words = (*OVERRIDES, "~callbacks.fid")
    run("train", tmp_path / "two", *words, *TWO)
    nodes = []
    for rank in range(2):
        folder, prefix, environment, trainer = tmp_path / "nodes", (), {}, "trainer=ddp"
        if launcher == "torchrun":
            address = ("--master-addr=127.0.0.1", f"--master-port={PORT}")
            prefix = ("-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", *address)
        else:
            environment = {
                "SLURM_JOB_ID": "7",
                "SLURM_JOB_NAME": "train",
                "SLURM_JOB_NUM_NODES": "2",
                "SLURM_NTASKS": "2",
                "SLURM_NTASKS_PER_NODE": "1",
                "SLURM_NODELIST": "127.0.0.1",
                "SLURM_PROCID": str(rank),
                "SLURM_NODEID": str(rank),
                "SLURM_LOCALID": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(PORT),
            }
            trainer = "trainer=slurm"
        arguments = ("train", folder, *words, trainer)
        nodes.append(Thread(target=run, args=arguments, kwargs={"launcher": prefix, **environment}))
    for node in nodes:
        node.start()
    for node in nodes:
        node.join()
    (two, _), (other, _) = results(tmp_path / "two"), results(tmp_path / "nodes")
    torch.testing.assert_close(other["state_dict"], two["state_dict"], atol=0, rtol=0)


@pytest.mark.nightly
def test_two_processes_reconstruct_like_one_with_an_unused_discriminator(run_here, tmp_path):
    # Until system.start, the discriminator has no gradient.
    overrides = ("system=autoencoder", "system.adversarial=0.5", "system.start=100")
    run_here("train", tmp_path / "one", *OVERRIDES, *overrides)
    run("train", tmp_path / "two", *OVERRIDES, *overrides, *TWO)
    (one, metrics_of_one), (two, metrics_of_two) = map(
        results, (tmp_path / "one", tmp_path / "two")
    )
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, atol=1e-5, rtol=1e-4)
    for name in ("psnr", "ssim", "rfid"):
        assert metrics_of_two[name] == pytest.approx(metrics_of_one[name], rel=1e-3), name
    assert metrics_of_two["protocol"] == metrics_of_one["protocol"]
    assert metrics_of_one["standard_error"]["psnr"] > 0


SCRIPT = """
import os
from pathlib import Path

import ddpm_lab

config = ddpm_lab.compose(*{overrides})
run = ddpm_lab.train(config)
samples = ddpm_lab.load(run).sample(5, batch_size=2)
rank = os.environ.get("LOCAL_RANK", "0")
Path(f"rank-{{rank}}.txt").write_text(f"{{run}} {{samples.tensor.sum().item()}}")
"""


@pytest.mark.nightly
def test_two_processes_of_a_script_return_one_run_and_all_samples(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(overrides=[*OVERRIDES, *SAMPLING, *TWO]))
    result = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    one, two = ((tmp_path / f"rank-{rank}.txt").read_text() for rank in (0, 1))
    assert one == two
    assert [*tmp_path.glob("runs/*/*/run.json")] == [tmp_path / one.split()[0] / "run.json"]
