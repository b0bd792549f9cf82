"""Keep paths of the machine that a model was saved or quantized on out of what is given to others.

Libraries save into configs where they found a model, and people write paths into cards.
"""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

PATH_KEYS = ("name_or_path", "_file", "_path", "_dir", "_folder")
"""Ends of the keys under which configs name files."""


def is_local(text: str) -> bool:
    """Say whether a text is a path that means something on one machine alone, and tells of it.

    Such are absolute paths and those that climb out, by the rules of any operating system.
    """
    paths = (PurePosixPath(text), PureWindowsPath(text))
    return text.startswith(("~", "file:")) or any(
        path.root or path.drive or ".." in path.parts for path in paths
    )


def without_local_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, and those of the parts of a model in them, without keys of such paths."""
    return {
        key: _without(value) if isinstance(value, dict) else value
        for key, value in _without(settings).items()
    }


def file_without_local_paths(data: bytes) -> bytes:
    """Return a JSON file of settings without such keys; a file without them stays as it is."""
    try:
        stated = json.loads(data)
    except (ValueError, RecursionError):  # who reads it refuses it
        return data
    if not isinstance(stated, dict):
        return data
    kept = without_local_paths(stated)
    return data if kept == stated else json.dumps(kept, indent=2).encode()


def _without(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if not (key.endswith(PATH_KEYS) and isinstance(value, str) and is_local(value))
    }
