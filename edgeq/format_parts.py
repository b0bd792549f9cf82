"""A format: what it says of itself, and what its exporter and its reader must offer.

Descriptions are read to answer --help, so nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgeq.decoder import ModelRecord
    from edgeq.protocols import Grids, QuantizedModel
    from edgeq.types import Grid, ScaleDtype, StoredTensor, ZeroKind


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


class Exporter(Protocol):
    """Writes one file format, and nothing unless `reject_reason` is None."""

    format: Format

    @property
    def settings(self) -> Mapping[str, Any]:
        """Give what the exporter was made with, as the manifest states it."""

    def reject_reason(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Grids
    ) -> str | None:
        """Say why this model on these grids cannot be written and what to change; None when it can.

        grids maps each tensor name to its shape and its grid (None: dense).
        """

    def notes(
        self, record: ModelRecord, companions: Mapping[str, bytes], grids: Grids
    ) -> Sequence[str]:
        """Say what the files will not hold of the model as it is, and who does not read them.

        Asked for models without a `reject_reason`, with their grids.
        """

    def why_not_grid(self, shape: tuple[int, ...], grid: Grid) -> str | None:
        """Say what keeps a linear layer on this grid out of the format and what to change, or None.

        Shapes: (out, in).
        """

    def planned_bytes(
        self, record: ModelRecord, grids: Grids, item_bytes: Mapping[str, int]
    ) -> int:
        """Count the bytes of all weights in the files; headers and tokenizer are left out.

        grids are those of `reject_reason` but for redundant and refused ones, or a part of them.
        item_bytes has the bytes of one number of each tensor, as the model has it.
        """

    def overhead_bytes(self, record: ModelRecord, companions: Mapping[str, bytes]) -> int:
        """Count at most what the files hold beside weights; what runtimes are given counts."""

    def write(self, model: QuantizedModel, destination: Path) -> list[Path]:
        """Write the files and manifest.json into the empty directory `destination`.

        Each entry of the manifest is made by `edgeq_exporters.common.manifest`: what the reader of
        the format needs to find the tensor again, its status, largest deviation, and the hashes of
        the solution and of what the file holds.
        """


class ExportReader(Protocol):
    """Reads an export back from its bytes, one tensor at a time, to verify it.

    Made with a directory. library computed the weights, with its version; file is what a runtime
    opens first; settings are those that the files show. Values come from the container's own
    library where it is installed; all else is unpacked independently of the exporter. What cannot
    be read raises whatever it likes, and neither hangs nor takes more memory than the files.
    """

    library: str
    file: str
    settings: Mapping[str, Any]

    def __init__(self, directory: Path) -> None: ...

    def tensor_names(self) -> Sequence[str]:
        """List every tensor in the files that a manifest has to name, as its entries do."""

    def read(self, entry: Mapping[str, Any]) -> StoredTensor:
        """Read the tensor of a manifest's entry, with the grid it was solved on."""
