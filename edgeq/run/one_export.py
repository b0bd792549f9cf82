"""Write a checkpoint in one format, with its card and seal."""

from pathlib import Path
from typing import Any

from edgeq.checkpoint.certificate import has_own_texts, is_sealed
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.files.storage import check_destination, new_directory
from edgeq.format_parts import Exporter
from edgeq.run.card import add_card


def export(
    checkpoint: Checkpoint, exporter: Exporter, destination: Path, *, force: bool = False
) -> list[Path]:
    """Write a checkpoint in one format into a new directory, and return the files written.

    Raises: BadInput where the format cannot hold it, or the directory may not be replaced.
    """
    # an export of this very checkpoint may be replaced also where it was changed or damaged, but
    # what people wrote into its card is theirs
    sealed = force and is_sealed(destination, checkpoint)
    whole = not (sealed and has_own_texts(destination))
    check_destination(destination, force=force, source=checkpoint.path, whole=whole)
    grids: dict[str, Any] = {}
    for name in checkpoint.tensor_names():
        grids[name] = (checkpoint.solved_shape(name), checkpoint.grid(name))
    reason = exporter.reject_reason(checkpoint.record, checkpoint.companions(), grids)
    if reason is not None:
        raise BadInput(f"format {exporter.format.name!r}: {reason}")
    with new_directory(destination, force=force, whole=whole) as folder:
        made = exporter.write(checkpoint, folder)
        made.append(add_card(folder, checkpoint, exporter))
        written = [path.relative_to(folder) for path in made]
    return [destination / path for path in written]
