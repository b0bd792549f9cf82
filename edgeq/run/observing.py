"""What a run tells those who watch it: its phases in words, and what is done."""

from typing import Protocol

from edgeq.solving.report import LayerReport

OPENING = "opening the model"
TOKENIZING = "tokenizing the calibration text"
WRITING_TEXT = "writing text, token"
LOADING = "loading the model"
WEIGHING = "weighing tokens, pass"
SOLVING = "block"
ROUNDING = "rounding the embedding"
EVALUATING = "evaluating, window"


class Observer(Protocol):
    """Whoever watches a run: the screen, a log, nobody."""

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None:
        """Note how far work has come; total is 0 where it is not counted.

        what says it in words that a count may follow: "measuring types, block".
        """

    def begin(self, blocks: int, done: int) -> None:
        """Note that a run of so many blocks starts; `done` of them were there already.

        Texts are tokenized and the model is loaded after that, before the first block.
        """

    def solved(self, report: LayerReport) -> None:
        """Note that a layer is solved, and how it came out."""

    def finished_block(self, index: int) -> None:
        """Note that a block is solved and on disk."""

    def evaluated(self, model: str, done: int, total: int) -> None:
        """Note that a model has run over windows of text, and how many are done for all models."""
