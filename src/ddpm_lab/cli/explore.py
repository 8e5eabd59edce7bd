"""python explore.py [run=DIR]"""

import contextlib
import functools
import http.server
import math
import re
import webbrowser
from base64 import b64encode
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ddpm_lab.cli.script import parse_options, run_script
from ddpm_lab.config.overrides import shell_value
from ddpm_lab.data.datasets import evenly_spaced, to_uint8
from ddpm_lab.diffusion.guidance import ClassifierFreeGuidance
from ddpm_lab.diffusion.ode_solvers import DPMSolver, Heun
from ddpm_lab.diffusion.samplers import DDIM, DDPM
from ddpm_lab.diffusion.timestep_spacing import SPACINGS
from ddpm_lab.diffusion.variances import Beta
from ddpm_lab.explorer.page import render_page, schedule_tables
from ddpm_lab.explorer.runtime import SHA256, runtime_files
from ddpm_lab.interop.onnx_export import MODEL, onnx_denoiser, reason_against_onnx
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.sampling.class_names import parse_label
from ddpm_lab.sampling.pipeline import SamplingPipeline
from ddpm_lab.utils import safe_load
from ddpm_lab.utils.atomic_io import atomic_write, make_directory
from ddpm_lab.utils.errors import CLIError, ResourceError, UserError, escape_control
from ddpm_lab.utils.shell import script_command

HELP = """Write a page in which diffusion can be explored, and open it:

    {program} [out=explorer.html]
    {program} run=DIR [out=DIR/explorer] [weights=ema|raw] [open=false]

Without a run, the page is one file: samplers, schedules and guidance with the exact denoiser of a
mixture of Gaussians in the plane. With a run, it is a folder that any web server can serve, in
which the network of the run also works: forward process, samplers side by side, editing,
inpainting and training. Nothing is fetched from elsewhere."""
OPTIONS = {"run": None, "out": None, "weights": ("ema", "raw"), "open": ("true", "false")}
SAMPLERS = {DDPM: "ddpm", DDIM: "ddim", DPMSolver: "dpm_solver", Heun: "heun"}
MAX_STEPS = 100
"""Steps of the sampler of the run that the page takes over"""
IMAGES, GRIDS = 8, 8
"""Held-out images and sample grids in the page"""
PAGE = "index.html"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line per request, or a traceback when a browser leaves."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *args: object) -> None:
        pass


def write_page(file: Path) -> None:
    """Write the page of exact diffusion, one file, to `file`. Raises ResourceError."""
    make_directory(str(file.parent))
    _write(file, render_page().encode())


def write_folder(run: RunDir, folder: Path) -> None:
    """Write the page of `run` to `folder`: HTML, the network, and onnxruntime-web.

    Raises UserError for a model that the page cannot run or a folder with other files, which would
    be served too, and ResourceError.
    """
    pipeline, names = _pipeline(run), {*SHA256, MODEL, PAGE}
    entries = sorted(file.name for file in make_directory(str(folder)).iterdir())
    if other := [name for name in entries if name not in names and name[0] != "."]:
        raise UserError(f"out={folder} has other files ({other[0]}); choose a new folder")
    try:
        files = {**runtime_files(), **onnx_denoiser(pipeline, run.config).binaries}
    except CLIError:
        with contextlib.suppress(OSError):  # it has the page of an earlier call
            folder.rmdir()
        raise
    description = _describe(run, pipeline) | {"bytes": len(files[MODEL])}
    for name, content in {**files, PAGE: render_page(description).encode()}.items():
        _write(folder / name, content)


def _write(file: Path, content: bytes) -> None:
    try:
        with atomic_write(file) as part:
            part.write_bytes(content)
    except OSError as error:
        raise ResourceError(
            f"{file} cannot be written ({error.strerror}); choose another out="
        ) from error


def _pipeline(run: RunDir) -> SamplingPipeline:
    pipeline, shape = run.pipeline, run.pipeline.shape
    reason = reason_against_onnx(pipeline)
    if len(shape) != 3:
        reason = f"it makes points of {shape[0]} numbers"
    elif shape[0] not in (1, 3) or shape[0] * shape[1] * shape[2] < 16:
        reason = f"its images have the shape {'x'.join(map(str, shape))}"
    if reason is not None:
        raise UserError(
            f"run={run.path} does not work in the page, because {reason}; try "
            f"{script_command('explore')} without run=, for exact diffusion in the plane"
        )
    return pipeline


def _describe(run: RunDir, pipeline: SamplingPipeline) -> dict[str, Any]:
    """Return what the page shows of a run."""
    denoiser, classes = pipeline.denoiser, pipeline.denoiser.classes
    guided = pipeline.guidance(denoiser)
    names = classes and (pipeline.class_names or [*map(str, range(classes))])
    return {
        "name": Path(run.path).resolve().name,
        "command": _sample_command(run),
        "serve": "python3 -m http.server --bind 127.0.0.1 8000",
        "shape": [*pipeline.shape],
        "classes": names,
        "labels": names and [_label(names, i) for i in range(len(names))],
        "nullable": denoiser.supports_cfg,
        "guided": guided is not denoiser and getattr(guided, "w", 1) != 0,
        "process": schedule_tables(pipeline.process),
        "defaults": _defaults(pipeline),
        "images": b64encode(_images(run)).decode(),
        "terms": _terms(Path(run.path)),
        "grids": _grids(Path(run.path)),
    }


def _sample_command(run: RunDir) -> str:
    weights = "" if run.settings.weights == "ema" else f" weights={run.settings.weights}"
    return f"{script_command('sample')} run={shell_value(run.path)}{weights}"


def _label(names: Sequence[str], label: int) -> str:
    """Return the word for a class on the command line: its number, or its name where others win."""
    with contextlib.suppress(UserError):
        if parse_label(label, [[name] for name in names]) == label:
            return str(label)
    return shell_value(names[label])


def _defaults(pipeline: SamplingPipeline) -> dict[str, Any]:
    """Return the sampler of the run, or DDIM with 25 steps where the page does not have it."""
    sampler, guided = pipeline.sampler, pipeline.guidance(pipeline.denoiser)
    w = guided.w if type(guided) is ClassifierFreeGuidance else 0
    defaults = {"sampler": "ddim", "steps": 25, "spacing": "uniform", "eta": 0, "w": w}
    in_page = type(sampler) in SAMPLERS and not getattr(sampler, "sigma_hat", False)
    if in_page and pipeline.num_steps <= MAX_STEPS:
        defaults |= {"sampler": SAMPLERS[type(sampler)], "steps": pipeline.num_steps}
        defaults["eta"] = getattr(sampler, "eta", 0)
        if str(sampler.spacing) in SPACINGS:  # the page has no others
            defaults["spacing"] = sampler.spacing
    variance = "beta" if isinstance(pipeline.denoiser.variance, Beta) else "beta_tilde"
    return {**defaults, "variance": variance, "clip": sampler.clip}


def _images(run: RunDir) -> bytes:
    """Return held-out images as uint8, or none if the data are not here."""
    try:
        split = run.data.test
    except UserError:
        return b""
    images = split.select(evenly_spaced(split.size, IMAGES))
    return to_uint8(images.x0).numpy().tobytes()


def _terms(run: Path) -> dict[str, list[float]] | None:
    """Return the terms of the bound of the newest evaluation that has them."""
    for file in sorted(run.glob("evaluations/*/metrics.json"), reverse=True):
        with contextlib.suppress(AttributeError, KeyError, TypeError):  # others may have edited it
            terms = safe_load.read_json(file)["nll"]["terms"]
            numbers = {key: [float(term[key]) for term in terms] for key in ("t", "bits")}
            if terms and all(map(math.isfinite, chain(*numbers.values()))):  # JSON has no others
                return numbers
    return None


def _grids(run: Path) -> list[dict[str, Any]]:
    """Return the sample grids of the training, evenly spaced."""
    files = sorted(run.glob("images/samples-*.png"))
    return [
        {
            "step": int("".join(re.findall(r"\d+", file.stem)) or 0),
            "picture": f"data:image/png;base64,{b64encode(file.read_bytes()).decode()}",
        }
        for file in (safe_load.regular_file(files[i]) for i in evenly_spaced(len(files), GRIDS))
    ]


def main() -> None:
    """Write the page that the arguments name, and open it; end with a line for mistakes."""
    run_script(HELP.format(program=script_command("explore")), _explore, paths=0)


def _explore(*words: str) -> None:
    options = parse_options(words, OPTIONS)
    if "run" not in options:
        if "weights" in options:
            raise UserError(f"weights={options['weights']} needs a run; add run=DIR")
        file = Path(options.get("out", "explorer.html"))
        if file.suffix != ".html":
            raise UserError(f"out={file}: the page is one file; try out={file}.html")
        write_page(file)
        _print_size(file, [file])
        if options.get("open") != "false" and not webbrowser.open(file.resolve().as_uri()):
            print(f"  open     {file.resolve().as_uri()}")
        return
    settings = OmegaConf.create({"weights": options.get("weights", "ema")})
    folder = Path(options.get("out") or Path(options["run"], "explorer"))
    write_folder(RunDir(options["run"], settings), folder)
    _print_size(folder, [*folder.iterdir()])
    handler = functools.partial(Handler, directory=str(folder))
    if options.get("open") != "false":
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            address = f"http://127.0.0.1:{server.server_port}/"
            print(f"  open     {address} (Ctrl-C stops it)", flush=True)
            webbrowser.open(address)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()


def _print_size(target: Path, files: list[Path]) -> None:
    size = sum(file.stat().st_size for file in files)
    print(f"{escape_control(target)}: {size / 2**20:.1f} MiB")
