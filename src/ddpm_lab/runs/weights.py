"""The weights of a run: which file holds them, and what is in it."""

import logging
from pathlib import Path
from typing import Any

from ddpm_lab.utils import safe_load
from ddpm_lab.callbacks.checkpoints import ordered
from ddpm_lab.runs import record
from ddpm_lab.utils.errors import Damaged, UserError, shown

LOG = logging.getLogger(__name__)


def files(run: str | Path) -> list[Path]:
    """The checkpoints of `run`, from the latest step on, or the file that scripts/share.py wrote. Raises UserError."""
    checkpoints = ordered(safe_load.unlinked(Path(run, "checkpoints")))
    shared = Path(run, "weights.safetensors")
    if not checkpoints and not shared.exists():
        raise UserError(f"run={run} holds no checkpoint yet; it must train for longer")
    return checkpoints or [shared]


def read(run: str | Path) -> tuple[dict[str, Any], Path]:
    """The content of the newest whole checkpoint of `run`, see `safe_load.checkpoint`, and its file. A line names damaged
    files, which stay where they are. Raises UserError.
    """
    damage: list[Damaged] = []
    for file in files(run):
        try:
            content = safe_load.checkpoint(file)
            record.own(run, file, content)
        except Damaged as error:
            damage.append(error)
            continue
        for one in damage:
            LOG.warning("%s; %s is taken instead", one, shown(file.name))
        return content, file
    more = f", and no other checkpoint of {len(damage)} is whole" if len(damage) > 1 else ""
    raise Damaged(f"{damage[0]}{more}") from damage[0]
