"""Run directories: ids, moved data, starts from weights, and folders that are not runs."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import composed
from omegaconf import OmegaConf
from PIL import Image

from ddpm_lab.callbacks import checkpoints
from ddpm_lab.callbacks.losses import Losses
from ddpm_lab.cli.share import share
from ddpm_lab.config.validation import FIXED, check_keys
from ddpm_lab.data.datasets import Images, MapSplit
from ddpm_lab.data.digits import digits
from ddpm_lab.runs import data_check, resume, run_config, run_record, trusted_paths
from ddpm_lab.systems.nonfinite_steps import NonFiniteGuard
from ddpm_lab.utils import atomic_io
from ddpm_lab.utils.errors import UserError
from ddpm_lab.utils.safe_load import list_checkpoints

Q = (
    "extractor=none",
    "callbacks=none",
    "logger=csv",
    "model.channels=8",
    "model.multipliers=[1]",
    "data.batch_size=8",
    "trainer.max_steps=3",
    "optimizer.lr=1e-3",
)
CHEAP = ("metrics=[nll]", "nll.steps=2", "nll.count=2", "weights=raw")


def images(folder, classes=("a", "b"), count=24, shift=0):
    for i in range(count):
        part = folder / classes[i % len(classes)]
        part.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * i + shift, 100, 7 * i)).save(part / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory, typed):
    """Folder with images in `pics`, a run on them in `r`, its share in `s`, samples in `drawn`."""
    template = tmp_path_factory.mktemp("template")
    images(template / "pics")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(template)
        overrides = ("data=folder", "data.path=pics", "conditioner=label", *Q, "hydra.run.dir=r")
        status, _, error = typed("train", *overrides)
        assert status == 0, error
        assert (
            typed(
                "sample",
                "run=r",
                "count=2",
                "sampler.steps=2",
                "weights=raw",
                "hydra.run.dir=drawn",
            )[0]
            == 0
        )
        share("r", Path("s"))
    return template


@pytest.fixture
def workspace(template, tmp_path, monkeypatch):
    """Copy of `template` as the working directory, with its run recorded under the new path."""
    shutil.copytree(template, tmp_path / "template")
    monkeypatch.chdir(tmp_path / "template")
    run_record.write_record(Path("r"), run_record.read_record("r").data)
    trusted_paths.add_trusted_paths(OmegaConf.load("r/config.yaml"))
    return tmp_path / "template"


def test_run_id_is_in_checkpoints_metrics_and_shares(workspace, typed):
    key = run_record.read_record("r").id
    assert len(key) == 16
    assert torch.load("r/checkpoints/step-000003.ckpt", weights_only=True)["run_id"] == key
    assert json.loads(Path("r/metrics.json").read_text())["run_id"] == key
    share = run_record.read_record("s")
    assert (
        share.id == key
        and share.directory is None
        and share.data == run_record.read_record("r").data
    )
    assert typed("evaluate", "run=s", *CHEAP, "hydra.run.dir=e")[0] == 0
    assert json.loads(Path("e/metrics.json").read_text())["run_id"] == key
    assert typed("train", "resume=r", "trainer.max_steps=4")[0] == 0
    assert run_record.read_record("r").id == key


def test_resume_sets_aside_checkpoint_of_another_run(workspace, typed):
    overrides = (
        "data=folder",
        "data.path=pics",
        "conditioner=label",
        *Q,
        "seed=1",
        "hydra.run.dir=other",
    )
    assert typed("train", *overrides)[0] == 0
    shutil.copy("other/checkpoints/step-000003.ckpt", "r/checkpoints/step-000009.ckpt")
    status, out, error = typed("train", "resume=r", "trainer.max_steps=4")
    assert status == 0, error
    assert (
        "step-000009.ckpt belongs to another run" in out and "1 checkpoints were set aside" in out
    ), out
    assert [file.name for file in list_checkpoints(Path("r/checkpoints"))] == [
        "step-000004.ckpt",
        "step-000003.ckpt",
    ]


def test_resume_and_evaluate_accept_moved_data(workspace, typed):
    os.rename("pics", "moved")
    for verb, *overrides in (
        ("evaluate", "run=r", *CHEAP),
        ("train", "resume=r", "trainer.max_steps=4"),
    ):
        status, _, error = typed(verb, *overrides)
        assert status == 2 and "pics" in error and "try data.path=DIR" in error, error
        status, out, error = typed(verb, *overrides, "data.path=moved")
        assert status == 0 and "warning" not in out, out + error
    assert OmegaConf.load("r/config.yaml").data.path == "moved"
    for overrides in (
        ("data.workers=0", "data.in_memory=false", "hang_timeout=60"),
        ("logger=csv", "extractor=none"),
        ("+callbacks.progress._target_=ddpm_lab.callbacks.progress.Progress",),
        ("~callbacks.progress",),
    ):
        steps = resume_steps() + 1
        status, out, error = typed("train", "resume=r", *overrides, f"trainer.max_steps={steps}")
        assert status == 0 and "warning" not in out, out + error
        assert ("progress" in OmegaConf.load("r/config.yaml").callbacks) == overrides[0].startswith(
            "+"
        ), overrides


def resume_steps():
    return int(list_checkpoints(Path("r/checkpoints"))[0].stem[5:])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.pth=x", "data has no key pth (did you mean path?)"),
        ("data.channels=1", "data.channels cannot change, because resume=r was trained with"),
        ("callbacks.sample_grid.every=5", "callbacks has no key sample_grid"),
        ("data=digits", "data cannot change, because resume=r was trained with"),
    ],
)
def test_resume_overrides_are_checked_against_the_run(workspace, typed, word, message):
    status, _, error = typed("train", "resume=r", word)
    assert status == 2 and message in error and error.count("\n") == 1, error


def test_relative_data_path_works_from_another_directory(workspace, typed, monkeypatch):
    (workspace / "sub").mkdir()
    monkeypatch.chdir(workspace / "sub")
    assert typed("evaluate", "run=../r", *CHEAP)[0] == 0
    assert typed("train", "resume=../r", "trainer.max_steps=4")[0] == 0
    monkeypatch.chdir(workspace)
    overrides = (
        "data=folder",
        "data.path=pics",
        "conditioner=label",
        *Q,
        "hydra.run.dir=r",
        "trainer.max_steps=5",
    )
    status, _, error = typed("train", *overrides)
    assert status == 0, error


def test_changed_data_is_rejected_or_warned_about(workspace, typed):
    images(workspace / "more", count=26)
    status, _, error = typed("train", "resume=r", "trainer.max_steps=4", "data.path=more")
    assert status == 2 and "24 training samples instead of 22" in error and "init=r" in error, error
    images(workspace / "renamed", classes=("a", "c"))
    status, _, error = typed("train", "resume=r", "trainer.max_steps=4", "data.path=renamed")
    assert status == 2 and "classes a, c instead of a, b" in error, error
    images(workspace / "changed", shift=1)
    for verb, overrides in (
        ("evaluate", ("run=r", *CHEAP)),
        ("train", ("resume=r", "trainer.max_steps=4")),
    ):
        status, out, error = typed(verb, *overrides, "data.path=changed")
        assert status == 0 and "warning: data.path=changed" in out and "other images" in out, (
            out + error
        )


def test_data_fingerprint_depends_on_content_only():
    data = digits()
    fingerprint = data_check.data_fingerprint(data)

    class Source:
        def __getitem__(self, index):
            return data.train.pixels[index]

    source = Source()
    streamed = MapSplit(source, torch.arange(data.train.size), data.train.shape, data.train.labels)
    assert data_check._digest(streamed, 0) == fingerprint["train"]["sha256"]
    for other in (
        Images(data.train.pixels.flip(0), data.train.labels),
        Images(data.train.pixels, None),
    ):
        assert data_check._digest(other, 0) != fingerprint["train"]["sha256"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("resume=s",), "resume=s has weights without optimizer state"),
        (("hydra.run.dir=s", *Q), "init=s to start from its weights"),
        (("trainer.default_root_dir=s", *Q), "init=s to start from its weights"),
        (
            ("hydra.run.dir=pics", *Q),
            "is not the folder of a training run and contains a, b; try a new folder",
        ),
        (("hydra.run.dir=drawn", *Q), "is not the folder of a training run and contains"),
        (("resume=drawn",), "resume=drawn is not a run directory"),
    ],
)
def test_train_rejects_folders_that_are_not_runs(workspace, typed, overrides, message):
    before = {file: file.read_bytes() for file in workspace.rglob("*") if file.is_file()}
    status, _, error = typed("train", *overrides)
    assert status == 2 and message in error and error.count("\n") == 1, error
    assert {file: file.read_bytes() for file in workspace.rglob("*") if file.is_file()} == before


def test_check_vacant_ignores_logs_and_hidden_files(tmp_path):
    (tmp_path / "slurm-17.out").write_text("")
    (tmp_path / ".hidden").mkdir()
    resume.check_vacant(tmp_path)
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(UserError, match=r"contains notes\.md; try a new folder"):
        resume.check_vacant(tmp_path)


def test_init_starts_from_weights_of_another_run(workspace, typed):
    overrides = ("data=folder", "data.path=pics", "conditioner=label", *Q)
    overrides += ("+callbacks.ema._target_=ddpm_lab.callbacks.ema.EMA",)
    for source in ("s", "r"):
        status, out, error = typed(
            "train",
            *overrides,
            f"init={source}",
            f"hydra.run.dir=from-{source}",
            "optimizer.lr=1e-9",
        )
        assert status == 0 and "starting from the raw weights of step 3" in out, out + error
        first = torch.load("r/checkpoints/step-000003.ckpt", weights_only=True)["state_dict"]
        last = torch.load(f"from-{source}/checkpoints/step-000003.ckpt", weights_only=True)[
            "state_dict"
        ]
        assert all(
            torch.allclose(last[name], first[name], atol=1e-6)
            for name in first
            if "denoiser" in name
        )
    average = torch.load("from-r/checkpoints/step-000003.ckpt", weights_only=True)["callbacks"][
        "EMA"
    ]["average"]
    assert all(
        torch.allclose(average[name], first[f"denoiser.{name}"], atol=1e-6) for name in average
    )
    assert run_record.read_record("from-r").id != run_record.read_record("r").id
    shutil.rmtree("r")  # resume does not need it
    assert typed("train", "resume=from-r", "trainer.max_steps=4")[0] == 0
    refused = {
        ("model.channels=16",): "8 there, 16 here; its model has model.channels=8",
        ("prediction=v",): "init=s was trained with prediction=eps, but this run has v",
        ("conditioner=none",): "2 of 88 tensors do not fit, such as denoiser.network.encoder.label",
        ("system=classifier", "~callbacks.ema"): "init=s was trained with system=",
    }
    for more, message in refused.items():
        status, _, error = typed("train", *overrides, *more, "init=s", "hydra.run.dir=x")
        assert status == 2 and message in error and error.count("\n") == 1, error
    status, _, error = typed("train", *overrides, "init=nowhere", "hydra.run.dir=x")
    assert status == 2 and "nowhere is not a run directory" in error


@pytest.mark.parametrize("failing", [pytest.param(2, marks=pytest.mark.nightly), 3])
def test_failed_final_save_is_an_error(workspace, typed, monkeypatch, failing):
    overrides = (
        "data=folder",
        "data.path=pics",
        "conditioner=label",
        *Q,
        "trainer.max_steps=6",
        "hydra.run.dir=full",
        "callbacks=classifier",
        "callbacks.checkpoints.every=2",
        "~callbacks.progress",
    )
    calls, save = [], torch.save

    def save_on_full_disk(content, file):
        calls.append(file)
        if len(calls) >= failing:
            Path(file).write_bytes(b"part")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    monkeypatch.setattr(checkpoints.torch, "save", save_on_full_disk)
    status, out, error = typed("train", *overrides)
    last = f"step-{2 * (failing - 1):06d}.ckpt"
    assert (
        status == 3
        and "error: step 6: no checkpoint could be saved (No space left on device); "
        f"the last is {last}"
        in error
    )
    assert "saved in" not in out + error and not Path("full/metrics.json").exists()
    assert [file.name for file in Path("full/checkpoints").iterdir()][-1:] and list_checkpoints(
        Path("full/checkpoints")
    )[0].name == last
    monkeypatch.undo()
    os.chdir(workspace)
    assert typed("train", *overrides)[0] == 0 and Path("full/metrics.json").exists()


def test_failed_save_on_sigterm_is_reported(workspace, typed, monkeypatch):
    overrides = (
        "data=folder",
        "data.path=pics",
        "conditioner=label",
        *Q,
        "trainer.max_steps=6",
        "hydra.run.dir=full",
        "callbacks=classifier",
        "callbacks.checkpoints.every=2",
        "~callbacks.progress",
    )
    save = torch.save

    def save_on_read_only_disk(content, file):
        if content["global_step"] > 2:
            raise OSError(errno.EROFS, "Read-only file system")
        save(content, file)

    def send_signal(self, trainer, *_):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoints.torch, "save", save_on_read_only_disk)
    monkeypatch.setattr(checkpoints.Checkpoints, "on_train_batch_start", send_signal)
    status, _, error = typed("train", *overrides)
    assert status == 143 and "stopped by SIGTERM at step 3; the last checkpoint is " in error, error
    assert "saved in" not in error and "step-000002.ckpt; to resume, repeat the command" in error, (
        error
    )


class Logger(list):
    """Logger that keeps the metrics of each report, without the speed."""

    def log_metrics(self, metrics, step):
        self.append({name: value for name, value in metrics.items() if name != "images_per_second"})


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_resume_between_reports(weighted):
    torch.manual_seed(0)
    batches = []
    for i in range(11):
        losses = torch.rand(4)
        parts = {"l1": torch.rand(4), "penalty": torch.rand(())} | (
            {"hinge": torch.rand(())} if i > 4 else {}
        )
        if i == 3:
            losses[1] = parts["l1"][1] = float("nan")
        batches.append(
            {"loss": losses.mean(), "losses": losses, "parts": parts}
            | ({"weight": torch.rand(4)} if weighted else {})
        )

    def reports(stop):
        logger = Logger()
        trainer = SimpleNamespace(
            global_rank=0,
            world_size=1,
            global_step=0,
            loggers=[logger],
            callbacks=[],
            strategy=SimpleNamespace(reduce=lambda x, **_: x),
            optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1, "initial_lr": 0.1}])],
        )
        system = SimpleNamespace(
            device=torch.device("cpu"), skips=NonFiniteGuard(torch.device("cpu")), zero_loss=None
        )
        callback = Losses(every=4)
        callback.on_train_start(trainer, system)
        for i, batch in enumerate(batches):
            if i == stop:
                checkpoint = {"callbacks": {"Losses": callback.state_dict()}}
                callback.on_save_checkpoint(trainer, system, checkpoint)
                callback = Losses(every=4)
                callback.load_state_dict(checkpoint["callbacks"]["Losses"])
                callback.on_train_start(trainer, system)
            trainer.global_step = i + 1
            callback.on_train_batch_start()
            callback.on_train_batch_end(trainer, system, batch, None, i)
        return [*logger]

    whole = reports(None)
    assert len(whole) == 2 and "train/hinge" in whole[1] and "train/hinge" not in whole[0]
    assert all(reports(stop) == whole for stop in range(11))


@pytest.mark.parametrize("key", FIXED)
def test_fixed_trainer_keys_are_rejected(key):
    value = {bool: not FIXED[key][0], int: 3}.get(type(FIXED[key][0]), 3)
    with pytest.raises(UserError, match=rf"trainer\.{key}={value} is not supported: \w+"):
        check_keys(OmegaConf.create({key: value}))
    check_keys(OmegaConf.create({key: FIXED[key][0]}))


def test_trainer_options_pass_key_check():
    for choice in ("cpu", "gpu", "ddp", "debug", "slurm"):
        check_keys(composed(f"trainer={choice}").trainer)
    with pytest.raises(
        UserError, match=r"trainer.max_step=3 is not supported \(did you mean max_steps\?\)"
    ):
        check_keys(OmegaConf.create({"max_step": 3}))


def test_resume_adopts_derived_values_of_the_run():
    model = {"channels": 8, "multipliers": [1, 2], "attention": None, "dropout": 0.1}
    rest = {"optimizer": {"lr": 1e-3}, "trainer": {"max_steps": 70}, "compile": "default"}
    saved = OmegaConf.create({"model": model, **rest})
    config = OmegaConf.create(
        {
            "model": dict.fromkeys(model) | {"dropout": 0.2},
            "optimizer": {"lr": None},
            "trainer": {"max_steps": None},
            "compile": None,
        }
    )
    resume.adopt_derived(config, saved)
    assert config == OmegaConf.create(
        {**saved, "model": {**saved.model, "dropout": 0.2}, "compile": None}
    )
    with pytest.raises(UserError, match=r"model.dropout=0.2 was 0.1"):
        resume.check_same_config(saved, config, Path("r"))


def test_missing_file_locks_are_logged(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic_io.fcntl, "lockf", fail)
    with atomic_io.directory_lock(tmp_path, "training"):
        assert "cannot be locked (No locks available)" in caplog.text and not atomic_io.is_locked(
            tmp_path
        )


@pytest.mark.parametrize("key", ["eta", "s_churn"])
def test_decoding_removes_the_noise_of_the_run(key, monkeypatch):
    config = OmegaConf.create({"sampler": {key: 2.0}})
    monkeypatch.setattr(run_config, "load_config", lambda run: config)
    for value, typed, expected in (
        (2.0, [], 0.0),
        (2.0, [f"sampler.{key}=2"], 2.0),
        (1.0, [], 1.0),
    ):
        settings = OmegaConf.create({"run": "DIR", "sampler": {key: value}})
        run_config.make_deterministic(settings, typed)
        assert settings.sampler[key] == expected
