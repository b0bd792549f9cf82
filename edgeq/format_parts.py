"""What a format says of itself in its description: options, sizes of groups, apps that run it.

Descriptions are read to answer --help, so nothing heavy is imported here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FormatOption:
    """States an option of an exporter: a keyword argument of its class, a flag of the commands.

    values: whole numbers or words that it may have; None for a switch.
    """

    name: str
    help: str
    values: range | tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class GroupSizes:
    """States the group sizes that a format holds: multiples of a number, or some of them."""

    multiple_of: int
    only: tuple[int, ...] = ()
    whole_rows: bool = True

    def holds(self, size: int | None) -> bool:
        """Say whether a group may have this size; None asks for one group per row."""
        if size is None:
            return self.whole_rows
        return size in self.only if self.only else size % self.multiple_of == 0


@dataclass(frozen=True, slots=True)
class App:
    """States how an app or a library runs an export.

    label names it. commands are lines of a shell, each as its words; script is a program in
    `language`. In all of them {path} stands for the file or directory that a runtime is given,
    {folder} for the directory of the export, and {name} for what the app is to call the model;
    in a script {context} stands for tokens that the model can read.
    install brings the app. file is one that an export must have for it. note says what else to
    know.
    """

    label: str
    commands: tuple[tuple[str, ...], ...] = ()
    script: str = ""
    language: str = "python"
    install: str = ""
    file: str = ""
    note: str = ""

    def lines(self, *, path: str, folder: str, name: str) -> Iterator[list[str]]:
        """Give the commands for an export, each as the words of a shell."""
        for words in self.commands:
            yield [filled(word, path=path, folder=folder, name=name) for word in words]


def apps_for(apps: Iterable[App], files: Iterable[str]) -> list[App]:
    """List the apps that run an export with these files."""
    there = set(files)
    return [app for app in apps if not app.file or app.file in there]


def filled(text: str, **values: str) -> str:
    """Put values into the places of a text that are named in braces; other braces stay."""
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text
