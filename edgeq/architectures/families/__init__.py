"""One file per family of models; a file in this folder is all that makes a family known.

Each has MODEL_TYPES, the `model_type`s of configs that it reads, and `describe(config) -> Decoder`.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from edgeq.decoder import Decoder

Describe = Callable[[Mapping[str, Any]], Decoder]


@cache
def families() -> Mapping[str, Describe]:
    """Find every family in this folder, by the model types that it reads."""
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    return {kind: module.describe for module in modules for kind in module.MODEL_TYPES}
