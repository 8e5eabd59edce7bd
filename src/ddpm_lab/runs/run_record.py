"""`run.json`: the id of a run, the directory in which it was started, and a fingerprint of its data. And what may
differ when a run is read: where things are.
"""

import json
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.utils import safe_load
from ddpm_lab.utils.atomic_io import write_text
from ddpm_lab.utils.errors import CorruptFileError, UserError, escape_control

FILE = "run.json"
REPLACEABLE = ("sampler", "guidance", "variance", "extractor")
"""Groups without weights of the run's own: a finished run can be sampled and measured with other choices of them."""
ADJUSTABLE = {
    "conditioner": ("noise_level", "truncated_conditioning"),
    "codec": ("run",),
    "data": ("path", "name", "cache", "workers", "in_memory", "download"),
}
"""Groups that a run's weights belong to, and the keys of them that can be changed all the same."""
PLACES = (
    "init",
    "data.path",
    "data.name",
    "data.cache",
    "codec.run",
    "guidance.weak.run",
    "guidance.classifier.run",
    "conditioner.model",
    "extractor.weights",
)
"""Keys that may name a file or a folder"""


class RunRecord(NamedTuple):
    """Contents of `run.json`; empty for a run of an older version, and without a directory for a shared one."""

    id: str | None = None
    directory: str | None = None
    data: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def read_record(run: str | Path) -> RunRecord:
    """The record of `run`. Raises Unsafe."""
    content = safe_load.read_json(Path(run, FILE))
    key, directory, data = (content.get(name) for name in RunRecord._fields)
    return RunRecord(
        key if isinstance(key, str) and re.fullmatch("[0-9a-f]{16}", key) else None,
        directory if isinstance(directory, str) else None,
        data
        if isinstance(data, dict)
        and all(isinstance(data.get(one), dict) for one in ("train", "test"))
        else {},
    )


def write_record(run: Path, data: dict[str, Any]) -> str:
    """Write the record of `run`, which is started in the current directory with `data`. Return its id, made once."""
    key = read_record(run).id or secrets.token_hex(8)
    write_text(
        run / FILE, json.dumps(RunRecord(key, str(Path.cwd()), data)._asdict(), indent=1) + "\n"
    )
    return key


class ForeignFileError(CorruptFileError):
    """A checkpoint of another run."""

    suffix = "foreign"


def check_owner(run: str | Path, file: Path, content: dict[str, Any]) -> None:
    """Raises Foreign unless `content` of a checkpoint `file` is of `run`, as far as both have an id."""
    key, other = read_record(run).id, content.get("run_id")
    if key and other and key != other:
        raise ForeignFileError(
            f"{file} is of another run ({escape_control(other)}, and {escape_control(run)} is {key})"
        )


def resolve_paths(config: DictConfig, directory: str | Path | None) -> DictConfig:
    """`config` with absolute paths where a relative one exists in `directory`, so that it holds in any other."""
    for key in PLACES if directory else ():
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if isinstance(value, str) and value and (place := Path(str(directory), value)).exists():
            OmegaConf.update(config, key, str(place))
    return config


def apply_adjustable(saved: DictConfig, settings: DictConfig, group: str) -> DictConfig:
    """`saved`, the configuration of a run, with the `group` of `settings`, if it has one. Raises UserError where more
    is changed of it than `ADJUSTABLE`.
    """
    if not settings.get(group):
        return saved
    check_owner: Any = OmegaConf.to_container(
        saved[group]
    )  # with references as they are, such as ${seed}
    chosen: Any = OmegaConf.to_container(settings[group])
    keys = [key for key in ADJUSTABLE[group] if key in check_owner]
    if changed := [
        key for key in {*check_owner, *chosen} - {*keys} if check_owner.get(key) != chosen.get(key)
    ]:
        what = group if "_target_" in changed else f"{group}.{min(changed)}"
        only = (
            f"of {group}, only {' and '.join(keys)} can be changed"
            if keys
            else "it cannot be changed"
        )
        raise UserError(f"{what} is part of what run={settings.run} was trained with; {only}")
    saved[group] = chosen
    return saved
