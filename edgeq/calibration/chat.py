"""Turn chat messages into text by a model's own template, as transformers does."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

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


class BadChat(ValueError):
    """Messages that do not become text, with the reason and what helps."""


class ChatTemplate:
    """Renders conversations by a model's template; without a model or a template, refuses them."""

    def __init__(self, model: TextModel | None) -> None:
        self._model = model
        self._compiled: jinja2.Template | None = None
        self._tokens: dict[str, str] = {}
        self._reads_parts = False

    def render(self, item: Mapping[str, Any]) -> str:
        """Write the conversation of an item, with the special tokens of the template.

        Raises: BadChat, also when the model has no template that can be read.
        """
        if self._compiled is None:
            self._compiled = self._compile()
        messages = conversation_of(item, as_parts=self._reads_parts)
        tools = item.get("tools") or None
        try:
            return self._compiled.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=False,
                **self._tokens,
            )
        except Exception as error:  # a template can fail in any way
            raise BadChat(
                f"the model's chat template refuses the messages ({reason_of(error)}); "
                "change them, or leave them out"
            ) from error

    def _compile(self) -> jinja2.Template:
        template = None if self._model is None else self._model.record.template
        if self._model is None or template is None:
            name = "" if self._model is None else f" {self._model.record.name!r}"
            raise BadChat(
                f"model{name} has no chat template to write messages with; "
                'give text, or JSON lines with "text"'
            )
        self._tokens = template_tokens(self._model.companions())
        self._reads_parts = READS_PARTS.search(template) is not None
        try:
            return make_environment().from_string(template)
        except Exception as error:  # a damaged template can fail in any way
            raise BadChat(
                f"the chat template of model {self._model.record.name!r} cannot be read "
                f"({reason_of(error)}); fetch it again, or give text without messages"
            ) from error


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


def make_environment() -> jinja2.Environment:
    """Make what transformers renders templates in.

    Templates come with models, so they run in jinja's sandbox.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _format_now
    environment.globals["dict"] = _PlainDictionary()
    environment.globals["namespace"] = _Namespace
    return environment


class GenerationTag(jinja2.ext.Extension):
    """Reads `{% generation %}`, which marks what the assistant says and writes nothing itself."""

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_write", [])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _write(self, caller: jinja2.runtime.Macro) -> str:
        return str(caller())


class _PlainDictionary:
    """Stands for `dict` in templates, without what leads from the class to Python's insides."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """Refuses names that lead to Python's insides."""

    def __init__(*arguments: Any, **named: Any) -> None:  # a template may name one self
        self, *stated = arguments
        values = dict(*stated, **named)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _format_now(form: str) -> str:
    return datetime.now().strftime(form)


def is_chat(item: Mapping[str, Any]) -> bool:
    """Say whether an item holds messages."""
    return any(isinstance(item.get(key), list) for key in KEYS)
