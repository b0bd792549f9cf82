"""Signatures and help of functions whose keyword arguments come from tables.

Editors read these arguments from the types, which are written out; `help()` and
`inspect.signature` have them from here.
"""

import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, get_type_hints

from edgeq.api.arguments import in_python_words
from edgeq.api.request import ARGUMENTS, Argument
from edgeq.recipe.setting_rows import DEFAULT_QUALITY, PRESETS
from edgeq.recipe.settings import TABLE
from edgeq.registry import all_formats

Function = TypeVar("Function", bound=Callable[..., Any])
MARK = "        KEYWORDS\n"
"""The line of a docstring that the list of keyword arguments takes the place of."""


def documented(
    keywords: type, names: Collection[str] = (), table: Mapping[str, Argument] = ARGUMENTS
) -> Callable[[Function], Function]:
    """Write the keyword arguments of a function into its signature and help.

    keywords is the `TypedDict` that types them, names are those of the function's own that the
    list in its help describes too. table describes those that are no settings.
    """

    def write(function: Function) -> Function:
        hints = get_type_hints(keywords)
        ordered = [name for name in table if name in hints]
        ordered += [name for name in hints if name not in table]
        described = {name: table.get(name) or describe(name) for name in (*ordered, *names)}
        own = inspect.signature(function)
        fixed = [
            parameter
            for parameter in own.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        kind = inspect.Parameter.KEYWORD_ONLY
        added = [
            inspect.Parameter(name, kind, default=described[name].default, annotation=hints[name])
            for name in ordered
        ]
        function.__signature__ = own.replace(parameters=[*fixed, *added])  # type: ignore[attr-defined]
        lines = [line_of(name, item) for name, item in described.items()]
        function.__doc__ = (function.__doc__ or "").replace(MARK, "\n".join(lines) + "\n")
        return function

    return write


def line_of(name: str, item: Argument) -> str:
    """Write what an argument does as a docstring has it, in lines of the width of this file."""
    return textwrap.fill(
        f"{name}: {in_python_words(item.help)}",
        width=96,
        initial_indent=" " * 8,
        subsequent_indent=" " * 12,
    )


def describe(name: str) -> Argument:
    """Say what a keyword argument does: one of a run, a setting, or what formats take."""
    if name in ARGUMENTS:
        return ARGUMENTS[name]
    if name == "quality":
        presets = "; ".join(f"{preset} ({words})" for preset, words in PRESETS.items())
        return Argument(DEFAULT_QUALITY, f"Choose a preset: {presets}.")
    if name == "overrides":
        return Argument((), "Other settings for layers by pattern, as a list of dicts.")
    if name in TABLE:
        row = TABLE[name]
        stated = {preset: row.defaults[preset] for preset in PRESETS}
        others = [
            f"{preset}: {value!r}"
            for preset, value in stated.items()
            if value != stated[DEFAULT_QUALITY]
        ]
        also = f" ({'; '.join(others)})" if others else ""
        return Argument(stated[DEFAULT_QUALITY], f"{row.help}{also}")
    options = [(each.name, option) for each in all_formats() for option in each.options]
    having = [(taker, option) for taker, option in options if option.name == name]
    return Argument(None, f"{', '.join(taker for taker, _ in having)}: {having[0][1].help}")
