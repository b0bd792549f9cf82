"""The settings of a run as keyword arguments: their types for editors, and how they are read.

`edgeq.recipe.settings` has the table that says what each is; tests hold the types here against it.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from edgeq.api.arguments import check_names, plain, short, texts_of
from edgeq.errors import BadInput
from edgeq.format_parts import FormatOption
from edgeq.recipe.recipe import settings_over
from edgeq.recipe.setting_rows import PRESETS, Setting
from edgeq.recipe.settings import TABLE
from edgeq.recipe.type_names import check_type_alone
from edgeq.registry import all_formats

Quality = Literal["fast", "balanced", "best"]
Zeros = Literal["symmetric", "asymmetric", "integer", "offset"]
ScaleDtype = Literal["float16", "bfloat16", "float32"]


class LayerSettings(TypedDict, total=False):
    """How one linear layer is solved; what is left out is as the preset `quality` has it.

    docs/reference/settings.md says what each of them does.
    """

    quality: Quality
    bits: int
    group_size: int | Literal["row"]
    zeros: Zeros
    scale_dtype: ScaleDtype
    type: str | None
    solver: Literal["rtn", "gptq", "quantease"]
    damping: float
    activation_order: bool
    propagation_strength: float | Literal["auto"]
    propagation_damping: float
    scales: Literal["none", "first", "both"]
    refit_strength: float | None
    refit_exactly: bool
    scale_weighting: Literal["diagonal", "conditional", "mean"]
    scale_candidates: int
    scale_refits: int
    sweeps: int
    relaxed_sweeps: bool
    alternations: int
    outlier_columns: float
    anneal_rounds: int
    anneal_steps: int
    seed: int
    exact: bool


class FormatOptions(TypedDict, total=False):
    """What formats take; `edgeq.formats()` says which takes what."""

    accuracy_level: int | None
    qdq: bool | None


class RunSettings(LayerSettings, FormatOptions, total=False):
    """How a model is quantized, and what the exports of the run take.

    overrides are other settings for layers by pattern, as [{"layers": "*.down_proj", "bits": 8}].
    """

    narrow_type: str
    propagation_share: float
    embedding_bits: int
    embedding_type: str | int | None
    tune: bool | Literal["auto"]
    tune_tokens: int
    tune_passes: int
    tune_rate: float
    tune_codes: bool
    samples: int
    sequence_length: int
    token_weights: Literal["none", "gradient", "squares"]
    overrides: Sequence[Mapping[str, Any]]


def option_table() -> dict[str, FormatOption]:
    """List what all formats take, by name."""
    return {option.name: option for each in all_formats() for option in each.options}


def split_settings(
    function: str, given: Mapping[str, Any], parameters: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part keyword arguments into settings and options of formats, both with values that may be.

    parameters are the function's other arguments, for the message about a name that is none.

    Raises: TypeError for an unknown name, BadInput for a value.
    """
    options = option_table()
    known = {"quality", *TABLE, "overrides"}
    check_names(function, given, {*known, *options, *parameters})
    settings = {name: value for name, value in given.items() if name in known}
    of_formats = {name: value for name, value in given.items() if name not in known}
    return checked_settings(settings), checked_options(of_formats)


def checked_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the value of each setting, and write it as recipes have it.

    Raises: BadInput.
    """
    found = {name: checked(name, value) for name, value in given.items()}
    check_type_alone(found)
    return found


def checked(name: str, value: Any) -> Any:
    """Check the value of one setting, and write it as recipes have it.

    Raises: BadInput.
    """
    if name == "quality":
        if not isinstance(value, str) or value not in PRESETS:
            raise BadInput(f"quality = {short(value)}: expected one of {', '.join(PRESETS)}")
        return value
    if name == "overrides":
        is_list = isinstance(value, list | tuple)
        if not is_list or not all(isinstance(item, Mapping) for item in value):
            raise BadInput(
                f"overrides = {short(value)}: expected a list of dicts, "
                "each with 'layers' and settings"
            )
        return list(value)
    row, value = TABLE[name], plain(value)
    if isinstance(value, str) and value in words_of_switch(row):
        return value
    row.rule.check(f"{name} =", value)
    return row.rule.normal(value)


def words_of_switch(row: Setting) -> tuple[Any, ...]:
    """List what an option without a value sets, which the run settles itself ("asymmetric")."""
    return () if row.option is None else row.option.values


def checked_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check what formats are given.

    Raises: TypeError for an unknown name, BadInput for a value.
    """
    options = option_table()
    for name, value in given.items():
        allowed = options[name].values
        if value is None:
            continue
        if allowed is None:
            fits, rule = isinstance(value, bool), "True or False"
        elif isinstance(allowed, range):
            fits = isinstance(value, int) and not isinstance(value, bool) and value in allowed
            rule = f"a whole number from {allowed[0]} to {allowed[-1]}"
        else:
            fits, rule = isinstance(value, str) and value in allowed, f"one of {', '.join(allowed)}"
        if not fits:
            raise BadInput(f"{name} = {short(value)}: expected {rule}")
    return dict(given)


def over_recipe(
    recipe: Path | None, settings: Mapping[str, Any], keep_dense: Any
) -> dict[str, Any]:
    """Put settings over those of a recipe file, and keep layers by pattern dense.

    Raises: BadInput.
    """
    named = None if recipe is None else str(recipe)
    return settings_over(named, settings, keep_dense=texts_of("keep_dense", keep_dense))


def settings_text(names: Collection[str]) -> str:
    """Write a line for each of these settings, for the help of a function."""
    lines = ["quality: " + "; ".join(f"{name} ({words})" for name, words in PRESETS.items()) + "."]
    for name, row in TABLE.items():
        if name in names:
            lines.append(f"{name}: {row.help}  [{row.defaults['balanced']!r}]")
    return "\n".join(f"        {line}" for line in lines)
