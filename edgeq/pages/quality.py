"""Lay out what was measured of a model: numbers with intervals, charts, worst tokens.

A measurement is what `edgeq evaluate --json` prints. Whatever it lacks is left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.measuring.anchors import verdict
from edgeq.pages import shown
from edgeq.pages.charts import Axis, Chart, Series, Table, View, shortened, spans_decades

Quality = Mapping[str, Any]
KL_NAME = "KL divergence (nats per token)"


@dataclass(frozen=True, slots=True)
class Fact:
    """A number that stands large on a page: its name, its text, and a line below it."""

    name: str
    text: str
    below: str = ""


@dataclass(frozen=True, slots=True)
class Sized:
    """A model as a point of size and KL divergence."""

    name: str
    bytes: int | None
    kl: float | None
    interval: Sequence[float] | None = None


def quality_facts(quality: Quality) -> list[Fact]:
    """List KL divergence, agreement and perplexity, as far as they were measured."""
    facts = []
    if quality.get("kl") is not None:
        between = shown.interval(shown.interval_of(quality, "kl"))
        below = f"nats per token, {between}" if between else "nats per token, 0 is equal"
        facts.append(Fact("KL divergence", shown.nats(quality["kl"]), below))
    if quality.get("top1_agreement") is not None:
        between = shown.interval(shown.interval_of(quality, "top1_agreement"), shown.percent)
        below = f"as the original, {between}" if between else "as the original"
        facts.append(Fact("Same top token", shown.percent(quality["top1_agreement"]), below))
    if quality.get("perplexity") is not None:
        written = shown.perplexity(quality["perplexity"])
        facts.append(Fact("Perplexity", written, beside_original(quality)))
    return facts


def beside_original(quality: Quality) -> str:
    """Say how a perplexity is to that of the original; empty where it is not known."""
    original, ratio = quality.get("reference_perplexity"), quality.get("perplexity_ratio")
    if original is None:
        return ""
    between = shown.interval(shown.interval_of(quality, "perplexity_ratio"), shown.plain)
    if ratio is None or not between:
        return f"the original has {shown.perplexity(original)}"
    return f"{ratio:.4g} times the original's {shown.perplexity(original)}, {between}"


def verdict_of(quality: Quality, model: str) -> str:
    """Say in a sentence how good a model's quality is; empty where no KL was measured."""
    return "" if quality.get("kl") is None else verdict(quality["kl"], model)


def measured_how(quality: Quality) -> str:
    """Say on what a quality was measured."""
    parts = []
    if quality.get("tokens") is not None:
        parts.append(f"on {quality['tokens']:,} tokens")
    if quality.get("runtime"):
        parts.append(f"in {quality['runtime']}")
    if quality.get("reference"):
        parts.append(f"against the original in {quality['reference']}")
    said = f"Measured {', '.join(parts)}." if parts else ""
    return f"{said} Ranges are 95% intervals." if quality.get("intervals") else said


def position_chart(measured: Mapping[str, Quality]) -> Chart | None:
    """Draw the KL divergence by position in the text, of one model or several."""
    series = []
    for name, quality in measured.items():
        # the middle on a logarithmic scale: ranges of positions double
        points = [
            (math.sqrt(row["from"] * row["to"]), row["kl"], None, None, span_of(row))
            for row in quality.get("by_position") or ()
            if None not in (row.get("from"), row.get("to"), row.get("kl"))
        ]
        if points:
            series.append(Series(name, points))
    if not series:
        return None
    places = [point[0] for each in series for point in each.points]
    ends = [int(point[4].rpartition(" ")[2]) for each in series for point in each.points]
    spans = dict.fromkeys(point[4] for each in series for point in each.points)
    by_span = [{point[4]: point[1] for point in each.points} for each in series]
    rows = [[span, *(shown.nats(each.get(span)) for each in by_span)] for span in spans]
    return Chart(
        "position",
        "KL divergence by position in the text",
        "How far predictions are from the original's behind so many tokens of context.",
        Axis("position in the text (tokens)", "integer", spans_decades(places), 1, max(ends)),
        Axis(KL_NAME, "number", least=0),
        [View("", series)],
        Table(["tokens", *(each.name for each in series)], rows),
    )


def span_of(row: Mapping[str, Any]) -> str:
    """Name a range of positions."""
    return f"{row['from']} to {row['to']}"


def windows_chart(quality: Quality) -> Chart | None:
    """Draw the KL divergence of each window of text; None where one window or none is known."""
    by_text: dict[str, list[tuple[int, float]]] = {}
    for number, window in enumerate(quality.get("windows") or (), 1):
        if window.get("kl") is not None:
            by_text.setdefault(window.get("text") or "text", []).append((number, window["kl"]))
    points = [point for each in by_text.values() for point in each]
    if len(points) < 2:
        return None
    rows = [[str(n), name, shown.nats(kl)] for name, each in by_text.items() for n, kl in each]
    return Chart(
        "windows",
        "KL divergence of each window of text",
        "How much the numbers above depend on the text: each point is one window.",
        Axis("window", "integer", least=1, most=max(point[0] for point in points)),
        Axis(KL_NAME, "number", least=0),
        [View("", [Series(name, each, "points") for name, each in by_text.items()])],
        shortened(["window", "text", "KL"], rows, "windows"),
    )


def size_chart(points: Sequence[Sized], curves: Sequence[Series] = ()) -> Chart | None:
    """Draw size against KL divergence: a named point for each model, and curves."""
    known = [each for each in points if each.bytes is not None and each.kl is not None]
    if not known and not curves:
        return None
    series = []
    for each in known:
        low, high = each.interval or (None, None)
        series.append(Series(each.name, [(each.bytes, each.kl, low, high, each.name)], "labels"))
    series += curves
    ends = [end for each in known for end in (each.interval or ())]
    log = spans_decades([*ends, *(point[1] for each in series for point in each.points)])
    rows = [
        [each.name, shown.size(each.bytes), shown.nats(each.kl), shown.interval(each.interval)]
        for each in known
    ]
    for curve in curves:
        rows += [[curve.name, shown.size(x), shown.nats(y), ""] for x, y, *_ in curve.points]
    return Chart(
        "sizes",
        "Size against KL divergence",
        "Further left is smaller, further down is closer to the original.",
        Axis("size", "bytes"),
        Axis(KL_NAME, "number", log=log, least=None if log else 0),
        [View("", series)],
        Table(["model", "size", "KL", "95% interval"], rows),
    )


def texts_table(measured: Mapping[str, Quality]) -> Table | None:
    """Lay out the quality on each text, where several were measured; of several models the KL."""
    if len(measured) == 1:
        [quality] = measured.values()
        rows = [text_row(text) for text in quality.get("texts") or ()]
        header = ["text", "tokens", "KL", "perplexity", "of the original", "same top token"]
        return Table(header, rows) if rows else None
    by_text: dict[str, dict[str, str]] = {}
    for name, quality in measured.items():
        for text in quality.get("texts") or ():
            found = by_text.setdefault(text.get("name") or "text", {})
            found[name] = shown.sure(text, "kl", shown.nats)
    rows = [
        [text, *(found.get(name, shown.NOTHING) for name in measured)]
        for text, found in by_text.items()
    ]
    return Table(["KL on", *measured], rows) if rows else None


def text_row(text: Mapping[str, Any]) -> list[str]:
    """Write the cells of one text."""
    tokens = text.get("tokens")
    return [
        text.get("name") or "text",
        shown.NOTHING if tokens is None else f"{tokens:,}",
        shown.sure(text, "kl", shown.nats),
        shown.sure(text, "perplexity", shown.perplexity),
        shown.perplexity(text.get("reference_perplexity")),
        shown.sure(text, "top1_agreement", shown.percent),
    ]


def tasks_table(measured: Mapping[str, Quality]) -> Table | None:
    """Lay out the accuracy in tasks, where some were asked for."""
    rows = []
    for name, quality in measured.items():
        for task in quality.get("tasks") or ():
            items = task.get("items")
            cells = [
                task.get("name") or "task",
                "\n".join(
                    [
                        shown.percent(task.get("accuracy")),
                        shown.interval(task.get("interval"), shown.percent),
                    ]
                ),
                shown.percent(task.get("reference_accuracy")),
                shown.NOTHING if items is None else f"{items:,}",
            ]
            rows.append([*([name] if len(measured) > 1 else []), *cells])
    if not rows:
        return None
    header = ["task", "right", "original", "questions"]
    return Table([*(["model"] if len(measured) > 1 else []), *header], rows)


def worst_tokens(quality: Quality) -> list[dict[str, str]]:
    """List the tokens with the largest KL divergence, each in its context."""
    return [
        {
            "kl": shown.plain(each.get("kl")),
            "before": visible(each.get("before") or ""),
            "token": visible(each.get("token") or ""),
            "original_says": marked(visible(each.get("original_says") or "")),
            "target_says": marked(visible(each.get("target_says") or "")),
        }
        for each in quality.get("worst_tokens") or ()
    ]


def visible(text: str) -> str:
    """Write line ends and tabs of a text as signs that are seen."""
    return text.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")


def marked(text: str) -> str:
    """Write a blank at the beginning of a token as a sign, or no one sees it."""
    return f"␣{text[1:]}" if text.startswith(" ") else text


def share_changed(quality: Quality) -> str:
    """Say in words how often the top token is another one; empty where it is not known."""
    agreement = quality.get("top1_agreement")
    if agreement is None:
        return ""
    if agreement >= 0.9995:
        return "Its top token is the original's nearly always"
    if agreement > 0.5:
        other = f"1 of {1 / (1 - agreement):.0f}"
        return f"Its top token is another one in {other} cases"
    return f"Its top token is the original's in {agreement:.0%} of cases"
