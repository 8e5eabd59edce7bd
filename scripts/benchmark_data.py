"""What data and measuring cost beside the network: python scripts/benchmark_data.py

Training on resident images of three sets' sizes against training on one fixed batch, in turn, for several rounds:
the median over rounds of the ratio of their step rates. And of `evaluate.py`'s FID the share of time that is spent
outside the network and the extractor, with the memory that a sample more takes.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import resource
import statistics
import time
from itertools import repeat
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from ddpm_lab.config.derived_defaults import build_system
from ddpm_lab.config.instantiate import build
from ddpm_lab.config.overrides import CONFIGS
from ddpm_lab.data.datasets import Images
from ddpm_lab.data.module import TrainBatches
from ddpm_lab.evaluation.extractors import digits
from ddpm_lab.evaluation.sample_quality import evaluate_samples
from ddpm_lab.utils.shell import quiet_libraries

ROUNDS = 9
SETS = {
    "digits": (1437, 1, 8, 64, 30),
    "MNIST": (60_000, 1, 32, 16, 10),
    "CIFAR-10": (50_000, 3, 32, 16, 10),
}
"""Images, channels, side, batch size, steps in a round"""


def main() -> None:
    quiet_libraries()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name, (count, channels, side, size, steps) in SETS.items():
            overrides = [
                f"data.resolution={side}",
                f"data.channels={channels}",
                "data.count=64",
                "data=synthetic",
            ]
            config = compose("train", overrides + (["model.channels=16"] if side > 8 else []))
            system = build(config, "system", **build(config, "data").spec)
            pixels = torch.randint(256, (count, channels, side, side), dtype=torch.uint8)
            held = TrainBatches(
                Images(pixels, torch.randint(10, (count,))), size, flip=True, seed=0
            )
            ratios = [
                of[1] / of[0] for of in rounds(system, iter(held), repeat(next(iter(held))), steps)
            ]
            print(
                f"{name:<9} {count} images of {channels}x{side}x{side}, batch {size}: step rate of resident data, "
                f"one fixed batch = 1: {statistics.median(ratios):.3f}"
            )
        for count in (500, 2000):
            outside, memory = measured(count)
            print(
                f"FID of {count} digits: {outside:.1%} of the time outside network and extractor; "
                f"peak memory {memory:.0f} MiB"
            )


def rounds(system: Any, data: Any, fixed: Any, steps: int) -> list[tuple[float, float]]:
    """Seconds of `steps` steps of each kind, in turn."""
    optimizer = system.optimizer(system.parameters())

    def run(batches: Any) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            system.training_step(next(batches), 0)["loss"].backward()
            optimizer.step()
        return time.perf_counter() - start

    found = [
        (run(data), run(fixed)) if i % 2 else (run(fixed), run(data))[::-1]
        for i in range(ROUNDS + 1)
    ]
    return found[1:]  # the first warms up


def measured(count: int) -> tuple[float, float]:
    """The share of time outside network and extractor, and the peak of memory in MiB."""
    config = compose("train", ["sampler.steps=10"])
    data, extractor = build(config, "data"), digits()
    system = build_system(config, data)
    inside = 0.0

    def timed(module: torch.nn.Module) -> None:
        forward = module.forward

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                inside += time.perf_counter() - start

        module.forward = call  # type: ignore[method-assign]

    measure = {"weights": "raw", "split": "train", "seed": 0, "batch_size": 250}
    next(
        evaluate_samples(system, system.denoiser, data, extractor, count=250, **measure)
    )  # the reference, and a warm start
    timed(system.denoiser.network)
    timed(extractor.features)
    start = time.perf_counter()
    next(evaluate_samples(system, system.denoiser, data, extractor, count=count, **measure))
    total = time.perf_counter() - start
    return 1 - inside / total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
