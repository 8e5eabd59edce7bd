"""W&B without a network: agents of sweeps, names, evaluations and uploads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import pytest
import wandb
import yaml
from conftest import FAST, ROOT, composed
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb.wandb_agent import Agent

from ddpm_lab.callbacks.loggers import read_wandb_id, run_name
from ddpm_lab.config.messages import normalize_flags
from ddpm_lab.config.overrides import CONFIGS

SWEEP = yaml.safe_load((ROOT / "examples" / "wandb_sweep.yaml").read_text())
SHORT = [word for word in FAST if word != "logger=csv"]


def records(folder):
    """Return config and summary of the offline runs in `folder`, oldest first."""
    tool = str(Path(sys.executable).with_name("wandb"))
    command = [tool, "leet", "inspect", "--summary", "--json"]
    return [
        json.loads(subprocess.run([*command, str(run)], capture_output=True, check=True).stdout)
        for run in sorted(folder.glob("wandb/offline-run-*"))
    ]


def values(words):
    return {name: {"value": value} for name, value in words.items()}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_parameters_of_the_sweep_compose_with_and_without_dashes():
    first = {
        name: (one.get("values") or [one.get("value", one.get("min"))])[-1]
        for name, one in SWEEP["parameters"].items()
    }
    forms = create_sweep_command_args({"args": values(first)})
    assert forms["args"] == [f"--{word}" for word in forms["args_no_hyphens"]]
    assert normalize_flags(forms["args"], CONFIGS) == forms["args_no_hyphens"]
    config = composed(*forms["args_no_hyphens"])
    assert (config.optimizer.lr, config.model.multipliers) == (0.001, [1, 2, 2])


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["${args_no_hyphens}", "${args}"])
def test_agent_of_wandb_runs_the_sweep(offline, tmp_path, monkeypatch, arguments):
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    agent = Agent(SimpleNamespace(), Queue(), sweep_id="sweep1")
    agent._sweep_command = [*SWEEP["command"][:-1], arguments]
    words = dict(word.split("=") for word in SHORT) | {"schedule": "linear", "optimizer.lr": 0.002}
    command = {"args": values(words), "program": SWEEP["program"], "run_id": "abcd1234"}
    agent._command_run(command | {"type": "run"})
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # set by the agent
        os.environ.pop(name)
    assert agent._run_processes["abcd1234"].wait(120) == 0
    (run,) = (tmp_path / "runs").glob("*/*")
    assert read_wandb_id(run) == "abcd1234"
    (record,) = records(run)
    assert record["summary"]["eval/fid"] > 0 and record["config"]["optimizer.lr"] == 0.002


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], None),
        (["schedule=linear", "hydra.run.dir=a", "logger=wandb"], "schedule=linear"),
        (["--config-dir=x", "+callbacks.mine.every=3", "seed=1"], "callbacks.mine.every=3 seed=1"),
    ],
)
def test_runs_are_named_by_their_overrides(overrides, name):
    assert run_name(overrides) == name


@pytest.mark.slow
def test_protocol_evaluations_and_checkpoints_are_logged(offline, typed, tmp_path, monkeypatch):
    started, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or init(**options))
    artifacts = []
    monkeypatch.setattr(
        wandb.Run, "log_artifact", lambda self, artifact: artifacts.append(artifact)
    )
    words = ("schedule=linear", *SHORT, "logger.wandb.tags=[mine]", "logger.wandb.checkpoints=true")
    status, _, error = typed("train", *words, "hydra.run.dir=run")
    assert status == 0, error
    run = tmp_path / "run"
    (record,) = records(run)
    assert started[0]["name"].startswith("schedule=linear") and started[0]["tags"] == ["mine"]
    summary = record["summary"]
    assert {"eval/inception_score", "eval/fid_error", "eval/class_accuracy_error"} <= summary.keys()
    assert summary["protocol"]["sampler"]["name"] == "DDIM"
    entries = ["checkpoints/step-000010.ckpt", "config.yaml", "run.json"]
    assert sorted(artifacts[0].manifest.entries) == entries
    status, _, error = typed("evaluate", "run=run", "count=20", "wandb=true", "hydra.run.dir=e")
    assert status == 0, error
    assert started[1]["id"] == read_wandb_id(run) and started[1]["resume"] == "allow"
    (evaluation,) = records(tmp_path / "e")
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert evaluation["summary"]["evaluate/fid"] == metrics["fid"]
    status, _, error = typed("evaluate", "run=run", "sweep=sampler.eta", "values=[0]", "wandb=true")
    assert status == 2 and "wandb=true is for one evaluation" in error
