"""Complete commands that a finished run suggests."""

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config.overrides import CONFIGS, shell_value
from ddpm_lab.runs.run_config import load_config
from ddpm_lab.utils.errors import CLIError
from ddpm_lab.utils.shell import script_command

SERVING = ("batch_size", "workers", "in_memory", "flip")
"""Keys of `data` that do not identify the data"""


def complete_command(
    verb: str, overrides: str, config: DictConfig, run_overrides: Sequence[str]
) -> str:
    """Return a suggestion as a command. A training command gets the data overrides of
    `run_overrides`, the run's command line. `run=DIR` becomes the newest diffusion model of the
    same data. If there is none, the suggestion trains one first.
    """
    data = shlex.join(data_overrides(run_overrides))
    if verb == "train":
        overrides = f"{data} {overrides}"
    elif "run=DIR" in overrides:
        model = _newest_model(config)
        if model is None:
            train, rest = f"{script_command('train')} {data}", overrides.removeprefix("run=DIR ")
            return f"{train.strip()}\n           then add to sample.py: {rest}"
        overrides = overrides.replace("run=DIR", f"run={shell_value(model)}")
    return f"{script_command(verb)} {overrides.strip()}"


def typed_overrides(run: Path) -> list[str]:
    """Return the overrides of the command that started `run`; [] if unknown."""
    with suppress(OSError, ValueError):
        return shlex.split((run / "command.txt").read_text())[2:]
    return []


def data_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that select the data and the user's own configuration folder."""
    folder = [
        text
        for option, value in pairwise(overrides)
        if option in ("--config-dir", "-cd")
        for text in (option, value)
    ]
    folder += [text for text in overrides if text.startswith("--config-dir=")]
    data = [text for text in overrides if re.match(r"\+{0,2}data[.=]", text)]
    experiments = [text.partition("=")[2] for text in overrides if text.startswith("experiment=")]
    if experiments and not any(text.startswith("data=") for text in data):
        with suppress(OSError):
            experiment = OmegaConf.load(CONFIGS / "experiment" / f"{experiments[-1]}.yaml")
            key = "override /data"
            data = [f"data={entry[key]}" for entry in experiment.defaults if key in entry] + data
    return folder + data


def _newest_model(config: DictConfig) -> Path | None:
    """Return the newest run in runs/ of a diffusion model of the data of `config`."""
    for file in sorted(Path("runs").glob("*/*/config.yaml"), reverse=True):
        with suppress(CLIError):
            other = load_config(str(file.parent))
            if (
                other.system._target_.endswith(".Diffusion")
                and _noised_data(other) == _noised_data(config)
                and any((file.parent / "checkpoints").glob("step-*.ckpt"))
            ):
                return file.parent
    return None


def _noised_data(config: DictConfig) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(config, resolve=False)
    data = {key: value for key, value in content["data"].items() if key not in SERVING}
    return {"data": data, "schedule": content["schedule"]}
