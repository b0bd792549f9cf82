"""Write the Modelfile from which Ollama makes a model of a GGUF file.

It has no TEMPLATE: Ollama goes by the chat template in the file, and its own language of templates
is another than that one's. A model without a template continues what it is given.
"""

from collections.abc import Iterator, Mapping

from edgeq.architectures.json_objects import json_object
from edgeq.architectures.tokenizer_file import TOKENIZER_FILE
from edgeq.decoder import ModelRecord
from edgeq_exporters.gguf.llama_cpp import context_of

USUAL_CONTEXT = 4096  # tokens: more would take a phone's memory without being asked for


def modelfile(record: ModelRecord, companions: Mapping[str, bytes], file: str) -> bytes:
    """Make the lines of a Modelfile for a file beside it: context, ends of text, licence."""
    lines = [
        f"FROM ./{file}",
        f"PARAMETER num_ctx {min(context_of(record.decoder) or USUAL_CONTEXT, USUAL_CONTEXT)}",
        *(f"PARAMETER stop {quoted(end)}" for end in ends_of_text(record, companions)),
    ]
    if record.origin.license is not None:
        lines.append(f"LICENSE {quoted(record.origin.license_name or record.origin.license)}")
    return ("\n".join(lines) + "\n").encode()


def ends_of_text(record: ModelRecord, companions: Mapping[str, bytes]) -> Iterator[str]:
    """Write the tokens that end a text or a turn; those that a Modelfile cannot hold are left out.

    llama.cpp stops at each of them by its id as well.
    """
    added = json_object(companions, TOKENIZER_FILE).get("added_tokens")
    listed = [token for token in added or () if isinstance(token, dict)]
    content = {token.get("id"): token.get("content") for token in listed}
    for number in record.tokens.end:
        text = content.get(number)
        if isinstance(text, str) and text.strip() and text.isprintable() and '"' not in text:
            yield text


def quoted(text: str) -> str:
    """Put a text into quotes; Ollama's reader knows no escapes in them."""
    return '"' + text.replace('"', "'") + '"'
