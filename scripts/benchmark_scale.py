"""What cost grows with: python scripts/benchmark_scale.py [KEY=VALUE ...]

Milliseconds of a step of training against batch size, resolution and width, and of sampling against its steps;
images per second against the number of processes; each beside the law that it should follow, drawn through the
largest, or through one process. And what memory a step takes against batch size, with and without gradient
checkpointing. Keys are those of `train.py`. Tables are printed and written to benchmark_scale.json, and drawn in
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
from benchmark import DEVICE, Call, Row, bare, compared, gflop, machine, made, table
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ddpm_lab.config.overrides import CONFIGS
from ddpm_lab.diffusion.samplers import DDIM
from ddpm_lab.utils.shell import quiet_libraries

AXES = {
    "batch size": ("data.batch_size", (8, 16, 32, 64, 128)),
    "resolution": ("data.resolution", (8, 16, 32, 64)),
    "width": ("model.channels", (16, 32, 64, 128)),
}


def measured(overrides: list[str]) -> dict[str, Any]:
    """Of 3x16x16 where `words` do not say otherwise: milliseconds of a step and MiB at its peak."""
    overrides = [
        "data=synthetic",
        "data.resolution=16",
        "data.channels=3",
        "data.count=512",
        "data.batch_size=32",
        *overrides,
    ]
    found: dict[str, Any] = {}
    for axis, (key, values) in AXES.items():
        steps = {str(value): bare_of([*overrides, f"{key}={value}"]) for value in values}
        rows = compared(steps, rounds=3)
        found[axis] = {
            "rows": {
                value: {"ms": rows[value]["ms"], "GFLOP": gflop(steps[value])} for value in steps
            }
        }
    data, system, _ = made(overrides)
    x, counts = torch.randn(16, *data.shape, device=DEVICE), (4, 8, 16, 32)
    system = system.eval().to(DEVICE)

    def trajectory(count: int) -> None:
        with torch.inference_mode():
            DDIM(steps=count)(system.denoiser, x)

    rows = compared(
        {str(count): lambda count=count: trajectory(count) for count in counts}, rounds=3
    )
    found["sampling steps"] = {
        "rows": {count: {"ms": row["ms"], "calls": int(count)} for count, row in rows.items()}
    }
    found["processes"] = {"rows": processes(overrides)}
    _, batches = AXES["batch size"]
    found["memory"] = {
        "rows": {
            str(size): {
                name: peak(
                    bare_of([*overrides, f"data.batch_size={size}", f"model.checkpointing={on}"])
                )
                for name, on in {"MiB": "false", "checkpointing": "true"}.items()
            }
            for size in batches
        }
    }
    return found


def bare_of(overrides: list[str]) -> Call:
    data, system, config = made(overrides)
    return bare(system, data, config.trainer.precision, config.compile)


def peak(step: Call) -> float:
    """MiB that a step takes beside weights, averages and the optimizer's state."""
    step()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    told = [event["args"] for event in events if event["name"] == "[memory]"]
    return (
        max(of["Total Allocated"] for of in told) - told[0]["Total Allocated"] + told[0]["Bytes"]
    ) / 2**20


def processes(overrides: list[str]) -> dict[str, Row]:
    """Images per second of `trainer=ddp`, with so many images for each process; on a CPU, each has one thread."""
    small = DEVICE.type == "cpu"
    most = (os.cpu_count() or 1) if small else torch.cuda.device_count()
    on = ["trainer.accelerator=cpu", "trainer.precision=32-true"] if small else []
    each = compose("train", overrides).data.batch_size

    def run(ranks: int, steps: int) -> float:
        """Seconds of training"""
        here = tempfile.mkdtemp(dir=folder)
        run_count = ["callbacks=none", "logger=csv", "resume=null", f"hydra.run.dir={here}"]
        command = [
            sys.executable,
            "train.py",
            *overrides,
            "trainer=ddp",
            *on,
            *run_count,
            f"trainer.devices={ranks}",
            f"data.batch_size={each * ranks}",
            f"trainer.max_steps={steps}",
        ]
        subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        return float(json.loads((Path(here) / "metrics.json").read_text())["training"]["seconds"])

    few, many = 10, 60
    visits: dict[int, list[float]] = {2**i: [] for i in range(most.bit_length())}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(5):
            for ranks, times in visits.items():
                times.append(run(ranks, many) - run(ranks, few))
    return {
        str(ranks): {"images/s": each * ranks * (many - few) / statistics.median(times)}
        for ranks, times in visits.items()
    }


def draw(found: dict[str, Any]) -> None:
    """A panel for each axis: what was measured, and the law through its largest value, or through one process."""
    figure = Figure(figsize=(12, 7), layout="constrained", dpi=120)
    for axes, (axis, part) in zip(figure.subplots(2, 3).flat, found.items(), strict=True):
        xs, rows = [float(value) for value in part["rows"]], [*part["rows"].values()]
        unit, *others = rows[0]
        ys, second = [row[unit] for row in rows], [row[others[0]] for row in rows] if others else xs
        kept = axis == "memory"
        axes.plot(xs, ys, marker="o", label="all kept" if kept else "measured")
        anchor = -1 if others else 0
        law = second if kept else [ys[anchor] * value / second[anchor] for value in second]
        names = {"checkpointing": "gradient checkpointing", "calls": "calls of the network"}
        name = names.get(others[0], others[0]) if others else "processes"
        axes.plot(
            xs,
            law,
            marker="o" if kept else None,
            linestyle="-" if kept else "--",
            label=name if kept else f"as {name}",
        )
        axes.set(
            title=axis,
            xlabel="batch size" if kept else axis,
            ylabel=unit,
            xscale="log",
            yscale="log",
        )
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
        found = measured(sys.argv[1:])
    for axis, part in found.items():
        print(f"\n{axis}\n{table(part['rows'])}")
    Path("benchmark_scale.json").write_text(
        json.dumps({"machine": about, **found}, indent=2) + "\n"
    )
    draw(found)
    print("\nwritten to benchmark_scale.json, drawn in benchmark_scale.png")


if __name__ == "__main__":
    main()
