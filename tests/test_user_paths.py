"""Sequences of commands for every kind of data and of system, on tiny runs that are trained once.

`.venv/bin/python tests/test_user_paths.py` writes docs/user-paths.md, the table of these tests.
"""

import io
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import sets
import torch
from conftest import ROOT
from PIL import Image

from ddpm_lab.cli import main
from ddpm_lab.cli.next_commands import complete_command
from ddpm_lab.runs import run_config
from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.utils.safe_load import list_checkpoints

TABLE = ROOT / "docs" / "user-paths.md"
TINY = [
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "logger=csv",
    "model.channels=8",
    "data.batch_size=8",
    "callbacks.checkpoints.every=2",
    "callbacks.losses.every=3",
]
SAMPLES = [
    "sampler.steps=2",
    "callbacks.sample_grid.every=4",
    "callbacks.sample_grid.rows=1",
    "callbacks.sample_grid.columns=2",
    "callbacks.fid.count=20",
]
UNET = [*TINY, *SAMPLES, "model=unet_small", "model.multipliers=[1]"]
OWN = [*UNET, "extractor=none"]
DATA = {
    "digits": UNET,
    "flat folder": ["data=folder", "data.path=../images/flat", *OWN],
    "class folders": ["data=folder", "data.path=../images/classes", "conditioner=label", *OWN],
    "train/ and val/": ["data=folder", "data.path=../images/splits", *OWN],
    "grey folder": ["data=folder", "data.path=../images/grey", *OWN],
    "prepared store": ["data=store", "data.path=../images/store", "conditioner=label", *OWN],
    "array": ["data=array", "data.path=../images/array.npz", "conditioner=label", *OWN],
    "hub, labels": [
        "data=hub",
        "data.name=../images/hub",
        "data.cache=../cache",
        "conditioner=label",
        *OWN,
    ],
    "hub, no labels": ["data=hub", "data.name=../images/plain", "data.cache=../cache", *OWN],
    "points": [
        "data=gaussian_mixture",
        "data.count=200",
        *TINY,
        "schedule.steps=20",
        "sampler.steps=2",
        "callbacks.scatter_plot.count=20",
        "callbacks.ode_nll.count=4",
    ],
}
"""Overrides of train.py by kind of data"""
SYSTEMS = {
    "autoencoder": ["system=autoencoder", *TINY],
    "classifier": ["system=classifier", *TINY],
    "latents": ["codec=autoencoder", "codec.run=../autoencoder", *UNET],
    "super-resolution": ["conditioner=low_res", *UNET],
    "text": ["conditioner=text", "conditioner.width=8", *UNET],
}
"""Overrides of train.py by kind of system, on digits"""
SHORT = {
    "train": [
        "trainer.max_steps=2",
        "logger=csv",
        "model.channels=8",
        "data.batch_size=8",
        "callbacks.losses.every=2",
    ],
    "sample": ["count=2", "sampler.steps=2"],
    "evaluate": ["count=20", "sampler.steps=2", "nll.steps=2", "nll.count=2", "ode_nll.count=4"],
}
"""Overrides that make a printed command short, by verb"""


@dataclass(frozen=True)
class Trained:
    """A run, with the folder where its command was typed and its output."""

    kind: str
    overrides: list[str]
    work: Path
    run: Path
    output: str

    def metrics(self):
        """Return the overrides of evaluate.py for metrics that this kind has."""
        return ["metrics=[nll]"] if "extractor=none" in self.overrides else []


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Folder with images of each kind in `images/`."""
    root = tmp_path_factory.mktemp("paths")
    colours, greys = sets.noise(24, 8, 8), sets.noise(24, 8, 8, channels=1)
    for i, (colour, grey) in enumerate(zip(colours, greys, strict=True)):
        for folder, pixels in {
            "flat": colour,
            f"classes/{'cats' if i % 2 else 'dogs'}": colour,
            "grey": grey,
            f"splits/{'val' if i % 4 == 0 else 'train'}": colour,
        }.items():
            (root / "images" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "images" / folder / f"{i}.png")
    names, labels = np.array(["cats", "dogs"]), np.arange(24) % 2
    np.savez(root / "images" / "array.npz", x=sets.noise(24, 6, 8), y=labels, class_names=names)
    for name in ("hub", "plain"):
        (root / "images" / name).mkdir()
        sets.parquet(root / "images" / name, train=16, test=4)
    datasets = pytest.importorskip("datasets", reason="is the extra of data=hub")
    for file in (root / "images" / "plain").glob("*.parquet"):
        datasets.Dataset.from_parquet(str(file), cache_dir=str(root / "cache")).remove_columns(
            "label"
        ).to_parquet(file)
    with chdir(root):
        status, output, _ = script("prepare.py", "images/classes", "images/store")
    assert status == 0 and next_commands(output)[0].endswith(
        "train.py data=store data.path=images/store conditioner=label"
    )
    return root


@pytest.fixture(scope="session")
def trained(root, typed):
    """Function that returns the run of a kind, trained at its first use."""
    runs = {}

    def run(kind):
        if kind not in runs:
            if kind == "latents":
                run("autoencoder")
            work = root / re.sub(r"\W+", "-", kind)
            work.mkdir(exist_ok=True)
            overrides = (DATA | SYSTEMS)[kind]
            with chdir(work):
                status, output, error = typed("train", *overrides, f"hydra.run.dir={work}")
            assert status == 0, error
            runs[kind] = Trained(kind, overrides, work, work, output)
        return runs[kind]

    return run


def script(file, *overrides):
    """Run a script; return (exit status, standard output, standard error)."""
    status, out, err = 0, io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [file, *overrides])
        try:
            runpy.run_path(str(ROOT / file), run_name="__main__")
        except SystemExit as ended:
            status = ended.code or 0
    return status, out.getvalue(), err.getvalue()


def next_commands(output):
    """Return the commands that `output` offers as the next ones."""
    lines = output.partition("  next ")[2].splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(python3?|ddpm-\w+) ", line)]


def run_short(typed, command, *more):
    """Run a printed command, made short; return its output."""
    python, program, *overrides = shlex.split(command)
    assert python.startswith("python") and not re.search(r"\bDIR\b|\.\.\.", command), command
    verb = Path(program).stem
    status, output, error = typed(verb, *overrides, *SHORT[verb], *more)
    assert status == 0, f"{command}\n{error}"
    return output


def weights(run):
    return torch.load(list_checkpoints(run / "checkpoints")[0], weights_only=True)["state_dict"]


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert all(
        torch.equal(one[name], other[name]) for name in one if isinstance(one[name], torch.Tensor)
    )


def train_until_signal(overrides, work, step, number):
    """Train in `work` in a child process that gets signal `number` in its nth `step`.

    Return the exit status.
    """
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return 128 - code if code < 0 else code
    status = 1
    try:
        calls, hook = count(1), BaseSystem.on_train_batch_start

        def hook_with_signal(*args, **kwargs):
            if next(calls) == step:
                os.kill(os.getpid(), number)
            return hook(*args, **kwargs)

        BaseSystem.on_train_batch_start = hook_with_signal
        os.chdir(work)
        sys.stdout, sys.stderr = (
            os.fdopen(i, "w", buffering=1, closefd=False) for i in (1, 2)
        )  # not those of pytest
        status = main.run_job("train", overrides, work / "log.txt")
    finally:
        os._exit(status)


@contextmanager
def renamed_data(trained):
    """Rename the data of a run; yield the override that points to it, a relative path."""
    key, value = next(
        word.split("=") for word in trained.overrides if re.match(r"data\.(path|name)=", word)
    )
    place = (trained.work / value).resolve()
    place.rename(place.with_name(f"moved {place.name}"))
    try:
        yield f"{key}='{Path(value).parent}/moved {place.name}'"
    finally:
        place.with_name(f"moved {place.name}").rename(place)


# The paths. Each takes the run of a kind, `typed` and an empty folder.


def train(trained, typed, folder):
    """`train.py`: a run with weights, metrics, history and next commands"""
    held_out_counts = {
        "train/ and val/": 6,
        "digits": 360,
        "hub, labels": 4,
        "hub, no labels": 4,
        "prepared store": 2,
    }
    if trained.kind in held_out_counts:
        assert f", {held_out_counts[trained.kind]} held-out" in trained.output
    assert [file.name for file in list_checkpoints(trained.run / "checkpoints")] == [
        "step-000004.ckpt",
        "step-000002.ckpt",
    ]
    assert (trained.run / "metrics.json").is_file() and (trained.run / "metrics.csv").is_file()


def follow(trained, typed, folder):
    """each printed next command"""
    commands = next_commands(trained.output)
    assert commands
    for command in commands:
        run_short(typed, command, f"hydra.run.dir={folder}/{len(os.listdir(folder))}")


def sample(trained, typed, folder):
    """`sample.py`: the requested number of samples"""
    labelled = trained.kind in ("digits", "class folders", "prepared store", "array", "hub, labels")
    conditions = ["label=1"] if labelled else []
    conditions += ["text='a seven'"] if trained.kind == "text" else []
    status, _, error = typed(
        "sample", f"run={trained.run}", "count=2", *conditions, f"hydra.run.dir={folder}/s"
    )
    assert status == 0, error
    saved = np.load(folder / "s" / "samples.npz")
    assert len(saved["points" if trained.kind == "points" else "images"]) == 2
    assert not labelled or saved["labels"].tolist() == [1, 1]


def evaluate(trained, typed, folder):
    """`evaluate.py`: the metrics of this kind of data"""
    overrides = [*trained.metrics(), *SHORT["evaluate"]]
    status, _, error = typed(
        "evaluate", f"run={trained.run}", *overrides, f"hydra.run.dir={folder}/e"
    )
    assert status == 0 and (folder / "e" / "metrics.json").is_file(), error


def share(trained, typed, folder):
    """`share.py` and its printed command"""
    status, output, error = script("share.py", str(trained.run), f"{folder}/a share")
    assert status == 0, error
    (command,) = next_commands(output)
    run_short(typed, command, f"hydra.run.dir={folder}/s")


def kill(trained, typed, folder):
    """`kill -9` in a step, then the same command: the weights of an uninterrupted run"""
    work = trained.work.parent / f"killed {trained.work.name}"
    work.mkdir()
    status = train_until_signal(trained.overrides, work, 4, signal.SIGKILL)
    assert status == 137, (work / "log.txt").read_text()
    (run,) = work.glob("runs/*/*")
    assert [file.name for file in list_checkpoints(run / "checkpoints")] == ["step-000002.ckpt"]
    with chdir(work):
        status, _, error = typed("train", *trained.overrides)
    assert status == 0 and len([*work.glob("runs/*/*")]) == 1, error
    assert_equal_weights(weights(run), weights(trained.run))


def stop(trained, typed, folder):
    """SIGTERM in a step saves there; then the same command: the weights of an uninterrupted run"""
    work = trained.work.parent / f"stopped {trained.work.name}"
    work.mkdir()
    status = train_until_signal(trained.overrides, work, 4, signal.SIGTERM)
    assert status == 143, (work / "log.txt").read_text()
    (run,) = work.glob("runs/*/*")
    assert list_checkpoints(run / "checkpoints")[0].name in ("step-000003.ckpt", "step-000004.ckpt")
    with chdir(work):
        status, _, error = typed("train", *trained.overrides)
    assert status == 0 and len([*work.glob("runs/*/*")]) == 1, error
    assert_equal_weights(weights(run), weights(trained.run))


def longer(trained, typed, folder):
    """`train.py resume=DIR trainer.max_steps=6`"""
    shutil.copytree(trained.run, folder / "r")
    status, _, error = typed("train", f"resume={folder}/r", "trainer.max_steps=6")
    assert (
        status == 0 and list_checkpoints(folder / "r" / "checkpoints")[0].name == "step-000006.ckpt"
    ), error


def move(trained, typed, folder):
    """moved data, `data.path=` (hub: `data.name=`) given: `evaluate.py` and `resume=`"""
    shutil.copytree(trained.run, folder / "r")
    with renamed_data(trained) as where:
        overrides = [*trained.metrics(), *SHORT["evaluate"], where]
        status, _, error = typed(
            "evaluate", f"run={folder}/r", *overrides, f"hydra.run.dir={folder}/e"
        )
        assert status == 0, error
        status, _, error = typed("train", f"resume={folder}/r", "trainer.max_steps=6", where)
        assert status == 0, error


def unknown_path(trained, typed, folder):
    """`evaluate.py run=DIR data.path=X` for data without a path"""
    return typed("evaluate", f"run={trained.run}", "data.path=elsewhere")


def elsewhere(trained, typed, folder):
    """from another working directory: `sample.py`, `evaluate.py` and `resume=`"""
    shutil.copytree(trained.run, folder / "r")
    (folder / "w").mkdir()
    with chdir(folder / "w"):
        sample(trained, typed, folder)
        evaluate(trained, typed, folder)
        status, _, error = typed("train", "resume=../r", "trainer.max_steps=6")
        assert status == 0, error


def use(trained, typed, folder):
    """its use: latents of the autoencoder, guidance by the classifier, samples of the others"""
    if trained.kind not in ("autoencoder", "classifier"):
        return sample(trained, typed, folder)
    with chdir(folder):
        own = (
            ["codec=autoencoder", f"codec.run={trained.run}"]
            if trained.kind == "autoencoder"
            else []
        )
        status, _, error = typed("train", *own, *UNET, "hydra.run.dir=r")
        assert status == 0, error
        guided = [
            "guidance=classifier",
            f"guidance.classifier.run={trained.run}",
            "guidance.scale=1",
        ]
        overrides = [*SHORT["sample"], *([] if own else [*guided, "label=3"])]
        status, _, error = typed("sample", "run=r", *overrides)
        assert status == 0, error
    return None


PATHS = {
    "train": train,
    "next": follow,
    "sample": sample,
    "evaluate": evaluate,
    "share": share,
    "kill": kill,
    "stop": stop,
    "longer": longer,
    "data moved": move,
    "elsewhere": elsewhere,
    "use": use,
}
OF_DATA = [path for path in PATHS if path not in ("stop", "use")]
OF_SYSTEMS = ["train", "next", "share", "kill", "stop", "longer", "use"]
REFUSED = {("digits", "data moved"): "no key", ("points", "data moved"): "no key"}
"""Fragment of the error message by (kind, path): these data have no path"""
FAST = {
    "digits": ["train", "next", "data moved"],
    "class folders": OF_DATA,
    "array": ["train", "sample", "data moved"],
    "hub, labels": ["train", "data moved"],
    "points": ["train", "sample", "evaluate"],
    "autoencoder": ["use"],
    "classifier": ["stop", "use"],
    "latents": ["train", "share"],
}
"""Paths of `make test`: each path and each kind of system once. The others are nightly."""
CASES = [
    *((kind, path) for kind in DATA for path in OF_DATA),
    *((kind, path) for kind in SYSTEMS for path in OF_SYSTEMS),
]


def case(kind, path):
    marks = [] if path in FAST.get(kind, ()) else [pytest.mark.nightly]
    return pytest.param(kind, path, id=f"{kind}-{path}", marks=marks)


@pytest.mark.parametrize(("kind", "path"), [case(*names) for names in CASES])
def test_user_path(kind, path, trained, typed, tmp_path, monkeypatch):
    monkeypatch.chdir(trained(kind).work)
    if message := REFUSED.get((kind, path)):
        status, _, error = unknown_path(trained(kind), typed, tmp_path)
        assert (
            status == 2
            and message in error
            and error.count("\n") == 1
            and error.startswith("error: ")
        ), error
    else:
        PATHS[path](trained(kind), typed, tmp_path)


def test_encoding_prints_the_command_that_decodes(trained, typed, tmp_path):
    overrides = ["mode=encode", "count=2", "sampler.steps=3", f"hydra.run.dir={tmp_path}/x"]
    status, output, error = typed("sample", f"run={trained('digits').run}", *overrides)
    assert status == 0, error
    (command,) = next_commands(output)
    assert "sampler.steps=3 mode=decode" in command
    run_short(typed, command, f"hydra.run.dir={tmp_path}/y")


def test_classifier_guides_the_newest_model_of_its_data(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, overrides = (
        run_config.load_config(str(trained("classifier").run)),
        "run=DIR guidance=classifier",
    )
    assert complete_command("sample", overrides, config, ["data=digits"]) == (
        "python train.py data=digits\n           then add to sample.py: guidance=classifier"
    )
    for kind, place in (
        ("digits", "1/1"),
        ("digits", "1/2"),
        ("points", "2/1"),
        ("classifier", "2/2"),
    ):
        shutil.copytree(trained(kind).run, tmp_path / "runs" / place)
    assert (
        complete_command("sample", overrides, config, [])
        == "python sample.py run=runs/1/2 guidance=classifier"
    )


def table():
    """docs/user-paths.md"""
    lines = [
        "# Sequences of commands for every kind of data and of system",
        "",
        "Each entry is a test in `tests/test_user_paths.py` on a run of four steps. `make test`",
        "runs each path and each kind of system once; the rest is nightly. An entry refused on",
        "purpose quotes the error message. `.venv/bin/python tests/test_user_paths.py` writes this",
        "page.",
        "",
        *(f"- **{name}**: {path.__doc__}" for name, path in PATHS.items()),
    ]
    for kinds, paths in ((DATA, OF_DATA), (SYSTEMS, OF_SYSTEMS)):
        lines += ["", f"| | {' | '.join(paths)} |", "|---" * (len(paths) + 1) + "|"]
        for kind in kinds:
            results = [
                f"refused: {REFUSED[kind, path]}" if (kind, path) in REFUSED else "works"
                for path in paths
            ]
            lines.append(f"| {kind} | {' | '.join(results)} |")
    return "\n".join(lines) + "\n"


def test_documented_table_is_current():
    assert TABLE.read_text() == table(), "run .venv/bin/python tests/test_user_paths.py"


if __name__ == "__main__":
    TABLE.write_text(table())
