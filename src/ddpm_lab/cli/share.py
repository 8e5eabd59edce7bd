"""python share.py RUN TARGET [weights=ema|raw] [checkpoint=best]"""

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor

from ddpm_lab.cli.next_commands import complete_command, typed_overrides
from ddpm_lab.config.overrides import shell_value
from ddpm_lab.runs import run_config, run_record
from ddpm_lab.runs.saved_config import TRUSTED, load_saved_config
from ddpm_lab.runs.weights import read_weights, select_state
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import CLIError, ResourceError, UserError, escape_control
from ddpm_lab.utils.shell import script_command

HELP = """Export a run as weights and configuration:

    {share} RUN TARGET [weights=ema|raw] [checkpoint=best]

TARGET is a new directory with config.yaml, run.json (the id of the run, a fingerprint of its data
and the environment of its training) and weights.safetensors, without code. It is read like a run:

    {sample} run=TARGET

The default is weights=ema if the run has averaged weights, and the newest checkpoint."""
OPTIONS = {"weights=ema", "weights=raw", "checkpoint=newest", "checkpoint=best"}
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
    if target.exists():
        raise UserError(f"TARGET={target} exists, and nothing is overwritten; try another name")
    tensors = {
        name: value.clone().contiguous()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    record = run_record.read_record(run)
    metadata = {
        "run_id": record.id,
        "hyper_parameters": content["hyper_parameters"],
        "global_step": content["global_step"],
        "weights": weights,
        "extra": {name: value for name, value in state.items() if name not in tensors},
    }
    try:
        target.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(
            f"TARGET={target} cannot be created ({error.strerror}); try another"
        ) from error
    file = target / "weights.safetensors"
    safe_load.save_tensors(tensors, file, {"ddpm_lab": json.dumps(metadata)})
    OmegaConf.save(config, target / "config.yaml")
    public = record._asdict() | {"directory": None}
    (target / run_record.FILE).write_text(json.dumps(public, indent=1) + "\n")
    verb, arguments = NEXT[config.system._target_.rpartition(".")[2]]
    arguments = arguments.format(escape_control(shell_value(target)))
    if verb == "sample" and weights == "raw":
        arguments += " weights=raw"
    print(f"{escape_control(target)}: {file.stat().st_size / 2**20:.1f} MiB")
    print(f"  next     {complete_command(verb, arguments, config, typed_overrides(Path(run)))}")


def main() -> None:
    """Export the run that the arguments name; end with a line for mistakes."""
    arguments = sys.argv[1:]
    help = HELP.format(share=script_command("share"), sample=script_command("sample"))
    if arguments in (["--help"], ["-h"]):
        print(help)
        return
    if len(arguments) < 2 or not {*arguments[2:]} <= OPTIONS:
        print(help, file=sys.stderr)
        sys.exit(UserError.status)
    run, target, *words = arguments
    try:
        share(run, Path(target), **dict(word.split("=") for word in words))
    except CLIError as error:
        print(f"error: {escape_control(error, lines=True)}", file=sys.stderr)
        sys.exit(error.status)
