"""One linear layer from NumPy arrays: codes and scales for a weight and its inputs."""

from __future__ import annotations  # help() writes npt.ArrayLike, not what it stands for

from dataclasses import dataclass, fields
from typing import Any, Unpack

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgeq.api.arguments import check_names, python_words, text_of
from edgeq.api.documenting import documented
from edgeq.api.settings import LayerSettings, checked_settings
from edgeq.errors import BadInput, NotInstalled
from edgeq.protocols import Backend
from edgeq.recipe.recipe import Recipe, make_recipe
from edgeq.recipe.type_names import BASES
from edgeq.registry import load_backend
from edgeq.solving.one_layer import output_error, solve_arrays
from edgeq.solving.report import LayerReport
from edgeq.types import NumpyArray, QuantizedLinear
from edgeq.words import describe_grid

ARRAYS = ("W", "X", "X_quantized", "backend")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SolvedLayer(QuantizedLinear):
    """A `QuantizedLinear` with how it came out.

    error is what it changes of the layer's output on the inputs that were given, as a share of the
    output's energy: ||X W.T - X_quantized Q.T||^2 / ||X W.T||^2, with Q = dequantized(). Without
    inputs it is None. report has the loss after each stage of the solve. backend computed it.
    """

    error: float | None = None
    report: LayerReport | None = None
    backend: str = ""

    def __repr__(self) -> str:
        rows, columns = self.codes.shape
        error = "" if self.error is None else f", error {self.error:.3g}"
        return f"<SolvedLayer {rows} x {columns}: {describe_grid(self.grid)}{error}>"


@documented(LayerSettings)
@python_words()
def quantize_layer(
    W: npt.ArrayLike,
    X: npt.ArrayLike | None = None,
    *,
    X_quantized: npt.ArrayLike | None = None,
    backend: str = "auto",
    **settings: Unpack[LayerSettings],
) -> SolvedLayer:
    """Quantize the weight of one linear layer, whose output is X @ W.T.

    It is what a run does for each layer. Nothing is read or written.

    Example:
        layer = edgeq.quantize_layer(W, X, bits=4, group_size=64)
        print(layer.error, layer.codes.shape, layer.scales.shape)
        Y = X @ layer.dequantized().T

    Args:
        W: The weight, outputs x inputs: real numbers, all finite.
        X: Inputs of the layer, tokens x inputs, or windows x tokens x inputs; many more tokens than
            inputs are best. Without them W is rounded to the nearest codes on searched scales, as
            solver="rtn" asks for.
        X_quantized: The same inputs as the layer gets them behind layers that are quantized
            already; the layer then makes up for the difference (propagation_strength). Of the
            shape of X.
        backend: Compute with "auto", "cuda", "cpu", "mps", "mlx" or "reference" (NumPy in float64,
            always there); "auto" is reference where neither torch nor MLX is installed.
        KEYWORDS

    Returns:
        Codes (outputs x inputs, uint8) with scales and offsets (outputs x groups, float32).

    Raises:
        BadInput: An array or setting that cannot be worked with.
        NotInstalled: A backend whose extra is missing.
        NotPositiveDefinite: Inputs that cannot be factored even with raised damping.
        TypeError: A setting that is not known, with the nearest name.
    """
    check_names("quantize_layer", settings, {*LayerSettings.__annotations__, *ARRAYS})
    recipe = layer_recipe(dict(settings), calibrated=X is not None)
    weight = matrix_of("W", W, (2,))
    inputs = inputs_of(weight, X, X_quantized)
    computing = backend_of(text_of("backend", backend), exact=recipe.exact)
    with computing.working():
        solved, report = solve_arrays(weight, inputs, recipe, computing)
    error = None
    if inputs is not None:
        error = output_error(weight, solved.dequantized(), inputs, computing)
    values = {each.name: getattr(solved, each.name) for each in fields(solved)}
    return SolvedLayer(**values, error=error, report=report, backend=computing.name)


def layer_recipe(settings: dict[str, Any], *, calibrated: bool) -> Recipe:
    """Make the recipe of one layer, which without inputs can only be rounded.

    Raises: BadInput.
    """
    chosen = checked_settings(settings)
    if chosen.get("type") in BASES:
        base = BASES[chosen["type"]]
        raise BadInput(
            f"type = {chosen['type']!r}: a mix chooses types for a whole model; "
            f"give a type, such as {base}"
        )
    if chosen.get("zeros") == "asymmetric":
        chosen["zeros"] = "integer"
    if not calibrated:
        if chosen.get("solver", "rtn") != "rtn":
            raise BadInput(
                f"solver = {chosen['solver']!r} needs the inputs of the layer; "
                'give X, or choose solver="rtn"'
            )
        chosen["solver"] = "rtn"
    return make_recipe(chosen)


def inputs_of(
    W: NumpyArray, X: object, X_quantized: object
) -> tuple[NumpyArray | None, NumpyArray] | None:
    """Read the inputs of both streams, the second of which is the first where only that is given.

    Raises: BadInput.
    """
    if X is None:
        if X_quantized is not None:
            raise BadInput("X_quantized without X: give X too, the inputs of the original model")
        return None
    x = matrix_of("X", X, (2, 3))
    if x.shape[-1] != W.shape[1]:
        raise BadInput(
            f"X has shape {x.shape}, W {W.shape}: expected the last axis of X to be the "
            f"{W.shape[1]} inputs of W (outputs x inputs); transpose what lies the other way"
        )
    if X_quantized is None:
        return None, x
    x_hat = matrix_of("X_quantized", X_quantized, (2, 3))
    if x_hat.shape != x.shape:
        raise BadInput(
            f"X_quantized has shape {x_hat.shape}, X {x.shape}: expected the same tokens in both"
        )
    return x, x_hat


def matrix_of(name: str, value: object, axes: tuple[int, ...]) -> NumpyArray:
    """Read an array of real numbers, in float32 or, where it is that, in float64.

    Raises: BadInput for other shapes and types, for NaN and infinity.
    """
    try:
        array = np.asarray(value)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # of frameworks whose arrays are elsewhere
        raise BadInput(f"{name} cannot be read as a NumPy array ({error}); convert it") from error
    kinds = " or ".join(f"{count} axes" for count in axes)
    if array.ndim not in axes or not array.size:
        raise BadInput(f"{name} has shape {array.shape}: expected {kinds}, none of them empty")
    is_real = array.dtype.kind in "fiu" or array.dtype == ml_dtypes.bfloat16
    if not is_real:
        raise BadInput(f"{name} is of type {array.dtype}: expected real numbers, such as float32")
    wide = np.float64 if array.dtype in (np.float64, np.int64, np.uint64) else np.float32
    found = np.ascontiguousarray(array, dtype=wide)
    if not np.isfinite(found).all():
        raise BadInput(f"{name} holds NaN or infinity: expected finite numbers")
    return found


def backend_of(name: str, *, exact: bool) -> Backend:
    """Load a backend; "auto" falls to the one that needs NumPy alone where no other is there.

    Raises: BadInput, NotInstalled.
    """
    try:
        return load_backend(name, exact=exact)
    except NotInstalled:
        if name != "auto":
            raise
        return load_backend("reference")
