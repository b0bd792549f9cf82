"""One format written from a checkpoint, with what is said of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.storage import size_of
from edgeq.registry import load_exporter
from edgeq.run.finished import export_notes
from edgeq.run.one_export import export


def write_export(
    checkpoint: Path,
    format_name: str,
    options: Mapping[str, Any],
    output: Path | None,
    *,
    force: bool,
) -> dict[str, Any]:
    """Write a checkpoint in one format, and return the files with their sizes, and notes.

    Without an output it lies in the checkpoint, by the name of its format. Units: bytes.

    Raises: BadInput, UnsupportedModel, NotInstalled.
    """
    exporter = load_exporter(format_name, options)
    destination = output if output is not None else checkpoint / format_name
    opened = Checkpoint(checkpoint)
    written = export(opened, exporter, destination, force=force)
    files = {str(path): size_of(path) for path in written}
    notes = [*opened.record.notes, *export_notes([exporter], opened, destination)]
    return {
        "format": exporter.format.name,
        "result": str(written[0]),
        "files": files,
        "notes": notes,
    }
