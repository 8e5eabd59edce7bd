"""See `python export.py --help`."""

import scripts._venv  # noqa: F401 (restarts with .venv where this Python lacks the packages)

from ddpm_lab.cli.export_weights import main

if __name__ == "__main__":
    main()
