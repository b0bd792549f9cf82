"""Render chats by a template within limits: what a process of its own runs.

It reads lines of JSON and answers each by one: first the template, then chats. A clock that needs
nothing of the interpreter ends the process with status 1 where one answer takes too long, on every
system, so that even `10 ** 10 ** 10` ends, and also when the asking process is gone.
Linux bounds the memory. macOS and Windows have no such bound for a process to set on itself:
there, repeating by `*`, ranges and the text that is written are bounded, and the clock ends what
grows by other means, such as `center`.
"""

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from edgeq.errors import reason_of

OUT_OF_MEMORY = 2  # an exit status


class OverLimit(Exception):
    """A template that makes more text than it may."""


def serve(seconds: float, *, memory: int, longest: int) -> None:
    """Answer lines of standard input until it ends; the first line is the template.

    memory is in bytes above what the process takes now, longest in characters.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process decides when this one ends
    limit_memory(memory)
    sys.stdout.buffer.write(b"{}\n")  # ready: from here on, time is the template's
    sys.stdout.buffer.flush()
    chats = Chats(longest)
    try:
        with open(os.devnull, "w") as trace:  # the clock writes where it ended the process
            while line := sys.stdin.buffer.readline():
                faulthandler.dump_traceback_later(seconds, exit=True, file=trace)
                answer = chats.answer(line)
                faulthandler.cancel_dump_traceback_later()
                sys.stdout.buffer.write(answer)
                sys.stdout.buffer.flush()
    except MemoryError:  # outside of the template, where an answer cannot be held either
        os._exit(OUT_OF_MEMORY)


def limit_memory(count: int) -> None:
    """Let this process take so many bytes more, where the system holds a process to that."""
    if sys.platform != "linux":
        return
    import resource  # noqa: PLC0415 (Windows has none)

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    wanted = pages * resource.getpagesize() + count
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [bound for bound in (soft, hard, wanted) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))


class Chats:
    """Compiles a template, then renders chats by it; longest bounds the characters of each."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._compiled: jinja2.Template | None = None
        self._tokens: dict[str, str] = {}

    def answer(self, line: bytes) -> bytes:
        """Answer a line of JSON: by the text of a chat, a reason, or the limit that is reached."""
        try:
            found = self._answer(json.loads(line.decode("utf-8", "surrogatepass")))
            answer = json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except OverLimit:
            answer = b'{"limit": "text"}'
        except MemoryError:
            answer = b'{"limit": "memory"}'
        except Exception as error:  # a template can fail in any way
            reason = json.dumps({"reason": reason_of(error)}, ensure_ascii=False)
            answer = reason.encode("utf-8", "surrogatepass")
        return answer + b"\n"

    def _answer(self, asked: Mapping[str, Any]) -> dict[str, str]:
        if self._compiled is None:
            self._tokens = asked["tokens"]
            self._compiled = make_environment(self._longest).from_string(asked["template"])
            return {}
        pieces = self._compiled.generate(
            messages=asked["messages"],
            tools=asked["tools"],
            documents=None,
            add_generation_prompt=asked["answering"],
            **self._tokens,
        )
        written = []
        left = self._longest
        for piece in pieces:
            left -= len(piece)
            if left < 0:
                raise OverLimit
            written.append(piece)
        return {"text": "".join(written)}


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Bounds what `*` repeats, also where the system bounds no memory; longest is in items."""

    intercepted_binops = frozenset("*")
    longest: int

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        """Compute `left * right`."""
        for repeated, count in ((left, right), (right, left)):
            is_sized = isinstance(repeated, (str, bytes, list, tuple))
            if is_sized and isinstance(count, int) and len(repeated) * count > self.longest:
                raise OverLimit
        return super().call_binop(context, operator, left, right)


def make_environment(longest: int) -> jinja2.Environment:
    """Make what transformers renders templates in, within jinja's sandbox.

    `*` repeats up to so many items.
    """
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.longest = longest
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
