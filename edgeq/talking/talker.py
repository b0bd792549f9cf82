"""Have a model write: continue a text, or answer messages by its chat template, token by token."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from edgeq.calibration.chat import BadChat, ChatTemplate
from edgeq.errors import BadInput, EdgeqError, reason_of
from edgeq.talking.choosing import Choice
from edgeq.talking.kept import KeptText
from edgeq.talking.speakers import Speaker, Texts
from edgeq.talking.text_stream import TextStream
from edgeq.types import NumpyArray

MOST_TOKENS = 256  # of an answer, unless more are asked for
EXPECTED = 1024  # tokens of an answer for which there is room at once, if it may have more

Message = Mapping[str, str]
Stopped = Literal["end", "max-tokens", "context", "interrupted"]


@dataclass(frozen=True, slots=True)
class SizedTexts:
    """A model as the template of its chats is given it."""

    record: Texts

    def companions(self) -> Mapping[str, bytes]:
        return self.record.companions()


class Talker:
    """An open model that writes; a context, which lets go of the model at its end."""

    def __init__(self, speaker: Speaker, texts: Texts, runtime: str) -> None:
        self._speaker, self._texts = speaker, texts
        bounds = [bound for bound in (texts.context, speaker.longest) if bound is not None]
        self.context = min(bounds, default=None)
        self._kept = KeptText(speaker, self.context)
        self._template = ChatTemplate(SizedTexts(texts))
        self.runtime = runtime
        self.library = speaker.library
        self.name = texts.name
        self.has_template = texts.template is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._template.__exit__(kind, error, trace)
        self._speaker.close()

    def tokens_of(self, messages: Sequence[Message] | str, *, chat: bool = False) -> list[int]:
        """Turn what is asked into the tokens behind which the model writes.

        Messages go through the template, and a text that is to be continued does not; with chat
        the text is one message of the user's.

        Raises: BadInput for what has no tokens, or more than the model reads.
        """
        ids = self._encoded(messages, chat=chat)
        check_prompt(ids, self._texts, self.context)
        return ids

    def count(self, messages: Sequence[Message]) -> int:
        """Count the tokens of messages, however many the model reads.

        Raises: BadInput.
        """
        return len(self._encoded(messages))

    def reply(
        self,
        messages: Sequence[Message] | str,
        *,
        chat: bool = False,
        most_tokens: int = MOST_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> "Reply":
        """Start an answer to messages, or the continuation of a text; see `tokens_of`.

        Raises: BadInput before anything is computed; pieces of the answer may raise it too.
        """
        choice = Choice(temperature=temperature, top_p=top_p, seed=seed)
        ids = self.tokens_of(messages, chat=chat)
        return Reply(self, ids, choice, most_tokens, trimmed=chat or not isinstance(messages, str))

    def predict(self, ids: Sequence[int], *, room: int) -> NumpyArray:
        """Predict the token behind others. Shapes: gives (vocabulary,).

        Raises: BadInput when the runtime fails.
        """
        with failing_in(self.library):
            return self._kept.predict(ids, room=room)

    def is_end(self, token: int) -> bool:
        """Say whether a token ends a text or a turn."""
        return self._texts.is_end(token)

    def decode(self, ids: Sequence[int]) -> str:
        """Turn tokens into text without special ones."""
        return self._texts.decode(ids)

    def _encoded(self, messages: Sequence[Message] | str, *, chat: bool = False) -> list[int]:
        if chat and isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        is_text = isinstance(messages, str)
        text = messages if isinstance(messages, str) else self._rendered(messages)
        check_text(text)
        return self._texts.encode(text, begin=is_text)

    def _rendered(self, messages: Sequence[Message]) -> str:
        for message in messages:
            check_text(message.get("content", ""))
        try:
            return self._template.render({"messages": list(messages)}, answering=True)
        except BadChat as error:
            raise BadInput(str(error)) from error


class Reply(Iterator[str]):
    """The pieces of one answer as they are written, and how it went.

    An answer to messages begins without blanks, which belong to the template.
    stopped says why it ended: at an end of the model's own, after most_tokens, at the context's
    end, or because `stop` was called; None before. seconds count from the start of reading.
    """

    def __init__(
        self, talker: Talker, prompt: list[int], choice: Choice, most_tokens: int, *, trimmed: bool
    ) -> None:
        self.prompt_tokens = len(prompt)
        self.ids: list[int] = []
        self.seconds = 0.0
        self.stopped: Stopped | None = None
        self._asked_to_stop = False
        self._pieces = self._write(talker, prompt, choice, most_tokens)
        self._trimmed = trimmed

    def __next__(self) -> str:
        piece = ""
        while not piece:
            piece = next(self._pieces)
            if self._trimmed:
                piece = piece.lstrip()
                self._trimmed = not piece
        return piece

    @property
    def tokens(self) -> int:
        """Count the tokens that are written."""
        return len(self.ids)

    @property
    def tokens_per_second(self) -> float:
        """Give the tokens written by the time of the whole answer, 0 before there is any."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def stop(self) -> None:
        """Have the answer end after the token that is being computed."""
        self._asked_to_stop = True

    def _write(
        self, talker: Talker, prompt: list[int], choice: Choice, most_tokens: int
    ) -> Iterator[str]:
        started = time.perf_counter()
        stream = TextStream(talker.decode, prompt)
        while self.stopped is None:
            ids = [*prompt, *self.ids]
            room = len(prompt) + min(most_tokens, max(EXPECTED, len(self.ids)))
            token = choice.token(talker.predict(ids, room=room))
            self.seconds = time.perf_counter() - started
            self.stopped = self._why_stopped(talker, ids, token, most_tokens)
            if self.stopped != "end":
                self.ids.append(token)
                yield stream.push(token)
        yield stream.rest()

    def _why_stopped(
        self, talker: Talker, ids: list[int], token: int, most_tokens: int
    ) -> Stopped | None:
        """Say why nothing is written behind a token, or None."""
        if talker.is_end(token):
            return "end"
        if self._asked_to_stop:
            return "interrupted"
        if len(self.ids) + 1 >= most_tokens:
            return "max-tokens"
        return "context" if len(ids) + 1 == talker.context else None


@contextmanager
def failing_in(library: str) -> Iterator[None]:
    """Turn whatever a runtime raises into one line.

    Raises: BadInput.
    """
    try:
        yield
    except (EdgeqError, MemoryError):
        raise
    except Exception as error:  # runtimes raise types of their own
        raise BadInput(
            f"{library} failed ({type(error).__name__}: {reason_of(error)}); "
            "check the export with edgeq verify"
        ) from error


def check_text(text: str) -> None:
    """Refuse what is no text: bytes of a terminal or file that are not UTF-8.

    Raises: BadInput.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        broken = error.object[error.start]
        raise BadInput(
            f"the prompt holds {broken!a}, which is no character; give UTF-8 text"
        ) from error


def check_prompt(ids: Sequence[int], texts: Texts, context: int | None) -> None:
    """Refuse tokens that a model cannot write behind.

    Raises: BadInput.
    """
    if not ids:
        raise BadInput("the prompt is empty; give some text to go on from")
    if context is not None and len(ids) >= context:
        raise BadInput(
            f"the prompt has {len(ids)} tokens, and model {texts.name!r} reads {context} "
            "with its answer; shorten the prompt"
        )
    if texts.vocabulary is not None and max(ids) >= texts.vocabulary:
        raise BadInput(
            f"model {texts.name!r}: the tokenizer gives id {max(ids)}, but the embedding has "
            f"{texts.vocabulary} rows; use the tokenizer.json that belongs to this model"
        )
