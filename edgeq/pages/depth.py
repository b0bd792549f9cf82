"""Follow layers through the depth of a model: one series for each kind of layer.

A kind is the name of a layer without the number of its block and of its expert. Where a block has
several layers of one kind, such as experts, their mean is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeq.pages import shown
from edgeq.pages.charts import Axis, Chart, Series, Table, View
from edgeq.pages.names import shortest_ends
from edgeq.solving.report import LayerReport, Stage

Value = Callable[[LayerReport], float | None]
Kinds = Mapping[str, Mapping[int, Sequence[LayerReport]]]
"""Layers by kind and block."""

LAST = "after the last stage"
ALL = "mean of all layers"
MOST_KINDS = 16  # that runs are compared by, one at a time
BLOCK = Axis("block (0 is next to the embedding)", "integer", least=0)
ERROR = Axis("error, in % of the layer's squared output", "percent", log=True)
GAIN = Axis("error of the last stage, in % of that of rounding", "percent")
STRENGTH = Axis("propagation strength", "number", least=0, most=1)


def layers_by_kind(layers: Sequence[LayerReport]) -> Kinds:
    """Sort layers by kind and block, kinds with the shortest names that tell them apart."""
    found: dict[str, dict[int, list[LayerReport]]] = {}
    for layer in layers:
        block, kind = place_of(layer.name)
        found.setdefault(kind, {}).setdefault(block, []).append(layer)
    labels = shortest_ends([kind.split(".") for kind in found], ".")
    return dict(zip(labels, found.values(), strict=True))


def place_of(name: str) -> tuple[int, str]:
    """Split the name of a layer into the number of its block and its kind."""
    parts = name.split(".")
    numbers = [n for n, part in enumerate(parts) if part.isascii() and part.isdigit()]
    if not numbers:
        return 0, name
    first = numbers[0]
    kind = ["*" if n in numbers else part for n, part in enumerate(parts)]
    # beyond 15 digits a number is that of no block, and no float of a chart
    return int(parts[first][:15]), ".".join(kind[first + 1 :])


def series_of(kinds: Kinds, value: Value) -> list[Series]:
    """Make a series for each kind of the mean value in each block; unknown values are left out."""
    found = []
    for kind, blocks in kinds.items():
        means = [(block, mean_of(layers, value)) for block, layers in sorted(blocks.items())]
        points = [(block, mean) for block, mean in means if mean is not None]
        if points:
            found.append(Series(kind, points))
    return found


def mean_of(layers: Sequence[LayerReport], value: Value) -> float | None:
    """Average a value over the layers that have one; None where none has."""
    known = [found for found in map(value, layers) if found is not None]
    return sum(known) / len(known) if known else None


def table_of(kinds: Kinds, value: Value, write: Callable[[float | None], str]) -> Table:
    """Lay values out in a row for each block and a column for each kind."""
    blocks = sorted({block for each in kinds.values() for block in each})
    rows = []
    for block in blocks:
        cells = [write(mean_of(each.get(block, ()), value)) for each in kinds.values()]
        rows.append([str(block), *cells])
    return Table(["block", *kinds], rows)


def loss_at(stage: Stage) -> Value:
    """Make the function that gives the loss of a layer after a stage; None for none above 0."""
    return lambda layer: layer.losses.get(stage) or None


def last_loss(layer: LayerReport) -> float | None:
    """Give the loss after the last stage; None where none above 0 was measured."""
    return layer.final_loss or None


def gain_over_rounding(layer: LayerReport) -> float | None:
    """Give the last loss as a share of that of plain rounding; None where one is not known."""
    nearest = layer.losses.get(Stage.NEAREST)
    return layer.final_loss / nearest if nearest else None


def error_chart(layers: Sequence[LayerReport]) -> Chart | None:
    """Draw the error of each layer through the depth, by stage; None where none was measured."""
    kinds = layers_by_kind([layer for layer in layers if layer.losses])
    if not kinds:
        return None
    views = [View(LAST, series_of(kinds, last_loss))]
    views += [View(str(stage), series_of(kinds, loss_at(stage))) for stage in stages_of(layers)]
    if any(layer.losses.get(Stage.NEAREST) and len(layer.losses) > 1 for layer in layers):
        views.append(View("gain over rounding", series_of(kinds, gain_over_rounding), GAIN))
    return Chart(
        "errors",
        "Error of each layer through the depth",
        "Lower is better. A layer that stands out is the first to give more bits.",
        BLOCK,
        ERROR,
        [view for view in views if view.series],
        table_of(kinds, last_loss, shown.percent),
    )


def stages_of(layers: Sequence[LayerReport]) -> list[Stage]:
    """List the stages at which some layer was measured, in their order."""
    return [stage for stage in Stage if any(stage in layer.losses for layer in layers)]


def stage_rows(layers: Sequence[LayerReport]) -> list[tuple[str, float, str]]:
    """Average the error over all layers after each stage: name, number, number as text."""
    rows = []
    for stage in stages_of(layers):
        mean = mean_of(layers, loss_at(stage)) or 0.0
        rows.append((str(stage), mean, shown.percent(mean, 2)))
    return rows


def strength_chart(layers: Sequence[LayerReport]) -> Chart | None:
    """Draw how far each layer corrects for the error before it; None where none does."""
    if not any(layer.propagation_strength for layer in layers):
        return None
    kinds = layers_by_kind(layers)

    def strength(layer: LayerReport) -> float:
        return layer.propagation_strength

    return Chart(
        "strength",
        "How far each layer makes up for the error before it",
        "0 leaves the weights alone, 1 makes up for all of the error that earlier layers made.",
        BLOCK,
        STRENGTH,
        [View("", series_of(kinds, strength))],
        table_of(kinds, strength, shown.plain),
    )


@dataclass(frozen=True, slots=True)
class GridMap:
    """The types of layers by kind and block: of each cell the text and the bits."""

    blocks: Sequence[int]
    rows: Sequence[tuple[str, Sequence[tuple[str, int]]]]


def grid_map(layers: Sequence[LayerReport]) -> GridMap | None:
    """Lay out which layer has which type or bits; None where all have the same."""
    if len({name_of_grid(layer) for layer in layers}) < 2:
        return None
    kinds = layers_by_kind(layers)
    blocks = sorted({block for each in kinds.values() for block in each})
    rows = []
    for kind, each in kinds.items():
        cells = []
        for block in blocks:
            found = each.get(block, ())
            names = dict.fromkeys(map(name_of_grid, found))
            cells.append((" ".join(names), min((layer.bits for layer in found), default=0)))
        rows.append((kind, cells))
    return GridMap(blocks, rows)


def name_of_grid(layer: LayerReport) -> str:
    """Name what a layer is stored in: its type, or its bits."""
    return layer.type or f"{layer.bits} bits"


def errors_of_runs(runs: Mapping[str, Sequence[LayerReport]]) -> Chart | None:
    """Draw the last errors of several runs over each other; None where none was measured."""
    kinds_of = {
        name: layers_by_kind([layer for layer in layers if layer.losses])
        for name, layers in runs.items()
    }
    kinds = dict.fromkeys(kind for kinds in kinds_of.values() for kind in kinds)
    if not kinds:
        return None
    all_layers: dict[str, Kinds] = {
        name: {ALL: merged(kinds)} for name, kinds in kinds_of.items() if kinds
    }
    views = [runs_view(ALL, all_layers)]
    views += [runs_view(kind, kinds_of) for kind in [*kinds][:MOST_KINDS]]
    means = {name: each[ALL] for name, each in all_layers.items()}
    return Chart(
        "errors",
        "Error through the depth",
        "Error after the last stage, each run on its own calibration text. Lower is better.",
        BLOCK,
        ERROR,
        [view for view in views if view.series],
        table_of(means, last_loss, shown.percent),
    )


def runs_view(kind: str, kinds_of: Mapping[str, Kinds]) -> View:
    """Draw one kind of layer of several runs."""
    of_runs = {name: kinds[kind] for name, kinds in kinds_of.items() if kind in kinds}
    return View(kind, series_of(of_runs, last_loss))


def merged(kinds: Kinds) -> dict[int, list[LayerReport]]:
    """Put layers of all kinds together, by block."""
    found: dict[int, list[LayerReport]] = {}
    for blocks in kinds.values():
        for block, layers in blocks.items():
            found.setdefault(block, []).extend(layers)
    return found
