from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

# The tests' tensors are small: on a machine that does other things as well, threads would wait for one another.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def options(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides: str, verb: str = "train"):
    """The configuration that the command line would make."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(verb, overrides=list(overrides))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
