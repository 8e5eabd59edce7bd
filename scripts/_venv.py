"""Run every script as typed, with or without an activated environment.

If this Python lacks the requirements of ddpm-lab, importing this module restarts the script in the
`.venv` of its checkout, made by `make install`. Without a usable `.venv`, it prints one line and
exits with status 2. It parses in every `python`, including 2.7: no annotations, no f-strings.
"""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
REQUIRED = (
    "hydra",
    "jinja2",
    "lazy_loader",
    "lightning",
    "matplotlib",
    "numpy",
    "omegaconf",
    "PIL",
    "pydantic",
    "safetensors",
    "sklearn",
    "tensorboardX",
    "torch",
    "torch_fidelity",
    "torchmetrics",
    "torchvision",
    "tqdm",
    "wandb",
    "annotated_types",
)
"""Modules of `dependencies` in pyproject.toml"""
MARK = "DDPM_LAB_RESTARTED"


def enter():
    """Put the checkout first in sys.path; restart with .venv if packages are missing."""
    environment = os.path.join(ROOT, ".venv")
    problem = _problem(environment)
    restarted = os.environ.pop(MARK, None)
    if not problem:
        sys.path.insert(0, os.path.join(ROOT, "src"))
        return
    if not os.path.lexists(environment):
        hint = " (or, in your own environment, `pip install -e .`)"
        _exit(sys.executable + " " + problem, "install", hint)
    if restarted:
        _exit(environment + " " + problem, "clean install")
    os.environ[MARK] = "1"
    parts = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    python = os.path.join(environment, *parts)
    command = [python] + getattr(sys, "orig_argv", [""] + sys.argv)[1:]
    try:
        if os.name == "nt":  # exec would return to the shell at once
            sys.exit(subprocess.call(command))
        os.execv(python, command)
    except OSError as error:
        _exit(environment + " cannot be used (" + str(error.strerror) + ")", "clean install")


def _problem(environment):
    """Return the problem of this Python as the end of a message; "" if there is none."""
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return "is Python {}.{}, and ddpm-lab needs 3.11, 3.12 or 3.13".format(*sys.version_info)
    from importlib.util import find_spec

    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        more = " and {} more".format(len(missing) - 3) if missing[3:] else ""
        return "lacks " + ", ".join(missing[:3]) + more
    # After an interrupted `make install`, a requirement of a requirement may be missing.
    active = os.path.realpath(sys.prefix) == os.path.realpath(environment)
    partial = os.path.exists(os.path.join(environment, ".partial"))
    return "is incomplete" if active and partial else ""


def _exit(message, target, hint=""):
    make = "make " if os.path.realpath(os.getcwd()) == ROOT else "make -C '" + ROOT + "' "
    sys.stderr.write("error: " + message + "; try `" + make + target + "`" + hint + "\n")
    sys.exit(2)


enter()
