"""Write a checkpoint again with the numbers that tuning found."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.checkpoint.reader import TUNED_KEY, Checkpoint
from edgeq.checkpoint.tensor_file import Parts
from edgeq.files.json_files import write_json
from edgeq.files.ownership import CONFIG_FILE, HEAD_FILE, RECIPE_FILE, REPORT_FILE
from edgeq.files.plain_files import is_plain_file
from edgeq.files.storage import rename_when_stored, sync_directory
from edgeq.run.card import write_checkpoint_card
from edgeq.run.report import read_report
from edgeq.run.tuning_report import TuningReport


def write_tuned(
    checkpoint: Checkpoint, numbers: Parts, report: TuningReport, folder: Path
) -> Checkpoint:
    """Write a checkpoint with other numbers into an empty directory, and what is said of it.

    Files without a change keep their bytes. What was measured of the checkpoint, and its exports,
    are not of this one and stay behind.

    Raises: ValueError for numbers that their types do not hold.
    """
    for name, file in checkpoint.files().items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        changed = file.changed({each: numbers[each] for each in file.names if each in numbers})
        if changed:
            file.write_with(place, changed)
        else:
            copy_file(file.path, place)
        sync_directory(place.parent)
    beside = [CONFIG_FILE, *checkpoint.head["companions"]]
    if is_plain_file(checkpoint.path / RECIPE_FILE):
        beside.append(RECIPE_FILE)
    for name in beside:
        copy_file(checkpoint.path / name, folder / name)
    findings = read_report(checkpoint)
    findings.tuning = report
    write_json(folder / REPORT_FILE, findings.plain())
    head: Mapping[str, Any] = {**checkpoint.head, TUNED_KEY: report.head()}
    write_json(folder / HEAD_FILE, head)
    tuned = Checkpoint(folder)
    write_checkpoint_card(tuned)
    return tuned


def copy_file(source: Path, place: Path) -> None:
    """Copy a file whole, under a temporary name until it is on disk."""
    partial = place.with_name(f".{place.name}.partial")
    partial.unlink(missing_ok=True)
    shutil.copyfile(source, partial)
    rename_when_stored(partial, place)
