"""The frame of commands that take two paths and options: share, import and export."""

import os
import sys
import traceback
from collections.abc import Callable

from ddpm_lab.utils.errors import CLIError, UserError, escape_control


def run_script(help: str, command: Callable[..., None]) -> None:
    """Run `command` with the words of the command line: two paths, and options key=value.

    Prints `help` if it is requested or the words are others. Ends with a line for mistakes, with a
    traceback before it if DDPM_LAB_DEBUG is set.
    """
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(help)
        return
    if len(arguments) < 2 or any("=" not in word for word in arguments[2:]):
        print(help, file=sys.stderr)
        sys.exit(UserError.status)
    try:
        command(*arguments)
    except CLIError as error:
        if os.environ.get("DDPM_LAB_DEBUG"):
            traceback.print_exception(error)
        print(f"error: {escape_control(error, lines=True)}", file=sys.stderr)
        sys.exit(error.status)
