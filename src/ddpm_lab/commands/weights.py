"""Which file has the weights of a run, and what is in it."""

from pathlib import Path
from typing import Any

from ddpm_lab import trust
from ddpm_lab.callbacks.checkpoints import ordered
from ddpm_lab.commands import records
from ddpm_lab.errors import Damaged, UserError


def newest(run: str | Path) -> Path:
    """The checkpoint of the latest step of `run`, or the weights that scripts/share.py wrote. Raises UserError."""
    found = ordered(trust.unlinked(Path(run, "checkpoints")))
    if not found and (shared := Path(run, "weights.safetensors")).exists():
        return shared
    if not found:
        raise UserError(f"run={run} holds no checkpoint yet; it must train for longer")
    return found[0]


def read(run: str | Path) -> tuple[dict[str, Any], Path]:
    """What is in `newest(run)`, see `trust.checkpoint`, and that file. Raises UserError; where it is damaged, with the
    newest that is good.
    """
    file = newest(run)
    try:
        return _checked(run, file), file
    except Damaged as error:
        good = next((older for older in ordered(file.parent)[1:] if _is_good(run, older)), None)
        hint = f"remove it, and {good.name} is taken, which is good" if good else f"run={run} has no other that is good"
        raise Damaged(f"{error}; {hint}") from error


def _checked(run: str | Path, file: Path) -> dict[str, Any]:
    content = trust.checkpoint(file)
    records.own(run, file, content)
    return content


def _is_good(run: str | Path, file: Path) -> bool:
    try:
        return bool(_checked(run, file))
    except UserError:
        return False
