"""Settings of a run whose scales are searched by the weights of an importance matrix.

It rounds to the nearest code on these scales, and no text is calibrated on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from edgeq.errors import BadInput
from edgeq.recipe.recipe import Recipe, make_recipe, toml
from edgeq.recipe.settings import TABLE

ROUNDING: Mapping[str, Any] = {"solver": "rtn", "scales": "first", "propagation_strength": 0.0}
"""What such a run is, where settings leave it open."""
NONE_OF: Mapping[str, Any] = {
    "sweeps": 0,
    "alternations": 0,
    "anneal_rounds": 0,
    "outlier_columns": 0,
    "tune": False,
    "token_weights": "none",
}
"""What else looks at activations or text, by the value at which it does not."""


def weighed_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Make the recipe of a run by an importance matrix: rounding, with scales searched by it.

    Raises: BadInput for a setting that looks at activations, in overrides too, and for all that
    `make_recipe` refuses.
    """
    if "quality" in settings:
        make_recipe({"quality": settings["quality"]})  # which refuses what is none
        raise refused("quality", settings["quality"], "leave the preset out")
    for name, value in stated(settings):
        if name in TABLE:
            TABLE[name].rule.check(f"recipe setting {name} =", value)
        wanted = {**ROUNDING, **NONE_OF}.get(name, value)
        if value != wanted:
            raise refused(name, value, f"leave it out or set {toml(wanted)}")
    return replace(make_recipe({**ROUNDING, **settings}), weighed=True)


def stated(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """List the settings that are stated, then those of overrides."""
    yield from settings.items()
    overrides = settings.get("overrides")
    if isinstance(overrides, list | tuple):
        for item in overrides:
            yield from item.items() if isinstance(item, Mapping) else ()


def refused(name: str, value: Any, advice: str) -> BadInput:
    """Make the error for a setting that has no place beside an importance matrix."""
    return BadInput(
        f"--imatrix with {name} = {toml(value)}: an importance matrix weighs the search for scales "
        f"of plain rounding, where no text is calibrated on; {advice}, or leave out --imatrix"
    )
