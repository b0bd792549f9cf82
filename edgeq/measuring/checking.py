"""`edgeq verify`, from the command line and from Python: read an export back, perhaps run it."""

from pathlib import Path
from typing import Any

from edgeq.errors import BadInput
from edgeq.files.ownership import HEAD_FILE, MANIFEST_FILE
from edgeq.measuring.run_export import run_export
from edgeq.measuring.verify import verify


def check_export(
    export: Path, *, against: Path | None, backend: str, running: bool
) -> dict[str, Any]:
    """Verify an export, and run it too where it is as it was written and that is asked for.

    Running needs a checkpoint to compare with.

    Raises: BadInput and the other errors of `edgeq.errors`.
    """
    folder = folder_of_export(export)
    result = verify(folder, against=against)
    if running and against is not None and not result["differences"]:
        run = run_export(folder, against=against, backend=backend)
        result |= {"run": run, "differences": run.pop("differences")}
    return result


def folder_of_export(export: Path) -> Path:
    """Find the directory of an export: its own, or that of a file inside of it.

    Raises: BadInput for a checkpoint, naming the exports that lie in it.
    """
    if export.is_file() and (export.parent / MANIFEST_FILE).is_file():
        return export.parent
    if not (export / MANIFEST_FILE).is_file() and (export / HEAD_FILE).is_file():
        inside = sorted(str(each.parent) for each in export.glob(f"*/{MANIFEST_FILE}"))
        what = f"give one of its exports: {', '.join(inside)}" if inside else "it has no exports"
        raise BadInput(f"{str(export)!r} is a checkpoint, not an export; {what}")
    return export
