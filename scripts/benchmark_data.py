"""Measure the overhead of data loading and of metrics: python scripts/benchmark_data.py

Training on in-memory images, as many as in three data sets, alternates with training on one fixed
batch. The result is the median over rounds of the ratio of their step rates. For the FID of
`evaluate.py`, it is the share of time outside network and extractor, and the peak memory.
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
from ddpm_lab.evaluation.sample_quality import SampleQuality
from ddpm_lab.sampling.cascade import Cascade
from ddpm_lab.utils.shell import quiet_libraries

ROUNDS = 9
SETS = {
    "digits": (1437, 1, 8, 64, 30),
    "MNIST": (60_000, 1, 32, 16, 10),
    "CIFAR-10": (50_000, 3, 32, 16, 10),
}
"""Images, channels, side, batch size, steps per round"""


def main() -> None:
    quiet_libraries()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name in SETS:
            measure_training(name)
        for count in (500, 2000):
            share, memory = measure_fid(count)
            print(
                f"FID of {count} digits: {share:.1%} of the time outside network and extractor; "
                f"peak memory {memory:.0f} MiB"
            )


def measure_training(name: str) -> None:
    count, channels, side, size, steps = SETS[name]
    overrides = [f"data.resolution={side}", f"data.channels={channels}", "data.count=64"]
    overrides += ["data=synthetic"] + ["model.channels=16"] * (side > 8)
    config = compose("train", overrides)
    system = build(config, "system", **build(config, "data").spec)
    pixels = torch.randint(256, (count, channels, side, side), dtype=torch.uint8)
    images = Images(pixels, torch.randint(10, (count,)))
    batches = TrainBatches(images, size, flip=True, seed=0)
    seconds = measure_rounds(system, iter(batches), repeat(next(iter(batches))), steps)
    ratio = statistics.median(fixed / data for data, fixed in seconds)
    print(
        f"{name:<9} {count} images of {channels}x{side}x{side}, batch {size}: step rate of "
        f"in-memory data, one fixed batch = 1: {ratio:.3f}"
    )


def measure_rounds(system: Any, data: Any, fixed: Any, steps: int) -> list[tuple[float, float]]:
    """Return for each round the seconds of `steps` steps on `data` and on `fixed`."""
    optimizer = system.optimizer(system.parameters())

    def run(batches: Any) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            system.training_step(next(batches), 0)["loss"].backward()
            optimizer.step()
        return time.perf_counter() - start

    seconds = [
        (run(data), run(fixed)) if i % 2 else (run(fixed), run(data))[::-1]
        for i in range(ROUNDS + 1)
    ]
    return seconds[1:]  # the first is a warm-up


def measure_fid(count: int) -> tuple[float, float]:
    """Return the share of time outside network and extractor, and the peak memory in MiB."""
    config = compose("train", ["sampler.steps=10"])
    data, extractor = build(config, "data"), digits()
    system = build_system(config, data)
    inside = 0.0

    def add_timer(module: torch.nn.Module) -> None:
        forward = module.forward

        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                inside += time.perf_counter() - start

        module.forward = timed  # type: ignore[method-assign]

    def evaluate(count: int) -> None:
        quality = SampleQuality(lambda: extractor, count=count)
        quality.compute(Cascade([system.pipeline]), data, "raw")

    evaluate(250)  # the reference statistics, and a warm-up
    add_timer(system.denoiser.network)
    add_timer(extractor.features)
    start = time.perf_counter()
    evaluate(count)
    total = time.perf_counter() - start
    return 1 - inside / total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
