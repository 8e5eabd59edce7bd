"""What the verbs do. Hydra is known only here; `main` imports nothing heavy."""

import sys

if sys.platform == "win32":
    sys.exit(
        "error: ddpm-lab runs on Linux and macOS; on Windows, run it in WSL (https://learn.microsoft.com/windows/wsl)"
    )
