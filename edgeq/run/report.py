"""How a run came out: what the pipeline finds, report.json stores, and the last screen prints.

Nothing here depends on time or place, so that equal runs write equal bytes; seconds and sizes lie
beside it, in `edgeq.run.finished`. How one layer came out is `edgeq.solving.report`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.files.json_files import MAKE_AGAIN, read_json, write_json
from edgeq.files.ownership import REPORT_FILE
from edgeq.grids.limits import clamped_groups
from edgeq.protocols import ModelSource
from edgeq.recipe.layer_grids import Grids
from edgeq.run.numbers import check_numbers, is_count
from edgeq.run.tuning_report import TuningReport, tuning_from
from edgeq.run.weighing import WeighedLayers, weighed_from
from edgeq.solving.report import ExpertReport, LayerReport, Stage, experts_of
from edgeq.types import NumpyArray, QuantizedLinear

VERSION = 1
"""Of the content of report.json; reports without one, of the first release, have the same."""

NUMBERS = (
    "bits",
    "propagation_strength",
    "held_out_gain",
    "damping",
    "damping_retries",
    "propagation_damping",
    "propagation_retries",
    "dead_columns",
    "outlier_columns",
    "expert",
    "tokens",
    "lent_share",
    "counting_tokens",
)
"""Fields of a layer's report that are numbers, where they are stated."""


@dataclass(slots=True)
class RunReport:
    """The findings of a run, filled block by block and complete when the run is over.

    bits_per_weight is by part ("linear layers", "model"). clamped has, by tensor, the number of
    scales that hit a limit of their type. kept_dense counts the matrices that stay as they are, by
    name, with * for any number. calibration_tokens is None where nothing was calibrated. imatrix
    says which layers an importance matrix weighs, None where there is none. budget is an
    `edgeq.run.allocation.Allocation` in plain data, None where no budget was given. tuning says how
    the solved model was tuned, None where it was not. computed_in states the precision of every
    backend that worked on the run.
    """

    bits_per_weight: dict[str, float] = field(default_factory=dict)
    calibration_tokens: int | None = None
    layers: list[LayerReport] = field(default_factory=list)
    clamped: dict[str, int] = field(default_factory=dict)
    kept_dense: dict[str, int] = field(default_factory=dict)
    imatrix: WeighedLayers | None = None
    budget: dict[str, Any] | None = None
    tuning: TuningReport | None = None
    computed_in: list[str] = field(default_factory=list)

    def note_precision(self, backend: str, solve: str, passes: str | None) -> None:
        """State in what a backend solves, and in what calibration text goes through the model."""
        through = "" if passes is None else f", forward passes in {passes}"
        stated = f"{backend}: {solve}{through}"
        if stated not in self.computed_in:
            self.computed_in.append(stated)

    def note_clamped(self, name: str, weight: NumpyArray, layer: QuantizedLinear) -> None:
        """Count the scales of a solved tensor that are at a limit of their type."""
        groups = clamped_groups(name, weight, layer)
        if groups:
            self.clamped[name] = self.clamped.get(name, 0) + groups

    def worst_layers(self, count: int) -> list[LayerReport]:
        """Return the layers with the largest loss after their last stage, the worst first."""
        measured = [layer for layer in self.layers if layer.losses]
        return sorted(measured, key=lambda layer: -layer.final_loss)[:count]

    @property
    def experts(self) -> list[ExpertReport]:
        """List the experts of all mixtures: how many tokens reached each, and what it was lent."""
        return experts_of(self.layers)

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON stores it; `report_from` is the inverse."""
        found = {"version": VERSION, **asdict(self)}
        for name in ("budget", "tuning"):
            if found[name] is None:
                del found[name]
        return found


def report_from(stored: Mapping[str, Any], called: str) -> RunReport:
    """Read a report from plain data, of this version or of the first release.

    Raises: BadInput, with what the data is called, for an unknown version and for no report.
    """
    version = stored.get("version", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise BadInput(
            f"{called}: a report of version {version!r}, where this edgeq reads {VERSION}; "
            "use the edgeq that wrote it"
        )
    try:
        bits, clamped = dict(stored.get("bits_per_weight", {})), dict(stored["clamped"])
        dense = dict(stored.get("kept_dense", {}))
        check_numbers({**bits, **clamped, "calibration_tokens": stored["calibration_tokens"] or 0})
        layers = [layer_from(layer) for layer in stored["layers"]]
        tokens = stored["calibration_tokens"]
        if not (tokens is None or is_count(tokens)) or not all(
            map(is_count, [*clamped.values(), *dense.values()])
        ):
            raise ValueError("tokens, scales and matrices are counted in whole numbers")
        weighed = weighed_from(stored.get("imatrix"))
        budget = stored.get("budget")
        if not (budget is None or isinstance(budget, dict)):
            raise TypeError("its budget is none")
        tuning = tuning_from(stored.get("tuning"))
        stated = list(stored.get("computed_in", []))
        if not all(isinstance(each, str) for each in stated):
            raise TypeError("precisions are stated in words")
        return RunReport(bits, tokens, layers, clamped, dense, weighed, budget, tuning, stated)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{called}: not the report of a run ({type(error).__name__}: {error}); "
            f"it is damaged, {MAKE_AGAIN}"
        ) from error


def check_findings(
    source: ModelSource, grids: Grids, called: str, report: RunReport, done: int
) -> None:
    """Refuse a report that is none of this model, quantized on these grids with `done` blocks.

    Raises: BadInput, with what the report is called, naming the first layer or tensor that does not
    fit.
    """

    def wrong(what: str) -> BadInput:
        return BadInput(f"{called} states {what}; it is damaged, {MAKE_AGAIN}")

    blocks = source.blocks()[:done]
    solved = {linear.name: grids[linear.tensor][1] for block in blocks for linear in block.linears}
    for layer in report.layers:
        grid = solved.pop(layer.name, None)
        kind = (layer.bits, layer.group_size, layer.type)
        if grid is None or kind != (grid.bits, grid.group_size, grid.type):
            raise wrong(f"layer {layer.name!r:.100}, which this run has not solved like that")
    for name, groups in report.clamped.items():
        shape, grid = grids.get(name, ((), None))
        if grid is None or not 0 < groups <= math.prod(shape):
            raise wrong(f"clamped scales of {name!r:.100}, which has none, or not so many")


def layer_from(stored: Mapping[str, Any]) -> LayerReport:
    """Read the report of a layer from plain data, which keeps every float."""
    losses = {Stage(name): loss for name, loss in stored["losses"].items()}
    layer = LayerReport(**{**stored, "shape": tuple(stored["shape"]), "losses": losses})
    check_numbers(stored["losses"])
    sizes = (*layer.shape, layer.bits, *([layer.group_size] if layer.group_size else []))
    if not isinstance(layer.name, str) or len(layer.shape) != 2 or not all(map(is_count, sizes)):
        raise ValueError("a layer has no name, or sizes that are none")
    if not isinstance(layer.type, str):
        raise ValueError("the type of a layer is no name")
    plain = {key: value for key, value in stored.items() if key in NUMBERS}
    check_numbers({key: value for key, value in plain.items() if value is not None})
    if layer.damping_retries and layer.damping is None:
        raise ValueError("damping was raised, and is not stated")
    counts = (layer.expert, layer.tokens)
    if counts != (None, None) and not all(map(is_count, counts)):
        raise ValueError("an expert is counted in whole numbers, as its tokens are")
    if layer.counting_tokens is not None and not is_count(layer.counting_tokens):
        raise ValueError("tokens that count are a whole number")
    if not 0 <= layer.lent_share <= (0 if layer.expert is None else 1):
        raise ValueError("lent_share is no share of an expert's moments")
    raised = layer.propagation_retries or layer.few_tokens
    if raised and layer.propagation_damping is None:
        raise ValueError("propagation_damping was raised, and is not stated")
    return layer


def with_measured(checkpoint: Checkpoint, quality: Mapping[str, Any]) -> RunReport:
    """Put the KL divergence that was measured beside the one that a budget predicted, and store it.

    Without a budget the report stays as it is.

    Raises: BadInput when it is missing or damaged.
    """
    report = read_report(checkpoint)
    if report.budget is not None and quality["kl"] is not None:
        measured = {name: quality[name] for name in ("kl", "runtime", "tokens")}
        report.budget = {**report.budget, "measured": measured}
        write_json(checkpoint.path / REPORT_FILE, report.plain())
    return report


def read_report(checkpoint: Checkpoint) -> RunReport:
    """Read the report of the run that made a checkpoint.

    Raises: BadInput when it is missing or damaged.
    """
    path = checkpoint.path / REPORT_FILE
    return report_from(read_json(path), f"{str(path)!r}")
