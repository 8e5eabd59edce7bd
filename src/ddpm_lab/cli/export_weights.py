"""python export.py RUN TARGET format=diffusers|openai|onnx"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ddpm_lab.cli.script import parse_options, run_script
from ddpm_lab.evaluation.metrics import Results
from ddpm_lab.interop.exporting import (
    Export,
    diffusers_autoencoder,
    diffusers_pipeline,
    guided_diffusion,
    write_export,
)
from ddpm_lab.interop.onnx_export import onnx_denoiser
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.runs.shared_folder import make_target
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.errors import ResourceError, UserError, escape_control
from ddpm_lab.utils.shell import script_command

HELP = """Export a run to the format of another codebase:

    {program} RUN TARGET format=diffusers [weights=ema|raw] [license=NAME] [push=OWNER/NAME]
    {program} RUN TARGET format=openai
    {program} RUN TARGET format=onnx

diffusers: a folder that from_pretrained reads, with a DDPMPipeline, a DDIMPipeline or an
autoencoder. openai: model.pt for the scripts of guided-diffusion, whose flags are in README.md.
onnx: model.onnx, (x_t, t, label) to eps and the x_0 estimate, and the tables of the schedule.
TARGET is a new directory with a model card, README.md. push= uploads it to the Hugging Face Hub."""
EXPORTS = {"diffusers": diffusers_pipeline, "openai": guided_diffusion, "onnx": onnx_denoiser}
OPTIONS = {"format": tuple(EXPORTS), "weights": ("ema", "raw"), "license": None, "push": None}
"""Values of the words after RUN and TARGET; None: any"""


def export_weights(run: str | Path, target: str | Path, words: Sequence[str]) -> Path:
    """Write `run` to the new directory `target`; `words` are those of the command.

    Raises UserError for what the format cannot state, and ResourceError if the upload fails.
    """
    options = parse_options(words, OPTIONS)
    settings = OmegaConf.create({"weights": options.get("weights", "ema")})
    source = RunDir(str(run), settings)
    export = _export(source, options.get("format", "diffusers"))
    folder = make_target(Path(target))
    try:
        write_export(export, folder, _card(source, export, folder, options))
    except BaseException:
        shutil.rmtree(folder)
        raise
    if "push" in options:
        _push(folder, options["push"])
    return folder


def _export(run: RunDir, format: str) -> Export:
    system = run.config.system._target_.rpartition(".")[2]
    if system == "ClassifierSystem" or (system == "AutoencoderSystem" and format != "diffusers"):
        raise UserError(f"format={format}: run={run.path} is not a diffusion model")
    if system == "AutoencoderSystem":
        return diffusers_autoencoder(run.load_autoencoder(), run.config)
    return EXPORTS[format](run.pipeline, run.config)


def _card(run: RunDir, export: Export, folder: Path, options: dict[str, str]) -> str:
    """Return the model card: data, command, metrics with errors, usage and license."""
    code = export.usage.replace("FOLDER", json.dumps(options.get("push", str(folder))))
    fence = "python" if "import" in code else "text"
    data = run.config.data._target_.rpartition(".")[2]
    command = Path(run.path, "command.txt")
    lines = [
        "---",
        f"license: {json.dumps(options.get('license', 'unknown'))}",
        "tags: [diffusion, unconditional-image-generation, ddpm-lab]",
        "---",
        "",
        f"# {folder.name}",
        "",
        "Written by [ddpm-lab](https://github.com/ddpm-lab/ddpm-lab).",
        "",
        f"- Images: {'x'.join(map(str, _shape(run)))}",
        f"- Schedule: {_summary(run.config, 'schedule')}",
        f"- Weights: {options.get('weights', 'ema')}",
    ]
    if command.is_file():
        lines += [f"- Data: {data}", f"- Command: `{command.read_text().strip()}`"]
    if metrics := _metrics(safe_load.read_json(Path(run.path, "metrics.json"))):
        lines += ["", "| metric | value |", "|---|---|", *metrics]
    return "\n".join([*lines, "", f"```{fence}", code, "```", ""])


def _shape(run: RunDir) -> Any:
    content, _ = run.checkpoint
    return content["hyper_parameters"]["shape"]


def _summary(config: DictConfig, group: str) -> str:
    values = {key: value for key, value in config[group].items() if key[0] != "_"}
    name = config[group]._target_.rpartition(".")[2]
    return f"{name} ({', '.join(f'{key}={value}' for key, value in values.items())})"


def _metrics(results: Results) -> list[str]:
    """Return rows of a table: numbers of metrics.json, with their standard errors."""
    errors = results.get("standard_error") or {}
    rows = []
    for name, value in results.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            error = f" ± {errors[name]:.2g}" if name in errors else ""
            rows.append(f"| {name} | {value:.4g}{error} |")
    return rows


def _push(folder: Path, name: str) -> None:
    """Upload `folder` to the Hugging Face Hub. Raises ResourceError."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # of the hub, requests and httpx
        reason = " ".join(str(error).split())[:120]
        raise ResourceError(
            f"push={name}: the upload failed ({type(error).__name__}: {reason}); the files are in "
            f"{folder}"
        ) from error


def main() -> None:
    """Export the run that the arguments name; end with a line for mistakes."""
    run_script(HELP.format(program=script_command("export")), _export_command)


def _export_command(run: str, target: str, *words: str) -> None:
    folder = export_weights(run, target, words)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{escape_control(target)}: {size / 2**20:.1f} MiB")
    print(f"  use      {escape_control(folder / 'README.md')}")
