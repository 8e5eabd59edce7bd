"""Measure the scaling of time and memory: python scripts/benchmark_scale.py [KEY=VALUE ...]

- milliseconds of a training step against batch size, resolution and width
- milliseconds of sampling against its steps
- images per second against the number of processes
- peak memory of a step against batch size, with and without gradient checkpointing

Each is plotted next to its expected scaling, through the largest value or through one process.
Keys are those of `train.py`. Results are printed and saved in benchmark_scale.json and
benchmark_scale.png.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmark import DEVICE, Call, Row, bare, build_parts, compare, gflop, machine, table
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ddpm_lab.config.overrides import CONFIGS
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.utils.shell import quiet_libraries

BATCH_SIZES = (8, 16, 32, 64, 128)
AXES = {
    "batch size": ("data.batch_size", BATCH_SIZES),
    "resolution": ("data.resolution", (8, 16, 32, 64)),
    "width": ("model.channels", (16, 32, 64, 128)),
}
DEFAULTS = (
    "data=synthetic",
    "data.resolution=16",
    "data.channels=3",
    "data.count=512",
    "data.batch_size=32",
)
LABELS = {"checkpointing": "gradient checkpointing", "calls": "calls of the network"}
Rows = dict[str, Row]


def measure(overrides: list[str]) -> dict[str, Any]:
    """Return rows by axis; `overrides` follow `DEFAULTS`."""
    overrides = [*DEFAULTS, *overrides]
    rows = {axis: measure_steps(overrides, key, values) for axis, (key, values) in AXES.items()}
    rows["sampling steps"] = measure_sampling(overrides)
    rows["processes"] = measure_processes(overrides)
    rows["memory"] = measure_memory(overrides)
    return {axis: {"rows": part} for axis, part in rows.items()}


def measure_steps(overrides: list[str], key: str, values: tuple[int, ...]) -> Rows:
    """Return milliseconds and GFLOP of a training step for each of `values`."""
    steps = {str(value): bare_step([*overrides, f"{key}={value}"]) for value in values}
    rows = compare(steps, rounds=3)
    return {name: {"ms": rows[name]["ms"], "GFLOP": gflop(step)} for name, step in steps.items()}


def measure_sampling(overrides: list[str]) -> Rows:
    """Return milliseconds of DDIM for 16 images against its steps."""
    data, system, _ = build_parts(overrides)
    x = torch.randn(16, *data.shape, device=DEVICE)
    denoiser = system.eval().to(DEVICE).denoiser

    @torch.inference_mode()
    def sample(steps: int) -> None:
        DDIM(steps=steps)(denoiser, x)

    calls: dict[str, Call] = {
        str(steps): lambda steps=steps: sample(steps) for steps in (4, 8, 16, 32)
    }
    rows = compare(calls, rounds=3)
    return {steps: {"ms": row["ms"], "calls": int(steps)} for steps, row in rows.items()}


def measure_memory(overrides: list[str]) -> Rows:
    """Return the peak memory of a step against batch size, without and with checkpointing."""

    def peak(size: int, checkpointing: str) -> float:
        settings = [f"data.batch_size={size}", f"model.checkpointing={checkpointing}"]
        return peak_memory(bare_step([*overrides, *settings]))

    return {
        str(size): {"MiB": peak(size, "false"), "checkpointing": peak(size, "true")}
        for size in BATCH_SIZES
    }


def bare_step(overrides: list[str]) -> Call:
    data, system, config = build_parts(overrides)
    return bare(system, data, config.trainer.precision, config.compile)


def peak_memory(step: Call) -> float:
    """Return the peak memory of a step in MiB, besides weights, averages and optimizer state."""
    step()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    allocations = [event["args"] for event in events if event["name"] == "[memory]"]
    before = allocations[0]["Total Allocated"] - allocations[0]["Bytes"]
    return (max(allocation["Total Allocated"] for allocation in allocations) - before) / 2**20


def measure_processes(overrides: list[str]) -> Rows:
    """Return images per second of `trainer=ddp` with a constant batch size per process.

    On a CPU, each process has one thread.
    """
    cpu = DEVICE.type == "cpu"
    world = (os.cpu_count() or 1) if cpu else torch.cuda.device_count()
    device = ["trainer.accelerator=cpu", "trainer.precision=32-true"] if cpu else []
    size = compose("train", overrides).data.batch_size

    def train_seconds(ranks: int, steps: int) -> float:
        run = tempfile.mkdtemp(dir=folder)
        settings = ["callbacks=none", "logger=csv", "resume=null", f"hydra.run.dir={run}"]
        settings += [f"trainer.devices={ranks}", f"data.batch_size={size * ranks}"]
        settings += [f"trainer.max_steps={steps}"]
        subprocess.run(
            [sys.executable, "train.py", *overrides, "trainer=ddp", *device, *settings],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return float(json.loads((Path(run) / "metrics.json").read_text())["training"]["seconds"])

    short, long = 10, 60
    seconds: dict[int, list[float]] = {2**i: [] for i in range(world.bit_length())}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(5):
            for ranks, times in seconds.items():
                times.append(train_seconds(ranks, long) - train_seconds(ranks, short))
    return {
        str(ranks): {"images/s": size * ranks * (long - short) / statistics.median(times)}
        for ranks, times in seconds.items()
    }


def plot(results: dict[str, Any]) -> None:
    """Draw a panel per axis: measured values and the expected scaling."""
    figure = Figure(figsize=(12, 7), layout="constrained", dpi=120)
    for axes, (axis, part) in zip(figure.subplots(2, 3).flat, results.items(), strict=True):
        xs, rows = [float(value) for value in part["rows"]], [*part["rows"].values()]
        unit, *others = rows[0]
        ys = [row[unit] for row in rows]
        reference = [row[others[0]] for row in rows] if others else xs
        name = LABELS.get(others[0], others[0]) if others else "processes"
        if axis == "memory":
            axes.plot(xs, ys, marker="o", label="no checkpointing")
            axes.plot(xs, reference, marker="o", label=name)
        else:
            axes.plot(xs, ys, marker="o", label="measured")
            anchor = -1 if others else 0
            expected = [ys[anchor] * value / reference[anchor] for value in reference]
            axes.plot(xs, expected, linestyle="--", label=f"as {name}")
        xlabel = "batch size" if axis == "memory" else axis
        axes.set(title=axis, xlabel=xlabel, ylabel=unit, xscale="log", yscale="log")
        for line, ticks in ((axes.xaxis, xs), (axes.yaxis, ys)):
            line.set_major_locator(FixedLocator(ticks))
            line.set_major_formatter(
                lambda value, _: f"{value:,.{0 if value >= 100 else 1}f}".removesuffix(".0")
            )
            line.set_minor_locator(NullLocator())
        axes.grid(alpha=0.2)
        axes.legend()
    figure.savefig("benchmark_scale.png")


def main() -> None:
    quiet_libraries()
    print(json.dumps(about := machine()))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        results = measure(sys.argv[1:])
    for axis, part in results.items():
        print(f"\n{axis}\n{table(part['rows'])}")
    content = json.dumps({"machine": about, **results}, indent=2)
    Path("benchmark_scale.json").write_text(content + "\n")
    plot(results)
    print("\nsaved in benchmark_scale.json and benchmark_scale.png")


if __name__ == "__main__":
    main()
