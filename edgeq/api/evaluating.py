"""Measure how models predict, and how far they are from the original."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack, overload

from edgeq.api.arguments import (
    PathLike,
    check_names,
    path_text,
    paths_of,
    python_words,
    text_of,
    whole_of,
)
from edgeq.api.documenting import documented
from edgeq.api.progress import ProgressCallback, Teller
from edgeq.api.request import Argument
from edgeq.api.results import Comparison, Quality
from edgeq.errors import BadInput
from edgeq.measuring.evaluate import evaluate_all
from edgeq.measuring.text_kinds import KINDS
from edgeq.measuring.texts import SHORTEST, WINDOWS


class EvaluateArguments(TypedDict, total=False):
    """Keyword arguments of `edgeq.evaluate`, named like the options of the command."""

    reference: PathLike | None
    text: PathLike | Sequence[PathLike]
    windows: int
    sequence_length: int | None
    tasks: PathLike | Sequence[PathLike]
    runtime: str | None
    backend: str


ARGUMENTS: Mapping[str, Argument] = {
    "reference": Argument(
        None, "Compare with this original model: adds KL divergence and same top token."
    ),
    "text": Argument(
        (),
        f"Measure on this text, or several: {', '.join(KINDS)} or all ship with edgeq, other names "
        "are files of UTF-8 text or JSON lines.",
    ),
    "windows": Argument(
        WINDOWS, "Use this many windows of each text; more make intervals narrower."
    ),
    "sequence_length": Argument(
        None, "Read this many tokens per window; 512 without it, or fewer if a model does."
    ),
    "tasks": Argument(
        (),
        'Answer questions of JSON lines with "question" or "context", "choices" and "answer", or '
        "a task of lm-eval by its name (extra tasks).",
    ),
    "runtime": Argument(
        None, "Run it in this runtime; without it an export in its own, else in the backend's."
    ),
    "backend": Argument("auto", 'Compute with "auto", "cuda", "cpu", "mps", "mlx" or "reference".'),
}


@overload
def evaluate(
    target: PathLike,
    *,
    progress: ProgressCallback | None = None,
    **arguments: Unpack[EvaluateArguments],
) -> Quality: ...


@overload
def evaluate(
    target: list[Any] | tuple[PathLike, ...],
    *,
    progress: ProgressCallback | None = None,
    **arguments: Unpack[EvaluateArguments],
) -> Comparison: ...


@documented(EvaluateArguments, ("progress",), ARGUMENTS)
@python_words()
def evaluate(
    target: PathLike | list[Any] | tuple[PathLike, ...],
    *,
    progress: ProgressCallback | None = None,
    **arguments: Unpack[EvaluateArguments],
) -> Quality | Comparison:
    """Measure the perplexity of a model or several, and how far they are from the original.

    Each runs in its own runtime. Several are compared on the same windows of text.

    Example:
        print(edgeq.evaluate("llama-4bit/gguf", reference="./Llama-3.2-1B").kl)

    Args:
        target: A checkpoint, a model, a GGUF file, the directory of an export of any maker, or a
            result of `quantize` or `export`; or a list of these.
        KEYWORDS

    Returns:
        Perplexity, and with a reference the KL divergence in nats per token; of a list a
        `Comparison`.

    Raises:
        BadInput: A target, text or number that cannot be worked with.
        UnsupportedModel: A kind of model that this version does not handle.
        NotInstalled: A runtime whose extra is missing.
        TypeError: An argument that is not known, with the nearest name.
    """
    check_names("evaluate", arguments, {"target", "progress", *ARGUMENTS})
    given = {name: arguments.get(name, row.default) for name, row in ARGUMENTS.items()}
    targets = paths_of("target", target)
    if not targets:
        raise BadInput("target = []: expected a target, or a list of some")
    length, reference, runtime = (given[n] for n in ("sequence_length", "reference", "runtime"))
    found = evaluate_all(
        targets,
        reference=None if reference is None else path_text("reference", reference),
        text=paths_of("text", given["text"]),
        windows=whole_of("windows", given["windows"], 1),
        sequence_length=None if length is None else whole_of("sequence_length", length, SHORTEST),
        runtime=None if runtime is None else text_of("runtime", runtime),
        backend=text_of("backend", given["backend"]),
        tasks=paths_of("tasks", given["tasks"]),
        progress=Teller(progress).evaluated,
    )
    if isinstance(target, list | tuple):
        return Comparison.from_plain(found)
    return Quality.from_plain(found["targets"][0])
