"""How a solved model was tuned, as report.json stores it and the head of a checkpoint in short."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeq.run.numbers import check_numbers, is_count

COUNTS = ("kept_step", "steps", "tokens", "held_out_tokens", "seed", "passes", "numbers")
OF_CODES = ("codes", "moved_codes")
FLOATS = ("before", "after", "rate")
WORDS = ("precision", "way", "question")


@dataclass(frozen=True, slots=True)
class TuningReport:
    """What tuning read, what it moved, and what that gained on windows that were held out.

    before and after are their mean KL divergence from the original, in nats; equal where nothing
    was gained, and nothing changed then. kept_step is the step that was kept of so many steps, 0
    where none was. tokens are those that were tuned on, held_out_tokens those that decided. texts
    are as `edgeq.calibration.texts.Calibration` records them. free names the kinds of numbers that
    might move. numbers counts the floats that did, codes those that might and moved_codes those
    that did, each 0 where nothing was gained. question is the hash of all that was asked. curve has
    a row per step: "step", its "loss" (KL of its windows), and "held_out" where that was measured.
    earlier are the heads of tunings before.
    """

    before: float
    after: float
    kept_step: int
    steps: int
    tokens: int
    held_out_tokens: int
    texts: Sequence[Mapping[str, Any]]
    seed: int
    passes: int
    rate: float
    precision: str
    way: str
    free: Sequence[str]
    numbers: int
    question: str
    curve: Sequence[Mapping[str, float | None]]
    codes: int = 0
    moved_codes: int = 0
    earlier: Sequence[Mapping[str, Any]] = ()

    @property
    def is_gain(self) -> bool:
        """Say whether anything was gained."""
        return self.kept_step > 0

    def head(self) -> dict[str, Any]:
        """Give what the head of a checkpoint says of it: all but the curve."""
        found = asdict(self)
        del found["curve"]
        return found

    def line(self) -> str:
        """Say in a line what tuning gained."""
        return tuned_line(self.head())

    def moved(self) -> str:
        """Say how many numbers moved."""
        floats = f"{self.numbers:,} floats"
        if not self.codes:
            return floats
        share = self.moved_codes / self.codes
        return f"{floats}, and {self.moved_codes:,} of {self.codes:,} codes ({share:.2%})"


def tuned_line(head: Mapping[str, Any]) -> str:
    """Say in a line what tuning gained, by what the head of a checkpoint says of it."""
    before, after, tokens = head["before"], head["after"], f"{head['tokens']:,} tokens"
    if head["kept_step"]:
        return f"tuned on {tokens}: KL on held-out windows {before:.3g} -> {after:.3g}"
    return (
        f"tuning on {tokens} gained nothing on held-out windows (KL {before:.3g}): "
        "all stays as it was solved"
    )


def tuning_from(stored: Any) -> TuningReport | None:
    """Read the report of a tuning from plain data; None for null.

    Raises: TypeError, ValueError, KeyError for what is none.
    """
    if stored is None:
        return None
    found = TuningReport(**{**stored, "earlier": stored.get("earlier", [])})
    check_numbers({name: getattr(found, name) for name in (*COUNTS, *OF_CODES, *FLOATS)})
    if not all(is_count(getattr(found, name)) for name in (*COUNTS, *OF_CODES)):
        raise ValueError("tokens and steps of its tuning are counted in whole numbers")
    if found.moved_codes > found.codes:
        raise ValueError("more codes moved in its tuning than there are")
    if not all(isinstance(getattr(found, name), str) for name in WORDS):
        raise TypeError("precision and way of its tuning are words")
    if not all(isinstance(rows, list) for rows in (found.texts, found.free, found.earlier)):
        raise TypeError("texts of its tuning are a list")
    if not all(isinstance(kind, str) for kind in found.free):
        raise TypeError("what was free in its tuning is named in words")
    if not all(isinstance(each, dict) for each in found.earlier):
        raise TypeError("tunings before it are no objects")
    for row in found.curve:
        known = {key: row[key] for key in ("loss", "held_out") if row[key] is not None}
        check_numbers({"step": row["step"], **known})
    for text in found.texts:
        if not isinstance(text["name"], str) or not is_count(text["samples"]):
            raise ValueError("a text of its tuning has no name, or no count of sequences")
    return found
