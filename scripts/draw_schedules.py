"""Plot schedules: python scripts/draw_schedules.py linear cosine "linear steps=4000 rescale=false"

Each argument is an option of the group schedule, followed by overrides of its keys. The panels are
alpha_bar, log SNR and beta_tilde / beta against t / T. --out FILE is the path of the image.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import argparse
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from ddpm_lab.config.instantiate import build
from ddpm_lab.config.messages import check_overrides, explain_error
from ddpm_lab.config.overrides import CONFIGS
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.reports.figures import save_panels
from ddpm_lab.reports.table import Line, Panel
from ddpm_lab.utils.errors import UserError

PANELS = {
    "alpha_bar": "alpha_bar_t, or alpha^2 / (alpha^2 + sigma^2)",
    "log SNR": "log(alpha^2 / sigma^2)",
    "posterior variance": "beta_tilde_t / beta_t",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("schedules", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("schedules.png"))
    options = parser.parse_args()
    if options.out.suffix not in (".png", ".pdf", ".svg"):
        parser.error(f"--out {options.out} must end in .png, .pdf or .svg")
    panels: dict[str, dict[str, Line]] = {panel: {} for panel in PANELS}
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for text in options.schedules:
            name, *keys = text.split() or [""]
            overrides = [f"schedule={name}", *(f"schedule.{key}" for key in keys)]
            try:
                check_overrides(overrides, CONFIGS)
                process = ForwardProcess(build(compose("train", overrides), "schedule"))
            except UserError as error:
                parser.error(str(error))
            except HydraException as error:
                parser.error(explain_error(error, "train", CONFIGS, overrides))
            t = torch.arange(1, process.steps + 1)
            alpha, sigma, log_snr, _ = process.table[1:].unbind(1)
            ratio = process.beta_tilde(t, t - 1) / process.beta(t, t - 1)
            lines = (alpha**2 / (alpha**2 + sigma**2), log_snr, ratio)
            for panel, line in zip(panels.values(), lines, strict=True):
                panel[text] = Line((t / process.steps).tolist(), line.tolist())
    plots = [
        Panel(title, "t / T", PANELS[title], lines, log_x=title == "posterior variance")
        for title, lines in panels.items()
    ]
    file = save_panels(plots, options.out)
    print(f"saved in {file}")


if __name__ == "__main__":
    main()
