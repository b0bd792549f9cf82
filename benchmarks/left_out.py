"""Choose shares of calibration texts: measure mixes on kinds of text that they leave out.

    uv run python -m benchmarks.left_out MODEL             3 bits, and 2 bits with offsets
    uv run python -m benchmarks.left_out MODEL --bits 3    only one of them

MODEL is a directory or demo. For each kind of text that edgeq ships for evaluation, the model is
solved on mixes that have nothing of this kind, and judged on it. The languages are one kind: all
are left out together. Finished solves stand in benchmarks/results/left-out-NAME.jsonl and are not
run again; the table is printed and goes to left-out-NAME.md.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeq.calibration.reading import read_text
from edgeq.calibration.windows import begin_ids, first_windows, tokenize
from edgeq.commands.progress import Silent
from edgeq.measuring.quality import compare
from edgeq.measuring.targets import model_logits
from edgeq.measuring.text_kinds import KINDS as JUDGES
from edgeq.protocols import ModelSource
from edgeq.run.assembly import make_job
from edgeq.run.pipeline import quantize
from edgeq.sources import open_source
from edgeq.types import NumpyArray

RESULTS = Path(__file__).parent / "results"
LANGUAGES = ("german", "french", "spanish", "russian", "chinese")
GROUPS: Mapping[str, Sequence[str]] = {
    "speech": ("speeches",),
    "prose": ("prose",),
    "encyclopedia": ("encyclopedia",),
    "dialogue": ("dialogue",),
    "code": ("code",),
    "languages": LANGUAGES,
}
"""Calibration texts by the kind that is left out as one."""
JUDGED_BY: Mapping[str, Sequence[str]] = {"languages": ("german", "spanish")}
GRIDS: Mapping[str, Mapping[str, Any]] = {
    "3": {"bits": 3, "zeros": "symmetric"},
    "2": {"bits": 2, "zeros": "offset"},
}
COMMON: Mapping[str, Any] = {"group_size": 64, "embedding_bits": 16, "samples": 64}
WINDOWS = 16  # of each evaluation text, at most


def equal(groups: Sequence[str]) -> dict[str, float]:
    """Give every kind the same share, and the languages the share of one kind."""
    return {name: 1 / len(GROUPS[group]) for group in groups for name in GROUPS[group]}


def mostly_speeches(groups: Sequence[str]) -> dict[str, float]:
    """Give speeches, where they are not left out, as much as all others together."""
    shares = equal(groups)
    others = math.fsum(share for name, share in shares.items() if name != "speeches")
    return shares | ({"speeches": others} if "speeches" in shares else {})


def with_self(groups: Sequence[str]) -> dict[str, float]:
    """Have a third self-written, the rest in equal shares."""
    shares = equal(groups)
    return shares | {"self": math.fsum(shares.values()) / 2}


MIXES = {
    "equal shares": equal,
    "half speeches": mostly_speeches,
    "equal shares + a third self": with_self,
}


@dataclass
class Bench:
    """A model, its predictions on the evaluation texts, and the solves that were run before."""

    source: ModelSource
    path: Path
    known: dict[str, dict[str, float]] = field(default_factory=dict)
    references: dict[str, tuple[NumpyArray, list[NumpyArray]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.known = {line["solve"]: line["kl"] for line in map(json.loads, lines)}
        length = min(512, self.source.record.context or 512)
        for kind, file in JUDGES.items():
            ids = tokenize(self.source, read_text(None, default=file))
            begin = begin_ids(self.source)
            windows = first_windows(ids, windows=WINDOWS, sequence_length=length, begin=begin)
            logits = list(model_logits(self.source, "cpu").logits(windows))
            self.references[kind] = windows, logits

    def measure(self, grid: str, shares: Mapping[str, float]) -> dict[str, float]:
        """Solve on a mix, and give KL to the original in nats per token on every kind of text."""
        texts = [f"{name}={share:.6g}" for name, share in shares.items()]
        solve = f"{grid}: {' '.join(texts)}"
        if solve in self.known:
            return self.known[solve]
        with tempfile.TemporaryDirectory() as folder:
            settings = {**COMMON, **GRIDS[grid]}
            job = make_job(self.source, settings, backend="cpu", calibration=texts)
            checkpoint = quantize(job, Path(folder) / "run", Silent())
            found = {}
            for kind, (windows, references) in self.references.items():
                logits = model_logits(checkpoint, "cpu").logits(windows)
                found[kind] = compare(windows, logits, references).kl
        self.known[solve] = found
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"solve": solve, "kl": found}) + "\n")
        print(solve, found, flush=True)
        return found


def judges_of(left_out: str) -> list[str]:
    """List the evaluation texts of what is left out; none has those of novels."""
    return [judge for judge in JUDGED_BY.get(left_out, (left_out,)) if judge in JUDGES]


def rows_of(bench: Bench, grid: str) -> list[str]:
    """Measure all mixes, and lay a row out for each evaluation text that was left out."""
    alone = bench.measure(grid, {"speeches": 1.0})
    parts = {left_out: [name for name in GROUPS if name != left_out] for left_out in GROUPS}
    kinds = {left_out: judges_of(left_out) for left_out in GROUPS if judges_of(left_out)}
    kinds["nothing"], parts["nothing"] = list(JUDGES), list(GROUPS)
    found: dict[str, list[dict[str, float]]] = {left_out: [] for left_out in kinds}
    for shares in MIXES.values():
        for left_out in kinds:
            found[left_out].append(bench.measure(grid, shares(parts[left_out])))
    rows = []
    for left_out, judges in kinds.items():
        for judge in judges:
            cells = [f"{kl[judge]:.4f} ({kl[judge] / alone[judge]:.2f})" for kl in found[left_out]]
            first = f"{alone[judge]:.4f}"
            rows.append(f"| {grid} | {left_out} | {judge} | {first} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--bits", choices=tuple(GRIDS), action="append")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    name = Path(arguments.model).name
    bench = Bench(open_source(arguments.model), RESULTS / f"left-out-{name}.jsonl")
    lines = [
        f"`python -m benchmarks.left_out {name}`: balanced, groups of 64, dense embeddings, "
        f"{COMMON['samples']} calibration sequences, seed 0; 3 bits symmetric and 2 bits with "
        "offsets. KL to the original in nats per token, in brackets the ratio to speeches alone.",
        "",
        f"| bits | left out | judged on | speeches alone | {' | '.join(MIXES)} |",
        "|---|---|---|---|" + "---|" * len(MIXES),
    ]
    for grid in arguments.bits or GRIDS:
        lines += rows_of(bench, grid)
    text = "\n".join(lines) + "\n"
    (RESULTS / f"left-out-{name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
