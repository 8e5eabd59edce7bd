"""Provenance: the environments of a run, and the commit of the checkout."""

import json
import re
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch

import ddpm_lab
from ddpm_lab.ablations.job_environments import describe_environments
from ddpm_lab.runs import provenance, run_record
from ddpm_lab.sweeps.job import ENVIRONMENT, Job

KEYS = {"ddpm_lab", "commit", "python", "torch", "device", "cores", "platform", "date"}
DATA = {"train": {}, "test": {}}


def git(root, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """Return a repository with the layout of ddpm-lab."""
    root = tmp_path / "outer" / "checkout"
    for folder in ("src", "configs"):
        (root / folder).mkdir(parents=True)
        (root / folder / "file").touch()
    (root / "pyproject.toml").write_text('[project]\nname = "ddpm-lab"\n')
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    return root


def test_environment_describes_this_process():
    environment = provenance.environment(torch.device("cpu"))
    assert environment.keys() == KEYS and json.loads(json.dumps(environment)) == environment
    assert environment["ddpm_lab"] == ddpm_lab.__version__
    assert environment["torch"] == torch.__version__ and environment["device"]
    date = datetime.fromisoformat(environment["date"])
    assert date.utcoffset() == timedelta(0)
    assert abs(datetime.now(date.tzinfo) - date) < timedelta(minutes=1)


def test_commit_marks_changes_of_code_and_configs(checkout, monkeypatch):
    commit = provenance.commit(checkout)
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (checkout / "notes.txt").touch()
    assert provenance.commit(checkout) == commit
    (checkout / "configs" / "new.yaml").touch()
    assert provenance.commit(checkout) == f"{commit}+"
    monkeypatch.setattr(provenance, "commit", lambda: f"{commit}+")
    assert provenance.version() == f"{ddpm_lab.__version__} ({commit[:9]}+)"


def test_repository_of_the_user_is_not_read(checkout, monkeypatch):
    outer = checkout.parent
    git(outer, "init")
    git(outer, "commit", "--allow-empty", "-m", "outer")
    monkeypatch.setenv("GIT_DIR", str(outer / ".git"))
    assert provenance.commit(checkout)
    monkeypatch.setattr(provenance, "_output", lambda *command, env=None: 1 / 0)
    (checkout / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    assert provenance.commit(checkout) is None, "the package was copied into a project"
    (outer / "pyproject.toml").write_text('[project]\nname = "ddpm-lab"\n')
    (checkout / ".git").rename(checkout / "git")
    assert provenance.commit(checkout) is None, "an unpacked archive below a repository"


def test_commit_is_none_without_git_or_with_a_damaged_repository(checkout, monkeypatch):
    outer = checkout.parent
    git(outer, "init")
    git(outer, "commit", "--allow-empty", "-m", "outer")
    (checkout / ".git" / "HEAD").unlink()
    assert provenance.commit(checkout) is None, "the repository above is another one"
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(outer) is None and provenance.environment().keys() == KEYS


def test_record_keeps_the_first_environment_and_appends_others(tmp_path):
    first, later = (
        {"torch": "1", "commit": None, "date": date} for date in ("2020-01-01", "2020-01-02")
    )
    other = later | {"torch": "2"}
    run_id = run_record.write_record(tmp_path, DATA, first)
    for environment in (later, other, None):
        assert run_record.write_record(tmp_path, DATA, environment) == run_id
    assert run_record.read_record(tmp_path).environments == [first, other]
    file = tmp_path / run_record.FILE
    record = json.loads(file.read_text())
    for damaged, expected in (("x", []), ([1, {"torch": 2, "date": "d"}], [{"date": "d"}])):
        file.write_text(json.dumps(record | {"environments": damaged}))
        read = run_record.read_record(tmp_path)
        assert read.id == run_id and read.environments == expected
    del record["environments"]
    file.write_text(json.dumps(record))
    assert run_record.read_record(tmp_path).environments == []


def test_run_and_loggers_have_the_environment(tiny, monkeypatch):
    from ddpm_lab.callbacks.loggers import CSVHistory

    settings = []
    monkeypatch.setattr(CSVHistory, "log_hyperparams", lambda self, params: settings.append(params))
    run = tiny("seed=11")
    (environment,) = json.loads(Path(run, "run.json").read_text())["environments"]
    assert environment["ddpm_lab"] == ddpm_lab.__version__
    assert environment == settings[0]["environment"] and settings[0]["seed"] == 11


def make_job(root, name, environments, file, status=0):
    job = Job(name, "train", (), root / name, "hash", 1.0)
    job.folder.mkdir(parents=True)
    (job.folder / "job.json").write_text(json.dumps({"status": status, "config": "hash"}))
    if environments:
        (job.folder / file).write_text(json.dumps({"environments": environments}))
    return job


def test_jobs_describe_their_environments(tmp_path):
    first = {"ddpm_lab": "0.2", "commit": "a" * 40, "torch": "2.13", "device": "CPU"}
    first |= {"cores": "2", "date": "2026-11-27T23:00:00+00:00"}
    second = first | {"commit": "b" * 40 + "+", "date": "2026-11-29T01:00:00+00:00"}
    jobs = [
        make_job(tmp_path, "train", [first, second], run_record.FILE),
        make_job(tmp_path, "evaluate", [second], ENVIRONMENT),
    ]
    both = (
        f"ddpm-lab 0.2; commit {'a' * 9}, {'b' * 9}+; torch 2.13; CPU (2 cores); 2026-11-27 to "
        "2026-11-29; seeds 0, 1"
    )
    assert describe_environments(jobs, [0, 1]) == both
    one = describe_environments(jobs[1:])
    assert one == f"ddpm-lab 0.2; commit {'b' * 9}+; torch 2.13; CPU (2 cores); 2026-11-29"
    old, failed = make_job(tmp_path, "old", [], ""), make_job(tmp_path, "failed", [], "", status=1)
    text = "the code and the machine of 1 jobs were not recorded"
    assert describe_environments([old, failed, *jobs]).endswith(text)
    assert describe_environments([failed]) == describe_environments([]) == ""


def test_finished_job_records_its_environment(tmp_path):
    provenance.write_environment(tmp_path / ENVIRONMENT)
    (environment,) = run_record.environments(json.loads((tmp_path / ENVIRONMENT).read_text()))
    assert environment.keys() == KEYS
