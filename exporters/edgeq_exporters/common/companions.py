"""Write the files beside the weights: all ends of text and the chat template reach every runtime.

What they say was read once, into the model's record.
"""

from collections.abc import Iterator, Mapping

from edgeq.architectures.chat_template import TEMPLATE_FILE
from edgeq.architectures.json_objects import json_object
from edgeq.architectures.special_tokens import GENERATION_FILE
from edgeq.architectures.tokenizer_file import SETTINGS_FILE
from edgeq.decoder import ModelRecord
from edgeq.files.json_files import json_bytes
from edgeq.files.ownership import LEGAL_FILE

Files = Mapping[str, bytes]


def exported_companions(record: ModelRecord, companions: Files) -> dict[str, bytes]:
    """Give the files that go beside exported weights, by name.

    generation_config.json has all ends of text, and a chat template that only an older file holds
    gets the file in which runtimes look for it. Files that say so already keep their bytes.
    """
    files = dict(companions)
    ends = record.settled.get("eos_token_id")
    generation = json_object(companions, GENERATION_FILE)
    if ends is not None and generation.get("eos_token_id") != ends:
        files[GENERATION_FILE] = json_bytes(generation | {"eos_token_id": ends})
    settings = json_object(companions, SETTINGS_FILE)
    if record.template is not None and TEMPLATE_FILE not in files:
        if settings.get("chat_template") is None:
            files[TEMPLATE_FILE] = record.template.encode("utf-8")
    return files


def legal_companions(companions: Files) -> dict[str, bytes]:
    """Pick the files that say under which terms a model is given."""
    return {name: data for name, data in companions.items() if LEGAL_FILE.fullmatch(name)}


def window_notes(record: ModelRecord, runtime: str) -> Iterator[str]:
    """Note that the context of a file is cut: the runtime attends to everything in it."""
    window = record.decoder.window
    if window is not None:
        yield (
            f"the context in the file is cut to {window} tokens, the model's window: "
            f"beyond it {runtime}, which attends to everything, would compute something else"
        )
