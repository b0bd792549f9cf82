"""The table of settings: one row says everything about a setting.

A row is a field of `Settings`: its name and type, and in `setting(...)` its default, its rule, a
line of help, what it costs, and whether an option or an override may set it. Recipes, the options
of `edgeq quantize` and `edgeq plan`, recipe files, messages and the table in
docs/reference/settings.md are made from the rows. What a setting does is said elsewhere, by the
code that reads it from the recipe.

Nothing here loads NumPy: `edgeq --help` is made from this table and must answer at once.
"""

# ruff: noqa: RUF009 (`setting` makes a field, as `dataclasses.field` does)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from edgeq.errors import BadInput
from edgeq.recipe.conflicts import (
    FEWEST_RELAXED,
    fits_no_columns,
    has_no_columns,
    refits_no_scales,
    relaxes_too_few,
    weighs_no_tokens,
)
from edgeq.recipe.setting_rows import DEFAULT_QUALITY, PLAIN, PRESETS, Option, Setting, setting
from edgeq.recipe.setting_rules import AUTOMATIC, DENSE_BITS, flag, number, one_of, whole
from edgeq.recipe.type_names import hint_of_bits, type_rule

if TYPE_CHECKING:
    from edgeq.types import ScaleDtype, ScaleWeighting, ZeroKind

ScaleStages = Literal["none", "first", "both"]
Solver = Literal["rtn", "gptq", "quantease"]
TokenWeighting = Literal["none", "gradient", "squares"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Every choice of a run but its overrides.

    The order is that of --help, of docs/reference/settings.md and of what a checkpoint states.
    Defaults of what propagates were chosen by `benchmarks.quality`.
    """

    bits: int = setting(
        4,
        whole(2, 8, DENSE_BITS, hint=hint_of_bits),
        "Round weights of linear layers to this many bits, 2 to 8; 16 keeps them dense.",
        option=Option(group="everyday"),
        override=True,
    )
    group_size: int | Literal["row"] = setting(
        32,
        whole(8, 65536, "row"),
        "Let this many columns share a scale, or with row all of them.",
        cost="smaller groups take more bits per weight",
        option=Option(group="quality"),
        override=True,
    )
    zeros: ZeroKind = setting(
        "symmetric",
        one_of("symmetric", "integer", "offset"),
        "Put zero in the middle of every grid, or where each group needs it.",
        more='`"integer"` are whole zero points, `"offset"` free offsets, `"asymmetric"` the kind '
        "of these that every named export holds without loss, refused where there is none",
        cost="asymmetric: an offset per group",
        option=Option("--symmetric/--asymmetric", ("symmetric", "asymmetric"), group="quality"),
        override=True,
    )
    scale_dtype: ScaleDtype = setting(
        "float16",
        one_of("float16", "bfloat16", "float32"),
        "Round scales to this type before codes are chosen.",
        more="for a model in bfloat16 the commands take bfloat16 unless this is set",
    )
    type: str | None = setting(
        None,
        type_rule(mixes=True, optional=True),
        "Solve linear layers on this type of llama.cpp's, such as Q4_K, or on one of its mixes, "
        "such as Q4_K_M.",
        more="in the place of bits, groups and zeros; scales then are of the type's own kind; "
        "see Types",
        option=Option(metavar="TYPE", group="everyday"),
        override=True,
        conflict=has_no_columns,
    )
    narrow_type: str = setting(
        AUTOMATIC,
        type_rule(AUTOMATIC),
        "Solve layers whose width a type does not fit on this one instead, or on the one that "
        "llama.cpp takes (auto).",
        option=Option(metavar="TYPE"),
    )
    solver: Solver = setting(
        "gptq",
        one_of("rtn", "gptq", "quantease"),
        "Choose codes by gptq, quantease or rtn (round to nearest).",
        more="`quantease` is GPTQ, then 5 sweeps of coordinate descent or as many as are set",
        option=Option(),
    )
    damping: float = setting(
        0.01,
        number(1e-6, 100),
        "Damp the solver by this share of the mean input energy.",
        more="the energy is the mean of diag H; damping is raised tenfold up to four times when "
        "needed, and reported",
        option=Option(metavar="SHARE"),
    )
    activation_order: bool = setting(
        True,
        flag(),
        "Solve the columns with the largest inputs first.",
        more="groups stay contiguous",
        plain=False,
        option=Option(),
    )
    propagation_strength: float | Literal["auto"] = setting(
        0.5,
        number(0, 1, AUTOMATIC),
        "Make up for earlier layers' errors this far, 0 to 1, or auto.",
        more='`"auto"` chooses strength and damping of each layer on a quarter of the tokens that '
        "is kept out of the choice's fit, and `report.json` states both with the gain there",
        cost="above 0 the second stream; `auto`: about a quarter of a run",
        fast=0.0,
        option=Option(),
        override=True,
    )
    propagation_damping: float = setting(
        0.1,
        number(1e-6, 100),
        "Damp that correction by this share of the mean input energy.",
        more="at least 1 for inputs that both streams have fewer than two tokens each of, which is "
        "reported; not used by `auto`",
        plain=0.01,
        fast=0.01,
        option=Option(metavar="SHARE"),
    )
    propagation_share: float = setting(
        0.25,
        number(0.01, 1),
        "Run the full-precision stream too on this share of the calibration sequences.",
        more="less makes the correction noisier",
        cost="a second pass over that share",
        stage="forward passes",
        plain=1.0,
        fast=1.0,
        best=1.0,
    )
    scales: ScaleStages = setting(
        "both",
        one_of("none", "first", "both"),
        "Fit scales in stages: none (min-max), first (search before the solve), both (and refit "
        "after it).",
        cost="little",
        fast="first",
        option=Option(),
    )
    refit_strength: float | None = setting(
        None,
        number(0, 1, optional=True),
        "Refit scales to the original weight with the drift at this strength; unset, to the weight "
        "that was solved for.",
    )
    refit_exactly: bool = setting(
        False,
        flag(),
        "Solve the refit of scales jointly before they are rounded in turn.",
    )
    scale_weighting: ScaleWeighting = setting(
        "mean",
        one_of("diagonal", "conditional", "mean"),
        "Weigh errors in the search for scales by this.",
        more='`"diagonal"` is diag H, `"conditional"` 1 / diag H^-1 (use it with activation '
        'order), `"mean"` the geometric mean of both',
        plain="diagonal",
    )
    scale_candidates: int = setting(
        8,
        whole(1, 1000),
        "Try this many ranges in the search for scales.",
        cost="each a pass over the weights",
        stage="search scales",
        plain=18,
    )
    scale_refits: int = setting(
        2,
        whole(0, 100),
        "Refit scales by least squares this often after their search.",
        plain=1,
    )
    sweeps: int = setting(
        3,
        whole(0, 1000),
        "Sweep over the codes this often after the solver, as QuantEase does.",
        cost="each about what GPTQ's pass costs",
        stage="solve",
        plain=0,
        fast=0,
    )
    relaxed_sweeps: bool = setting(
        False,
        flag(),
        "Leave codes unrounded in every third sweep, to escape local minima.",
        more=f"needs {FEWEST_RELAXED} sweeps or more",
        conflict=relaxes_too_few,
    )
    alternations: int = setting(
        0,
        whole(0, 100),
        "Take this many further turns of sweeps (at least 1) and a refit of the scales.",
        more='needs scales `"both"`',
        cost="each what its sweeps cost",
        stage="solve",
        conflict=refits_no_scales,
    )
    outlier_columns: float = setting(
        0.0,
        number(0, 0.5),  # LARGEST_OUTLIER_SHARE of edgeq.types, which would load NumPy
        "Keep this share of a layer's input columns in 16 bits beside the codes, such as 0.01.",
        more="their type is `scale_dtype`; see Outlier columns",
        cost="16 bits per weight of such a column",
        option=Option(metavar="SHARE", group="quality"),
        override=True,
        conflict=fits_no_columns,
    )
    anneal_rounds: int = setting(
        0,
        whole(0, 100),
        "Anneal codes in this many QQA rounds before the last refit of the scales.",
        cost="each all of its steps",
        stage="annealing",
    )
    anneal_steps: int = setting(
        200,
        whole(1, 1_000_000),
        "Take this many steps in each QQA round.",
        cost="each about a fifth of GPTQ's pass over the columns",
        stage="annealing",
    )
    embedding_bits: int = setting(
        8,
        whole(2, 8, DENSE_BITS),
        "Round embedding and head to this many bits in groups of 32; 16 keeps them dense.",
        option=Option(group="quality"),
    )
    embedding_type: str | int | None = setting(
        None,
        type_rule(AUTOMATIC, dense=True, optional=True),
        "Solve embedding and head on this type, or on those that llama.cpp chooses (auto, which "
        "--type implies); 16 keeps them dense.",
        more="unset, `embedding_bits` says their grid",
        option=Option(metavar="TYPE", group="quality"),
    )
    tune: bool | Literal["auto"] = setting(
        False,
        flag(AUTOMATIC),
        "Tune scales, offsets and norms on what the original predicts, when all layers are solved.",
        more='`"auto"` tunes where the device is a GPU, or where the model and its gradients fit '
        "into memory; see Tuning",
        cost="about eight passes of `tune_tokens` for each of `tune_passes`",
        best=AUTOMATIC,
        option=Option(group="quality"),
    )
    tune_tokens: int = setting(
        131_072,
        whole(1, 10**12),
        "Tune on this many tokens of the calibration texts, other windows of them than the solve.",
        more="some of them are kept out of it and decide which step is kept",
        cost="passes of each",
        option=Option(),
    )
    tune_passes: int = setting(
        2,
        whole(1, 1000),
        "Pass this often over the tokens that are tuned on.",
        cost="each all of its passes",
        option=Option(),
    )
    tune_rate: float = setting(
        3e-3,
        number(1e-6, 1),
        "Move scales by about this share of their size in a step of tuning.",
        option=Option(metavar="SHARE"),
    )
    tune_codes: bool = setting(
        False,
        flag(),
        "Let tuning move a few of the codes too.",
        more="it takes 18 bytes of memory a weight, gains more on some models and less on others, "
        "and no preset does; see Tuning",
        option=Option(),
    )
    samples: int = setting(
        64,
        whole(1, 1_000_000),
        "Calibrate on this many sequences.",
        cost="passes and statistics of each",
        stage="forward passes",
        best=128,
        option=Option(group="text"),
    )
    sequence_length: int = setting(
        512,
        whole(8, 1_000_000),
        "Read this many tokens per calibration sequence.",
        cost="passes and statistics of each, and attention between all of them",
        stage="forward passes",
        option=Option(group="text"),
    )
    token_weights: TokenWeighting = setting(
        "none",
        one_of("none", "gradient", "squares"),
        "Weigh calibration tokens by what they decide: by gradient or by its squares; none: alike.",
        more="the original model is run backward once, by torch, from tokens that it draws; "
        "each token then counts, at the inputs of some layers, as much as the gradients of their "
        "outputs have magnitude, up to 10 times and down to a tenth of the mean. No preset does: "
        "on a small model another draw of text changes as much (`benchmarks/token_weights.py`)",
        cost="about four passes of the original over all sequences",
        stage="weigh tokens",
        option=Option(),
        conflict=weighs_no_tokens,
    )
    seed: int = setting(
        0,
        whole(0, 2**32 - 1),
        "Draw calibration sequences, self-written text and annealing from this seed.",
        option=Option(),
    )
    exact: bool = setting(
        False,
        flag(),
        "Compute in full precision also where less is faster and as good.",
        more="forward passes then are in float32 on processors that multiply in bfloat16, too, and "
        "what is solved is in float64 where torch has it",
        cost="about twice the time",
        option=Option(),
    )


TABLE: Mapping[str, Setting] = {
    item.name: replace(item.metadata["row"], name=item.name) for item in fields(Settings)
}
"""The rows by name, in their order."""


OF_TUNING: Mapping[str, str] = {
    "tokens": "tune_tokens",
    "passes": "tune_passes",
    "rate": "tune_rate",
    "codes": "tune_codes",
    "seed": "seed",
    "sequence_length": "sequence_length",
}
"""What tuning a finished checkpoint takes of the settings, by what it calls them."""


def defaults(column: str = DEFAULT_QUALITY) -> dict[str, Any]:
    """Return the defaults of all settings in a preset, or in "plain": those of plain rounding."""
    return {name: row.defaults[column] for name, row in TABLE.items()}


def column_of(settings: Mapping[str, Any]) -> str:
    """Name the column that gives what settings leave open: a preset, or that of plain rounding.

    Raises: BadInput for an unknown preset.
    """
    quality = settings.get("quality", DEFAULT_QUALITY)
    if not isinstance(quality, str) or quality not in PRESETS:
        raise BadInput(f"quality {quality!r}: expected one of {', '.join(PRESETS)}")
    return PLAIN if settings.get("solver") == "rtn" else quality
