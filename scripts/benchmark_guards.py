"""Measure the overhead of the guards of training.

    python scripts/benchmark_guards.py                       # 32x32 color images
    python scripts/benchmark_guards.py data=digits model.channels=32

The guards are seeds per batch, checks of gradients and checkpoints, and heartbeats. One training
alternates rounds with and without them.
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
from ddpm_lab.systems.base import BaseSystem, DataModule
from ddpm_lab.systems.nonfinite_steps import NonFiniteGuard
from ddpm_lab.utils import watchdog
from ddpm_lab.utils.shell import quiet_libraries

ROUNDS, STEPS = 42, 10
DEFAULTS = ("data=synthetic", "data.resolution=32", "data.batch_size=8", "model.channels=64")
GUARDS = (
    (BaseSystem, "on_train_batch_start"),
    (NonFiniteGuard, "check"),
    (Checkpoints, "on_train_batch_start"),
    (Checkpoints, "on_train_batch_end"),
    (watchdog, "heartbeat"),
)


class AlternateGuards(L.Callback):
    """Disable and enable the guards in alternating rounds."""

    def __init__(self) -> None:
        self.guards = [(owner, name, getattr(owner, name)) for owner, name in GUARDS]
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.enabled = True

    def on_train_start(self, *args: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % STEPS:
            return
        self.seconds[self.enabled].append(time.perf_counter() - self.start)
        self.enabled = not self.enabled
        for owner, name, method in self.guards:
            setattr(owner, name, method if self.enabled else lambda *_, **__: None)
        self.start = time.perf_counter()


def main() -> None:
    quiet_libraries()
    overrides = sys.argv[1:] or [*DEFAULTS]
    timer = AlternateGuards()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(
        str(CONFIGS), version_base="1.3"
    ):
        settings = [
            f"trainer.default_root_dir={folder}",
            f"trainer.max_steps={ROUNDS * STEPS}",
            "trainer.val_check_interval=100000",
            "logger=csv",
            "callbacks.sample_grid.every=100000",
            "callbacks.checkpoints.every=100000",
            "~callbacks.fid",
        ]
        config = compose("train", [*settings, *overrides])
        data = build(config, "data")
        system = build_system(config, data)
        callbacks = [timer, *build(config, "callbacks").values()]
        loggers = [*build(config, "logger").values()]
        trainer = build(config, "trainer", callbacks=callbacks, logger=loggers)
        trainer.fit(system, DataModule(data))
    guarded, bare = (timer.seconds[enabled][1:] for enabled in (True, False))  # without the warm-up
    pairs = [*zip(guarded, bare, strict=True)]
    cost = 1e6 * statistics.median(g - b for g, b in pairs) / STEPS
    ratio = statistics.median(g / b for g, b in pairs) - 1
    milliseconds = 1e3 * statistics.median(bare) / STEPS
    print(
        f"{' '.join(overrides)}: {milliseconds:.1f} ms per step, with guards {cost:.0f} us more; "
        f"median ratio of {len(bare)} pairs of rounds {ratio:+.2%}"
    )


if __name__ == "__main__":
    main()
