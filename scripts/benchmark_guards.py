"""What the guards of training cost: seeds for each batch, gradients looked at, checkpoints waited for, signs of life.

    python scripts/benchmark_guards.py                       # 32x32 colour images
    python scripts/benchmark_guards.py data=digits model.channels=32

One training, in which rounds with the guards and rounds without take turns.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import statistics
import sys
import tempfile
import time
from typing import Any

import lightning as L
from hydra import compose, initialize_config_dir

from ddpm_lab.callbacks.checkpoints import Checkpoints
from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.config.overrides import CONFIGS
from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.systems.data_module import DataModule
from ddpm_lab.systems.nonfinite_steps import NonFiniteGuard
from ddpm_lab.utils import watchdog
from ddpm_lab.utils.shell import quiet_libraries

ROUNDS, STEPS = 42, 10
GUARDS = [
    (BaseSystem, "on_train_batch_start"),
    (NonFiniteGuard, "judge"),
    (Checkpoints, "on_train_batch_start"),
    (Checkpoints, "on_train_batch_end"),
    (watchdog, "beat"),
]


class Turns(L.Callback):
    """Takes the guards away, and brings them back."""

    def __init__(self) -> None:
        self.guards = [(owner, name, getattr(owner, name)) for owner, name in GUARDS]
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.guarded = True

    def on_train_start(self, *args: Any) -> None:
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % STEPS == 0:
            self.seconds[self.guarded].append(time.perf_counter() - self.since)
            self.guarded = not self.guarded
            for owner, name, own in self.guards:
                setattr(owner, name, own if self.guarded else lambda *_, **__: None)
            self.since = time.perf_counter()


def main() -> None:
    quiet_libraries()
    overrides = sys.argv[1:] or [
        "data=synthetic",
        "data.resolution=32",
        "data.batch_size=8",
        "model.channels=64",
    ]
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(
        str(CONFIGS), version_base="1.3"
    ):
        config = compose(
            "train",
            [
                f"trainer.default_root_dir={folder}",
                f"trainer.max_steps={ROUNDS * STEPS}",
                "trainer.val_check_interval=100000",
                "logger=csv",
                "callbacks.sample_grid.every=100000",
                "callbacks.checkpoints.every=100000",
                "~callbacks.fid",
                *overrides,
            ],
        )
        data = build(config, "data")
        system = build_system(config, data)
        turns = Turns()
        callbacks = [turns, *build(config, "callbacks").values()]
        trainer = build(
            config, "trainer", callbacks=callbacks, logger=[*build(config, "logger").values()]
        )
        trainer.fit(system, DataModule(data))
    guarded, bare = (
        turns.seconds[which][1:] for which in (True, False)
    )  # the first rounds warm up
    cost = 1e6 * statistics.median(g - b for g, b in zip(guarded, bare, strict=True)) / STEPS
    ratio = statistics.median(g / b for g, b in zip(guarded, bare, strict=True)) - 1
    print(
        f"{' '.join(overrides)}: a step takes {1e3 * statistics.median(bare) / STEPS:.1f} ms, and with guards {cost:.0f} "
        f"us more; median ratio of {len(bare)} pairs of rounds {ratio:+.2%}"
    )


if __name__ == "__main__":
    main()
