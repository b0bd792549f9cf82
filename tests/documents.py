"""README and docs as tests read them: fenced blocks, commands, options, links and anchors."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"^(?:<!-- no-run: ([^\n]+) -->\n)?```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
TITLE = re.compile(r'title="([^"]+)"')
PROGRAM = "edgeq"
RUNNER = ("uv", "run")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, why it cannot run here (None: it can), and its text.

    A block with a file is what readers write into that file.
    """

    page: str
    line: int
    language: str
    reason: str | None
    file: str | None
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every document that people read, README first."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *docs]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    text = read(page)
    for found in FENCE.finditer(text):
        title = TITLE.search(found[3])
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[2], found[1], title[1] if title else None, found[4])


def lines(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block, without `uv run` before it."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if tuple(words[:2]) == RUNNER:
            words = words[2:]
        if words:
            yield words


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", read(page))


def code_in_prose(page: str) -> list[str]:
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(page))]


def links(page: str) -> Iterator[tuple[str, str]]:
    """File and anchor of each link and picture that stays in the project."""
    text = re.sub(r"`[^`]*`", "", prose(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    targets += re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            yield file, anchor


def anchors(text: str) -> set[str]:
    """The anchors of headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}
