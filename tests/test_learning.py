"""Every network reaches half the loss of predicting zero at its default learning rate."""

import re

import pytest
import torch
from conftest import composed, options

from ddpm_lab.config.derived_defaults import build_system, learning_rate, training_steps, unet_size
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import to_batch
from ddpm_lab.data.module import TrainBatches
from ddpm_lab.utils.errors import UserError

OTHERS = {"classifier", "autoencoder_kl", "autoencoder_vq", "exact"}
"""Networks of other systems, and the exact one, which is not trained"""
STEPS = {"unet": 50, "unet_large": 40, "dit_s": 60, "iddpm": 25, "adm": 25}
"""Optimizer steps of large networks at batch size 16; the others take 100 at batch size 64"""
LONG = {"adm", "dit_s", "iddpm", "unet_cross", "unet_large", "unet_small"}
"""Networks that `make nightly` trains, because a smaller one of the kind is trained below.

`unet_small` is what `auto` makes for the digits.
"""


def train(config, steps, batch_size):
    """Train for `steps`; return the mean loss of the last five and that of predicting zero."""
    data = build(config, "data")
    system = build_system(config, data)
    optimizer = system.optimizer(system.parameters())
    batches = iter(TrainBatches(data.train, batch_size, False, 0))
    zero = system.zero_prediction_loss(next(batches))
    losses = []
    for step, batch in zip(range(steps), batches, strict=False):
        optimizer.param_groups[0]["lr"] = config.optimizer.lr * min(1, (step + 1) / 21)
        loss = system.batch_losses(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(system.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-5:]) / 5, zero


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=[pytest.mark.nightly] if model in LONG else [])
        for model in sorted({*options("model")} - OTHERS)
    ],
)
def test_model_learns_digits_at_its_default_rate(model):
    steps = STEPS.get(model, 100)
    config = composed(f"model={model}", *(["conditioner=tokens"] if model == "unet_cross" else []))
    loss, zero = train(config, steps, 16 if model in STEPS else 64)
    assert loss < zero / 2, f"{loss:.3f} after {steps} steps, and {zero:.3f} of predicting zero"


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model=dit_s", "model.channels=96", "model.blocks=4"),
        ("system=classifier",),
        ("system=autoencoder",),
        ("system=autoencoder", "model=autoencoder_vq"),
        ("data=gaussian_mixture",),
        ("data=toy",),
        ("data=synthetic", "data.count=64", "data.resolution=8"),
        ("conditioner=text", "model=unet_cross"),
        ("conditioner=low_res",),
        ("prediction=x0",),
        ("prediction=v",),
    ],
    ids=" ".join,
)
def test_system_learns_at_its_default_rate(overrides):
    classifier = "system=classifier" in overrides  # half of all times hide the class
    loss, zero = train(composed(*overrides), 100 if classifier else 40, 32)
    assert loss < zero * (0.8 if classifier else 0.5)


@pytest.mark.parametrize(
    ("size", "many", "channels", "multipliers"),
    [
        ((8, 8), False, 32, [1, 2]),
        ((4, 4), False, 32, [1, 2]),
        ((16, 16), False, 32, [1, 2, 4]),
        ((28, 28), False, 16, [1, 2, 4]),
        ((32, 32), False, 16, [1, 2, 4, 8]),
        ((32, 32), True, 32, [1, 2, 4, 8]),
        ((45, 45), False, 16, [1]),
        ((64, 64), False, 16, [1, 2, 4, 8, 8]),
        ((256, 256), False, 16, [1, 2, 4, 8, 8, 8, 8]),
        ((48, 64), False, 16, [1, 2, 4, 8, 8]),
        ((64, 12), False, 32, [1, 2, 4]),
        ((64, 50), False, 16, [1, 2]),
    ],
)
def test_levels_follow_from_the_resolution(size, many, channels, multipliers):
    assert unet_size(size, many) == {"channels": channels, "multipliers": multipliers, "blocks": 1}


@pytest.mark.parametrize("side", [6, 20, 28, 36, 50, 100])
def test_default_network_fits_any_size_that_can_be_halved(side):
    config = composed(
        "data=synthetic", f"data.resolution={side}", "data.count=20", "data.batch_size=2"
    )
    data = build(config, "data")
    system = build_system(config, data)
    assert system.batch_losses(to_batch(data.train.select(slice(2)))).isfinite().all()


@pytest.mark.parametrize(
    ("side", "hint"),
    [
        (27, "27 is odd; try data.resolution=28 or 24, or model.multipliers=[1]"),
        (90, "45 is odd; try data.resolution=92 or 88, or model.multipliers=[1,2]"),
    ],
)
def test_sizes_for_the_default_network_are_suggested(side, hint):
    config = composed("data=synthetic", f"data.resolution={side}")
    with pytest.raises(UserError, match=re.escape(hint)):
        build_system(config, build(config, "data"))
    config.model.multipliers = [1, 2] if side == 90 else [1]
    build_system(config, build(config, "data"))


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["model=unet_large"], "try model.multipliers=[1,2,2], or a resolution of 24 or 32"),
        (["model=iddpm", "model.multipliers=[1,2,3]"], "try model.attention=[14,7]"),
    ],
)
def test_options_for_28x28_are_suggested(overrides, hint):
    config = composed("data=synthetic", "data.resolution=28", *overrides)
    with pytest.raises(UserError, match=re.escape(hint)):
        build_system(config, build(config, "data"))


def test_width_override_keeps_the_widest_level():
    assert unet_size((32, 32), many=False, channels=64)["multipliers"] == [1, 2, 2, 2]


def test_learning_rate_decreases_with_the_width():
    rates = {
        model: learning_rate(composed(f"model={model}").model)
        for model in ("unet_small", "unet_large", "adm")
    }
    assert rates == {"unet_small": 4e-3, "unet_large": 1e-3, "adm": 3.3e-4}
    assert (
        learning_rate(composed("model.channels=128", "model.multipliers=[1,1.5]").model) == 1.3e-3
    )


def test_training_steps_increase_with_the_resolution():
    steps = [training_steps((1, side, side), many=False) for side in (8, 16, 32, 64)]
    assert steps == [800, 1500, 2500, 4000]
    assert training_steps((2,), many=False) == 800
    assert training_steps((3, 32, 32), many=True) == 5000


TINY = (
    "model.channels=8",
    "model.multipliers=[1]",
    "data.batch_size=16",
    "logger=csv",
    "extractor=none",
    "callbacks.sample_grid.every=1000",
    "trainer.max_steps=100",
)


@pytest.mark.parametrize("rate", ["1e-7", "4e-3"])
def test_network_that_does_not_learn_logs_a_warning(typed, tmp_path, rate):
    status, out, error = typed(
        "train", *TINY, f"optimizer.lr={rate}", f"hydra.run.dir={tmp_path}/run"
    )
    assert status == 0, error
    assert "training: 100 steps of" in out + error
    assert ("nothing is learned yet; try optimizer.lr=" in out + error) == (rate == "1e-7")
