"""Makes of a run what can be given away: python scripts/share.py RUN TARGET [weights=ema|raw]

TARGET is a new folder with config.yaml, run.json (the id of the run and a fingerprint of its data) and
weights.safetensors, numbers and nothing else. It is read as a run is:

    python sample.py run=TARGET

Without weights= they are the averaged ones, where the run kept an average.
"""

import _venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

import json
import sys
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor

from ddpm_lab.cli.next_commands import complete_command, typed_overrides
from ddpm_lab.config.overrides import shell_value
from ddpm_lab.runs import run_config, run_record
from ddpm_lab.runs.saved_config import TRUSTED, load_saved_config
from ddpm_lab.runs.weights import read_weights
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import CLIError, ResourceError, UserError, escape_control

NEXT = {
    "Diffusion": ("sample", "run={}"),
    "AutoencoderSystem": ("train", "codec=autoencoder codec.run={}"),
    "ClassifierSystem": (
        "sample",
        "run=DIR guidance=classifier guidance.classifier.run={} guidance.scale=1",
    ),
}
"""Use of a share by system"""


def share(run: str, target: Path, weights: str | None = None) -> None:
    """Raises UserError."""
    run_config.load_config(run)
    config, (content, _) = (
        load_saved_config(Path(run, "config.yaml"), TRUSTED),
        read_weights(run),
    )  # with paths as they were typed
    average = content["callbacks"].get("EMA", {}).get("average")
    weights = weights or ("raw" if average is None else "ema")
    if weights not in ("ema", "raw") or (weights == "ema" and average is None):
        raise UserError(f"weights={weights} are not in run={run}; try weights=raw")
    if target.exists():
        raise UserError(f"TARGET={target} exists, and nothing is overwritten; name another")
    state = content["state_dict"]
    if weights == "ema":
        state |= {f"denoiser.{name}": value for name, value in average.items()}
    kept = {
        name: value.clone().contiguous()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    record = run_record.read_record(run)
    said = {
        "run_id": record.id,
        "hyper_parameters": content["hyper_parameters"],
        "global_step": content["global_step"],
        "weights": weights,
        "extra": {name: value for name, value in state.items() if name not in kept},
    }
    try:
        target.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(
            f"TARGET={target} cannot be made a folder ({error.strerror}); choose another"
        ) from error
    safe_load.save_tensors(kept, target / "weights.safetensors", {"ddpm_lab": json.dumps(said)})
    OmegaConf.save(config, target / "config.yaml")
    about = record._asdict() | {"directory": None}  # which concerns nobody else
    (target / run_record.FILE).write_text(json.dumps(about, indent=1) + "\n")
    size = (target / "weights.safetensors").stat().st_size
    verb, following = NEXT[config.system._target_.rpartition(".")[2]]
    following = following.format(escape_control(shell_value(target))) + " weights=raw" * (
        verb == "sample" and weights == "raw"
    )
    print(f"{escape_control(target)}: {size / 2**20:.1f} MiB")
    print(f"  next     {complete_command(verb, following, config, typed_overrides(Path(run)))}")


if __name__ == "__main__":
    overrides = sys.argv[1:]
    if len(overrides) not in (2, 3) or (
        len(overrides) == 3 and not overrides[2].startswith("weights=")
    ):
        print(__doc__, file=sys.stderr)
        sys.exit(UserError.status)
    try:
        share(
            overrides[0],
            Path(overrides[1]),
            *(word.removeprefix("weights=") for word in overrides[2:]),
        )
    except CLIError as error:
        print(f"error: {escape_control(error, lines=True)}", file=sys.stderr)
        sys.exit(error.status)
