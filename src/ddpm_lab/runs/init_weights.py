"""init=DIR: a new run that starts from the weights of another."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from ddpm_lab.runs import resume, weights
from ddpm_lab.runs.run_config import load_config
from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.utils.errors import UserError

OWN = ("timestep_sampler.", "codec.")
"""Parts of the state that a new run computes from its own data"""
MEANING = ("system", "prediction", "variance", "conditioner", "codec")
"""Groups that determine the meaning of weights and must be the same in both runs"""


def adopt_model(config: DictConfig) -> None:
    """Replace nulls in `config.model` by the values of the run `config.init`."""
    with _rename_key(str(config.init)):
        saved = load_config(str(config.init))
    resume.adopt_derived(config, saved, ("model",))


def load_initial_weights(system: BaseSystem, config: DictConfig) -> str:
    """Load the weights of `config.init`, averaged if available, and return a log line."""
    run = str(config.init)
    with _rename_key(run):
        saved = load_config(run)
        content, file = weights.read_weights(run)
    for group in MEANING:
        other, own = (one[group].get("_target_", "").rpartition(".")[2] for one in (saved, config))
        if other != own:
            raise UserError(f"init={run} was trained with {group}={other}, but this run has {own}")
    average = content["callbacks"].get("EMA", {}).get("average")
    averaged = {f"denoiser.{name}": value for name, value in (average or {}).items()}
    state = {**content["state_dict"], **averaged}
    actual, expected = _shapes(state), _shapes(system.state_dict())
    if mismatches := sorted({name for name, _ in actual.items() ^ expected.items()}):
        first = mismatches[0]
        shapes = f"{actual.get(first, 'missing')} there, {expected.get(first, 'missing')} here"
        raise UserError(
            f"init={run}: {len(mismatches)} of {len(expected)} tensors do not fit, such as {first}:"
            f" {shapes}; {_difference(saved, config)}"
        )
    space = "codec._extra_state"
    if content["state_dict"].get(space) != system.state_dict().get(space):
        raise UserError(f"init={run} was trained in different latents; try its codec.run")
    system.load_state_dict({name: state[name] for name in actual}, strict=False)
    kind = "averaged" if average is not None or content.get("weights") == "ema" else "raw"
    return f"starting from the {kind} weights of step {content['global_step']} in {file}"


@contextmanager
def _rename_key(run: str) -> Iterator[None]:
    """Make errors about run=DIR name the key init."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace(f"run={run}", f"init={run}", 1)) from error


def _shapes(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the shapes of the learned tensors as texts."""
    return {
        name: "x".join(map(str, value.shape)) or "a number"
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.startswith(OWN)
    }


def _difference(saved: DictConfig, config: DictConfig) -> str:
    """Return a phrase about the difference between the models of two runs."""
    keys = [key for key, value in saved.model.items() if config.model.get(key) != value]
    if not keys:
        return "its data has another shape or other classes"
    return "its model has " + " ".join(f"model.{key}={saved.model[key]}" for key in keys[:4])
