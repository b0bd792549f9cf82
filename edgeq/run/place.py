"""Where a run writes, and what is refused there before anything is computed."""

from dataclasses import dataclass
from pathlib import Path

from edgeq.files.storage import check_destination
from edgeq.sources import at_revision


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run writes, and whether it replaces or continues what is there."""

    output: Path
    force: bool = False
    resume: bool = False


def check_place(model: str, revision: str | None, place: Place) -> str:
    """Give the whole name of a model, once it may be quantized into a directory.

    Raises: BadInput.
    """
    model = at_revision(model, revision)
    source = Path(model).expanduser() if model != "demo" else None
    force = place.force or place.resume
    check_destination(place.output, force=force, source=source, whole=place.force)
    return model
