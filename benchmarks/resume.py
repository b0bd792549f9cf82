"""Kill a run at random moments with kill -9, then --resume it, and compare the bytes.

    uv run python -m benchmarks.resume                 glassllm, an MLX export, 20 kills (minutes)
    uv run python -m benchmarks.resume --model demo    the demo model (hours on 2 cores)
    uv run python -m benchmarks.resume --share 3       what commits cost, on 3 blocks of the demo

Every block is committed here, however quick it is: runs else leave some seconds between commits.
Moments are drawn with a fixed seed, evenly over the phases. What a kill hit is read from the disk.
Prints a table, also to benchmarks/results/resume.md, and exits 1 when some bytes differ from those
of a run that was not disturbed.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.speed import FirstBlocks
from edgeq.checkpoint.reader import read_json
from edgeq.commands.progress import Silent
from edgeq.errors import BadInput
from edgeq.files.hashes import hash_of_file
from edgeq.files.ownership import RUN_FILE, temporary_of
from edgeq.files.storage import size_of
from edgeq.run import commits
from edgeq.run.assembly import make_job
from edgeq.run.commits import Run
from edgeq.run.pipeline import quantize
from edgeq.sources import open_source

RESULT = Path(__file__).parent / "results" / "resume.md"
# glassllm reads 128 tokens. Its down_proj has 341 inputs, which no group size of MLX divides.
GLASS_OPTIONS = ["--samples", "64", "--sequence-length", "128", "--calibration", "speeches"]
GLASS_OPTIONS += ["--keep-dense", "*.down_proj", "--export", "mlx"]
DEMO_OPTIONS = ["--samples", "16", "--sequence-length", "256", "--calibration", "speeches"]
DEMO_OPTIONS += ["--export", "mlx"]
PHASES = ("start", "block", "commit", "outer", "head", "export")
SEED = 20261122
EVERY_BLOCK = (
    "import edgeq.run.commits as commits; commits.RESUME_SECONDS = 0; "
    "from edgeq.commands.main import main; main()"
)
POLL_SECONDS = 0.001  # some phases, such as the commit of a block, are short


@dataclass(frozen=True, slots=True)
class Kill:
    """Describes one killed run and what became of it.

    Units: seconds after its start.
    """

    seconds: float
    stage: str
    kept: str
    equal: bool
    clean: bool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="glassllm", help="glassllm, demo, or what edgeq quantize takes"
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--share", type=int, metavar="BLOCKS", help="time commits, kill nothing")
    arguments = parser.parse_args()
    if arguments.share:
        return print(share_of_commits(arguments.share), end="")
    with tempfile.TemporaryDirectory(prefix="edgeq-resume-") as name:
        folder = Path(name)
        model = arguments.model
        options = DEMO_OPTIONS
        if model == "glassllm":
            model = save_glass(folder / "glassllm")
            options = GLASS_OPTIONS
        command = [sys.executable, "-c", EVERY_BLOCK, "quantize", model, *options]
        command += ["--backend", "cpu"]
        kills = run_kills(command, folder, arguments.kills)
    text = report(kills, arguments.model, options)
    RESULT.write_text(text, encoding="utf-8")
    print(text, end="")
    sys.exit(0 if all(kill.equal and kill.clean for kill in kills) else 1)


def share_of_commits(blocks: int) -> str:
    """Quantize the first blocks of the demo with commits of all of them, and time these.

    The thread's own seconds are those of its work, beside which the run goes on; what the run
    itself waits for is all of its stage "write", in which blocks' files are written too.
    """
    spent = {"wall": 0.0, "CPU": 0.0}
    commit = Run._commit

    def timed(run: Run, finished: Any) -> None:
        before = time.perf_counter(), time.thread_time()
        commit(run, finished)
        spent["wall"] += time.perf_counter() - before[0]
        spent["CPU"] += time.thread_time() - before[1]

    source = FirstBlocks(open_source("demo"), blocks)
    rows = []
    for name in ("fast", "balanced"):
        settings = {"quality": name, "embedding_bits": 16}
        job = make_job(source, settings, backend="cpu", calibration=("speeches",))
        spent.update(wall=0.0, CPU=0.0)
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.object(commits, "RESUME_SECONDS", 0.0),
            patch.object(Run, "_commit", timed),
        ):
            start = time.perf_counter(), time.process_time()
            quantize(job, Path(folder) / "run", Silent())
            wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        waited = job.clock.seconds["write"]
        rows.append(
            f"{name}: a run of {wall:.1f} s ({cpu:.1f} CPU s); write {waited:.2f} s, "
            f"{waited / wall:.1%}; in the thread {spent['wall']:.2f} s, "
            f"{spent['CPU']:.2f} CPU s, {spent['CPU'] / cpu:.1%}\n"
        )
    return "".join(rows)


def save_glass(folder: Path) -> str:
    """Save glassllm as a directory of safetensors, by the same code as in the tests."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import models  # noqa: PLC0415

    models.glass_llama().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(models.glass_tokenizer().to_str(), encoding="utf-8")
    return str(folder)


def run_kills(command: Sequence[str], folder: Path, count: int) -> list[Kill]:
    """Run once undisturbed, then kill runs: as often in each phase, at random moments of it."""
    seconds = time_stages(command, folder / "undisturbed")
    expected = contents(folder / "undisturbed")
    rng, kills = random.Random(SEED), list[Kill]()
    while len(kills) < count:
        phase = PHASES[len(kills) % len(PHASES)]
        stage = rng.choice([stage for stage in seconds if stage.startswith(phase)])
        kill = kill_once(command, folder / "out", stage, rng.random() * seconds[stage], expected)
        print(kill or "over before it was killed, once more", file=sys.stderr, flush=True)
        kills += [kill] if kill else []
    return kills


def time_stages(command: Sequence[str], output: Path) -> dict[str, float]:
    """Measure how long each stage of a run takes that nothing stops.

    Units: seconds.
    """
    process = start(command, output)
    seconds: dict[str, float] = {}
    current = "start"
    since = time.monotonic()
    while process.poll() is None:
        stage = stage_of(output)
        now = time.monotonic()
        if stage != current:
            seconds[current] = now - since
            current = stage
            since = now
        time.sleep(POLL_SECONDS)
    assert process.returncode == 0
    return {**seconds, current: time.monotonic() - since}


def start(command: Sequence[str], output: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.Popen(
        [*command, "-o", str(output), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def stage_of(output: Path) -> str:
    """Find where a run is by what it has on disk: a phase, with the number of the block."""
    temporary = temporary_of(output)
    made = temporary / "new"
    if output.exists():
        return "export"
    if (made / "outer.safetensors").exists():
        return "head"
    done, total = progress(temporary)
    if total and done == total:
        return "outer"
    if (made / "blocks" / f"{done:04d}.safetensors").exists():
        return f"commit {done + 1}"
    return f"block {done + 1}" if (temporary / "states").exists() else "start"


def progress(temporary: Path) -> tuple[int, int]:
    """Count the blocks that are committed, and all; zeros where none is committed."""
    try:
        stored = read_json(temporary / RUN_FILE)["progress"]
    except BadInput:  # not there yet, or just now cleared away
        return 0, 0
    return int(stored["done"]), len(stored["files"])


def kill_once(
    command: Sequence[str], output: Path, stage: str, delay: float, expected: Mapping[str, str]
) -> Kill | None:
    """Kill a run some time after it came to a stage, continue it, and compare its files.

    Everything is removed at the end. None when the run was over before.
    """
    process = start(command, output)
    began = time.monotonic()
    while process.poll() is None and stage_of(output) != stage:
        time.sleep(POLL_SECONDS)
    time.sleep(delay)
    process.kill()
    process.wait()
    seconds = time.monotonic() - began
    if process.returncode >= 0:
        shutil.rmtree(output)
        return None
    hit = stage_of(output)
    done, total = progress(temporary_of(output))
    kept = "checkpoint" if output.exists() else "nothing"
    if total:
        kept = f"{done} of {total} blocks, {size_of(temporary_of(output)) / 1e6:.1f} MB"
    continued = start(command, output, "--resume").wait()
    equal = continued == 0 and contents(output) == expected
    clean = not list(output.parent.rglob("*edgeq-partial*"))
    shutil.rmtree(output, ignore_errors=True)
    return Kill(seconds, hit, kept, equal, clean)


def contents(folder: Path) -> dict[str, str]:
    """Hash every file, hidden ones too, by path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hash_of_file(path) for path in files}


def report(kills: Sequence[Kill], model: str, options: Sequence[str]) -> str:
    hit = {phase: sum(kill.stage.startswith(phase) for kill in kills) for phase in PHASES}
    lines = [
        f"Written by `python -m benchmarks.resume`: {model}, {' '.join(options)}, backend cpu. "
        "Each run is killed with",
        "SIGKILL, continued with `--resume`, "
        "and compared file by file with a run that was never stopped.",
        "",
        "| kill | after s | it stood in | on disk | bytes equal | nothing left behind |",
        "|---|---|---|---|---|---|",
    ]
    for number, kill in enumerate(kills, 1):
        same, clean = ("yes" if holds else "NO" for holds in (kill.equal, kill.clean))
        lines.append(
            f"| {number} | {kill.seconds:.2f} | {kill.stage} | {kill.kept} | {same} | {clean} |"
        )
    hits = ", ".join(f"{phase} {count}" for phase, count in hit.items())
    lines += ["", f"Hits: {hits}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
