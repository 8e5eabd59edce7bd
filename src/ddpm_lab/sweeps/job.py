"""Jobs of sweeps and ablations: one command each, in its own folder."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.utils.safe_load import read_json

ENVIRONMENT = "environment.json"
"""File of a finished job with `runs.provenance.environment`"""


@dataclass(frozen=True)
class Job:
    """A command and the folder of its output.

    The expected time is proportional to `cost`. `needs` are the jobs whose folders it reads.
    """

    name: str
    verb: str
    overrides: tuple[str, ...]
    folder: Path
    config_hash: str
    cost: float
    needs: tuple["Job", ...] = ()

    @property
    def command(self) -> str:
        """The command line, without the override of the folder."""
        return f"python {self.verb}.py {shlex.join(self.overrides)}"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    def state(self) -> dict[str, Any]:
        """Return job.json: the exit "status", the "seconds" and the "error" of the last attempt.

        Empty if no attempt has ended, or if it had another configuration.
        """
        state = read_json(self.folder / "job.json")
        return state if state.get("config") == self.config_hash else {}

    def done(self) -> bool:
        return self.state().get("status") == 0


def estimate_cost(verb: str, config: DictConfig) -> float:
    """Estimate the number of images passed through the network; training counts three times."""
    if verb == "train":
        steps, batch_size = config.trainer.max_steps or 800, config.data.batch_size or 64
        factors = (steps, batch_size, config.trainer.accumulate_grad_batches)
        return 3.0 * prod(map(_positive, factors))
    chain = OmegaConf.select(config, "schedule.steps") or 1000
    steps = OmegaConf.select(config, "sampler.steps") or chain
    return float(_positive(config.get("count") or 100) * _positive(steps))


def _positive(value: Any) -> int:
    """Return 1 for invalid values, which the job itself rejects."""
    return max(1, value) if isinstance(value, int) else 1


def by_name(jobs: Sequence[Job]) -> dict[str, Job]:
    """Index jobs by name; append the folder to names that occur more than once."""
    counts = Counter(job.name for job in jobs)
    return {
        job.name if counts[job.name] == 1 else f"{job.name} ({job.folder.name})": job
        for job in jobs
    }


def read_number(file: Path, key: str) -> float | None:
    """Return the number under a dotted key of a JSON file; None if there is none."""
    match get_nested(read_json(file), key):
        case float(value):
            return value
        case int(value) if abs(value) < 2**63:
            return float(value)
    return None


def get_nested(content: Any, key: str) -> Any:
    """Return the value under a dotted key; None if there is none."""
    for part in key.split("."):
        match content:
            case list() if part.isdigit() and int(part) < len(content):
                content = content[int(part)]
            case dict():
                content = content.get(part)
            case _:
                return None
    return content
