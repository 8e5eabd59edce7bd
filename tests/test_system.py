"""The Lightning system and its callbacks: training, and independence from callbacks."""

import csv
from dataclasses import replace

import lightning as L
import pytest
import torch
from conftest import composed

from ddpm_lab.callbacks.ema import EMA, ema_or_raw
from ddpm_lab.callbacks.losses import Losses
from ddpm_lab.callbacks.sample_grid import SampleGrid
from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.data.datasets import Images, to_batch
from ddpm_lab.diffusion.timestep_samplers import Stratified
from ddpm_lab.runs import weights
from ddpm_lab.sampling.class_names import captions_differ
from ddpm_lab.sampling.conditions import class_labels, low_res_conditions
from ddpm_lab.systems.base import DataModule
from ddpm_lab.systems.lr_schedules import Constant, Cosine
from ddpm_lab.utils import safe_load

TINY = ("model.channels=8", "model.multipliers=[1]", "data.batch_size=16", "sampler.steps=3")


def data_and_system(*overrides):
    config = composed(*TINY, *overrides)
    torch.manual_seed(config.seed)
    data = build(config, "data")
    return data, build_system(config, data)


def fit(tmp_path, *overrides, steps=8, callbacks=(), **kwargs):
    data, system = data_and_system(*overrides)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=list(callbacks),
        logger=kwargs.pop("logger", False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        check_val_every_n_epoch=None,
        val_check_interval=kwargs.pop("val", 1000),
        **kwargs,
    )
    trainer.fit(system, DataModule(data))
    return trainer, system


class Weights(L.Callback):
    """Keep the weights after every batch."""

    def __init__(self):
        self.history = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.history.append([p.detach().clone() for p in pl_module.denoiser.parameters()])


def test_noise_batch_is_uniform_in_time_and_drops_conditions():
    data, system = data_and_system(
        "conditioner.dropout=0.25", "schedule.steps=10", "sampler.steps=3"
    )
    some = to_batch(data.train.select(slice(1000)))
    batches = [
        system.noise_batch(some, system.timestep_sampler(1000, system.device)[0]) for _ in range(10)
    ]
    counts = torch.bincount(torch.cat([batch.t for batch in batches]), minlength=11)
    assert counts[0] == 0 and (counts[1:] - 1000).abs().max() < 150
    assert torch.cat(
        [batch.cond.dropped for batch in batches]
    ).float().mean().item() == pytest.approx(0.25, abs=0.02)
    batch = batches[0]
    torch.testing.assert_close(
        system.denoiser.process.diffuse(batch.x0, batch.eps, batch.t), batch.x_t
    )


def test_self_conditioning_uses_detached_estimate_half_the_time():
    data, system = data_and_system("model.self_conditioning=true")
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    some, t = to_batch(data.train.select(slice(2))), torch.full((2,), 300)
    batches = [system.noise_batch(some, t) for _ in range(200)]
    conditioned = [batch for batch in batches if batch.cond.previous_x0 is not None]
    assert len(conditioned) / 200 == pytest.approx(0.5, abs=0.1)
    batch = conditioned[0]
    expected = system.denoiser(batch.x_t, t, replace(batch.cond, previous_x0=None)).x0.clamp(-1, 1)
    torch.testing.assert_close(batch.cond.previous_x0, expected.detach())
    assert not batch.cond.previous_x0.requires_grad and batch.cond.previous_x0.abs().max() > 0.1


class GradientsInForward(L.Callback):
    """Record for each forward pass if gradients are in memory."""

    def on_fit_start(self, trainer, pl_module):
        self.record, weight = [], next(pl_module.parameters())
        pl_module.denoiser.network.register_forward_hook(
            lambda *args: self.record.append(weight.grad is not None)
        )


def test_gradients_are_freed_before_forward_pass(tmp_path):
    gradients = GradientsInForward()
    fit(tmp_path, callbacks=[gradients], steps=3)
    assert gradients.record == [False] * 3
    fit(tmp_path, callbacks=[gradients], steps=2, accumulate_grad_batches=2)
    assert gradients.record == [False, True] * 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ema_matches_recursion_over_optimizer_steps(tmp_path, accumulate):
    ema, weights = EMA(decay=0.5), Weights()
    _data, system = data_and_system()
    start = [p.detach().clone() for p in system.denoiser.parameters()]
    trainer, system = fit(tmp_path, callbacks=[weights, ema], accumulate_grad_batches=accumulate)
    expected = start
    for n, current in enumerate(weights.history[accumulate - 1 :: accumulate], 1):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, current, strict=True)]
    assert n == 8 and ema.model.updates == 8
    for actual, target in zip(ema.average.parameters(), expected, strict=True):
        torch.testing.assert_close(actual, target)
    with ema_or_raw(trainer, system) as (weights, pipeline):
        assert weights == "ema" and pipeline.denoiser is ema.average and not ema.average.training


def test_ema_survives_a_checkpoint(tmp_path):
    source = EMA(decay=0.9)
    trainer, _ = fit(tmp_path, callbacks=[source], steps=3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    _data, system = data_and_system()
    restored = EMA(decay=0.9)
    restored.setup(trainer, system, "fit")
    restored.load_state_dict(content["callbacks"]["EMA"])
    for one, other in zip(restored.average.parameters(), source.average.parameters(), strict=True):
        assert torch.equal(one, other)
    assert restored.model.updates == 3


def test_callbacks_and_validation_do_not_change_training(tmp_path):
    _, plain = fit(tmp_path / "a")
    callbacks = [EMA(), Losses(every=2), SampleGrid(every=2, rows=1, columns=2)]
    _, other = fit(tmp_path / "b", callbacks=callbacks, val=2)
    for p, q in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert len(list((tmp_path / "b" / "images").glob("samples-*.png"))) == 4


def test_losses_by_quarter_average_to_the_loss(tmp_path):
    logger = L.pytorch.loggers.CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, callbacks=[Losses(every=4)], logger=logger)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [4, 8]
    for row in rows:
        quarters = [float(row[f"train/loss_q{q}"]) for q in range(1, 5)]
        assert min(quarters) <= float(row["train/loss"]) <= max(quarters)
        assert float(row["images_per_second"]) > 0 and float(row["lr"]) > 0


def test_learning_rate_warms_up_and_decays_to_floor():
    assert [Constant(warmup=4)(step, 100) for step in (0, 1, 4, 99)] == [0.2, 0.4, 1, 1]
    assert Cosine()(50, 100) == pytest.approx(0.505) and Cosine(floor=0.1)(
        100, 100
    ) == pytest.approx(0.1)


def test_samples_do_not_depend_on_batch_size():
    _, system = data_and_system("sampler=ddpm", "sampler.steps=5")
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = {}
    for size in (1, 3, 7):
        batches = system.pipeline.sample(
            7, conditions=system.pipeline.make_conditions(7), seed=4, batch_size=size
        )
        images[size] = torch.cat([batch.pixels for batch in batches])
    # The order of summation depends on the batch size and may change the rounding of a pixel.
    assert (images[1].int() - images[7].int()).abs().max() <= 1 and (
        images[3].int() - images[7].int()
    ).abs().max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in images[7]}) == 7


def test_sampling_never_drops_conditions():
    _, system = data_and_system("conditioner.dropout=0.9")
    cond = system.pipeline.condition(system.pipeline.make_conditions(20))
    assert cond.label.tolist() == [i % 10 for i in range(20)] and (
        cond.dropped is None or not cond.dropped.any()
    )


def test_sampling_keeps_training_mode_and_disables_dropout():
    _, system = data_and_system("model.dropout=0.5", "sampler.clip=null")
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    system.train()
    with torch.inference_mode():
        once, again = (
            [
                x
                for _, x in system.pipeline.trajectory(
                    [0, 1], system.pipeline.make_conditions(2), 0
                )
            ]
            for _ in range(2)
        )
    assert (
        all(torch.equal(x, y) for x, y in zip(once, again, strict=True))
        and system.denoiser.training
    )


def test_class_labels_cycle_and_are_in_range():
    assert class_labels(12, None, 10).tolist() == [*range(10), 0, 1]
    assert class_labels(3, 7, 10).tolist() == [7, 7, 7] and class_labels(
        3, [1, 2], 10
    ).tolist() == [1, 2, 1]
    for wrong in (10, -1, [3, 10], []):
        with pytest.raises(ValueError, match=r"label=.*(0\.\.9|empty list)"):
            class_labels(3, wrong, 10)
    assert class_labels(3, None, None) is None
    with pytest.raises(ValueError, match="label=3"):
        class_labels(3, 3, None)
    _, system = data_and_system("conditioner=none")
    assert system.pipeline.make_conditions(3) == {}


NAMES = [
    ["golden retriever"],
    ["\u00e9t\u00e9"],
    ["crane"],
    ["it's, quoted"],
    ["crane"],
    ["7"],
    ["true"],
    ["all"],
]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("golden retriever", 0),
        ("Golden_Retriever", 0),
        ("e\u0301te\u0301", 1),
        (2, 2),
        ("2", 2),
        (4, 4),
        ("it's, quoted", 3),
        (7, 5),
        ("7", 5),
        (True, 6),
        (["all"], 7),
        (0, 0),
    ],
)
def test_class_labels_accept_names_and_numbers(name, label):
    assert class_labels(1, name, len(NAMES), NAMES).tolist() == [label]


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("crane", NAMES, r"label=crane names 2 classes; try label=2, or one of 4"),
        (
            "golden rtriever",
            NAMES,
            r"0 golden retriever, 1 \u00e9t\u00e9, 2 crane, .*did you mean golden retriever\?",
        ),
        (8, NAMES, "label=8 is not a label of"),
        (-7, NAMES, "label=-7 is not a label of"),
        (1.0, NAMES, "label=1.0 is not a label of"),
        (False, NAMES, "label=False is not"),
        (None, NAMES, None),
        ([None], NAMES, "label=None is not"),
        ([["7"]], NAMES, "is not a label of"),
        (0, [["1"], ["2"]], "label=0 is not a label of this model: 0 1, 1 2"),
        (3, [[str(i)] for i in range(3)], r"0\.\.2"),
        ("x", [[f"c{i}"] for i in range(1000)], "c39 and 960 more"),
    ],
)
def test_class_labels_reject_unknown_and_ambiguous_names(name, names, message):
    if message is None:
        assert len(class_labels(9, name, len(names), names)) == 9
        return
    with pytest.raises(ValueError, match=message):
        class_labels(1, name, len(names), names)


def test_class_labels_prefer_numeric_names():
    sorted_as_text = [["0"], ["1"], ["10"], ["11"], ["2"]]
    assert class_labels(3, [2, "10", 11], 5, sorted_as_text).tolist() == [4, 2, 3]
    assert class_labels(3, [1, 2, "02"], 2, [["01"], ["02"]]).tolist() == [0, 1, 1]
    assert class_labels(2, [0.5, 1], 2, [["0.5"], ["1"]]).tolist() == [0, 1]
    digits = [["zero", "null"], ["one", "a one"]]
    assert class_labels(3, ["a one", 0, "NULL"], 2, digits).tolist() == [1, 0, 0]


def test_low_res_conditions_accept_class_names():
    small = Images(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), None)
    conditions = low_res_conditions(
        3, ["dog", 0], small, (1, 4, 4), (1, 8, 8), 2, [["cat"], ["dog"]]
    )
    assert conditions["label"].tolist() == [1, 0, 1]


def test_captions_differ_for_permuted_classes():
    one, other = [["cat"], ["dog"]], [["dog"], ["cat"]]
    assert (
        captions_differ(one, other)
        and not captions_differ(one, one)
        and not captions_differ(one, None)
    )
    assert not captions_differ(one, [["0"], ["1"]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "prediction", ["eps", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("x0", "v"))]
)
def test_training_reduces_loss_on_digits(tmp_path, prediction):
    data, system = data_and_system(
        f"prediction={prediction}", "model.channels=16", "model.multipliers=[1,2]"
    )

    def loss():
        torch.manual_seed(1)
        with torch.no_grad():
            t, _ = Stratified(system.process)(360, system.device)
            return (
                system.objective(system.denoiser, system.noise_batch(to_batch(data.test), t))
                .mean()
                .item()
            )

    before = loss()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=200,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        limit_val_batches=0,
    )
    trainer.fit(system, DataModule(data))
    # Measured after 200 steps: 0.53 (eps), 0.42 (x0), 0.45 (v) of the start. Without learning: 1.
    assert loss() < 0.7 * before


@pytest.mark.slow
def test_compiled_training_matches_eager_and_resumes_exactly(typed, tmp_path):
    overrides = (
        "trainer=debug",
        "logger=csv",
        "model.channels=8",
        "model.multipliers=[1]",
        "sampler.steps=3",
        "data.batch_size=16",
        "callbacks.fid.count=20",
        "callbacks.sample_grid.every=3",
        "lr_schedule=constant",
        "lr_schedule.warmup=2",
        "callbacks.checkpoints.every=3",
    )
    checkpoints = {}
    for name, own in {
        "eager": (),
        "compiled": ("compile=default",),
        "again": ("compile=default",),
    }.items():
        folder = f"hydra.run.dir={tmp_path}/{name}"
        if name == "again":
            assert (
                typed("train", *overrides, *own, folder, "trainer.max_steps=5", "resume=null")[0]
                == 0
            )
        status, output, error = typed("train", *overrides, *own, folder)
        assert status == 0, error
        assert ("the first step took" in output) == (name != "eager")
        checkpoints[name] = safe_load.load_checkpoint(weights.checkpoint_files(tmp_path / name)[0])
    eager, compiled, again = (
        checkpoints[name]["state_dict"] for name in ("eager", "compiled", "again")
    )
    for key, weight in eager.items():
        torch.testing.assert_close(compiled[key], weight, atol=1e-4, rtol=1e-3)
        assert torch.equal(again[key], compiled[key]), key
    assert checkpoints["compiled"]["callbacks"].keys() >= checkpoints["eager"]["callbacks"].keys()
    assert typed("sample", f"run={tmp_path}/compiled", "count=2")[0] == 0
