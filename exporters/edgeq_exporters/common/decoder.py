"""Compare the tensors of a solved model with those that its description asks for.

What a format holds of a tensor is left to the format, which is asked for each one.
"""

from collections.abc import Callable, Mapping

from edgeq.architectures.blocks import advice_for
from edgeq.decoder import Decoder, Shape
from edgeq.errors import BadInput
from edgeq.protocols import QuantizedModel
from edgeq.types import Grid

Shapes = Mapping[str, tuple[Shape, Grid | None]]


def why_not_tensors(
    decoder: Decoder,
    grids: Shapes,
    why_not_grid: Callable[[str, Shape, Grid], str | None],
    *,
    runtime: str,
) -> str | None:
    """Say which tensor a runtime has no place for, wants otherwise, or lacks; None if all fit.

    `why_not_grid` is asked for each quantized tensor, by name, shape and grid.
    """
    expected, solved = decoder.tensor_shapes(), decoder.matrix_shapes()
    kept = {name: grids[name] for name in sorted(grids) if not decoder.is_redundant(name)}
    for name, (shape, grid) in kept.items():
        if name not in expected:
            return _no_place(name, decoder, runtime)
        wanted = expected[name] if grid is None else solved[name]
        if shape != wanted:
            return wrong_shape(name, shape, wanted)
        reason = None if grid is None else why_not_grid(name, shape, grid)
        if reason is not None and grid is not None:
            return f"tensor '{name}': {of_its_type(grid, reason)}"
    missing = next((name for name in expected if name not in kept), None)
    if missing is None:
        return None
    return (
        f"the model has no tensor '{missing}', which config.json asks for; "
        "add it or correct config.json"
    )


def wrong_shape(name: str, found: Shape, expected: Shape) -> str:
    return (
        f"tensor '{name}' has shape {found} but config.json asks for {expected}; "
        "use the config.json that belongs to these weights"
    )


def check_shape(format_name: str, name: str, found: Shape, expected: Shape) -> None:
    """Refuse a tensor of another shape than was planned, before its bytes are written.

    Raises: BadInput.
    """
    if found != expected:
        raise BadInput(f"export '{format_name}': {wrong_shape(name, found, expected)}")


def _no_place(name: str, decoder: Decoder, runtime: str) -> str:
    otherwise = f"only models with {runtime}'s own tensors can be written"
    return (
        f"tensor '{name}' has no place in {runtime}'s {decoder.model_type} with this config; "
        f"{advice_for(name, decoder, otherwise)}"
    )


def why_not_outliers(grid: Grid, container: str) -> str | None:
    """Say why a container that has only codes holds no outlier columns; None for other grids."""
    if not grid.outlier_columns:
        return None
    return (
        f"{container} has no place for outlier columns; "
        "quantize without them, or choose format onnx"
    )


def why_not_table(grid: Grid, container: str) -> str | None:
    """Say why a container whose codes are evenly spaced holds no table; None for other grids."""
    if not grid.table:
        return None
    return (
        f"{container} holds no grid with a table of levels such as {grid.type}; "
        "choose bits and groups, or format gguf"
    )


def of_its_type(grid: Grid, reason: str) -> str:
    """Say in terms of types why a grid of one is not held: bits and groups are not what was chosen.

    A reason says what is wrong, a semicolon, and what to change.
    """
    if not grid.type or grid.table:
        return reason
    wrong, _, _ = reason.partition("; ")
    return f"it is on type {grid.type}: {wrong}; choose another type or bits for it, or format gguf"


def claimed_grids(model: QuantizedModel) -> Shapes:
    """Pair each tensor's grid with the shape that config.json asks for, before weights are read.

    Shapes: of a tensor with a grid that of the matrix which was solved.
    """
    decoder = model.record.decoder
    shapes, solved = decoder.tensor_shapes(), decoder.matrix_shapes()
    found: dict[str, tuple[Shape, Grid | None]] = {}
    for name in model.tensor_names():
        grid = model.grid(name)
        found[name] = ((shapes if grid is None else solved).get(name, ()), grid)
    return found


def planned_grids(model: QuantizedModel) -> Shapes:
    """List shape and grid of every tensor to be written, in the order of the file.

    Shapes: as those of `claimed_grids`.
    """
    claimed = claimed_grids(model)
    return {name: claimed[name] for name in model.record.decoder.tensor_shapes()}
