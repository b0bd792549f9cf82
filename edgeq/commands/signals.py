"""Signals that stop a run: all of them as Ctrl-C does, with a clean-up and one line."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # by name: Windows has no SIGHUP
CLEANUP_SECONDS = 5.0


class Stopped(BaseException):
    """A signal asked to stop. Not an Exception, so that nothing takes it for an error that can be
    handled.
    """

    def __init__(self, number: int) -> None:
        super().__init__("stopped")
        self.number = number

    @property
    def status(self) -> int:
        """The exit status by which shells know the signal."""
        return 128 + self.number


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Inside, signals that stop raise `Stopped`; those that the caller had ignored (nohup) stay
    ignored.
    """
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread may handle signals
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
        if (
            time.monotonic() - last >= CLEANUP_SECONDS
        ):  # a second signal must not cut the clean-up of the first short
            last = time.monotonic()
            raise Stopped(number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
