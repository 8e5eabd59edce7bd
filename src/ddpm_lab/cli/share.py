"""python share.py RUN TARGET [weights=ema|raw] [checkpoint=best]"""

from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_lab.cli.next_commands import complete_command, typed_overrides
from ddpm_lab.cli.script import parse_options, run_script
from ddpm_lab.config.overrides import shell_value
from ddpm_lab.runs import run_config, run_record
from ddpm_lab.runs.saved_config import TRUSTED, load_saved_config
from ddpm_lab.runs.shared_folder import make_target, write_folder
from ddpm_lab.runs.weights import read_weights, select_state
from ddpm_lab.utils.errors import escape_control
from ddpm_lab.utils.shell import script_command

HELP = """Export a run as weights and configuration:

    {share} RUN TARGET [weights=ema|raw] [checkpoint=best]

TARGET is a new directory with config.yaml, run.json (the id of the run, a fingerprint of its data
and the environment of its training) and weights.safetensors, without code. It is read like a run:

    {sample} run=TARGET

The default is weights=ema if the run has averaged weights, and the newest checkpoint."""
OPTIONS = {"weights": ("ema", "raw"), "checkpoint": ("newest", "best")}
"""Words after RUN and TARGET"""
NEXT = {
    "Diffusion": ("sample", "run={}"),
    "AutoencoderSystem": ("train", "codec=autoencoder codec.run={}"),
    "ClassifierSystem": (
        "sample",
        "run=DIR guidance=classifier guidance.classifier.run={} guidance.scale=1",
    ),
}
"""Command and overrides that use a share, by system"""


def share(run: str, target: Path, weights: str | None = None, checkpoint: str = "newest") -> None:
    """Write the averaged or raw `weights` and the configuration of `run` to `target`.

    `checkpoint` is "newest" or "best". Raises UserError if `run` does not have the weights or
    `target` exists.
    """
    run_config.load_config(run)  # raises UserError unless it is a run directory
    config = load_saved_config(Path(run, "config.yaml"), TRUSTED)  # with paths as typed
    content, _ = read_weights(run, checkpoint)
    state, weights = select_state(content, run, weights)
    file = write_folder(
        make_target(target),
        config,
        {name: _copy(value) for name, value in state.items()},
        content["hyper_parameters"],
        weights,
        content["global_step"],
        run_record.read_record(run),
    )
    print(f"{escape_control(target)}: {file.stat().st_size / 2**20:.1f} MiB")
    if config.codec.get("run") == run_config.AUTOENCODER:
        share(str(Path(run, run_config.AUTOENCODER)), target / run_config.AUTOENCODER)
    verb, arguments = NEXT[config.system._target_.rpartition(".")[2]]
    arguments = arguments.format(escape_control(shell_value(target)))
    if verb == "sample" and weights == "raw":
        arguments += " weights=raw"
    print(f"  next     {complete_command(verb, arguments, config, typed_overrides(Path(run)))}")


def _copy(value: Any) -> Any:
    """Return a copy of a tensor, because .safetensors files have no shared ones."""
    return value.clone() if isinstance(value, Tensor) else value


def main() -> None:
    """Export the run that the arguments name; end with a line for mistakes."""
    help = HELP.format(share=script_command("share"), sample=script_command("sample"))
    run_script(help, _share)


def _share(run: str, target: str, *words: str) -> None:
    options = parse_options(words, OPTIONS)
    share(run, Path(target), **options)
