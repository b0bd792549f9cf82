"""Write the page of `edgeq evaluate A B C --html`: models beside each other, with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.files.json_files import finite
from edgeq.files.storage import output_file
from edgeq.pages import shown
from edgeq.pages.charts import Table
from edgeq.pages.names import names_of
from edgeq.pages.quality import (
    Quality,
    Sized,
    measured_how,
    position_chart,
    quality_facts,
    size_chart,
    tasks_table,
    texts_table,
    windows_chart,
    worst_tokens,
)
from edgeq.pages.template import render


def write_compare_page(result: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a measurement of one target, or of several as `edgeq evaluate` gives it.

    Raises: BadInput where the file cannot be written.
    """
    page = compare_page(result)
    with output_file(path) as file:
        file.write(page)
    return path


def compare_page(result: Mapping[str, Any]) -> bytes:
    """Make the page of a measurement; equal results give equal bytes."""
    result = finite(result)
    targets: list[Quality] = result.get("targets") or [result]
    places = [str(target.get("target")) for target in targets]
    names = names_of(places)
    measured = dict(zip(names, targets, strict=True))
    sized = [
        Sized(name, each.get("bytes"), each.get("kl"), shown.interval_of(each, "kl"))
        for name, each in measured.items()
    ]
    alone = targets[0] if len(targets) == 1 else None
    charts = [
        size_chart(sized) if alone is None else None,
        position_chart(measured),
        None if alone is None else windows_chart(alone),
    ]
    return render(
        "compare.html",
        charts,
        names=names,
        reference=reference_of(result),
        facts=[] if alone is None else quality_facts(alone),
        how_measured="" if alone is None else measured_how(alone),
        table=targets_table(measured),
        pairs=pairs_table(result.get("pairs") or (), dict(zip(places, names, strict=True))),
        texts=texts_table(measured),
        tasks=tasks_table(measured),
        worst={name: worst_tokens(each) for name, each in measured.items()},
        unsized=[each.name for each in sized if each.bytes is None],
    )


def reference_of(result: Mapping[str, Any]) -> str:
    """Name what was compared with; empty where nothing was."""
    return str(result.get("reference") or "")


def targets_table(measured: Mapping[str, Quality]) -> Table:
    """Lay out the quality of each model."""
    rows = []
    for name, each in measured.items():
        bits = each.get("bits_per_weight")
        tokens = each.get("tokens")
        rows.append(
            [
                name,
                each.get("runtime") or shown.NOTHING,
                shown.size(each.get("bytes")),
                shown.NOTHING if bits is None else f"{bits:.2f}",
                shown.sure(each, "kl", shown.nats),
                shown.sure(each, "perplexity", shown.perplexity),
                shown.sure(each, "top1_agreement", shown.percent),
                shown.NOTHING if tokens is None else f"{tokens:,}",
            ]
        )
    header = ["model", "runs in", "size", "bits per weight", "KL"]
    return Table([*header, "perplexity", "same top token", "tokens"], rows)


def pairs_table(pairs: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Table | None:
    """Lay out which of two models is closer to the original; None without pairs."""
    rows = []
    for pair in pairs:
        first, second = (names.get(str(pair[key]), str(pair[key])) for key in ("a", "b"))
        between = pair.get("interval")
        difference = pair.get("kl_difference")
        numbers = "\n".join([shown.nats(difference), shown.interval(between)])
        rows.append([first, second, numbers, closer(first, second, between)])
    if not rows:
        return None
    header = ["model", "against", "KL difference", "closer to the original"]
    return Table(header, rows)


def closer(first: str, second: str, between: Sequence[float] | None) -> str:
    """Name the model that is closer to the original, by the interval of the difference."""
    if between is None or None in between:
        return ""
    if between[1] < 0:
        return first
    if between[0] > 0:
        return second
    return "no clear difference"
