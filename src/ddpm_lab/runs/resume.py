"""Going on with a run that did not come to its end."""

from pathlib import Path

from ddpm_lab.utils.errors import UserError, escape_control
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ddpm_lab.utils import safe_load
from ddpm_lab.runs import resume, trusted_paths, run_record
from ddpm_lab.config.overrides import format_override
from ddpm_lab.utils.errors import CorruptFileError, UnsafeFileError, UserError
from ddpm_lab.utils.distributed import is_rank_zero
from ddpm_lab.utils.atomic_io import is_locked, write_text


HARMLESS = {".err", ".log", ".out", ".txt"}
"""Suffixes of files that a new run may find in its folder, such as the output of a job"""


def check_resumable(home: Path) -> None:
    """Raises UserError where `home` is not a folder that training can go on in."""
    from ddpm_lab.callbacks.checkpoints import list_checkpoints

    if list_checkpoints(home / "checkpoints") or (home / "command.txt").is_file():
        return
    if _shared(home):
        raise UserError(
            f"resume={home} holds weights without the state of the optimizer, which training needs to go "
            f"on; init={home}, beside the words that trained it, starts a new run from them"
        )
    raise UserError(f"resume={home} holds no checkpoints; try a folder that train.py named")


def check_vacant(folder: Path) -> None:
    """Raises UserError where `folder` holds files and is not that of a training run."""
    if (
        not folder.is_dir()
        or (folder / "command.txt").is_file()
        or any((folder / "checkpoints").glob("step-*.ckpt"))
    ):
        return
    others = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name[0] != "." and entry.suffix not in HARMLESS
    )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        hint = f", and init={folder} to start from its weights" if _shared(folder) else ""
        raise UserError(
            f"hydra.run.dir={folder} is not the folder of a training run and holds "
            f"{', '.join(map(escape_control, others[:3]))}{more}; try a new folder{hint}"
        )


def _shared(folder: Path) -> bool:
    return (folder / "weights.safetensors").is_file()


LOG = logging.getLogger(__name__)
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
    "callbacks.progress",
    "callbacks.sample_grid",
    "callbacks.fid",
    "callbacks.scatter_plot",
    "callbacks.ode_nll",
    "callbacks.reconstructions",
)
"""What may be changed of a run that goes on, or of all that is in it: its weights stay comparable"""
ASIDE = ("hydra", "resume", "trust", "trainer.default_root_dir")
"""What no run is made of"""
DERIVED = (
    "model",
    "optimizer.lr",
    "trainer.max_steps",
    "data.batch_size",
    "data.resolution",
    "data.channels",
)
"""Keys that may be null until the data is built, which a run then has values of"""


def resolve_run_dir(overrides: Sequence[str]) -> tuple[list[str], Path | None]:
    """`words` of train.py, completed by the folder where they go on, and that folder; None where Hydra makes a new one.

    It is that of resume=DIR or hydra.run.dir=DIR; else that of the newest run that the same words began, that did not
    come to its end and that no other process trains, unless resume=null. Raises UserError.
    """
    said = {
        key: _value(overrides, key) for key in ("resume", "hydra.run.dir", "trainer.default_root_dir")
    }
    if said["resume"] not in (None, "auto", "null"):
        home = Path(said["resume"])
        if not (home / "config.yaml").is_file():
            meant = next(
                (f"resume={above}" for above in home.parents if (above / "config.yaml").is_file()),
                "auto, null, or a folder that train.py named",
            )
            raise UserError(f"resume={home} is no run, for it holds no config.yaml; try {meant}")
        resume.check_resumable(home)
        if said["hydra.run.dir"] not in (None, str(home)):
            raise UserError(
                f"resume={home} and hydra.run.dir={said['hydra.run.dir']} are two folders; give one"
            )
        return [*overrides, *_chosen(home, overrides), format_override("hydra.run.dir", home)], safe_load.reject_links_in_run(
            home
        )  # options are first
    if said["hydra.run.dir"] == "":
        raise UserError(
            "hydra.run.dir= names no folder; leave it out, and there will be a new one in runs/"
        )
    if folder := said["trainer.default_root_dir"] or said["hydra.run.dir"]:
        if said["resume"] == "null" and any(Path(folder, "checkpoints").glob("step-*.ckpt")):
            raise UserError(
                f"resume=null begins a new run, and hydra.run.dir={folder} holds one; choose another folder"
            )
        used = any(
            os.path.lexists(Path(folder, name)) for name in (".lock", "checkpoints", "command.txt")
        )
        resume.check_vacant(Path(folder))
        return [*overrides], safe_load.reject_links_in_run(Path(folder)) if used else Path(folder)
    options = [
        word
        for word in overrides
        if word.startswith("-") and not word.startswith(("--config-dir", "-cd"))
    ]
    several = bool(options) or any(word.startswith("search=") for word in overrides)
    if several or said["resume"] == "null":
        return [*overrides], None
    begun = [file.parent for file in Path("runs").glob("*/*/command.txt") if _same(file, overrides)]
    unended = [
        run for run in begun if any((run / "checkpoints").glob("step-*.ckpt")) and not _ended(run)
    ]
    if not unended:
        return [*overrides], None
    home = safe_load.reject_links_in_run(safe_load.reject_links(max(unended)))  # their names are times
    return [*overrides, format_override("hydra.run.dir", home)], home


def _chosen(home: Path, overrides: Sequence[str]) -> list[str]:
    """Words that choose what the run in `home` has of each group, so that `words` are checked against that."""
    from ddpm_lab.runs import run_config
    from ddpm_lab.config.overrides import CONFIGS

    saved, typed = run_config.load_config(str(home)), {word.partition("=")[0] for word in overrides}
    saved.trainer.default_root_dir = "${hydra:runtime.output_dir}"  # whatever it was: `home`
    groups = [
        str(group) for group in saved if (CONFIGS / str(group)).is_dir() and group not in typed
    ]
    for group in groups:
        ConfigStore.instance().store(group=group, name="run", node=saved._get_node(group))
    return [f"{group}=run" for group in groups]


def continue_config(config: DictConfig, home: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration of the run in `home`, with what `words` say of it, which is in `config`. Raises UserError."""
    from ddpm_lab.runs import run_config

    saved = run_config.load_config(str(home))
    saved.trainer.default_root_dir = "${hydra:runtime.output_dir}"
    loggers: Any = OmegaConf.to_container(saved.logger)
    for key, value in _leaves(loggers):
        if key.endswith("save_dir") and value == "${trainer.default_root_dir}":
            continue
        if key.endswith("save_dir") or "/" in str(value) or ".." in str(value):
            raise UnsafeFileError(
                f"{home}: logger.{key}={value} would write elsewhere than in its run; try the command that "
                "began it"
            )
    for word in (word for word in overrides if "=" in word or word[0] == "~"):
        key = word.lstrip("+~").partition("=")[0]
        if key.split(".")[0] in ASIDE:
            continue
        if not _free(key):
            raise UserError(
                f"{key} is part of what resume={home} was trained with; of a run that goes on can be "
                f"changed: {', '.join(FREE)}"
            )
        if word[0] == "~":
            parent, _, name = key.rpartition(".")
            OmegaConf.select(saved, parent).pop(name)
        else:
            OmegaConf.update(saved, key, OmegaConf.select(config, key))
    trusted_paths.require_named(saved, f"resume={home}", trusted_paths.DATA + trusted_paths.MODELS)
    return saved


def newest_checkpoint(home: Path, config: DictConfig) -> Path | None:
    """The newest good checkpoint in `home`, for a run of `config`; None where there is none. Damaged ones are set
    aside. Raises UserError where the run there is another one, or has come to its end.
    """
    from ddpm_lab.callbacks.checkpoints import list_checkpoints
    from ddpm_lab.runs import run_config

    files = list_checkpoints(home / "checkpoints")
    if not files:
        if (home / "metrics.json").is_file():
            raise UserError(
                f"{home} holds the metrics of a run whose checkpoints are gone; try another folder"
            )
        return None
    if not os.path.lexists(home / "config.yaml"):
        raise UserError(
            f"{home} holds checkpoints and no config.yaml, which would say of what; try another folder"
        )
    if safe_load.regular_file(home / "config.yaml").read_text(errors="replace") != OmegaConf.to_yaml(config):
        saved = run_config.load_config(str(home))
        adopt_derived(config, saved)
        check_same_config(saved, config, home)
    for aside, file in enumerate(files):
        try:
            content = safe_load.load_checkpoint(file)
            run_record.check_owner(home, file, content)
        except CorruptFileError as error:
            if is_rank_zero():
                name = f"{file.name}.{error.suffix}"
                LOG.warning("%s; set aside as %s", error, name)
                file.replace(file.with_name(name))
            continue
        step = content["global_step"]
        if step >= config.trainer.max_steps and (home / "metrics.json").is_file():
            raise UserError(
                f"trainer.max_steps={config.trainer.max_steps} is reached: {home} came to its end at step "
                f"{step}; try trainer.max_steps={2 * step}, or another folder"
            )
        LOG.info(
            "going on with %s after step %d of %d (resume=null begins a new run)%s",
            home,
            step,
            config.trainer.max_steps,
            f"; {aside} checkpoints were set aside" if aside else "",
        )
        return file
    LOG.warning(
        "no checkpoint in %s is good, and %d were set aside: training begins again",
        home,
        len(files),
    )
    return None


def adopt_derived(config: DictConfig, saved: DictConfig, keys: Sequence[str] = DERIVED) -> None:
    """Replace null by the value that `saved` has, in `config` at or below each of `keys`."""
    for key, value in _leaves(OmegaConf.to_container(saved)):
        mine = any(key == one or key.startswith(f"{one}.") for one in keys)
        if mine and value is not None and OmegaConf.select(config, key, default="") is None:
            OmegaConf.update(config, key, value)


def check_same_config(saved: DictConfig, config: DictConfig, home: Path) -> None:
    """Raises UserError, with what differs, unless `config` is that of the run in `home` but for `FREE`."""
    here = run_record.resolve_paths(config.copy(), Path.cwd())
    before, now = (
        {key: value for key, value in _leaves(OmegaConf.to_container(one)) if not _free(key)}
        for one in (saved, here)
    )
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        told = [
            f"{key}={now.get(key, 'nothing')} was {before.get(key, 'nothing')}"
            for key in changed[:4]
        ]
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"{home} holds another run: {', '.join(told)}{more}; try the old values, or a new folder "
            "(resume=null)"
        )


def save_config(config: DictConfig, run: Path, overrides: Sequence[str]) -> None:
    """`config.yaml`, and the command that an interrupted run is known by. What a shorter run came to is void."""
    if not (run / "command.txt").exists():  # or resume= was typed
        write_text(run / "command.txt", _command(overrides))  # first, for a folder without it is no run
    (run / "metrics.json").unlink(missing_ok=True)
    write_text(run / "config.yaml", OmegaConf.to_yaml(config))


def _command(overrides: Sequence[str]) -> str:
    return f"python train.py {shlex.join(overrides)}".strip() + "\n"


def _same(file: Path, overrides: Sequence[str]) -> bool:
    try:
        return safe_load.regular_file(file).read_text(errors="replace") == _command(overrides)
    except (UnsafeFileError, OSError):
        return False


def _ended(run: Path) -> bool:
    """Or is still trained; of several processes only the first can tell whether by others."""
    return (run / "metrics.json").is_file() or (is_rank_zero() and is_locked(run))


def _value(overrides: Sequence[str], key: str) -> Any:
    """What the last of `words` says of `key`; None where none does."""
    said = [word for word in overrides if word.startswith(f"{key}=")]
    if not said:
        return None
    try:
        value = OverridesParser.create().parse_override(said[-1]).value()
    except HydraException:
        value = said[-1].partition("=")[2]
    return "null" if value is None else str(value)


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in (*FREE, *ASIDE))


def _leaves(node: Any, path: str = "") -> Any:
    """(dotted key, value)"""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, node
