"""Cells of sweeps and ablations: one command each, in a folder of its own."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.utils.safe_load import read_json


@dataclass(frozen=True)
class Job:
    """A command and the folder that it fills. `config` identifies what it computes, `work` is what its time is
    proportional to, and `needs` are cells whose folders it reads.
    """

    name: str
    verb: str
    overrides: tuple[str, ...]
    folder: Path
    config: str
    work: float
    needs: tuple["Job", ...] = ()

    @property
    def command(self) -> str:
        """As it is typed, but for the folder."""
        return f"python {self.verb}.py {shlex.join(self.overrides)}"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    def state(self) -> dict[str, Any]:
        """What the last attempt left: its exit "status" and "seconds"; {} where there was none, or none that ended."""
        found = read_json(self.folder / "job.json")
        return found if found.get("config") == self.config else {}

    def done(self) -> bool:
        return self.state().get("status") == 0


def estimate_work(verb: str, config: DictConfig) -> float:
    """Passes of images through the network, about; those that train count three times."""
    if verb == "train":
        factors = (
            config.trainer.max_steps or 800,
            config.data.batch_size or 64,
            config.trainer.accumulate_grad_batches,
        )
        numbers = [
            max(1, factor) if isinstance(factor, int) else 1 for factor in factors
        ]  # slips are told later
        return 3.0 * prod(numbers)
    chain = OmegaConf.select(config, "schedule.steps") or 1000
    steps = OmegaConf.select(config, "sampler.steps") or chain
    count = config.get("count") or 100
    return float(
        max(1, count if isinstance(count, int) else 1)
        * max(1, steps if isinstance(steps, int) else 1)
    )


def by_name(cells: Sequence[Job]) -> dict[str, Job]:
    """By their names, to which the folder is added where several have the same."""
    counts = Counter(cell.name for cell in cells)
    return {
        cell.name if counts[cell.name] == 1 else f"{cell.name} ({cell.folder.name})": cell
        for cell in cells
    }


def read_number(file: Path, key: str) -> float | None:
    """What a metrics.json says under `key`, which may have dots; None where it says no number, or there is none."""
    value = get_nested(read_json(file), key)
    return (
        float(value)
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
        else None
    )


def get_nested(found: Any, key: str) -> Any:
    """What keys that are joined by dots lead to; None where they lead nowhere."""
    for part in key.split("."):
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict):
            found = found.get(part)
        else:
            return None
    return found
