"""Write a recipe as a TOML file that people read, change, and give to --recipe again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.recipe.recipe import Recipe, recipe_settings

BEGINNING = "# Types chosen for "
WIDEST = 72  # characters of what stands in front of a comment, where that lines up


def plain_recipe(recipe: Recipe) -> str:
    """Write the recipe of a run without a budget. Read again, it makes the same recipe."""
    settings = recipe_settings(recipe)
    overrides = settings.pop("overrides")
    lines = [
        "# The settings of this run. Change what you like, and give a copy to edgeq quantize",
        "# --recipe. Model, calibration text and formats are options of the command.",
        "",
        *(f"{name} = {toml_value(value)}" for name, value in settings.items()),
    ]
    for override in overrides:  # tables, behind which another can be written
        pairs = (f"{name} = {toml_value(value)}" for name, value in override.items())
        lines += ["", "[[overrides]]", *pairs]
    return "\n".join([*lines, ""])


def budget_recipe(recipe: Recipe, allocation: Mapping[str, Any]) -> str:
    """Write the recipe that a budget led to, with what each choice takes and costs.

    Read again, it makes the same recipe.
    """
    spent = {**allocation["spent"]}
    asked = " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in allocation["asked"].items()
    )
    lines = [
        f"{BEGINNING}{asked}: {allocation['bytes']} bytes of {allocation['format']},",
        f"# predicted KL divergence from the original {allocation['predicted_kl']:.3g}.",
        "# Behind each choice: its bytes, and the part of the KL divergence that it is predicted",
        "# to cause. Change what you like and give the file to edgeq quantize --recipe.",
        "",
    ]
    settings = recipe_settings(recipe)
    overrides = settings.pop("overrides")
    for name, value in settings.items():
        comment = outer_comment(name, allocation)
        lines.append(f"{name} = {toml_value(value)}{comment}")
    lines += ["", "overrides = [", *override_lines(overrides, spent), "]", ""]
    return "\n".join(lines)


def is_budget_recipe(path: Path) -> bool:
    """Say whether a file is a recipe that a budget led to, which --force may replace."""
    return path.is_file() and path.read_bytes().startswith(BEGINNING.encode())


def outer_comment(name: str, allocation: Mapping[str, Any]) -> str:
    """Say what the type of embedding and head takes and costs, behind the setting of it."""
    if name not in allocation["outer"]:
        return ""
    size, cost = next(
        of_item for item, of_item in allocation["spent"].items() if item == "embedding and head"
    )
    return f"  # {size} bytes, {cost:.2g}"


def override_lines(
    overrides: Sequence[Mapping[str, Any]], spent: Mapping[str, Sequence[float]]
) -> Iterator[str]:
    """Write each override on a line of its own, as a table of TOML."""
    for override in overrides:
        pairs = ", ".join(f"{name} = {toml_value(value)}" for name, value in override.items())
        line = f"    {{ {pairs} }},"
        if override["layers"] in spent:
            size, cost = spent[override["layers"]]
            line = f"{line:{WIDEST}}  # {size} bytes, {cost:.2g}"
        yield line


def toml_value(value: Any) -> str:
    """Write a value so that TOML reads the same one: numbers in full, texts with escapes.

    JSON writes all of these as TOML does.
    """
    return json.dumps(value, ensure_ascii=False)
