"""Compare the time of a run with that of what it cannot do without: the floor.

    uv run python -m benchmarks.speed               every block of the demo (25 minutes on 2 cores)
    uv run python -m benchmarks.speed --blocks 4    the first blocks only (about 4 minutes)
    uv run python -m benchmarks.speed --blocks 6 --runs "--quality balanced"
    uv run python -m benchmarks.speed --device cuda   on a GPU: see `benchmarks.speed_cuda`

The floor is plain forward passes of every block on both streams, and the bare products H and D of
their inputs. All runs take turns block by block in one process, so that other load on the machine
hits all of them alike. Seconds are CPU seconds over all cores. Each run's peak memory is measured
in a process of its own. Results go to benchmarks/results/.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from benchmarks import speed_cuda
from benchmarks.solves import PLAIN, PRESETS
from edgeq.architectures.record import read_record
from edgeq.calibration.reading import read_text
from edgeq.calibration.windows import sample_windows, tokenize
from edgeq.commands.progress import Silent
from edgeq.planning.process_memory import give_large_arrays_back, peak_resident_bytes
from edgeq.protocols import ModelSource
from edgeq.run.assembly import make_activations, make_job
from edgeq.run.pipeline import Job, quantize
from edgeq.sources import open_source
from edgeq.stopwatch import Stopwatch
from edgeq.streams.blockwise import CALIBRATION_BATCH, Flow, split_windows
from edgeq.types import BlockSpec
from edgeq_backends.torch.backend import TorchBackend
from edgeq_backends.torch.model import StreamedModel

RESULTS = Path(__file__).parent / "results"
COMMON = {"group_size": 64, "embedding_bits": 16, "samples": 64, "sequence_length": 512, "seed": 0}
PLAIN_NAME = "plain GPTQ"
BARE = {"scales": "none", "propagation_strength": 0.0}
RUNS: Mapping[str, Mapping[str, Any]] = {
    PLAIN_NAME: BARE,
    **{f"--quality {name}": settings for name, settings in PRESETS.items()},
    "--quality balanced, recomputing": PRESETS["balanced"],
}
FLOOR, RECOMPUTING = "floor", "--quality balanced, recomputing"
MEMORY_BLOCKS = 2  # memory does not grow with blocks


class FirstBlocks:
    """Cuts a model off after some blocks."""

    def __init__(self, source: ModelSource, count: int) -> None:
        self._source = source
        self._blocks = source.blocks()[:count]
        config = {**source.record.config(), "num_hidden_layers": len(self._blocks)}
        self.record = read_record(source.record.name, config)
        kept = {name for block in self._blocks for name in block.tensors}
        cut = {name for block in source.blocks() for name in block.tensors} - kept
        self._names = [name for name in source.tensor_names() if name not in cut]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def tensor_names(self) -> Sequence[str]:
        return self._names

    def blocks(self) -> Sequence[BlockSpec]:
        return self._blocks


class InTurn(Silent):
    """Observes a run, and lets the other runs have their turn after each block."""

    def finished_block(self, index: int) -> None:
        getcurrent().parent.switch()


class Floor:
    """Runs both streams through every block, and multiplies the inputs of its sites."""

    def __init__(self, source: ModelSource, clock: Stopwatch) -> None:
        self._source = source
        self._clock = clock
        self._model = StreamedModel(source, "cpu")
        self._backend = TorchBackend("cpu")

    def run(self) -> None:
        tokens = tokenize(self._source, read_text(None))
        windows = sample_windows(tokens, samples=64, sequence_length=512, seed=0)
        full = list(self._model.record(split_windows(windows, CALIBRATION_BATCH)))
        quantized = [states * 1.001 for states in full]  # any stream that is not equal will do
        for block in self._source.blocks():
            with self._model.block(block.index) as module:
                names = [linear.name.removeprefix(f"{block.name}.") for linear in block.linears]
                linears = [module.get_submodule(name) for name in names]
                for batch in range(len(full)):
                    X = self._forward(block.index, batch, full, linears)
                    X_hat = self._forward(block.index, batch, quantized, linears)
                    with self._clock("statistics"):
                        self._products(X, X_hat)
            getcurrent().parent.switch()

    def _forward(
        self, index: int, batch: int, streams: list[Any], linears: Sequence[Any]
    ) -> list[Any]:
        """Run one batch through a block, and give the inputs of its sites.

        Shapes: (tokens, in).
        """
        seen: dict[int, Any] = {}
        hooks = [
            linear.register_forward_pre_hook(lambda _, args: note(seen, args[0]))
            for linear in linears
        ]
        with self._clock("forward passes"):
            streams[batch] = self._model.run_block(index, batch, streams[batch])
        for hook in hooks:
            hook.remove()
        return [x.reshape(-1, x.shape[-1]) for x in seen.values()]

    def _products(self, full: Sequence[Any], quantized: Sequence[Any]) -> None:
        for x, x_hat in zip(full, quantized, strict=True):
            self._backend.gram(x_hat, x_hat)
            self._backend.gram(x - x_hat, x_hat)


def note(seen: dict[int, Any], x: Any) -> None:
    seen[id(x)] = x


def take_turns(runs: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Run each up to the end of its next block, in turn until all are over; time them.

    Units: seconds of CPU time.
    """
    waiting = {name: greenlet(run) for name, run in runs.items()}
    seconds = dict.fromkeys(runs, 0.0)
    while waiting:
        for name, run in list(waiting.items()):
            start = time.process_time()
            run.switch()
            seconds[name] += time.process_time() - start
            if run.dead:
                del waiting[name]
    return seconds


def job_of(source: ModelSource, name: str) -> Job:
    settings = {**PLAIN, **COMMON, "bits": 3, **RUNS[name]}
    job = make_job(source, settings, backend="cpu", calibration=("speeches",))
    if name == RECOMPUTING:
        recomputing = partial(make_activations, "cpu", flow=Flow("recomputing"))
        job = replace(job, make_activations=recomputing)
    return job


def measure(source: ModelSource, names: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Measure the floor and named runs, in all and by stage.

    Units: seconds of CPU time.
    """
    clocks = {name: Stopwatch(time.process_time) for name in (FLOOR, *names)}
    runs: dict[str, Callable[[], None]] = {FLOOR: Floor(source, clocks[FLOOR]).run}
    for name in names:
        job = replace(job_of(source, name), clock=clocks[name])
        runs[name] = partial(quantize, job, folder / str(len(runs)), InTurn())
    seconds = take_turns(runs)
    return {
        name: {"cpu_seconds": seconds[name], "stages": dict(clocks[name].seconds)} for name in runs
    }


def peak_of(name: str, blocks: int) -> int | None:
    """Measure the peak resident size of a run alone in a process; None if the system has none.

    Units: bytes.
    """
    command = [sys.executable, "-m", "benchmarks.speed", "--only", name, "--blocks", str(blocks)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    peak: int | None = json.loads(run.stdout)["peak"]
    return peak


def run_alone(source: ModelSource, name: str) -> None:
    """Do one run in this process, and print its peak memory as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        give_large_arrays_back()
        quantize(job_of(source, name), Path(folder) / "run", Silent())
    print(json.dumps({"peak": peak_resident_bytes()}))


def format_table(results: Mapping[str, Mapping[str, Any]], blocks: int) -> str:
    """Make the Markdown table of times, ratios and peak memory, and the list of stages."""
    libraries = ("edgeq", "torch", "transformers", "numpy")
    packages = ", ".join(f"{name} {version(name)}" for name in libraries)
    floor = results[FLOOR]["cpu_seconds"]
    plain = results.get(PLAIN_NAME, {}).get("cpu_seconds")
    lines = [
        f"`python -m benchmarks.speed`: SmolLM2-135M-Instruct, {blocks} blocks, "
        f"3 bits, groups of 64, 64 x 512 calibration tokens, backend cpu; {packages}; "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} of them used; "
        "all runs in turn, block by block, "
        f"`best` on its {PRESETS['best']['samples']} x 512 tokens. "
        f"Peak memory: a process of its own, {MEMORY_BLOCKS} blocks.",
        "",
        "| run | CPU s | to the floor | to plain GPTQ | peak memory |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        seconds = result["cpu_seconds"]
        peak = f"{result['peak'] / 1e9:.2f} GB" if result.get("peak") else ""
        to_plain = f"{seconds / plain:.2f}" if plain else ""
        lines.append(f"| {name} | {seconds:.0f} | {seconds / floor:.2f} | {to_plain} | {peak} |")
    lines += ["", "CPU seconds by stage:", ""]
    for name, result in results.items():
        stages = sorted(result["stages"].items(), key=lambda item: -item[1])
        # Less would be shown as 0.0.
        shown = [f"{stage} {seconds:.1f}" for stage, seconds in stages if seconds >= 0.05]
        lines.append(f"- {name}: {', '.join(shown)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    if any(word.startswith("--device") for word in sys.argv[1:]):
        return speed_cuda.main()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=30, help="how many of the model's blocks")
    parser.add_argument(
        "--runs", nargs="+", choices=tuple(RUNS), default=tuple(RUNS)[:-1], help="which runs"
    )
    parser.add_argument(
        "--only", choices=tuple(RUNS), help="one run alone, printing its peak memory"
    )
    arguments = parser.parse_args()
    source = FirstBlocks(open_source("demo"), arguments.blocks)
    if arguments.only:
        return run_alone(source, arguments.only)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(source, arguments.runs, Path(folder))
    for name in arguments.runs:
        results[name]["peak"] = peak_of(name, MEMORY_BLOCKS)
    text = format_table(results, arguments.blocks)
    RESULTS.mkdir(exist_ok=True)
    name = "speed-schedules.md" if RECOMPUTING in arguments.runs else "speed.md"
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
