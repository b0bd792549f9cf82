"""What a format says of itself: its description, options, sizes of groups, apps that run it.

Descriptions are read to answer --help, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgeq.types import ScaleDtype, ZeroKind


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Says all of one file format: what it holds, who reads it, where its code lies.

    exporter and reader are "module:attribute"; extra is what installs what they import.

    bits: widths of the codes in the file. With `widens`, narrower codes lie in the next wider ones;
    else only grids of these bits are held.
    zero_kinds: kinds of zero point that are held without loss, the preferred asymmetric one first.
    rounded_zero_kinds: kinds that are held too, but rounded again.
    scale_dtypes: types of scales that are held without rounding.
    types: types of grids, by llama.cpp's names (`edgeq.grids.types`), that are held too.
    embedding: whether embedding and head keep their codes, or are written dense as these say.
    suffix: how the one file that a runtime is given ends, empty for a directory; data_suffix: what
    a data file beside it has behind its name.
    runtime: which of `edgeq.registry.LOGITS` runs the files; empty where none does.
    run_with: the apps that run a file. library: what the hub's cards call who reads it. is_model:
    whether `edgeq.sources` opens it as a model.
    """

    name: str
    exporter: str
    reader: str
    extra: str = ""
    bits: tuple[int, ...]
    widens: bool = False
    groups: GroupSizes
    zero_kinds: tuple[ZeroKind, ...]
    rounded_zero_kinds: tuple[ZeroKind, ...] = ()
    scale_dtypes: tuple[ScaleDtype, ...]
    types: tuple[str, ...] = ()
    embedding: Literal["quantized", "dense"] = "quantized"
    outlier_columns: bool = False
    options: tuple[FormatOption, ...] = ()
    suffix: str = ""
    data_suffix: str = ""
    read_by: str
    verified_by: str
    runtime: str = ""
    run_with: tuple[App, ...] = ()
    library: str = ""
    is_model: bool = False

    def holds_bits(self, bits: int) -> bool:
        """Say whether codes of so many bits fit into the codes of the file."""
        return bits in self.bits or (self.widens and bits < max(self.bits))
