"""Decide where a page may be written, before any work starts."""

from pathlib import Path

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.files.ownership import PAGE_FILE, is_page
from edgeq.files.storage import check_output_file

SUFFIXES = (".html", ".htm")


def page_of(checkpoint: Checkpoint) -> Path:
    """Give the place of a run's own page.

    Raises: BadInput where something of somebody else lies there.
    """
    path = checkpoint.path / PAGE_FILE
    if path.is_symlink() or (path.exists() and not is_page(path)):
        raise BadInput(
            f"{str(path)!r} exists and is no page that edgeq wrote; move it away, "
            "or write another file with edgeq report --output"
        )
    return path


def check_page_file(path: Path, option: str, *, force: bool) -> None:
    """Refuse a file that an option names where a page cannot be written to it.

    Raises: BadInput; `force` lets a page be replaced that edgeq wrote.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"{option} {str(path)!r} is no name of a page; give one that ends in .html")
    check_output_file(path, force=force, is_own=is_page)
