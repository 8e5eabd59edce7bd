"""Jobs, executors, sweeps and searches: each job runs once, and fails independently."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from conftest import FAST, ROOT
from omegaconf import OmegaConf

from ddpm_lab.cli import main
from ddpm_lab.config.overrides import config_hash, slug
from ddpm_lab.sweeps.executors import Executor, ProcessExecutor
from ddpm_lab.sweeps.job import Job, estimate_cost
from ddpm_lab.sweeps.scheduler import _estimate_seconds, run_jobs
from ddpm_lab.utils.errors import JobsFailedError, UserError

QUICK = (
    *FAST,
    "callbacks.sample_grid.every=100",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
)


class FakeExecutor(Executor):
    """Records the jobs instead of running them; those in `broken` fail."""

    def __init__(self, broken=()):
        self.ran, self.broken = [], broken

    def __call__(self, verb, overrides, log):
        name = overrides[0]
        self.ran.append(name)
        fails = name in self.broken
        log.write_text("text\nerror: it is broken\nmore text\n" if fails else "fine\n")
        (log.parent / "metrics.json").write_text('{"fid": 1.5}')
        return 2 if fails else 0

    def stop(self):
        pass


def run(jobs, executor, max_workers=1, dry=False):
    run_jobs(jobs, executor, jobs[0].folder.parent, max_workers=max_workers, dry=dry)


def make_job(root, name, needs=()):
    return Job(name, "train", (name,), root / name, f"config of {name}", 1.0, tuple(needs))


def make_jobs(root, needs=()):
    """Return jobs a, b, c, d; `needs` are pairs (job, the job it needs)."""
    jobs = {}
    for name in "abcd":
        jobs[name] = make_job(root, name, [jobs[other] for one, other in needs if one == name])
    return list(jobs.values())


def test_failed_jobs_are_retried_and_finished_ones_are_not(tmp_path, caplog):
    caplog.set_level("INFO")
    for verb in ("train", "evaluate", "sample"):
        root = tmp_path / verb
        jobs = [replace(job, verb=verb) for job in make_jobs(root)]
        first = FakeExecutor(broken=("b",))
        with pytest.raises(JobsFailedError, match="1 of 4"):
            run(jobs, first)
        assert first.ran == [*"abcd"]
        assert "error: it is broken" in caplog.text
        (root / "b" / "checkpoint").write_text("of the failed attempt")
        (root / "b" / "environment.json").write_text("of the failed attempt")
        second = FakeExecutor()
        run(jobs, second)
        assert second.ran == ["b"]
        assert not (root / "b" / "environment.json").exists()
        assert (root / "b" / "checkpoint").exists() == (verb != "sample"), "the others resume"


def test_changed_configuration_runs_again(tmp_path):
    jobs = make_jobs(tmp_path)
    run(jobs, FakeExecutor(), max_workers=2)
    jobs[2] = replace(jobs[2], config_hash="another config")
    executor = FakeExecutor()
    run(jobs, executor, max_workers=2)
    assert executor.ran == ["c"]


def test_jobs_wait_for_their_needs_and_fail_with_them(tmp_path):
    needs = [("b", "a"), ("c", "b")]
    executor = FakeExecutor()
    run(make_jobs(tmp_path / "1", needs), executor, max_workers=4)
    assert executor.ran.index("a") < executor.ran.index("b") < executor.ran.index("c")
    executor = FakeExecutor(broken=("b",))
    with pytest.raises(JobsFailedError, match="2 of 4"):
        run(make_jobs(tmp_path / "2", needs), executor, max_workers=4)
    assert sorted(executor.ran) == ["a", "b", "d"]
    assert "needs b" in json.loads((tmp_path / "2" / "c" / "job.json").read_text())["error"]


def test_dry_run_estimates_time_from_finished_jobs(tmp_path, caplog):
    caplog.set_level("INFO")
    executor, jobs = FakeExecutor(), make_jobs(tmp_path)
    run(jobs, executor, dry=True)
    assert executor.ran == [] and "4 left, time unknown yet" in caplog.text
    run(jobs[:3], executor)
    assert "(2 left, time unknown yet)" not in caplog.text, "one job is enough"
    for name in "abc":
        state = json.loads((tmp_path / name / "job.json").read_text()) | {"seconds": 100.0}
        (tmp_path / name / "job.json").write_text(json.dumps(state))
    caplog.clear()
    run(jobs, executor, max_workers=2, dry=True)
    assert "1 left, about 0:00:50" in caplog.text  # one job of 100 s


def test_time_estimate_is_a_start_and_a_time_per_image(tmp_path):
    def seconds(history, cost, verb="evaluate"):
        overrides = ("model=exact",) if verb == "exact" else ()
        return _estimate_seconds(history, Job("x", verb, overrides, tmp_path, "x", cost))

    history = {"evaluate.py": [(100.0, 16.0), (300.0, 36.0)], "train.py": [], "exact": []}
    assert seconds(history, 1.0, "exact") is None
    assert seconds(history, 1000.0) == pytest.approx(106.0)
    assert seconds(history, 1000.0, "train") == pytest.approx(106.0), "from the other kind"
    history["train.py"].append((1000.0, 206.0))
    assert seconds(history, 500.0, "train") == pytest.approx(106.0)
    history["exact"] += [(10.0, 2.0), (1000.0, 4.0)]
    assert seconds(history, 50.0, "exact") == pytest.approx(3.0), "the mean"
    assert seconds({"train.py": [(10.0, 3.0)]}, 100.0, "train") == pytest.approx(3.0)


def test_cost_counts_the_images_of_each_metric():
    config = {"schedule": {"steps": 1000}, "sampler": {"steps": 50}, "count": 1000}
    costs = {
        ("fid",): 50_000,
        ("nll",): 360_000,
        ("fid", "prc", "nll"): 410_000,
        ("reconstruction",): 36_000,
    }
    for metrics, cost in costs.items():
        assert estimate_cost("evaluate", OmegaConf.create({**config, "metrics": metrics})) == cost
    training = {"data": {"batch_size": 64}, "trainer": {"max_steps": 100}}
    config = {**training, **config, "callbacks": {"fid": {"count": 500}}}
    assert estimate_cost("train", OmegaConf.create(config)) == 3 * 6400 + 25_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "times", "line"),
    [
        (signal.SIGINT, 1, "25 jobs"),  # the processes of the first jobs are importing
        (signal.SIGINT, 1, "[1/25]"),
        pytest.param(signal.SIGINT, 2, "[1/25]", marks=pytest.mark.nightly),
        (signal.SIGTERM, 1, "[1/25]"),
    ],
)
def test_interrupted_ablation_keeps_finished_jobs(tmp_path, number, times, line):
    command = [sys.executable, str(ROOT / "train.py"), "ablation=ddim_table1", "tier=analytic"]
    command += ["jobs=2", f"jobs_dir={tmp_path}/jobs"]

    def restore_sigint():  # a shell that runs the tests in the background ignores SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        preexec_fn=restore_sigint,
    ) as process:
        assert next(text for text in process.stdout if text.startswith(line))
        if line == "25 jobs":
            time.sleep(1)
        for _ in range(times):  # a terminal signals the whole group
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            time.sleep(0.2)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert err == f"stopped by {number.name}; finished parts are saved\n"
    states = [json.loads(file.read_text()) for file in tmp_path.glob("jobs/*/job.json")]
    assert not any(state["status"] for state in states)
    assert states or line == "25 jobs"


def test_second_sweep_in_a_folder_is_rejected(tmp_path):
    class SweepInside(FakeExecutor):
        def __call__(self, verb, overrides, log):
            other = os.fork()  # within one process both would hold the lock
            if not other:
                try:
                    run([make_job(tmp_path, "e")], FakeExecutor())
                except UserError as error:
                    os._exit(17 if "another process is running a sweep in it" in str(error) else 1)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 17
            return super().__call__(verb, overrides, log)

    run([make_job(tmp_path, "a")], SweepInside())


def test_slugs_are_readable_and_distinct():
    assert slug(["schedule=linear", "a.b='x y'"]).startswith("schedule-linear_a.b-x-y-")
    assert slug(["../../x"]).count("/") == 0
    assert slug(["a=1"]) != slug(["a=2"])
    assert slug(["x" * 500 + "1"]) != slug(["x" * 500 + "2"]) and len(slug(["x" * 500])) < 100


@pytest.mark.slow
def test_sweep_isolates_failures_and_resumes(typed, tmp_path):
    grid = ("schedule=linear,cosine", "seed=0,1", f"hydra.sweep.dir={tmp_path}", "jobs=2")
    # The type is valid, so that only the run itself can fail.
    status, out, err = typed("train", "-m", *grid, *QUICK, "optimizer.lr=1e-3,-1")
    assert status == 1 and "4 of 8 jobs failed" in err
    assert out.count("failed:") == 4 and out.count("done:") == 4 and "lr" in out
    assert len([*tmp_path.glob("*/metrics.json")]) == 4
    status, out, err = typed("train", "-m", *grid, *QUICK, "optimizer.lr=1e-3", "dry=true")
    assert status == 0 and out.count(" done ") == 4 and "nothing left to do" in out


@pytest.mark.slow
def test_sweep_is_a_wandb_group_with_a_report_table(typed, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    overrides = [word for word in QUICK if word != "logger=csv"]
    status, out, err = typed(
        "train", "-m", "seed=0,1", *overrides, "logger=wandb", "hydra.sweep.dir=a sweep", "jobs=2"
    )
    assert status == 0, out + err
    runs = [*tmp_path.glob("a sweep/*/wandb/offline-run-*/*.wandb")]
    assert len(runs) == 2 and all(b"a sweep" in run.read_bytes() for run in runs)
    status, out, err = typed("report", "dir=a sweep", "wandb=true")
    assert status == 0, err
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    content = json.loads(table.read_text())
    metrics = [json.loads(file.read_text()) for file in tmp_path.glob("a sweep/*/metrics.json")]
    fids = [row[content["columns"].index("FID")] for row in content["data"]]
    assert sorted(fids) == sorted(each["fid"] for each in metrics)


def test_killed_job_is_neither_done_nor_failed(tmp_path):
    class Stopped(FakeExecutor):
        def __call__(self, verb, overrides, log):
            super().__call__(verb, overrides, log)
            self.stopped = True
            return -9

    with pytest.raises(JobsFailedError):
        run([make_job(tmp_path, "a")], Stopped())
    assert not (tmp_path / "a" / "job.json").exists()


def test_status_0_without_metrics_is_a_failure(tmp_path):
    """Lightning exits with status 0 when a signal ends a run."""

    class Terminated(FakeExecutor):
        def __call__(self, verb, overrides, log):
            return 0

    with pytest.raises(JobsFailedError):
        run([make_job(tmp_path, "a")], Terminated())


def test_truncated_files_count_as_missing(tmp_path):
    jobs = make_jobs(tmp_path)
    run(jobs, FakeExecutor())
    (tmp_path / "b" / "job.json").write_text('{"status": 0, "con')
    (tmp_path / "sweep.json").write_text("[")
    executor = FakeExecutor()
    run(jobs, executor)
    assert executor.ran == ["b"]


def test_unusable_folder_fails_one_job_only(tmp_path):
    (tmp_path / "b").write_text("a file")
    executor = FakeExecutor()
    with pytest.raises(JobsFailedError, match="1 of 4"):
        run(make_jobs(tmp_path), executor)
    assert executor.ran == ["a", "c", "d"]


def test_config_hash_depends_on_content_but_not_on_folders(tmp_path):
    def digest(root, **content):
        trainer = {"default_root_dir": "x", "max_steps": 3}
        config = {"logger": {"csv": 1}, "trainer": trainer} | content
        return config_hash(OmegaConf.create(config), root)

    here, there = tmp_path / "here", tmp_path / "there"
    assert digest(here, run=f"{here}/train-1") == digest(there, run=f"{there}/train-1")
    assert digest(here, run=f"{here}/train-1") != digest(here, run=f"{here}/train-2")
    other_folder = {"default_root_dir": "y", "max_steps": 3}
    assert digest(here, trainer=other_folder, logger={}) == digest(here)
    assert digest(here, trainer={"default_root_dir": "x", "max_steps": 4}) != digest(here)
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.yaml").write_text("seed: 0")
    seed_0 = digest(here, run=str(other))
    (other / "config.yaml").write_text("seed: 1")  # trained again with another configuration
    assert digest(here, run=str(other)) != seed_0


@pytest.mark.nightly
def test_killed_sweep_resumes_to_the_same_report(tmp_path):
    overrides = ["-m", "schedule=linear,cosine", "seed=0,1", *QUICK]
    overrides += ["callbacks.losses.every=1", "callbacks.sample_grid.every=2"]
    train = [str(ROOT / "train.py"), *overrides, "hydra.sweep.dir=sweep"]
    report = [str(ROOT / "report.py"), "dir=sweep", "out=report"]
    environment = {**os.environ, "WANDB_MODE": "offline"}

    def start(arguments, folder):
        command, stdout = [sys.executable, *arguments], subprocess.DEVNULL
        return subprocess.Popen(command, env=environment, stdout=stdout, cwd=folder)

    for name in ("complete", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "killed":
            process = start(train, folder)
            while not [*folder.glob("sweep/*/job.json")]:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert len([*folder.glob("sweep/*/job.json")]) < 4
        assert start(train, folder).wait() == 0
        assert start(report, folder).wait() == 0
    files = sorted(file.name for file in (tmp_path / "complete" / "report").iterdir())
    assert "report.html" in files and len(files) >= 5
    for name in files:
        contents = {
            (tmp_path / run / "report" / name).read_bytes() for run in ("complete", "killed")
        }
        assert len(contents) == 1, name


@pytest.mark.slow
def test_slurm_launcher_with_submitits_local_executor(typed, tmp_path):
    pytest.importorskip("submitit", reason="an extra, for hydra/launcher=slurm")
    overrides = (
        "-m",
        "optimizer.lr=1e-3,-1",
        *QUICK,
        f"hydra.sweep.dir={tmp_path}",
        "hydra/launcher=slurm",
        "hydra.launcher.cluster=local",
        "jobs=2",
    )
    status, out, err = typed("train", *overrides)
    assert status == 1 and "optimizer.lr must be above 0 (got -1)" in out, out + err
    assert "1 of 2 jobs failed" in err and len([*tmp_path.glob("*/metrics.json")]) == 1
    assert len([*(tmp_path / "submitit").glob("*_submitted.pkl")]) == 2


@pytest.mark.slow
def test_search_selects_the_best_trial_and_is_reproducible(typed, tmp_path):
    pytest.importorskip("optuna", reason="an extra, for search=optuna")
    quick = [word for word in QUICK if not word.startswith("model.channels")]
    overrides = (
        "search=optuna",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        "model.channels=choice(8,16)",
        *quick,
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweeper.trials=3",
        "hydra.sweeper.metric=training.val_loss",
        "jobs=2",  # each with one thread
    )
    status, out, err = typed("train", *overrides)
    assert status == 0, err
    files = sorted(tmp_path.glob("*/metrics.json"))
    losses = [json.loads(file.read_text())["training"]["val_loss"] for file in files]
    assert len(files) == 3 and f"training.val_loss={min(losses):.4g}" in out
    status, out, err = typed("train", *overrides)
    assert status == 0 and out.count("nothing left to do") == 2
    assert sorted(tmp_path.glob("*/metrics.json")) == files


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["-m", "schedule=linear,cosin"], "schedule=cosin is not a choice (did you mean cosine?)"),
        (["-m", "seed=0,1", "jobs=0"], "jobs=0 must be a whole number of at least 1"),
        (["-m", "seed=0,1", "dry=maybe"], "dry=maybe is not one of true, false"),
        (["-m", "seed=0,1", "jobs=-1"], "jobs=-1 must be a whole number of at least 1"),
        (["-m", "seed=0,1", "jobs=1.5"], "jobs=1.5 must be a whole number of at least 1"),
        (
            ["-m", "seed=0,1", "hydra.launcher.limit=0"],
            "hydra.launcher.limit=0 must be a whole number",
        ),
        (["-m", "seed=0,1", "hydra.sweeper.foo=3"], "hydra.sweeper has no key foo"),
        (
            ["ablation=ddim_table1", "tier=analytic", "jobs=0"],
            "jobs=0 must be a whole number of at least 1",
        ),
        (
            ["search=optuna", "seed=choice(0,1)", "hydra.sweeper.foo=3"],
            "hydra.sweeper has no key foo",
        ),
        (["jobs=2"], "jobs=2 needs several runs"),
        (["-m", "ablation=ddim_table1"], "remove -m"),
        (["-m", "seed=0,1", "trainer.max_stepz=1"], "has no key max_stepz"),
        (["search=optuna", "seed=choice(0,1)", "jobs=abc"], "jobs=abc must be a whole number"),
        (["search=optuna", "optimizer.lr=interval(1e-2,1e-3)"], "cannot be searched"),
        (["search=optuna", "optimizer.lr=tag(log,interval(0,1))"], "cannot be searched"),
        (
            ["search=optuna", "seed=choice(0,1)", "hydra/launcher=basic"],
            "search=optuna needs hydra/",
        ),
        (["ablation=ddim_table1", "tier=null"], "tier=null is not one of"),
        (["ablation=[]"], "ablation=[] selects nothing"),
        (["ablation=ddim_table1", "tier=analytic", "trainer.max_steps=1"], "applies to training"),
        (
            ["ablation=ddpm_table2", "evaluate.count=5"],
            "applies to evaluations, but this ablation has none",
        ),
        (["ablation=ddpm_table2", "seed=3"], "seed= cannot be set, because ddpm_table2 sets it"),
        (["search=optuna"], "has nothing to search for"),
        (
            ["search=optuna", "seed=choice(0,1)", "hydra.sweeper.trials=0"],
            "hydra.sweeper.trials=0 must be",
        ),
        (
            ["search=optuna", "seed=choice(0,1)", "hydra.sweeper.direction=up"],
            "is not one of minimize, maximize",
        ),
        (["ablation=ddim_tabel1"], "is not a choice (did you mean ddim_table1?)"),
        (["ablation=ddim_table1", "tier=tny"], "tier=tny is not one of analytic, tiny, paper"),
        (["ablation=ddim_table1", "trainer.max_stepz=1"], "has no key max_stepz"),
        (
            ["ablation=ddim_table1", "evaluate.count=5", "evaluate.nll.stepz=1"],
            "nll has no key stepz",
        ),
    ],
)
def test_errors_precede_all_runs(typed, tmp_path, overrides, message):
    key = "jobs_dir" if overrides[0].startswith("ablation") else "hydra.sweep.dir"
    status, _, err = typed("train", *overrides, f"{key}={tmp_path}/x")
    assert status == 2 and message in err and err.count("\n") <= 2, err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "overrides",
    [
        ("ablation=ddim_table1", "tier=analytic", "jobs_dir={}"),
        ("-m", "hydra.sweep.dir={}"),
        ("hydra.run.dir={}",),
    ],
)
def test_output_folder_that_is_a_file_is_rejected(typed, tmp_path, overrides):
    file = tmp_path / "file"
    file.write_text("")
    status, _, err = typed("train", *(each.format(file) for each in overrides))
    assert (status, err) == (3, f"error: {file} cannot be created as a directory (File exists)\n")


@pytest.mark.slow
def test_exit_statuses_of_simultaneous_processes(tmp_path):
    executor = ProcessExecutor(4, main.run_job)
    overrides = [["--help"] if i % 3 else ["schedule=none"] for i in range(24)]
    logs = [tmp_path / f"{i}.txt" for i in range(24)]
    with ThreadPoolExecutor(4) as threads:
        statuses = [*threads.map(executor, ["train"] * 24, overrides, logs)]
    assert statuses == [0 if i % 3 else 2 for i in range(24)]
