"""See `python prepare.py --help`."""

import scripts._venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

from ddpm_lab.cli.prepare import main

if __name__ == "__main__":
    main()
