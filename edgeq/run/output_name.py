"""The name of the directory that a run writes where none was given."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq.sources import HUB_NAME, short_name
from edgeq.sources.demo import DEMO
from edgeq.sources.safetensors_directory import model_name
from edgeq.words import as_text, budget_word, parse_size

UNSAFE = re.compile(r"[^\w.+-]+")  # what shells, URLs or other systems read as something else
LONGEST = 100  # letters of a model's name


def default_output(model: str, settings: Mapping[str, Any], budget: Mapping[str, Any]) -> Path:
    """Name a directory here after a model and its bits, type or size: NAME-4bit, NAME-700MB.

    model is what the user calls it. The same settings give the same name, so that a run which was
    stopped is found again.
    """
    return Path(f"{safe_name(model)}-{kind_of_run(settings, budget)}")


def safe_name(model: str) -> str:
    """Name a model by letters that every system takes in a directory's name."""
    path = os.path.expanduser(model)
    if model == "demo":
        name = short_name(DEMO)
    elif not os.path.lexists(path) and HUB_NAME.fullmatch(model):
        name = short_name(model)
    elif path.lower().endswith(".gguf"):
        name = Path(path).stem
    else:
        name = model_name(Path(path))
    return UNSAFE.sub("-", as_text(name)).strip("-.")[:LONGEST] or "model"


def kind_of_run(settings: Mapping[str, Any], budget: Mapping[str, Any]) -> str:
    """Say in a word what a run makes: 4bit, Q4_K_M, 700MB, 3.4bpw, fits-6GB."""
    limits = dict(budget)
    for name in ("file_size", "fits"):
        if limits.get(name) is not None:
            option = f"--{name.replace('_', '-')}"
            limits[name] = parse_size(str(limits[name]), option)
    if (named := budget_word(limits)) is not None:
        return named
    if settings.get("type") is not None:
        return UNSAFE.sub("", str(settings["type"]))
    return f"{UNSAFE.sub('', str(settings.get('bits', 4)))}bit"
