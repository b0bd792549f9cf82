"""edgeq: quantize language models for laptops and phones; solve once, export everywhere."""

from typing import TYPE_CHECKING, Any

from edgeq.errors import BadInput, EdgeqError, NotInstalled, NotPositiveDefinite, UnsupportedModel
from edgeq.version import __version__

if TYPE_CHECKING:
    from edgeq.types import Grid, LayerStatistics, QuantizedLinear

__all__ = [
    "BadInput",
    "EdgeqError",
    "Grid",
    "LayerStatistics",
    "NotInstalled",
    "NotPositiveDefinite",
    "QuantizedLinear",
    "UnsupportedModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import types when they are asked for.

    They come with NumPy, which takes longer to import than --help may take.
    """
    if name not in __all__:
        raise AttributeError(f"module 'edgeq' has no attribute {name!r}")
    from edgeq import types  # noqa: PLC0415

    return getattr(types, name)
