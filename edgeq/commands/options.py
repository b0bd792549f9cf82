"""Options of the command line: those that several commands share, and how settings become options.

The options of settings are made from `edgeq.recipe.settings`. Nothing here loads NumPy or a
framework: --help must answer at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgeq.commands.choices import BACKEND, TYPE_NAMES, SettingValue, Word
from edgeq.commands.groups import grouped_option
from edgeq.errors import BadInput
from edgeq.recipe.setting_rows import DEFAULT_QUALITY, PRESETS, Setting
from edgeq.recipe.setting_rules import Rule
from edgeq.recipe.settings import TABLE
from edgeq.recipe.type_names import check_type_alone
from edgeq.registry import BACKENDS

Command = Callable[..., None]


def user_text(value: str) -> str:
    """Read a path that may have a share behind it; a `Path` would lose ./ in front (./self).

    Raises: BadInput for an empty one.
    """
    if not value:
        raise BadInput("the name of a text is empty; name a file, or leave the option out")
    return os.path.expanduser(value)


TEXT = click.types.FuncParamType(user_text)

# without groups, for commands of few options
JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)
FORCE_OPTION = click.option(
    "--force", is_flag=True, help="Replace an output that edgeq wrote before."
)
BACKEND_OPTION = click.option(
    "--backend",
    type=BACKEND,
    default="auto",
    show_default=True,
    metavar="NAME",
    help=f"Compute with one of auto, {', '.join(BACKENDS)}.",
)
RESUME_OPTION = grouped_option(
    "--resume",
    is_flag=True,
    group="everyday",
    help="Continue a run that was stopped, on any backend; needs the same model and settings.",
)
REVISION_OPTION = grouped_option(
    "--revision",
    metavar="NAME",
    group="expert",
    help="Take this branch, tag or commit of a model on the hub; the same as owner/name@NAME.",
)
CALIBRATION_OPTION = grouped_option(
    "--calibration",
    type=TEXT,
    multiple=True,
    metavar="TEXT[=SHARE]",
    group="text",
    help='Calibrate on UTF-8 text, or JSON lines or an array with "text" or chat "messages"; '
    "mix, ten kinds that ship with edgeq, each also by its name "
    "(speeches, prose, encyclopedia, dialogue, code, german, french, spanish, russian, chinese); "
    "default, those of them that the model can use; "
    "self, text that the model writes first. May be repeated, mixed by share.  "
    "[default: default]",
)
MAX_RAM_OPTION = grouped_option(
    "--max-ram",
    metavar="SIZE",
    group="everyday",
    help="Stay within this much memory, such as 8GB: slower where it must be.",
)
MAX_VRAM_OPTION = grouped_option(
    "--max-vram",
    metavar="SIZE",
    group="everyday",
    help="The same of the memory of a GPU that has its own.  [default: what is free there]",
)


def in_group(option: Callable[[Command], Command], group: str) -> Callable[[Command], Command]:
    """Put an option that several commands share into a group of one of them."""

    def add(command: Command) -> Command:
        added = option(command)
        added.__click_params__[-1].group = group  # type: ignore[attr-defined]
        return added

    return add


def setting_options(command: Command) -> Command:
    """Add an option for every setting that has one, after --quality and before --keep-dense."""
    dense = grouped_option(
        "--keep-dense",
        multiple=True,
        metavar="PATTERN",
        group="quality",
        help="Leave layers that match as they are, such as '*.down_proj'.",
    )
    quality = grouped_option(
        "--quality",
        type=Word(lambda: tuple(PRESETS)),
        metavar="PRESET",
        group="everyday",
        help="Take this preset: fast, balanced or best, about 1, 1.7 and 4 times the time of plain "
        f"GPTQ.  [default: {DEFAULT_QUALITY}]",
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
    listed = f"  [{', '.join(TYPE_NAMES)}]" if row.name == "type" else ""
    text = f"{row.help}{listed}{shown_default(row)}"
    group = row.option.group
    if row.switch:
        return grouped_option(row.switch, row.name, default=None, help=text, group=group)
    words = (*TYPE_NAMES, *row.rule.words) if row.name.endswith("type") else ()
    return grouped_option(
        row.flag,
        row.name,
        type=SettingValue(row.rule, words),
        metavar=row.option.metavar or metavar_of(row.rule),
        help=text,
        group=group,
    )


def metavar_of(rule: Rule[Any]) -> str:
    """Write what --help shows in place of a value: the words of a rule, a number."""
    number = "N" if rule.kind is int else "NUMBER"
    if not rule.words:
        return number
    numbers = () if rule.kind is str else (number,)
    return "|".join((*numbers, *rule.words))


def shown_default(row: Setting) -> str:
    """Write the default of an option, or that of each preset; nothing where there is none.

    Presets with the same value stand together: "[fast: 0; balanced, best: 0.5]".
    """
    presets: dict[str, list[str]] = {}
    for preset in PRESETS:
        if row.defaults[preset] is not None:
            presets.setdefault(option_word(row, row.defaults[preset]), []).append(preset)
    if not presets:
        return ""
    if len(presets) == 1:
        return f"  [default: {next(iter(presets))}]"
    stated = "; ".join(f"{', '.join(names)}: {value}" for value, names in presets.items())
    return f"  [{stated}]"


def option_word(row: Setting, value: Any) -> str:
    """Write a value as the command line takes it."""
    if row.option is not None and row.switch and value in row.option.values:
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
