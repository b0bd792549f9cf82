"""`edgeq report`: runs as a page to look at.

Heavy imports stand inside of the command.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeq.commands.choices import CHECKPOINT, MODEL, PATH
from edgeq.commands.options import BACKEND_OPTION, FORCE_OPTION, JSON_OPTION

if TYPE_CHECKING:
    from edgeq.checkpoint.reader import Checkpoint
    from edgeq.measuring.watching import Progress

SEVERAL_RUNS = Path("report.html")
"""The page of several runs, in the current directory, unless another one is named."""


@click.command(name="report", short_help="Write a page about RUNs, with charts.")
@click.argument("runs", nargs=-1, required=True, type=CHECKPOINT, metavar="RUN...")
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Write the page to this file.  [default: report.html in RUN; of several, here]",
)
@click.option(
    "--reference",
    type=MODEL,
    metavar="MODEL",
    help="Measure each run against this original first, and keep that beside its report.",
)
@click.option("--open", "opened", is_flag=True, help="Open the page in the browser.")
@BACKEND_OPTION
@FORCE_OPTION
@JSON_OPTION
def report_command(
    runs: tuple[Path, ...],
    output: Path | None,
    reference: str | None,
    opened: bool,
    backend: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write a page about RUN, a directory that quantize made: quality, errors of layers, times.

    Several runs come on one page, their sizes against their KL divergences.

    \b
    Examples:
      edgeq report smollm2
      edgeq report smollm2-3bit smollm2-4bit --output compared.html
    """
    from edgeq.checkpoint.reader import Checkpoint  # noqa: PLC0415
    from edgeq.commands.progress import following  # noqa: PLC0415
    from edgeq.commands.screen import make_console, print_json, print_line  # noqa: PLC0415

    checkpoints = [Checkpoint(run) for run in runs]
    place = page_place(checkpoints, output, force=force)
    if reference is not None:
        with following(make_console(stderr=True), plain=as_json) as observer:
            for checkpoint in checkpoints:
                measure(checkpoint, reference, backend, observer.evaluated)
    written = write_page(checkpoints, place)
    if as_json:
        listed = [str(checkpoint.path) for checkpoint in checkpoints]
        print_json({"runs": listed, "page": str(written), "bytes": written.stat().st_size})
    else:
        print_line(make_console(), str(written))
    if opened and not open_page(written):
        print_line(make_console(stderr=True), f"no browser could be started; open {written} in one")


def open_page(page: Path) -> bool:
    """Open a page in the browser, and say whether one was started."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    if sys.platform == "linux" and not any(map(os.environ.get, screens)):
        return False
    return click.launch(str(page.resolve())) == 0


def page_place(
    checkpoints: Sequence["Checkpoint"], output: Path | None, *, force: bool
) -> Path | None:
    """Find out where the page goes; None for the place of its own that a run has for it.

    Raises: BadInput for a file that is there and may not be replaced.
    """
    from edgeq.pages.places import check_page_file, page_of  # noqa: PLC0415

    if output is None and len(checkpoints) == 1:
        page_of(checkpoints[0])
        return None
    place = SEVERAL_RUNS if output is None else output
    # a page without a name of its own is renewed, as that of one run is
    check_page_file(place, "--output", force=force or output is None)
    return place


def write_page(checkpoints: Sequence["Checkpoint"], place: Path | None) -> Path:
    """Write the page of one run or of several."""
    from edgeq.files.storage import output_file  # noqa: PLC0415
    from edgeq.pages.run_page import run_page, write_run_page  # noqa: PLC0415
    from edgeq.pages.runs_page import write_runs_page  # noqa: PLC0415

    if place is None:
        return write_run_page(checkpoints[0])
    if len(checkpoints) > 1:
        return write_runs_page(checkpoints, place)
    page = run_page(checkpoints[0])
    with output_file(place) as file:
        file.write(page)
    return place


def measure(checkpoint: "Checkpoint", reference: str, backend: str, progress: "Progress") -> None:
    """Measure a run against its original, and keep that beside its report."""
    from edgeq.measuring.evaluate import evaluate  # noqa: PLC0415
    from edgeq.run.card import renew_cards  # noqa: PLC0415
    from edgeq.run.measured import Measured, read_measured, write_measured  # noqa: PLC0415
    from edgeq.run.report import with_measured  # noqa: PLC0415

    before = read_measured(checkpoint) or Measured()
    quality = evaluate(
        str(checkpoint.path), reference=reference, backend=backend, progress=progress
    )
    with_measured(checkpoint, quality)
    write_measured(checkpoint, replace(before, quality=quality))
    renew_cards(checkpoint)
