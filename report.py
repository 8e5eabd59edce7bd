"""See `python report.py --help`."""

import scripts._venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

from ddpm_lab.cli.main import report

if __name__ == "__main__":
    report()
