"""How values of options are read: in any case of their letters, and completed by shells.

What a value may be is judged by the code that looks it up, which says it in the same words to
every caller. Nothing here loads NumPy or a framework.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from edgeq.errors import BadInput
from edgeq.recipe.setting_rules import Rule
from edgeq.recipe.type_names import BASES, TYPES
from edgeq.registry import BACKENDS, FORMATS, LOGITS, format_read_by

CHECKPOINT_HEAD = "edgeq.json"
"""The file that makes a directory a checkpoint; `edgeq.files.ownership` has it too."""


class Word(click.ParamType[str]):
    """One of some words, written in any case; others stay as they are, to be refused later."""

    name = "word"

    def __init__(self, words: Callable[[], Sequence[str]]) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give the word in its own spelling."""
        return next((word for word in self.words() if word.lower() == value.lower()), value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """List the words that begin so."""
        start = incomplete.lower()
        return [CompletionItem(word) for word in self.words() if word.lower().startswith(start)]


class FormatWord(Word):
    """The name of a format; that of a program is refused with the formats it reads."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give the name in its own spelling.

        Raises: BadInput for the name of a program that reads one of the formats, and for a type.
        """
        name = super().convert(value, param, ctx)
        if name in self.words():
            return name
        flag = param.opts[0] if param is not None else "--export"
        several = [each.strip() for each in value.split(",") if each.strip()]
        if len(several) > 1:
            repeated = " ".join(f"--export {each}" for each in several)
            advice = f"repeat it: {repeated}" if flag == "--export" else "give one format"
            raise BadInput(f"{flag} {value!r}: one format at a time; {advice}")
        program, formats = format_read_by(name) or ("", ())
        if formats:
            use = " or ".join(f"{flag} {each}" for each in formats)
            raise BadInput(f"{flag} {value!r}: {program} reads {' and '.join(formats)}; use {use}")
        of_type = next((each for each in TYPE_NAMES if each.lower() == name.lower()), None)
        if of_type:
            more = " --type " + of_type if flag == "--export" else ""
            raise BadInput(
                f"{flag} {value!r}: that is a type of weights in GGUF files; use {flag} gguf{more}"
            )
        return name


class SettingValue(click.ParamType[Any]):
    """The value of a setting: a number where it is one, else text; the setting's rule judges it."""

    def __init__(self, rule: Rule[Any], words: Sequence[str] = ()) -> None:
        self.rule = rule
        self.words = words or rule.words
        self.name = rule.kind.__name__

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a number, or a word in its own spelling."""
        for read in (self.rule.kind, float):
            try:
                return read(value) if self.rule.kind is not str else str(self._spelled(value))
            except ValueError:
                continue
        return self._spelled(value)

    def _spelled(self, text: str) -> str:
        return next((word for word in self.words if word.lower() == text.lower()), text)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """List the words that begin so."""
        start = incomplete.lower()
        return [CompletionItem(word) for word in self.words if word.lower().startswith(start)]


class UserPath(click.ParamType[Path]):
    """A path as shells write it, with ~ for the home directory, also in --output=~/x."""

    name = "path"

    def __init__(self, kind: str = "file") -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Read a path.

        Raises: BadInput for an empty one, which would be the current directory.
        """
        if isinstance(value, Path):
            return value
        if not value:
            raise BadInput("a path is empty; name a directory or file, or leave the option out")
        return Path(os.path.expanduser(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell list files or directories; checkpoints are listed here."""
        found = checkpoints_at(incomplete) if self.kind == "checkpoint" else []
        kind = "file" if self.kind == "file" else "dir"
        return [*map(CompletionItem, found)] or [CompletionItem(incomplete, type=kind)]


class ModelName(click.ParamType[str]):
    """What a user calls a model: a path, a name on the hub, or the word demo."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell list files and directories; demo is listed where none begins so."""
        is_demo = bool(incomplete) and "demo".startswith(incomplete)
        if is_demo and not entries_at(incomplete):
            return [CompletionItem("demo")]
        return [CompletionItem(incomplete, type="file")]


def entries_at(incomplete: str) -> list[str]:
    """List what a path that is being typed may become."""
    folder, _, start = incomplete.rpartition("/")
    place = Path(os.path.expanduser(folder or ("/" if incomplete.startswith("/") else ".")))
    try:
        names = sorted(entry.name for entry in place.iterdir() if entry.name.startswith(start))
    except OSError:
        return []
    return [f"{incomplete[: len(incomplete) - len(start)]}{name}" for name in names]


def checkpoints_at(incomplete: str) -> list[str]:
    """List the checkpoints that a path that is being typed may become."""
    paths = entries_at(incomplete)
    return [path for path in paths if Path(os.path.expanduser(path), CHECKPOINT_HEAD).is_file()]


TYPE_NAMES = (*TYPES, *BASES)
BACKEND = Word(lambda: ("auto", *BACKENDS))
FORMAT = FormatWord(lambda: tuple(FORMATS))
RUNTIME = Word(lambda: tuple(LOGITS))
PATH = UserPath()
DIRECTORY = UserPath("directory")
CHECKPOINT = UserPath("checkpoint")
MODEL = ModelName()
