"""The frame of commands that take paths and options: share, import, export and explore."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from ddpm_lab.utils.errors import CLIError, UserError, escape_control


def parse_options(
    words: Sequence[str], choices: Mapping[str, Sequence[str] | None]
) -> dict[str, str]:
    """Return the values of words key=value. `choices` are those of each key; None is any text.

    Raises UserError for other keys and values.
    """
    options = dict(word.split("=", 1) for word in words)
    for key, value in options.items():
        if key not in choices:
            raise UserError(f"{key}={value} is not an option; {', '.join(choices)} are")
        allowed = choices[key]
        if not value or (allowed and value not in allowed):
            raise UserError(f"{key}={value}: {key} must be {' or '.join(allowed or ['a name'])}")
    return options


def run_script(help: str, command: Callable[..., None], paths: int = 2) -> None:
    """Run `command` with the words of the command line: `paths` paths, and options key=value.

    Prints `help` if it is requested or the words are others. Ends with a line for mistakes, with a
    traceback before it if DDPM_LAB_DEBUG is set, and with a line for Ctrl-C.
    """
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(help)
        return
    if len(arguments) < paths or any("=" not in word for word in arguments[paths:]):
        print(help, file=sys.stderr)
        sys.exit(UserError.status)
    try:
        command(*arguments)
    except CLIError as error:
        if os.environ.get("DDPM_LAB_DEBUG"):
            traceback.print_exception(error)
        print(f"error: {escape_control(error, lines=True)}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
