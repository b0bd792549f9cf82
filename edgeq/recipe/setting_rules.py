"""What each setting of a recipe may be."""

from typing import Any, Literal, get_args

from edgeq.algorithms import SOLVERS
from edgeq.errors import BadInput
from edgeq.types import LARGEST_OUTLIER_SHARE, ScaleDtype, ScaleWeighting, ZeroKind

ScaleStages = Literal["none", "first", "both"]
DENSE_BITS = 16
AUTOMATIC = "auto"


def check_setting(name: str, value: Any, *, called: str | None = None) -> None:
    """Raises: BadInput when a value breaks its rule, by the name it was called, such as that of an
    option.
    """
    rule, holds = RULES[name]
    if not holds(value):
        raise BadInput(f"{called or f'recipe setting {name} ='} {shown(value)}: expected {rule}")


def shown(value: Any) -> str:
    """A value for a message; Python writes no whole numbers of thousands of digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _whole(low: int, high: int, *others: Any) -> tuple[str, Any]:
    extra = "".join(f" or {other!r}" for other in others)
    rule = f"a whole number from {low} to {high}{extra}"

    def holds(value: Any) -> bool:
        if isinstance(value, int) and not isinstance(value, bool):
            return low <= value <= high or value in others
        return isinstance(value, str) and value in others

    return rule, holds


def _number(low: float, high: float, *others: str, optional: bool = False) -> tuple[str, Any]:
    def holds(value: Any) -> bool:
        if value is None:
            return optional
        if isinstance(value, str):
            return value in others
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        )

    return f"a number from {low:g} to {high:g}" + "".join(
        f" or {other!r}" for other in others
    ), holds


def _one_of(choices: tuple[str, ...]) -> tuple[str, Any]:
    return f"one of {', '.join(choices)}", lambda value: value in choices


_FLAG = ("true or false", lambda value: isinstance(value, bool))
RULES: dict[str, tuple[str, Any]] = {
    "bits": _whole(2, 8, DENSE_BITS),
    "group_size": _whole(8, 65536, "row"),
    "zeros": _one_of(get_args(ZeroKind)),
    "scale_dtype": _one_of(get_args(ScaleDtype)),
    "solver": _one_of(SOLVERS),
    "damping": _number(1e-6, 100),
    "activation_order": _FLAG,
    "propagation_strength": _number(0, 1, AUTOMATIC),
    "propagation_damping": _number(1e-6, 100),
    "propagation_share": _number(0.01, 1),
    "scales": _one_of(get_args(ScaleStages)),
    "refit_strength": _number(0, 1, optional=True),
    "refit_exactly": _FLAG,
    "scale_weighting": _one_of(get_args(ScaleWeighting)),
    "scale_candidates": _whole(1, 1000),
    "scale_refits": _whole(0, 100),
    "sweeps": _whole(0, 1000),
    "relaxed_sweeps": _FLAG,
    "alternations": _whole(0, 100),
    "outlier_columns": _number(0, LARGEST_OUTLIER_SHARE),
    "anneal_rounds": _whole(0, 100),
    "anneal_steps": _whole(1, 1_000_000),
    "embedding_bits": _whole(2, 8, DENSE_BITS),
    "samples": _whole(1, 1_000_000),
    "sequence_length": _whole(8, 1_000_000),
    "seed": _whole(0, 2**32 - 1),
}
