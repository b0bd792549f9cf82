"""Have all three standard streams at hand, also where who started edgeq closed some of them."""

import os
import sys

STANDARD = (0, 1, 2)


def open_what_is_closed() -> None:
    """Open what was closed to nowhere: the next file would get its number, and others' messages.

    sys.stdin stays None then, so that who reads it can say so.
    """
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
