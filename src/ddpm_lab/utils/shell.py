"""Commands to type in the user's shell, and the output of libraries on the terminal."""

import logging
import os
import shlex
import shutil
import sys
import warnings
from functools import cache


def script_command(name: str) -> str:
    """Return the command for `sample` or `scripts/share`, installed or in this checkout."""
    folder, program = os.path.split(sys.argv[0])
    if program.startswith("ddpm-") and not name.startswith("scripts/"):
        installed = f"ddpm-{name}"
        on_path = shutil.which(installed)
        return installed if on_path else shlex.quote(os.path.join(folder, installed))
    parent = os.path.join(folder, "..")
    roots = [root for root in (folder, parent) if os.path.isfile(os.path.join(root, "train.py"))]
    script = os.path.normpath(os.path.join(*roots[:1], f"{name}.py"))
    return f"{_python()} {shlex.quote(script)}"


def install_command(package: str) -> str:
    """Return the command that installs `package` in the environment of this program."""
    return f"{shlex.quote(sys.executable)} -m pip install {package}"


@cache
def _python() -> str:
    return next(filter(shutil.which, ("python", "python3")), shlex.quote(sys.executable))


def quiet_libraries() -> None:
    """Silence Lightning's advertisements and the warnings of libraries about intended settings."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.|torchmetrics\.|pydantic\.")
