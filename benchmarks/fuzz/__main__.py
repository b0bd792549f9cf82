"""Mutate the input of every reader and run the real entries on it, forked and with limits.

    uv run python -m benchmarks.fuzz --mutants 100000 --seed 1 --jobs 2
    uv run python -m benchmarks.fuzz --reader gguf --show 17      one mutant again, with a traceback

Every mutant must be accepted or refused in one line. Anything else is an escape: another exception,
over 20 seconds, over 3 GB, a write outside of the output, death by a signal, a changed export that
`edgeq verify` calls right. Prints a table, also to benchmarks/results/fuzz.md, with the escapes in
fuzz.jsonl beside it, and exits 1 when there are any.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from difflib import unified_diff
from functools import partial
from pathlib import Path

RESULT = Path(__file__).parent.parent / "results" / "fuzz.md"
SLOW_LIBRARIES = ("compressed_tensors", "mlx", "torch")
PIECE = 500  # mutants that a process of several takes at a time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reader", action="append", help="only this one; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--output", type=Path, default=RESULT, help="the table, Markdown")
    parser.add_argument("--show", type=int, metavar="INDEX", help="run this mutant alone, here")
    parser.add_argument(
        "--light",
        action="store_true",
        help="as if libraries that take seconds to import were not installed",
    )
    parser.add_argument(
        "--planted",
        type=float,
        help="share of mutants in which a link, pipe or device stands for a file  [default: 0.04]",
    )
    arguments = parser.parse_args()
    if arguments.light:
        sys.modules |= dict.fromkeys(SLOW_LIBRARIES)  # type: ignore[arg-type]
    from benchmarks.fuzz.inputs import write_inputs  # noqa: PLC0415
    from benchmarks.fuzz.readers import READERS  # noqa: PLC0415
    from benchmarks.fuzz.running import Mutants  # noqa: PLC0415

    if arguments.planted is not None:
        Mutants.planted_share = arguments.planted
    unknown = set(arguments.reader or ()) - set(READERS)
    if unknown:
        parser.error(f"no reader {sorted(unknown)}; there are {', '.join(READERS)}")
    readers = arguments.reader or list(READERS)
    with tempfile.TemporaryDirectory(prefix="edgeq-fuzz-") as folder:
        place = Path(folder).resolve()
        write_inputs(place / "inputs")
        if arguments.show is not None:
            show(readers[0], arguments.show, place, arguments.seed)
            return
        per_reader = -(-arguments.mutants // len(readers))
        pieces = [
            (reader, start, min(start + PIECE, per_reader))
            for reader in readers
            for start in range(0, per_reader, PIECE)
        ]
        started = time.perf_counter()
        found = list(run_pieces(pieces, place, arguments.seed, arguments.jobs))
    seconds = time.perf_counter() - started
    text = table(readers, found, seconds, arguments.seed)
    arguments.output.write_text(text, encoding="utf-8")
    escapes = [row for row in found if row[2] not in QUIET]
    lines = [
        json.dumps(dict(zip(("reader", "index", "kind", "detail"), row, strict=True)))
        for row in escapes
    ]
    arguments.output.with_suffix(".jsonl").write_text(
        "".join(f"{line}\n" for line in lines), encoding="utf-8"
    )
    print(text)
    sys.exit(1 if escapes else 0)


Row = tuple[str, int, str, str]
"""A mutant's reader, index, outcome, and what was said."""
Piece = tuple[str, int, int]
"""A reader, and the first and one-past-last of its mutants that one process takes."""
QUIET = ("accepted", "refused")


def run_pieces(pieces: Sequence[Piece], place: Path, seed: int, jobs: int) -> Iterator[Row]:
    """Run all pieces, several at a time where asked for, and yield every mutant's outcome."""
    run = partial(run_piece, place=place, seed=seed)
    if jobs == 1:
        yield from told(pieces, map(run, pieces))
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from told(pieces, pool.map(run, pieces))


def told(pieces: Sequence[Piece], found: Iterable[list[Row]]) -> Iterator[Row]:
    """Pass rows on, and say of each piece on standard error how it went."""
    for (reader, start, end), rows in zip(pieces, found, strict=True):
        escapes = Counter(kind for _, _, kind, _ in rows if kind not in QUIET)
        shown = ", ".join(f"{kind} ({count})" for kind, count in escapes.items())
        print(f"{reader} {start} to {end}: {shown or 'no escape'}", file=sys.stderr, flush=True)
        yield from rows


def run_piece(piece: Piece, *, place: Path, seed: int) -> list[Row]:
    """Run the mutants of one reader from one index to another."""
    from benchmarks.fuzz.running import outcomes  # noqa: PLC0415

    reader, start, end = piece
    load_libraries(reader)
    places = (place / "inputs", place / f"work-{os.getpid()}")
    found = outcomes(reader, range(start, end), places, seed)
    return [(each.reader, each.index, each.kind, each.detail) for each in found]


def load_libraries(reader: str) -> None:
    """Import what a reader imports late, once and not in every child; nothing of it is run."""
    from edgeq.errors import NotInstalled  # noqa: PLC0415
    from edgeq.registry import FORMATS, Entry, find_format, load  # noqa: PLC0415

    for name in FORMATS:
        try:
            load(Entry(find_format(name).exporter), name)
            load(Entry(find_format(name).reader), name)
        except NotInstalled as error:
            print(f"not fuzzed: {error}", file=sys.stderr)
    library = {
        "compressed-tensors": "compressed_tensors.compressors.pack_quantized.helpers",
        "mlx": "mlx.core",
    }.get(reader)
    if library is not None:
        try:
            __import__(library)
        except ImportError:
            print(f"read without {library}, which is not installed", file=sys.stderr)


def show(reader: str, index: int, place: Path, seed: int) -> None:
    """Run one mutant in this process, say what was changed, and print where it escaped."""
    from benchmarks.fuzz.readers import READERS  # noqa: PLC0415
    from benchmarks.fuzz.running import Mutants  # noqa: PLC0415

    mutants = Mutants(reader, place / "inputs", place / "work", seed)
    import random  # noqa: PLC0415

    case = mutants.make(random.Random(f"{seed}/{reader}/{index}"))
    path = case.folder / case.changed
    print(f"changed: {case.changed}{', sealed' if case.sealed else ''}")
    if path.is_file() and not path.is_symlink():
        print(*differing(mutants.files[case.changed], path.read_bytes()), sep="\n")
    try:
        READERS[reader].read(case)
    except Exception:
        traceback.print_exc()


def differing(before: bytes, after: bytes) -> Iterator[str]:
    """Describe where bytes begin and end to differ; of JSON the laid out texts are compared."""
    with suppress(ValueError, RecursionError):
        before, after = (
            json.dumps(json.loads(text), indent=1).encode() for text in (before, after)
        )
        lines = (text.decode().splitlines() for text in (before, after))
        yield from unified_diff(*lines, lineterm="", n=1)
        return
    start = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    yield f"{len(before)} bytes, now {len(after)}; from byte {start}:"
    yield f"  was {before[max(start - 60, 0) : start + 100]!r}"
    yield f"  now {after[max(start - 60, 0) : start + 100]!r}"


def table(readers: Sequence[str], rows: Sequence[Row], seconds: float, seed: int) -> str:
    """Lay the outcomes out as a table, and list kinds of escapes below it."""
    lines = [
        f"Written by `python -m benchmarks.fuzz --mutants {len(rows)} --seed {seed}`: "
        f"{len(rows)} mutants in {seconds:.0f} s.",
        "",
        "| reader | mutants | accepted | refused | escapes |",
        "|---|---|---|---|---|",
    ]
    for reader in [*readers, "all"]:
        kinds = Counter(row[2] for row in rows if reader in (row[0], "all"))
        total, accepted, refused = kinds.total(), kinds["accepted"], kinds["refused"]
        lines.append(
            f"| {reader} | {total} | {accepted} | {refused} | {total - accepted - refused} |"
        )
    escapes = Counter((row[0], row[2]) for row in rows if row[2] not in QUIET)
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((row[0], row[2]), row)
    if escapes:
        lines += ["", "| reader | escape | mutants | first | of |", "|---|---|---|---|---|"]
    for (reader, kind), count in escapes.most_common():
        _, index, _, detail = first[reader, kind]
        shown = "".join(letter if letter.isprintable() else "?" for letter in detail)
        lines.append(f"| {reader} | {kind} | {count} | {index} | {shown.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
