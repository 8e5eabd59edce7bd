"""Provenance of results: the code, the libraries and the machine that computed them."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_lab import __version__
from ddpm_lab.utils.atomic_io import write_json

if TYPE_CHECKING:
    import torch

Environment = dict[str, str | None]
ROOT = Path(__file__).parents[3]
"""Root of the checkout, unless the package is installed"""


def environment(device: "torch.device | None" = None) -> Environment:
    """Return the versions, the machine and the date (ISO 8601, UTC) of this process.

    Without `device`, `device` is the first GPU, or the CPU if there is none.
    """
    import torch

    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "ddpm_lab": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "cores": str(os.cpu_count()),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_environment(file: Path) -> None:
    """Write the environment of this process to `file`."""
    write_json(file, {"environments": [environment()]})


def version() -> str:
    """Return the version of ddpm-lab, with the commit in a checkout."""
    revision, plus, _ = (commit() or "").partition("+")
    return f"{__version__} ({revision[:9]}{plus})" if revision else __version__


def commit(root: Path = ROOT) -> str | None:
    """Return the Git commit of the checkout `root`, or None if it is not one of ddpm-lab.

    A + follows if files in src/ or configs/ differ from the commit. Git reads no repository above
    `root`.
    """
    if not _is_checkout(root):
        return None
    git = ("git", "-C", str(root), "--no-optional-locks", "-c", "core.fsmonitor=false")
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env |= {"GIT_CEILING_DIRECTORIES": str(root.parent), "GIT_NO_LAZY_FETCH": "1"}
    revision = _output(*git, "rev-parse", "--verify", "HEAD", env=env)
    changes = _output(*git, "status", "--porcelain", "--", "src", "configs", env=env)
    return f"{revision}{'+' * bool(changes)}" if revision else None


def _is_checkout(root: Path) -> bool:
    project = ""
    with suppress(OSError):
        project = (root / "pyproject.toml").read_text("utf-8", "replace")
    ours = re.search('^name = "ddpm-lab"$', project, re.MULTILINE)
    return ours is not None and (root / ".git").exists()


def _output(*command: str, env: dict[str, str] | None = None) -> str:
    """Return the output of `command`; "" if it is missing, fails or takes over 10 s."""
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10, env=env
        )
        return result.stdout.strip()
    return ""


def _cpu() -> str:
    """Return the model of the CPU, or its architecture if the system does not name the model."""
    with suppress(OSError):
        if match := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M):
            return match[1]
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
