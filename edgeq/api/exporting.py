"""Write a checkpoint in the formats of runtimes, and read exports back."""

from pathlib import Path
from typing import Unpack

from edgeq.api.arguments import (
    PathLike,
    check_names,
    optional_path,
    path_of,
    python_words,
    switch_of,
    text_of,
)
from edgeq.api.documenting import documented
from edgeq.api.results import ExportResult, FormatRow, Verification
from edgeq.api.settings import FormatOptions, checked_options, option_table
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.measuring.checking import check_export
from edgeq.measuring.formats import formats as list_formats
from edgeq.run.exporting import write_export


@documented(FormatOptions)
@python_words()
def export(
    checkpoint: PathLike,
    format: str,
    output: PathLike | None = None,
    *,
    force: bool = False,
    **options: Unpack[FormatOptions],
) -> ExportResult:
    """Write a quantized checkpoint in the format of a runtime.

    Example:
        print(edgeq.export("llama-4bit", "gguf").path)

    Args:
        checkpoint: The directory that `quantize` wrote, or its result.
        format: Write this format; `edgeq.formats()` lists them.
        output: Write to this directory; without one, CHECKPOINT/FORMAT.
        force: Replace an output that edgeq wrote before.
        KEYWORDS

    Returns:
        What a runtime is given, and all files with their bytes.

    Raises:
        BadInput: No checkpoint, an unknown format, or one that does not hold the checkpoint.
        NotInstalled: What the format needs is missing.
        TypeError: An option that no format has, with the nearest name.
    """
    check_names("export", options, {"checkpoint", "format", "output", "force", *option_table()})
    written = write_export(
        path_of("checkpoint", checkpoint),
        text_of("format", format),
        checked_options(options),
        optional_path("output", output),
        force=switch_of("force", force),
    )
    files = {Path(path): size for path, size in written["files"].items()}
    return ExportResult(written["format"], Path(written["result"]), files, tuple(written["notes"]))


@python_words()
def formats(checkpoint: PathLike | None = None) -> tuple[FormatRow, ...]:
    """List the export formats, and whether a checkpoint fits each without loss.

    Example:
        print([row.name for row in edgeq.formats("llama-4bit") if row.fits != "no"])

    Args:
        checkpoint: Say of this one whether it fits.

    Raises:
        BadInput: No checkpoint.
    """
    opened = None if checkpoint is None else Checkpoint(path_of("checkpoint", checkpoint))
    return tuple(FormatRow.from_plain(row) for row in list_formats(opened))


@python_words()
def verify(
    export: PathLike,
    *,
    against: PathLike | None = None,
    run: bool = False,
    backend: str = "auto",
) -> Verification:
    """Read an export back from disk and check it against its manifest.

    Example:
        assert edgeq.verify("llama-4bit/gguf", against="llama-4bit").ok

    Args:
        export: The directory of an export.
        against: Compare tensor by tensor with the checkpoint that it was made from.
        run: Also run it in its runtime and compare logits; needs `against`.
        backend: Compute the checkpoint's logits with this backend.

    Returns:
        A line for each difference; none where everything is as it was written.

    Raises:
        BadInput: No export, or no checkpoint.
        NotInstalled: What reads or runs the format is missing.
    """
    place, checkpoint = path_of("export", export), optional_path("against", against)
    switch_of("run", run)
    name = text_of("backend", backend)
    if run and checkpoint is None:
        raise BadInput("run=True compares with the checkpoint's weights; give against too")
    found = check_export(place, against=checkpoint, backend=name, running=run)
    return Verification(
        Path(found["export"]),
        found["format"],
        found["library"],
        tuple(found["differences"]),
        found["largest_deviation"],
        found,
    )
