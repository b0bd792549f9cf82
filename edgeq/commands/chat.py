"""`edgeq chat`: hold a conversation with a model in the terminal.

Heavy imports stand inside of the command.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from edgeq.commands.choices import MODEL
from edgeq.commands.plain_text import visible_line
from edgeq.commands.writing import SYSTEM_OPTION, choosing_options, ending_words, write_pieces
from edgeq.errors import BadInput, EdgeqError, reason_of

if TYPE_CHECKING:
    from edgeq.talking import Conversation, Reply, Talker

HELP = (
    "/reset starts over, /system TEXT starts over with a system message, /exit or Ctrl-D ends; "
    "Ctrl-C stops an answer"
)
PROMPT = "> "


@click.command(name="chat", short_help="Talk with TARGET in the terminal.")
@click.argument("target", type=MODEL)
@SYSTEM_OPTION
@choosing_options(most_tokens=1024, temperature=0.7, top_p=0.9)
def chat_command(
    target: str,
    system: str | None,
    runtime: str | None,
    backend: str,
    max_tokens: int,
    **choosing: Any,
) -> None:
    """Talk with TARGET in the terminal, in the runtime that it is for.

    TARGET is a checkpoint, a model, a GGUF file or the directory of an export; it needs a chat
    template. /help lists what can be typed beside messages. Where standard input is no terminal,
    each of its lines is a message.

    \b
    Example:
      edgeq chat smollm2/gguf --system "Answer in one sentence."
    """
    from edgeq.talking import Conversation, open_talker  # noqa: PLC0415
    from edgeq.talking.choosing import check_choice  # noqa: PLC0415

    check_choice(temperature=choosing["temperature"], top_p=choosing["top_p"])
    if sys.stdin is None:  # it was closed before edgeq started
        raise BadInput("standard input is closed; start it in a terminal, or pipe messages in")
    with open_talker(target, runtime=runtime, backend=backend, chat=True) as talker:
        conversation = Conversation(talker, system=system, most_tokens=max_tokens, **choosing)
        session = Session(talker, conversation, is_terminal=sys.stdin.isatty())
        if session.is_terminal:
            say(f"{talker.name} in {talker.library}; {HELP}")
            with suppress(ImportError):  # Windows has none
                import readline  # noqa: F401, PLC0415 (input edits lines with it from here on)
            with session.stopping_answers():
                session.run()
        else:
            session.run()


class Session:
    """One conversation on the screen; at a terminal, Ctrl-C stops the answer that is written."""

    def __init__(
        self, talker: "Talker", conversation: "Conversation", *, is_terminal: bool
    ) -> None:
        self.is_terminal = is_terminal
        self._talker, self._conversation = talker, conversation
        self._reply: Reply | None = None

    def run(self) -> None:
        """Answer line by line until the input ends."""
        for line in self._lines():
            command, _, rest = line.partition(" ")
            if command in ("/exit", "/quit"):
                return
            if command.startswith("/"):
                self._obey(command, rest.strip())
            elif line:
                self._answer(line)

    @contextmanager
    def stopping_answers(self) -> Iterator[None]:
        """Have Ctrl-C stop an answer after its token, or raise KeyboardInterrupt at once.

        At once means between answers, and where an answer was asked to stop already.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only that one may handle signals
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(_: int, __: FrameType | None) -> None:
            reply, self._reply = self._reply, None
            if reply is None:
                raise KeyboardInterrupt
            reply.stop()

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _lines(self) -> Iterator[str]:
        """Read messages, without blanks around them.

        Raises: BadInput for what is no UTF-8 text.
        """
        while True:
            try:
                line = input(PROMPT) if self.is_terminal else sys.stdin.readline()
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                click.echo()
                say("Ctrl-D or /exit ends")
                continue
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"standard input is no UTF-8 text ({reason_of(error)}); write it as UTF-8"
                ) from error
            if not line and not self.is_terminal:
                return
            yield line.strip()

    def _obey(self, command: str, rest: str) -> None:
        if command == "/reset":
            self._conversation.start_over()
            say("started over")
        elif command == "/system":
            self._conversation.start_over(system=rest)
            say("started over with this system message" if rest else "started over without one")
        else:
            say(HELP if command == "/help" else f"{visible_line(command)} is no command; {HELP}")

    def _answer(self, line: str) -> None:
        """Write the answer to a message; what cannot be answered is said, and the rest goes on."""
        written: list[str] = []
        try:
            reply = self._conversation.ask(line)
            if self._conversation.forgotten:
                say(
                    f"the oldest {self._conversation.forgotten} messages are forgotten: "
                    f"the model reads {self._talker.context} tokens"
                )
            self._reply = reply
            write_pieces(noted(reply, written))
            self._say_ending(reply)
        except EdgeqError as error:
            if not self.is_terminal:
                raise
            say(f"edgeq: {visible_line(str(error))}")
        except KeyboardInterrupt:
            say("stopped")
        finally:
            self._reply = None
        if written:
            self._conversation.answered("".join(written))

    def _say_ending(self, reply: "Reply") -> None:
        words = ending_words(reply, self._talker.context)
        if words is not None:
            say(words)


def noted(pieces: Iterator[str], written: list[str]) -> Iterator[str]:
    """Pass pieces on, and keep them, also where they are cut off by an exception."""
    for piece in pieces:
        written.append(piece)
        yield piece


def say(text: str) -> None:
    """Write a line that is not the model's on standard error."""
    click.echo(text, err=True)
