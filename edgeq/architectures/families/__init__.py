"""One file per family of models; a file in this folder is all that makes a family known.

Each has MODEL_TYPES, the `model_type`s of configs that it reads, NAMES, what runtimes call it, and
`describe(config) -> Decoder`, or None for a config whose
model the file does not describe. KEYS, if any, gives
Llama's names for config keys that are called otherwise there.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from edgeq.decoder import Decoder

Describe = Callable[[Mapping[str, Any]], Decoder | None]


@cache
def _modules() -> Mapping[str, Any]:
    """Import every module of this folder; gives them by the model types that they read."""
    modules = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]
    return {kind: module for module in modules for kind in module.MODEL_TYPES}


@cache
def families() -> Mapping[str, Describe]:
    """Find every family in this folder, by the model types that it reads."""
    return {kind: module.describe for kind, module in _modules().items()}


def with_common_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give a config whose keys have Llama's names too, where its family has others for them."""
    module = _modules().get(str(config.get("model_type")))
    own: Mapping[str, str] = getattr(module, "KEYS", {})
    named = {common: config[key] for key, common in own.items() if config.get(key) is not None}
    return {**config, **named}


def families_named(runtime: str) -> list[str]:
    """List the model types that a runtime, a field of `RuntimeNames`, has names for."""
    return [kind for kind, module in _modules().items() if getattr(module.NAMES, runtime)]


def silent_keys(model_type: str) -> dict[str, Any]:
    """Give what transformers takes where a config of this type is silent, as its family states it.

    What all families share is not among it.
    """
    module = _modules().get(model_type)
    return dict(getattr(module, "SILENT", {}))
