"""Signs of life, and the wish to end.

Whatever takes long calls `beat` at each of its steps. While training, that ends it where a signal asked for it; and a
watch ends the process where nothing beats for too long.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ddpm_lab.utils.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What asks for an end; the last is what SLURM sends some time before it ends a job itself"""
HUNG = 124


class _Heart:
    last = time.monotonic()
    asked: int | None = None
    alone = True


def listen(alone: bool) -> None:
    """Signals ask for an end. One process `alone` ends at its next beat; of several, all must agree first."""
    _Heart.alone = alone
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _hear)


def beat() -> None:
    """Still alive. Raises Interrupted where a signal asked for it."""
    _Heart.last = time.monotonic()
    if _Heart.asked and _Heart.alone:
        raise interrupted()


def asked() -> bool:
    """Whether a signal asked for an end."""
    return _Heart.asked is not None


def interrupted() -> Interrupted:
    """By the signal that was heard; if only another process heard one, by SIGTERM."""
    number = _Heart.asked or signal.SIGTERM
    return Interrupted(f"stopped by {signal.Signals(number).name}", number)


def _hear(number: int, frame: FrameType | None) -> None:
    if _Heart.asked == number == signal.SIGINT:
        signal.signal(number, signal.SIG_IGN)  # ending is soon done
        raise Interrupted("stopped by a second SIGINT, at once", number)
    _Heart.asked = number
    more = "; once more: now" if number == signal.SIGINT else ""
    print(
        f"\n{signal.Signals(number).name}: saving and ending after this step{more}", file=sys.stderr
    )


@contextmanager
def watched(seconds: float | None, file: Path) -> Iterator[None]:
    """Listens, and where nothing beats for so many `seconds`, writes the stacks of all threads to `file` and ends the
    process with status 124; None waits for ever.
    """
    over = threading.Event()
    _Heart.last, _Heart.asked = time.monotonic(), None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    listen(alone=False)  # until training begins

    def watch() -> None:
        assert seconds is not None
        while not over.wait(min(seconds / 4, 10)):
            if time.monotonic() - _Heart.last > seconds:
                with file.open("w") as stacks:
                    faulthandler.dump_traceback(stacks)
                print(
                    f"error: nothing has happened for {seconds:g} s (patience={seconds:g}); {file} says where every "
                    "thread was",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(HUNG)

    if seconds is not None:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _Heart.asked = None
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
