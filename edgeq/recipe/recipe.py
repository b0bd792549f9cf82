"""What a run does: one flat set of settings with the same names in recipe files, options and
reports.
"""

import difflib
import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from edgeq.errors import BadInput, reason_of
from edgeq.recipe.setting_rules import AUTOMATIC, DENSE_BITS, ScaleStages, check_setting
from edgeq.types import Grid, ScaleDtype, ScaleWeighting, ZeroKind

OPTIONS_ONLY = {
    "calibration": "it is an option only: --calibration",
    "backend": "it is an option only: --backend",
    "export": "it is an option only: --export",
    "keep_dense": "write an override with bits = 16, or give --keep-dense",
}
QUANTEASE_SWEEPS = 5  # of the solver of that name where the recipe asks for no number
FEWEST_RELAXED = 10  # sweeps that pay for every third one's leaving codes unrounded


COMPENSATED: Mapping[str, Any] = {
    "activation_order": True,
    "scale_weighting": "mean",
    "scale_candidates": 8,
    "scale_refits": 2,
}
PROPAGATED: Mapping[str, Any] = {**COMPENSATED, "sweeps": 3, "propagation_damping": 0.1}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {**COMPENSATED, "scales": "first", "propagation_strength": 0.0},
    "balanced": {**PROPAGATED, "propagation_share": 0.25},
    "best": {**PROPAGATED, "samples": 128},
}
"""What `--quality` stands for; everything else has the defaults of `Recipe`."""
DEFAULT_QUALITY = "balanced"


@dataclass(frozen=True, slots=True)
class Override:
    """Other settings for the layers whose name matches a shell-style pattern; bits 16 keeps them
    dense.
    """

    layers: str
    bits: int | None = None
    group_size: int | Literal["row"] | None = None
    zeros: ZeroKind | None = None
    propagation_strength: float | Literal["auto"] | None = None
    outlier_columns: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every choice of a quantization run. Those of the propagation were chosen by
    `benchmarks.quality`.
    """

    bits: int = 4
    group_size: int | Literal["row"] = 32
    zeros: ZeroKind = "symmetric"
    scale_dtype: ScaleDtype = "float16"
    solver: str = "gptq"
    damping: float = 0.01
    activation_order: bool = False
    propagation_strength: float | Literal["auto"] = 0.5
    propagation_damping: float = 0.01
    propagation_share: float = 1.0
    scales: ScaleStages = "both"
    refit_strength: float | None = None
    refit_exactly: bool = False
    scale_weighting: ScaleWeighting = "diagonal"
    scale_candidates: int = 18
    scale_refits: int = 1
    sweeps: int = 0
    relaxed_sweeps: bool = False
    alternations: int = 0
    outlier_columns: float = 0.0
    anneal_rounds: int = 0
    anneal_steps: int = 200
    embedding_bits: int = 8
    samples: int = 64
    sequence_length: int = 512
    seed: int = 0
    overrides: tuple[Override, ...] = ()

    def grid_of(self, layer: str) -> Grid | None:
        """The grid of a linear layer, None when an override keeps it dense; the last matching
        override wins.
        """
        bits, group_size = self._setting_of("bits", layer), self._setting_of("group_size", layer)
        if bits == DENSE_BITS:
            return None
        return Grid(
            bits,
            None if group_size == "row" else group_size,
            self._setting_of("zeros", layer),
            self.scale_dtype,
            float(self._setting_of("outlier_columns", layer)),
        )

    def strength_of(self, layer: str) -> float | Literal["auto"]:
        """The propagation strength of a linear layer; the last matching override wins."""
        strength: float | Literal["auto"] = self._setting_of("propagation_strength", layer)
        return strength

    def _setting_of(self, name: str, layer: str) -> Any:
        chosen = [
            getattr(item, name)
            for item in self.overrides
            if fnmatch.fnmatchcase(layer, item.layers)
        ]
        return [getattr(self, name), *(value for value in chosen if value is not None)][-1]

    @property
    def propagates(self) -> bool:
        """Whether any layer makes up for inherited error."""
        return any(strength != 0 for strength in self._strengths)

    @property
    def chooses_propagation(self) -> bool:
        """Whether any layer's strength is chosen on tokens kept out of the fit."""
        return AUTOMATIC in self._strengths

    @property
    def states_propagation(self) -> bool:
        """Whether any layer makes up for inherited error by a strength that the recipe states."""
        return any(strength not in (0, AUTOMATIC) for strength in self._strengths)

    @property
    def chooses_by_layer(self) -> bool:
        """Whether something is chosen for all rows of a layer together, which then cannot be solved
        in parts.
        """
        return self.chooses_propagation or self.keeps_columns

    @property
    def keeps_columns(self) -> bool:
        """Whether any layer has outlier columns."""
        return bool(self.outlier_columns) or any(item.outlier_columns for item in self.overrides)

    @property
    def _strengths(self) -> list[float | Literal["auto"]]:
        return [
            self.propagation_strength,
            *(item.propagation_strength or 0.0 for item in self.overrides),
        ]

    @property
    def sweep_count(self) -> int:
        """Sweeps over the codes after the solver: as stated, else those that the solver is named
        for.
        """
        return self.sweeps or (QUANTEASE_SWEEPS if self.solver == "quantease" else 0)

    @property
    def embedding_grid(self) -> Grid | None:
        """The grid of embedding and head: rounded to nearest, symmetric, in groups of 32; None when
        dense.
        """
        if self.embedding_bits == DENSE_BITS:
            return None
        return Grid(self.embedding_bits, 32, "symmetric", self.scale_dtype)

    @property
    def needs_calibration(self) -> bool:
        """Whether any step looks at activations; plain rounding does not."""
        refines = self.sweeps + self.alternations + self.anneal_rounds > 0
        return self.solver != "rtn" or self.scales != "none" or self.propagates or refines

    @property
    def needs_drift(self) -> bool:
        """Whether the full-precision stream has to run beside the quantized one."""
        return self.propagates or (self.scales == "both" and bool(self.refit_strength))


def read_recipe(path: str) -> dict[str, Any]:
    """The settings in a TOML file. Raises: BadInput for a missing or malformed file."""
    file = Path(path)
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        found = "it is a directory" if file.is_dir() else reason_of(error).lower()
        raise BadInput(f"recipe {path!r}: {found}; give the path of a TOML file") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"recipe {path!r}: not valid TOML ({reason_of(error)}); see docs/cli.md, Settings"
        ) from error


def with_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings on top of the preset that their key "quality" names. Raises: BadInput for an unknown
    preset.
    """
    given = dict(settings)
    quality = given.pop("quality", DEFAULT_QUALITY)
    if not isinstance(quality, str) or quality not in PRESETS:
        raise BadInput(f"quality {quality!r}: expected one of {', '.join(PRESETS)}")
    plain = given.get("solver") == "rtn"  # then what is not set has the defaults of `Recipe`
    return given if plain else {**PRESETS[quality], **given}


def make_recipe(settings: Mapping[str, Any]) -> Recipe:
    """A validated recipe from plain settings. Raises: BadInput naming the setting, its rule and
    what was received.
    """
    given = dict(settings)
    overrides = given.pop("overrides", [])
    if not isinstance(overrides, list | tuple) or not all(
        isinstance(item, Mapping) for item in overrides
    ):
        raise BadInput(
            "recipe setting 'overrides': expected [[overrides]] "
            "tables, each with 'layers' and settings"
        )
    _check_names(given, Recipe, "recipe setting", also=("quality",))
    recipe = replace(Recipe(), **given, overrides=tuple(_make_override(item) for item in overrides))
    for field in fields(Recipe):
        if field.name != "overrides":
            check_setting(field.name, getattr(recipe, field.name))
    if recipe.alternations and recipe.scales != "both":
        raise BadInput(
            f"recipe setting alternations = {recipe.alternations}: "
            f"refits scales, which scales = {recipe.scales!r} "
            'excludes; choose scales = "both"'
        )
    if recipe.relaxed_sweeps and recipe.sweeps < FEWEST_RELAXED:
        raise BadInput(
            "recipe setting relaxed_sweeps = true: expected "
            f"sweeps of {FEWEST_RELAXED} or more with it, not "
            f"{recipe.sweeps}"
        )
    shares = [recipe.outlier_columns, *(item.outlier_columns or 0.0 for item in recipe.overrides)]
    if recipe.solver == "rtn" and any(shares):
        raise BadInput(
            f"recipe setting outlier_columns = {max(shares):g}: "
            "plain rounding (solver = 'rtn') fits no columns; "
            'choose solver = "gptq", or outlier_columns = 0'
        )
    return recipe


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """The inverse of `make_recipe`, for reports and the quantized checkpoint."""
    settings = {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
    settings["overrides"] = [
        {
            f.name: getattr(item, f.name)
            for f in fields(Override)
            if getattr(item, f.name) is not None
        }
        for item in recipe.overrides
    ]
    return {name: value for name, value in settings.items() if value is not None}


def _make_override(settings: Mapping[str, Any]) -> Override:
    _check_names(settings, Override, "override setting")
    if not isinstance(settings.get("layers"), str):
        raise BadInput(
            "override without 'layers'; name the layers it is for, such as layers = \"*.down_proj\""
        )
    for name, value in settings.items():
        if name != "layers":
            check_setting(name, value, called=f"override setting {name} =")
    return Override(**settings)


def _check_names(
    settings: Mapping[str, Any], kind: type, what: str, *, also: Sequence[str] = ()
) -> None:
    """Raises: BadInput for a name that is none of the fields; `also` are names that may stand in
    the same file.
    """
    known = [field.name for field in fields(kind)]
    for name in settings:
        if name not in known:
            listed = [*also, *known]
            nearest = difflib.get_close_matches(name, listed, n=1, cutoff=0.0)[0]
            advice = OPTIONS_ONLY.get(name, f"did you mean {nearest!r}? Known: {', '.join(listed)}")
            raise BadInput(f"{what} {name!r} is not known; {advice}")
