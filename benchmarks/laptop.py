"""Solve the first blocks of a model of Llama-2-7B's shapes in a process that cannot have over 8 GB.

    uv run python -m benchmarks.laptop                  two blocks, 16 x 512 tokens (20 minutes)
    uv run python -m benchmarks.laptop --like small     the same with small shapes, to try it

The weights are random, so quality means nothing here; they take 2 GB of disk. The limit is
RLIMIT_DATA: heap and private mappings, counted as they are reserved and not as they are touched,
which is more than what is resident of them; mapped program files are not in it. The resident set,
which has them, is measured beside it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.synthetic import SHAPES, make_config, write_checkpoint
from edgeq.words import parse_size, show_size

RESULTS = Path(__file__).parent / "results" / "laptop.md"
SMALL = {"hidden": 512, "inner": 1376, "heads": 8, "vocabulary": 320, "blocks": 32}


def edgeq(*words: Any) -> list[str]:
    return [sys.executable, "-m", "edgeq", *map(str, words)]


def plan(model: Path, *words: Any) -> dict[str, Any]:
    """Run `edgeq plan`, and give what it says or the line with which it refuses."""
    run = subprocess.run(
        edgeq("plan", model, "--json", *words), capture_output=True, text=True, check=False
    )
    return json.loads(run.stdout) if run.returncode == 0 else {"refused": run.stderr.strip()}


def limited_run(command: list[str], limit: int) -> dict[str, Any]:
    """Run a command that may not have more than `limit` bytes of data.

    The result has its progress lines with their times, and its peak memory.

    Units: seconds, bytes.
    """
    start = time.monotonic()
    lines = []
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))
        assert process.stderr is not None
        for line in process.stderr:
            lines.append((time.monotonic() - start, line.strip()))
            print(f"{lines[-1][0]:7.0f} s  {lines[-1][1]}", flush=True)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "status": process.returncode,
        "lines": lines,
        "peak": used.ru_maxrss * 1024,
        "seconds": time.monotonic() - start,
    }


def plan_row(name: str, found: dict[str, Any]) -> str:
    if "refused" in found:
        return f"| {name} | | | | {found['refused'].removeprefix('edgeq: ')} |"
    hours = found["seconds"]["total"] / 3600
    way = found["way"]
    rows = way["rows_at_once"] or "all"
    how = f"{way['schedule']}, batches of {way['batch_tokens']}, {rows} rows at once"
    peak = show_size(found["memory"]["peak"])
    disk = show_size(sum(found["disk"].values()))
    return f"| {name} | {peak} | {disk} | {hours:.1f} | {how} |"


def write_results(
    rows: list[str], run: dict[str, Any], planned: dict[str, Any], words: list[str], blocks: int
) -> str:
    times = [moment for moment, line in run["lines"] if line.startswith("block ")]
    each = [f"{after - before:.0f}" for before, after in zip([0.0, *times], times, strict=False)]
    peak = planned.get("memory", {}).get("peak", 0)
    ratio = f" (measured / planned {run['peak'] / peak:.2f})" if peak else ""
    text = [
        "# Llama-2-7B's shapes in 8 GB",
        "",
        f"`edgeq quantize MODEL {' '.join(words)}` on {os.cpu_count()} cores, in a process",
        "limited by RLIMIT_DATA; random weights, bfloat16, sharded. "
        "Made by `uv run python -m benchmarks.laptop`.",
        "",
        f"- {blocks} blocks: exit status {run['status']}, {run['seconds']:.0f} s; "
        f"seconds by block {', '.join(each)} (the first with the start)",
        f"- peak resident set {show_size(run['peak'])}, planned {show_size(peak)}{ratio}",
        "",
        "| plan | peak memory | disk | hours | how |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--like", choices=["llama-2-7b", "small"], default="llama-2-7b")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--quality", default="fast")
    parser.add_argument("--max-ram", default="8GB")
    parser.add_argument(
        "--work", type=Path, help="where models and results of the run lie for its time"
    )
    given = parser.parse_args()
    shapes = SMALL if given.like == "small" else SHAPES[given.like]
    words = ["--quality", given.quality, "--samples", str(given.samples)]
    words += ["--max-ram", given.max_ram, "--backend", "cpu", "--calibration", "speeches"]
    all_blocks = f"all {shapes['blocks']} blocks"
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        work = Path(folder)
        whole = write_checkpoint(work / "whole", make_config(**shapes), outline=True)
        giant = write_checkpoint(work / "giant", make_config(**SHAPES["llama-2-70b"]), outline=True)
        model = write_checkpoint(work / "model", make_config(**{**shapes, "blocks": given.blocks}))
        plans = {
            f"{all_blocks}, as run here": plan(whole, *words),
            f"{all_blocks}, `balanced`, 64 x 512 tokens, no limit": plan(whole),
            "70B shapes, as run here": plan(giant, *words),
            "70B shapes, `fast`, 64 x 512 tokens, no limit": plan(giant, "--quality", "fast"),
            "70B shapes, `balanced`, 64 x 512 tokens, no limit": plan(giant),
        }
        rows = [plan_row(name, found) for name, found in plans.items()]
        planned = plan(model, *words)
        command = edgeq("quantize", model, "-o", work / "out", *words)
        run = limited_run(command, parse_size(given.max_ram, "--max-ram"))
    text = write_results(rows, run, planned, words, given.blocks)
    print(text)
    if given.like != "small":
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
