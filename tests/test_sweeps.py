"""Cells, pools, sweeps and searches: what is done once is done, what fails fails alone."""

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
from ddpm_lab.sweeps.job import Job
from ddpm_lab.sweeps.scheduler import _seconds, run_jobs
from ddpm_lab.utils.errors import JobsFailedError, UserError

QUICK = (
    *FAST,
    "callbacks.sample_grid.every=100",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
)


class Notebook(Executor):
    """Runs nothing, and remembers what it was asked to run; `broken` fail."""

    def __init__(self, broken=()):
        self.ran, self.broken = [], broken

    def __call__(self, verb, overrides, log):
        name = overrides[0]
        self.ran.append(name)
        log.write_text(
            "some words\nerror: it is broken\nmore words\n" if name in self.broken else "fine\n"
        )
        (log.parent / "metrics.json").write_text('{"fid": 1.5}')
        return 2 if name in self.broken else 0

    def stop(self):
        pass


def cells(root, needs=()):
    made = {}
    for name in "abcd":
        made[name] = Job(
            name,
            "train",
            (name,),
            root / name,
            f"config of {name}",
            1.0,
            tuple(made[other] for one, other in needs if one == name),
        )
    return list(made.values())


def test_what_is_done_is_not_done_again_and_what_failed_is_tried_again(tmp_path, caplog):
    caplog.set_level("INFO")
    for verb in ("train", "evaluate", "sample"):
        root = tmp_path / verb
        todo = [replace(cell, verb=verb) for cell in cells(root)]
        first = Notebook(broken=("b",))
        with pytest.raises(JobsFailedError, match="1 of 4"):
            run_jobs(todo, first, root, jobs=1, dry=False)
        assert first.ran == [*"abcd"]
        assert "error: it is broken" in caplog.text
        (root / "b" / "left over").write_text("from the attempt that failed")
        second = Notebook()
        run_jobs(todo, second, root, jobs=1, dry=False)
        assert second.ran == ["b"]
        assert (root / "b" / "left over").exists() == (verb != "sample"), "the others go on with it"


def test_a_cell_whose_configuration_changed_is_done_again(tmp_path):
    run_jobs(cells(tmp_path), Notebook(), tmp_path, jobs=2, dry=False)
    changed = cells(tmp_path)
    changed[2] = Job("c", "train", ("c",), tmp_path / "c", "another config", 1.0)
    again = Notebook()
    run_jobs(changed, again, tmp_path, jobs=2, dry=False)
    assert again.ran == ["c"]


def test_cells_wait_for_what_they_need_and_fall_with_it(tmp_path):
    needs = [("b", "a"), ("c", "b")]
    pool = Notebook()
    run_jobs(cells(tmp_path / "1", needs), pool, tmp_path / "1", jobs=4, dry=False)
    assert pool.ran.index("a") < pool.ran.index("b") < pool.ran.index("c")
    pool = Notebook(broken=("b",))
    with pytest.raises(JobsFailedError, match="2 of 4"):
        run_jobs(cells(tmp_path / "2", needs), pool, tmp_path / "2", jobs=4, dry=False)
    assert sorted(pool.ran) == ["a", "b", "d"]
    assert "needs b" in json.loads((tmp_path / "2" / "c" / "job.json").read_text())["why"]


def test_a_plan_runs_nothing_and_estimates_from_what_ran(tmp_path, caplog):
    caplog.set_level("INFO")
    pool = Notebook()
    run_jobs(cells(tmp_path), pool, tmp_path, jobs=1, dry=True)
    assert pool.ran == [] and "4 left, time unknown yet" in caplog.text
    run_jobs(cells(tmp_path)[:3], pool, tmp_path, jobs=1, dry=False)
    assert caplog.text.count("2 left, time unknown yet") == 1, "of one cell nothing follows"
    for name in "abc":
        state = json.loads((tmp_path / name / "job.json").read_text()) | {"seconds": 100.0}
        (tmp_path / name / "job.json").write_text(json.dumps(state))
    caplog.clear()
    run_jobs(cells(tmp_path), pool, tmp_path, jobs=2, dry=True)
    assert "1 left, about 0:00:50" in caplog.text  # one cell of 100 s


def test_the_time_of_a_cell_follows_its_work_once_there_are_enough(tmp_path):
    def seconds(done, work, command="evaluate"):
        return _seconds(
            done,
            Job("x", command, ("model=exact",) if command == "exact" else (), tmp_path, "x", work),
        )

    starts = [(10.0, 21.0), (20.0, 22.0), (100.0, 30.0)]  # 20 s to start, and 0.1 s for each
    assert seconds(starts[:2], 10.0) is None and seconds(starts, 1000.0) is None
    assert seconds(starts, 50.0) == pytest.approx(25.0)
    assert seconds(starts, 1000.0, "exact") == pytest.approx(73 / 3)
    assert seconds([(10.0, 5.0), (20.0, 4.0), (30.0, 3.0)], 20.0) == pytest.approx(4.0), (
        "never less for more"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)]
)
def test_an_ablation_that_is_stopped_ends_with_a_line_and_keeps_what_is_finished(
    tmp_path, number, times
):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "ablation=ddim_table1",
        "tier=analytic",
        "jobs=2",
        f"jobs_dir={tmp_path}/cells",
    ]

    def heeding():  # a shell that runs the tests in the background has SIGINT ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        preexec_fn=heeding,
    ) as process:
        assert next(line for line in process.stdout if line.startswith("[1/25]"))
        for _ in range(times):  # a terminal signals the whole group
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            time.sleep(0.2)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert err == f"stopped by {number.name}; what is finished is kept\n"
    done = [json.loads(file.read_text())["status"] for file in tmp_path.glob("cells/*/job.json")]
    assert done and not any(done)


def test_two_sweeps_do_not_fill_one_folder(tmp_path):
    class Greedy(Notebook):
        def __call__(self, verb, overrides, log):
            other = os.fork()  # of one process both would hold the same lock
            if not other:
                try:
                    run_jobs(
                        [Job("e", "train", ("e",), tmp_path / "e", "e", 1.0)],
                        Notebook(),
                        tmp_path,
                        jobs=1,
                        dry=False,
                    )
                except UserError as error:
                    os._exit(17 if "another process is running a sweep in it" in str(error) else 1)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 17
            return super().__call__(verb, overrides, log)

    run_jobs(cells(tmp_path)[:1], Greedy(), tmp_path, jobs=1, dry=False)


def test_names_of_folders_can_be_read_and_differ():
    assert slug(["schedule=linear", "a.b='x y'"]).startswith("schedule-linear_a.b-x-y-")
    assert slug(["../../x"]).count("/") == 0
    assert slug(["a=1"]) != slug(["a=2"])
    assert slug(["x" * 500 + "1"]) != slug(["x" * 500 + "2"]) and len(slug(["x" * 500])) < 100


@pytest.mark.slow
def test_a_sweep_isolates_a_failing_cell_and_goes_on_where_it_stopped(typed, tmp_path):
    overrides = (
        "-m",
        "schedule=linear,cosine",
        "seed=0,1",
        *QUICK,
        f"hydra.sweep.dir={tmp_path}",
        "jobs=2",
    )
    # The type is right, so that only the run itself can find out.
    status, out, err = typed("train", *overrides, "optimizer.lr=1e-3,-1")
    assert status == 1 and "4 of 8 cells failed" in err
    assert out.count("failed:") == 4 and out.count("done:") == 4 and "lr" in out
    assert len([*tmp_path.glob("*/metrics.json")]) == 4
    status, out, err = typed("train", *overrides, "optimizer.lr=1e-3", "dry=true")
    assert status == 0 and out.count(" done ") == 4 and "nothing is left to do" in out


@pytest.mark.slow
def test_a_sweep_is_a_group_of_wandb_and_its_report_a_table(typed, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    overrides = [word for word in QUICK if word != "logger=csv"]
    status, out, err = typed(
        "train", "-m", "seed=0,1", *overrides, "logger=wandb", "hydra.sweep.dir=a sweep"
    )
    assert status == 0, out + err
    for cell in tmp_path.glob("a sweep/*/wandb/offline-run-*/*.wandb"):
        assert b"a sweep" in cell.read_bytes()
    assert len([*tmp_path.glob("a sweep/*/wandb/offline-run-*/*.wandb")]) == 2
    status, out, err = typed("report", "dir=a sweep", "wandb=true")
    assert status == 0, err
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    found = json.loads(table.read_text())
    fids = sorted(
        json.loads(file.read_text())["fid"] for file in tmp_path.glob("a sweep/*/metrics.json")
    )
    assert sorted(row[found["columns"].index("FID")] for row in found["data"]) == fids


class Deaf(Notebook):
    """Is stopped while it runs."""

    def __call__(self, verb, overrides, log):
        super().__call__(verb, overrides, log)
        self.stopped = True
        return -9


def test_a_cell_that_was_stopped_is_neither_done_nor_failed(tmp_path):
    with pytest.raises(JobsFailedError):
        run_jobs(cells(tmp_path)[:1], Deaf(), tmp_path, jobs=1, dry=False)
    assert not (tmp_path / "a" / "job.json").exists()


def test_a_run_that_was_told_to_end_is_not_done(tmp_path):
    """Lightning ends it with no metrics and, by itself, status 0."""

    class Polite(Notebook):
        def __call__(self, verb, overrides, log):
            return 0

    with pytest.raises(JobsFailedError):
        run_jobs(cells(tmp_path)[:1], Polite(), tmp_path, jobs=1, dry=False)


def test_files_that_were_cut_short_are_as_good_as_none(tmp_path):
    run_jobs(cells(tmp_path), Notebook(), tmp_path, jobs=1, dry=False)
    (tmp_path / "b" / "job.json").write_text('{"status": 0, "con')
    (tmp_path / "sweep.json").write_text("[")
    again = Notebook()
    run_jobs(cells(tmp_path), again, tmp_path, jobs=1, dry=False)
    assert again.ran == ["b"]


def test_a_folder_that_cannot_be_filled_costs_no_other_cell(tmp_path):
    (tmp_path / "b").write_text("a file")
    pool = Notebook()
    with pytest.raises(JobsFailedError, match="1 of 4"):
        run_jobs(cells(tmp_path), pool, tmp_path, jobs=1, dry=False)
    assert pool.ran == ["a", "c", "d"]


def test_what_a_cell_computes_tells_it_from_others_and_where_it_lies_does_not(tmp_path):
    def digits(root, **content):
        return config_hash(
            OmegaConf.create(
                {"logger": {"csv": 1}, "trainer": {"default_root_dir": "x", "max_steps": 3}}
                | content
            ),
            root,
        )

    here, there = tmp_path / "here", tmp_path / "there"
    assert digits(here, run=f"{here}/train-1") == digits(there, run=f"{there}/train-1")
    assert digits(here, run=f"{here}/train-1") != digits(here, run=f"{here}/train-2")
    assert digits(here, trainer={"default_root_dir": "y", "max_steps": 3}, logger={}) == digits(
        here
    )
    assert digits(here, trainer={"default_root_dir": "x", "max_steps": 4}) != digits(here)
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.yaml").write_text("seed: 0")
    before = digits(here, run=str(other))
    (other / "config.yaml").write_text("seed: 1")  # trained again, otherwise
    assert digits(here, run=str(other)) != before


@pytest.mark.nightly
def test_a_killed_sweep_ends_in_the_report_of_one_that_was_not(tmp_path):
    overrides = [
        "-m",
        "schedule=linear,cosine",
        "seed=0,1",
        *QUICK,
        "callbacks.losses.every=1",
        "callbacks.sample_grid.every=2",
    ]
    environment = {**os.environ, "WANDB_MODE": "offline"}

    def run(*arguments, **options):
        return subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, **options
        )

    where = {}
    for name in ("calm", "killed"):
        where[name] = tmp_path / name / "sweep"
        command = [str(ROOT / "train.py"), *overrides, "hydra.sweep.dir=sweep"]
        (tmp_path / name).mkdir()
        if name == "killed":
            first = run(*command, cwd=tmp_path / name)
            while not [*where[name].glob("*/job.json")]:
                assert first.poll() is None
                time.sleep(0.05)
            first.send_signal(signal.SIGKILL)
            first.wait()
            assert len([*where[name].glob("*/job.json")]) < 4
        assert run(*command, cwd=tmp_path / name).wait() == 0
        assert (
            run(str(ROOT / "report.py"), "dir=sweep", "out=report", cwd=tmp_path / name).wait() == 0
        )
    files = sorted(file.name for file in (tmp_path / "calm" / "report").iterdir())
    assert "report.html" in files and len(files) >= 5
    for name in files:
        assert (tmp_path / "calm/report" / name).read_bytes() == (
            tmp_path / "killed/report" / name
        ).read_bytes(), name


@pytest.mark.slow
def test_a_slurm_sweep_runs_under_submitits_local_executor(typed, tmp_path):
    pytest.importorskip("submitit", reason="is the extra of hydra/launcher=slurm")
    overrides = (
        "-m",
        "seed=0,1",
        *QUICK,
        f"hydra.sweep.dir={tmp_path}",
        "hydra/launcher=slurm",
        "hydra.launcher.cluster=local",
        "jobs=2",
    )
    status, out, err = typed("train", *overrides)
    assert status == 0, out + err
    assert len([*tmp_path.glob("*/metrics.json")]) == 2 and [*(tmp_path / "submitit").glob("*.pkl")]
    status, out, err = typed("train", *overrides, "optimizer.lr=-1")
    assert status == 1 and "optimizer.lr must be a number above 0 (got -1)" in out


@pytest.mark.slow
def test_a_search_finds_its_way_and_is_the_same_again(typed, tmp_path):
    pytest.importorskip("optuna", reason="is the extra of search=optuna")
    quick = [word for word in QUICK if not word.startswith("model.channels")]
    overrides = (
        "search=optuna",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        "model.channels=choice(8,16)",
        *quick,
        f"hydra.sweep.dir={tmp_path}",
        "hydra.sweeper.trials=3",
        "hydra.sweeper.metric=training.val_loss",
    )
    status, out, err = typed("train", *overrides)
    assert status == 0, err
    folders = sorted(file.parent.name for file in tmp_path.glob("*/metrics.json"))
    losses = [
        json.loads(file.read_text())["training"]["val_loss"]
        for file in tmp_path.glob("*/metrics.json")
    ]
    assert len(folders) == 3 and f"training.val_loss={min(losses):.4g}" in out
    status, out, err = typed("train", *overrides)
    assert status == 0 and out.count("nothing is left to do") == 3
    assert sorted(file.parent.name for file in tmp_path.glob("*/metrics.json")) == folders


@pytest.mark.parametrize(
    ("overrides", "told"),
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
        (["jobs=2"], "jobs=2 is for many runs"),
        (["-m", "ablation=ddim_table1"], "leave out -m"),
        (["-m", "seed=0,1", "trainer.max_stepz=1"], "has no key max_stepz"),
        (["search=optuna", "seed=choice(0,1)", "jobs=abc"], "jobs=abc must be a whole number"),
        (["search=optuna", "optimizer.lr=interval(1e-2,1e-3)"], "cannot be searched"),
        (["search=optuna", "optimizer.lr=tag(log,interval(0,1))"], "cannot be searched"),
        (["search=optuna", "seed=choice(0,1)", "hydra/launcher=basic"], "search=optuna runs cells"),
        (["ablation=ddim_table1", "tier=null"], "tier=null is not one of"),
        (["ablation=[]"], "ablation=[] names nothing"),
        (["ablation=ddim_table1", "tier=analytic", "trainer.max_steps=1"], "is for training"),
        (["ablation=ddpm_table2", "evaluate.count=5"], "is for evaluations, and this has none"),
        (["ablation=ddpm_table2", "seed=3"], "seed= is said by ddpm_table2 itself"),
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
def test_mistakes_are_told_before_anything_runs(typed, tmp_path, overrides, told):
    where = (
        [f"hydra.sweep.dir={tmp_path}/sweep"]
        if not overrides[0].startswith("ablation")
        else [f"jobs_dir={tmp_path}/x"]
    )
    status, _, err = typed("train", *overrides, *where)
    assert status == 2 and told in err and err.count("\n") <= 2, err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "overrides",
    [
        ("ablation=ddim_table1", "tier=analytic", "jobs_dir={}"),
        ("-m", "hydra.sweep.dir={}"),
        ("hydra.run.dir={}",),
    ],
)
def test_a_place_that_is_a_file_is_refused(typed, tmp_path, overrides):
    (tmp_path / "taken").write_text("")
    status, _, err = typed("train", *(word.format(tmp_path / "taken") for word in overrides))
    assert (status, err) == (
        3,
        f"error: {tmp_path / 'taken'} cannot be made a folder (File exists)\n",
    )


@pytest.mark.slow
def test_the_exit_status_of_a_process_is_its_own_however_many_end_at_once(tmp_path):
    pool = ProcessExecutor(4, main.run_job)
    overrides = {i: ["--help"] if i % 3 else ["schedule=none"] for i in range(24)}
    with ThreadPoolExecutor(4) as threads:
        found = [
            *threads.map(lambda i: pool("train", overrides[i], tmp_path / f"{i}.txt"), overrides)
        ]
    assert found == [0 if i % 3 else 2 for i in overrides]
