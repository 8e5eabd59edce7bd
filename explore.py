"""See `python explore.py --help`."""

import scripts._venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

from ddpm_lab.cli.explore import main

if __name__ == "__main__":
    main()
