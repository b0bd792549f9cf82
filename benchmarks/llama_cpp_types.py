"""Compare edgeq with llama.cpp's own types at equal bytes, and along the curve of file sizes.

    uv run python -m benchmarks.llama_cpp_types MODEL --libraries DIR --work DIR
    uv run python -m benchmarks.llama_cpp_types MODEL --libraries DIR --work DIR --curve

Every file of llama.cpp is made with an importance matrix of the very token windows that edgeq is
calibrated on. All files run in llama.cpp, one window after the other beside the float16 file, on
text that nothing was calibrated on. DIR of --libraries is what `benchmarks.llama_cpp_library`
describes, or LLAMA_CPP_LIBS. --work keeps what was made: a run goes on where it was stopped.

Of each type, both files have the same types in the same tensors, which is checked. With --curve,
llama.cpp's mixes, edgeq's uniform types and edgeq's budget at the size of each mix are compared.
Rows go to benchmarks/results/llama_cpp_types.jsonl. Exits 1 when a ratio is above its limit, or a
file is nearer to the original than the budget at its size.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gguf_tensors import Unequal, bits_per_weight, check_equal, tensors_of
from benchmarks.llama_cpp_library import Choice, LlamaCpp, LlamaError
from benchmarks.llama_cpp_tables import (
    BUDGET,
    EDGEQ,
    LEAST_CORRELATION,
    LLAMA,
    correlation,
    curve_table,
    nearer,
    too_far,
    types_table,
)
from edgeq.calibration.texts import make_calibration, read_texts
from edgeq.errors import BadInput, EdgeqError
from edgeq.measuring.quality import Meter
from edgeq.measuring.targets import find_export
from edgeq.measuring.text_kinds import DEFAULT_KIND
from edgeq.measuring.texts import cut_windows
from edgeq.sources import open_source
from edgeq.types import NumpyArray

RESULT = Path(__file__).parent / "results" / "llama_cpp_types.jsonl"
LIBRARIES = "LLAMA_CPP_LIBS"
PURE: Mapping[str, str] = {
    "Q2_K": "Q2_K",
    "Q3_K": "Q3_K_S",
    "Q4_K": "Q4_K_S",
    "Q5_K": "Q5_K_S",
    "Q6_K": "Q6_K",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
}
"""By type: how llama.cpp calls a file whose matrices all have it."""
MIXES = (
    *("Q2_K_S", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L"),
    *("IQ4_XS", "IQ4_NL", "Q4_K_S", "Q4_K_M", "Q5_K_S"),
)
AT_ONCE = 6  # files that are held beside the original while a window runs
SEED = 0
CALIBRATION = "speeches"


@dataclass(frozen=True, slots=True)
class Made:
    """A file of weights: whose it is, what it is called, and what edgeq was asked for.

    kind is a type, a mix, or a budget in bits per weight.
    """

    side: str
    kind: str
    path: Path
    quality: str = ""
    predicted: float | None = None

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.side, self.kind, self.quality) if part)


@dataclass(frozen=True, slots=True)
class Bench:
    """Holds what all steps of a run share."""

    library: LlamaCpp
    arguments: argparse.Namespace
    dense: Path
    calibration: NumpyArray
    evaluation: NumpyArray

    @property
    def work(self) -> Path:
        folder: Path = self.arguments.work
        return folder


def main() -> None:
    arguments = parse()
    try:
        wrong = compare(arguments)
    except (EdgeqError, LlamaError, Unequal) as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:  # which has said why
        sys.exit(f"stopped: edgeq ended with status {error.returncode}")
    for each in wrong:
        print(each)
    sys.exit(1 if wrong else 0)


def compare(arguments: argparse.Namespace) -> list[str]:
    """Make, measure and print everything, and say what is not as it should be."""
    bench = open_bench(arguments)
    made = [*references(bench)] if arguments.reference_only else [*everything(bench)]
    rows = [
        {"model": name_of(arguments), "curve": arguments.curve, **row}
        for row in measured(bench, made)
    ]
    store(rows, arguments.output)
    return show_curve(rows) if arguments.curve else show_types(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="what edgeq quantize takes: a directory or a GGUF file")
    parser.add_argument("--libraries", type=Path, default=os.environ.get(LIBRARIES))
    parser.add_argument("--work", type=Path, required=True, help="keep what is made in this folder")
    parser.add_argument("--name", help="call the model this in results")
    parser.add_argument("--types", nargs="+", choices=tuple(PURE), default=tuple(PURE))
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=MIXES)
    parser.add_argument(
        "--curve", action="store_true", help="mixes and budgets, not pairs of types"
    )
    parser.add_argument("--quality", nargs="+", default=["balanced"], help="presets of edgeq")
    parser.add_argument(
        "--embedding-type", default="Q6_K", help="of embedding and head, both sides"
    )
    parser.add_argument("--samples", type=int, default=32, help="calibration windows")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens of every window")
    parser.add_argument("--windows", type=int, default=32, help="evaluation windows")
    parser.add_argument(
        "--calibration", default=CALIBRATION, help="a file, or what ships with edgeq: %(default)s"
    )
    parser.add_argument("--evaluation", help="a file; default, the text that ships with edgeq")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reference-only", action="store_true", help="llama.cpp's files alone")
    parser.add_argument("--output", type=Path, default=RESULT, help="put rows into this file")
    arguments = parser.parse_args()
    if arguments.libraries is None:
        parser.error(f"give --libraries, or set {LIBRARIES}")
    return arguments


def name_of(arguments: argparse.Namespace) -> str:
    return arguments.name or Path(arguments.model).stem


def open_bench(arguments: argparse.Namespace) -> Bench:
    """Cut the windows, and make the float16 file where the model is none."""
    for folder in (LLAMA, EDGEQ):
        (arguments.work / folder).mkdir(parents=True, exist_ok=True)
    source = open_source(arguments.model)
    calibration = make_calibration(
        source,
        read_texts([arguments.calibration], source),
        refuse_to_write,
        samples=arguments.samples,
        sequence_length=arguments.sequence_length,
        seed=SEED,
    )
    evaluation = cut_windows(
        [source],
        [arguments.evaluation or DEFAULT_KIND],
        windows=arguments.windows,
        sequence_length=arguments.sequence_length,
    ).ids
    library = LlamaCpp(arguments.libraries, threads=arguments.threads)
    dense = dense_file(library, arguments)
    return Bench(library, arguments, dense, calibration.windows, evaluation)


def refuse_to_write(*_: int) -> NumpyArray:
    raise BadInput("--calibration self: llama.cpp's matrix needs a text that is there; give a file")


def dense_file(library: LlamaCpp, arguments: argparse.Namespace) -> Path:
    """Find or make the model in float16: what llama.cpp rounds, and what all is compared with."""
    model, dense = Path(arguments.model), arguments.work / "dense.gguf"
    if model.suffix == ".gguf":
        return model
    if not dense.exists():
        exported = quantized(arguments, "dense", ["--bits", "16", "--embedding-bits", "16"])
        library.quantize(exported, dense, Choice("F16"))
    return dense


def everything(bench: Bench) -> Iterator[Made]:
    """Make the files of both sides.

    Raises: Unequal.
    """
    yield from references(bench)
    for made in uniform(bench):
        if not bench.arguments.curve:
            check_equal(made.path, reference_path(bench, made.kind, pure=True))
        yield made
    if bench.arguments.curve:
        yield from budgets(bench)


def references(bench: Bench) -> Iterator[Made]:
    """Make llama.cpp's files, each with the importance matrix: mixes of a curve, or pure ones."""
    curve = bench.arguments.curve
    importance = importance_of(bench)
    for kind in bench.arguments.mixes if curve else bench.arguments.types:
        path = reference_path(bench, kind, pure=not curve)
        choice = (
            Choice(kind)
            if curve
            else Choice(PURE[kind], pure=True, embedding=bench.arguments.embedding_type)
        )
        if not path.exists():
            say(f"llama.cpp makes {path.name}")
            bench.library.quantize(bench.dense, path, choice, importance)
        yield Made(LLAMA, kind, path)


def reference_path(bench: Bench, kind: str, *, pure: bool) -> Path:
    embedding = f"-{bench.arguments.embedding_type}" if pure else ""
    return bench.work / LLAMA / f"{kind}{'-pure' if pure else '-mix'}{embedding}.gguf"


def importance_of(bench: Bench) -> Mapping[str, NumpyArray]:
    """Measure the importance matrix, or read the one that was measured before."""
    path = bench.work / "importance.npz"
    if not path.exists():
        say("llama.cpp measures the importance matrix")
        np.savez(path, **bench.library.importance(bench.dense, bench.calibration))
    with np.load(path) as found:
        return dict(found)


def uniform(bench: Bench) -> Iterator[Made]:
    """Make edgeq's files of one type each, by every preset."""
    for quality in bench.arguments.quality:
        for kind in bench.arguments.types:
            embedding = bench.arguments.embedding_type
            options = ["--quality", quality, "--type", kind, "--embedding-type", embedding]
            name = f"{kind}-{embedding}-{quality}"
            yield Made(EDGEQ, kind, quantized(bench.arguments, name, options), quality)


def budgets(bench: Bench) -> Iterator[Made]:
    """Make edgeq's files of as many bits per weight as each of llama.cpp's mixes has."""
    for quality in bench.arguments.quality:
        for kind in bench.arguments.mixes:
            bits = np.floor(bits_per_weight(reference_path(bench, kind, pure=False)) * 1e3) / 1e3
            options = ["--quality", quality, "--bits-per-weight", f"{bits:.3f}"]
            path = quantized(bench.arguments, f"budget-{bits:.3f}-{quality}", options)
            yield Made(BUDGET, f"{bits:.3f}", path, quality, predicted_of(path.parent.parent))


def predicted_of(checkpoint: Path) -> float | None:
    """Read the KL that a budget's report predicts."""
    report = json.loads((checkpoint / "report.json").read_text(encoding="utf-8"))
    found = report.get("budget", {}).get("predicted_kl")
    return None if found is None else float(found)


def quantized(arguments: argparse.Namespace, name: str, options: Sequence[str]) -> Path:
    """Have edgeq quantize in a process of its own, or find what it made before.

    Raises: CalledProcessError.
    """
    output = arguments.work / EDGEQ / name
    exported = find_export(str(output / "gguf"))
    if exported is None:
        say(f"edgeq makes {name}")
        texts = ["--calibration", arguments.calibration]
        sizes = {
            "--samples": arguments.samples,
            "--sequence-length": arguments.sequence_length,
            "--seed": SEED,
        }
        command = ["quantize", arguments.model, "--output", str(output), *options, *texts]
        command += [str(word) for pair in sizes.items() for word in pair]
        command += ["--export", "gguf", "--backend", "cpu", "--json", "--resume"]
        log = output.with_name(f"{name}.json")
        with log.open("w", encoding="utf-8") as answer:
            subprocess.run([sys.executable, "-m", "edgeq", *command], stdout=answer, check=True)
        exported = find_export(str(output / "gguf"))
    assert exported is not None
    return exported.path


def measured(bench: Bench, made: Sequence[Made]) -> list[dict[str, Any]]:
    """Measure all files that were not measured on these windows yet, and give all rows."""
    log = bench.work / "measured.jsonl"
    known = {row["key"]: row for row in read_rows(log)}
    keys = {each.name: key_of(bench, each) for each in made}
    missing = [each for each in made if keys[each.name] not in known]
    for start in range(0, len(missing), AT_ONCE):
        group = missing[start : start + AT_ONCE]
        for each, meter in zip(group, meters(bench, [each.path for each in group]), strict=True):
            row = {"key": keys[each.name], **asdict(meter.quality())}
            known[row["key"]] = row
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            say(f"{each.name}: KL {row['kl']:.4f}")
    return [
        {
            **{"side": each.side, "kind": each.kind, "quality": each.quality},
            "bits_per_weight": bits_per_weight(each.path),
            "bytes": sum(size for _, size, _ in tensors_of(each.path).values()),
            "predicted_kl": each.predicted,
            **{name: value for name, value in known[keys[each.name]].items() if name != "key"},
        }
        for each in made
    ]


def key_of(bench: Bench, made: Made) -> str:
    """Name a file as it is now, and the windows."""
    status = made.path.stat()
    count, length = bench.evaluation.shape
    return f"{made.path.resolve()} {status.st_size} {status.st_mtime_ns} {count}x{length}"


def meters(bench: Bench, paths: Sequence[Path]) -> list[Meter]:
    """Run files beside the float16 one, window by window."""
    found = [Meter() for _ in paths]
    length = bench.evaluation.shape[1]
    with ExitStack() as stack:
        dense, *models = (
            stack.enter_context(bench.library.opened(path, length))
            for path in (bench.dense, *paths)
        )
        for window in bench.evaluation:
            wanted = dense.logits(window)
            for meter, model in zip(found, models, strict=True):
                meter.add(window, model.logits(window), wanted)
    return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def store(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Put rows into a file of JSON lines, in the place of those of the same solves."""
    same = ("model", "curve", "side", "kind", "quality")
    new = {tuple(row[name] for name in same): row for row in rows}
    old = [row for row in read_rows(path) if tuple(row[name] for name in same) not in new]
    lines = [json.dumps(row, sort_keys=True) for row in (*old, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def show_types(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Print the table of types, and give what is above its limit."""
    print(types_table(rows))
    return too_far(rows)


def show_curve(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Print the curve, and give what a budget should have been better than."""
    print(curve_table(rows))
    found = correlation(rows)
    if found is None:
        return nearer(rows)
    print(f"predicted and measured KL of budgets: rank correlation {found:.3f}")
    low = [f"rank correlation below {LEAST_CORRELATION}"] if found <= LEAST_CORRELATION else []
    return nearer(rows) + low


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
