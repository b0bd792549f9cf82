"""Find the chat template of a model, in whichever of its files it lies."""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.json_objects import json_object
from edgeq.architectures.tokenizer_file import SETTINGS_FILE
from edgeq.errors import BadInput, reason_of

TEMPLATE_FILE = "chat_template.jinja"
OLDER_FILE = "chat_template.json"

Files = Mapping[str, bytes]


def read_template(files: Files) -> str | None:
    """Read the default chat template, in Jinja; None for a model without one.

    A file of its own wins over tokenizer_config.json, as in transformers, which reads it in text
    mode: line ends of Windows and of old Macs become newlines.

    Raises: BadInput for a template that is no text.
    """
    if TEMPLATE_FILE in files:
        try:
            template = files[TEMPLATE_FILE].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _malformed(TEMPLATE_FILE, reason_of(error)) from error
        return template.replace("\r\n", "\n").replace("\r", "\n")
    for name in (SETTINGS_FILE, OLDER_FILE):
        template = default_of(json_object(files, name).get("chat_template"))
        if template is not None and not isinstance(template, str):
            raise _malformed(name, f"it is a {type(template).__name__}")
        if template is not None:
            return template
    return None


def default_of(template: Any) -> Any:
    """Choose the default of several named templates."""
    if not isinstance(template, list):
        return template
    whole = all(isinstance(named, dict) and "template" in named for named in template)
    if not whole:
        return {}
    defaults = (named["template"] for named in template if named.get("name") == "default")
    return next(defaults, None)


def _malformed(name: str, found: str) -> BadInput:
    return BadInput(
        f"the chat template in {name} is malformed ({found}); "
        "it must be UTF-8 text, or a list of objects with name and template"
    )
