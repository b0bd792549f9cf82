"""Options of the command line: those that several commands share, and how settings become options.

The options of settings are made from `edgeq.recipe.settings`. Nothing here loads NumPy or a
framework: --help must answer at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgeq.errors import BadInput
from edgeq.recipe.setting_rules import Rule
from edgeq.recipe.settings import DEFAULT_QUALITY, PRESETS, TABLE, Setting
from edgeq.recipe.type_names import check_type_alone

Command = Callable[..., None]


def user_path(text: str) -> Path:
    """Read a path as shells do, with ~ for the home directory, also in --output=~/x.

    Raises: BadInput for an empty one, which would be the current directory.
    """
    if not text:
        raise BadInput("a path is empty; name a directory or file, or leave the option out")
    return Path(os.path.expanduser(text))


def user_text(value: str) -> str:
    """Read a path that may have a share behind it; a `Path` would lose ./ in front (./self).

    Raises: BadInput for an empty one.
    """
    if not value:
        raise BadInput("the name of a text is empty; name a file, or leave the option out")
    return os.path.expanduser(value)


PATH = click.types.FuncParamType(user_path)
PATH.name = "path"
TEXT = click.types.FuncParamType(user_text)
TYPES: Mapping[type, "click.ParamType[Any]"] = {
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
}
"""How click reads the value of a setting without words, by the kind of its rule."""

JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)
FORCE_OPTION = click.option(
    "--force", is_flag=True, help="Replace an output that edgeq wrote before."
)
RESUME_OPTION = click.option(
    "--resume",
    is_flag=True,
    help="Continue a run that was stopped, on any backend; needs the same model and settings.",
)
REVISION_OPTION = click.option(
    "--revision",
    metavar="NAME",
    help="Take this branch, tag or commit of a model on the hub; the same as owner/name@NAME.",
)
CALIBRATION_OPTION = click.option(
    "--calibration",
    type=TEXT,
    multiple=True,
    metavar="TEXT[=SHARE]",
    help='Calibrate on UTF-8 text, or JSON lines or an array with "text" or chat "messages"; '
    "default, the text that ships with edgeq; self, text that the model writes first. May be "
    "repeated, mixed by share.  [default: default]",
)
MAX_RAM_OPTION = click.option(
    "--max-ram",
    metavar="SIZE",
    help="Stay within this much memory, such as 8GB: slower where it must be.",
)
BACKEND_OPTION = click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="Compute with auto, cuda, cpu, mps, mlx or reference.",
)


def setting_options(command: Command) -> Command:
    """Add an option for every setting that has one, after --quality and before --keep-dense."""
    dense = click.option(
        "--keep-dense",
        multiple=True,
        metavar="PATTERN",
        help="Leave layers that match as they are, such as '*.down_proj'.",
    )
    described = "; ".join(f"{name} ({words})" for name, words in PRESETS.items())
    quality = click.option(
        "--quality",
        metavar="|".join(PRESETS),
        help=f"Choose a preset: {described}.  [default: {DEFAULT_QUALITY}]",
    )
    rows = [row for row in TABLE.values() if row.option is not None]
    decorators: list[Callable[[Command], Command]] = [quality, *map(setting_option, rows), dense]
    # click shows the one applied last first
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def setting_option(row: Setting) -> Callable[[Command], Command]:
    """Make the option of one setting; None means that it was not given."""
    assert row.option is not None, f"setting {row.name} is none of the command line"
    text = f"{row.help}  [default: {shown_default(row)}]"
    if row.switch:
        return click.option(row.switch, row.name, default=None, help=text)
    return click.option(
        row.flag,
        row.name,
        type=option_type(row.rule),
        metavar=row.option.metavar or metavar_of(row.rule),
        help=text,
    )


def option_type(rule: Rule[Any]) -> "click.ParamType[Any]":
    """Choose how click reads a value; where words are allowed, the setting's rule judges them."""
    if not rule.words:
        return TYPES[rule.kind]

    def read(text: str) -> Any:
        try:
            return rule.kind(text)
        except ValueError:
            return text

    return click.types.FuncParamType(read)


def metavar_of(rule: Rule[Any]) -> str | None:
    """Write the words of a rule as --help shows them in place of a value; None without words."""
    if not rule.words:
        return None
    numbers = () if rule.kind is str else ("number",)
    return "|".join((*numbers, *rule.words))


def shown_default(row: Setting) -> str:
    """Write the default of an option, and those of presets where they are others."""
    stated = row.defaults[DEFAULT_QUALITY]
    others = [
        f"{preset}: {option_word(row, row.defaults[preset])}"
        for preset in PRESETS
        if row.defaults[preset] != stated
    ]
    return "; ".join([option_word(row, stated), *others])


def option_word(row: Setting, value: Any) -> str:
    """Write a value as the command line takes it."""
    if row.option is not None and row.switch:
        flags = row.switch.split("/")
        return flags[row.option.values.index(value)].removeprefix("--")
    return f"{value:g}" if isinstance(value, float) else str(value)


def with_flag(words: Sequence[str], flag: str) -> list[str]:
    """Add a flag to a command line, where it may not stand behind a bare `--`."""
    end = words.index("--") if "--" in words else len(words)
    return list(words) if flag in words[:end] else [*words[:end], flag, *words[end:]]


def collect_settings(recipe: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Gather settings: those of a recipe file, then the options that were given, which win.

    Raises: BadInput naming the option whose value breaks its rule.
    """
    from edgeq.recipe.recipe import settings_over  # noqa: PLC0415

    given = {name: value for name, value in options.items() if value is not None}
    dense = given.pop("keep_dense", ())
    chosen = {name: setting_value(name, value) for name, value in given.items()}
    check_type_alone(chosen, options=True)
    return settings_over(None if recipe is None else str(recipe), chosen, keep_dense=dense)


def setting_value(name: str, value: Any) -> Any:
    """Return what an option sets.

    Raises: BadInput by the name of the option.
    """
    if name == "quality":
        return value
    row = TABLE[name]
    if row.option is not None and row.switch:
        on, off = row.option.values
        return on if value else off
    row.rule.check(row.flag, value)
    return row.rule.normal(value)
