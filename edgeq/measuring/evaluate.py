"""`edgeq evaluate`: which runtime runs a target, and how far it predicts from the original.

The arithmetic is `edgeq.measuring.quality`; runtimes are backends, found by the registry.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeq.calibration.long_windows import first_tokens
from edgeq.calibration.reading import LongText, open_text, read_text
from edgeq.calibration.variety import check_variety
from edgeq.calibration.windows import (
    begin_ids,
    check_ids,
    check_length,
    first_windows,
    tokenize,
)
from edgeq.errors import BadInput
from edgeq.measuring.manifest import check_as_written
from edgeq.measuring.quality import Quality, compare
from edgeq.measuring.references import check_reference, opened_reference
from edgeq.measuring.targets import (
    check_runtime,
    choose_runtime,
    described_export,
    find_export,
    forward_logits,
    in_runtime,
    open_model,
    open_target,
    runtime_of,
)
from edgeq.protocols import LogitSource, ModelSource, TextModel
from edgeq.registry import ACTIVATIONS, LOGITS, choose_backend, load
from edgeq.types import NumpyArray

EVALUATION_TEXT = "evaluation.txt"
SEQUENCE_LENGTH = 512  # tokens per window, unless the model reads fewer
SHORTEST = 8  # tokens: of shorter windows most predictions would have next to no context
WINDOWS = 16  # a short measurement; more windows make it steadier


def evaluate(
    target: str,
    *,
    reference: str | None,
    text: str | None = None,
    windows: int = WINDOWS,
    sequence_length: int | None = None,
    runtime: str | None = None,
    backend: str = "auto",
) -> dict[str, Any]:
    """Measure a checkpoint, model or exported file, and return its quality as plain data.

    An exported file runs in the runtime it is for, as users run it, unless another one is named.
    Everything else runs in the framework of the backend. The reference is computed by the library
    of its own format, which the result names.
    """
    backend, exported = choose_backend(backend), find_export(target)
    chosen = choose_runtime(target, exported, runtime, backend)
    check_runtime(chosen)
    if exported is not None:
        check_as_written(Path(target).expanduser())
    original = open_model(reference) if reference is not None else None
    if original is not None:
        check_reference(original)
    source = open_target(target, exported, chosen, original)
    described: TextModel = original or source or described_export(target)
    models = [model for model in (described, source) if model is not None]
    if source is not None and chosen in ACTIVATIONS:
        logits = forward_logits(source, chosen, backend)
    else:
        assert exported is not None
        logits = load(LOGITS[chosen], f"runtime {chosen!r}")(exported.path)
        models.append(in_runtime(exported, logits))
    ids = evaluation_windows(models, text, windows=windows, sequence_length=sequence_length)
    library, quality = compared(ids, logits, original, backend)
    return {"target": target, "runtime": chosen, "reference": library, **asdict(quality)}


def compared(
    ids: NumpyArray, logits: LogitSource, original: ModelSource | None, backend: str
) -> tuple[str | None, Quality]:
    """Measure predictions, against an original where there is one; names what computed that."""
    if original is None:
        return None, compare(ids, logits.logits(ids))
    with opened_reference(original, backend) as reference:
        return reference.library, compare(ids, logits.logits(ids), reference.logits(ids))


def check_evaluation(source: ModelSource, formats: Sequence[str], backend: str) -> None:
    """Check before a run that its result, the first export, can be evaluated at its end.

    Raises: NotInstalled, BadInput.
    """
    check_runtime(runtime_of(formats, backend))
    check_reference(source)
    evaluation_windows([source], None)


def evaluation_windows(
    models: Sequence[TextModel],
    text: str | None,
    *,
    windows: int = WINDOWS,
    sequence_length: int | None = None,
) -> NumpyArray:
    """Cut the windows that all models are evaluated on, in tokens of the first one.

    They are as long as all models read, unless told otherwise.

    Shapes: (windows, tokens).
    Raises: BadInput when the text is too short or a model cannot read such windows.
    """
    contexts = [model.record.context for model in models]
    longest = min([SEQUENCE_LENGTH, *(size for size in contexts if size is not None)])
    length = sequence_length or longest
    if length < SHORTEST:
        raise BadInput(
            f"the model reads at most {length} tokens; "
            f"evaluation needs windows of {SHORTEST} or more"
        )
    for model in models:
        check_length(model, length)
    tokens, begin = evaluation_tokens(models[0], text, windows * length), begin_ids(models[0])
    for model in models:
        check_ids(model, tokens)
    found = first_windows(tokens, windows=windows, sequence_length=length, begin=begin)
    try:
        check_variety(models[0], found)
    except BadInput as error:
        raise BadInput(f"evaluation text: {error}") from error
    return found


def evaluation_tokens(model: TextModel, text: str | None, count: int) -> NumpyArray:
    """Tokenize a text for evaluation; of a long one only as much as gives so many tokens."""
    content: str | LongText
    if text is None:
        content = read_text(None, default=EVALUATION_TEXT)
    else:
        content = open_text(text, model)
    if isinstance(content, LongText):
        return first_tokens(model, content, count)
    return tokenize(model, content)
