"""Signals that stop a run: all of them as Ctrl-C does, with a clean-up and one line."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # by name: Windows has no SIGHUP
CLEANUP_SECONDS = 5.0
"""In which a second signal is taken for an echo of the first. Finished blocks may take longer to be
written: a later signal gives them up."""


class Stopped(BaseException):
    """Raised when a signal asks to stop; no Exception, so that nothing handles it as an error."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped")
        self.number = number

    @property
    def status(self) -> int:
        """Return the exit status by which shells know the signal."""
        return 128 + self.number


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Let signals that stop raise `Stopped` inside; those ignored before (nohup) stay ignored."""
    # only the main thread may handle signals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    before = {
        number: signal.getsignal(number)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    last = -CLEANUP_SECONDS

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal last
        # a second signal must not cut the clean-up of the first short
        if time.monotonic() - last >= CLEANUP_SECONDS:
            last = time.monotonic()
            raise Stopped(number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
