"""Several processes do what one does."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from ddpm_lab.data.datasets import Images
from ddpm_lab.data.module import TrainBatches
from ddpm_lab.diffusion.rng import BatchGenerator, bernoulli, uniform
from ddpm_lab.runs import weights

WORDS = (
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
"""The rates are those of the first six of 20 steps of warm-up to 4e-3"""
TWO = ("trainer=ddp", "trainer.devices=2")
OF_SAMPLES = (
    "callbacks.sample_grid.every=6",
    "callbacks.sample_grid.rows=30",
    "callbacks.fid.count=50",
    "callbacks.fid.batch_size=15",
    "sampler.steps=3",
)


def run(command, folder):
    """With a cache of its own, so that references are measured by as many processes. All on one thread, as torchrun has
    it for several processes but not for one: sums in another order have other last digits.
    """
    environment = {**os.environ, "DDPM_LAB_CACHE": f"{folder}-cache", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder.parent, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def trained(folder, *overrides):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *WORDS,
        *overrides,
        f"hydra.run.dir={folder}",
    ]
    done = run(command, folder)
    content = torch.load(weights.checkpoint_files(folder)[0], weights_only=True)
    return content, json.loads((folder / "metrics.json").read_text()), done.stdout


def test_parts_of_a_batch_are_those_of_the_whole():
    def noise(before, after):
        return BatchGenerator(before, after, torch.Generator().manual_seed(3))

    like = torch.empty(6, 2, 3)
    for draw in (lambda noise, like: noise(like), lambda noise, like: uniform(noise, like)):
        whole = draw(noise(0, 0), like)
        parts = [
            draw(noise(0, 4), like[:2]),
            draw(noise(2, 1), like[2:5]),
            draw(noise(5, 0), like[5:]),
        ]
        assert torch.equal(torch.cat(parts), whole) and whole.unique().numel() == 36
    assert len({bernoulli(noise(before, 0)) for before in range(5)}) == 1
    split = Images(torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(20))
    alone = iter(TrainBatches(split, 6, flip=True, seed=0))
    shared = [
        iter(TrainBatches(split, 6, flip=True, seed=0, rank=rank, world=3)) for rank in range(3)
    ]
    for _ in range(7):
        assert torch.equal(
            next(alone)["label"], torch.cat([next(part)["label"] for part in shared])
        )


@pytest.mark.slow
def test_two_processes_train_draw_and_measure_as_one_does(tmp_path):
    one, of_one, _ = trained(tmp_path / "one", *OF_SAMPLES)
    two, of_two, said = trained(tmp_path / "two", *OF_SAMPLES, *TWO)
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, atol=1e-6, rtol=1e-5)
    for name, weight in one["callbacks"]["EMA"]["average"].items():
        torch.testing.assert_close(
            two["callbacks"]["EMA"]["average"][name], weight, atol=1e-6, rtol=1e-5
        )
    for name in ("fid", "intra_fid", "inception_score", "class_accuracy"):
        assert of_two[name] == pytest.approx(of_one[name], rel=1e-4), name
    assert of_two["training"]["val_loss"] == pytest.approx(of_one["training"]["val_loss"], rel=1e-5)
    grids = [
        Image.open(tmp_path / name / "images" / "samples-000006.png").size
        for name in ("one", "two")
    ]
    assert grids[0] == grids[1], "300 are two batches"
    for name in ("real", "noise"):
        # Roots of eigenvalues that should be 0, which digits are lost in, have half the digits.
        assert of_two[name]["fid"] == pytest.approx(of_one[name]["fid"], rel=1e-7)
    assert said.count("to train on") == 1, "the first process alone speaks"
    for verb, overrides in {
        "evaluate": ["count=50", "metrics=[kid,prc]"],
        "sample": ["count=30"],
    }.items():
        found = []
        for count in (1, 2):
            out = tmp_path / f"{verb}-{count}"
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={count}",
                str(ROOT / f"{verb}.py"),
                f"run={tmp_path}/one",
                "batch_size=15",
                *overrides,
                f"hydra.run.dir={out}",
            ]
            assert str(out) in run(command, out).stdout
            found.append(out)
        if verb == "evaluate":
            once, twice = (json.loads((out / "metrics.json").read_text()) for out in found)
            for name in ("fid", "kid", "precision", "recall", "inception_score"):
                assert twice[name] == pytest.approx(once[name], rel=1e-9), name
        else:
            once, twice = (np.load(out / "samples.npz") for out in found)
            assert all(np.array_equal(once[name], twice[name]) for name in once)
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == sorted(
        file.name for file in (tmp_path / "one").iterdir()
    )


@pytest.mark.nightly
def test_two_processes_reconstruct_as_one_does_and_leave_what_is_not_used(tmp_path):
    overrides = (
        "system=autoencoder",
        "system.adversarial=0.5",
        "system.start=100",
    )  # the adversary has no gradient yet
    one, of_one, _ = trained(tmp_path / "one", *overrides)
    two, of_two, _ = trained(tmp_path / "two", *overrides, *TWO)
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, atol=1e-5, rtol=1e-4)
    for name in ("psnr", "ssim", "rfid"):
        assert of_two[name] == pytest.approx(of_one[name], rel=1e-3), name
    assert of_two["protocol"] == of_one["protocol"] and of_one["standard_error"]["psnr"] > 0
