"""Quantize a model, or say what that takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from edgeq.api.arguments import PathLike, path_of, python_words, switch_of
from edgeq.api.closing import close_run
from edgeq.api.documenting import documented
from edgeq.api.progress import ProgressCallback, Teller
from edgeq.api.request import ARGUMENTS, PlanArguments, RunArguments, read_request
from edgeq.api.results import Allocation, Plan, RunResult
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.run.asked import (
    allocate_asked,
    plan_asked,
    prepare_allocation,
    prepare_run,
    run_asked,
)
from edgeq.run.finished import finish_run
from edgeq.run.spending import Place

AGAIN = "the same call with resume=True"
OF_RUNS = {"evaluate", "force", "resume"}
"""Keyword arguments that only `quantize` reads."""


@documented(RunArguments, ("progress",))
@python_words()
def quantize(
    model: PathLike,
    output: PathLike,
    *,
    progress: ProgressCallback | None = None,
    **arguments: Unpack[RunArguments],
) -> RunResult:
    """Quantize a model into a checkpoint, and write it in the formats of runtimes.

    It does what `edgeq quantize` does, byte for byte, and prints nothing. Ctrl-C, or whatever the
    callback raises, stops it; finished blocks stay, and resume=True continues behind them.

    Example:
        run = edgeq.quantize("./Llama-3.2-1B", "llama-4bit", type="Q4_K_M", export="gguf")
        print(run.exports["gguf"], run.sizes)

    Args:
        model: A directory of safetensors, a .gguf file, owner/name on the hub, or "demo".
        output: Write to this directory; must not exist.
        KEYWORDS

    Returns:
        Where the checkpoint and its exports lie, their sizes in bytes, errors, notes and quality.

    Raises:
        BadInput: An argument or file that cannot be worked with; nothing is written then.
        UnsupportedModel: A kind of model that this version does not handle.
        NotInstalled: A backend, format or runtime whose extra is missing.
        TypeError: An argument that is not known, with the nearest name.
    """
    force, resume = arguments.get("force", False), arguments.get("resume", False)
    place = Place(path_of("output", output), switch_of("force", force), switch_of("resume", resume))
    asked = read_request("quantize", model, place, arguments, {*ARGUMENTS})
    teller = Teller(progress)
    asked, job, _ = prepare_run(asked)
    job, checkpoint = run_asked(asked, job, teller, again=AGAIN)
    with keeping(checkpoint):
        finished = finish_run(job, checkpoint, asked.model, teller.progressed)
        finished = close_run(
            finished, checkpoint, teller, evaluated=asked.evaluated, backend=asked.backend
        )
    return RunResult.from_run(finished)


@documented(PlanArguments)
@python_words()
def plan(
    model: PathLike, output: PathLike | None = None, **arguments: Unpack[PlanArguments]
) -> Plan:
    """Say what quantizing a model takes in memory, disk and time, without running it.

    A directory with config.json and perhaps model.safetensors.index.json is enough; weights are
    not read.

    Example:
        print(edgeq.plan("./Llama-3.2-1B", max_ram="8GB", export="gguf"))

    Args:
        model: A directory of safetensors, a .gguf file, owner/name on the hub, or "demo".
        output: Look at the space where the run would write; the current directory without one.
        KEYWORDS

    Returns:
        Bytes of memory and disk, and seconds.

    Raises:
        BadInput: An argument or file that cannot be worked with.
        UnsupportedModel: A kind of model that this version does not handle.
        NotInstalled: A backend or format whose extra is missing.
        TypeError: An argument that is not known, with the nearest name.
    """
    place = Place(Path.cwd() if output is None else path_of("output", output))
    asked = read_request("plan", model, place, arguments, {*ARGUMENTS} - OF_RUNS - {"progress"})
    return Plan.from_plain(plan_asked(asked))


@documented(PlanArguments, ("force", "progress"))
@python_words()
def allocate(
    model: PathLike,
    output: PathLike,
    *,
    force: bool = False,
    progress: ProgressCallback | None = None,
    **arguments: Unpack[PlanArguments],
) -> Allocation:
    """Choose a type for each tensor within a budget, and write them as a recipe.

    The budget is one of file_size, bits_per_weight and fits. Give the file to `quantize` as its
    recipe, perhaps changed.

    Example:
        found = edgeq.allocate("./Llama-3.2-1B", "recipe.toml", file_size="700MB", export="gguf")
        print(found.predicted_kl, found.recipe.read_text())

    Args:
        model: A directory of safetensors, a .gguf file, owner/name on the hub, or "demo".
        output: Write the recipe to this file; must not exist.
        KEYWORDS

    Returns:
        The recipe, its bytes, and the KL divergence that is predicted for it.

    Raises:
        BadInput: An argument, file or budget that cannot be worked with.
        UnsupportedModel: A kind of model that this version does not handle.
        NotInstalled: A backend or format whose extra is missing.
        TypeError: An argument that is not known, with the nearest name.
    """
    place = Place(path_of("output", output), switch_of("force", force))
    known = {*ARGUMENTS} - OF_RUNS - {"progress"}
    asked = read_request("allocate", model, place, arguments, known)
    if not any(asked.budget.values()):
        raise BadInput("no budget: give one of file_size, bits_per_weight and fits")
    job = prepare_allocation(asked)
    return Allocation.from_plain(allocate_asked(asked, job, Teller(progress)))


@contextmanager
def keeping(checkpoint: Checkpoint) -> Iterator[None]:
    """Note on whatever stops the steps inside that the checkpoint stays, and how to go on."""
    try:
        yield
    except BaseException as error:
        where = repr(str(checkpoint.path))
        error.add_note(f"the checkpoint {where} is complete and stays; to continue: {AGAIN}")
        raise
