"""What people see when a command is done: one screen of results."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

MEGABYTE = 1e6
MOST_NOTES = 10  # on one screen
RUN_WITH = {"gguf": ["llama-cli", "-m"], "mlx": ["mlx_lm.generate", "--model"]}
"""By format: what runs a file, in front of its name."""


def facts_table() -> Table:
    """Two columns without lines; long paths wrap instead of being cut."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    return table


def show_run(console: Console, summary: Mapping[str, Any]) -> None:
    """The last screen of `edgeq quantize`."""
    table = facts_table()
    table.add_row("model", summary["model"])
    table.add_row("written to", summary["output"])
    for name, path in summary["exports"].items():
        table.add_row(name, path)
    table.add_row("size", _size_row(summary["bytes"]))
    table.add_row(
        "bits per weight",
        ", ".join(f"{part} {bits:.2f}" for part, bits in summary["bits_per_weight"].items()),
    )
    if summary["worst_layers"]:
        worst = "\n".join(f"{loss:7.2%}  {name}" for name, loss in summary["worst_layers"])
        table.add_row(
            "largest errors", f"in % of the layer's squared output on the calibration text\n{worst}"
        )
    times = ", ".join(
        f"{stage} {seconds:.0f}" for stage, seconds in summary["seconds"].items() if seconds >= 0.5
    )
    table.add_row(
        "seconds", f"{summary['total_seconds']:.0f} ({times})" if times else "less than 1"
    )
    for note in summary["notes"][:MOST_NOTES]:
        table.add_row("note", note)
    if len(summary["notes"]) > MOST_NOTES:
        table.add_row("note", f"... and {len(summary['notes']) - MOST_NOTES} more, see report.json")
    console.print(table, highlight=False, soft_wrap=True)


def show_finished(console: Console, summary: Mapping[str, Any]) -> None:
    """A finished run, its quality where it was measured, and what to do next."""
    show_run(console, summary)
    if "quality" in summary:
        show_quality(console, summary["quality"])
    else:
        _show_command(
            console,
            "next",
            ["edgeq", "evaluate", summary["result"], "--reference", summary["original"]],
        )
    for name, path in summary["exports"].items():
        show_runtime(console, name, path)
    if not summary["exports"]:
        _show_command(
            console, "for llama.cpp", ["edgeq", "export", summary["output"], "--format", "gguf"]
        )


def show_runtime(console: Console, format_name: str, path: str) -> None:
    """The command that runs an exported file."""
    if format_name in RUN_WITH:
        _show_command(console, "run it with", [*RUN_WITH[format_name], path])


def show_exported(console: Console, result: Mapping[str, Any]) -> None:
    """The result of `edgeq export`."""
    for path, size in result["files"].items():
        console.print(f"{path}  {size / MEGABYTE:.1f} MB", highlight=False, soft_wrap=True)
    show_runtime(console, result["format"], result["result"])


def _show_command(console: Console, when: str, command: Sequence[str]) -> None:
    console.print(f"{when}: {shlex.join(command)}", highlight=False, soft_wrap=True)


def _size_row(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {size / MEGABYTE:.1f} MB" for what, size in sizes.items())


def show_quality(console: Console, quality: Mapping[str, Any]) -> None:
    """The result of `edgeq evaluate`."""
    table = facts_table()
    table.add_row("runtime", f"{quality['runtime']}, {quality['tokens']} tokens")
    original = quality["reference_perplexity"]
    table.add_row(
        "perplexity",
        f"{quality['perplexity']:.3f}" + (f" (original {original:.3f})" if original else ""),
    )
    if quality["kl"] is not None:
        table.add_row(
            "KL divergence", f"{quality['kl']:.4f} nats per token (0 is equal, lower is better)"
        )
        table.add_row("same top token", f"{quality['top1_agreement']:.1%}")
    console.print(table, highlight=False)


def show_inspection(console: Console, result: Mapping[str, Any]) -> None:
    """The result of `edgeq inspect`."""
    facts = (
        f"{result['model']}: {result['kind']}, {result['architecture']}, {result['blocks']} blocks",
        f"{result['parameters'] / 1e6:.1f} M parameters, {result['bytes'] / MEGABYTE:.1f} MB",
        f"{result['bits_per_weight']:.2f} bits per weight",
    )
    console.print(", ".join(facts), highlight=False, soft_wrap=True)
    for row in result["tensors"]:
        shape = " x ".join(map(str, row["shape"]))
        console.print(
            f"{row['count']:5}  {row['name']:48} {shape:14} {row['stored_as']}",
            highlight=False,
            soft_wrap=True,
        )
