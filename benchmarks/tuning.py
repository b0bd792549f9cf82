"""Measure what tuning gains, and what each of its ingredients does.

    uv run edgeq quantize MODEL --bits 3 --group-size 64 --embedding-bits 16 \\
        --calibration speeches -o SOLVED
    uv run python -m benchmarks.tuning SOLVED --reference MODEL
    uv run python -m benchmarks.tuning SOLVED --reference MODEL --variants "1 pass" "scales alone"

Every variant tunes the same checkpoint, and all are measured together on the six kinds of text that
`edgeq evaluate` has: none of their windows is tuned on. KL is given as a ratio to that of the
checkpoint as it was solved. Rows go to benchmarks/results/tuning.jsonl.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.llama_cpp_types import say
from edgeq.measuring.evaluate import evaluate_all
from edgeq.measuring.text_kinds import KINDS
from edgeq.run.spending import Place
from edgeq.run.tune_run import TuneAsked, TunedRun, prepare_tuning, run_tuning

RESULT = Path(__file__).parent / "results" / "tuning.jsonl"
HALF_SELF = ("speeches", "self")
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "scales alone": {"free": ("scales",)},
    "scales and offsets": {"free": ("scales", "offsets")},
    "scales and norms": {"free": ("scales", "norms", "biases")},
    "rate 0.001": {"tune_rate": 1e-3},
    "rate 0.01": {"tune_rate": 1e-2},
    "1 pass": {"tune_passes": 1},
    "4 passes": {"tune_passes": 4},
    "steps of 16 windows": {"step_windows": 16},
    "32k tokens": {"tune_tokens": 1 << 15},
    "65k tokens": {"tune_tokens": 1 << 16},
    "262k tokens": {"tune_tokens": 1 << 18},
    "524k tokens": {"tune_tokens": 1 << 19},
    "1M tokens": {"tune_tokens": 1 << 20},
    "speeches": {"calibration": ("speeches",)},
    "self-written": {"calibration": ("self",)},
    "half self-written": {"calibration": HALF_SELF},
    "mix": {"calibration": ("mix",)},
    "mix, half self-written": {"calibration": ("mix", "self")},
    "mix, half self-written, 4 passes": {"calibration": ("mix", "self"), "tune_passes": 4},
    "mix, 4 passes": {"calibration": ("mix",), "tune_passes": 4},
    "mix, codes too": {"calibration": ("mix",), "tune_codes": True},
    "mix, codes too, 4 passes": {"calibration": ("mix",), "tune_codes": True, "tune_passes": 4},
    "mix, half self-written, codes too": {"calibration": ("mix", "self"), "tune_codes": True},
}
"""By name, what differs from the defaults: settings, texts, and fields of `Tuning`."""
FIELDS = ("free", "step_windows")


class Quiet:
    """An observer that prints measurements of held-out windows."""

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None:
        if total and done in (1, total):
            say(f"  {what} {done}/{total}")

    def evaluated(self, model: str, done: int, total: int) -> None: ...

    def begin(self, blocks: int, done: int) -> None: ...

    def solved(self, report: Any) -> None: ...

    def finished_block(self, index: int) -> None: ...


def main() -> None:
    given = parse()
    with tempfile.TemporaryDirectory() as folder:
        runs = dict(tuned(given, Path(folder)))
        paths = [str(given.checkpoint), *(str(run.checkpoint.path) for run in runs.values())]
        measured = evaluate_all(
            paths, reference=given.reference, text=tuple(KINDS), windows=given.windows
        )
    first, *others = (by_text(target) for target in measured["targets"])
    for (name, run), found in zip(runs.items(), others, strict=True):
        row = row_of(given, name, run, first, found)
        with RESULT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        ratios = "  ".join(f"{text} {ratio:.3f}" for text, ratio in row["ratio"].items())
        print(f"{name:24} {ratios}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    parser.add_argument("--calibration", nargs="+", default=())
    parser.add_argument("--tokens", type=int, help="of all variants that choose none")
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--windows", type=int, default=16, help="of each text")
    parser.add_argument("--name", help="of the model, in the rows")
    return parser.parse_args()


def tuned(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, TunedRun]]:
    """Tune the checkpoint in every way that was asked for."""
    for place, name in enumerate(given.variants):
        changes = dict(VARIANTS[name])
        fields = {field: changes.pop(field) for field in FIELDS if field in changes}
        texts = changes.pop("calibration", tuple(given.calibration))
        stated = {"tune_tokens": given.tokens, "sequence_length": given.sequence_length}
        settings = {key: value for key, value in stated.items() if value is not None}
        settings |= changes
        asked = TuneAsked(
            given.checkpoint, given.reference, Place(folder / str(place)), settings, texts
        )
        job = prepare_tuning(asked)
        tuner = replace(job.tuner, tuning=replace(job.tuner.tuning, **fields))
        say(name)
        started = time.process_time()
        run = run_tuning(replace(job, tuner=tuner), Quiet(), again="")
        say(f"  {time.process_time() - started:.0f} CPU seconds")
        yield name, run


def by_text(target: Mapping[str, Any]) -> dict[str, float]:
    """Give the KL of a target on each text."""
    return {text["name"]: text["kl"] for text in target["texts"]}


def row_of(
    given: argparse.Namespace,
    name: str,
    run: TunedRun,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> dict[str, Any]:
    report = run.report
    return {
        "model": given.name or given.checkpoint.name,
        "variant": name,
        "tokens": report.tokens,
        "passes": report.passes,
        "rate": report.rate,
        "steps": report.steps,
        "kept_step": report.kept_step,
        "free": list(report.free),
        "moved_codes": report.moved_codes,
        "texts": [text["name"] for text in report.texts],
        "precision": report.precision,
        "seconds": round(sum(run.seconds.values()), 1),
        "held_out": {"before": report.before, "after": report.after},
        "kl": after,
        "ratio": {text: after[text] / before[text] for text in before},
    }


if __name__ == "__main__":
    main()
