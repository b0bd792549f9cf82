"""Hold a conversation: messages that grow, and are cut from the front to what the model reads."""

from collections.abc import Sequence

from edgeq.talking.talker import Message, Reply, Talker

LEAST_ANSWER = 4  # a quarter of the context is left to an answer, if it may be that long


class Conversation:
    """What was said so far, from which each answer is made."""

    def __init__(
        self,
        talker: Talker,
        *,
        system: str | None = None,
        most_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._talker, self._system = talker, system
        self._most_tokens, self._temperature, self._top_p = most_tokens, temperature, top_p
        self._seed = seed
        self.messages: list[Message] = []
        self.forgotten = 0
        """Messages that the newest answer did not see, as the context had no room for them."""

    def ask(self, text: str) -> Reply:
        """Start the answer to a message, which then is one of the conversation's.

        The oldest turns are forgotten where the rest would not fit.

        Raises: BadInput, which leaves the conversation as it was.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        fitting = self._fitting(asked)
        reply = self._talker.reply(
            self._with_system(fitting),
            most_tokens=self._most_tokens,
            temperature=self._temperature,
            top_p=self._top_p,
            seed=self._seed,
        )
        self.messages, self.forgotten = fitting, len(asked) - len(fitting)
        self._seed += 1
        return reply

    def answered(self, text: str) -> None:
        """Note what the model answered, or as much of it as it came to."""
        self.messages.append({"role": "assistant", "content": text})

    def start_over(self, *, system: str | None = None) -> None:
        """Forget what was said; with a text, from then on under another system message."""
        self.messages, self.forgotten = [], 0
        self._system = self._system if system is None else system

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        first = [{"role": "system", "content": self._system}] if self._system else []
        return [*first, *messages]

    def _fitting(self, messages: list[Message]) -> list[Message]:
        """Leave whole turns out, the oldest first, until an answer has room."""
        context = self._talker.context
        if context is None:
            return messages
        most = context - min(self._most_tokens, context // LEAST_ANSWER)
        while self._talker.count(self._with_system(messages)) > most:
            later = [
                place for place, each in enumerate(messages) if place and each["role"] == "user"
            ]
            if not later:
                break
            messages = messages[later[0] :]
        return messages
