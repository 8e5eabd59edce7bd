"""Quality against training time for latents of several down-sampling factors, on digits (Rombach et al., 2022, fig. 6).

python scripts/compare_factors.py OUT [overrides of the diffusion runs]

Trains an autoencoder for each factor f and a model of the same size in its latents, beside one in pixels and one there
that predicts v, as those in latents do, each alone. FID is measured while they train; the time that this takes is not
counted, nor is that of the autoencoders. OUT gets the runs, factors.json and factors.png; what is there already is not
trained again.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import csv
import json
import subprocess
import sys
from pathlib import Path

from ddpm_lab.reports.figures import save_lines
from ddpm_lab.reports.terminal import format_grid

ROOT = Path(__file__).parents[1]
AUTOENCODERS = {
    "f1": ["model.multipliers=[1]", "model.bottleneck.latent=1"],
    "f2": ["model.multipliers=[1,2]", "model.bottleneck.latent=4"],
    "f4": ["model.multipliers=[1,2,4]", "model.bottleneck.latent=8"],
}
SHAPES = {"pixels": "1x8x8", "pixels-v": "1x8x8", "f1": "1x8x8", "f2": "4x4x4", "f4": "8x2x2"}
EVERY = 100
"""Steps from one FID to the next"""


def train(run: Path, *overrides: str) -> dict[str, float]:
    """The metrics of `run`, which is trained unless it is there."""
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
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return found


def curve(run: Path) -> tuple[list[float], list[float], float]:
    """Seconds of training and FID of samples at that time, and steps per second."""
    seconds, fids, steps, spent = [], [], 0, 0.0
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            if row["images_per_second"]:
                spent += (int(row["step"]) - steps) * 64 / float(row["images_per_second"])
                steps = int(row["step"])
            if row.get("eval/fid"):
                seconds.append(spent)
                fids.append(float(row["eval/fid"]))
    return seconds, fids, steps / spent


def main() -> None:
    out, overrides = (
        Path(sys.argv[1]).resolve(),
        [f"callbacks.fid.every={EVERY}", "data.batch_size=64", *sys.argv[2:]],
    )
    lines: dict[str, tuple[list[float], list[float]]] = {}
    rows, found = {}, {}
    for name in SHAPES:
        cells = ["-", "-"]
        codec = ["prediction=v"] if name == "pixels-v" else []
        if name in AUTOENCODERS:
            first = train(out / f"autoencoder-{name}", "system=autoencoder", *AUTOENCODERS[name])
            codec = ["codec=autoencoder", f"codec.run={out}/autoencoder-{name}"]
            cells = [f"{first['psnr']:.1f}", f"{first['rfid']:.2g}"]
        metrics = train(out / f"diffusion-{name}", *codec, *overrides)
        seconds, fids, rate = curve(out / f"diffusion-{name}")
        lines[name] = (seconds, fids)
        found[name] = {
            "seconds": seconds,
            "fid": fids,
            "steps_per_second": rate,
            "metrics": metrics,
        }
        rows[name] = [SHAPES[name], *cells, f"{rate:.1f}", f"{fids[-1]:.3g}", f"{seconds[-1]:.0f}"]
    soon = min(seconds[-1] for seconds, _ in lines.values())
    for name, (seconds, fids) in lines.items():
        rows[name].append(
            f"{fids[min(range(len(seconds)), key=lambda i: abs(seconds[i] - soon))]:.3g}"
        )
    (out / "factors.json").write_text(json.dumps(found, indent=2) + "\n")
    image = save_lines(
        {"FID against training time": lines},
        out / "factors.png",
        x="seconds of training",
        y={"FID against training time": "FID"},
        log_y=["FID against training time"],
    )
    heads = ["latents", "PSNR, dB", "rFID", "steps/s", "FID, end", "seconds", f"FID, {soon:.0f} s"]
    print(
        format_grid("digits; seconds are those of training alone", "", heads, rows),
        f"  saved in {image}",
        sep="\n",
    )


if __name__ == "__main__":
    main()
