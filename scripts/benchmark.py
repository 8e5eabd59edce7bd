"""How much the Trainer and its callbacks cost: python scripts/benchmark.py [overrides]

Our system under the Trainer with all default callbacks and loggers, against a bare PyTorch loop of the same network,
optimizer, batches, objective, clipping and EMA. Both run in one process, in turn, for several rounds; printed are the
median over rounds of the ratio within a round and the ratio of the fastest rounds, because machines are noisy.
Validation, pictures and FID are work of their own, not overhead, and do not fall into the rounds.
"""

import copy
import statistics
import sys
import tempfile
import time
from itertools import islice
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir

from ddpm_lab.commands.build import build
from ddpm_lab.commands.main import CONFIGS
from ddpm_lab.commands.output import quiet
from ddpm_lab.data.module import Batches, Data
from ddpm_lab.loggers import finish
from ddpm_lab.systems.diffusion import Diffusion

ROUNDS, STEPS = 12, 40


class BareLoop:
    """Training without Lightning."""

    def __init__(self, system: Diffusion, data: Data) -> None:
        self.system = copy.deepcopy(system)
        self.average = [p.detach().clone() for p in self.system.denoiser.parameters()]
        self.weights = [p.data for p in self.system.denoiser.parameters()]
        self.optimizer = system.optimizer(self.system.parameters())
        self.batches = iter(Batches(data.train, data.batch_size, flip=False, seed=0))

    def run(self, steps: int) -> float:
        """Seconds for so many steps."""
        start = time.perf_counter()
        for batch in islice(self.batches, steps):
            self.optimizer.zero_grad()
            t, weight = self.system.timesteps(len(batch["x0"]), self.system.device)
            (weight * self.system.objective(self.system.denoiser, self.system.draw(batch, t))).mean().backward()
            torch.nn.utils.clip_grad_norm_(self.system.parameters(), 1.0)
            self.optimizer.step()
            torch._foreach_lerp_(self.average, self.weights, 0.01)
        return time.perf_counter() - start


class Interleave(L.Callback):
    """Times the Trainer from one visit to the next, and lets the bare loop have its turn in between."""

    def __init__(self, bare: BareLoop) -> None:
        self.bare, self.seconds = bare, {"bare": [], "trainer": []}

    def on_train_start(self, *args: Any) -> None:
        self.bare.run(STEPS)
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % STEPS == 0:
            self.seconds["trainer"].append(time.perf_counter() - self.since)
            self.seconds["bare"].append(self.bare.run(STEPS))
            self.since = time.perf_counter()


def main() -> None:
    quiet()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", [
            f"trainer.default_root_dir={folder}", f"trainer.max_steps={ROUNDS * STEPS}",
            "trainer.val_check_interval=10000", "callbacks.pictures.every=10000",
            "callbacks.checkpoints.every=10000",
            "~callbacks.quality", *sys.argv[1:],
        ])  # fmt: skip
        data = build(config, "data")
        system = build(config, "system", **data.spec)
        timer = Interleave(BareLoop(system, data))
        callbacks = [*build(config, "callbacks").values(), timer]
        trainer = build(config, "trainer", callbacks=callbacks, logger=[*build(config, "logger").values()])
        trainer.fit(system, data)
        finish()
    bare, ours = (seconds[1:] for seconds in timer.seconds.values())  # the first round warms up
    print(f"bare loop {1e3 * statistics.median(bare) / STEPS:.1f} ms a step, "
          f"trainer {1e3 * statistics.median(ours) / STEPS:.1f} ms")  # fmt: skip
    print(f"overhead {1e3 * statistics.median(o - b for b, o in zip(bare, ours, strict=True)) / STEPS:.2f} ms a step")
    ratio = statistics.median(b / o for b, o in zip(bare, ours, strict=True))
    print(f"speed of the trainer, bare loop = 1: median of {len(bare)} rounds {ratio:.3f}, "
          f"fastest rounds {min(bare) / min(ours):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
