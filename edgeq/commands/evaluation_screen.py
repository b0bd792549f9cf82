"""What people see of a measurement: one target in words, several in a table, with 95 % intervals.

Imports rich, so commands import this module when they run.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.table import Table

from edgeq.commands.screen import facts_table, print_line
from edgeq.measuring.text_kinds import DEFAULT_KIND
from edgeq.words import show_megabytes, show_size

NOTHING = "-"
MEANING = "95 % intervals, by windows of text; KL divergence in nats per token, 0 is equal"
GIGABYTE = 10**9
BETWEEN = 2  # columns between those of a table
LEAST_NAME = 8  # letters of a name that is cut


def show_measurement(console: Console, quality: Mapping[str, Any]) -> None:
    """Print the quality of one target."""
    table = facts_table()
    texts = ", ".join(text_names(quality))
    windows = len(quality["windows"])
    of = "" if texts == DEFAULT_KIND else f" of {texts}"
    table.add_row(
        "runtime", f"{quality['runtime']}, {quality['tokens']} tokens in {windows} windows{of}"
    )
    if quality["reference"] is not None:
        table.add_row("reference", quality["reference"])
    table.add_row("size", size_words(quality))
    original = quality["reference_perplexity"]
    beside = f" (original {original:.3f})" if original else ""
    intervals = quality["intervals"]
    table.add_row(
        "perplexity",
        f"{quality['perplexity']:.3f}{beside}{between(intervals['perplexity'], '.3f')}",
    )
    if quality["kl"] is not None:
        divergence = f"{quality['kl']:.4f} nats per token (0 is equal, lower is better)"
        table.add_row("KL divergence", f"{divergence}{between(intervals['kl'], '.4f')}")
        table.add_row(
            "same top token",
            f"{quality['top1_agreement']:.1%}{between(intervals['top1_agreement'], '.1%')}",
        )
    for task in quality["tasks"]:
        table.add_row(task["name"], task_words(task))
    for note in quality["notes"]:
        table.add_row("note", note)
    console.print(table, highlight=False, soft_wrap=True)
    show_texts(console, [quality])


def show_comparison(console: Console, result: Mapping[str, Any]) -> None:
    """Print several targets: a table of them, then which of each two is closer to the original."""
    targets = result["targets"]
    names = short_names([each["target"] for each in targets])
    heads = ("size", "bits", "KL", "95 %", "perplexity", "top token")
    rows = [target_cells(each) for each in targets]
    taken = sum(BETWEEN + max(map(len, column)) for column in zip(heads, *rows, strict=True))
    shown = fitting_names(names, console.width - taken)
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, row in zip(shown, rows, strict=True):
        table.add_row(name, *row)
    console.print(table, highlight=False)
    for number, name in zip(shown, names, strict=True):
        if number.startswith("#"):
            print_line(console, f"{number}: {name}")
    if result["reference"] is not None:
        original = targets[0]["reference_perplexity"]
        print_line(console, f"original: {result['reference']}, perplexity {original:.3f}")
    print_line(console, MEANING)
    named = dict(zip((each["target"] for each in targets), names, strict=True))
    for pair in result["pairs"]:
        print_line(console, pair_words(pair, named))
    for name, each in zip(names, targets, strict=True):
        for task in each["tasks"]:
            print_line(console, f"{task['name']}: {name} {task_words(task)}")
        for note in each["notes"]:
            print_line(console, f"note: {name}: {note}")
    show_texts(console, targets)


def target_cells(quality: Mapping[str, Any]) -> list[str]:
    """Write one line of the table, behind the name."""
    bits, kl = quality["bits_per_weight"], quality["kl"]
    interval = quality["intervals"]["kl"]
    return [
        size_of(quality),
        NOTHING if bits is None else f"{bits:.2f}",
        NOTHING if kl is None else f"{kl:.4f}",
        NOTHING if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}",
        f"{quality['perplexity']:.3f}",
        NOTHING if kl is None else f"{quality['top1_agreement']:.1%}",
    ]


def pair_words(pair: Mapping[str, Any], named: Mapping[str, str]) -> str:
    """Say which of two targets is closer to the original, or predicts the text better."""
    a, b = named[pair["a"]], named[pair["b"]]
    if pair["kl_difference"] is None:
        low, high = pair["perplexity_ratio_interval"] or (0.0, float("inf"))
        ratio = pair["perplexity_ratio"]
        if low <= 1 <= high:
            beside = between(pair["perplexity_ratio_interval"], ".4f")
            return f"{a} and {b}: no difference is shown (perplexity ratio {ratio:.4f}{beside})"
        if low > 1:
            a, b, ratio, low, high = b, a, 1 / ratio, 1 / high, 1 / low
        times = f"{ratio:.4f} times its perplexity ({low:.4f} to {high:.4f})"
        return f"{a} predicts the text better than {b}, with {times}"
    low, high = pair["interval"] or (float("-inf"), float("inf"))
    by = pair["kl_difference"]
    if low <= 0 <= high:
        difference = f"KL {by:+.4f}{between(pair['interval'], '+.4f')}"
        return f"{a} and {b}: no difference is shown ({difference})"
    if low > 0:
        a, b = b, a
    else:
        by, low, high = -by, -high, -low
    return f"{a} is closer to the original than {b}, by {by:.4f} ({low:.4f} to {high:.4f})"


def show_texts(console: Console, targets: Sequence[Mapping[str, Any]]) -> None:
    """Print the quality on each text, where there are several."""
    if not targets[0]["texts"]:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("text")
    for head in ("KL", "95 %", "perplexity", "top token", "tokens"):
        table.add_column(head, justify="right", no_wrap=True)
    names = short_names([each["target"] for each in targets])
    for name, target in zip(names, targets, strict=True):
        for text in target["texts"]:
            kl, interval = text["kl"], text["intervals"]["kl"]
            whose = "" if len(targets) == 1 else f", {name}"
            table.add_row(
                f"{text['name']}{whose}",
                NOTHING if kl is None else f"{kl:.4f}",
                NOTHING if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}",
                f"{text['perplexity']:.3f}",
                NOTHING if kl is None else f"{text['top1_agreement']:.1%}",
                str(text["tokens"]),
            )
    console.print(table, highlight=False)


def text_names(quality: Mapping[str, Any]) -> list[str]:
    """List the texts of a measurement by name."""
    return list(dict.fromkeys(window["text"] for window in quality["windows"]))


def size_of(quality: Mapping[str, Any]) -> str:
    """Write the bytes of a target's files."""
    size: int = quality["bytes"]
    return show_size(size) if size >= GIGABYTE else show_megabytes(size)


def size_words(quality: Mapping[str, Any]) -> str:
    """Write the size of a target, with its bits per weight where they are known."""
    bits = quality["bits_per_weight"]
    beside = "" if bits is None else f", {bits:.2f} bits per weight"
    return f"{size_of(quality)}{beside}"


def task_words(task: Mapping[str, Any]) -> str:
    """Write how many items of a task were answered rightly."""
    words = f"{task['accuracy']:.1%} right{between(task['interval'], '.1%')}"
    if task["accuracy_by_length"] is not None:
        words += f" ({task['accuracy_by_length']:.1%} by likelihood per character)"
    if task["reference_accuracy"] is not None:
        words += f", original {task['reference_accuracy']:.1%}"
    return f"{words}, {task['items']} items"


def between(interval: Sequence[float] | None, form: str) -> str:
    """Write an interval behind its value; nothing where there is none."""
    if interval is None:
        return ""
    low, high = (format(each, form) for each in interval)
    return f", {low} to {high}"


def fitting_names(names: Sequence[str], room: int) -> list[str]:
    """Cut names from the left to so many columns; number them where that makes two alike."""
    cut = [name if len(name) <= room else f"…{name[1 - room :]}" for name in names]
    if room >= LEAST_NAME and len(set(cut)) == len(set(names)):
        return cut
    fits = all(len(name) <= room for name in names)
    return list(names) if fits else [f"#{number}" for number in range(1, len(names) + 1)]


def short_names(targets: Sequence[str]) -> list[str]:
    """Name targets by the end of their paths, as far as that tells them apart."""
    parts = [PurePath(target).parts for target in targets]
    most = max(map(len, parts))
    for count in range(1, most + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(set(targets)):
            return names
    return list(targets)
