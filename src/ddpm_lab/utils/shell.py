"""Commands to type in the user's shell, and the output of libraries on the terminal."""

import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
"""Root of the checkout, unless the package is installed"""


def script_command(name: str) -> str:
    """Return the command for `name`, such as `sample`, installed or in this checkout."""
    folder, program = os.path.split(sys.argv[0])
    roots = [root for root in (folder, os.path.join(folder, "..")) if _is_checkout(root)]
    if program.startswith("ddpm-") or not (roots or _is_checkout(CHECKOUT)):
        installed = f"ddpm-{name}"
        if shutil.which(installed):
            return installed
        programs = folder if program.startswith("ddpm-") else os.path.dirname(sys.executable)
        return shlex.quote(os.path.join(programs, installed))
    script = os.path.normpath(os.path.join(*roots[:1], f"{name}.py"))
    return f"{_python()} {shlex.quote(script)}"


def _is_checkout(root: str | Path) -> bool:
    return os.path.isfile(os.path.join(root, "train.py"))


def install_command(package: str) -> str:
    """Return the command that installs `package` in the environment of this program."""
    return f"{shlex.quote(sys.executable)} -m pip install {package}"


@contextmanager
def optional_package(
    package: str, key: str, error: type[ValueError] = ValueError
) -> Iterator[None]:
    """Turn an ImportError into `error`: `key` needs `package`, which is not installed."""
    try:
        yield
    except ImportError as cause:
        text = f"{key} needs {package}, which is not installed; try {install_command(package)}"
        raise error(text) from cause


@cache
def _python() -> str:
    return next(filter(shutil.which, ("python", "python3")), shlex.quote(sys.executable))


def quiet_libraries() -> None:
    """Silence Lightning's advertisements and the warnings of libraries about intended settings."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.|torchmetrics\.|pydantic\.")
