"""The Python interface: the numbers, choices and messages of the command line."""

import inspect
import json
import os
import subprocess
import sys
import traceback
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import FAST, ROOT
from omegaconf import OmegaConf
from PIL import Image

import ddpm_lab
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.systems.diffusion import Diffusion
from ddpm_lab.utils.safe_load import load_tensors


@pytest.fixture(scope="module")
def run(tiny):
    return tiny()


@pytest.fixture(scope="module")
def model(run):
    return ddpm_lab.load(run)


@pytest.mark.slow
def test_samples_equal_those_of_the_command(run, model, typed, tmp_path):
    overrides = ("count=6", "seed=3", "sampler=ddim", "sampler.steps=5", "guidance.w=2", "label=3")
    status, _, error = typed("sample", f"run={run}", *overrides, f"hydra.run.dir={tmp_path}/c")
    assert status == 0, error
    samples = model.sample(6, seed=3, sampler="ddim", steps=5, guidance=2.0, label=3)
    saved = np.load(tmp_path / "c" / "samples.npz")
    assert all(np.array_equal(saved[name], value) for name, value in samples.arrays().items())
    files = samples.save(tmp_path / "p")
    assert set(files) == {"grid", "images", "arrays"}
    for file in ("grid.png", "samples.npz", "images/000005.png"):
        assert (tmp_path / "c" / file).read_bytes() == (tmp_path / "p" / file).read_bytes()
    # Options of one call do not change the model.
    assert torch.equal(model.sample(2).tensor, ddpm_lab.load(run).sample(2).tensor)
    raw = model.sample(2, overrides=["weights=raw"]).tensor
    assert torch.equal(raw, ddpm_lab.load(run, "weights=raw").sample(2).tensor)


@pytest.mark.slow
def test_latents_equal_those_of_the_command(run, model, typed, tmp_path):
    steps = ("sampler=ddim", "sampler.steps=5")
    out = tmp_path / "x"
    command = ("mode=encode", "count=3", *steps, f"hydra.run.dir={out}")
    assert typed("sample", f"run={run}", *command)[0] == 0
    saved = np.load(out / "x_T.npz")["x_T"]
    images = ddpm_lab.Samples(*model.data.test.select(slice(3)))
    x_T = model.encode(images, overrides=steps)
    assert np.array_equal(x_T.numpy(), saved)
    command = ("mode=decode", f"input={out}/x_T.npz", *steps, f"hydra.run.dir={tmp_path}/d")
    assert typed("sample", f"run={run}", *command)[0] == 0
    decoded = model.decode(x_T, label=images.labels, overrides=steps)
    assert np.array_equal(decoded.arrays()["images"], np.load(tmp_path / "d/samples.npz")["images"])


@pytest.mark.slow
def test_interpolations_equal_those_of_the_command(run, model, typed, tmp_path):
    overrides = ("sampler=ddim", "sampler.steps=5", "sampler.eta=0")
    command = ("mode=interpolate", "count=2", "frames=3", "seed=1", *overrides)
    assert typed("sample", f"run={run}", *command, f"hydra.run.dir={tmp_path}")[0] == 0
    ends = PerSampleGenerator(1, range(4))(torch.empty(4, *model.shape))
    rows = model.interpolate(ends[::2], ends[1::2], 3, overrides=overrides)
    saved = np.load(tmp_path / "samples.npz")
    assert all(np.array_equal(saved[name], value) for name, value in rows.arrays().items())
    # Rows between images begin and end with their reconstructions.
    images = model.sample(4, seed=5)
    rows = model.interpolate(images[:2], images[2:], 3, overrides=overrides)
    x_T = model.encode(images[:2], overrides=overrides)
    first = model.decode(x_T, label=images.labels[:2], overrides=overrides)
    difference = rows.tensor[::3].int() - first.tensor.int()
    assert difference.abs().max() <= 1 and len(rows) == 6


@pytest.mark.slow
def test_metrics_equal_those_of_the_command(run, model, typed, tmp_path):
    overrides = ("count=20", "nll.count=6", "nll.steps=4", "sampler=ddim", "sampler.steps=3")
    command = ("metrics=[nll,fid,kid]", *overrides, f"hydra.run.dir={tmp_path}")
    assert typed("evaluate", f"run={run}", *command)[0] == 0
    expected = json.loads((tmp_path / "metrics.json").read_text())
    actual = json.loads(json.dumps(model.evaluate(["nll", "fid", "kid"], overrides)))
    assert actual == {key: expected[key] for key in expected if key not in ("run", "run_id")}
    images = ddpm_lab.Samples(*model.data.test.select(slice(6)))
    bits = model.bits_per_dim(images, ["nll.steps=4"])
    assert bits.shape == (6,)
    assert bits.mean().item() == pytest.approx(expected["nll"]["bits_per_dim"], rel=1e-12)


@pytest.mark.slow
def test_training_equals_that_of_the_command(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ddpm_lab.compose(*FAST)
    folder = ddpm_lab.train(config)
    assert folder.parts[0] == "runs" and (folder / "config.yaml").is_file()
    one, two = (json.loads((path / "metrics.json").read_text()) for path in (folder, run))
    assert one["fid"] == two["fid"] and one["training"]["val_loss"] == two["training"]["val_loss"]
    a, b = (ddpm_lab.load(path).denoiser.state_dict() for path in (folder, run))
    assert all(torch.equal(a[name], b[name]) for name in b)
    with pytest.raises(ddpm_lab.UserError, match="max_steps=10 is reached"):
        ddpm_lab.train(config, folder)
    config.trainer.max_steps = 12
    assert ddpm_lab.train(config, folder) == folder
    assert json.loads((folder / "metrics.json").read_text())["training"]["steps"] == 12


def without_schedule():
    config = ddpm_lab.compose(*FAST)
    del config.schedule
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: ddpm_lab.load("nowhere"), "run=nowhere is not a run directory"),
        (lambda model: ddpm_lab.load(model.directory, "sampler.etta=1"), "did you mean eta?"),
        (lambda model: ddpm_lab.load([]), "run is an empty list"),
        (lambda model: ddpm_lab.load(model.directory, "count=3"), "count is not an override in"),
        (lambda model: model.sample(2, overrides=["seed=3"]), "seed is not an override in Python"),
        (lambda model: model.evaluate(overrides=["sweep=guidance.w"]), "sweep is not an override"),
        (lambda model: model.sample(2, label="seventy"), "label=seventy is not a label"),
        (
            lambda model: model.sample(2, label=torch.tensor([10])),
            r"indices in 0\.\.9 \(got \[10\]",
        ),
        (lambda model: model.sample(2, text="a"), "text=a: this model was trained without texts"),
        (lambda model: model.sample(2, label=1, text="a"), "both set the condition"),
        (lambda model: model.sample(0), r"count must be a whole number of at least 1 \(got 0\)"),
        (lambda model: model.sample(2.5), "count must be a whole number"),
        (lambda model: model.sample(2, batch_size=0), "batch_size must be a whole number"),
        (lambda model: model.sample(2, seed=-1), "^seed must be a whole number of at least 0"),
        (lambda model: model.sample(2, seed=None), r"^seed must be .* \(got None\)"),
        (lambda model: model.sample(2, seed="a"), r"^seed must be .* \(got 'a'\)"),
        (lambda model: model.sample("4"), r"^count must be .* \(got '4'\)"),
        (lambda model: model.sample(2, steps=0), "^steps must be a whole number of at least 1"),
        (lambda model: model.sample(2, steps=1001), r"sampler.steps must be in 1\.\.1000"),
        (lambda model: model.sample(2, label=2.5), "label must be a class by name or number"),
        (lambda model: model.sample(2, label=range(9, 12)), "label=10 is not a label"),
        (lambda model: model.sample(2, text=3), "text must be a text"),
        (lambda model: model.sample(2, sampler=ddpm_lab.DDIM), r"try .*ddpm_lab.Heun\(steps=25\)"),
        (lambda model: model.sample(2, sampler=3), "sampler must be a choice or a Sampler"),
        (lambda model: model.sample(2, sampler=[1]), "sampler must be a choice or a Sampler"),
        (
            lambda model: model.sample(2, sampler=ddpm_lab.DDIM(steps=5), steps=10),
            "sampler.steps=10: the argument sampler= is an object",
        ),
        (
            lambda model: model.sample(2, sampler=ddpm_lab.DDIM(), overrides=["sampler.eta=1"]),
            "sampler.eta=1: the argument sampler= is an object",
        ),
        (
            lambda model: model.sample(2, steps=5, overrides=["sampler.steps=7"]),
            "sampler.steps=7: an argument sets sampler.steps, too",
        ),
        (
            lambda model: model.sample(2, sampler="ddim", overrides=["sampler=ddpm"]),
            "sampler=ddpm: an argument sets sampler, too",
        ),
        (
            lambda model: model.sample(2, guidance=1, overrides=["++guidance.w=2"]),
            "guidance.w=2: an argument sets guidance.w, too",
        ),
        (lambda model: model.sample(2, guidance=True), "guidance must be a strength or a choice"),
        (lambda model: model.sample(2, guidance="autoguidance"), "guidance.weak.run must be given"),
        (lambda model: model.sample(2, overrides="sampler.eta=0.5"), "overrides must be a list"),
        (lambda model: [*model.trajectory(2, steps=5, overrides=["sampler.steps=7"])], "too"),
        (lambda model: model.sample(2, guidance=-1), "guidance.w must be at least 0"),
        (lambda model: model.sample(2, guidance="classifer_free"), "did you mean classifier_free?"),
        (lambda model: model.sample(2, sampler="ddmi"), "sampler=ddmi is not a choice"),
        (lambda model: model.sample(2, sampler="heun", overrides=["sampler.eta=1"]), "no key eta"),
        (lambda model: model.sample(2, overrides=["schedule=linear"]), "no key schedule"),
        (lambda model: model.sample(2, images=model.sample(2)), "for a model that upsamples"),
        (lambda model: model.encode(torch.zeros(2, 1, 8, 8)), r"\(N, 1, 8, 8\) uint8"),
        (lambda model: model.encode(None), "images must be samples, or a tensor"),
        (lambda model: model.encode("x"), "images must be samples, or a tensor"),
        (lambda model: model.encode(torch.zeros(0, 1, 8, 8).byte()), r"got \(0, 1, 8, 8\)"),
        (lambda model: model.encode(model.sample(4), label=[1, 2]), "2 classes for 4 samples"),
        (
            lambda model: model.decode(torch.zeros(2, 3, 8, 8)),
            r"x_T must be \(N, 1, 8, 8\) float32",
        ),
        (lambda model: model.decode(torch.zeros(2, 1, 8, 8).double()), "float32 .*float64"),
        (lambda model: model.decode(torch.zeros(2, 1, 8, 8).byte()), "float32 .*uint8"),
        (lambda model: model.decode(torch.full((2, 1, 8, 8), torch.nan)), "x_T has non-finite"),
        (lambda model: model.decode(model.sample(2)), "x_T must be a tensor"),
        (
            lambda model: model.decode(torch.zeros(2, 1, 8, 8), label=torch.arange(4)),
            "label has 4 classes for 2 samples",
        ),
        (
            lambda model: model.interpolate(model.sample(3), model.sample(3), label=[1, 2]),
            "label has 2 classes for 3 samples",
        ),
        (lambda model: model.bits_per_dim(model.sample(2), label=[1] * 3), "3 classes for 2"),
        (lambda model: model.to("gpu"), "device=gpu is not available"),
        (lambda model: model.to("cuda:99"), "device=cuda:99 is not available"),
        (lambda model: model.to(None), "device must be a device"),
        (lambda model: model.sample(2).grid(columns=0), "columns must be a whole number"),
        (lambda model: model.sample(2).grid(2.5), "columns must be a whole number"),
        (lambda model: model.interpolate(model.sample(1), model.sample(1), 0), "frames must be"),
        (
            lambda model: model.interpolate(model.sample(1), model.sample(2)),
            "start has 1 rows, but end has 2",
        ),
        (lambda model: model.encode(torch.zeros(2, 1, 9, 9).byte()), r"\(N, 1, 8, 8\) uint8"),
        (lambda model: model.encode(torch.zeros(2, 1, 8, 8).byte()), "has no labels"),
        (lambda model: model.bits_per_dim(torch.zeros(2, 1, 8, 8).byte()), "has no labels"),
        (lambda model: model.evaluate(["fidd"]), "metrics="),
        (lambda model: model.evaluate("fid"), r"metrics must be a list .* try metrics=\[\"fid\"\]"),
        (lambda model: ddpm_lab.load(None), "run must be the directory of a run"),
        (
            lambda model: ddpm_lab.load(model.directory, ["sampler=ddim"]),
            "overrides must be texts .*pass words, not a list",
        ),
        (
            lambda model: ddpm_lab.load(model.directory, "guidance=classifier"),
            "guidance.classifier.run must be given",
        ),
        (lambda model: ddpm_lab.compose(["schedule=linear"]), "pass words, not a list"),
        (lambda model: ddpm_lab.train({"seed": 0}), r"config must be .* try train\(compose\("),
        (lambda model: ddpm_lab.train("schedule=linear"), "config must be the return value"),
        (lambda model: ddpm_lab.train(without_schedule()), "schedule is not in the configuration"),
        (lambda model: ddpm_lab.compose("schedule=cosin"), "did you mean cosine?"),
        (lambda model: ddpm_lab.compose("schedule"), "schedule"),
        (lambda model: ddpm_lab.compose("ablation=ddim_table1"), "is for the command line"),
        (lambda model: ddpm_lab.compose("-m", "seed=0,1"), "-m is for the command line"),
        (lambda model: ddpm_lab.compose("seed=0,1"), "seed=0,1 has several values"),
        (
            lambda model: model.evaluate(overrides=["data.path=elsewhere"]),
            "data.path=elsewhere: data has no key path",
        ),
        (lambda model: ddpm_lab.compose("trainer.max_stepz=1"), "no key max_stepz"),
        (lambda model: ddpm_lab.train(ddpm_lab.compose("optimizer.lr=-1")), "optimizer.lr must be"),
        (lambda model: ddpm_lab.train(ddpm_lab.compose(*FAST), ROOT), "is not the folder of a"),
        (
            lambda model: Diffusion.load_from_checkpoint("runs/a/checkpoints/step-000010.ckpt"),
            r"try ddpm_lab.load\('runs/a'\)",
        ),
    ],
)
def test_mistakes_raise_the_message_of_the_command(model, call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ddpm_lab.UserError, match=message) as caught:
        call(model)
    assert str(caught.value).count("\n") <= 1 and [*tmp_path.iterdir()] == []


def test_mistakes_have_the_tracebacks_of_libraries_for_debugging_only(monkeypatch):
    with pytest.raises(ddpm_lab.UserError) as caught:
        ddpm_lab.compose("schedule=cosin")
    lines = "".join(traceback.format_exception(caught.value)).splitlines()
    assert len(lines) < 12 and "hydra" not in "".join(lines)
    monkeypatch.setenv("DDPM_LAB_DEBUG", "1")
    with pytest.raises(ddpm_lab.UserError) as caught:
        ddpm_lab.compose("schedule=cosin")
    assert type(caught.value.__cause__).__module__.startswith("hydra")


@pytest.mark.slow
def test_limits_of_the_machine_raise_resource_errors(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ddpm_lab.ResourceError, match="file cannot be created"):
        model.sample(2).save(tmp_path / "file")
    if not torch.cuda.is_available():
        with pytest.raises(ddpm_lab.ResourceError, match="no GPU; try trainer=cpu"):
            ddpm_lab.train(ddpm_lab.compose(*FAST, "trainer.accelerator=gpu"), tmp_path / "run")
    assert issubclass(ddpm_lab.ResourceError, ddpm_lab.CLIError)


@pytest.mark.slow
def test_numbers_and_arrays_of_numpy_are_arguments(model):
    expected = model.sample(3, label=[1, 2, 1], seed=4, steps=3).tensor
    labels = np.array([1, 2])
    samples = model.sample(np.int64(3), label=labels, seed=np.int32(4), steps=np.int64(3))
    assert torch.equal(samples.tensor, expected)
    for label in ((1, 2), range(1, 3), [np.int64(1), "two"], np.array(["one", "two"])):
        assert torch.equal(model.sample(3, label=label, seed=4, steps=3).tensor, expected)
    images = ddpm_lab.Samples(expected.numpy(), np.array([1, 2, 1]))
    x_T = model.encode(images, steps=3)
    assert torch.equal(model.encode(expected.numpy(), label=np.array([1, 2, 1]), steps=3), x_T)
    one = model.decode(x_T.numpy(), label=1, steps=3)
    assert torch.equal(model.decode(x_T, label=[1, 1, 1], steps=3).tensor, one.tensor)
    bits = model.bits_per_dim(images, ["nll.steps=3"])
    assert torch.equal(model.bits_per_dim(expected, ["nll.steps=3"], label=[1, 2, 1]), bits)
    assert not torch.equal(model.bits_per_dim(expected, ["nll.steps=3"], label=0), bits)


@pytest.mark.slow
def test_unknown_arguments_raise_type_errors(model):
    with pytest.raises(TypeError, match=r"Model.encode\(\) got .* argument 'stepz'"):
        model.encode(model.sample(1), stepz=3)
    with pytest.raises(TypeError, match=r"Model.sample\(\) too many positional"):
        model.sample(2, 3)


@pytest.mark.slow
def test_models_without_classes_have_no_class_names(model, tiny):
    assert len(model.class_names) == 10
    assert ddpm_lab.load(tiny("conditioner=none")).class_names is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda parts: ddpm_lab.DDIM(spacing="linear"), "spacing=linear is not one of uniform"),
        (lambda parts: ddpm_lab.DDIM(steps=-1), "steps must be at least 1"),
        (lambda parts: ddpm_lab.DDIM().sample(parts["plain"], (0, 2)), "at least 1"),
        (
            lambda parts: ddpm_lab.DDIM().sample(parts["plain"], (2, 2), labels(0, 1)),
            "this denoiser has no classes",
        ),
        (lambda parts: ddpm_lab.DDIM().sample(parts["labels"], (2, 2)), "cond is empty"),
        (
            lambda parts: ddpm_lab.DDIM().sample(parts["labels"], (2, 2), labels(0, 7)),
            r"labels must be in 0\.\.2 \(got 0\.\.7\)",
        ),
        (
            lambda parts: ddpm_lab.DDIM().sample(parts["labels"], (2, 2), labels(0)),
            "cond must have 2 rows",
        ),
        (lambda parts: parts["plain"].loss(torch.zeros(2, 2).byte()), "x0 must be numbers"),
        (lambda parts: parts["plain"].loss(torch.zeros(2, 2), labels(0, 1)), "no classes"),
        (lambda parts: parts["labels"].loss(torch.zeros(2, 2)), "cond is empty"),
        (lambda parts: parts["labels"].loss(torch.zeros(2, 2), labels(3, 0)), "labels must be in"),
        (lambda parts: ddpm_lab.Samples(torch.zeros(2, 1, 8, 8)), "samples must be images"),
        (lambda parts: ddpm_lab.Samples(torch.zeros(2)), "samples must be images"),
        (lambda parts: ddpm_lab.Samples("x"), "tensor must be a tensor"),
        (
            lambda parts: ddpm_lab.Samples(torch.zeros(2, 1, 8, 8).byte(), torch.arange(3)),
            r"labels must be \(2,\) int64 .*\(3,\)",
        ),
    ],
)
def test_mistakes_with_parts_raise_value_errors(call, message):
    process = ddpm_lab.ForwardProcess(ddpm_lab.schedules.cosine(10))
    conditioner = ddpm_lab.Label(ddpm_lab.DataSpec((2,), classes=3))
    parts = {
        "plain": ddpm_lab.Denoiser(ddpm_lab.MLP((2,), channels=8), process),
        "labels": ddpm_lab.Denoiser(
            ddpm_lab.MLP((2,), channels=8, classes=3), process, conditioner=conditioner
        ),
    }
    with pytest.raises(ValueError, match=message):
        call(parts)


def labels(*numbers):
    return ddpm_lab.Condition(torch.tensor(numbers))


def test_every_name_can_be_the_first_that_is_used():
    code = """
import sys
from importlib import import_module

names = import_module("ddpm_lab").__all__
for name in [*names, "*"]:
    for module in [module for module in sys.modules if module.partition(".")[0] == "ddpm_lab"]:
        del sys.modules[module]
    exec(f"from ddpm_lab import {name}")
assert len(names) > 30 and globals().keys() >= {*names}
"""
    subprocess.check_call([sys.executable, "-c", code])


def test_own_training_loop_learns_its_data():
    means = torch.tensor([[0.7, 0.0], [-0.7, 0.3], [0.0, -0.7]])
    denoiser = ddpm_lab.Denoiser(
        ddpm_lab.MLP((2,), channels=64, classes=3),
        ddpm_lab.ForwardProcess(ddpm_lab.schedules.cosine(50)),
        conditioner=ddpm_lab.Label(ddpm_lab.DataSpec((2,), classes=3)),
    )
    ema = ddpm_lab.EMAModel(denoiser, decay=0.99)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    for _ in range(600):
        label = torch.randint(3, (256,))
        x0 = means[label] + 0.05 * torch.randn(256, 2)
        optimizer.zero_grad()
        denoiser.loss(x0, ddpm_lab.Condition(label)).backward()
        optimizer.step()
        ema.update()
    labels = torch.arange(600) % 3
    sampler = ddpm_lab.DDIM(steps=25)
    samples = sampler.sample(ema.average, (600, 2), ddpm_lab.Condition(labels), seed=0)
    for label in range(3):
        rows = samples[labels == label]
        torch.testing.assert_close(rows.mean(0), means[label], atol=0.04, rtol=0)
        assert rows.std(0).mean() < 0.15
    guided = ddpm_lab.ClassifierFreeGuidance(ema.average, w=1.0)
    again = sampler.sample(guided, (2, 2), ddpm_lab.Condition(labels[:2]), seed=0)
    assert torch.cdist(again, means).argmin(1).tolist() == [0, 1]
    shorter = sampler.sample(ema.average, (2, 2), ddpm_lab.Condition(labels[:2]), seed=0)
    torch.testing.assert_close(shorter, samples[:2])  # independent of the batch


def test_samples_of_an_exact_denoiser_have_the_distribution_of_the_data():
    mixture = ddpm_lab.Mixture(
        torch.tensor([[0.6], [-0.6]]).double(), torch.tensor([0.25, 0.75]).double(), 0.1, None
    )
    process = ddpm_lab.ForwardProcess(ddpm_lab.schedules.cosine(50))
    exact = ddpm_lab.MixtureDenoiser(process, ddpm_lab.variances.BetaTilde(), mixture)
    samples = ddpm_lab.DDPM().sample(exact, (2000, 1), seed=0)
    assert (samples > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert samples[samples > 0].std().item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.slow
def test_trajectories_end_in_the_samples(run, model):
    choices = {"sampler": "ddim", "steps": 5, "guidance": 2.0}
    steps = [*model.trajectory(3, label=3, seed=1, **choices)]
    assert len(steps) == 6
    assert steps[0][0] == 1000 and steps[-1][0] == 0
    _, x_0, estimate = steps[-1]
    samples = model.sample(3, label=3, seed=1, **choices)
    assert torch.equal(ddpm_lab.Samples.from_x0(x_0).tensor, samples.tensor)
    assert torch.equal(x_0, estimate)
    # DDIM without noise: x_s follows from x_t and the estimate of x_0.
    process = model.denoiser.process
    for (t, x_t, x0), (s, x_s, _) in pairwise(steps):
        expected = process.ddim_update(x_t, x0, torch.tensor(t), torch.tensor(s))
        torch.testing.assert_close(x_s, expected)
        assert x0.abs().max() <= 1
    with pytest.raises(ddpm_lab.UserError, match="count must be"):
        next(model.trajectory(0))


@pytest.mark.slow
def test_shared_folders_equal_those_of_the_command(run, model, tmp_path, capsys):
    folder = ddpm_lab.share(run, tmp_path / "shared")
    assert torch.equal(ddpm_lab.load(folder).sample(2).tensor, model.sample(2).tensor)
    subprocess.check_call(
        [sys.executable, str(ROOT / "share.py"), str(run), str(tmp_path / "typed")],
        stdout=subprocess.DEVNULL,
    )
    for file in ("config.yaml", "run.json"):
        assert (folder / file).read_bytes() == (tmp_path / "typed" / file).read_bytes()
    # The order of the metadata in a safetensors file is random.
    files = [path / "weights.safetensors" for path in (folder, tmp_path / "typed")]
    (one, metadata), (other, same_metadata) = map(load_tensors, files)
    assert metadata == same_metadata and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ddpm_lab.UserError, match="exists, and nothing is overwritten"):
        ddpm_lab.share(run, folder)


def test_samples_index_and_show():
    pixels, labels = torch.arange(5 * 192).view(5, 3, 8, 8).byte(), torch.arange(5)
    samples = ddpm_lab.Samples(pixels, labels)
    assert len(samples) == 5 and repr(samples) == "Samples(5 images of 3x8x8)"
    assert [sample.labels.item() for sample in samples] == [0, 1, 2, 3, 4]
    for index in (5, -6, np.int64(5)):
        with pytest.raises(IndexError, match="out of range for 5 samples"):
            samples[index]
    assert samples[-5].labels.tolist() == samples[np.int64(0)].labels.tolist() == [0]
    assert len(samples[1]) == 1 and samples[-1].labels.tolist() == [4]
    assert samples[1:3].labels.tolist() == [1, 2] and samples[labels > 2].labels.tolist() == [3, 4]
    assert samples.x0.min() >= -1 and samples.x0.max() <= 1
    assert samples.grid(5).size[0] > 5 * 64 and samples._repr_png_()[1:4] == b"PNG"
    assert torch.equal(ddpm_lab.Samples.from_x0(samples.x0, labels).tensor, pixels)
    points = ddpm_lab.Samples.from_x0(torch.randn(5, 2))
    assert repr(points) == "Samples(5 points of 2)" and points._repr_png_()[1:4] == b"PNG"


def test_public_names_have_docstrings():
    assert sorted(ddpm_lab.__all__) == ddpm_lab.__all__
    for name in ddpm_lab.__all__:
        value = getattr(ddpm_lab, name)
        assert value.__doc__, name
        if inspect.isclass(value) or isinstance(value, ModuleType):
            own = [
                member
                for key, member in vars(value).items()
                if not key.startswith("_")
                and inspect.isroutine(member)
                and member.__module__ == getattr(value, "__module__", value.__name__)
            ]
            assert [
                m.__qualname__ for m in own if not inspect.getdoc(m) and m.__name__ != "forward"
            ] == []


def test_importing_the_package_imports_no_library():
    code = "import sys, ddpm_lab; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert {"torch", "hydra", "numpy"}.isdisjoint(modules)


@pytest.mark.nightly
def test_a_typed_script_passes_mypy(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(
        """import ddpm_lab
from ddpm_lab.diffusion.samplers import DDIM

model = ddpm_lab.load("run")
samples: ddpm_lab.Samples = model.sample(2, label=3)
bits: float = model.bits_per_dim(samples).mean().item()
sampler: ddpm_lab.Sampler = DDIM(steps=5)
model.sample("two")  # type: ignore[arg-type]
"""
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "script.py"]
    env = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stdout


def test_composed_configurations_are_those_of_the_command():
    config = ddpm_lab.compose("schedule=linear", "trainer.max_steps=7")
    assert config.trainer.max_steps == 7 and "hydra" not in config
    assert config.schedule._target_.endswith("schedules.linear") and OmegaConf.is_config(config)


@pytest.mark.slow
def test_metrics_are_of_the_data_of_the_overrides(tiny, tmp_path):
    for name, low, high in (("dark", 0, 64), ("bright", 192, 256)):
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = torch.randint(low, high, (8, 8)).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    options = ("data=folder", "conditioner=none", "extractor=none", "data.batch_size=4")
    model = ddpm_lab.load(tiny(*options, f"data.path={tmp_path}/dark"))
    dark, bright, again = (
        model.evaluate(["nll"], ["nll.steps=3", *words])["nll"]["bits_per_dim"]
        for words in ((), (f"data.path={tmp_path}/bright",), (f"data.path={tmp_path}/dark",))
    )
    assert dark == again != bright
