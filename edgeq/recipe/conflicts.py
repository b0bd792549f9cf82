"""Say what one setting has against another; the rows of `edgeq.recipe.settings` name these."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeq.recipe.settings import Settings

FEWEST_RELAXED = 10  # sweeps that pay for every third one's leaving codes unrounded


def refits_no_scales(chosen: Settings) -> str | None:
    """Say why alternations are refused, if they are."""
    if not chosen.alternations or chosen.scales == "both":
        return None
    return f'refits scales, which scales = {chosen.scales!r} excludes; choose scales = "both"'


def relaxes_too_few(chosen: Settings) -> str | None:
    """Say why relaxed sweeps are refused, if they are."""
    if not chosen.relaxed_sweeps or chosen.sweeps >= FEWEST_RELAXED:
        return None
    return f"expected sweeps of {FEWEST_RELAXED} or more with it, not {chosen.sweeps}"


def fits_no_columns(chosen: Settings) -> str | None:
    """Say why outlier columns are refused, if they are."""
    if not chosen.outlier_columns or chosen.solver != "rtn":
        return None
    return (
        "plain rounding (solver = 'rtn') fits no columns; "
        'choose solver = "gptq", or outlier_columns = 0'
    )


def has_no_columns(chosen: Settings) -> str | None:
    """Say why a type is refused, if it is."""
    if chosen.type is None or not chosen.outlier_columns:
        return None
    return "types have no outlier columns; leave out outlier_columns, or choose bits instead"


def weighs_no_tokens(chosen: Settings) -> str | None:
    """Say why weights of tokens are refused, if they are."""
    if chosen.token_weights == "none" or chosen.solver != "rtn":
        return None
    return (
        "plain rounding (solver = 'rtn') weighs no tokens; "
        'choose solver = "gptq", or token_weights = "none"'
    )
