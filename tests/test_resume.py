"""Runs that something happens to, in processes of their own, and what the same command makes of them."""

import importlib.util
import itertools
import json
import os
import re
import signal
import time
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
import wandb
from conftest import ROOT, composed
from PIL import Image

from ddpm_lab.callbacks import loggers
from ddpm_lab.callbacks.checkpoints import Checkpoints, list_checkpoints
from ddpm_lab.callbacks.losses import Losses
from ddpm_lab.callbacks.metrics import FID
from ddpm_lab.callbacks.periodic import Periodic
from ddpm_lab.callbacks.sample_grid import SampleGrid
from ddpm_lab.config.derived_defaults import fill_defaults
from ddpm_lab.config.instantiate import build
from ddpm_lab.data import module
from ddpm_lab.data.datasets import Images
from ddpm_lab.data.image_folder import ImageFiles
from ddpm_lab.data.module import TrainBatches
from ddpm_lab.diffusion.objectives import Simple
from ddpm_lab.evaluation.fid import FIDEvaluator
from ddpm_lab.runs import resume
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.systems.nonfinite_steps import LIMIT, NonFiniteGuard
from ddpm_lab.utils import atomic_io, watchdog
from ddpm_lab.utils.errors import DivergenceError

spec = importlib.util.spec_from_file_location("faults", ROOT / "scripts" / "faults.py")
assert spec is not None and spec.loader is not None
faults = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faults)
PIXELS, LATENTS, ACCUMULATED, STREAMED, *OTHERS = faults.KINDS


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return faults.Bench(tmp_path_factory.mktemp("faults"))


def strikes(owner, name, nth, by):
    """A fault: when `owner.name` is called for the `nth` time, its own process gets the signal `by`, or raises it."""

    def fault():
        calls, own = itertools.count(1), getattr(owner, name)

        def struck(*args, **kwargs):
            if next(calls) == nth:
                if isinstance(by, Exception):
                    raise by
                os.kill(os.getpid(), by)
            return own(*args, **kwargs)

        setattr(owner, name, struck)

    return fault


def spent(bench, kind, fault, *more):
    """The folder of a run that `fault` happens to, its exit status, and what it said."""
    folder = bench.room()
    status = faults.ended(faults.begin(folder, [*bench.overrides(kind), *more], fault))
    return folder, status, faults.log(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "owner", "name", "nth"),
    [
        (PIXELS, Diffusion, "training_step", 8),
        *(
            pytest.param(PIXELS, *place, marks=pytest.mark.nightly)
            for place in (
                (Diffusion, "training_step", 60),
                (Diffusion, "validation_step", 25),
                (FIDEvaluator, "__call__", 3),
                (loggers.CSVHistory, "save", 4),
            )
        ),
        (LATENTS, Diffusion, "training_step", 44),
        (ACCUMULATED, Diffusion, "training_step", 71),
        (STREAMED, Diffusion, "training_step", 35),
        *((kind, Checkpoints, "on_train_batch_end", 17) for kind in OTHERS),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(bench, kind, owner, name, nth):
    folder, status, _ = spent(bench, kind, strikes(owner, name, nth, signal.SIGKILL))
    assert status == 137
    assert bench.verdict(folder, bench.overrides(kind)) == ""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("owner", "name", "nth", "step", "by"),
    [
        (SampleGrid, "run", 3, 30, signal.SIGTERM),
        pytest.param(Diffusion, "validation_step", 30, 30, signal.SIGINT, marks=SLOW),
        pytest.param(SampleGrid, "run", 3, 30, signal.SIGINT, marks=pytest.mark.nightly),
        pytest.param(
            Diffusion, "validation_step", 30, 30, signal.SIGTERM, marks=pytest.mark.nightly
        ),
        *(
            pytest.param(*point, by, marks=pytest.mark.nightly)
            for by in (signal.SIGTERM, signal.SIGINT)
            for point in ((Diffusion, "training_step", 13, 13), (FID, "run", 3, 60))
        ),
    ],
)
def test_a_signal_loses_nothing_wherever_it_comes(bench, owner, name, nth, step, by):
    folder, status, said = spent(bench, PIXELS, strikes(owner, name, nth, by))
    assert status == 128 + by and f"stopped by {by.name} at step {step}; saved in" in said, said
    assert faults.kept(folder)[0].stem == f"step-{step:06d}"
    assert bench.verdict(folder, bench.overrides(PIXELS)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "trials"), [("torn", 3), ("poison", 2), ("disk", 3), ("damage", 2)]
)
def test_faults_cost_no_checkpoint(bench, kind, trials):
    trial, _ = faults.TRIALS[kind]
    assert [word for wrong in trial(bench, trials).values() for word in wrong if word] == []


@pytest.mark.slow
def test_a_bug_saves_the_step_before_it(bench):
    folder, status, said = spent(
        bench, PIXELS, strikes(Simple, "__call__", 14, RuntimeError("a bug of ours"))
    )
    assert (
        status == 1
        and "Traceback" in said
        and [file.stem for file in faults.kept(folder)] == ["step-000010"]
    )
    fetched = strikes(TrainBatches, "_made", 14, RuntimeError("a bug between two steps"))
    folder, status, said = spent(bench, PIXELS, fetched)
    assert status == 1 and [file.stem for file in faults.kept(folder)] == [
        "step-000012",
        "step-000010",
    ]  # fetched ahead
    assert bench.verdict(folder, bench.overrides(PIXELS)) == ""


@pytest.mark.slow
def test_what_hangs_ends_and_says_where(bench):
    def asleep():
        Diffusion.training_step = lambda *_: time.sleep(60)

    folder, status, said = spent(bench, PIXELS, asleep, "hang_timeout=1")
    assert status == 124 and "nothing has happened for 1 s" in said
    (stacks,) = folder.glob("runs/*/*/hang.txt")
    assert "asleep" in stacks.read_text() or "<lambda>" in stacks.read_text()


@pytest.mark.slow
def test_a_file_that_is_not_read_in_time_is_named(bench):
    def slow():
        module.TIMEOUT, own = 1, ImageFiles.__getitem__
        ImageFiles.__getitem__ = lambda self, i: (
            time.sleep(5) if self.files[i].name == "7.png" else own(self, i)
        )

    _, status, said = spent(bench, STREAMED, slow, "data.workers=1")
    assert status == 124 and re.search(
        r"error: data: nothing was read for 1 s; pending are \S+\.png, ", said
    ), said


@pytest.mark.slow
def test_a_reader_that_is_killed_is_no_bug(bench):
    def shot():
        own, main = ImageFiles.__getitem__, os.getpid()

        def read(self, i):
            if self.files[i].name == "7.png" and os.getpid() != main:
                os.kill(os.getpid(), signal.SIGKILL)
            return own(self, i)

        ImageFiles.__getitem__ = read

    _, status, said = spent(bench, STREAMED, shot, "data.workers=1")
    assert status == 3 and "error: data: a process that reads images was killed" in said, said


@pytest.mark.slow
def test_slurm_gets_its_job_back_once_it_is_saved(bench, tmp_path):
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/told\n")
    (tmp_path / "scontrol").chmod(0o755)
    own = strikes(Diffusion, "training_step", 13, signal.SIGUSR1)

    def fault():
        os.environ["SLURM_JOB_ID"], os.environ["PATH"] = "17", f"{tmp_path}:{os.environ['PATH']}"
        own()

    folder, status, said = spent(bench, PIXELS, fault)
    assert status == 128 + signal.SIGUSR1 and "back in the queue" in said, said
    assert (tmp_path / "told").read_text() == "requeue 17\n" and faults.kept(folder)[
        0
    ].stem == "step-000013"


@pytest.fixture(scope="module")
def stopped(bench):
    """The folder of a run that was stopped at step 13, and of one that came to its end."""
    folder, status, _ = spent(
        bench, PIXELS, strikes(Diffusion, "training_step", 13, signal.SIGTERM)
    )
    assert status == 143
    (run,) = folder.glob("runs/*/*")
    return run, bench.reference(bench.overrides(PIXELS))[0]


def test_only_the_same_command_goes_on(bench, stopped, typed, monkeypatch, tmp_path):
    run, calm = stopped
    overrides = bench.overrides(PIXELS)
    monkeypatch.chdir(run.parents[2])
    # On a CPU a fused AdamW pairs weights with means of another order in memory, wrongly, and says nothing
    for other, told in {
        "data.batch_size=32": "data.batch_size=32 was 16",
        "seed=1": "seed=1 was 0",
        "model.channels=16": "model.channels=16 was 8",
        "model.channels_last=false": "model.channels_last=False was True",
    }.items():
        status, _, error = typed("train", *overrides, other, f"hydra.run.dir={run}")
        assert (
            status == 2
            and "holds another run" in error
            and told in error
            and error.count("\n") == 1
        ), error
        status, _, error = typed("train", f"resume={run}", other)
        assert status == 2 and f"{other.partition('=')[0]} is part of what resume=" in error, error
    status, _, error = typed("train", *bench.overrides(PIXELS), f"hydra.run.dir={calm}")
    assert (
        status == 2
        and "trainer.max_steps=60 is reached" in error
        and "try trainer.max_steps=120" in error
    ), error
    status, _, error = typed("train", f"resume={tmp_path}")
    assert status == 2 and "is no run" in error
    status, _, error = typed("train", *overrides, "hydra.run.dir=")
    assert status == 2 and "hydra.run.dir= names no folder" in error
    status, _, error = typed("train", *overrides, "resume=null", f"hydra.run.dir={run}")
    assert status == 2 and f"hydra.run.dir={run} holds one" in error, error
    restored = {*run.parent.iterdir()}
    assert (
        typed("train", *overrides, "resume=null", "trainer.max_steps=1")[0] == 0
    )  # as it says, a new one
    assert len({*run.parents[1].glob("*/*")} - restored) == 1


@pytest.mark.slow
def test_a_run_goes_on_by_its_folder_and_for_longer(bench, stopped):
    run, _ = stopped
    folder = bench.room()
    for overrides in ((f"resume={run}",), (f"resume={run}", "trainer.max_steps=70")):
        assert faults.ended(faults.begin(folder, overrides)) == 0, faults.log(folder)
    assert json.loads((run / "metrics.json").read_text())["training"]["steps"] == 70
    assert [file.stem for file in list_checkpoints(run / "checkpoints")] == [
        "step-000070",
        "step-000060",
    ]
    assert faults.result(run)["history"][-1]["step"] == "70"


def test_one_directory_holds_one_run(bench, typed, tmp_path):
    ready, done = os.pipe()
    child = os.fork()
    if not child:
        with atomic_io.directory_lock(tmp_path, "training"):
            os.write(done, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    try:
        status, _, error = typed("train", *faults.SMALL, f"hydra.run.dir={tmp_path}")
        assert (
            status == 2 and f"another process is training in it (process {child}, on " in error
        ), error
        assert atomic_io.is_locked(tmp_path)
    finally:
        faults.stopped(child, signal.SIGKILL)
    assert not atomic_io.is_locked(tmp_path)
    with atomic_io.directory_lock(tmp_path, "training"):
        pass
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("flip", [False, True])
def test_batches_go_on_after_any_number_of_them(flip):
    split = Images(torch.arange(23 * 4, dtype=torch.uint8).reshape(23, 1, 2, 2), torch.arange(23))
    whole = list(islice(iter(TrainBatches(split, 5, flip, 3)), 20))
    for done in range(20):
        for batch, other in zip(
            islice(iter(TrainBatches(split, 5, flip, 3, done=done)), 20 - done),
            whole[done:],
            strict=True,
        ):
            assert torch.equal(batch["x0"], other["x0"]) and torch.equal(
                batch["label"], other["label"]
            )


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_left_out_leaves_everything_as_it_was(fused):
    weights = [torch.nn.Parameter(torch.randn(5)) for _ in range(2)]
    optimizer = torch.optim.AdamW(weights, lr=0.1, fused=fused)
    skips = NonFiniteGuard(torch.device("cpu"))

    def step(value):
        for weight in weights:
            weight.grad = torch.ones(5)
        weights[1].grad[2] = value
        skips.check(
            optimizer, [torch.nn.utils.get_total_norm([weight.grad for weight in weights])], 7
        )
        optimizer.step()

    step(1.0)
    before = [weight.detach().clone() for weight in weights]
    kept = {key: value.clone() for key, value in optimizer.state[weights[1]].items()}
    for value in (float("nan"), float("inf"), -float("inf"), float("nan")):
        step(value)
    assert skips.state() == [4, 4]
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert all(torch.equal(value, kept[key]) for key, value in optimizer.state[weights[1]].items())
    step(1.0)
    assert skips.state() == [4, 0] and not torch.equal(weights[0], before[0])
    with pytest.raises(DivergenceError, match=f"step 7: {LIMIT} steps in a row"):
        for _ in range(LIMIT):
            step(float("nan"))


def test_partial_files_take_no_place(tmp_path):
    file = tmp_path / "a.txt"
    atomic_io.write_text(file, "old")
    with pytest.raises(OSError, match="full"), atomic_io.atomic_write(file) as partial:
        partial.write_text("ne")
        raise OSError("full")
    assert file.read_text() == "old" and [*tmp_path.iterdir()] == [file]


def test_each_process_takes_up_its_own_half_of_a_mean():
    kept = [
        [{name: torch.tensor([10.0 + rank]) for name in ("losses", "weight", "l1")}]
        for rank in range(2)
    ]
    for rank in range(2):
        losses = Losses()
        losses.load_state_dict(
            {"curves": {"train/loss": [(7, 0.5)]}, "batches": 3, "processes": kept}
        )
        trainer = SimpleNamespace(global_rank=rank, world_size=2)
        system = SimpleNamespace(device=torch.device("cpu"))
        losses.on_train_start(trainer, system)
        assert (
            losses.values == {name: [value] for name, value in kept[rank][0].items()}
            and losses.batches == 3
        )
    checkpoint = {"callbacks": {"Losses": losses.state_dict()}}
    losses.on_save_checkpoint(trainer, system, checkpoint)
    assert checkpoint["callbacks"]["Losses"]["processes"] == kept[1:]


def test_a_full_disk_costs_no_row_of_the_history(tmp_path, monkeypatch, caplog):
    history = loggers.CSVHistory(tmp_path, name="", version="")
    history.log_metrics({"a": 0.1}, step=1)
    history.save()
    with monkeypatch.context() as full:
        full.setattr(
            atomic_io,
            "_fsync",
            lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        history.log_metrics({"b": 2.0}, step=99)  # is when it saves
    assert "could not be written (No space left on device)" in caplog.text
    file = tmp_path / "metrics.csv"
    assert file.read_bytes() == b"a,step\r\n0.1,1\r\n"
    history.save()
    assert file.read_bytes() == history.text.encode() == b"a,b,step\r\n0.1,,1\r\n,2.0,99\r\n"
    again = loggers.CSVHistory(tmp_path, name="", version="")
    again.rewind(history.text)
    again.log_metrics({"a": 0.25}, step=100)
    again.save()
    assert file.read_bytes() == b"a,b,step\r\n0.1,,1\r\n,2.0,99\r\n0.25,,100\r\n"


def test_images_that_find_no_room_do_not_end_training(caplog):
    class Full(Periodic):
        every = 5

        def run(self, trainer, system):
            raise OSError(number, "told")

    trainer, number = SimpleNamespace(global_step=5, max_steps=9), 28
    observer = Full()
    observer.on_train_batch_end(trainer, None)
    assert (
        "step 5: full could not be saved (told); training continues" in caplog.text
        and observer.seen == 5
    )
    observer.seen, number = 0, 2
    with pytest.raises(OSError, match="told"):
        observer.on_train_batch_end(trainer, None)


def test_what_beats_is_left_alone(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with watchdog.monitor(0.3, tmp_path / "hang.txt"):
        for _ in range(8):
            time.sleep(0.1)
            watchdog.heartbeat()
    assert not (tmp_path / "hang.txt").exists() and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_weights_and_biases_has_one_run_of_both_halves(bench, monkeypatch):
    halves = strikes(Diffusion, "training_step", 13, signal.SIGKILL)
    folder = bench.room()
    overrides = [
        *(word for word in bench.overrides(PIXELS) if word != "logger=csv"),
        "hydra.run.dir=run",
    ]
    wandb.teardown()  # or its service, of other tests, would hold on to the run that is killed
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert faults.ended(faults.begin(folder, overrides, halves)) == 137
    mark = (folder / "run" / "wandb" / "id.txt").read_text()
    assert faults.ended(faults.begin(folder, overrides)) == 0, faults.log(folder)
    assert len([*(folder / "run" / "wandb").glob(f"offline-run-*-{mark}")]) == 2


def test_checkpoints_are_ordered_by_their_steps(tmp_path):
    for step in (9, 1000000, 999999):
        (tmp_path / f"step-{step:06d}.ckpt").write_text("")
    (tmp_path / "step-000010.ckpt.damaged").write_text("")
    assert [file.name for file in list_checkpoints(tmp_path)] == [
        "step-1000000.ckpt",
        "step-999999.ckpt",
        "step-000009.ckpt",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_never_saved(value):
    callback = Checkpoints()
    content = {"callbacks": {"EMA": [{"average": torch.tensor([1.0, value])}]}}
    with pytest.raises(
        DivergenceError, match=r"callbacks.EMA.0.average is not finite, and is not saved"
    ):
        callback.on_save_checkpoint(SimpleNamespace(loggers=[]), None, content)


def test_what_follows_from_the_data_is_adopted_when_a_command_is_repeated(tmp_path):
    for i in range(8):
        Image.effect_noise((8, 8), 50 + i).save(tmp_path / f"{i}.png")
    typed_words = ("data=folder", f"data.path={tmp_path}")
    saved, again = composed(*typed_words), composed(*typed_words)
    fill_defaults(saved, build(saved, "data"))
    assert (saved.data.resolution, saved.data.channels) == (8, 1) and again.data.resolution is None
    resume.adopt_derived(again, saved)
    assert again == saved
