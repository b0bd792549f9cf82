"""Score tasks of several choices: which of them a model holds likeliest after a context.

Choices are tokenized and scored as the lm-evaluation-harness does it: the tokens that a choice adds
to its context, their log probabilities summed (`acc`), or divided by its characters (`acc_norm`).
"""

import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgeq.calibration.reading import read_items
from edgeq.calibration.text_files import TextFile
from edgeq.calibration.windows import begin_ids, encode, load_tokenizer
from edgeq.errors import BadInput
from edgeq.measuring.intervals import wilson
from edgeq.measuring.quality import predictions
from edgeq.protocols import TextModel
from edgeq.types import NumpyArray

SHORTEST_BATCH = 32  # tokens: shorter texts are run with this length
WANTED = 'give {"question" or "context": text, "choices": [texts], "answer": which}, one a line'

Predict = Callable[[NumpyArray], Iterator[NumpyArray]]
"""Predicts every token of each window, as `LogitSource.logits` does."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question: what stands before the choices, these, and which is right."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Task:
    """Questions that are scored together."""

    name: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """A text whose end is scored: the tokens before it, and its own."""

    before: tuple[int, ...]
    scored: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """Whether each item was answered rightly: by the sum, and by the sum per character."""

    right: npt.NDArray[np.bool_]
    right_by_length: npt.NDArray[np.bool_]


def read_task(path: str) -> Task:
    """Read a task from JSON lines or a JSON array.

    Raises: BadInput with the first item that is none.
    """
    file = TextFile.find(path)
    if file.kind == "text":  # as far as its name tells
        file = replace(file, kind="lines")
    items = tuple(
        item_of(item, f"tasks {path!r}, item {number}") for number, item, _ in read_items(file)
    )
    if not items:
        raise BadInput(f"tasks {path!r}: no items; {WANTED}")
    return Task(Path(path).stem, items)


def item_of(item: Any, place: str) -> Item:
    """Take one question.

    Raises: BadInput with its place for one that cannot be asked.
    """
    stated = item if isinstance(item, dict) else {}
    question, context, choices = (stated.get(key) for key in ("question", "context", "choices"))
    asked = f"Question: {question}\nAnswer:" if isinstance(question, str) else context
    whole = isinstance(choices, list) and len(choices) > 1 and all(map(is_text, choices))
    if not isinstance(asked, str) or not asked.strip() or not isinstance(choices, list):
        raise BadInput(f"{place}: no question with choices; {WANTED}")
    if not whole or len(set(choices)) < len(choices):
        raise BadInput(f"{place}: choices are two or more different texts; {WANTED}")
    return Item(asked, tuple(choices), answer_of(stated.get("answer"), choices, place))


def is_text(value: Any) -> bool:
    """Say whether a choice is a text with something in it."""
    return isinstance(value, str) and bool(value.strip())


def answer_of(answer: Any, choices: Sequence[str], place: str) -> int:
    """Find the right choice: by its number from 0, its text, or its letter.

    Raises: BadInput for anything else.
    """
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        if answer in choices:
            return choices.index(answer)
        letter = string.ascii_uppercase.find(answer) if len(answer) == 1 else -1
        if 0 <= letter < len(choices):
            return letter
    raise BadInput(
        f"{place}: answer {answer!r:.40} is none of {len(choices)} choices; "
        "give its number from 0, its text, or its letter"
    )


def requests_of(task: Task, model: TextModel, longest: int | None) -> list[Request]:
    """Tokenize every choice of every item behind its context.

    Raises: BadInput for an item that the model cannot read.
    """
    tokenizer, begin = load_tokenizer(model), begin_ids(model)
    found = []
    for number, item in enumerate(task.items, 1):
        for choice in item.choices:
            request = request_of(model, tokenizer, begin, item.context, with_space(item, choice))
            check_request(request, longest, f"task {task.name!r}, item {number}")
            found.append(request)
    return found


def with_space(item: Item, choice: str) -> str:
    """Put a space between a context and a choice, unless one of them brings one."""
    apart = item.context[-1].isspace() or choice[0].isspace()
    return choice if apart else f" {choice}"


def request_of(
    model: TextModel, tokenizer: Tokenizer, begin: Sequence[int], context: str, choice: str
) -> Request:
    """Tokenize a context and what follows it in one piece, and cut where the context ends.

    Space at the end of the context belongs to what follows, as tokens mostly begin with it.
    """
    stripped = context.rstrip()
    choice, context = context[len(stripped) :] + choice, stripped
    before = encode(model, tokenizer, context).ids
    whole = encode(model, tokenizer, context + choice).ids
    return Request((*begin, *before), tuple(whole[len(before) :]))


def check_request(request: Request, longest: int | None, place: str) -> None:
    """Refuse a request without a token before or in it, and one longer than a model reads.

    Raises: BadInput.
    """
    if not request.before or not request.scored:
        raise BadInput(f"{place}: nothing is left to score in its tokens; give longer texts")
    length = len(request.before) + len(request.scored)
    if longest is not None and length > longest:
        raise BadInput(
            f"{place}: {length} tokens; the models read at most {longest}, shorten the item"
        )


def batches_of(requests: Sequence[Request], longest: int | None) -> list[tuple[list[int], int]]:
    """Gather requests of about the same length; each batch has their places and one length.

    Behind its end a text is filled up: tokens look back only, so that changes nothing before it.
    """
    batches: dict[int, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        length = len(request.before) + len(request.scored)
        size = max(SHORTEST_BATCH, 1 << (length - 1).bit_length())
        size = size if longest is None else max(length, min(size, longest))
        batches[size].append(place)
    return [(places, size) for size, places in sorted(batches.items())]


def score(
    requests: Sequence[Request], predict: Predict, longest: int | None
) -> list[tuple[float, bool]]:
    """Sum the log probabilities of what is scored; say too whether it is what is likeliest.

    Units: nats.
    """
    found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    for places, size in batches_of(requests, longest):
        windows = np.array([filled(requests[place], size) for place in places])
        for place, logits in zip(places, predict(windows), strict=True):
            request = requests[place]
            first = len(request.before) - 1
            rows = predictions(logits[first : first + len(request.scored)], "target")
            picked = rows[np.arange(len(rows)), list(request.scored)]
            greedy = bool((rows.argmax(axis=1) == request.scored).all())
            found[place] = (float(picked.sum(dtype=np.float64)), greedy)
    return found


def filled(request: Request, size: int) -> list[int]:
    """Fill a text up to a length by its last token."""
    ids = [*request.before, *request.scored]
    return ids + [ids[-1]] * (size - len(ids))


def answered(task: Task, scores: Sequence[tuple[float, bool]]) -> Answers:
    """Judge which choice of each item is the likeliest, of equal ones the first."""
    right, by_length = [], []
    start = 0
    for item in task.items:
        sums = np.array([each for each, _ in scores[start : start + len(item.choices)]])
        lengths = np.array([len(choice) for choice in item.choices])
        right.append(int(sums.argmax()) == item.answer)
        by_length.append(int((sums / lengths).argmax()) == item.answer)
        start += len(item.choices)
    return Answers(np.array(right), np.array(by_length))


def describe_task(task: Task, target: Answers, reference: Answers | None) -> dict[str, Any]:
    """Describe the result of a task as plain data."""
    return task_result(
        task.name,
        len(task.items),
        (float(target.right.mean()), float(target.right_by_length.mean())),
        None
        if reference is None
        else (float(reference.right.mean()), float(reference.right_by_length.mean())),
    )


def task_result(
    name: str,
    items: int,
    found: tuple[float, float | None],
    expected: tuple[float, float | None] | None,
) -> dict[str, Any]:
    """Lay a task's accuracies out, plain and by length, with Wilson's intervals over its items."""
    plain, by_length = found
    reference, reference_by_length = expected or (None, None)
    return {
        "name": name,
        "items": items,
        "accuracy": plain,
        "interval": wilson(plain, items),
        "reference_accuracy": reference,
        "accuracy_by_length": by_length,
        "interval_by_length": None if by_length is None else wilson(by_length, items),
        "reference_accuracy_by_length": reference_by_length,
    }
