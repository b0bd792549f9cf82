"""Mix calibration texts by share: files, texts that ship with edgeq, self-written text.

Reading and cutting them is left to `edgeq.calibration.windows`.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgeq.calibration.long_windows import sample_long
from edgeq.calibration.reading import LongText, open_text
from edgeq.calibration.shipped import DEFAULT, KINDS, MIX, mixed_shares, read_shipped
from edgeq.calibration.usable_kinds import read_usable
from edgeq.calibration.variety import check_variety, repeated_runs
from edgeq.calibration.windows import (
    begin_ids,
    load_tokenizer,
    sample_windows,
    separate_windows,
    tokenize,
)
from edgeq.errors import BadInput
from edgeq.protocols import ModelSource, TextModel
from edgeq.words import as_text

SELF = "self"
PIECE = 2**18
"""Characters of a long text that are held and tokenized at once: more than sequences need, which
have about five a token."""
LARGEST_SHARE = 1e6  # beyond it a typing error is likelier than a wish

Windows = npt.NDArray[np.int64]
WriteWindows = Callable[[int, int, int], Windows]
"""Has the model write windows, by count, length and seed.

Shapes: (count, length).
"""


@dataclass(frozen=True, slots=True)
class Text:
    """One calibration text: its name and share, and its content, None where the model writes it.

    A part of a mix is left out where its share gives it no sequence. What is_usable was found to
    be text to this model before, and is not looked at again.
    """

    name: str
    share: float
    content: str | LongText | None
    is_shipped: bool = False
    in_mix: bool = False
    is_usable: bool = False

    @property
    def at_once(self) -> int:
        """Count the characters that are tokenized at once."""
        if isinstance(self.content, LongText):
            return PIECE
        return len(self.content or "")


@dataclass(frozen=True, slots=True)
class ChosenTexts:
    """The texts that were named or are the default, and what is unusual of the choice."""

    texts: tuple[Text, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Calibration:
    """The windows that a model is calibrated on, and the record of where they come from.

    texts has one entry per text: name, share, samples, tokens, and sha256 of the text in UTF-8 or,
    where the model wrote it, of its tokens as little-endian int32. tokens are those of the whole
    text; of one that is too long to be tokenized whole, those in its windows. Where the windows
    repeat themselves, runs are the different runs of `edgeq.calibration.variety.RUN` tokens.

    Shapes: windows (samples, length).
    """

    windows: Windows
    texts: Sequence[dict[str, Any]]

    @property
    def tokens(self) -> int:
        return sum(int(text["tokens"]) for text in self.texts)

    def record(self) -> dict[str, Any]:
        """Give what edgeq.json says of the calibration."""
        return {"sha256": hash_tokens(self.windows), "texts": list(self.texts)}


def hash_tokens(windows: Windows) -> str:
    """Hash token ids as little-endian int32."""
    return hashlib.sha256(windows.astype("<i4").tobytes()).hexdigest()


def read_texts(values: Sequence[str], model: TextModel | None = None) -> tuple[Text, ...]:
    """Read texts as `choose_texts` does, and leave out what is to be said of them."""
    return choose_texts(values, model).texts


def choose_texts(
    values: Sequence[str], model: TextModel | None = None, *, fewest_tokens: int = 0
) -> ChosenTexts:
    """Read texts as `--calibration` names them: TEXT or TEXT=SHARE.

    TEXT is a path, "default", "self", "mix", or a kind of the mix; a share is 1 unless given. What
    exists as a file under the whole value is that file. Chat messages become text by the template
    of the model. A kind that is given beside the mix, which has it too, gets both shares.

    Without values, "default": the mix without the kinds that the model cannot use or that have
    fewer tokens than fewest_tokens, whose share the others take.

    Raises: BadInput for a missing or empty file, for shares that are no positive numbers, for a
    text named twice, and where not even one kind of the default can be used.
    """
    named = [name_and_share(value) for value in values or (DEFAULT,)]
    places = [place_of(name) for name, _ in named]
    for position, (name, _) in enumerate(named):
        if places[position] in places[:position]:
            raise BadInput(
                f"--calibration {name!r} is given twice; "
                f"give it once with a larger share ({name}=2)"
            )
    texts = [read_one(name, share, model) for name, share in named if place_of(name) != MIX]
    left_out: Mapping[str, str] = {}
    for name, share in named:
        missing = [kind for kind in KINDS if not any(is_of(text, kind) for text in texts)]
        if name == MIX:
            add_mix(texts, share, {kind: read_shipped(kind, model) for kind in missing})
        elif name == DEFAULT:
            usable = read_usable(missing, model, fewest_tokens)
            left_out = usable.left_out
            add_mix(texts, share, usable.contents, is_usable=model is not None)
    return ChosenTexts(tuple(texts), left_out_notes(left_out))


def left_out_notes(left_out: Mapping[str, str]) -> tuple[str, ...]:
    """Say which kinds of the default are left out, and why; nothing where none is."""
    if not left_out:
        return ()
    reasons = {kind: reason.split("; ", 1)[0] for kind, reason in left_out.items()}
    kinds = ", ".join(f"{kind} ({reason})" for kind, reason in reasons.items())
    return (f"calibration text is the mix without {kinds}; the other kinds take the share",)


def place_of(name: str) -> str:
    """Tell texts apart: two names of the same text have the same place."""
    if name in (DEFAULT, MIX):
        return MIX
    return name if name == SELF or name in KINDS else os.path.realpath(name)


def is_of(text: Text, kind: str) -> bool:
    """Say whether a text is a kind that ships with edgeq, and not a file of this name."""
    return text.is_shipped and text.name == kind


def add_mix(
    texts: list[Text], share: float, contents: Mapping[str, str], *, is_usable: bool = False
) -> None:
    """Add kinds of the mix to the texts; one that is there already gets a larger share.

    is_usable says that they were tried on the model.
    """
    places = {text.name: place for place, text in enumerate(texts) if text.is_shipped}
    for kind, part in mixed_shares(share, {*places, *contents}):
        if kind in places:
            found = texts[places[kind]]
            texts[places[kind]] = replace(found, share=found.share + part)
        else:
            added = Text(kind, part, contents[kind], is_shipped=True, in_mix=True)
            texts.append(replace(added, is_usable=is_usable))


def name_and_share(value: str) -> tuple[str, float]:
    """Split an option's value into the name of a text and its share.

    Raises: BadInput.
    """
    if not value:
        raise BadInput(f"--calibration '': expected a file, {DEFAULT!r}, {MIX!r} or {SELF!r}")
    name, separator, stated = value.rpartition("=")
    if separator and not name and not Path(value).exists():
        raise BadInput(
            f"--calibration {value!r}: no text before the share; "
            f"write TEXT{value}, such as {SELF}{value}"
        )
    if not separator or Path(value).exists():
        return value, 1.0
    try:
        share = float(stated)
    except ValueError:
        share = math.nan
    if not 0 < share <= LARGEST_SHARE:
        raise BadInput(
            f"--calibration {value!r}: no such file, and {stated!r} is not a share; "
            f"write TEXT or TEXT=SHARE with a number above 0 and up to {LARGEST_SHARE:.0f}, "
            f"such as {SELF}=0.5"
        )
    return name, share


def read_one(name: str, share: float, model: TextModel | None) -> Text:
    if name == SELF:
        return Text(SELF, share, None)
    if name in KINDS:
        return Text(name, share, read_shipped(name, model), is_shipped=True)
    return Text(as_text(Path(name).name), share, open_text(name, model))


def most_at_once(texts: Sequence[Text]) -> int:
    """Count the characters that are tokenized at once, at most: one text follows the other."""
    return max((text.at_once for text in texts), default=0)


def make_calibration(
    source: ModelSource,
    texts: Sequence[Text],
    write: WriteWindows,
    *,
    samples: int,
    sequence_length: int,
    seed: int,
    apart: bool = False,
) -> Calibration:
    """Cut windows from all texts in the given order, as many of each as its share says.

    apart: windows share no token, and a short text gives fewer. Kinds of the mix that get none are
    left out; the record names the others.

    Raises: BadInput when a text is too short for its windows, or its share too small for one.
    """
    counts = divide(samples, [text.share for text in texts])
    used = [place for place, text in enumerate(texts) if counts[place] or not text.in_mix]
    texts, counts = [texts[place] for place in used], [counts[place] for place in used]
    for text, count in zip(texts, counts, strict=True):
        if count == 0:
            more = "the tokens that are tuned on" if apart else "--samples"
            raise BadInput(
                f"--calibration {text.name!r}: "
                f"with share {text.share:g} it gets none of the {samples} sequences; "
                f"raise its share or {more}, or leave it out"
            )
    made: dict[int, tuple[Windows, dict[str, Any]]] = {}
    tokenizer = cache(partial(load_tokenizer, source))
    slow_last = sorted(range(len(texts)), key=lambda place: texts[place].content is None)
    for place in slow_last:
        text, count = texts[place], counts[place]
        if text.content is None:
            windows = write(count, sequence_length, seed)
            facts: dict[str, Any] = {"tokens": windows.size, "sha256": hash_tokens(windows)}
        else:
            options = {"samples": count, "sequence_length": sequence_length, "seed": seed}
            windows, facts = cut(source, text, text.content, tokenizer, apart=apart, **options)
        entry = {"name": text.name, "share": text.share, "samples": len(windows), **facts}
        made[place] = windows, entry
    ordered = [made[place] for place in range(len(texts))]
    joined = np.concatenate([windows for windows, _ in ordered])
    return Calibration(joined, [entry for _, entry in ordered])


def cut(
    source: ModelSource,
    text: Text,
    content: str | LongText,
    load: Callable[[], Tokenizer],
    *,
    apart: bool,
    **options: int,
) -> tuple[Windows, dict[str, Any]]:
    """Cut the windows of one text, and give what is recorded of it.

    load gives the model's tokenizer.

    Raises: BadInput with the text's name.
    """
    try:
        tokenizer = load()
        if isinstance(content, LongText):
            windows, tokens = sample_long(source, content, **options, apart=apart)
            sha256 = content.sha256
        else:
            ids = tokenize(source, content, tokenizer)
            take = separate_windows if apart else sample_windows
            windows = take(ids, **options, begin=begin_ids(source, tokenizer))
            tokens = len(ids)
            sha256 = hashlib.sha256(content.encode("utf-8")).hexdigest()
        if not text.is_usable:
            check_variety(source, tokenizer, windows)
    except BadInput as error:
        raise BadInput(f"--calibration {text.name!r}: {error}") from error
    facts = {"tokens": tokens, "sha256": sha256}
    runs = repeated_runs(windows) if windows.size <= tokens else None
    return windows, facts if runs is None else facts | {"runs": runs}


def divide(samples: int, shares: Sequence[float]) -> list[int]:
    """Divide samples into whole numbers that follow the shares and add up.

    Each is rounded down, and the rest goes to the largest remainders; equal ones to the earlier
    share.
    """
    total = math.fsum(shares)
    exact = [samples * share / total for share in shares]
    counts = [math.floor(number) for number in exact]
    by_remainder = sorted(range(len(shares)), key=lambda place: counts[place] - exact[place])
    for place in by_remainder[: samples - sum(counts)]:
        counts[place] += 1
    return counts
