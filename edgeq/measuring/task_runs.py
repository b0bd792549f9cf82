"""Run tasks of several choices over targets and their original.

A task is a file (`edgeq.measuring.tasks`) or one of the lm-evaluation-harness by its name
(`edgeq.measuring.harness`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.measuring.harness import TASK_FILE, check_harness, run_harness
from edgeq.measuring.references import Reference
from edgeq.measuring.tasks import (
    Answers,
    Request,
    Task,
    answered,
    describe_task,
    read_task,
    requests_of,
    score,
    task_result,
)
from edgeq.measuring.watching import Count
from edgeq.protocols import LogitSource, TextModel

FILES = (".jsonl", ".ndjson", ".json")
Asked = Sequence[Task | str]
"""Tasks that were read from files, and names of the harness' own."""


def read_tasks(names: Sequence[str]) -> Asked:
    """Read tasks from files; other names are kept, see `check_named`.

    Raises: BadInput.
    """
    asked: list[Task | str] = []
    for name in dict.fromkeys(names):
        path = Path(name).expanduser()
        is_file = path.suffix.lower() in FILES or (path.is_file() and path.suffix != TASK_FILE)
        asked.append(read_task(str(path)) if is_file else name)
    return asked


def check_named(asked: Asked) -> None:
    """Check that the tasks that are named and not read from files can be run.

    Raises: NotInstalled, BadInput.
    """
    check_harness([each for each in asked if isinstance(each, str)])


class TaskRuns:
    """Tasks whose items are tokenized, for models that all read them."""

    def __init__(self, asked: Asked, described: TextModel, readers: Sequence[TextModel]) -> None:
        contexts = [model.record.context for model in readers]
        self._longest = min((size for size in contexts if size is not None), default=None)
        self._described = described
        self._asked = asked
        self._requests: dict[str, list[Request]] = {
            each.name: requests_of(each, described, self._longest)
            for each in asked
            if isinstance(each, Task)
        }

    @property
    def windows(self) -> int:
        """Count the texts of all tasks from files that one model runs over."""
        return sum(map(len, self._requests.values()))

    def run(
        self,
        targets: Mapping[str, LogitSource],
        reference: Reference | None,
        count: Count,
        named: str,
    ) -> list[list[dict[str, Any]]]:
        """Score all tasks for each target; the reference, which progress has a name for, once."""
        if not self._asked:
            return [[] for _ in targets]
        expected = None if reference is None else self._scored(named, reference, count)
        found = [self._scored(name, logits, count) for name, logits in targets.items()]
        return [self._described_beside(each, expected) for each in found]

    def _scored(self, what: str, model: LogitSource | Reference, count: Count) -> list[Any]:
        """Give the answers to each task from a file, and accuracies of each of the harness'."""
        scored: list[Any] = []
        for each in self._asked:
            if isinstance(each, Task):
                requests = self._requests[each.name]
                sums = score(requests, lambda ids: count.logits(what, model, ids), self._longest)
                scored.append(answered(each, sums))
            else:
                scored.append(run_harness(each, model, self._described, self._longest))
        return scored

    def _described_beside(
        self, found: Sequence[Any], expected: Sequence[Any] | None
    ) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = []
        for place, (task, own) in enumerate(zip(self._asked, found, strict=True)):
            beside = None if expected is None else expected[place]
            if isinstance(task, Task):
                assert isinstance(own, Answers)
                results.append(describe_task(task, own, beside))
            else:
                results += [
                    task_result(name, items, got, None if beside is None else beside[name][1])
                    for name, (items, got) in own.items()
                ]
        return results
