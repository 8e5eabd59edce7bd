"""Metrics that training follows: the best checkpoint and early stopping."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST

import ddpm_lab
from ddpm_lab.callbacks.early_stopping import EarlyStopping
from ddpm_lab.callbacks.model_metrics import FID
from ddpm_lab.callbacks.monitor import Monitor
from ddpm_lab.evaluation.sample_quality import SampleQuality
from ddpm_lab.runs.weights import read_weights
from ddpm_lab.systems.diffusion import Diffusion

EVERY = ("callbacks.fid.every=2", "callbacks.checkpoints.every=3", "callbacks.fid.count=20")
VALUES = {2: 9.0, 4: 3.0, 6: 5.0, 8: 4.0, 10: 6.0}
"""FID by step"""


@pytest.fixture
def measured(monkeypatch):
    """Replace FID by VALUES; return the steps at which it was measured."""
    steps = []

    def run(self, trainer, system):
        steps.append(trainer.global_step)
        original(self, trainer, system)

    def results(self, *args):
        return {"fid": VALUES[steps[-1]], "standard_error": {}, "protocol": {}}

    original = FID.run
    monkeypatch.setattr(FID, "run", run)
    monkeypatch.setattr(SampleQuality, "compute", results)
    monkeypatch.setattr(SampleQuality, "rows", lambda self, results: [])
    return steps


class Followed(Monitor):
    argument = "metric"

    def __init__(self, metric, min_delta=0.0):
        self.metric, self.min_delta, self.improvements = metric, min_delta, []

    def observe(self, trainer, improved):
        self.improvements.append(improved)


@pytest.mark.parametrize(
    ("metric", "values", "improvements"),
    [
        ("fid", [3, 2, 2, 4, 1], [True, True, False, False, True]),
        ("class_accuracy", [0.3, 0.2, 0.5], [True, False, True]),
        ("fid", [float("nan"), 5], [False, True]),
    ],
)
def test_improvements_are_lower_or_higher_values(metric, values, improvements):
    monitor = Followed(metric)
    for step, value in enumerate(values):
        monitor.receive(SimpleNamespace(global_step=step), {f"eval/{metric}": value, "lr": 1})
    assert monitor.improvements == improvements
    assert monitor.best_step == max(i for i, one in enumerate(improvements) if one)


def test_small_changes_do_not_count_and_other_metrics_are_ignored():
    monitor = Followed("loss", min_delta=0.1)
    for value in (1.0, 0.95, 0.85):
        monitor.receive(SimpleNamespace(global_step=1), {"val/loss": value, "train/loss": 0})
    monitor.receive(SimpleNamespace(global_step=1), {"train/loss": -1, "eval/fid": -1})
    assert monitor.improvements == [True, False, True] and monitor.best == 0.85


def test_patience_counts_values_in_a_row():
    trainer = SimpleNamespace(global_step=1, should_stop=False)
    stopping = EarlyStopping("fid", patience=2)
    for value, stopped in ((3, False), (4, False), (2, False), (2, False), (5, True)):
        stopping.receive(trainer, {"eval/fid": value})
        assert trainer.should_stop is stopped
    again = EarlyStopping("fid", patience=9)
    again.load_state_dict(stopping.state_dict())
    assert (again.waited, again.best, again.patience) == (2, 2, 9)
    other = EarlyStopping("loss")
    other.load_state_dict(stopping.state_dict())
    assert (other.waited, other.best) == (0, None), "another metric starts anew"


def test_best_checkpoint_is_kept_and_selected(typed, tmp_path, measured):
    run = tmp_path / "run"
    words = (*FAST, *EVERY, "callbacks.checkpoints.best=fid", f"hydra.run.dir={run}")
    status, out, error = typed("train", *words)
    assert status == 0, error
    assert measured == [2, 4, 6, 8, 10] and "its fid is 3; to use it: checkpoint=best" in out
    files = sorted(file.name for file in (run / "checkpoints").iterdir())
    assert files == ["best.ckpt", "step-000009.ckpt", "step-000010.ckpt"]
    best, _ = read_weights(run, "best")
    assert best["global_step"] == 4 and read_weights(run)[0]["global_step"] == 10
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["training"]["best"] == {"metric": "fid", "value": 3.0, "step": 4}
    model = ddpm_lab.load(run, "checkpoint=best")
    newest = ddpm_lab.load(run)
    average = best["callbacks"]["EMA"]["average"]
    name = next(name for name in average if name.endswith("last.2.weight"))
    assert torch.equal(dict(model.denoiser.state_dict())[name], average[name])
    assert not torch.equal(newest.denoiser.state_dict()[name], average[name])
    one, other = (model.sample(2, overrides=[f"checkpoint={c}"]) for c in ("best", "newest"))
    assert torch.equal(one.tensor, model.sample(2).tensor)
    assert torch.equal(other.tensor, newest.sample(2).tensor)
    ddpm_lab.share(run, tmp_path / "share", checkpoint="best")
    assert read_weights(tmp_path / "share")[0]["global_step"] == 4
    status, out, error = typed(
        "train", *FAST, f"init={run}", "init_checkpoint=best", f"hydra.run.dir={tmp_path}/next"
    )
    assert status == 0 and "averaged weights of step 4 in" in out, error


@pytest.mark.parametrize("stop", [4, 5, 7])
def test_interrupted_run_keeps_the_same_best_checkpoint(typed, tmp_path, measured, stop):
    step = Diffusion.training_step

    def interrupt(self, batch, index):
        if index == stop:
            raise KeyboardInterrupt
        return step(self, batch, index)

    words = (*FAST, *EVERY, "callbacks.checkpoints.best=fid", "callbacks.early_stopping.metric=fid")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert typed("train", *words, f"hydra.run.dir={straight}")[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Diffusion, "training_step", interrupt)
        assert typed("train", *words, f"hydra.run.dir={resumed}")[0] != 0
    status, _, error = typed("train", *words, f"hydra.run.dir={resumed}")
    assert status == 0, error
    for checkpoint in ("best", "newest"):
        one, other = (read_weights(run, checkpoint)[0] for run in (straight, resumed))
        for part in ("state_dict", "optimizer_states", "global_step"):
            torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
        states = [content["callbacks"] for content in (one, other)]
        assert states[0]["EarlyStopping"] == states[1]["EarlyStopping"]
        assert states[0]["FID"] == states[1]["FID"]
        torch.testing.assert_close(states[0]["EMA"], states[1]["EMA"], rtol=0, atol=0)


def test_training_ends_early_and_may_be_extended(typed, tmp_path, measured):
    run = tmp_path / "run"
    words = (*FAST, *EVERY, "callbacks.early_stopping.metric=fid")
    words = (*words, "callbacks.early_stopping.patience=2", f"hydra.run.dir={run}")
    status, out, error = typed("train", *words)
    assert status == 0, error
    reason = "because fid stopped improving 2 values ago (best: 3 at step 4)"
    assert f"step 8: training ends early, {reason}" in out
    assert json.loads((run / "metrics.json").read_text())["training"]["steps"] == 8
    assert read_weights(run)[0]["global_step"] == 8
    status, out, error = typed("train", f"resume={run}")
    assert status == 0 and json.loads((run / "metrics.json").read_text())["training"]["steps"] == 8
    status, out, error = typed("train", f"resume={run}", "callbacks.early_stopping.patience=9")
    assert status == 0, error
    assert json.loads((run / "metrics.json").read_text())["training"]["steps"] == 10


def test_validation_loss_is_followed_without_images(typed, tmp_path):
    run = tmp_path / "run"
    words = (*FAST, "data=gaussian_mixture", "model=mlp", "callbacks=points")
    words = [word for word in words if not word.startswith(("callbacks.fid", "callbacks.sample"))]
    words = [word for word in words if not word.startswith("model.multipliers")]
    best = ("callbacks.checkpoints.best=loss", "trainer.val_check_interval=2")
    status, _, error = typed("train", *words, *best, f"hydra.run.dir={run}")
    assert status == 0, error
    best = json.loads((run / "metrics.json").read_text())["training"]["best"]
    assert best["metric"] == "loss" and best["step"] == read_weights(run, "best")[0]["global_step"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["callbacks.checkpoints.best=fid"],
            "callbacks.checkpoints.best=fid is not measured during training (measured: loss); try",
        ),
        (
            ["callbacks.early_stopping.metric=lpips", "callbacks.fid.every=2"],
            "(measured: loss, fid, inception_score, class_accuracy, intra_fid); try",
        ),
        (
            ["callbacks.early_stopping.metric=fid", "callbacks.fid.every=10"],
            "callbacks.early_stopping.metric=fid is not measured during training",
        ),
        (
            [
                "callbacks.checkpoints.best=class_accuracy",
                "callbacks.fid.every=2",
                "conditioner=none",
            ],
            "class_accuracy is not measured during training (measured: loss, fid, inception_score)",
        ),
        (
            ["callbacks.checkpoints.best=fid", "callbacks.fid.every=2", "extractor=none"],
            "fid is not measured during training (measured: loss); try",
        ),
        (
            ["callbacks.checkpoints.best=loss", "trainer.val_check_interval=null"],
            "loss is not measured during training (measured: nothing); try",
        ),
        (["callbacks.early_stopping.patience=0"], "callbacks.early_stopping.patience must be at"),
    ],
)
def test_metrics_that_are_never_measured_are_refused(typed, tmp_path, words, message):
    status, _, error = typed("train", *FAST, *words, f"hydra.run.dir={tmp_path}/run")
    assert status == 2 and message in error and error.count("\n") == 1, error
    assert not Path(tmp_path / "run").exists()


def test_missing_best_checkpoint_is_an_error(typed, tiny):
    status, _, error = typed("sample", f"run={tiny()}", "checkpoint=best")
    assert status == 2 and "has no best checkpoint, which training keeps with" in error
    status, _, error = typed("sample", f"run={tiny()}", "checkpoint=last")
    assert status == 2 and "checkpoint=last is not one of newest, best" in error
