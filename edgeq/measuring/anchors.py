"""Say in plain words how close a model is to its original, beside types that people know.

The anchors are what llama.cpp's own quantizer loses with its types, measured once on small models;
data/anchors.json has them with the models and the texts.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

ANCHORS_FILE = "anchors.json"
ALIKE = 1.2  # of two divergences: measured on other windows, the same file differs by about as much
WORDS = {
    8: "Practically equal to the original",
    6: "Practically equal to the original",
    5: "Very close to the original",
    4: "Close to the original",
    3: "Noticeably different from the original",
    2: "Far from the original",
}
"""By the bits in the name of the anchor that is nearest, as llama.cpp describes its types."""
WORSE = "Barely usable"
NOTHING_LOST = 1e-6  # nats per token: what sums in float32 leave of two equal models


@dataclass(frozen=True, slots=True)
class Anchor:
    """One of llama.cpp's types, and the KL divergence from the original with it.

    Units: kl in nats per token.
    """

    type: str
    bits_per_weight: float
    kl: float


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors, the least loss first, with the model and the text they were measured on."""

    model: str
    text: str
    rows: tuple[Anchor, ...]


@cache
def read_anchors() -> Mapping[str, Anchors]:
    """Read the anchors that ship with edgeq, by the model that they were measured on."""
    file = resources.files("edgeq") / "data" / ANCHORS_FILE
    tables = {}
    for stored in json.loads(file.read_text(encoding="utf-8")):
        rows = [Anchor(row["type"], row["bits_per_weight"], row["kl"]) for row in stored["rows"]]
        ordered = tuple(sorted(rows, key=lambda row: row.kl))
        tables[stored["model"]] = Anchors(stored["model"], stored["text"], ordered)
    return tables


def anchors_for(model: str) -> Anchors:
    """Choose the anchors of a model by its name; for all others those of the first model."""
    tables = read_anchors()
    return tables.get(model) or next(iter(tables.values()))


def verdict(kl: float, model: str = "") -> str:
    """Say in one sentence how good a KL divergence from the original is.

    Models differ in what a type costs them; where the model itself was measured, its own anchors
    count.

    Units: nats per token.
    """
    if kl <= NOTHING_LOST:
        return "Equal to the original: KL 0"
    number = f"KL {show_kl(kl)}"
    anchors = anchors_for(model)
    best, worst = anchors.rows[0], anchors.rows[-1]
    if kl > ALIKE * worst.kl:
        return (
            f"{WORSE}: {number}, worse than llama.cpp's {worst.type} "
            f"({show_kl(worst.kl)}, of {anchors.model})"
        )
    near = min(anchors.rows, key=lambda row: abs(math.log(kl / row.kl)))
    words = WORDS[bits_of(near.type)]
    if kl < best.kl / ALIKE:
        return f"{words}: {number}, closer than llama.cpp's {best.type} (of {anchors.model})"
    if max(kl / near.kl, near.kl / kl) <= ALIKE:
        return f"{words}: {number}, about as close as llama.cpp's {near.type} (of {anchors.model})"
    above = next(row for row in anchors.rows if row.kl > kl)
    below = anchors.rows[anchors.rows.index(above) - 1]
    return (
        f"{words}: {number}, between llama.cpp's {below.type} ({show_kl(below.kl)}) and "
        f"{above.type} ({show_kl(above.kl)}, both of {anchors.model})"
    )


def show_kl(kl: float) -> str:
    """Write a KL divergence with two digits that count."""
    return f"{kl:.2g}" if kl >= 1e-4 else f"{kl:.0e}"


def bits_of(name: str) -> int:
    """Read the bits in the name of a type: 4 of "Q4_K_M" and "IQ4_XS"."""
    return next(int(letter) for letter in name if letter.isdigit())
