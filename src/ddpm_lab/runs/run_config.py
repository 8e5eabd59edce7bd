"""Configurations of runs, read back and offered to Hydra, before torch is imported."""

import difflib
import logging
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config.messages import config_folders
from ddpm_lab.config.overrides import METRICS, parse_override
from ddpm_lab.runs import run_record
from ddpm_lab.runs.run_record import ADJUSTABLE, REPLACEABLE
from ddpm_lab.runs.saved_config import TRUSTED, load_saved_config
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import UserError

LOG = logging.getLogger(__name__)
GROUPS = ("system", "model", "trainer", "callbacks", "logger", *REPLACEABLE, *ADJUSTABLE)
"""Groups that the configuration of every run has"""

AUTOENCODER = "autoencoder"
"""Folder in a run with published weights, which has the run of its autoencoder"""


def load_config(run: str) -> DictConfig:
    """Return the configuration that `run` was trained with. Raises UserError."""
    file = safe_load.reject_links(run) / "config.yaml"
    if not os.path.lexists(file):
        near = [str(path) for path in file.parent.parents if (path / "config.yaml").is_file()]
        others = [str(path.parent) for path in Path("runs").glob("*/*/config.yaml")]
        near += difflib.get_close_matches(run, others)
        hint = f"did you mean {near[0]}?" if near else "try the directory that train.py printed"
        raise UserError(f"run={run} is not a run directory (no config.yaml in it); {hint}")
    config = load_saved_config(file, TRUSTED)
    safe_load.reject_links_in_run(Path(run))
    if not all(OmegaConf.is_dict(config.get(group)) for group in GROUPS):
        raise UserError(f"run={run}: its config.yaml is not a configuration of ddpm-lab")
    if config.codec.get("run") == AUTOENCODER:
        config.codec.run = str(Path(run, AUTOENCODER))
    return run_record.resolve_paths(config, run_record.read_record(run).directory)


def distilled_steps(config: DictConfig) -> int | None:
    """Return the sampling steps for which a run was distilled; None for any other run."""
    target = OmegaConf.select(config, "objective._target_", default="")
    return config.sampler.steps if target.endswith(".distillation") else None


def register_run_choices(
    arguments: list[str], load: Callable[[str], DictConfig] = load_config
) -> None:
    """Register groups of the run as the choice `run`, which sample.yaml and evaluate.yaml have.

    The choice `all` of the group metric has every metric, with those of --config-dir.
    """
    run = next((argument for argument in reversed(arguments) if argument.startswith("run=")), None)
    configs = [load(path) for path in (_runs(run) if run else [])]
    store = ConfigStore.instance()
    files = (file for folder in config_folders(arguments) for file in Path(folder).glob("metric/*"))
    metrics = sorted({*METRICS, *(file.stem for file in files if file.suffix == ".yaml")})
    defaults = [f"{name}@_global_.{name}" for name in metrics]
    store.store(group="metric", name="all", node={"defaults": defaults, "names": metrics})
    for group in (*REPLACEABLE, *ADJUSTABLE):
        differs = len({str(config[group]) for config in configs}) > 1
        if differs and group in REPLACEABLE:
            if not any(argument.startswith(f"{group}=") for argument in arguments):
                raise UserError(f"{group} differs between these runs; try {group}=NAME")
        elif differs and any(argument.startswith(f"{group}.") for argument in arguments):
            raise UserError(f"{group} differs between these runs; try one run at a time")
        own = configs and not (differs and group in ADJUSTABLE)
        store.store(group=group, name="run", node=configs[0][group] if own else {})


def _runs(argument: str) -> list[str]:
    """Return the runs of run=..., several in a sweep."""
    override = parse_override(argument)
    if override is None:
        return [argument.removeprefix("run=")]
    values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
    return [*map(str, values)]


def expand_cascade(arguments: list[str]) -> list[str]:
    """Return `arguments` with the last stage of `cascade=[...]` as `run=` and overrides."""
    cascade = next((text for text in reversed(arguments) if text.startswith("cascade=")), None)
    if cascade in (None, "cascade=null"):
        return arguments
    if any(argument.startswith("run=") for argument in arguments):
        raise UserError(f"run= and {cascade} both name a model; remove one")
    override = parse_override(cascade)
    stages: Any = None if override is None or override.is_sweep_override() else override.value()
    if not isinstance(stages, list) or not stages:
        raise UserError(
            f"{cascade} must be a list of runs in order of resolution; try cascade=[DIR,DIR2]"
        )
    # Before the user's overrides, which take precedence, and after options such as --cfg job.
    first = next(i for i, text in enumerate(arguments) if "=" in text and text[0] != "-")
    return [*arguments[:first], *stage_overrides(stages[-1]), *arguments[first:]]


def stage_overrides(stage: Any) -> list[str]:
    """Return the overrides of an entry of `cascade`, `run=` first. Raises UserError."""
    try:
        run, *overrides = shlex.split(str(stage))
    except ValueError as error:
        raise UserError(
            f"cascade: {stage!r} must be a run, followed by its overrides; "
            "try cascade=['DIR sampler.steps=50',DIR2]"
        ) from error
    keys = ("weights", "checkpoint", *REPLACEABLE, *ADJUSTABLE)
    if wrong := [text for text in overrides if re.split("[.=]", text)[0] not in keys]:
        raise UserError(
            f"cascade: {wrong[0]} cannot be set for one stage; a stage has {', '.join(keys)}"
        )
    return [f"run={run}", *overrides]


def make_deterministic(settings: DictConfig, overrides: Sequence[str]) -> None:
    """Set `sampler.eta` and `sampler.s_churn` to 0 unless `overrides` set them.

    x_T determines x_0 only without noise.
    """
    sampler = settings.sampler
    if sampler.get("sigma_hat"):
        return
    for key in ("eta", "s_churn"):
        value = sampler.get(key)
        is_typed = any(text.startswith(f"sampler.{key}=") for text in overrides)
        if value and not is_typed and value == load_config(settings.run).sampler.get(key):
            text = "sampler.%s=0, not the run's %g: x_T determines x_0 only without noise"
            LOG.info(text, key, value)
            sampler[key] = 0.0
