"""Jobs of sweeps and ablations: one command each, in its own folder."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.utils.safe_load import read_json

ENVIRONMENT = "environment.json"
"""File of a finished job with `runs.provenance.environment`"""
HELD_OUT = 360
"""Number of held-out images for a cost, that of the digits"""


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

    def number(key: str, default: int) -> int:
        """Return `default` for null and for invalid values, which the job itself rejects."""
        value = OmegaConf.select(config, key)
        return value if isinstance(value, int) and value > 0 else default

    chain = number("schedule.steps", 1000)
    steps = number("sampler.steps", chain)
    if verb == "train":
        batch = number("data.batch_size", 64) * number("trainer.accumulate_grad_batches", 1)
        samples = number("callbacks.fid.count", 0) * steps
        return float(3 * number("trainer.max_steps", 800) * batch + samples)
    metrics = config.get("metrics") or ["fid"]
    costs = {
        "nll": number("nll.count", HELD_OUT) * number("nll.steps", chain),
        "reconstruction": number("reconstruction.count", HELD_OUT) * 2 * steps,
    }
    samples = number("count", 100) * steps
    return float(sum({costs.get(metric, samples) for metric in metrics}))


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
