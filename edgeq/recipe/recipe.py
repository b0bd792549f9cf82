"""What a run does: a recipe, read from plain settings and written back into them.

`edgeq.recipe.settings` says what each setting may be; here is what several of them mean together,
and which of them differ by layer.
"""

import difflib
import fnmatch
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeq.errors import BadInput, lower_first, reason_of
from edgeq.files.plain_files import read_file
from edgeq.grids.types import GRIDS
from edgeq.recipe.setting_rules import AUTOMATIC, DENSE_BITS
from edgeq.recipe.settings import TABLE, Settings, column_of, defaults
from edgeq.recipe.type_names import (
    BASES,
    REPLACED,
    check_options_beside,
    check_type_alone,
    check_types_are_asked,
    without_replaced,
)
from edgeq.types import Grid

OPTIONS_ONLY = {
    "calibration": "it is an option only: --calibration",
    "imatrix": "it is an option only: --imatrix",
    "backend": "it is an option only: --backend",
    "export": "it is an option only: --export",
    "keep_dense": "write an override with bits = 16, or give --keep-dense",
}
WIDEST_ROUNDED = 4  # bits of codes whose drift may be rounded
QUANTEASE_SWEEPS = 5  # of the solver of that name where the recipe asks for no number


@dataclass(frozen=True, slots=True)
class Override:
    """Other settings for the layers whose name matches a shell-style pattern.

    It has only settings that the table allows overrides for; bits 16 keeps the layers dense.
    """

    layers: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe(Settings):
    """Every choice of a run; `Recipe()` is the preset balanced.

    weighed says that an importance matrix weighs the search for scales, so that nothing looks at
    activations; no setting does.
    """

    overrides: tuple[Override, ...] = ()
    weighed: bool = False

    def type_of(self, layer: str) -> str | None:
        """Return the type or mix that is asked for a linear layer; None where bits say its grid."""
        for item in reversed(self.overrides):
            if fnmatch.fnmatchcase(layer, item.layers):
                if "type" in item.settings:
                    return str(item.settings["type"])
                if "bits" in item.settings:
                    return None
        return self.type

    def grid_of(self, layer: str) -> Grid | None:
        """Return the grid of a linear layer, whatever its width; None when it is kept dense.

        Of a mix it is that of most layers.
        """
        asked = self.type_of(layer)
        if asked is not None:
            return GRIDS[BASES.get(asked, asked)]
        bits = self._setting_of("bits", layer)
        group_size = self._setting_of("group_size", layer)
        if bits == DENSE_BITS:
            return None
        return Grid(
            bits,
            None if group_size == "row" else group_size,
            self._setting_of("zeros", layer),
            self.scale_dtype,
            float(self._setting_of("outlier_columns", layer)),
        )

    def has_columns(self, layer: str) -> bool:
        """Say whether a linear layer is to have outlier columns."""
        return bool(self._setting_of("outlier_columns", layer))

    def strength_of(self, layer: str) -> float | Literal["auto"]:
        """Return the propagation strength of a linear layer."""
        strength: float | Literal["auto"] = self._setting_of("propagation_strength", layer)
        return strength

    def _setting_of(self, name: str, layer: str) -> Any:
        """Return a setting as it is for one layer; the last matching override wins."""
        for item in reversed(self.overrides):
            if name in item.settings and fnmatch.fnmatchcase(layer, item.layers):
                return item.settings[name]
        return getattr(self, name)

    def _everywhere(self, name: str) -> list[Any]:
        """Return what a setting is for some layers: as stated, then as overrides have it."""
        stated = [item.settings[name] for item in self.overrides if name in item.settings]
        return [getattr(self, name), *stated]

    @property
    def names_types(self) -> bool:
        """Say whether any layer, or the embedding, is to lie on a type of llama.cpp's."""
        return self._everywhere("type") != [None] or isinstance(self.embedding_type, str)

    @property
    def propagates(self) -> bool:
        """Say whether any layer makes up for inherited error."""
        return any(strength != 0 for strength in self._everywhere("propagation_strength"))

    @property
    def chooses_propagation(self) -> bool:
        """Say whether any layer's strength is chosen on tokens kept out of the fit."""
        return AUTOMATIC in self._everywhere("propagation_strength")

    @property
    def states_propagation(self) -> bool:
        """Say whether any layer makes up for inherited error by a strength that is stated."""
        strengths = self._everywhere("propagation_strength")
        return any(strength not in (0, AUTOMATIC) for strength in strengths)

    @property
    def chooses_by_layer(self) -> bool:
        """Say whether rows of a layer share a choice, so that it cannot be solved in parts."""
        return self.chooses_propagation or self.keeps_columns

    @property
    def keeps_columns(self) -> bool:
        """Say whether any layer has outlier columns."""
        return any(self._everywhere("outlier_columns"))

    @property
    def sweep_count(self) -> int:
        """Return the number of sweeps after the solver: as stated, else as its name asks for."""
        return self.sweeps or (QUANTEASE_SWEEPS if self.solver == "quantease" else 0)

    @property
    def embedding_grid(self) -> Grid | None:
        """Return the grid of embedding and head: symmetric, groups of 32; None when dense.

        It is for recipes whose embedding_type is unset.
        """
        if self.embedding_bits == DENSE_BITS:
            return None
        return Grid(self.embedding_bits, 32, "symmetric", self.scale_dtype)

    @property
    def needs_calibration(self) -> bool:
        """Say whether any step looks at activations; plain rounding does not."""
        if self.weighed:
            return False
        refines = self.sweeps + self.alternations + self.anneal_rounds > 0
        return self.solver != "rtn" or self.scales != "none" or self.propagates or refines

    @property
    def needs_drift(self) -> bool:
        """Say whether the full-precision stream has to run beside the quantized one."""
        return self.propagates or (self.scales == "both" and bool(self.refit_strength))

    @property
    def needs_exact_passes(self) -> bool:
        """Say whether forward passes have to be in float32 whatever is faster.

        Wider codes leave little of the difference of two streams: at 8 bits it costs a fifth of the
        KL divergence to round it to bfloat16, at 4 bits one per cent (`benchmarks.precision`).
        """
        bits = [bits for bits in self._everywhere("bits") if bits != DENSE_BITS]
        # the first digit of llama.cpp's name of a type is its bits
        named = [int(next(filter(str.isdigit, name))) for name in self._everywhere("type") if name]
        is_wide = max([*bits, *named], default=0) > WIDEST_ROUNDED
        return self.exact or (self.needs_drift and is_wide)


def read_recipe(path: str) -> dict[str, Any]:
    """Read settings from a TOML file.

    Raises: BadInput for a missing or malformed file.
    """
    file = Path(path)
    try:
        return tomllib.loads(read_file(file).decode("utf-8"))
    except OSError as error:
        found = lower_first(reason_of(error))
        raise BadInput(f"recipe {path!r}: {found}; give the path of a TOML file") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"recipe {path!r}: not valid TOML ({reason_of(error)}); see docs/reference/settings.md"
        ) from error


def settings_over(
    recipe: str | None, chosen: Mapping[str, Any], *, keep_dense: Sequence[str] = ()
) -> dict[str, Any]:
    """Put settings over those of a recipe file, and keep the layers that match patterns dense.

    What the file says of grids gives way to settings that say it in the other way: bits to a type,
    a type to bits.

    Raises: BadInput.
    """
    stated = read_recipe(recipe) if recipe is not None else {}
    check_options_beside(stated, chosen)
    settings = without_replaced(stated, chosen) | dict(chosen)
    dense = [{"layers": pattern, "bits": DENSE_BITS} for pattern in keep_dense]
    overrides = settings.get("overrides", [])
    # what is no list is refused by whoever makes a recipe of it
    if dense and isinstance(overrides, list | tuple):
        settings["overrides"] = [*overrides, *dense]
    return settings


def make_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Make a validated recipe from plain settings, on top of the preset that "quality" names.

    Plain rounding takes nothing from a preset.

    Raises: BadInput with the setting and its rule.
    """
    column = column_of(settings)
    given = {name: value for name, value in settings.items() if name != "quality"}
    overrides = given.pop("overrides", [])
    are_tables = isinstance(overrides, list | tuple) and all(
        isinstance(item, Mapping) for item in overrides
    )
    if not are_tables:
        raise BadInput(
            "recipe setting 'overrides': expected [[overrides]] tables, "
            "each with 'layers' and settings"
        )
    _check_names("recipe setting", given, TABLE, listed=("quality", *TABLE, "overrides"))
    values = _normal({**defaults(column), **given})
    made = tuple(_make_override(item) for item in overrides)
    for name, row in TABLE.items():
        row.rule.check(f"recipe setting {name} =", values[name])
    check_type_alone(_normal(given))
    asked = [values["type"], *(item.settings.get("type") for item in made)]
    check_types_are_asked(_normal(given), asked)
    recipe = Recipe(**{**values, "embedding_type": _embedding_type(values, given)}, overrides=made)
    for chosen in (recipe, *(_as_for(recipe, item) for item in recipe.overrides)):
        _check_conflicts(chosen)
    return recipe


def _normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write values in the spelling that recipes hold."""
    return {name: TABLE[name].rule.normal(value) for name, value in settings.items()}


def _embedding_type(values: Mapping[str, Any], given: Mapping[str, Any]) -> str | int | None:
    """Settle what "auto" and an unset type of the embedding mean: None leaves it to its bits."""
    chosen: str | int | None = values["embedding_type"]
    if chosen not in (None, AUTOMATIC):
        return chosen
    left_to_type = values["type"] is not None and "embedding_bits" not in given
    return AUTOMATIC if left_to_type else None


def _as_for(recipe: Recipe, override: Override) -> Recipe:
    """Give the recipe as it is for the layers of an override.

    Raises: BadInput where it changes groups or zeros of a type.
    """
    settings = dict(override.settings)
    changed = [name for name in REPLACED if name in settings]
    if "bits" in settings:
        settings["type"] = None
    elif changed and recipe.type is not None:
        raise BadInput(
            f"override for {override.layers!r} sets {changed[0]}, but type = {recipe.type} says "
            f"bits, groups and zeros itself; set bits too, or leave out {changed[0]}"
        )
    return replace(recipe, **settings)


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that make a recipe again, for reports and the quantized checkpoint."""
    settings = {name: getattr(recipe, name) for name in TABLE}
    settings["overrides"] = [{"layers": item.layers, **item.settings} for item in recipe.overrides]
    replaced = {*REPLACED} if recipe.type is not None else set()
    replaced |= {"embedding_bits"} if recipe.embedding_type is not None else set()
    return {
        name: value
        for name, value in settings.items()
        if value is not None and name not in replaced
    }


def _make_override(settings: Mapping[str, Any]) -> Override:
    allowed = [name for name, row in TABLE.items() if row.override]
    known = ("layers", *allowed)
    _check_names("override setting", settings, known, listed=known)
    if not isinstance(settings.get("layers"), str):
        raise BadInput(
            "override without 'layers'; name the layers it is for, such as layers = \"*.down_proj\""
        )
    chosen = _normal({name: settings[name] for name in allowed if name in settings})
    for name, value in chosen.items():
        TABLE[name].rule.check(f"override setting {name} =", value)
    if chosen.get("type") in BASES:
        raise BadInput(
            f"override setting type = {chosen['type']!r}: a mix chooses types for a whole model; "
            f"give a type, such as {BASES[chosen['type']]}"
        )
    if "type" in chosen and chosen["type"] is None:
        raise BadInput("override setting type = None: expected a type of llama.cpp's, such as Q4_K")
    check_type_alone(chosen)
    return Override(settings["layers"], chosen)


def _check_conflicts(chosen: Recipe) -> None:
    """Raise BadInput where two settings exclude each other."""
    for name, row in TABLE.items():
        reason = row.conflict(chosen) if row.conflict is not None else None
        if reason is not None:
            raise BadInput(f"recipe setting {name} = {toml(getattr(chosen, name))}: {reason}")


def toml(value: Any) -> str:
    """Write a value as recipe files do, whole floats without their zeros."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return f"{value:g}"
    return "unset" if value is None else str(value)


def _check_names(
    what: str, settings: Iterable[str], known: Iterable[str], *, listed: Sequence[str]
) -> None:
    """Raise BadInput for a name that is not known; `listed` is what may stand in the same place."""
    allowed = list(known)
    for name in settings:
        if name not in allowed:
            nearest = difflib.get_close_matches(name, listed, n=1, cutoff=0.0)[0]
            advice = OPTIONS_ONLY.get(name, f"did you mean {nearest!r}? Known: {', '.join(listed)}")
            raise BadInput(f"{what} {name!r} is not known; {advice}")
