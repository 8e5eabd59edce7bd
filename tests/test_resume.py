"""Runs that fail in processes of their own, and the same command afterwards."""

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
from ddpm_lab.callbacks.checkpoints import Checkpoints
from ddpm_lab.callbacks.losses import Losses
from ddpm_lab.callbacks.model_metrics import FID
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
from ddpm_lab.utils.safe_load import list_checkpoints

spec = importlib.util.spec_from_file_location("faults", ROOT / "scripts" / "faults.py")
assert spec is not None and spec.loader is not None
faults = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faults)
PIXELS, LATENTS, ACCUMULATED, STREAMED, *OTHERS = faults.KINDS


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return faults.Bench(tmp_path_factory.mktemp("faults"))


def fail_at(owner, name, nth, by):
    """Return a fault: call `nth` of `owner.name` raises `by`, or its process gets this signal."""

    def fault():
        calls, original = itertools.count(1), getattr(owner, name)

        def failing(*args, **kwargs):
            if next(calls) == nth:
                if isinstance(by, Exception):
                    raise by
                os.kill(os.getpid(), by)
            return original(*args, **kwargs)

        setattr(owner, name, failing)

    return fault


def run_with_fault(bench, kind, fault, *more):
    """Return the folder, the exit status and the log of a run with a `fault`."""
    folder = bench.new_folder()
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
def test_killed_run_resumes_bit_for_bit(bench, kind, owner, name, nth):
    folder, status, _ = run_with_fault(bench, kind, fail_at(owner, name, nth, signal.SIGKILL))
    assert status == 137
    assert bench.verdict(folder, bench.overrides(kind)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "nth", "step", "by"),
    [
        (SampleGrid, "run", 3, 30, signal.SIGTERM),
        (Diffusion, "validation_step", 30, 30, signal.SIGINT),
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
def test_signal_saves_the_last_step(bench, owner, name, nth, step, by):
    folder, status, log = run_with_fault(bench, PIXELS, fail_at(owner, name, nth, by))
    assert status == 128 + by and f"stopped by {by.name} at step {step}; saved in" in log, log
    assert faults.kept(folder)[0].stem == f"step-{step:06d}"
    assert bench.verdict(folder, bench.overrides(PIXELS)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "trials"), [("torn", 3), ("poison", 2), ("disk", 3), ("damage", 2)]
)
def test_faults_leave_all_checkpoints_intact(bench, kind, trials):
    trial, _ = faults.TRIALS[kind]
    assert [word for wrong in trial(bench, trials).values() for word in wrong if word] == []


@pytest.mark.slow
def test_exception_saves_the_step_before_it(bench):
    in_a_step = fail_at(Simple, "__call__", 14, RuntimeError("a bug"))
    folder, status, log = run_with_fault(bench, PIXELS, in_a_step)
    assert status == 1 and "Traceback" in log
    assert [file.stem for file in faults.kept(folder)] == ["step-000010"]
    # The batch is fetched one step ahead.
    between_steps = fail_at(TrainBatches, "_to_batch", 14, RuntimeError("a bug between two steps"))
    folder, status, _ = run_with_fault(bench, PIXELS, between_steps)
    assert status == 1
    assert [file.stem for file in faults.kept(folder)] == ["step-000012", "step-000010"]
    assert bench.verdict(folder, bench.overrides(PIXELS)) == ""


@pytest.mark.slow
def test_hang_ends_the_run_and_writes_stacks(bench):
    def asleep():
        Diffusion.training_step = lambda *_: time.sleep(60)

    folder, status, log = run_with_fault(bench, PIXELS, asleep, "hang_timeout=1")
    assert status == 124 and "no progress for 1 s" in log
    (stacks,) = folder.glob("runs/*/*/hang.txt")
    assert "asleep" in stacks.read_text() or "<lambda>" in stacks.read_text()


@pytest.mark.slow
def test_slow_file_is_named(bench):
    def slow():
        module.TIMEOUT, own = 1, ImageFiles.__getitem__
        ImageFiles.__getitem__ = lambda self, i: (
            time.sleep(5) if self.files[i].name == "7.png" else own(self, i)
        )

    _, status, log = run_with_fault(bench, STREAMED, slow, "data.workers=1")
    message = r"error: data: nothing was read for 1 s; pending: \S+\.png, "
    assert status == 124 and re.search(message, log), log


@pytest.mark.slow
def test_killed_data_worker_is_a_resource_error(bench):
    def shot():
        own, main = ImageFiles.__getitem__, os.getpid()

        def read(self, i):
            if self.files[i].name == "7.png" and os.getpid() != main:
                os.kill(os.getpid(), signal.SIGKILL)
            return own(self, i)

        ImageFiles.__getitem__ = read

    _, status, log = run_with_fault(bench, STREAMED, shot, "data.workers=1")
    assert status == 3 and "error: data: a process that reads images was killed" in log, log


@pytest.mark.slow
def test_slurm_job_is_requeued_after_saving(bench, tmp_path):
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/arguments\n")
    (tmp_path / "scontrol").chmod(0o755)
    stop = fail_at(Diffusion, "training_step", 13, signal.SIGUSR1)

    def fault():
        os.environ["SLURM_JOB_ID"], os.environ["PATH"] = "17", f"{tmp_path}:{os.environ['PATH']}"
        stop()

    folder, status, log = run_with_fault(bench, PIXELS, fault)
    assert status == 128 + signal.SIGUSR1 and "back in the queue" in log, log
    assert (tmp_path / "arguments").read_text() == "requeue 17\n"
    assert faults.kept(folder)[0].stem == "step-000013"


@pytest.fixture(scope="module")
def stopped(bench):
    """Return the directories of a run that was stopped at step 13 and of a finished one."""
    stop = fail_at(Diffusion, "training_step", 13, signal.SIGTERM)
    folder, status, _ = run_with_fault(bench, PIXELS, stop)
    assert status == 143
    (run,) = folder.glob("runs/*/*")
    return run, bench.reference(bench.overrides(PIXELS))[0]


def test_other_commands_do_not_resume(bench, stopped, typed, monkeypatch, tmp_path):
    run, finished = stopped
    overrides = bench.overrides(PIXELS)
    monkeypatch.chdir(run.parents[2])
    # Fused AdamW on a CPU silently mixes up moments of another memory format.
    for other, difference in {
        "data.batch_size=32": "data.batch_size=32 was 16",
        "seed=1": "seed=1 was 0",
        "model.channels=16": "model.channels=16 was 8",
        "model.channels_last=false": "model.channels_last=False was True",
    }.items():
        status, _, error = typed("train", *overrides, other, f"hydra.run.dir={run}")
        assert status == 2 and error.count("\n") == 1, error
        assert "contains another run" in error and difference in error, error
        status, _, error = typed("train", f"resume={run}", other)
        assert (
            status == 2 and f"{other.partition('=')[0]} cannot change, because resume=" in error
        ), error
    status, _, error = typed("train", *bench.overrides(PIXELS), f"hydra.run.dir={finished}")
    assert status == 2 and "trainer.max_steps=60 is reached" in error, error
    assert "try trainer.max_steps=120" in error
    status, _, error = typed("train", f"resume={tmp_path}")
    assert status == 2 and "is not a run directory" in error
    status, _, error = typed("train", *overrides, "hydra.run.dir=")
    assert status == 2 and "hydra.run.dir= has no value" in error
    status, _, error = typed("train", *overrides, "resume=null", f"hydra.run.dir={run}")
    assert status == 2 and f"hydra.run.dir={run} contains a run" in error, error
    runs = {*run.parent.iterdir()}
    assert typed("train", *overrides, "resume=null", "trainer.max_steps=1")[0] == 0
    assert len({*run.parents[1].glob("*/*")} - runs) == 1


@pytest.mark.slow
def test_resume_by_directory_and_with_more_steps(bench, stopped):
    run, _ = stopped
    folder = bench.new_folder()
    for overrides in ((f"resume={run}",), (f"resume={run}", "trainer.max_steps=70")):
        assert faults.ended(faults.begin(folder, overrides)) == 0, faults.log(folder)
    assert json.loads((run / "metrics.json").read_text())["training"]["steps"] == 70
    names = [file.stem for file in list_checkpoints(run / "checkpoints")]
    assert names == ["step-000070", "step-000060"]
    assert faults.result(run)["history"][-1]["step"] == "70"


def test_directory_is_locked_by_one_run(bench, typed, tmp_path):
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
        assert status == 2, error
        assert f"another process is training in it (process {child}, on " in error
        assert atomic_io.is_locked(tmp_path)
    finally:
        faults.stopped(child, signal.SIGKILL)
    assert not atomic_io.is_locked(tmp_path)
    with atomic_io.directory_lock(tmp_path, "training"):
        pass
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("flip", [False, True])
def test_batches_continue_after_any_number_of_steps(flip):
    split = Images(torch.arange(23 * 4, dtype=torch.uint8).reshape(23, 1, 2, 2), torch.arange(23))
    whole = list(islice(iter(TrainBatches(split, 5, flip, 3)), 20))
    for done in range(20):
        rest = [*islice(iter(TrainBatches(split, 5, flip, 3, done=done)), 20 - done)]
        torch.testing.assert_close(rest, whole[done:], rtol=0, atol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_skipped_step_changes_no_state(fused):
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
    moments = {key: value.clone() for key, value in optimizer.state[weights[1]].items()}
    for value in (float("nan"), float("inf"), -float("inf"), float("nan")):
        step(value)
    assert skips.state() == [4, 4]
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert all(
        torch.equal(value, moments[key]) for key, value in optimizer.state[weights[1]].items()
    )
    step(1.0)
    assert skips.state() == [4, 0] and not torch.equal(weights[0], before[0])
    with pytest.raises(DivergenceError, match=f"step 7: {LIMIT} consecutive steps"):
        for _ in range(LIMIT):
            step(float("nan"))


def test_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    atomic_io.write_text(file, "old")
    with pytest.raises(OSError, match="full"), atomic_io.atomic_write(file) as partial:
        partial.write_text("ne")
        raise OSError("full")
    assert file.read_text() == "old" and [*tmp_path.iterdir()] == [file]


def test_each_rank_restores_its_own_losses():
    processes = [
        [{name: torch.tensor([10.0 + rank]) for name in ("losses", "weight", "l1")}]
        for rank in range(2)
    ]
    for rank in range(2):
        losses = Losses()
        losses.load_state_dict(
            {"curves": {"train/loss": [(7, 0.5)]}, "batches": 3, "processes": processes}
        )
        trainer = SimpleNamespace(global_rank=rank, world_size=2)
        system = SimpleNamespace(device=torch.device("cpu"))
        losses.on_train_start(trainer, system)
        assert (
            losses.values == {name: [value] for name, value in processes[rank][0].items()}
            and losses.batches == 3
        )
    checkpoint = {"callbacks": {"Losses": losses.state_dict()}}
    losses.on_save_checkpoint(trainer, system, checkpoint)
    assert checkpoint["callbacks"]["Losses"]["processes"] == processes[1:]


def test_full_disk_loses_no_row_of_the_history(tmp_path, monkeypatch, caplog):
    history = loggers.CSVHistory(tmp_path, name="", version="")
    history.log_metrics({"a": 0.1}, step=1)
    history.save()

    def fail(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic_io, "_fsync", fail)
        history.log_metrics({"b": 2.0}, step=99)  # saves the history
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


def test_failed_image_write_does_not_end_training(caplog):
    class Full(Periodic):
        every = 5

        def run(self, trainer, system):
            raise OSError(number, "message")

    trainer, number = SimpleNamespace(global_step=5, max_steps=9), 28
    observer = Full()
    observer.on_train_batch_end(trainer, None)
    assert "step 5: full could not be saved (message); training continues" in caplog.text
    assert observer.last_step == 5
    observer.last_step, number = 0, 2
    with pytest.raises(OSError, match="message"):
        observer.on_train_batch_end(trainer, None)


def test_heartbeats_prevent_the_watchdog(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with watchdog.monitor(0.3, tmp_path / "hang.txt"):
        for _ in range(8):
            time.sleep(0.1)
            watchdog.heartbeat()
    assert not (tmp_path / "hang.txt").exists() and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_wandb_id_is_kept_when_a_run_resumes(bench, monkeypatch):
    halves = fail_at(Diffusion, "training_step", 13, signal.SIGKILL)
    folder = bench.new_folder()
    overrides = [
        *(word for word in bench.overrides(PIXELS) if word != "logger=csv"),
        "hydra.run.dir=run",
    ]
    wandb.teardown()  # the service of other tests would keep the killed run
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert faults.ended(faults.begin(folder, overrides, halves)) == 137
    mark = (folder / "run" / "wandb" / "id.txt").read_text()
    assert faults.ended(faults.begin(folder, overrides)) == 0, faults.log(folder)
    assert len([*(folder / "run" / "wandb").glob(f"offline-run-*-{mark}")]) == 2


def test_checkpoints_are_sorted_by_step(tmp_path):
    for step in (9, 1000000, 999999):
        (tmp_path / f"step-{step:06d}.ckpt").write_text("")
    (tmp_path / "step-000010.ckpt.damaged").write_text("")
    names = [file.stem for file in list_checkpoints(tmp_path)]
    assert names == ["step-1000000", "step-999999", "step-000009"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_numbers_are_not_saved(value):
    callback = Checkpoints()
    content = {"callbacks": {"EMA": [{"average": torch.tensor([1.0, value])}]}}
    with pytest.raises(
        DivergenceError, match=r"callbacks.EMA.0.average is not finite, so no checkpoint is saved"
    ):
        strategy = SimpleNamespace(broadcast=lambda value: value)
        callback.on_save_checkpoint(SimpleNamespace(loggers=[], strategy=strategy), None, content)


def test_derived_defaults_are_adopted_by_the_same_command(tmp_path):
    for i in range(8):
        Image.effect_noise((8, 8), 50 + i).save(tmp_path / f"{i}.png")
    overrides = ("data=folder", f"data.path={tmp_path}")
    saved, again = composed(*overrides), composed(*overrides)
    fill_defaults(saved, build(saved, "data"))
    assert (saved.data.resolution, saved.data.channels) == (8, 1) and again.data.resolution is None
    resume.adopt_derived(again, saved)
    assert again == saved


def test_a_value_called_run_does_not_select_a_saved_group():
    assert resume._is_saved_choice("schedule=run")
    for word in ("logger.wandb.group=run", "hydra.run.dir=run", "resume=run", "schedule=cosine"):
        assert not resume._is_saved_choice(word), word
