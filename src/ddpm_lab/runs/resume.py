"""Resuming an interrupted training run."""

import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.config.overrides import CONFIGS, format_override, parse_override
from ddpm_lab.runs import run_config, run_record, trusted_paths
from ddpm_lab.runs.weights import read_checkpoint
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.atomic_io import is_locked, write_text
from ddpm_lab.utils.distributed import is_rank_zero
from ddpm_lab.utils.errors import (
    CorruptFileError,
    UnsafeFileError,
    UserError,
    escape_control,
    join_first,
)

LOG = logging.getLogger(__name__)
HARMLESS = {".err", ".log", ".out", ".txt"}
"""Suffixes of files that may be in the directory of a new run, such as the output of a job"""
FREE = (
    "trainer.max_steps",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.val_check_interval",
    "trainer.limit_val_batches",
    *(f"data.{key}" for key in run_record.ADJUSTABLE["data"]),
    "logger",
    "hang_timeout",
    "extractor",
    "callbacks.checkpoints",
    "callbacks.early_stopping",
    "callbacks.progress",
    "callbacks.sample_grid",
    "callbacks.fid",
    "callbacks.scatter_plot",
    "callbacks.ode_nll",
    "callbacks.reconstructions",
)
"""Keys, with all below them, that may change when a run is resumed"""
ASIDE = ("hydra", "resume", "trust", "trainer.default_root_dir")
"""Keys that are not saved with a run"""
SAVED = "run"
"""Choice of a group that is the saved configuration"""
DERIVED = (
    "model",
    "optimizer.lr",
    "trainer.max_steps",
    "data.batch_size",
    "data.resolution",
    "data.channels",
)
"""Keys that may be null until the data is built, and have values in a saved configuration"""


def check_vacant(folder: Path) -> None:
    """Raise UserError if `folder` has files and is not the directory of a training run."""
    if not folder.is_dir() or _is_training_run(folder):
        return
    others = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name[0] != "." and entry.suffix not in HARMLESS
    )
    if others:
        hint = f", and init={folder} to start from its weights" if _is_shared(folder) else ""
        raise UserError(
            f"hydra.run.dir={folder} is not the folder of a training run and contains "
            f"{escape_control(join_first(others, 3))}; try a new folder{hint}"
        )


def _is_shared(folder: Path) -> bool:
    return (folder / "weights.safetensors").is_file()


def _has_checkpoints(run: Path) -> bool:
    return any((run / "checkpoints").glob("step-*.ckpt"))


def _is_training_run(folder: Path) -> bool:
    return (folder / "command.txt").is_file() or _has_checkpoints(folder)


def resolve_run_dir(overrides: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the overrides of train.py with the run directory, and this directory.

    It is that of resume=DIR or hydra.run.dir=DIR. Otherwise, unless resume=null, it is that of the
    newest unfinished run of the same command that no other process trains.
    The directory is None if Hydra makes a new one. Raises UserError.
    """
    resume, run_dir, root_dir = (
        _value(overrides, key) for key in ("resume", "hydra.run.dir", "trainer.default_root_dir")
    )
    if resume not in (None, "auto", "null"):
        return _resolve_resume(Path(resume), run_dir, overrides)
    if run_dir == "":
        raise UserError("hydra.run.dir= has no value; omit it for a new folder in runs/")
    if root_dir or run_dir:
        folder = Path(root_dir or run_dir or "")
        if resume == "null" and _has_checkpoints(folder):
            raise UserError(
                f"resume=null, but hydra.run.dir={folder} contains a run; try another folder"
            )
        check_vacant(folder)
        if any(os.path.lexists(folder / name) for name in (".lock", "checkpoints", "command.txt")):
            safe_load.reject_links_in_run(folder)
        return [*overrides], folder
    options = [word for word in overrides if word.startswith(("-", "search="))]
    single = all(word.startswith(("--config-dir", "-cd")) for word in options)
    unfinished = [
        file.parent
        for file in (Path("runs").glob("*/*/command.txt") if single and resume != "null" else ())
        if _is_same_command(file, overrides)
        and _has_checkpoints(file.parent)
        and not _is_finished(file.parent)
    ]
    if not unfinished:
        return [*overrides], None
    home = safe_load.reject_links(max(unfinished))  # the names are times
    safe_load.reject_links_in_run(home)
    return [*overrides, format_override("hydra.run.dir", home)], home


def _resolve_resume(
    home: Path, run_dir: str | None, overrides: Sequence[str]
) -> tuple[list[str], Path]:
    """Return the overrides for resume=HOME. Raises UserError if it is not a training run."""
    if not (home / "config.yaml").is_file():
        hint = next(
            (f"resume={parent}" for parent in home.parents if (parent / "config.yaml").is_file()),
            "resume=auto, resume=null, or a directory that train.py printed",
        )
        raise UserError(f"resume={home} is not a run directory (no config.yaml in it); try {hint}")
    if not _is_training_run(home):
        hint = "has no checkpoints; try a directory that train.py printed"
        if _is_shared(home):
            hint = f"has weights without optimizer state; init={home} starts a new run from them"
        raise UserError(f"resume={home} {hint}")
    if run_dir not in (None, str(home)):
        raise UserError(
            f"resume={home} and hydra.run.dir={run_dir} are different folders; remove one"
        )
    choices = _register_choices(home, overrides)
    safe_load.reject_links_in_run(home)
    # Options come first, so that overrides can be appended.
    return [*overrides, *choices, format_override("hydra.run.dir", home)], home


def _register_choices(home: Path, overrides: Sequence[str]) -> list[str]:
    """Register the groups of the run in `home` as choices; return overrides that select them."""
    saved = _load_saved(home)
    keys = {word.partition("=")[0] for word in overrides if not _is_saved_choice(word)}
    groups = [
        group for group in map(str, saved) if (CONFIGS / group).is_dir() and group not in keys
    ]
    for group in groups:
        ConfigStore.instance().store(group=group, name=SAVED, node=saved[group])
    return [choice for group in groups if (choice := f"{group}={SAVED}") not in overrides]


def _is_saved_choice(word: str) -> bool:
    """Return True for an override of `_register_choices`.

    Lightning starts further processes with the overrides of the first, and thus with these.
    """
    group, _, choice = word.partition("=")
    return choice == SAVED and (CONFIGS / group).is_dir()


def _load_saved(home: Path) -> DictConfig:
    """Return the configuration of the run in `home`, which writes to Hydra's directory."""
    saved = run_config.load_config(str(home))
    saved.trainer.default_root_dir = "${hydra:runtime.output_dir}"
    return saved


def continue_config(config: DictConfig, home: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of the run in `home` with the values that `overrides` set.

    `config` is the composed configuration, which has these values.
    Raises UserError for keys that must not change, and UnsafeFileError for paths out of the run.
    """
    saved = _load_saved(home)
    for key, value in _leaves(OmegaConf.to_container(saved.logger)):
        is_dir = key.endswith("save_dir")
        if is_dir and value == "${trainer.default_root_dir}":
            continue
        if is_dir or "/" in str(value) or ".." in str(value):
            raise UnsafeFileError(
                f"{home}: logger.{key}={value} would write outside the run; try the command that "
                "started it"
            )
    words = (word for word in overrides if "=" in word or word[0] == "~")
    for word in (word for word in words if not _is_saved_choice(word)):
        key = word.lstrip("+~").partition("=")[0]
        if key.split(".")[0] in ASIDE:
            continue
        if not _is_free(key):
            raise UserError(
                f"{key} cannot change, because resume={home} was trained with it; a resumed run "
                f"can change: {', '.join(FREE)}"
            )
        if word[0] == "~":
            parent, _, name = key.rpartition(".")
            OmegaConf.select(saved, parent).pop(name)
        else:
            OmegaConf.update(saved, key, OmegaConf.select(config, key))
    trusted_paths.require_named(saved, f"resume={home}", trusted_paths.DATA + trusted_paths.MODELS)
    return saved


def newest_checkpoint(home: Path, config: DictConfig) -> Path | None:
    """Return the newest intact checkpoint in `home`, for a run of `config`; None if there is none.

    Sets damaged files aside. Raises UserError if `home` has another run or a finished one.
    """
    files = safe_load.list_checkpoints(home / "checkpoints")
    if not files:
        if (home / "metrics.json").is_file():
            raise UserError(f"{home} has metrics but no checkpoints; try another folder")
        return None
    _check_config_file(home, config)
    for aside, file in enumerate(files):
        try:
            content = read_checkpoint(home, file)
        except CorruptFileError as error:
            if is_rank_zero():
                name = f"{file.name}.{error.suffix}"
                LOG.warning("%s; set aside as %s", error, name)
                file.replace(file.with_name(name))
            continue
        step, steps = content["global_step"], config.trainer.max_steps
        if step >= steps and (home / "metrics.json").is_file():
            raise UserError(
                f"trainer.max_steps={steps} is reached: the run in {home} finished at step {step}; "
                f"try trainer.max_steps={2 * step}, or another folder"
            )
        note = f"; {aside} checkpoints were set aside" if aside else ""
        start = f"resuming {home} after step {step} of {steps}"
        LOG.info("%s (resume=null starts a new run)%s", start, note)
        return file
    LOG.warning(
        "%s: no checkpoint is intact (%d set aside); starting from scratch", home, len(files)
    )
    return None


def _check_config_file(home: Path, config: DictConfig) -> None:
    """Raise UserError unless config.yaml in `home` equals `config`, whose nulls it completes."""
    file = home / "config.yaml"
    if not os.path.lexists(file):
        raise UserError(f"{home} has checkpoints but no config.yaml; try another folder")
    if safe_load.regular_file(file).read_text(errors="replace") != OmegaConf.to_yaml(config):
        saved = run_config.load_config(str(home))
        adopt_derived(config, saved)
        check_same_config(saved, config, home)


def adopt_derived(config: DictConfig, saved: DictConfig, keys: Sequence[str] = DERIVED) -> None:
    """Replace nulls of `config`, at or below `keys`, by the values of `saved`."""
    for key, value in _leaves(OmegaConf.to_container(saved)):
        # Other keys may have interpolations that only Hydra resolves.
        if value is None or not _is_below(key, keys):
            continue
        if OmegaConf.select(config, key, default="") is None:
            OmegaConf.update(config, key, value)


def check_same_config(saved: DictConfig, config: DictConfig, home: Path) -> None:
    """Raise UserError if `config` differs from that of the run in `home`, except in `FREE`."""
    resolved = run_record.resolve_paths(config.copy(), Path.cwd())
    old, new = (
        {key: value for key, value in _leaves(OmegaConf.to_container(one)) if not _is_free(key)}
        for one in (saved, resolved)
    )
    changed = [
        f"{key}={new.get(key, 'nothing')} was {old.get(key, 'nothing')}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(
            f"{home} contains another run: {join_first(changed, 4)}; try the old values, or a new "
            "folder (resume=null)"
        )


def save_config(config: DictConfig, run: Path, overrides: Sequence[str] | None) -> None:
    """Write `config.yaml` and the command, and remove the metrics of a shorter run."""
    # First, because a folder without it does not count as a run. resume=DIR must not replace it.
    if not (run / "command.txt").exists():
        write_text(run / "command.txt", _command(overrides))
    (run / "metrics.json").unlink(missing_ok=True)
    write_text(run / "config.yaml", OmegaConf.to_yaml(config))


def _command(overrides: Sequence[str] | None) -> str:
    if overrides is None:
        return "ddpm_lab.train(config)\n"
    return f"python train.py {shlex.join(overrides)}".strip() + "\n"


def _is_same_command(file: Path, overrides: Sequence[str]) -> bool:
    try:
        return safe_load.regular_file(file).read_text(errors="replace") == _command(overrides)
    except (UnsafeFileError, OSError):
        return False


def _is_finished(run: Path) -> bool:
    """Return True for a run that is finished, or that another process trains."""
    # Other ranks cannot distinguish the lock of their own rank zero.
    return (run / "metrics.json").is_file() or (is_rank_zero() and is_locked(run))


def _value(overrides: Sequence[str], key: str) -> str | None:
    """Return the value of the last override of `key`; None without one."""
    words = [word for word in overrides if word.startswith(f"{key}=")]
    if not words:
        return None
    override = parse_override(words[-1])
    value = override.value() if override else words[-1].partition("=")[2]
    return "null" if value is None else str(value)


def _is_free(key: str) -> bool:
    return _is_below(key, (*FREE, *ASIDE))


def _is_below(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all values below `node`."""
    match node:
        case dict():
            for key, value in node.items():
                yield from _leaves(value, f"{path}.{key}".lstrip("."))
        case _:
            yield path, node
