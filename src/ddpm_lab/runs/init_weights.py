"""init=DIR: a new run that starts from the weights of another."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from ddpm_lab.runs import resume, weights
from ddpm_lab.runs.run_config import load_config
from ddpm_lab.systems.base import BaseSystem
from ddpm_lab.utils.errors import UserError, join_first, snake_case

OWN = ("timestep_sampler.", "codec.")
"""Parts of the state that a new run computes from its own data"""
MEANING = ("system", "codec")
"""Groups that determine the meaning of weights and must be the same in both runs"""
OUTPUT_MEANING = ("prediction", "variance")
"""Groups that determine the meaning of the output, unless its layer `last` is replaced"""
FUNCTION = (
    *("heads", "head_channels", "norm_groups", "norm_eps", "time_scale", "time_shift"),
    *("frequency_shift", "downsample_padding"),
)
"""Options of a network that determine its function, but no shape of a tensor"""
CONTAINERS = {"denoiser", "classifier", "autoencoder", "network", "encoder"}
"""First parts of parameter names that say nothing about the layer"""


def adopt_model(config: DictConfig, overrides: Sequence[str] | None) -> None:
    """Replace values in `config.model` by those of the run `config.init`.

    These are nulls and options that change the network's function but no shape. Without model= and
    experiment= in `overrides` (None: in Python), they are all values that `overrides` do not set.
    """
    with rename_keys(str(config.init)):
        saved = load_config(str(config.init))
    resume.adopt_derived(config, saved, ("model",))
    if saved.model.get("_target_") != config.model.get("_target_"):
        return
    keys = {word.partition("=")[0] for word in overrides or ()}
    whole = overrides is not None and not keys & {"model", "experiment"}
    for key in saved.model if whole else FUNCTION:
        if key in saved.model and f"model.{key}" not in keys:
            config.model[key] = saved.model[key]


def load_initial_weights(system: BaseSystem, config: DictConfig) -> str:
    """Load the weights of `config.init` except for `config.init_replace`, and return a report.

    Raises UserError that names the first tensor with another shape in the two runs.
    """
    run, replaced = str(config.init), [str(word) for word in config.init_replace]
    with rename_keys(run):
        saved = load_config(run)
        content, file = weights.read_weights(run, config.init_checkpoint)
        state, kind = weights.select_state(content, run, config.init_weights)
    _check_meaning(saved, config, replaced)
    source, own = _shapes(state), _shapes(system.state_dict())
    names = {*source, *own}
    for word in replaced:
        if not any(_is_part(word, name) for name in names):
            parts = sorted({_layer(name) for name in names})
            raise UserError(f"init_replace=[{word}] matches no tensor; parts: {', '.join(parts)}")
    new = {name for name in names if any(_is_part(word, name) for word in replaced)}
    if wrong := sorted(name for name in names - new if source.get(name) != own.get(name)):
        shapes = f"{source.get(wrong[0], 'missing')} there, {own.get(wrong[0], 'missing')} here"
        layers = sorted({_layer(name) for name in wrong})
        raise UserError(
            f"init={run}: {len(wrong)} of {len(own)} tensors do not fit, such as {wrong[0]}: "
            f"{shapes}; {_difference(saved, config)}try init_replace=[{','.join(layers)}] to train "
            "these anew"
        )
    space = "codec._extra_state"
    if content["state_dict"].get(space) != system.state_dict().get(space):
        raise UserError(f"init={run} was trained in different latents; try its codec.run")
    common = names - new
    system.load_state_dict({name: state[name] for name in common}, strict=False)
    lines = [
        f"starting from the {'averaged' if kind == 'ema' else 'raw'} weights of step "
        f"{content['global_step']} in {file}: {len(common)} of {len(own)} tensors"
    ]
    rest = {"new": sorted(new & {*own}), "not used": sorted({*source} - common - {*own})}
    lines += [f"{label}: {join_first(part, 4)}" for label, part in rest.items() if part]
    return "; ".join(lines)


@contextmanager
def rename_keys(run: str) -> Iterator[None]:
    """Make errors about run=DIR and weights= name the keys init and init_weights."""
    try:
        yield
    except UserError as error:
        message = str(error).replace(f"run={run}", f"init={run}", 1)
        for key in ("weights", "checkpoint"):
            message = message.replace(f"{key}=", f"init_{key}=")
        raise type(error)(message) from error


def _check_meaning(saved: DictConfig, config: DictConfig, replaced: Sequence[str]) -> None:
    """Raise UserError if the same weights would have another meaning in the new run."""
    for group in (*MEANING, *(() if "last" in replaced else OUTPUT_MEANING)):
        other, own = (one[group].get("_target_", "").rpartition(".")[2] for one in (saved, config))
        if other != own:
            other, own = snake_case(other), snake_case(own)
            # A learned variance would also need an objective that trains it.
            same = f"{group}={other}, or " if group == "prediction" else ""
            new = f"; try {same}init_replace=[last]" if group in OUTPUT_MEANING else ""
            raise UserError(
                f"init={config.init} was trained with {group}={other}, but this run has {own}{new}"
            )


def _is_part(word: str, name: str) -> bool:
    """Return True if `word` is a sequence of parts of the dotted `name`."""
    return f".{word}." in f".{name}."


def _layer(name: str) -> str:
    """Return the layer in the name of a parameter, without its containers."""
    return next((part for part in name.split(".") if part not in CONTAINERS), name)


def _shapes(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the shapes of the learned tensors as texts."""
    return {
        name: "x".join(map(str, value.shape)) or "a number"
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.startswith(OWN)
    }


def _difference(saved: DictConfig, config: DictConfig) -> str:
    """Return a clause about the keys in which the networks of two runs differ; "" for none."""
    keys = [key for key, value in saved.model.items() if config.model.get(key) != value]
    text = " ".join(f"model.{key}={saved.model[key]}" for key in keys[:4])
    return f"its model has {text}; " if text else ""
