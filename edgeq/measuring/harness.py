"""Run tasks of the lm-evaluation-harness over anything that predicts logits.

The harness reads tasks and judges answers; tokens and log probabilities come from here.
"""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from edgeq.calibration.windows import begin_ids, load_tokenizer
from edgeq.errors import BadInput, NotInstalled, reason_of
from edgeq.measuring.references import Reference
from edgeq.measuring.tasks import Request, request_of, score
from edgeq.protocols import LogitSource, TextModel
from edgeq.words import install

Accuracies = Mapping[str, tuple[int, tuple[float, float | None]]]
"""By task: how many items, and the share answered rightly, plain and by length."""

PLAIN, BY_LENGTH = "acc,none", "acc_norm,none"  # the harness' own names
TASK_FILE = ".yaml"


def check_harness(names: Sequence[str]) -> None:
    """Check before work starts that the harness is there and knows tasks by their names.

    Raises: NotInstalled, BadInput.
    """
    if not names:
        return
    if find_spec("lm_eval") is None:
        raise NotInstalled(
            f"task {names[0]!r} is no file, and tasks by name need lm-eval; {install('tasks')}, "
            "or give a file of JSON lines"
        )
    for name in names:
        is_file = name.endswith(TASK_FILE)
        known = Path(name).expanduser().is_file() if is_file else name in manager().all_tasks
        if not known:
            raise BadInput(
                f"task {name!r}: no such file, and no task of lm-eval; "
                "`lm-eval ls tasks` lists those there are"
            )


@cache
def manager(*, with_names: bool = True) -> Any:
    """Have the harness list its tasks, which are many; those in files need no list."""
    make = import_module("lm_eval.tasks").TaskManager
    return quietly(lambda: make(include_defaults=with_names))


def run_harness(
    name: str, model: LogitSource | Reference, described: TextModel, longest: int | None
) -> Accuracies:
    """Run a task, or a group of tasks, of the harness.

    Raises: BadInput where its data cannot be had, and for tasks that are not of choices.
    """
    harness: Any = import_module("lm_eval")
    is_file = name.endswith(TASK_FILE)
    asked = str(Path(name).expanduser().absolute()) if is_file else name
    adapter = adapted(model, described, longest)
    try:
        found = quietly(
            lambda: harness.simple_evaluate(
                model=adapter,
                tasks=[asked],
                task_manager=manager(with_names=not is_file),
                bootstrap_iters=0,
                log_samples=False,
            )
        )
    except BadInput:
        raise
    # data sets are fetched and read by several libraries, each with exceptions of its own
    except Exception as error:
        raise BadInput(
            f"task {name!r}: lm-eval cannot run it ({type(error).__name__}: "
            f"{reason_of(error)[:200]}); it may need to fetch its data from the network once"
        ) from error
    results = {
        task: (int(found["n-samples"][task]["effective"]), (row[PLAIN], row.get(BY_LENGTH)))
        for task, row in found["results"].items()
        if PLAIN in row and task in found["n-samples"]
    }
    if not results:
        raise BadInput(f"task {name!r} states no accuracy of choices; give a task of choices")
    return results


def adapted(model: LogitSource | Reference, described: TextModel, longest: int | None) -> Any:
    """Make the harness' model of anything that predicts logits."""
    kind: Any = import_module("lm_eval.api.model").LM
    tokenizer, begin = load_tokenizer(described), begin_ids(described)

    class Adapter(kind):  # type: ignore[misc]
        """Log likelihoods of texts; texts that are too long lose their beginning."""

        def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            made = [self._request(*each.args) for each in requests]
            return score(made, model.logits, longest)

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> Any:
            raise self._refused(requests)

        def generate_until(self, requests: Any, **_: Any) -> Any:
            raise self._refused(requests)

        def _request(self, context: str, choice: str) -> Request:
            request = request_of(described, tokenizer, begin, context, choice)
            room = len(request.before) if longest is None else longest - len(request.scored)
            if not request.before or room < 1:
                raise BadInput(f"a text of {choice[:40]!r} has nothing before it that is read")
            return Request(request.before[-room:], request.scored)

        def _refused(self, requests: Any) -> BadInput:
            name = requests[0].task_name if requests else "it"
            return BadInput(f"task {name!r} is not of choices; give a task of choices")

    return Adapter()


def quietly(run: Any) -> Any:
    """Run something of the harness without its logs, bars and warnings."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            return run()
    finally:
        logging.disable(before)
