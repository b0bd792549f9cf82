"""A row of the table of settings, and its option on the command line.

Nothing here loads NumPy: `edgeq --help` is made from the rows and must answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from edgeq.recipe.setting_rules import Rule

if TYPE_CHECKING:
    from edgeq.recipe.settings import Settings

T = TypeVar("T")

PRESETS: Mapping[str, str] = {
    "fast": "one stream, no propagation: about the time of plain GPTQ",
    "balanced": "propagation and sweeps: about 1.7 times that",
    "best": "twice the sequences, both streams on all: about four times; then tuned",
}
"""What `--quality` may be, in words; the rows below say what each sets."""
DEFAULT_QUALITY = "balanced"
PLAIN = "plain"
"""The column of plain rounding (solver rtn), which takes nothing from a preset."""


@dataclass(frozen=True, slots=True)
class Option:
    """The option of a setting on the command line: --its-name VALUE, or a switch.

    switch has click's two flags, "--symmetric/--asymmetric", and values what they set; what is true
    or false has --its-name/--no-its-name without saying so. metavar stands for the value in --help;
    without one, the rule says it. group is where --help lists it (`edgeq.commands.groups`).
    """

    switch: str = ""
    values: tuple[Any, Any] = (True, False)
    metavar: str | None = None
    group: str = "expert"


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table: everything that is said of one setting.

    defaults has the value of "plain" and of every preset. help is the line in --help, more what
    docs/reference/settings.md adds to it. cost says in words what a larger value costs; stage names
    the time of `edgeq plan` that grows with it. option is None for what only a recipe may set;
    override says whether layers may differ in it. conflict returns what another setting has against
    the value.
    """

    rule: Rule[Any]
    help: str
    defaults: Mapping[str, Any]
    more: str = ""
    cost: str = ""
    stage: str = ""
    option: Option | None = None
    override: bool = False
    conflict: Callable[[Settings], str | None] | None = None
    name: str = ""

    @property
    def flag(self) -> str:
        """Write the name as an option."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def switch(self) -> str:
        """Write the two flags of an option that takes no value; empty where it takes one."""
        if self.option is None:
            return ""
        if self.option.switch or self.rule.kind is not bool:
            return self.option.switch
        return f"{self.flag}/--no-{self.flag.removeprefix('--')}"


def setting(default: T, rule: Rule[T], help: str, **rest: Any) -> T:
    """Make a row of the table, as the field of a dataclass.

    `default` is the value in the preset balanced, and in every column that is not stated. rest may
    state `plain`, `fast` and `best`; what else it has are the columns of `Setting`. To type
    checkers the result is the default, so that the field is an ordinary one.
    """
    stated = {column: rest.pop(column, default) for column in (PLAIN, *PRESETS)}
    row = Setting(rule, help, stated, **rest)
    return field(default=default, metadata={"row": row})
