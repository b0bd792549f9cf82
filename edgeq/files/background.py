"""Do one piece of work at a time beside everything else, in a thread.

It gains time where the work waits for a disk, writes, or hashes: Python lets others run meanwhile.
"""

import threading
from collections.abc import Callable

Work = Callable[[], None]


class Abandoned(Exception):
    """Ends a piece of work that nobody needs any more."""


class Background:
    """A thread for one piece of work at a time; its error is given to whoever asks next."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._ended.set()
        self._error: BaseException | None = None
        self._is_abandoned = False

    @property
    def is_busy(self) -> bool:
        return not self._ended.is_set()

    def begin(self, work: Work) -> None:
        """Start a piece of work; nothing else is being done by now."""
        assert not self.is_busy and self._error is None, "one piece of work at a time"
        self._is_abandoned = False
        self._ended.clear()
        # a process that ends does not wait for it: what is half done then was never counted
        thread = threading.Thread(target=self._do, args=(work,), daemon=True)
        try:
            thread.start()
        except BaseException:  # no thread to be had, or stopped here: nothing is being done
            if not thread.ident:
                self._ended.set()
            raise

    def wait(self) -> None:
        """Wait until nothing is being done; what was raised is kept for `check`."""
        self._ended.wait()

    def check(self) -> None:
        """Raise what the last piece of work raised, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def abandon(self) -> None:
        """Have the work end where it next asks, and wait for that; its error is forgotten."""
        self._is_abandoned = True
        self.wait()
        self._error = None

    def go_on(self) -> None:
        """Say in the midst of the work that it may be ended here. Raises: Abandoned."""
        if self._is_abandoned:
            raise Abandoned

    def _do(self, work: Work) -> None:
        try:
            work()
        except BaseException as error:  # who waits gets it, whatever it is
            self._error = error
        finally:
            self._ended.set()
