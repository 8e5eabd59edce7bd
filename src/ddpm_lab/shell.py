"""Commands to type in the shell that started this program, environment activated or not."""

import os
import shlex
import shutil
import sys
from functools import cache


def program(name: str) -> str:
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


def install(package: str) -> str:
    """Return the command that adds `package` to the environment of this program."""
    return f"{shlex.quote(sys.executable)} -m pip install {package}"


@cache
def _python() -> str:
    return next(
        (name for name in ("python", "python3") if shutil.which(name)), shlex.quote(sys.executable)
    )
