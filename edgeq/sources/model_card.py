"""Read what a model's card says of its licence and origin: a few keys of its front matter.

Cards are written by people, so nothing in one can stop a run: what is no plain text, or list of
plain texts, is not read, and nothing of the card but its beginning.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.decoder import Origin
from edgeq.files.local_paths import is_local
from edgeq.files.ownership import CARD_FILE, LEGAL_FILE
from edgeq.files.plain_files import open_file

MOST_BYTES = 1 << 16  # of front matter; the longest that people write takes a few thousand
MOST_LEGAL_BYTES = 1_000_000  # of one licence; the longest in use takes 60,000
MOST_LEGAL_FILES = 20
LONGEST = 300  # characters of one value
FENCE = "---"
ENTRY = re.compile(r"([A-Za-z_][\w-]*):(?:[ \t]+(.*))?")
ITEM = re.compile(r"\s*-[ \t]+(.*)")
PLAIN = re.compile(r"[A-Za-z0-9_./(~][^#:]*(?:[#:][^\s#:][^#:]*)*")
"""Text without quotes; a # behind a blank would start a comment, and a : before one a mapping."""
ANYTHING = re.compile(r".*")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{2,8})*")

Value = str | tuple[str, ...]


def read_origin(directory: Path, repository: str | None = None) -> Origin:
    """Read the licence and the origin of a model from its README.md; what is not there is None.

    repository is its name on the hub, where that is known.
    """
    stated = front_matter(directory / CARD_FILE)

    def text(key: str) -> str | None:
        value = stated.get(key)
        return value if isinstance(value, str) else None

    def texts(key: str, rule: re.Pattern[str]) -> tuple[str, ...]:
        value = stated.get(key, ())
        listed = (value,) if isinstance(value, str) else value
        return tuple(dict.fromkeys(filter(rule.fullmatch, listed)))

    several = texts("license", LICENSE)
    license, name = next(iter(several), None), text("license_name")
    if len(several) > 1:  # cards have one word for it
        license, name = "other", ", ".join(several)
    return origin_of(
        {
            "repository": repository,
            "license": license,
            "license_name": name,
            "license_link": text("license_link"),
            "base_models": texts("base_model", HUB_NAME),
            "languages": texts("language", LANGUAGE),
        }
    )


def origin_of(stated: Mapping[str, Any]) -> Origin:
    """Take of an origin, by the names of its fields, what may stand in cards and files.

    What is no short text on one line, and a path of somebody's machine, is not known.
    """

    def sound(value: Any, rule: re.Pattern[str]) -> str | None:
        if not isinstance(value, str) or not 0 < len(value) <= LONGEST or is_local(value):
            return None
        return value if value.isprintable() and rule.fullmatch(value) else None

    def text(name: str, rule: re.Pattern[str] = ANYTHING) -> str | None:
        return sound(stated.get(name), rule)

    def texts(name: str, rule: re.Pattern[str]) -> tuple[str, ...]:
        value = stated.get(name)
        listed = value if isinstance(value, list | tuple) else ()
        return tuple(each for each in listed if sound(each, rule) is not None)

    return Origin(
        text("repository", HUB_NAME),
        text("license", LICENSE),
        text("license_name"),
        text("license_link"),
        texts("base_models", HUB_NAME),
        texts("languages", LANGUAGE),
    )


def front_matter(path: Path) -> dict[str, Value]:
    """Read the keys of a card's front matter that hold plain text or a list of such texts."""
    try:
        with open_file(path) as file:
            lines = file.read(MOST_BYTES).decode("utf-8").split("\n")
    except (OSError, ValueError):
        return {}
    lines = [line.removesuffix("\r") for line in lines]
    if lines[0].removeprefix("\ufeff") != FENCE or FENCE not in lines[1:]:
        return {}
    found: dict[str, Value] = {}
    for key, stated, below in entries(lines[1 : lines.index(FENCE, 1)]):
        value = value_of(stated, below)
        found.pop(key, None)  # of two entries the last one counts
        if value is not None:
            found[key] = value
    return found


def entries(lines: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Divide front matter into keys, each with what stands beside it and in the lines below it."""
    key, stated, below = None, "", list[str]()
    for line in lines:
        entry = ENTRY.fullmatch(line)
        if entry is not None:
            if key is not None:
                yield key, stated, below
            key, stated, below = entry[1], (entry[2] or "").strip(), []
        elif line.strip() and not line.lstrip().startswith("#"):
            below.append(line)
    if key is not None:
        yield key, stated, below


def value_of(stated: str, below: Sequence[str]) -> Value | None:
    """Read a text, or a list of texts in either of YAML's ways; None for anything else."""
    beside = without_comment(stated)
    if beside and below:
        return None
    if beside[:1] == "[" and beside[-1:] == "]":
        inner = beside[1:-1].strip()
        return texts_of(inner.split(",") if inner else ())
    if beside:
        return text_of(beside)
    items = [ITEM.fullmatch(line) for line in below]
    indents = {len(line) - len(line.lstrip()) for line in below}
    if not items or len(indents) > 1:
        return None
    return texts_of([item[1] if item else "" for item in items])


def texts_of(parts: Sequence[str]) -> tuple[str, ...] | None:
    """Read every part as a text; None where one is none."""
    found = [text_of(without_comment(part.strip())) for part in parts]
    return tuple(text for text in found if text is not None) if None not in found else None


def without_comment(text: str) -> str:
    """Cut off a comment behind text that has no quotes."""
    if text[:1] in "'\"":
        return text
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()


def text_of(part: str) -> str | None:
    """Read one text, quoted or not; None for what YAML could take for something else."""
    if len(part) > LONGEST or not part.isprintable():
        return None
    quoted = re.fullmatch(r"'([^']*)'|\"([^\"\\]*)\"", part)
    if quoted is not None:
        return quoted[1] if quoted[1] is not None else quoted[2]
    return part if PLAIN.fullmatch(part) else None


def legal_files(directory: Path) -> tuple[dict[str, bytes], list[str]]:
    """Read the licences and notices beside a model's weights, and note those that are left out."""
    found: dict[str, bytes] = {}
    notes = []
    names = sorted(each.name for each in directory.iterdir() if LEGAL_FILE.fullmatch(each.name))
    for name in names:
        path = directory / name
        if path.is_dir():
            continue
        try:
            with open_file(path) as file:
                data = file.read(MOST_LEGAL_BYTES + 1)
        except OSError:
            notes.append(f"{name} of the model cannot be read and is left out; copy it yourself")
            continue
        if len(data) > MOST_LEGAL_BYTES or len(found) == MOST_LEGAL_FILES:
            notes.append(f"{name} of the model is too large and is left out; copy it yourself")
        else:
            found[name] = data
    return found, notes
