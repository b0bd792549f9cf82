"""Say what of a run did not go as usual in a user's words: what it means, and what to do about it.

What nothing can be done about is left to the notes of `edgeq.run.finished`, which say all.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeq.recipe.layer_grids import Grids
from edgeq.recipe.recipe import Recipe
from edgeq.run.report import RunReport
from edgeq.solving.propagation import FEW_TOKENS
from edgeq.solving.report import LayerReport
from edgeq.words import shell_line

MUCH_LENT = 0.5  # of an expert's moments: more than its own tokens make up
LARGE_ERROR = 0.5  # of a layer's output energy: rounding well loses a few hundredths
MANY_CLAMPED = 0.01  # of a tensor's scales
MANY_DEAD = 0.01  # of all inputs
MANY_DAMPED = 0.1  # of all layers
STEP = 8  # advice is given in multiples of so many samples
OTHER_TEXT = "--calibration FILE"


def advise(
    report: RunReport,
    grids: Grids,
    recipe: Recipe,
    calibration: Mapping[str, Any] | None,
) -> list[str]:
    """List what a user can do to have a better result, the most useful first.

    calibration is what the checkpoint records of its texts.
    """
    found = [*bad_layers(report.layers), *bad_scales(report, grids)]
    found += text_advice(report, recipe, calibration)
    if report.imatrix is not None:
        found += report.imatrix.notes()[1:]  # the first says what was asked for
    return found


def text_advice(
    report: RunReport, recipe: Recipe, calibration: Mapping[str, Any] | None
) -> Iterator[str]:
    """Say whether more text, or other text, would do good."""
    texts = [] if calibration is None else calibration["texts"]
    length = recipe.sequence_length
    needed = samples_needed(report, recipe)
    short = [text for text in texts if text["samples"] * length > text["tokens"]]
    unseen = sum(not expert.tokens for expert in report.experts)
    if short:
        text = short[0]
        yield (
            f"The calibration text {text['name']!r} is short ({text['tokens']} tokens): "
            f"quality can improve; give a longer one with {OTHER_TEXT}"
        )
    elif needed > recipe.samples:
        held = sum(text["tokens"] for text in texts)
        more = f" and a longer text ({OTHER_TEXT})" if needed * length > held else ""
        yield f"Little calibration text: quality can improve; use --samples {needed}{more}"
    if any("runs" in text for text in texts):
        yield (
            f"The calibration text repeats itself: quality can improve; give one that varies with "
            f"{OTHER_TEXT}"
        )
    if unseen:
        yield (
            f"{unseen} of {len(report.experts)} experts saw no calibration text: use more "
            f"--samples, or text of all kinds that the model is for ({OTHER_TEXT})"
        )
    elif not short and needed <= recipe.samples:
        yield from unlike_text(report.layers)


def samples_needed(report: RunReport, recipe: Recipe) -> int:
    """Count the samples with which no layer and no expert would lack tokens; 0 where none does.

    What reaches an expert is taken to grow with the text.
    """
    few = [layer for layer in report.layers if layer.few_tokens and layer.expert is None]
    needed = 0.0
    if few:
        columns = max(layer.shape[1] for layer in few)
        needed = FEW_TOKENS * columns / (recipe.propagation_share * recipe.sequence_length)
    lent = [e.lent_share for e in report.experts if MUCH_LENT < e.lent_share and e.tokens]
    if lent:  # n own tokens beside m lent ones are a share m / (n + m)
        share = max(lent)
        needed = max(needed, recipe.samples * share / (1 - share))
    return math.ceil(round(needed / STEP, 6)) * STEP  # what floats add does not count


def unlike_text(layers: Sequence[LayerReport]) -> Iterator[str]:
    """Say that a text leaves inputs unused, or hardly moves them."""
    inputs = sum(layer.shape[1] for layer in layers)
    dead = sum(layer.dead_columns for layer in layers)
    damped = sum(layer.damping_retries > 0 for layer in layers)
    if dead > MANY_DEAD * inputs:
        yield (
            f"The calibration text leaves {dead / inputs:.0%} of the model's inputs unused: "
            f"calibrate on text like what you will use it for ({OTHER_TEXT})"
        )
    elif damped > MANY_DAMPED * len(layers):
        yield (
            f"The calibration text is uniform ({damped} of {len(layers)} layers hardly vary on "
            f"it): quality can improve; give one that varies with {OTHER_TEXT}"
        )


def bad_layers(layers: Sequence[LayerReport]) -> Iterator[str]:
    """Name the layers whose error is so large that something is wrong."""
    bad = [layer for layer in layers if not layer.final_loss <= LARGE_ERROR]  # also where it is NaN
    for layer in bad[:1]:
        others = f", and {len(bad) - 1} more layers do" if len(bad) > 1 else ""
        yield (
            f"{layer.name} loses {layer.final_loss:.0%} of its output{others}: keep it as it is "
            f"with {shell_line(['--keep-dense', layer.name])}"
        )


def bad_scales(report: RunReport, grids: Grids) -> Iterator[str]:
    """Name tensors of which many scales are beyond what their type holds."""
    bad = {f"{layer.name}.weight" for layer in report.layers if not layer.final_loss <= LARGE_ERROR}
    inside = {f"{layer.name}.weight": layer.name for layer in report.layers}
    for name, groups in report.clamped.items():
        shape, grid = grids[name]
        if grid is None or name in bad:
            continue
        if groups > MANY_CLAMPED * shape[0] * grid.group_count(shape[1]):
            keep = "--embedding-bits 16"
            if name in inside:
                keep = shell_line(["--keep-dense", inside[name]])
            yield f"Some weights of {name} do not fit scales in {grid.scale_dtype}: use {keep}"


def short_of_types(replaced: Sequence[str]) -> list[str]:
    """Say in one line that not all layers have the type that was asked for."""
    if len(replaced) < 2:
        return list(replaced)
    return [f"{replaced[0]}; and {len(replaced) - 1} more such (--verbose)"]
