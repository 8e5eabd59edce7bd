"""The door: composes the configuration and hands it to a verb. Nothing heavy is imported before that is done."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ddpm_lab.commands import refusals, runs
from ddpm_lab.errors import UserError

PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parents[1] / "configs"


def train() -> None:
    """Trains a model."""

    def task(config: DictConfig) -> None:
        from ddpm_lab.commands.train import train

        train(config)

    _main("train", task)


def sample() -> None:
    """Samples from a run."""

    def task(config: DictConfig) -> None:
        from ddpm_lab.commands.sample import sample

        sample(config)

    _main("sample", task)


def evaluate() -> None:
    """Measures a run, or, with model=exact, what needs no network."""

    def task(config: DictConfig) -> None:
        from ddpm_lab.commands.evaluate import evaluate

        evaluate(config)

    def exact_task(config: DictConfig) -> None:
        from ddpm_lab.commands.exact import evaluate_exact

        evaluate_exact(config)

    if "model=exact" in sys.argv[1:]:
        _main("exact", exact_task)
    else:
        _main("evaluate", task)


def _main(verb: str, task: Callable[[DictConfig], None]) -> None:
    refused = []

    def job(config: DictConfig) -> None:
        try:
            task(config)
        except (UserError, OmegaConfBaseException) as error:  # here, so that a sweep goes on with its next cell
            told = isinstance(error, UserError)
            refused.append(_tell(str(error) if told else refusals.explain(error, verb, CONFIGS, sys.argv[1:])))
            with suppress(OSError):
                Path(HydraConfig.get().runtime.output_dir).rmdir()  # Hydra made it; nothing is in it yet

    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises its errors, which are then told in our words
    try:
        if verb in ("sample", "evaluate"):
            sys.argv[1:] = runs.unfold(sys.argv[1:])
            runs.offer(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=verb)(job)()
    except UserError as error:
        refused.append(_tell(str(error)))
    except (HydraException, OmegaConfBaseException) as error:
        refused.append(_tell(refusals.explain(error, verb, CONFIGS, sys.argv[1:])))
    if refused:
        sys.exit(2)


def _tell(message: str) -> str:
    print(f"error: {message}", file=sys.stderr)
    return message
