"""`run.json`, the identity of a run, and the keys that may differ when a run is read again."""

import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.runs.provenance import Environment
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.atomic_io import write_json
from ddpm_lab.utils.errors import UserError

FILE = "run.json"
REPLACEABLE = ("sampler", "guidance", "variance", "extractor")
"""Groups without weights: a finished run can be sampled and measured with other choices"""
ADJUSTABLE: dict[str, tuple[str, ...]] = {
    "conditioner": ("noise_level", "truncated_conditioning"),
    "codec": ("run",),
    "data": ("path", "val_path", "labels", "name", "cache", "workers", "in_memory", "download"),
}
"""Groups that the weights of a run depend on, and their keys that can be changed anyway"""
PLACES = (
    "init",
    "data.path",
    "data.val_path",
    "data.labels",
    "data.name",
    "data.cache",
    "codec.run",
    "guidance.weak.run",
    "guidance.classifier.run",
    "conditioner.model",
    "extractor.weights",
)
"""Keys that may name a file or a directory"""


class RunRecord(NamedTuple):
    """Contents of `run.json`; empty for runs of older versions."""

    id: str | None = None
    directory: str | None = None
    """Working directory in which the run was started"""
    data: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    """Fingerprint of the data"""
    environments: list[Environment] = []  # noqa: RUF012 (never changed)
    """`provenance.environment` of the first start, and of each resume in another one"""


def read_record(run: str | Path) -> RunRecord:
    """Return the record of `run`, empty if it is missing or damaged. Raises UnsafeFileError."""
    content = safe_load.read_json(Path(run, FILE))
    match content:
        case {
            "id": str(run_id),
            "directory": str() | None as directory,
            "data": {"train": dict(), "test": dict()} as data,
        } if re.fullmatch("[0-9a-f]{16}", run_id):
            return RunRecord(run_id, directory, data, environments(content))
    return RunRecord()


def environments(content: dict[str, Any]) -> list[Environment]:
    """Return the environments of a record, [] if they are missing or damaged."""
    entries = content.get("environments")
    return [
        {key: value for key, value in entry.items() if isinstance(value, str | None)}
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    ]


def write_record(run: Path, data: dict[str, Any], environment: Environment | None = None) -> str:
    """Write the record of `run` in the current directory, and return its id, drawn only once.

    `environment` is appended to those of earlier starts unless only its date is new.
    """
    record = read_record(run)
    run_id, starts = record.id or secrets.token_hex(8), [*record.environments]
    last: Environment = starts[-1] if starts else {}
    if environment and environment | {"date": None} != last | {"date": None}:
        starts.append(environment)
    write_json(run / FILE, RunRecord(run_id, str(Path.cwd()), data, starts)._asdict())
    return run_id


def resolve_paths(config: DictConfig, directory: str | Path | None) -> DictConfig:
    """Make relative paths of `config` that exist in `directory` absolute, in place."""
    for key in PLACES if directory else ():
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if type(value) is str and value and (place := Path(str(directory), value)).exists():
            OmegaConf.update(config, key, str(place))
    return config


def apply_adjustable(saved: DictConfig, settings: DictConfig, group: str) -> DictConfig:
    """Replace `group` of a run by that of `settings`. Raises UserError for keys that are fixed."""
    if not settings.get(group):
        return saved
    # Containers keep references such as ${seed}.
    trained: Any = OmegaConf.to_container(saved[group])
    requested: Any = OmegaConf.to_container(settings[group])
    keys = [key for key in ADJUSTABLE[group] if key in trained]
    fixed = {*trained, *requested} - {*keys}
    if changed := [key for key in fixed if trained.get(key) != requested.get(key)]:
        name = group if "_target_" in changed else f"{group}.{min(changed)}"
        free = f"of {group}, only {' and '.join(keys)} can be changed"
        hint = free if keys else "it cannot be changed"
        raise UserError(f"{name} is fixed, because run={settings.run} was trained with it; {hint}")
    saved[group] = requested
    return saved
