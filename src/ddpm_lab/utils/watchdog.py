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

from ddpm_lab.utils.errors import InterruptedRunError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What asks for an end; the last is what SLURM sends some time before it ends a job itself"""
HUNG = 124


class _State:
    last = time.monotonic()
    asked: int | None = None
    alone = True


def install_signal_handlers(alone: bool) -> None:
    """Signals ask for an end. One process `alone` ends at its next beat; of several, all must agree first."""
    _State.alone = alone
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _on_signal)


def heartbeat() -> None:
    """Still alive. Raises Interrupted where a signal asked for it."""
    _State.last = time.monotonic()
    if _State.asked and _State.alone:
        raise interruption()


def stop_requested() -> bool:
    """Whether a signal asked for an end."""
    return _State.asked is not None


def interruption() -> InterruptedRunError:
    """By the signal that was heard; if only another process heard one, by SIGTERM."""
    number = _State.asked or signal.SIGTERM
    return InterruptedRunError(f"stopped by {signal.Signals(number).name}", number)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _State.asked == number == signal.SIGINT:
        signal.signal(number, signal.SIG_IGN)  # ending is soon done
        raise InterruptedRunError("stopped by a second SIGINT, at once", number)
    _State.asked = number
    more = "; once more: now" if number == signal.SIGINT else ""
    print(
        f"\n{signal.Signals(number).name}: saving and ending after this step{more}", file=sys.stderr
    )


@contextmanager
def monitor(seconds: float | None, file: Path) -> Iterator[None]:
    """Listens, and where nothing beats for so many `seconds`, writes the stacks of all threads to `file` and ends the
    process with status 124; None waits for ever.
    """
    over = threading.Event()
    _State.last, _State.asked = time.monotonic(), None
    before = {number: signal.getsignal(number) for number in SIGNALS}
    install_signal_handlers(alone=False)  # until training begins

    def log_mean() -> None:
        assert seconds is not None
        while not over.wait(min(seconds / 4, 10)):
            if time.monotonic() - _State.last > seconds:
                with file.open("w") as stacks:
                    faulthandler.dump_traceback(stacks)
                print(
                    f"error: nothing has happened for {seconds:g} s (hang_timeout={seconds:g}); {file} says where every "
                    "thread was",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(HUNG)

    if seconds is not None:
        threading.Thread(target=log_mean, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _State.asked = None
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
