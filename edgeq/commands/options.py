"""Options of the command line and what they mean as settings. Imports nothing heavy: --help must
answer at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click


def user_path(text: str) -> Path:
    """A path as shells understand it, with ~ for the home directory, also where no shell replaced
    it (--output=~/x).
    """
    return Path(os.path.expanduser(text))


def number_or_word(text: str) -> float | str:
    """A number where the text is one; whether a word is allowed is for the setting's rule."""
    try:
        return float(text)
    except ValueError:
        return text


STRENGTH = click.types.FuncParamType(number_or_word)
STRENGTH.name = "number|auto"


def user_text(value: str) -> str:
    """The same for a path with something behind it; as a `Path` it would lose what stands in front
    (./self).
    """
    return os.path.expanduser(value)


PATH = click.types.FuncParamType(user_path)
PATH.name = "path"
TEXT = click.types.FuncParamType(user_text)
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
BACKEND_OPTION = click.option(
    "--backend", default="auto", show_default=True, help="auto, cuda, cpu, mps, mlx or reference."
)


def format_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what only some formats know; `edgeq.registry.FORMAT_OPTIONS` says which."""
    level = click.option(
        "--accuracy-level",
        type=click.IntRange(0, 4),
        help="onnx: how ONNX Runtime rounds activations, 4 "
        "to 8 bits (fast), 0 not at all.  [default: 4]",
    )
    standard = click.option(
        "--qdq",
        is_flag=True,
        default=None,
        help="onnx: standard DequantizeLinear nodes instead of ONNX Runtime's own.",
    )
    return level(standard(command))


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options with the values they were given, as words of a command line."""
    words = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def with_flag(words: Sequence[str], flag: str) -> list[str]:
    """A command line with a flag, which may not stand behind a bare `--`."""
    end = words.index("--") if "--" in words else len(words)
    return list(words) if flag in words[:end] else [*words[:end], flag, *words[end:]]


def collect_settings(recipe: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Preset, recipe file, then the options that were given, in the names of `edgeq.recipe.recipe`.

    Raises: BadInput naming the option whose value breaks its rule.
    """
    from edgeq.recipe.recipe import read_recipe, with_preset  # noqa: PLC0415
    from edgeq.recipe.setting_rules import DENSE_BITS, check_setting  # noqa: PLC0415

    settings = read_recipe(str(recipe)) if recipe is not None else {}
    given = {name: value for name, value in options.items() if value is not None}
    symmetric, keep_dense = given.pop("symmetric", None), given.pop("keep_dense", ())
    if given.get("group_size", "row") != "row":
        given["group_size"] = whole_number(given["group_size"], "--group-size")
    for name, value in given.items():
        if name != "quality":
            check_setting(name, value, called=f"--{name.replace('_', '-')}")
    if symmetric is not None:
        given["zeros"] = "symmetric" if symmetric else "asymmetric"
    dense = [{"layers": pattern, "bits": DENSE_BITS} for pattern in keep_dense]
    stated = settings.get("overrides", [])
    if dense and isinstance(stated, list):  # else whoever reads them refuses them
        given["overrides"] = [*stated, *dense]
    return with_preset(settings | given)


def whole_number(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.UsageError(f"{option} {text!r}: expected a whole number or 'row'") from None
