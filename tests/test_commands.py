"""The commands train, sample and evaluate, as typed by a user."""

import errno
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sets
import torch
from conftest import CONFIGS, FAST, ROOT, assert_decode_inverts_encode, composed, options
from omegaconf import OmegaConf
from PIL import Image

from ddpm_lab.cli import main
from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.evaluation.sample_quality import SampleQuality
from ddpm_lab.runs import run_config, weights
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.systems.base import DataModule
from ddpm_lab.utils.safe_load import list_checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(typed, tmp_path_factory):
    """Run of ten steps."""
    folder = tmp_path_factory.mktemp("run")
    status, output, error = typed("train", *FAST, f"hydra.run.dir={folder}/r")
    assert status == 0, error
    (folder / "r" / "stdout").write_text(output)
    return folder / "r"


def test_run_writes_images_checkpoint_and_metrics(run):
    output = (run / "stdout").read_text()
    assert {file.name for file in (run / "images").iterdir()} == {
        "samples-000005.png",
        "samples-000010.png",
        "denoising.png",
        "losses.png",
    }
    assert [file.name for file in list_checkpoints(run / "checkpoints")] == ["step-000010.ckpt"]
    assert (run / "metrics.csv").is_file() and not (run / ".lock").exists()
    metrics = json.loads((run / "metrics.json").read_text())
    assert (
        metrics["training"]["steps"] == 10
        and metrics["fid"] > 0
        and 0 <= metrics["class_accuracy"] <= 1
    )
    assert 1 <= metrics["inception_score"] < metrics["real"]["inception_score"] < 10
    assert metrics["protocol"]["inception_score_splits"] == 1 and "inception score" in output
    assert metrics["protocol"]["sampler"] == {
        "name": "DDIM",
        "steps": 3,
        "spacing": "uniform",
        "clip": 1.0,
        "dynamic_threshold": None,
        "eta": 1.0,
        "sigma_hat": False,
    }
    assert f"python sample.py run={run} count" in output and "FID" in output
    grid = Image.open(run / "images" / "samples-000010.png")
    assert grid.width > 10 * 64 and grid.height > 8 * 64 and len(set(grid.getdata())) > 5


def test_sample_writes_grid_array_and_images(run, typed, tmp_path):
    status, output, _ = typed(
        "sample",
        f"run={run}",
        "count=7",
        "label=[3,4]",
        "sampler=ddpm",
        "sampler.steps=2",
        f"hydra.run.dir={tmp_path}/s",
    )
    assert status == 0 and str(tmp_path) in output
    saved = np.load(tmp_path / "s" / "samples.npz")
    assert saved["images"].shape == (7, 8, 8, 1) and saved["images"].dtype == np.uint8
    assert saved["labels"].tolist() == [3, 4, 3, 4, 3, 4, 3]
    for i, image in enumerate(saved["images"]):
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "s" / "images" / f"{i:06d}.png")), image[..., 0]
        )
    assert (tmp_path / "s" / "grid.png").is_file()


@pytest.mark.parametrize(
    ("typed_label", "labels"),
    [
        ("label=seven", [7]),
        ("label=[three,0,'a two']", [3, 0, 2]),
        ("label=[0,3]", [0, 3]),
        ("label='FÜNF'", [5]),
    ],
)
def test_label_accepts_class_names(typed_label, labels, run, typed, tmp_path):
    assert "classes: 0 zero, 1 one, 2 two, " in (run / "stdout").read_text()
    overrides = [f"run={run}", f"count={len(labels)}", "sampler.steps=1", typed_label]
    status, _, error = typed("sample", *overrides, f"hydra.run.dir={tmp_path}/s")
    assert status == 0 and np.load(tmp_path / "s" / "samples.npz")["labels"].tolist() == labels, (
        error
    )


IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
ARRAYS = {  # kind: (arrays that replace valid ones of 4 digits, error message)
    "labels of two dimensions": (
        {"labels": np.zeros((4, 2), int)},
        "labels is (4, 2) int64, and 4 images need (4,)",
    ),
    "labels of a number": ({"labels": np.int64(3)}, "labels is () int64"),
    "labels as text": ({"labels": np.array(["cat"] * 4)}, "labels is (4,) <U3"),
    "labels as bytes": ({"labels": np.array([b"cat"] * 4)}, "labels is (4,) |S3"),
    "labels of floats": ({"labels": np.zeros(4)}, "labels is (4,) float64"),
    "labels of bools": ({"labels": np.zeros(4, bool)}, "labels is (4,) bool"),
    "labels that are longer": (
        {"labels": np.zeros(5, int)},
        "labels is (5,) int64, and 4 images need (4,) int64",
    ),
    "labels that are shorter": ({"labels": np.zeros(3, int)}, "labels is (3,) int64"),
    "labels out of range": (
        {"labels": np.full(4, 10)},
        "has labels in 10..10, but this model takes 0..9",
    ),
    "labels below 0": ({"labels": np.full(4, -1)}, "has labels in -1..-1"),
    "images of floats": ({"images": IMAGES / 1.0}, "images is (4, 8, 8, 1) float64"),
    "images of 16 bits": ({"images": IMAGES.astype(np.uint16)}, "images is (4, 8, 8, 1) uint16"),
    "images of another size": ({"images": IMAGES[:, :4]}, "images is (4, 4, 8, 1) uint8"),
    "channels first": ({"images": IMAGES.transpose(0, 3, 1, 2)}, "images is (4, 1, 8, 8) uint8"),
    "one image": ({"images": IMAGES[0]}, "images is (8, 8, 1) uint8"),
    "no image": (
        {"images": IMAGES[:0], "labels": np.zeros(0, int)},
        "images is (0, 8, 8, 1) uint8",
    ),
    "a number": ({"images": np.float32(1)}, "images is () float32"),
    "objects": (
        {"labels": np.array([{}] * 4, dtype=object)},
        "has arrays of objects, not of numbers",
    ),
    "another name": (
        {"images": None, "pictures": IMAGES},
        "has no readable array images (KeyError)",
    ),
}


@pytest.mark.parametrize("kind", [*ARRAYS, "cut short", "a single array", "a text", "nowhere"])
def test_encode_rejects_invalid_arrays(kind, run, typed, tmp_path):
    file = tmp_path / "a.npz"
    content, message = ARRAYS.get(kind, ({}, "has no readable array images (BadZipFile)"))
    arrays = {"images": IMAGES, "labels": np.zeros(4, int)} | content
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    if kind == "cut short":
        file.write_bytes(file.read_bytes()[:300])
    elif kind == "a single array":
        with file.open("wb") as stream:
            np.save(stream, IMAGES)
    elif kind == "a text":
        file.write_text("hello")
    elif kind == "nowhere":
        file, message = tmp_path / "b.npz", "does not exist"
    status, _, error = typed(
        "sample", f"run={run}", "mode=encode", f"input={file}", f"hydra.run.dir={tmp_path}/s"
    )
    assert (
        status == (5 if kind == "objects" else 2) and message in error and error.count("\n") == 1
    ), error
    assert not (tmp_path / "s").exists()


def test_encode_accepts_big_endian_labels(run, typed, tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.arange(4).astype(">u2"))
    status, _, error = typed(
        "sample",
        f"run={run}",
        "mode=encode",
        f"input={tmp_path}/a.npz",
        "sampler.steps=1",
        f"hydra.run.dir={tmp_path}/s",
    )
    assert status == 0 and np.load(tmp_path / "s" / "x_T.npz")["labels"].tolist() == [0, 1, 2, 3], (
        error
    )


def test_samples_depend_on_seed_not_on_batch_size(run, typed, tmp_path):
    samples = {}
    for name, size, seed in (("a", 256, 0), ("b", 3, 0), ("c", 256, 1)):
        typed(
            "sample",
            f"run={run}",
            "count=8",
            f"batch_size={size}",
            f"seed={seed}",
            f"hydra.run.dir={tmp_path}/{name}",
        )
        samples[name] = np.load(tmp_path / name / "samples.npz")["images"].astype(int)
    assert np.abs(samples["a"] - samples["b"]).max() <= 1
    assert np.abs(samples["a"] - samples["c"]).max() > 50


def test_sampling_options_default_to_the_runs_own(run, typed):
    assert "steps: 3" in typed("sample", f"run={run}", "--cfg", "job")[1]
    assert "steps: 9" in typed("sample", f"run={run}", "sampler.steps=9", "--cfg", "job")[1]
    assert "samplers.DDPM" in typed("sample", f"run={run}", "sampler=ddpm", "--cfg", "job")[1]
    assert "w: 2" in typed("sample", f"run={run}", "guidance.w=2", "--cfg", "job")[1]


def test_load_system_selects_ema_or_raw_weights(run):
    content = torch.load(weights.checkpoint_files(run)[0], weights_only=True)
    raw = {name.removeprefix("denoiser."): value for name, value in content["state_dict"].items()}
    states = {"ema": content["callbacks"]["EMA"]["average"], "raw": raw}
    saved = run_config.load_config(str(run))
    for kind, expected in states.items():
        settings = OmegaConf.create({"run": str(run), "weights": kind, "sampler": saved.sampler})
        loaded = RunDir(str(run), settings).pipeline.denoiser.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in loaded)
    assert any(not torch.equal(states["ema"][name], states["raw"][name]) for name in states["ema"])


def test_evaluate_writes_metrics_with_protocol(run, typed, tmp_path):
    status, output, _ = typed(
        "evaluate",
        "-m",
        f"run={run}",
        "sampler.steps=2,3",
        "count=20",
        "split=test",
        "guidance.w=1",
        "hydra.launcher.jobs=2",
        f"hydra.sweep.dir={tmp_path}",
    )
    assert status == 0 and "FID" in output
    for steps in (2, 3):
        (file,) = tmp_path.glob(f"sampler.steps-{steps}-*/metrics.json")
        metrics = json.loads(file.read_text())
        protocol = metrics["protocol"]
        assert (
            metrics["fid"] > 0
            and metrics["real"]["class_accuracy"] > 0.99
            and metrics["noise"]["fid"] > metrics["real"]["fid"]
        )
        assert protocol["sampler"]["steps"] == steps and protocol["guidance"]["w"] == 1
        assert (protocol["weights"], protocol["count"], protocol["split"], protocol["seed"]) == (
            "ema",
            20,
            "test",
            0,
        )
        assert protocol["extractor"] == "digits" and len(protocol["extractor_sha256"]) == 64


def test_prc_adds_precision_and_recall(run, typed, tmp_path):
    assert "precision" not in json.loads((run / "metrics.json").read_text())
    status, output, _ = typed(
        "evaluate", f"run={run}", "metrics=[prc]", "count=40", f"hydra.run.dir={tmp_path}"
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert status == 0 and "precision, recall" in output and "intra FID" in output
    assert (
        metrics["real"]["precision"] > 0.8
        and metrics["real"]["recall"] > 0.8 > metrics["precision"] >= 0
    )


def test_evaluate_sweep_equals_single_evaluations(run, typed, tmp_path):
    overrides = [f"run={run}", "count=40"]
    status, output, _ = typed(
        "evaluate", *overrides, "sweep=guidance.w", "values=[0,30]", f"hydra.run.dir={tmp_path}/r"
    )
    assert status == 0 and "intra FID" in output and "held-out" in output
    report = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert (tmp_path / "r" / "sweep.png").is_file() and report["sweep"] == "guidance.w"
    rows = np.asarray(Image.open(tmp_path / "r" / "rows.png"))
    for i, value in enumerate((0, 30)):
        entry = report["values"][i]
        typed(
            "evaluate",
            *overrides,
            f"guidance.w={value}",
            "metrics=[prc]",
            f"hydra.run.dir={tmp_path}/{i}",
        )
        single = json.loads((tmp_path / str(i) / "metrics.json").read_text())
        assert entry["value"] == value and entry["protocol"] == single["protocol"]
        assert [entry[name] for name in ("real", "noise")] == [
            single[name] for name in ("real", "noise")
        ]
        for name in (
            "fid",
            "intra_fid",
            "inception_score",
            "class_accuracy",
            "precision",
            "recall",
        ):
            assert entry[name] == pytest.approx(single[name], rel=1e-3), name
        typed(
            "sample",
            f"run={run}",
            "count=10",
            f"guidance.w={value}",
            f"hydra.run.dir={tmp_path}/s{i}",
        )
        row = np.asarray(Image.open(tmp_path / f"s{i}" / "grid.png"))
        assert len(row) == 72 and np.array_equal(rows[68 * i + 4 : 68 * i + 68], row[4:68]), (
            "within margins of 4"
        )
    assert report["values"][0]["fid"] != report["values"][1]["fid"]


OWN = """import torch
from ddpm_lab.diffusion.schedules import Schedule, from_betas

def plateau(steps: int = 1000, beta: float = 0.01) -> Schedule:
    return from_betas(torch.full((steps,), beta, dtype=torch.float64))
"""


def test_printed_commands_of_an_external_package_work(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("mylab.py").write_text(OWN)
    Path("CONF/schedule").mkdir(parents=True)
    Path("CONF/schedule/plateau.yaml").write_text(
        "_target_: mylab.plateau\nsteps: 1000\nbeta: 0.01\n"
    )
    overrides = [
        "--config-dir",
        "CONF",
        "schedule=plateau",
        "extractor=none",
        "callbacks=none",
        *FAST[:4],
        "sampler.steps=2",
    ]
    status, output, error = typed("train", *overrides, "trainer.max_steps=2", "hydra.run.dir=r")
    assert status == 0 and "Epoch" not in error and "training:" in error, error
    printed = [shlex.split(line) for line in output.splitlines() if "run=r" in line]
    assert [line[-1] for line in printed] == ["trust=[mylab]"] * 2
    for line in printed:
        verb, *arguments = line[line.index("next") + 2 :] if "next" in line else line[1:]
        short = [] if "sample" in verb else ["nll.count=4", "nll.steps=2"]
        assert typed(verb.removeprefix("ddpm-").removesuffix(".py"), *arguments, *short)[0] == 0, (
            line
        )
    status, _, error = typed(
        "train", "resume=r", "trainer.max_steps=3", "trust=[mylab]", "--config-dir", "CONF"
    )
    assert status == 0, error


STOPS = {
    "Ctrl-C": (KeyboardInterrupt(), 130),
    "SIGTERM": (main.Terminated(), 143),
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), 3),
}


@pytest.mark.parametrize(
    "stop", [pytest.param("Ctrl-C", marks=pytest.mark.nightly), "SIGTERM", "full disk"]
)
def test_interrupted_evaluate_sweep_resumes_at_next_value(run, typed, tmp_path, monkeypatch, stop):
    shutil.copytree(run, tmp_path / "r", ignore=lambda *_: ["evaluations", "samples"])
    overrides = [f"run={tmp_path}/r", "sweep=guidance.w", "values=[0,1,2]", "count=20"]
    assert typed("evaluate", *overrides, f"hydra.run.dir={tmp_path}/whole")[0] == 0
    evaluated, interrupt, expected_status = [], *STOPS[stop]

    compute_each = SampleQuality.compute_each

    def interrupted(quality, cascade, data, weights, configurations):
        results = compute_each(quality, cascade, data, weights, configurations)
        for name, result in zip(configurations, results, strict=True):
            evaluated.append(name)
            if len(evaluated) == 2:
                raise interrupt
            yield result

    monkeypatch.setattr(SampleQuality, "compute_each", interrupted)
    status, output, error = typed("evaluate", *overrides)
    assert status == expected_status and "Traceback" not in error
    assert error.count("\n") == 1, error
    (folder,) = (tmp_path / "r" / "evaluations").iterdir()
    assert "1 of 3 values are saved" in output and "held-out" in output
    partial = json.loads((folder / "metrics.json").read_text())
    assert [entry["value"] for entry in partial["values"]] == [0] and partial["unfinished"] == [
        1,
        2,
    ]
    assert (folder / "rows.png").is_file() and (folder / "sweep.png").is_file()
    status, output, error = typed("evaluate", *overrides)
    assert status == 0, error
    assert evaluated == [f"guidance.w={value} ({value + 1} of 3)" for value in (0, 1, 1, 2)]
    assert [*(tmp_path / "r" / "evaluations").iterdir()] == [folder] and not (
        folder / "unfinished.json"
    ).exists()
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert json.loads((folder / "metrics.json").read_text()) == whole
    assert (folder / "rows.png").read_bytes() == (tmp_path / "whole" / "rows.png").read_bytes()


def test_evaluation_resumes_only_with_the_same_weights(run, typed, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "r", ignore=lambda *_: ["evaluations", "samples"])
    overrides = [f"run={tmp_path}/r", "metrics=[nll,fid]", "nll.count=4", "nll.steps=2", "count=20"]
    with monkeypatch.context() as patch:
        patch.setattr(SampleQuality, "compute", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            typed("evaluate", *overrides)
    (folder,) = (tmp_path / "r" / "evaluations").iterdir()
    partial = json.loads((folder / "metrics.json").read_text())
    assert "nll" in partial and "fid" not in partial
    status, said, _ = typed("evaluate", *overrides)
    assert status == 0 and "finished: nll" in said
    unfinished = {"key": "of others", "command": overrides, "parts": {"nll": {}, "fid": {}}}
    (folder / "unfinished.json").write_text(json.dumps(unfinished))
    status, output, _ = typed("evaluate", *overrides)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (
        status == 0
        and "finished:" not in output
        and metrics["nll"] == partial["nll"]
        and metrics["fid"] > 0
    )


def test_evaluate_sweep_accepts_non_numeric_values(run, typed, tmp_path):
    overrides = [
        "sweep=sampler.spacing",
        "values=[uniform,quadratic]",
        "count=20",
        f"hydra.run.dir={tmp_path}/r",
    ]
    status, output, error = typed("evaluate", f"run={run}", *overrides)
    assert status == 0 and "quadratic" in output, error
    overrides[:2] = ["sweep=guidance.scale", "values=[null,2]"]
    assert typed("evaluate", f"run={run}", *overrides)[0] == 0


def test_text_conditions_sample(tiny, typed, tmp_path):
    trained = f"run={tiny('conditioner=text')}"
    samples = {}
    # After ten steps, conditions hardly change samples without strong guidance.
    strong = ["count=3", "weights=raw", "guidance.w=10000"]
    for name, conditions in {
        "a": "text='fünf'",
        "b": "text=a seven",
        "c": "label=5",
        "d": "text=['fünf',vier]",
    }.items():
        status, output, error = typed(
            "sample", trained, conditions, *strong, f"hydra.run.dir={tmp_path}/{name}"
        )
        assert status == 0 and str(tmp_path) in output, error
        samples[name] = np.load(tmp_path / name / "samples.npz")["images"].astype(int)
    assert np.abs(samples["a"] - samples["b"]).max() > 1
    assert (
        np.abs(samples["a"] - samples["d"])[[0, 2]].max()
        <= 1
        < np.abs(samples["a"] - samples["d"])[1].max()
    )
    for wrong, message in {
        "text=''": "text is empty",
        f"text={'x' * 25}": "has 25 bytes, but this model takes 24",
        "label=10": "0 zero, 1 one",
        "text=7": "text=7 must be a text",
        "text=[]": "text=[] must be a text",
        "text=[[a]]": "must be a text",
        "text={a:1}": "must be a text",
    }.items():
        status, _, error = typed("sample", trained, wrong)
        assert status == 2 and message in error and error.count("\n") <= 2, error
    assert typed("evaluate", trained, "count=20", f"hydra.run.dir={tmp_path}/e")[0] == 0
    assert_decode_inverts_encode(typed, trained, tmp_path)
    saved = np.load(tmp_path / "x" / "x_T.npz")
    assert {*saved} == {"x_T", "labels", "text"} and saved["text"].shape == (2, 24)


def test_decode_rejects_latents_of_other_conditioners(run, tiny, typed, tmp_path):
    assert (
        typed("sample", f"run={run}", "mode=encode", "count=2", f"hydra.run.dir={tmp_path}/x")[0]
        == 0
    )
    latents = f"input={tmp_path}/x/x_T.npz"
    for kind, message in {"low_res": "takes low_res (1, 4, 4)", "text": None, "none": None}.items():
        status, _, error = typed(
            "sample",
            f"run={tiny(f'conditioner={kind}')}",
            "weights=raw",
            "mode=decode",
            latents,
            f"hydra.run.dir={tmp_path}/y-{kind}",
        )
        assert status == (2 if message else 0) and (message or "") in error, error
    with np.load(tmp_path / "x" / "x_T.npz") as saved:
        np.savez(tmp_path / "short.npz", **saved, text=np.ones((2, 9), dtype=np.uint8))
    overrides = ["mode=decode", f"input={tmp_path}/short.npz", "weights=raw"]
    status, _, error = typed("sample", f"run={tiny('conditioner=text')}", *overrides)
    assert status == 2 and "takes text (24,)" in error, error


def test_low_res_model_enlarges_held_out_images(tiny, typed, tmp_path):
    trained = f"run={tiny('conditioner=low_res')}"
    status, _, error = typed("sample", trained, "count=4", f"hydra.run.dir={tmp_path}/s")
    assert status == 0, error
    labels = build(run_config.load_config(str(tiny("conditioner=low_res"))), "data").test.labels[:4]
    assert np.load(tmp_path / "s" / "samples.npz")["labels"].tolist() == labels.tolist()
    status, _, error = typed("sample", trained, "label=3")
    assert status == 2 and "label=3: the input images have their own labels" in error
    assert typed("evaluate", trained, "count=20", f"hydra.run.dir={tmp_path}/e")[0] == 0
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["protocol"]["given"] == "test"
    assert_decode_inverts_encode(typed, trained, tmp_path)


def test_evaluate_matches_metrics_at_end_of_training(run, typed, tmp_path):
    typed("evaluate", f"run={run}", "count=20", f"hydra.run.dir={tmp_path}")
    at_end, later = (json.loads((place / "metrics.json").read_text()) for place in (run, tmp_path))
    assert later["protocol"] == at_end["protocol"] and later["fid"] == pytest.approx(
        at_end["fid"], rel=1e-3
    )


SCHEDULES = ", ".join(options("schedule"))
TRAIN_MISTAKES = {
    "schedule=cosin": (
        f"schedule=cosin is not a choice (did you mean cosine?); choices: {SCHEDULES}"
    ),
    "shedule=cosine": "did you mean schedule?",
    "sampler.stepz=5": "sampler has no key stepz (did you mean steps?)",
    "lr=1e-3": "has no key lr (did you mean optimizer.lr?)",
    "schedule": "schedule",
    "schedule.steps=0": "schedule.steps must be at least 1 (got 0)",
    "schedule.steps=abc": "schedule.steps=abc has the wrong type",
    "schedule.max_beta=1.5": "schedule.max_beta must be above 0 and below 1 (got 1.5)",
    "sampler._target_=foo.Bar": "sampler._target_=foo.Bar cannot be imported",
    "+sampler.foo={a:1}": "sampler.foo is not a key of",
    "foo": "foo has no value; try foo=...",
    "logger=null": "logger=null has no value; choices: csv, tensorboard, wandb",
    "data=3": "data=3 has no value; choices: ",
    "callbacks=[]": "callbacks=[] has no value; choices: ",
    "schedule=": f"schedule= has no value; choices: {SCHEDULES}",
    "~optimizer": "~optimizer has no value; choices: ",
    "--seed 1": "--seed 1: a key and its value must be one word; try seed=1",
    "trainer.max_steps 5": (
        "trainer.max_steps 5: a key and its value must be one word; try trainer.max_steps=5"
    ),
    "model = unet": "model = unet: a key and its value must be one word; try model=unet",
    "--seed": "--seed is a key, not an option; try seed=...",
    "--seed=-1": "seed must be at least 0 (got -1)",
    "-model.foo=1": "model.foo=1: model has no key foo",
    "--config-dri=foo": "--config-dri is not an option (did you mean --config-dir?)",
    "--cfg job -m": "--cfg and -m exclude one another; leave one out",
    "+experiment=digits_cfg": (
        "+experiment=digits_cfg: a group takes no +; try experiment=digits_cfg"
    ),
    "++model=unet": "++model=unet: a group takes no +; try model=unet",
    "+seed=3": "+seed=3: seed already exists, but + is for new keys; try seed=3",
    "trainer/max_steps=5": "trainer/max_steps=5: / is for groups only; try trainer.max_steps=5",
    "MODEL=unet": "MODEL=unet: the configuration has no key MODEL (did you mean model?)",
    "guidance.interval=[900,100]": (
        "guidance.interval=[900, 100] must be two times, low < high, in 0..1000"
    ),
    "data=digits conditioner=low_res conditioner.blur=[0.6,0.4]": (
        "conditioner.blur must be [low, high]"
    ),
    "schedule=constant schedule.beta=1": (
        "must be above 0 and below 1 (got 1); try schedule.beta=0.02"
    ),
    "=foo": "=foo names no key",
    "model.multipliers=[1,": (
        "model.multipliers=[1, is an incomplete list; try 'model.multipliers=[1,2]'"
    ),
    "variance=beta,": "variance=beta, ends in a comma; try variance=beta",
    "data.path=a=b": ("data.path=a=b has a character that must be quoted; try \"data.path='a=b'\""),
    "schedule='cosine": (
        "schedule='cosine has a character that must be quoted; escape inner quotes with a backslash"
    ),
    "schedule=linear,cosine": "schedule=linear,cosine has several values; try -m for a run of each",
    "seed=99999999999999999999": ("seed must be below 2**63 (got 99999999999999999999)"),
    "sampler.clip=-1": "sampler.clip must be above 0",
    "optimizer.lr=-1": "optimizer.lr must be above 0 (got -1)",
    "lr_schedule.warmup=-1": "lr_schedule.warmup must be at least 0",
    "trainer.precision=bf16-true": "trainer.precision=bf16-true",
    "trainer.devices=2": "trainer.devices=2",
    "callbacks.fid.every=0": "callbacks.fid.every must be at least 1 (got 0)",
    "data=synthetic data.channels=0": "data.channels must be at least 1",
    "schedule=linear schedule.end=2": "schedule.end must be above 0 and below 1 (got 2)",
    "schedule=linear schedule.start=-1": "schedule.start",
    "model.multipliers=[1,2,2,2,2]": "model.multipliers=[1, 2, 2, 2, 2] halves images 4 times",
    "model.attention=[5]": "model.attention=[5]: resolution 5 does not occur",
    "data.batch_size=5000": "data.batch_size must be in 1..1437",
    "data.batch_size=0": "data.batch_size",
    "data=folder": "data.path",
    "data=folder data.path=nowhere": "data.path",
    "data=folder data.path=EMPTY": "data.path=EMPTY holds 0 images",
    "data=folder data.path=MIXED": "one size; try data.convert=true data.resolution=8",
    "data=folder data.path=MODES data.channels=1": (
        "is 8x8 RGB, expected 8x8 L; try data.channels=3"
    ),
    "sampler.steps=2000": "sampler.steps must be in 1..1000, the T of the schedule (got 2000)",
    "sampler.steps=0": "sampler.steps must be at least 1 (got 0)",
    "sampler.eta=2": "sampler.eta must be at least 0 and at most 1",
    "data=gaussian_mixture data.radius=1.5": "sampler.clip=1 would clip this data, which reaches",
    "conditioner=none guidance.w=1": "guidance.w=1 needs a conditional model",
    "conditioner.dropout=0 guidance.w=1": "guidance.w=1 needs",
    "guidance.w=-1": "guidance.w must",
    'sampler.spacing="90,60"': "sampler.spacing=90,60 makes 150 steps, but steps=25",
    "sampler.spacing=even": "sampler.spacing=even is not one of uniform, quadratic",
    "sampler.spacing=[1000,500] sampler.steps=null": (
        "sampler.spacing=[1000,500] must descend from at most 1000"
    ),
    "sampler.spacing=[500,1000,0] sampler.steps=null": "sampler.spacing=[500,1000,0] must descend",
    "sampler=ddim sampler.sigma_hat=true": (
        "sampler.sigma_hat=true keeps the mean of eta=1 (got eta=0)"
    ),
    "sampler.dynamic_threshold=2": (
        "sampler.dynamic_threshold must be above 0 and at most 1 (got 2)"
    ),
    "sampler.dynamic_threshold=0.9 sampler.clip=null": (
        "sampler.dynamic_threshold=0.9 scales to the bound clip"
    ),
    "data=toy sampler.dynamic_threshold=0.9": "sampler.dynamic_threshold=0.9 saturates pixels",
    "sampler=langevin sampler.step_size=2": "sampler.step_size must be above 0 and below 2",
    "data=toy model=unet": "model.shape of the data must be that of images, (C, H, W) (got (2,))",
    "data=toy data.shape=moon": "data.shape=moon is not one of moons",
    "variance=learned_range": (
        "variance=learned_range is learned from the variational bound, which objective=simple does "
        "not contain"
    ),
    "variance=analytic": "variance=analytic is estimated from a trained network",
    "model=exact": "model=exact is a closed form and cannot be trained",
    "objective=hybrid objective.weight=-1": "objective.weight must be at least 0",
    "objective=min_snr objective.gamma=0": "objective.gamma must be above 0",
    "timestep_sampler=importance timestep_sampler.history=0": (
        "timestep_sampler.history must be at least 1"
    ),
    "schedule=geometric schedule.low=60": "schedule.low must be below high=50",
    "callbacks=points": "callbacks: ScatterPlot is not for images; try callbacks=default",
    "data=toy callbacks=default": "callbacks: SampleGrid is not for points; try callbacks=points",
    "trainer.max_steps=0": "trainer.max_steps must be at least 1 (got 0)",
    "seed=-1": "seed must be at least 0 (got -1)",
    "optimizer.lr=fast": "optimizer.lr=fast has the wrong type",
    "callbacks.ema.decay=1": "callbacks.ema.decay must be at least 0 and below 1 (got 1)",
    "callbacks.sample_grid.every=0": "callbacks.sample_grid.every",
    "model.channels=foo": "model.channels=foo has the wrong type",
    "conditioner=pretrained_text conditioner.model=null": (
        "conditioner.model=null has the wrong type"
    ),
    "data=toy conditioner=tokens": "which this model does not have; try conditioner=label",
    "data=toy conditioner=low_res": "conditioner=low_res is for images",
}


@pytest.mark.parametrize("arguments", TRAIN_MISTAKES)
def test_invalid_training_override_is_explained(arguments, typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, size, mode in (
        ("EMPTY", None, None),
        ("MIXED", (9, 8), "RGB"),
        ("MODES", (8, 8), "L"),
    ):
        Path(folder).mkdir()
        if size:
            for name in "acd":
                Image.new("RGB", (8, 8)).save(f"{folder}/{name}.png")
            Image.new(mode, size).save(f"{folder}/b.png")
    status, _, error = typed("train", *arguments.split(), "logger=csv", "hydra.run.dir=out")
    assert status == 2 and TRAIN_MISTAKES[arguments] in error, error
    assert error.startswith("error: ") and error.count("\n") <= 2 and "Traceback" not in error
    assert not Path("out").exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("sample", ["run=nowhere"], "run=nowhere is not a run directory"),
        ("sample", [], "run must be given"),
        ("evaluate", [], "run must be given"),
        ("sample", ["run=RUN", "sampler.steps=2000"], "sampler.steps must be in 1..1000"),
        (
            "sample",
            ["run=RUN", "label=10"],
            "label=10 is not a label of this model: 0 zero, 1 one, ",
        ),
        (
            "sample",
            ["run=RUN", "label=sevne"],
            "6 six, 7 seven, 8 eight, 9 nine (did you mean seven?)",
        ),
        (
            "sample",
            ["run=RUN", "schedule=linear"],
            "schedule=linear: the configuration has no key schedule",
        ),
        ("sample", ["run=RUN", "count=0"], "count must be at least 1 (got 0)"),
        ("sample", ["run=RUN", "seed=-1"], "seed must be at least 0 (got -1)"),
        ("sample", ["run=RUN", "weights=best"], "weights=best is not one of ema, raw"),
        (
            "sample",
            ["run=RUN", "sampler=ddmp"],
            "sampler=ddmp is not a choice (did you mean ddpm?)",
        ),
        ("evaluate", ["run=RUN", "split=val"], "split=val is not one of train, test"),
        (
            "evaluate",
            ["run=RUN", "extractor=inception", "extractor.weights=nowhere"],
            "extractor.weights=nowhere",
        ),
        ("evaluate", ["run=RUN", "count=1"], "count"),
        (
            "evaluate",
            ["run=RUN", "metrics=[bits]"],
            "metrics=['bits'] must be a list of fid, kid, memorization, nll, ode_nll, prc",
        ),
        (
            "evaluate",
            ["run=RUN", "sweep=sampler.stepz", "values=[1]"],
            "sweep=sampler.stepz is not a sampling option of this run; options: sampler.steps,",
        ),
        (
            "evaluate",
            ["run=RUN", "sweep=guidance.w"],
            "values=null must be a list of values of guidance.w",
        ),
        (
            "evaluate",
            ["run=RUN", "sweep=guidance.w", "values=[0,-1]"],
            "guidance.w must be at least 0 and at most 10000 (got -1)",
        ),
        (
            "evaluate",
            ["run=RUN", "sweep=guidance.w", "values=[0,a]"],
            "guidance.w=a has the wrong type",
        ),
        (
            "evaluate",
            ["run=RUN", "sweep=sampler.steps", "values=[2,2000]"],
            "sampler.steps must be in 1..1000",
        ),
        (
            "evaluate",
            ["run=RUN", "sweep=guidance.w", "values=[0]", "metrics=[nll]"],
            "metrics=['nll'] cannot be com",
        ),
        (
            "evaluate",
            ["run=RUN", "sweep=guidance.w", "values=[1,1]"],
            "values=[1, 1] must be distinct",
        ),
        (
            "evaluate",
            ["run=RUN", "sweep=guidance.w", "values=[0,{a:1}]"],
            "values=[0, {'a': 1}] must be distinct",
        ),
        (
            "evaluate",
            ["run=RUN", "metrics=[prc]", "count=3"],
            "count must be at least 4 (got 3)",
        ),
        (
            "evaluate",
            ["run=RUN", "values=[0]"],
            "values=[0] needs sweep=KEY; try sweep=guidance.w",
        ),
        (
            "sample",
            ["run=RUN", "text=seven"],
            "text=seven: this model was trained without texts",
        ),
        (
            "sample",
            ["run=RUN", "text=seven", "label=7"],
            "label=7 and text=seven both set the condition",
        ),
        ("evaluate", ["run=RUN", "metrics=[ode_nll]"], "metrics=[ode_nll] is for points"),
        (
            "evaluate",
            ["run=RUN", "metrics=[nll]", "nll.steps=1001"],
            "nll.steps must be in 1..1000",
        ),
        ("evaluate", ["run=RUN", "metrics=[nll]", "nll.steps=0"], "nll.steps must be in 1..1000"),
        ("evaluate", ["run=RUN", "nll.split=val"], "nll.split=val is not one of train, test"),
        (
            "evaluate",
            ["run=RUN", "variance=learned_range"],
            "variance=learned_range must be learned, but this run was",
        ),
        (
            "evaluate",
            ["run=RUN", "metrics=[nll]", "variance=analytic", "variance.samples=1", "nll.clip=2"],
            "nll.clip=2.0 bounds x_0 differently from sampler.clip=1.0",
        ),
        ("train", ["data=folder"], "error: data.path must be a folder of images"),
        (
            "train",
            ["callbacks=none", "+callbacks.ema.decay=0.5"],
            "callbacks.ema sets keys of a callback",
        ),
        (
            "evaluate",
            ["model=exact", "steps=[2000]"],
            "steps=[2000] must be a list of numbers in 1..1000",
        ),
        (
            "evaluate",
            ["model=exact", "covariance=[[1,2],[3,4]]"],
            "covariance=[[1, 2], [3, 4]] must be a symmetric",
        ),
        ("evaluate", ["model=exact", "spectrum=4"], "spectrum=4 must be in 0..3"),
        ("evaluate", ["model=exact", "spectrum=a"], "spectrum=a must be in 0..3"),
        ("evaluate", ["model=exact", "spectrum=1", "dims=0"], "dims=0 must be in 1..10000"),
        (
            "evaluate",
            ["model=exact", "spectrum=1", "mean=[1]"],
            "spectrum=1 replaces mean and covariance",
        ),
        (
            "evaluate",
            ["model=exact", "spectrum=1", "data=gaussian_mixture"],
            "spectrum=1 replaces data",
        ),
        (
            "evaluate",
            ["model=exact", "variance=beta"],
            "variance=beta needs one sampler",
        ),
        (
            "evaluate",
            ["model=exact", "sampler=ddim", "steps=[5]"],
            "steps=[5] is for tables of samplers",
        ),
        (
            "evaluate",
            ["model=exact", "sampler=ddim", "sampler.steps=1001"],
            "sampler.steps must be in 1..1000",
        ),
        (
            "evaluate",
            ["model=exact", "sampler=ddim", "nll.steps=1001"],
            "nll.steps must be in 1..1000",
        ),
        (
            "evaluate",
            ["model=exact", "sampler=ddim", "guidance=classifier"],
            "guidance=classifier needs labels",
        ),
        (
            "evaluate",
            ["model=exact", "sampler=ddim", "guidance=classifier_free", "guidance.w=1"],
            "guidance.w=1 needs conditions",
        ),
        (
            "evaluate",
            [
                "model=exact",
                "data=gaussian_mixture",
                "sampler=ddim",
                "nll.steps=2",
                "guidance=classifier",
                "guidance.form=mean",
            ],
            "guidance.form=mean shifts the means of ancestral steps",
        ),
        (
            "evaluate",
            ["run=RUN", "metrics=[reconstruction]", "sampler.eta=0.5"],
            "sampler.eta=0.5 adds noise",
        ),
        (
            "evaluate",
            ["run=RUN", "metrics=[reconstruction]", "sampler=heun"],
            "sampler=heun cannot be run backwards",
        ),
        (
            "evaluate",
            ["run=RUN", "reconstruction.split=val"],
            "reconstruction.split=val is not one of train, test",
        ),
        (
            "evaluate",
            ["run=RUN", "reconstruction.count=0"],
            "reconstruction.count must be at least 2",
        ),
        (
            "sample",
            ["run=RUN", "mode=foo"],
            "mode=foo is not one of sample, encode, decode, interpolate, edit, times",
        ),
        ("sample", ["run=RUN", "mode=encode", "sampler.eta=0.5"], "sampler.eta=0.5 adds noise"),
        (
            "sample",
            ["run=RUN", "mode=encode", "sampler=ddpm"],
            "sampler=ddpm cannot be run backwards",
        ),
        (
            "sample",
            ["run=RUN", "mode=encode", "input=nowhere.npz"],
            "input=nowhere.npz does not exist",
        ),
        (
            "sample",
            ["run=RUN", "mode=decode"],
            "mode=decode needs the x_T.npz of mode=encode (got input=test)",
        ),
        (
            "sample",
            ["run=RUN", "sampler.eta=1.5"],
            "sampler.eta must be at least 0 and at most 1 (got 1.5); try sampler.eta=0",
        ),
    ],
)
def test_invalid_run_override_is_explained(
    verb, arguments, message, run, typed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, _, error = typed(verb, *[argument.replace("RUN", str(run)) for argument in arguments])
    assert status == 2 and message in error and "Traceback" not in error, error
    assert error.startswith("error: ") and error.count("\n") <= 2
    assert not list(run.glob("samples/*")) and not list(run.glob("evaluations/*"))


def test_newest_checkpoint_is_by_step_not_by_file_time(run, tmp_path):
    for name in (
        "step-1000000.ckpt",
        "step-999999.ckpt",
        "step-x.ckpt",
    ):  # the newest file is not the last
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        shutil.copyfile(weights.checkpoint_files(run)[0], tmp_path / "checkpoints" / name)
    assert weights.checkpoint_files(tmp_path)[0].name == "step-1000000.ckpt"


def test_weights_that_do_not_fit_the_model_are_rejected(run, typed, tmp_path):
    shutil.copytree(run, tmp_path / "r")
    config = tmp_path / "r" / "config.yaml"
    config.write_text(config.read_text().replace("channels: 8", "channels: 16"))
    status, _, error = typed("sample", f"run={tmp_path}/r")
    assert status == 2 and "do not fit the model" in error and "Traceback" not in error


def test_truncated_checkpoint_is_rejected(run, typed, tmp_path):
    shutil.copytree(run, tmp_path / "r")
    for file in (tmp_path / "r" / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:5000])
    status, _, error = typed("sample", f"run={tmp_path}/r")
    assert status == 2 and error.startswith("error: ") and ".ckpt cannot be read" in error


def test_label_all_gives_each_class_a_row(run, typed, tmp_path):
    assert (
        typed("sample", f"run={run}", "label=all", "count=20", f"hydra.run.dir={tmp_path}")[0] == 0
    )
    assert np.load(tmp_path / "samples.npz")["labels"].tolist() == [i // 2 for i in range(20)]
    width, height = Image.open(tmp_path / "grid.png").size
    assert height == pytest.approx(5 * width, rel=0.05), "ten rows of two"


def test_autoguidance_uses_another_run(run, typed, tmp_path):
    weaker = ["guidance=autoguidance", f"guidance.weak.run={run}", "count=4"]
    assert typed("sample", f"run={run}", "count=4", f"hydra.run.dir={tmp_path}/plain")[0] == 0
    assert typed("sample", f"run={run}", *weaker, f"hydra.run.dir={tmp_path}/same")[0] == 0
    assert (
        typed(
            "sample",
            f"run={run}",
            *weaker,
            "guidance.weak.weights=raw",
            "guidance.w=30",
            f"hydra.run.dir={tmp_path}/raw",
        )[0]
        == 0
    )
    plain, same, raw = (
        np.load(tmp_path / name / "samples.npz")["images"].astype(int)
        for name in ("plain", "same", "raw")
    )
    assert np.abs(plain - same).max() <= 1, "a model is not moved away from itself"
    assert np.abs(plain - raw).max() > 1
    assert typed("evaluate", f"run={run}", *weaker, "count=4", f"out={tmp_path}/e")[0] == 0
    guidance = json.loads((tmp_path / "e" / "metrics.json").read_text())["protocol"]["guidance"]
    assert guidance["name"] == "Autoguidance" and guidance["weak"] == f"{run} (ema)"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, typed):
    """Run of a classifier of ten steps."""
    folder = tmp_path_factory.mktemp("classifier")
    overrides = [
        "system=classifier",
        "trainer=debug",
        "logger=csv",
        "model.channels=8",
        "callbacks.losses.every=5",
    ]
    status, output, error = typed("train", *overrides, f"hydra.run.dir={folder}/r")
    assert status == 0, error
    (folder / "r" / "stdout").write_text(output)
    return folder / "r"


def test_classifier_reports_accuracy_by_quarter(classifier):
    metrics = json.loads((classifier / "metrics.json").read_text())
    quarters = [metrics[f"accuracy_q{q}"] for q in range(1, 5)]
    assert (
        min(quarters) <= metrics["accuracy"] <= max(quarters) and metrics["training"]["steps"] == 10
    )
    assert (
        "accuracy" in (classifier / "stdout").read_text()
        and "guidance.classifier.run=" in (classifier / "stdout").read_text()
    )
    assert "val/accuracy_q4" in (classifier / "metrics.csv").read_text()


def test_classifier_guides_unconditional_model(classifier, tiny, typed, tmp_path):
    overrides = [
        f"run={tiny('conditioner=none')}",
        "guidance=classifier",
        f"guidance.classifier.run={classifier}",
        "count=4",
        "label=three",
    ]
    samples = []
    for scale in (0, 30):
        out = f"hydra.run.dir={tmp_path}/{scale}"
        status, _, error = typed("sample", *overrides, f"guidance.scale={scale}", out)
        assert status == 0, error
        saved = np.load(tmp_path / str(scale) / "samples.npz")
        samples.append(saved["images"].astype(int))
        assert saved["labels"].tolist() == [3] * 4
    assert np.abs(samples[0] - samples[1]).max() > 1
    ddpm = ["sampler=ddpm", "sampler.steps=3", "guidance.form=mean", "guidance.at=mean"]
    assert typed("sample", *overrides, *ddpm, f"hydra.run.dir={tmp_path}/mean")[0] == 0
    status, _, error = typed("sample", *overrides, "guidance.form=mean")
    assert status == 2 and "guidance.form=mean" in error and "sampler=ddim" in error


@pytest.mark.parametrize(
    ("verb", "overrides", "message"),
    [
        ("sample", ["run=CLASSIFIER"], "is a classifier, not a diffusion model"),
        (
            "sample",
            ["run=RUN", "guidance=classifier", "guidance.classifier.run=RUN"],
            ", not a classifier",
        ),
        (
            "train",
            ["guidance=classifier", "guidance.classifier.run=CLASSIFIER", "schedule=linear"],
            "guidance.classifier was trained with another schedule",
        ),
        (
            "train",
            ["guidance=classifier", "guidance.classifier.run=CLASSIFIER", "data=synthetic"],
            "guidance.classifier was trained on data of shape",
        ),
        ("train", ["system=classifier", "callbacks=default"], "EMA is not for a classifier"),
        (
            "train",
            ["model=classifier"],
            "model is not a denoising network; classifier is for system=classifier",
        ),
        ("train", ["system=classifier", "model=autoencoder_kl"], "model is not a classifier"),
        (
            "train",
            ["system=classifier", "model=unet"],
            "model is not a classifier; try model=classifier",
        ),
        ("train", ["system=classifier", "data=toy", "model=mlp"], "model is not a classifier"),
        (
            "train",
            ["system=classifier", "data=toy", "model=classifier"],
            "must be that of images",
        ),
        ("train", ["system=classifier", "data=folder", "data.path=FOLDER"], "needs labels"),
    ],
)
def test_invalid_classifier_override_is_explained(
    verb, overrides, message, run, classifier, typed, tmp_path
):
    for i in range(20):
        Image.effect_noise((16, 16), 50 + i).convert("RGB").save(tmp_path / f"{i}.png")
    here = {
        "RUN": str(run),
        "CLASSIFIER": str(classifier),
        "FOLDER": f"{tmp_path} data.batch_size=4",
    }
    for name, path in here.items():
        overrides = [word.replace(name, path) for word in overrides]
    status, _, error = typed(verb, *" ".join(overrides).split(" "))
    assert status == 2 and error.startswith("error: ") and message in error


def test_unconditional_run_rejects_labels_and_guidance(tiny, typed, tmp_path):
    trained = f"run={tiny('conditioner=none')}"
    for wrong in ("label=3", "label=all", "guidance.w=2"):
        status, _, error = typed("sample", trained, wrong)
        assert status == 2 and error.startswith("error: ") and wrong in error
    assert typed("sample", trained, "count=2", f"hydra.run.dir={tmp_path}")[0] == 0


def one_step(tmp_path, *overrides):
    config = composed(*overrides, f"trainer.default_root_dir={tmp_path}", "trainer.max_steps=1")
    data = build(config, "data")
    system = build_system(config, data)
    before = [parameter.detach().clone() for parameter in system.parameters()]
    loggers = [*build(config, "logger").values()]
    trainer = build(
        config, "trainer", callbacks=[*build(config, "callbacks").values()], logger=loggers
    )
    trainer.fit(system, DataModule(data))
    moved = [not torch.equal(p, q) for p, q in zip(system.parameters(), before, strict=True)]
    assert any(moved) and all(torch.isfinite(p).all() for p in system.parameters())


def images(tmp_path):
    for i in range(6):
        Image.effect_noise((16, 16), 50 + i).convert("RGB").save(tmp_path / f"{i}.png")
    return f"data.path={tmp_path}"


SMALL = ("model.channels=8", "data.batch_size=4", "logger=csv", "callbacks=none")


MODELS = {*options("model")} - {"exact", "classifier", "autoencoder_kl", "autoencoder_vq"}
POINTS = ("gaussian_mixture", "toy")


def pairs():
    """Yield each (model, data) once; nightly unless one of the two is the plainest of its kind."""
    for model in sorted(MODELS):
        for data in sorted({*options("data")} - {*sets.FILES} | {"folder"}):
            if data in POINTS and not model.startswith("mlp"):
                continue  # points have no pixels to convolve; the error is tested above
            plain = model in ("mlp", "unet_small") or data == "digits"
            marks = [] if plain else [pytest.mark.nightly]
            yield pytest.param(model, data, id=f"{data}-{model}", marks=marks)


@pytest.mark.parametrize(("model", "data"), pairs())
def test_every_model_takes_a_step_on_every_data_set(model, data, tmp_path):
    extra = [images(tmp_path)] if data == "folder" else []
    if model in ("adm", "iddpm"):
        extra += ["model.channels=64", "model.blocks=1"]  # a tenth of the published size
    small = ["data.batch_size=4", "logger=csv", "callbacks=none"]
    one_step(tmp_path, f"model={model}", f"data={data}", *small, *extra)


OPTIONS = [
    (group.name, option)
    for group in sorted(CONFIGS.iterdir())
    if group.is_dir() and group.name != "hydra"
    for option in options(group.name)
    if (group.name, option)
    not in {
        ("trainer", "gpu"),
        ("trainer", "ddp"),
        ("trainer", "fsdp"),
        ("trainer", "slurm"),
        ("variance", "analytic"),
        ("guidance", "autoguidance"),
        ("objective", "distillation"),
        ("guidance", "classifier"),
        ("guidance", "inpainting"),
        ("guidance", "dps"),
        ("guidance", "pigdm"),
        ("callbacks", "classifier"),
        ("callbacks", "autoencoder"),
        ("codec", "autoencoder"),
    }
    and group.name not in ("model", "experiment", "ablation", "search", "metric")
]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_takes_a_step(group, option, tmp_path, monkeypatch, request):
    monkeypatch.setenv("WANDB_MODE", "offline")
    extra = {
        ("system", "diffusion"): ["callbacks=none"],
        ("callbacks", "default"): ["callbacks.fid.count=4", "sampler.steps=2"],
        ("callbacks", "points"): ["data=toy", "callbacks.ode_nll.count=4", "sampler.steps=2"],
        ("schedule", "flow"): ["prediction=velocity"],
        ("variance", "learned_range"): ["objective=hybrid"],
        ("variance", "learned_diagonal"): ["objective=vlb"],
        ("data", "gaussian_mixture"): ["data.batch_size=4"],
        ("data", "toy"): ["data.batch_size=4", "objective=hybrid", "variance=learned_range"],
    }.get((group, option), [])
    if group == "data" and option in sets.FILES:
        extra = sets.overrides(option, tmp_path, monkeypatch)
    if option == "pretrained_text":
        extra = [f"conditioner.model={request.getfixturevalue('pretrained')}"]
    small = [
        word for word in SMALL if group not in ("callbacks", "system") or word != "callbacks=none"
    ]
    one_step(tmp_path, *small, f"{group}={option}", *extra)
    if (group, option) == ("logger", "tensorboard"):
        assert list(tmp_path.glob("tensorboard/**/events*"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_trains_samples_and_evaluates(typed, tmp_path):
    steps = [argument for argument in FAST if argument != "trainer=debug"]
    assert (
        typed(
            "train", *steps, "trainer=gpu", "trainer.max_steps=10", f"hydra.run.dir={tmp_path}/r"
        )[0]
        == 0
    )
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["fid"] > 0
    assert typed("evaluate", f"run={tmp_path}/r", "count=20")[0] == 0


def test_wandb_logs_offline(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *FAST,
        "logger=wandb",
        f"hydra.run.dir={tmp_path}/r",
    ]
    process = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert process.returncode == 0, process.stderr
    assert "wandb login" in process.stdout
    assert f"{ROOT}/sample.py run=r count" in process.stdout
    (record,) = (tmp_path / "r").glob("wandb/offline-run-*")
    inspect = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--summary",
        "--json",
        str(record),
    ]
    inspection = json.loads(
        subprocess.run(inspect, capture_output=True, text=True, check=True).stdout
    )
    keys = {
        "train/loss",
        "train/loss_q1",
        "train/loss_q4",
        "lr",
        "images_per_second",
        "val/loss",
        "eval/fid",
        "eval/class_accuracy",
        "samples",
        "denoising",
    }
    assert keys <= inspection["summary"].keys()
    assert inspection["config"]["schedule"]["steps"] == 1000


def test_sweep_runs_every_job(typed, tmp_path):
    choices = ["schedule=linear,cosine", "variance=beta,beta_tilde", "jobs=2"]
    short = [word for word in FAST if not word.startswith("callbacks.")]
    short += ["callbacks=none", "trainer.max_steps=1"]
    status, _, error = typed("train", "-m", *short, *choices, f"hydra.sweep.dir={tmp_path}")
    assert status == 0, error
    jobs = [file.parent.name.rpartition("-")[0] for file in tmp_path.glob("*/metrics.json")]
    assert sorted(jobs) == [
        f"schedule-{schedule}_variance-{variance}"
        for schedule in ("cosine", "linear")
        for variance in ("beta", "beta_tilde")
    ]


def test_sweep_continues_after_a_rejected_job(typed, tmp_path):
    status, output, _ = typed(
        "train", "-m", *FAST, "schedule.steps=0,10", "jobs=2", f"hydra.sweep.dir={tmp_path}"
    )
    assert status == 1 and "error: schedule.steps" in output
    (file,) = tmp_path.glob("*/metrics.json")
    assert file.parent.name.startswith("schedule.steps-10-")


def test_training_skips_fid_for_unsupported_images(typed, tmp_path):
    small = ["data=synthetic", "extractor=digits", "data.resolution=8"]
    status, output, _ = typed("train", *FAST, *small, f"hydra.run.dir={tmp_path}/r")
    assert (
        status == 0 and "FID will not be measured: extractor=digits takes images of 1x8x8" in output
    )
    assert "fid" not in json.loads((tmp_path / "r" / "metrics.json").read_text())
    status, _, error = typed("evaluate", f"run={tmp_path}/r", "count=20")
    assert status == 2 and "extractor=digits takes images of 1x8x8 (got 3x8x8)" in error


def test_yaml_booleans_are_accepted():
    config = composed("schedule=linear", "schedule.rescale=no", "schedule.steps=500")
    assert build(config, "schedule").alpha[-1] == pytest.approx(0.0797, rel=0.01)
