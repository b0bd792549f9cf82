"""What a format says of itself in its description: options, and sizes of groups.

Descriptions are read to answer --help, so nothing heavy is imported here.
"""

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
