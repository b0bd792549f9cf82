"""Name the calibration texts that ship with edgeq, read them, and mix their kinds by share.

Where they come from is stated in edgeq/data/README.md.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from edgeq.calibration.chat import BadChat, ChatTemplate
from edgeq.calibration.reading import BETWEEN_TEXTS, CALIBRATION_TEXT, read_text
from edgeq.errors import BadInput
from edgeq.protocols import TextModel

DEFAULT, MIX, DIALOGUE = "default", "mix", "dialogue"
"""The mix is also what is taken where no text is named; only then are kinds of it left out."""
KINDS: Mapping[str, str] = {
    "speeches": CALIBRATION_TEXT,
    "prose": "mix/prose.txt",
    "encyclopedia": "mix/encyclopedia.txt",
    DIALOGUE: "mix/dialogue.jsonl",
    "code": "mix/code.txt",
    "german": "mix/german.txt",
    "french": "mix/french.txt",
    "spanish": "mix/spanish.txt",
    "russian": "mix/russian.txt",
    "chinese": "mix/chinese.txt",
}
"""Files in edgeq/data by the kind of their text."""
SHARES: Mapping[str, float] = {
    "speeches": 2,
    "prose": 2,
    "encyclopedia": 2,
    DIALOGUE: 2,
    "code": 2,
    "german": 1,
    "french": 1,
    "spanish": 1,
    "russian": 1,
    "chinese": 1,
}
"""What the mix takes of each kind."""
SPEAKERS = {"user": "User", "assistant": "Assistant"}
"""What dialogue says before a message where the model has no chat template."""


def mixed_shares(share: float, kinds: Collection[str]) -> Iterator[tuple[str, float]]:
    """Divide the share of the mix among those of its kinds that it has."""
    parts = {kind: part for kind, part in SHARES.items() if kind in kinds}
    total = sum(parts.values())
    for kind, part in parts.items():
        yield kind, share * part / total


def read_shipped(kind: str, model: TextModel | None) -> str:
    """Read a text that ships with edgeq and was named.

    Raises: BadInput when the chat template of the model refuses dialogue.
    """
    try:
        return read_kind(kind, model)
    except BadChat as error:
        others = " and ".join(f"--calibration {name}" for name in ("prose", "code"))
        raise BadInput(
            f"--calibration {kind}: {error}; or name kinds without it, such as {others}"
        ) from error


def read_kind(kind: str, model: TextModel | None) -> str:
    """Read a text that ships with edgeq; dialogue is written by the chat template of the model.

    Without a template each message follows its speaker.

    Raises: BadChat when the template refuses the messages.
    """
    content = read_text(None, default=KINDS[kind])
    if kind != DIALOGUE:
        return content
    chats = [json.loads(line) for line in content.splitlines()]
    if model is None or model.record.template is None:
        return BETWEEN_TEXTS.join(map(plain_chat, chats)) + "\n"
    with ChatTemplate(model) as template:
        return "".join(map(template.render, chats))


def plain_chat(chat: Mapping[str, Any]) -> str:
    """Write a conversation without a template."""
    return "\n\n".join(
        f"{SPEAKERS[message['role']]}: {message['content']}" for message in chat["messages"]
    )
