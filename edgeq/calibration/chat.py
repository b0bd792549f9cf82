"""Turn chat messages into text by a model's own template, as transformers does.

A template is a program of whoever made the model, so it runs in a process of its own
(`edgeq.calibration.chat_process`), one for all chats of a text: only a process can be ended in
the middle of one long operation, on every system.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from edgeq.architectures.special_tokens import named_tokens
from edgeq.errors import reason_of
from edgeq.protocols import TextModel

KEYS = ("messages", "conversations")
"""What data sets call the messages of an item."""
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
"""What ShareGPT calls roles -> the names that templates know."""
NAMED_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
REASONING = ("reasoning_content", "thinking", "reasoning")
READS_PARTS = re.compile(r"""\bfor\s+\w+\s+in\s+\w+(\.content\b|\[['"]content['"]\])""")

SECONDS = 10  # for one chat; the longest that can be read, 16 MiB, takes about 1 s
MEMORY = 2 * 2**30  # bytes above an idle process; the longest chat takes under a quarter
LONGEST_TEXT = 2**26  # characters that one chat becomes: four times the longest chat
STARTING = """
import sys
seconds, memory, longest, *sys.path[:] = sys.argv[1:]
from edgeq.calibration.chat_process import serve
serve(float(seconds), memory=int(memory), longest=int(longest))
"""
"""What the process of a template runs: the packages are those of this process."""


class BadChat(ValueError):
    """Messages that do not become text, with the reason and what helps."""


class ChatTemplate:
    """Renders conversations by a model's template; without a model or a template, refuses them.

    A context: leaving it ends the process in which the template runs.
    """

    def __init__(self, model: TextModel | None) -> None:
        self._model = model
        self._process: subprocess.Popen[bytes] | None = None
        self._reads_parts = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def render(self, item: Mapping[str, Any], *, answering: bool = False) -> str:
        """Write the conversation of an item, with the special tokens of the template.

        answering has it end where the next answer begins.

        Raises: BadChat, also when the model has no template that can be read.
        """
        if self._process is None:
            self._start()
        messages = conversation_of(item, as_parts=self._reads_parts)
        tools = item.get("tools") or None
        answer = self._ask({"messages": messages, "tools": tools, "answering": answering})
        if "text" in answer:
            return str(answer["text"])
        raise BadChat(
            f"the model's chat template refuses the messages ({answer['reason']}); "
            "change them, or leave them out"
        )

    def _start(self) -> None:
        """Start the process, and give it the template.

        Raises: BadChat.
        """
        template = None if self._model is None else self._model.record.template
        if self._model is None or template is None:
            name = "" if self._model is None else f" {self._model.record.name!r}"
            raise BadChat(
                f"model{name} has no chat template to write messages with; "
                'give text, or JSON lines with "text"'
            )
        self._reads_parts = READS_PARTS.search(template) is not None
        tokens = template_tokens(self._model.companions())
        self._process = start_process()
        answer = self._ask({"template": template, "tokens": tokens})
        if "reason" in answer:
            raise BadChat(
                f"the chat template of model {self._model.record.name!r} cannot be read "
                f"({answer['reason']}); fetch it again, or give text without messages"
            )

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Send one line of JSON to the process, and read the one that it answers.

        Raises: BadChat where the process came to its limits.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            line = json.dumps(question, ensure_ascii=False)
        except RecursionError as error:
            raise BadChat("it is too deeply nested; leave it out") from error
        answer = b""
        try:
            self._process.stdin.write(line.encode("utf-8", "surrogatepass") + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:  # it ended while it was written to
            pass
        if not answer.endswith(b"\n"):
            raise BadChat(_ending(self._process.wait()))
        found: dict[str, Any] = json.loads(answer.decode("utf-8", "surrogatepass"))
        if found.get("limit") == "memory":
            raise BadChat(_over(f"more than {MEMORY / 2**30:g} GiB of memory"))
        if found.get("limit") == "text":
            raise BadChat(_over(f"more than {LONGEST_TEXT} characters"))
        return found


def start_process() -> "subprocess.Popen[bytes]":
    """Start the process in which a template runs, and wait until it reads questions.

    Raises: BadChat.
    """
    limits = (str(SECONDS), str(MEMORY), str(LONGEST_TEXT))
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", STARTING, *limits, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise BadChat(_no_process(reason_of(error))) from error
    assert process.stdout is not None
    if not process.stdout.readline():
        status = process.wait()
        process.communicate()
        raise BadChat(_no_process(f"it ended with status {status}"))
    return process


def _no_process(reason: str) -> str:
    return (
        f"Python cannot be started to run the model's chat template ({reason}); "
        "free memory, or give text without messages"
    )


def _ending(status: int) -> str:
    """Say why the process ended; status 1 is that of its clock."""
    if status == 1:
        return _over(f"longer than {SECONDS:g} s")
    return _over(f"more than its process can give (status {status})")


def _over(what: str) -> str:
    return (
        f"the model's chat template takes {what} for one chat; "
        "fetch the model's template again, leave the chat out, or give text without messages"
    )


def conversation_of(item: Mapping[str, Any], *, as_parts: bool = False) -> list[dict[str, Any]]:
    """Read the messages of an item: those of transformers, or of ShareGPT.

    A content of several parts is joined, unless the template reads parts.

    Raises: BadChat.
    """
    messages: Any = next((item[key] for key in KEYS if isinstance(item.get(key), list)), None)
    if not messages:
        raise BadChat("it has no messages; leave it out")
    found = [_message(stated, number) for number, stated in enumerate(messages, 1)]
    if not as_parts:
        for message in found:
            if isinstance(message.get("content"), list):
                message["content"] = "".join(part["text"] for part in message["content"])
    return found


def _message(stated: Any, number: int) -> dict[str, Any]:
    """Read one message, as transformers hands it to a template.

    Raises: BadChat.
    """
    if not isinstance(stated, dict):
        raise BadChat(f'message {number} is no object; write {{"role": ..., "content": ...}}')
    message = {key: value for key, value in stated.items() if value is not None}
    if "role" not in message and "from" in message:
        role = message.pop("from")
        message["role"] = ROLES.get(role, role) if isinstance(role, str) else role
    if "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    if not isinstance(message.get("role"), str):
        raise BadChat(f'message {number} has no "role"; write such as "user" or "assistant"')
    if "content" in message:
        message["content"] = _content(message["content"], number)
    elif "tool_calls" not in message:
        raise BadChat(f'message {number} has no "content"; leave it out, or give it some')
    reasoning = next((message[key] for key in REASONING if key in message), None)
    if reasoning is not None:  # some templates read the one name, some the other
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _content(content: Any, number: int) -> str | list[dict[str, Any]]:
    """Check a content, which is text or a list of parts with text.

    Raises: BadChat.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        kind = type(content).__name__
        raise BadChat(f"the content of message {number} is a JSON {kind}; it must be text")
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            named = part.get("type") if isinstance(part, dict) else part
            raise BadChat(f"message {number} has a part {named!r} without text; leave it out")
    return parts


def template_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """Read the special tokens that a tokenizer's files name: what templates call bos_token."""
    named = {kind: named_tokens(files, kind) for kind in NAMED_KINDS}
    return {f"{kind}_token": tokens[0] for kind, tokens in named.items() if tokens}


def is_chat(item: Mapping[str, Any]) -> bool:
    """Say whether an item holds messages."""
    return any(isinstance(item.get(key), list) for key in KEYS)
