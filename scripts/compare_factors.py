"""Compare FID over training time of latents by downsampling factor (Rombach et al., 2022, fig. 6).

python scripts/compare_factors.py OUT [overrides of the diffusion runs]

For each factor f, train an autoencoder on digits and a model in its latents. Two models of the same
size in pixels are baselines; one predicts v, like those in latents. Times exclude evaluation and
the autoencoders. OUT gets the runs, factors.json and factors.png. Existing runs are not repeated.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import csv
import json
import subprocess
import sys
from pathlib import Path

from ddpm_lab.reports.figures import save_panels
from ddpm_lab.reports.table import Line, Panel
from ddpm_lab.reports.terminal import format_grid

ROOT = Path(__file__).parents[1]
AUTOENCODERS = {
    "f1": ["model.multipliers=[1]", "model.bottleneck.latent=1"],
    "f2": ["model.multipliers=[1,2]", "model.bottleneck.latent=4"],
    "f4": ["model.multipliers=[1,2,4]", "model.bottleneck.latent=8"],
}
SHAPES = {"pixels": "1x8x8", "pixels-v": "1x8x8", "f1": "1x8x8", "f2": "4x4x4", "f4": "8x2x2"}
EVERY = 100
"""Training steps between FID evaluations"""


def train(run: Path, *overrides: str) -> dict[str, float]:
    """Return the metrics of `run`; train it if it does not exist."""
    if not (run / "metrics.json").is_file():
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "logger=csv",
            f"hydra.run.dir={run}",
            *overrides,
        ]
        print("$", *command[1:], flush=True)
        subprocess.run(command, check=True)
    metrics: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return metrics


def curve(run: Path) -> tuple[list[float], list[float], float]:
    """Return the training seconds, the FIDs at these times, and steps per second."""
    seconds, fids, steps, elapsed = [], [], 0, 0.0
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            if row["images_per_second"]:
                elapsed += (int(row["step"]) - steps) * 64 / float(row["images_per_second"])
                steps = int(row["step"])
            if row.get("eval/fid"):
                seconds.append(elapsed)
                fids.append(float(row["eval/fid"]))
    return seconds, fids, steps / elapsed


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    overrides = [f"callbacks.fid.every={EVERY}", "data.batch_size=64", *sys.argv[2:]]
    lines: dict[str, tuple[list[float], list[float]]] = {}
    rows, results = {}, {}
    for name in SHAPES:
        cells = ["-", "-"]
        codec = ["prediction=v"] if name == "pixels-v" else []
        if name in AUTOENCODERS:
            codec_metrics = train(
                out / f"autoencoder-{name}", "system=autoencoder", *AUTOENCODERS[name]
            )
            codec = ["codec=autoencoder", f"codec.run={out}/autoencoder-{name}"]
            cells = [f"{codec_metrics['psnr']:.1f}", f"{codec_metrics['rfid']:.2g}"]
        metrics = train(out / f"diffusion-{name}", *codec, *overrides)
        seconds, fids, rate = curve(out / f"diffusion-{name}")
        lines[name] = (seconds, fids)
        results[name] = {
            "seconds": seconds,
            "fid": fids,
            "steps_per_second": rate,
            "metrics": metrics,
        }
        rows[name] = [SHAPES[name], *cells, f"{rate:.1f}", f"{fids[-1]:.3g}", f"{seconds[-1]:.0f}"]
    common = min(seconds[-1] for seconds, _ in lines.values())
    for name, (seconds, fids) in lines.items():
        rows[name].append(
            f"{fids[min(range(len(seconds)), key=lambda i: abs(seconds[i] - common))]:.3g}"
        )
    (out / "factors.json").write_text(json.dumps(results, indent=2) + "\n")
    title, x = "FID against training time", "seconds of training"
    curves = {name: Line(*line) for name, line in lines.items()}
    image = save_panels([Panel(title, x, "FID", curves, log_y=True)], out / "factors.png")
    heads = [
        "latents",
        "PSNR, dB",
        "rFID",
        "steps/s",
        "FID, end",
        "seconds",
        f"FID, {common:.0f} s",
    ]
    print(
        format_grid("digits; seconds of training only", "", heads, rows),
        f"  saved in {image}",
        sep="\n",
    )


if __name__ == "__main__":
    main()
