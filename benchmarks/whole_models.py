"""Measure what models of 1B, 3B and 7B take: the first blocks, and from them the whole.

    uv run python -m benchmarks.whole_models                       on the CPU (an hour on 2 cores)
    uv run python -m benchmarks.whole_models --backend cuda --shapes llama-3.2-1b

The weights are random, which time and memory do not see. Blocks after the first are alike, so the
whole takes what the first ones took and the last one's time for each of those left out. Rows go to
benchmarks/results/whole_models.jsonl.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.synthetic import SHAPES, make_config, write_checkpoint
from edgeq.words import show_size, show_time

RESULTS = Path(__file__).parent / "results" / "whole_models.jsonl"
MODELS = ("llama-3.2-1b", "llama-3.2-3b", "llama-2-7b")
BLOCKS = 2  # the first has the start in it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=MODELS)
    parser.add_argument("--quality", nargs="+", default=["balanced"])
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.blocks < BLOCKS:
        parser.error(f"--blocks {given.blocks}: the time of a block needs {BLOCKS} or more")
    with tempfile.TemporaryDirectory() as folder:
        for shape in given.shapes:
            model = Path(folder) / shape
            write_checkpoint(model, make_config(**{**SHAPES[shape], "blocks": given.blocks}))
            for quality in given.quality:
                row = measure(model, shape, quality, given.backend)
                store(row, given.output)
                print(
                    f"{shape}, {quality}, {row['device']}: {show_time(row['seconds_total'])}, "
                    f"{show_time(row['seconds_block'])} a block, {show_size(row['memory_peak'])}",
                    flush=True,
                )


def measure(model: Path, shape: str, quality: str, backend: str) -> dict[str, Any]:
    """Quantize the first blocks in a process of its own, and reckon what all of them take."""
    log, output = model.with_suffix(".log"), model.with_suffix(f".{quality}")
    log.unlink(missing_ok=True)
    words = ["quantize", model, "-o", output, "--quality", quality, "--backend", backend]
    words += ["--calibration", "speeches", "--log-file", log, "--json"]
    command = [sys.executable, "-m", "edgeq", *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.time()
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    took = time.time() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = log.read_text(encoding="utf-8").splitlines()
    done = [moment(line) for line in lines if line.endswith(" is done")]
    block = done[-1] - done[-2]
    return {
        "shape": shape,
        "quality": quality,
        "device": device_name(backend),
        "blocks_run": len(done),
        "blocks": SHAPES[shape]["blocks"],
        "seconds_block": block,
        "seconds_total": took + block * (SHAPES[shape]["blocks"] - len(done)),
        "cpu_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "memory_peak": used.ru_maxrss * 1024,
    }


def moment(line: str) -> float:
    return datetime.fromisoformat(line.split(" ", 1)[0]).timestamp()


def device_name(backend: str) -> str:
    """Name what computes."""
    if backend != "cuda":
        return f"{os.cpu_count()} cores, {platform.machine()}"
    import torch  # noqa: PLC0415

    return str(torch.cuda.get_device_name())


def store(row: dict[str, Any], path: Path) -> None:
    """Put a row in the place of that of the same run."""
    same = ("shape", "quality", "device")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    kept = [each for each in rows if any(each[name] != row[name] for name in same)]
    text = "".join(json.dumps(each) + "\n" for each in [*kept, row])
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
