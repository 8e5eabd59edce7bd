"""Commands to type in the shell that started this program, environment activated or not."""

import logging
import os
import shlex
import shutil
import sys
import warnings
from functools import cache


def script_command(name: str) -> str:
    """Return the command for `sample`, `scripts/share`, ...: a file of this checkout, or `ddpm-sample` if installed."""
    folder, own = os.path.split(sys.argv[0])
    if own.startswith("ddpm-") and not name.startswith("scripts/"):
        installed = f"ddpm-{name}"
        return (
            installed if shutil.which(installed) else shlex.quote(os.path.join(folder, installed))
        )
    above = os.path.join(folder, "..")
    roots = [root for root in (folder, above) if os.path.isfile(os.path.join(root, "train.py"))]
    return f"{_python()} {shlex.quote(os.path.normpath(os.path.join(*roots[:1], f'{name}.py')))}"


def install_command(package: str) -> str:
    """Return the command that adds `package` to the environment of this program."""
    return f"{shlex.quote(sys.executable)} -m pip install {package}"


@cache
def _python() -> str:
    return next(
        (name for name in ("python", "python3") if shutil.which(name)), shlex.quote(sys.executable)
    )


def quiet_libraries() -> None:
    """Keeps Lightning's advertisements, and warnings about what is meant, from the terminal."""
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.|torchmetrics\.|pydantic\.")
