"""A new run from the weights of another: other data, labels, outputs and resolutions."""

import json
from pathlib import Path

import pytest
import torch
from conftest import FAST
from PIL import Image

from ddpm_lab.cli.share import share
from ddpm_lab.utils.safe_load import list_checkpoints

STILL = ("optimizer.lr=1e-12", "optimizer.weight_decay=0", "trainer.max_steps=1")
"""Overrides of a run that keeps the weights that it starts from"""


def checkpoint(run):
    return torch.load(list_checkpoints(Path(run) / "checkpoints")[0], weights_only=True)


def averages(content):
    average = content["callbacks"]["EMA"]["average"]
    return {f"denoiser.{name}": value for name, value in average.items()}


@pytest.fixture
def start(typed, tiny, tmp_path):
    """Function that starts a run from one on digits; it returns its checkpoint and the output."""
    source = tiny("optimizer.lr=1e-2")

    def call(*overrides, run=source):
        folder = tmp_path / f"run-{len([*tmp_path.iterdir()])}"
        status, out, error = typed(
            "train", *FAST, *STILL, f"init={run}", *overrides, f"hydra.run.dir={folder}"
        )
        assert status == 0, error
        return checkpoint(folder), out

    call.source = source
    return call


def images(folder, classes, side=8):
    for i in range(24):
        part = folder / f"class{i % classes}"
        part.mkdir(parents=True, exist_ok=True)
        Image.new("L", (side, side), 10 * i).save(part / f"{i}.png")
    return [f"data.path={folder}", "data=folder", "conditioner=label", "extractor=none"]


@pytest.mark.parametrize("kind", ["ema", "raw"])
def test_averaged_or_raw_weights_start_weights_and_average(start, kind):
    source = checkpoint(start.source)
    expected = averages(source) if kind == "ema" else source["state_dict"]
    content, out = start(*([f"init_weights={kind}"] if kind == "raw" else []))
    assert f"starting from the {'averaged' if kind == 'ema' else 'raw'} weights of step 10" in out
    assert "tensors;" not in out and "new:" not in out
    other = source["state_dict"] if kind == "ema" else averages(source)
    names = [name for name in expected if name.startswith("denoiser.network")]
    for state in (content["state_dict"], averages(content)):
        assert all(torch.allclose(state[name], expected[name], atol=1e-7) for name in names)
        assert not all(torch.allclose(state[name], other[name], atol=1e-7) for name in names)
    assert content["callbacks"]["EMA"]["updates"] == 1 and content["global_step"] == 1


def test_labels_of_another_number_are_replaced_where_asked(start, typed, tmp_path):
    data = images(tmp_path / "three", 3)
    name = "denoiser.network.encoder.label.table.weight"
    refused = typed(
        "train", *FAST, *data, f"init={start.source}", f"hydra.run.dir={tmp_path}/refused"
    )
    assert refused[0] == 2 and refused[2].count("\n") == 1
    assert f"1 of 90 tensors do not fit, such as {name}: 10x32 there, 3x32 here; try" in refused[2]
    assert "try init_replace=[label] to train these anew" in refused[2]
    assert not (tmp_path / "refused").exists()
    content, out = start(*data, "init_replace=[label.table]")
    assert f"89 of 90 tensors; new: {name}" in out
    source = averages(checkpoint(start.source))
    state = content["state_dict"]
    assert state[name].shape == (3, 32)
    assert all(
        torch.allclose(state[key], source[key], atol=1e-7)
        for key in state
        if key != name and key in source
    )


def test_conditional_and_unconditional_runs_start_from_each_other(start, tiny):
    content, out = start("conditioner=none", "init_replace=[label]")
    assert "88 of 88 tensors; not used: denoiser.network.encoder.label.null, denoiser" in out
    assert not [name for name in content["state_dict"] if "label" in name]
    content, out = start("init_replace=[label]", run=tiny("conditioner=none"))
    assert "88 of 90 tensors; new: denoiser.network.encoder.label.null, denoiser" in out


def test_output_of_another_prediction_is_replaced_where_asked(start, typed, tmp_path):
    words = ("prediction=v", f"init={start.source}", f"hydra.run.dir={tmp_path}/refused")
    status, _, error = typed("train", *FAST, *words)
    assert status == 2 and "prediction=eps, but this run has v; try prediction=eps, or" in error
    content, out = start("prediction=v", "init_replace=[last]")
    last = [name for name in content["state_dict"] if ".last." in name]
    assert f"{90 - len(last)} of 90 tensors; new: {', '.join(sorted(last))}" in out
    output = content["state_dict"]["denoiser.network.last.2.weight"]
    assert output.abs().max() < 1e-9, "a new output starts at zero"


def test_data_resolution_and_dropout_may_differ(start, tmp_path):
    data = images(tmp_path / "large", 10, side=12)
    content, out = start(*data, "conditioner.dropout=0.3", "model.multipliers=null")
    assert "90 of 90 tensors" in out
    assert tuple(content["hyper_parameters"]["shape"]) == (1, 12, 12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["init_replace=[labels]"],
            "init_replace=[labels] matches no tensor; parts: down,",
        ),
        (["init_replace=label"], "init_replace=label has the wrong type"),
        (["init_weights=best"], "init_weights=best is not one of ema, raw"),
        (["model.channels=16"], "its model has model.channels=8; try init_replace=["),
    ],
)
def test_wrong_words_are_refused(start, typed, tmp_path, overrides, message):
    folder = tmp_path / "refused"
    words = (*FAST, f"init={start.source}", *overrides, f"hydra.run.dir={folder}")
    status, _, error = typed("train", *words)
    assert status == 2 and message in error and error.count("\n") == 1, error
    assert not folder.exists()


def test_share_of_averages_has_no_raw_weights(start, typed, tmp_path):
    share(str(start.source), tmp_path / "share")
    words = (*FAST, f"init={tmp_path}/share", "init_weights=raw", f"hydra.run.dir={tmp_path}/x")
    status, _, error = typed("train", *words)
    expected = f"init_weights=raw: init={tmp_path}/share does not have them; try init_weights=ema"
    assert status == 2 and expected in error
    _, out = start(run=tmp_path / "share")
    assert "starting from the averaged weights" in out
    metrics = json.loads(next(tmp_path.glob("run-*/metrics.json")).read_text())
    assert metrics["training"]["steps"] == 1
