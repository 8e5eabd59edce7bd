"""Cells of sweeps and ablations: one command each, in a folder of its own."""

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.trust import document, regular


@dataclass(frozen=True)
class Cell:
    """A command and the folder that it fills. `config` identifies what it computes, `work` is what its time is
    proportional to, and `needs` are cells whose folders it reads.
    """

    name: str
    verb: str
    words: tuple[str, ...]
    folder: Path
    config: str
    work: float
    needs: tuple["Cell", ...] = ()

    @property
    def command(self) -> str:
        """As it is typed, but for the folder."""
        return f"python {self.verb}.py {shlex.join(self.words)}"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    def state(self) -> dict[str, Any]:
        """What the last attempt left: its exit "status" and "seconds"; {} where there was none, or none that ended."""
        found = load(self.folder / "cell.json")
        return found if found.get("config") == self.config else {}

    def done(self) -> bool:
        return self.state().get("status") == 0


def load(file: Path) -> dict[str, Any]:
    """What a JSON file says; {} where there is none, or it was cut short."""
    return document(file)


def literal(text: str) -> str:
    """As Hydra reads it, whatever characters it has."""
    return "'" + text.replace("'", "\\'") + "'"


def quoted(key: str, value: object) -> str:
    """A word that Hydra reads as this value, in quotes only where they are needed."""
    text = str(value)
    return f"{key}={text if re.fullmatch('[A-Za-z0-9_./+-]+', text) else literal(text)}"


def in_shell(value: object) -> str:
    """What a shell makes Hydra's word for this value of, to be typed behind `key=`."""
    return shlex.quote(quoted("", value)[1:])


def fingerprint(config: DictConfig, root: Path) -> str:
    """12 digits that are the same for configurations that compute the same: where results go does not matter, nor where
    the cells lie whose folders they read, `root`. Of other runs whose folders they read, their configurations matter.
    """
    content: Any = OmegaConf.to_container(config, resolve=False)
    for key in ("hydra", "logger", "out", "trust"):
        content.pop(key, None)
    content.get("trainer", {}).pop("default_root_dir", None)
    if "run" in content:  # whose configuration has the data
        content.pop("data", None)
    said = json.dumps(content, sort_keys=True, default=str).replace(f"{root}/", "runs/ablations/")
    for text in sorted(_texts(content)):
        file = Path(text.split()[0], "config.yaml")
        if root not in file.parents and file.is_file():
            said += regular(file).read_text()
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)
    elif isinstance(content, str) and content.strip() and len(content) < 1000:
        yield content


def work(verb: str, config: DictConfig) -> float:
    """Passes of pictures through the network, about; those that train count three times."""
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


def named(cells: Sequence[Cell]) -> dict[str, Cell]:
    """By their names, to which the folder is added where several have the same."""
    counts = Counter(cell.name for cell in cells)
    return {
        cell.name if counts[cell.name] == 1 else f"{cell.name} ({cell.folder.name})": cell
        for cell in cells
    }
