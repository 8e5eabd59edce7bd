"""Commands to type after a run, complete."""

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config.overrides import shell_value
from ddpm_lab.runs import load
from ddpm_lab.utils.errors import CLIError
from ddpm_lab.utils.shell import script_command

SERVING = ("batch_size", "workers", "in_memory", "flip")
"""Keys of `data` that do not change which data they are"""


def complete_command(verb: str, overrides: str, config: DictConfig, typed: Sequence[str]) -> str:
    """Return a suggestion as a command: training gets the data of `typed`, the words that began the run of `config`;
    `run=DIR` becomes the newest run in runs/ of a model of the same data, which is trained first if there is none.
    """
    data = shlex.join(data_overrides(typed))
    if verb == "train":
        overrides = f"{data} {overrides}"
    elif "run=DIR" in overrides:
        model = _model(config)
        if model is None:
            return (
                f"{script_command('train')} {data}".strip()
                + f"\n           then add to sample.py: {overrides.removeprefix('run=DIR ')}"
            )
        overrides = overrides.replace("run=DIR", f"run={shell_value(model)}")
    return f"{script_command(verb)} {overrides.strip()}"


def typed_overrides(run: Path) -> list[str]:
    """Return the words that began `run`; none if unknown."""
    with suppress(OSError, ValueError):
        return shlex.split((run / "command.txt").read_text())[2:]
    return []


def data_overrides(overrides: Sequence[str]) -> list[str]:
    """Return those of `words` that choose the data, or the choice of their experiment; and the folder of configurations
    of one's own, which may hold it.
    """
    from ddpm_lab.config.overrides import CONFIGS

    folder = [
        part
        for word, after in pairwise(overrides)
        if word in ("--config-dir", "-cd")
        for part in (word, after)
    ]
    folder += [word for word in overrides if word.startswith("--config-dir=")]
    own = [word for word in overrides if re.match(r"\+{0,2}data[.=]", word)]
    experiments = [word.partition("=")[2] for word in overrides if word.startswith("experiment=")]
    if experiments and not any(word.startswith("data=") for word in own):
        with suppress(OSError):
            for entry in OmegaConf.load(
                CONFIGS / "experiment" / f"{experiments[-1]}.yaml"
            ).defaults:
                own = [
                    *(f"data={choice}" for key, choice in entry.items() if key == "override /data"),
                    *own,
                ]
    return [*folder, *own]


def _model(config: DictConfig) -> Path | None:
    """Return the newest run in runs/ of a diffusion model of the data of `config`."""
    for file in sorted(Path("runs").glob("*/*/config.yaml"), reverse=True):
        with suppress(CLIError):
            saved = load.load_config(str(file.parent))
            alike = _noised(saved) == _noised(config) and saved.system._target_.endswith(
                ".Diffusion"
            )
            if alike and any((file.parent / "checkpoints").glob("step-*.ckpt")):
                return file.parent
    return None


def _noised(config: DictConfig) -> dict[str, Any]:
    """Return the data of `config` and the schedule that adds noise to them."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    return {key: value for key, value in content["data"].items() if key not in SERVING} | {
        "": content["schedule"]
    }
