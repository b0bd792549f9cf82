"""edgeq: quantize language models for laptops and phones; solve once, export everywhere.

The functions do what the commands of the same names do. They print nothing and install no handlers
of signals; how far they are is told to a callback, and what they refuse is an `EdgeqError`.

    import edgeq

    run = edgeq.quantize("demo", "smollm2", export="gguf", evaluate=True)
    print(run.sizes, run.quality.kl)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgeq.errors import BadInput, EdgeqError, NotInstalled, NotPositiveDefinite, UnsupportedModel
from edgeq.version import __version__

if TYPE_CHECKING:
    from edgeq.api.evaluating import evaluate
    from edgeq.api.exporting import export, formats, verify
    from edgeq.api.layer import SolvedLayer, quantize_layer
    from edgeq.api.opening import Model, open
    from edgeq.api.progress import Progress
    from edgeq.api.quantizing import allocate, plan, quantize
    from edgeq.api.results import (
        Allocation,
        Comparison,
        ExportResult,
        FormatRow,
        Plan,
        Quality,
        RunResult,
        TuneResult,
        Verification,
    )
    from edgeq.api.settings import FormatOptions, LayerSettings, RunSettings
    from edgeq.api.talking import generate
    from edgeq.api.tuning import tune
    from edgeq.types import Grid, LayerStatistics, QuantizedLinear

__all__ = [
    "Allocation",
    "BadInput",
    "Comparison",
    "EdgeqError",
    "ExportResult",
    "FormatOptions",
    "FormatRow",
    "Grid",
    "LayerSettings",
    "LayerStatistics",
    "Model",
    "NotInstalled",
    "NotPositiveDefinite",
    "Plan",
    "Progress",
    "Quality",
    "QuantizedLinear",
    "RunResult",
    "RunSettings",
    "SolvedLayer",
    "TuneResult",
    "UnsupportedModel",
    "Verification",
    "__version__",
    "allocate",
    "evaluate",
    "export",
    "formats",
    "generate",
    "open",
    "plan",
    "quantize",
    "quantize_layer",
    "tune",
    "verify",
]

_MEMBERS = {
    "edgeq.api.evaluating": ("evaluate",),
    "edgeq.api.exporting": ("export", "formats", "verify"),
    "edgeq.api.layer": ("SolvedLayer", "quantize_layer"),
    "edgeq.api.opening": ("Model", "open"),
    "edgeq.api.progress": ("Progress",),
    "edgeq.api.quantizing": ("allocate", "plan", "quantize"),
    "edgeq.api.results": (
        "Allocation",
        "Comparison",
        "ExportResult",
        "FormatRow",
        "Plan",
        "Quality",
        "RunResult",
        "TuneResult",
        "Verification",
    ),
    "edgeq.api.settings": ("FormatOptions", "LayerSettings", "RunSettings"),
    "edgeq.api.talking": ("generate",),
    "edgeq.api.tuning": ("tune",),
    "edgeq.types": ("Grid", "LayerStatistics", "QuantizedLinear"),
}
"""Where the members lie that are imported when they are asked for."""


def __getattr__(name: str) -> Any:
    """Import what is asked for, and keep it.

    It comes with NumPy, which takes longer to import than --help may take.
    """
    for module, members in _MEMBERS.items():
        if name in members:
            found = getattr(import_module(module), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'edgeq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
