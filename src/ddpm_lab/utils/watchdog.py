"""Heartbeats, graceful stops after a signal, and a watchdog for runs that hang."""

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

from ddpm_lab.utils.errors import HangError, InterruptedRunError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that request a stop; SLURM sends SIGUSR1 some time before it ends a job"""


class _State:
    last = time.monotonic()
    signal: int | None = None
    alone = True


def install_signal_handlers(alone: bool) -> None:
    """Let signals request a stop, at the next heartbeat if the process trains `alone`."""
    _State.alone = alone
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _on_signal)


def heartbeat() -> None:
    """Record a sign of life. Raises InterruptedRunError if a signal requested a stop."""
    _State.last = time.monotonic()
    if _State.signal and _State.alone:
        raise interruption()


def stop_requested() -> bool:
    """Return True if this process received a signal to stop."""
    return _State.signal is not None


def interruption() -> InterruptedRunError:
    """Return the error for the received signal; SIGTERM if only another process received one."""
    number = _State.signal or signal.SIGTERM
    return InterruptedRunError(f"stopped by {signal.Signals(number).name}", number)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _State.signal == number == signal.SIGINT:
        signal.signal(number, signal.SIG_IGN)  # ignore a third one
        raise InterruptedRunError("stopped at once by a second SIGINT", number)
    _State.signal = number
    hint = "; repeat it to stop at once" if number == signal.SIGINT else ""
    name = signal.Signals(number).name
    print(f"\n{name}: saving, and stopping after this step{hint}", file=sys.stderr)


@contextmanager
def monitor(seconds: float | None, file: Path) -> Iterator[None]:
    """Handle signals, and end the process `seconds` after the last heartbeat (None: never).

    Before the process ends, with status 124, the stacks of all its threads are written to `file`.
    """
    over = threading.Event()
    _State.last, _State.signal = time.monotonic(), None
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    install_signal_handlers(alone=False)  # until training begins
    if seconds is not None:
        watcher = threading.Thread(target=_watch, args=(seconds, file, over), daemon=True)
        watcher.start()
    try:
        yield
    finally:
        over.set()
        _State.signal = None
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _watch(seconds: float, file: Path, over: threading.Event) -> None:
    while not over.wait(min(seconds / 4, 10)):
        if time.monotonic() - _State.last > seconds:
            with file.open("w") as stacks:
                faulthandler.dump_traceback(stacks)
            print(
                f"error: no progress for {seconds:g} s (hang_timeout={seconds:g}); {file} has the "
                "stacks of all threads",
                file=sys.stderr,
                flush=True,
            )
            os._exit(HangError.status)
