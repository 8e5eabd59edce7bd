"""Make every script run as typed, with or without an activated environment.

Importing this module continues where the requirements of ddpm-lab are missing: the script restarts with the `.venv` of
its checkout, made by `make install`. Without a usable `.venv`, one line says what to do and the status is 2. It parses
in every Python that `python` may be, 2.7 included: no annotations, no f-strings.
"""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
REQUIRED = (
    "hydra",
    "jinja2",
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
)
"""Modules of the `dependencies` in pyproject.toml"""
MARK = "DDPM_LAB_RESTARTED"


def enter():
    """Put the checkout's source first in the path; restart with .venv if this Python lacks what it needs."""
    environment = os.path.join(ROOT, ".venv")
    lacking = _lacking(environment)
    restarted = os.environ.pop(MARK, None)
    if not lacking:
        sys.path.insert(0, os.path.join(ROOT, "src"))
        return
    if not os.path.lexists(environment):
        _end(
            sys.executable + " " + lacking,
            "install",
            " (or, in an environment of yours, `pip install -e .`)",
        )
    if restarted:
        _end(environment + " " + lacking, "clean install")
    os.environ[MARK] = "1"
    python = os.path.join(
        environment, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python"))
    )
    command = [python] + getattr(sys, "orig_argv", [""] + sys.argv)[1:]
    try:
        if os.name == "nt":  # where exec returns to the shell at once
            sys.exit(subprocess.call(command))
        os.execv(python, command)
    except OSError as error:
        _end(environment + " cannot be used (" + str(error.strerror) + ")", "clean install")


def _lacking(environment):
    """Return what this Python lacks, for a message; "" if nothing."""
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return "is Python {}.{}, and ddpm-lab needs 3.11, 3.12 or 3.13".format(*sys.version_info)
    from importlib.util import find_spec

    absent = [name for name in REQUIRED if find_spec(name) is None]
    if absent:
        return (
            "lacks "
            + ", ".join(absent[:3])
            + (" and {} more".format(len(absent) - 3) if absent[3:] else "")
        )
    # `make install` was interrupted: some requirement of a requirement may be absent.
    within = os.path.realpath(sys.prefix) == os.path.realpath(environment)
    return (
        "is incomplete" if within and os.path.exists(os.path.join(environment, ".partial")) else ""
    )


def _end(message, target, other=""):
    make = "make " if os.path.realpath(os.getcwd()) == ROOT else "make -C '" + ROOT + "' "
    sys.stderr.write("error: " + message + "; try `" + make + target + "`" + other + "\n")
    sys.exit(2)


enter()
