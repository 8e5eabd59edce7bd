"""The weights of a run: its checkpoints, or the file of `cli/share.py`."""

import logging
from pathlib import Path
from typing import Any

from ddpm_lab.runs import run_record
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import CorruptFileError, UserError, escape_control

LOG = logging.getLogger(__name__)


class ForeignFileError(CorruptFileError):
    """A checkpoint belongs to another run."""

    suffix = "foreign"


def read_checkpoint(run: str | Path, file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint of `run`.

    Raises ForeignFileError if their ids differ, CorruptFileError and UnsafeFileError.
    """
    content = safe_load.load_checkpoint(file)
    own, other = run_record.read_record(run).id, content.get("run_id")
    if own and other and own != other:
        raise ForeignFileError(f"{file} belongs to another run (id {other}; {run} has id {own})")
    return content


def checkpoint_files(run: str | Path, checkpoint: str = "newest") -> list[Path]:
    """Return the checkpoints of `run`, latest first, or its shared weights.

    With `checkpoint` "best", return the one with the best metric. Raises UserError.
    """
    folder = safe_load.reject_links(Path(run, "checkpoints"))
    if checkpoint == "best":
        if not (folder / safe_load.BEST).exists():
            raise UserError(
                f"checkpoint=best: run={run} has no best checkpoint, which training keeps with "
                "callbacks.checkpoints.best=fid; try checkpoint=newest"
            )
        return [folder / safe_load.BEST]
    checkpoints = safe_load.list_checkpoints(folder)
    shared = Path(run, "weights.safetensors")
    if not checkpoints and not shared.exists():
        raise UserError(f"run={run} has no checkpoint yet; train it for longer")
    return checkpoints or [shared]


def read_weights(run: str | Path, checkpoint: str = "newest") -> tuple[dict[str, Any], Path]:
    """Return content and file of the newest intact checkpoint of `run`, or of the "best" one.

    Raises UserError.
    """
    errors: list[CorruptFileError] = []
    for file in checkpoint_files(run, checkpoint):
        try:
            content = read_checkpoint(run, file)
        except CorruptFileError as error:
            errors.append(error)
            continue
        for damage in errors:
            LOG.warning("%s; using %s instead", damage, escape_control(file.name))
        return content, file
    others = f", and none of {len(errors)} checkpoints is intact" if len(errors) > 1 else ""
    raise CorruptFileError(f"{errors[0]}{others}") from errors[0]


def select_state(
    content: dict[str, Any], run: str | Path, kind: str | None = None
) -> tuple[dict[str, Any], str]:
    """Return the state of a checkpoint with averaged or raw weights, and "ema" or "raw".

    `kind` selects them (None: averaged if available). Raises UserError.
    """
    average = content["callbacks"].get("EMA", {}).get("average")
    available = [
        *(["ema"] if average is not None else []),
        *(["raw"] if content.get("weights") != "ema" else []),
    ]
    kind = kind or available[0]
    if kind not in available:
        raise UserError(f"weights={kind}: run={run} does not have them; try weights={available[0]}")
    averaged = {f"denoiser.{name}": value for name, value in (average or {}).items()}
    return {**content["state_dict"], **(averaged if kind == "ema" else {})}, kind
