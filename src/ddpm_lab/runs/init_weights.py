"""init=DIR: a new run that starts from the weights of another."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from ddpm_lab.runs import resume, run_config, weights
from ddpm_lab.utils.errors import UserError
from ddpm_lab.systems.base import BaseSystem

OWN = ("timestep_sampler.", "codec.")
"""Parts that a new run makes of its own data"""
MEANT = ("system", "prediction", "variance", "conditioner", "codec")
"""Groups whose other choice means something else by the same weights"""


def adopt_model(config: DictConfig) -> None:
    """Complete the model of `config`, where it is null, by that of `config.init`."""
    with _naming(str(config.init)):
        saved = run_config.load_config(str(config.init))
    resume.adopt_derived(config, saved, ("model",))


def load_initial_weights(system: BaseSystem, config: DictConfig) -> str:
    """Load the weights of the run `config.init` into `system`, averaged ones if it has them, and return a line about
    them. Raises UserError where they do not fit.
    """
    run = str(config.init)
    with _naming(run):
        saved = run_config.load_config(run)
        content, file = weights.read_weights(run)
    for group in MEANT:
        there, here = (one[group].get("_target_", "").rpartition(".")[2] for one in (saved, config))
        if there != here:
            raise UserError(
                f"init={run} was trained with {group}={there}, and this run has {here}; they must agree"
            )
    average = content["callbacks"].get("EMA", {}).get("average")
    averaged = {f"denoiser.{name}": value for name, value in (average or {}).items()}
    found = _learned({**content["state_dict"], **averaged})
    wanted = _learned(system.state_dict())
    wrong = sorted(
        name for name in {*found, *wanted} if _shape(found.get(name)) != _shape(wanted.get(name))
    )
    if wrong:
        other = [
            f"{key}={value}"
            for key, value in _model(saved).items()
            if _model(config).get(key) != value
        ]
        hint = (
            f"its model has {' '.join(other[:4])}"
            if other
            else "its data has another shape or other classes"
        )
        raise UserError(
            f"init={run}: {len(wrong)} of {len(wanted)} tensors do not fit, such as {wrong[0]}: "
            f"{_shape(found.get(wrong[0]))} there, {_shape(wanted.get(wrong[0]))} here; {hint}"
        )
    space = "codec._extra_state"
    if content["state_dict"].get(space) != system.state_dict().get(space):
        raise UserError(
            f"init={run} was trained in latents of another autoencoder; try its codec.run"
        )
    system.load_state_dict(found, strict=False)
    kind = "averaged" if average is not None or content.get("weights") == "ema" else "raw"
    return f"starting from the {kind} weights of step {content['global_step']} in {file}"


@contextmanager
def _naming(run: str) -> Iterator[None]:
    """Make errors about `run` name the key init."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace(f"run={run}", f"init={run}", 1)) from error


def _learned(state: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.startswith(OWN)
    }


def _shape(value: Tensor | None) -> str:
    return "missing" if value is None else "x".join(map(str, value.shape)) or "a number"


def _model(config: DictConfig) -> dict[str, Any]:
    return {".".join(("model", str(key))): value for key, value in config.model.items()}
