"""The weights of a run: which file holds them, and what is in it."""

import logging
from pathlib import Path
from typing import Any

from ddpm_lab.callbacks.checkpoints import list_checkpoints
from ddpm_lab.runs import run_record
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import CorruptFileError, UserError, escape_control

LOG = logging.getLogger(__name__)


def checkpoint_files(run: str | Path) -> list[Path]:
    """The checkpoints of `run`, from the latest step on, or the file that scripts/share.py wrote. Raises UserError."""
    checkpoints = list_checkpoints(safe_load.reject_links(Path(run, "checkpoints")))
    shared = Path(run, "weights.safetensors")
    if not checkpoints and not shared.exists():
        raise UserError(f"run={run} holds no checkpoint yet; it must train for longer")
    return checkpoints or [shared]


def read_weights(run: str | Path) -> tuple[dict[str, Any], Path]:
    """The content of the newest whole checkpoint of `run`, see `safe_load.checkpoint`, and its file. A line names damaged
    files, which stay where they are. Raises UserError.
    """
    damage: list[CorruptFileError] = []
    for file in checkpoint_files(run):
        try:
            content = safe_load.load_checkpoint(file)
            run_record.check_owner(run, file, content)
        except CorruptFileError as error:
            damage.append(error)
            continue
        for one in damage:
            LOG.warning("%s; %s is taken instead", one, escape_control(file.name))
        return content, file
    more = f", and no other checkpoint of {len(damage)} is whole" if len(damage) > 1 else ""
    raise CorruptFileError(f"{damage[0]}{more}") from damage[0]
