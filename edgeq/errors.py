"""The errors a user can meet.

Every text says what was received, the rule, and what to change.
"""

from collections.abc import Sequence


class EdgeqError(Exception):
    """Base of all errors that edgeq raises on purpose.

    The command line prints it as one line and exits 1.
    """


class BadInput(EdgeqError):
    """A path, file, text or value from the user that edgeq cannot work with."""


class TooLittleMemory(BadInput):
    """A limit on memory that no way of running keeps, with the smallest one that would do.

    words are those of the command line with which the run would fit. option is the one that would
    have to be raised, empty where none would do. Units: bytes.
    """

    def __init__(
        self,
        message: str,
        limit: int,
        least: int,
        words: Sequence[str] = (),
        *,
        option: str = "--max-ram",
    ) -> None:
        super().__init__(message)
        self.limit, self.least, self.words = limit, least, tuple(words)
        self.option = option


class DamagedModel(BadInput):
    """Weights that cannot be right: a run on them cannot be continued.

    That holds whatever the run has done so far.
    """


class UnsupportedModel(EdgeqError):
    """A well-formed model of a kind that this version does not handle."""


class NotInstalled(EdgeqError):
    """A backend, exporter or runtime whose extra is not installed."""


class NotPositiveDefinite(EdgeqError):
    """A matrix that must be factorised is singular, indefinite or not finite."""

    def __init__(self, size: int) -> None:
        super().__init__(
            f"a {size} x {size} matrix is not positive definite; "
            "raise the damping or use more calibration tokens"
        )
        self.size = size


def reason_of(error: BaseException) -> str:
    """Say in one line of a readable length what an exception of Python or a library states."""
    stated = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # 300 characters: some libraries state whole tracebacks
    return " ".join(stated.split())[:300] or type(error).__name__


def lower_first(reason: str) -> str:
    """Begin a reason with a small letter, to stand behind a colon."""
    return reason[:1].lower() + reason[1:]
