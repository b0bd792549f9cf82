"""Measure how a model predicts, and how far it is from the original."""

from edgeq.api.arguments import (
    PathLike,
    path_text,
    python_words,
    text_of,
    whole_of,
)
from edgeq.api.results import Quality
from edgeq.measuring.evaluate import SHORTEST, WINDOWS
from edgeq.measuring.evaluate import evaluate as measure


@python_words()
def evaluate(
    target: PathLike,
    *,
    reference: PathLike | None = None,
    text: PathLike | None = None,
    windows: int = WINDOWS,
    sequence_length: int | None = None,
    runtime: str | None = None,
    backend: str = "auto",
) -> Quality:
    """Measure the perplexity of a model, and how far it is from the original.

    Example:
        print(edgeq.evaluate("llama-4bit/gguf", reference="./Llama-3.2-1B").kl)

    Args:
        target: A checkpoint, a model, a GGUF file, the directory of an export, or a result of
            `quantize` or `export`.
        reference: Compare with this original model: adds KL divergence and top-1 agreement.
        text: Measure on this text, or JSON lines or an array with "text" or chat "messages";
            without one, on a text that ships with edgeq.
        windows: Use this many windows of the text.
        sequence_length: Read this many tokens per window; 512 unless the model reads fewer.
        runtime: Run it in this runtime; an export in its own without one, else in the backend's.
        backend: Compute with "auto", "cuda", "cpu", "mps", "mlx" or "reference".

    Returns:
        Perplexity, and with a reference the KL divergence in nats per token.

    Raises:
        BadInput: A target, text or number that cannot be worked with.
        UnsupportedModel: A kind of model that this version does not handle.
        NotInstalled: A runtime whose extra is missing.
    """
    length = sequence_length
    return Quality.from_plain(
        measure(
            path_text("target", target),
            reference=None if reference is None else path_text("reference", reference),
            text=None if text is None else path_text("text", text),
            windows=whole_of("windows", windows, 1),
            sequence_length=None
            if length is None
            else whole_of("sequence_length", length, SHORTEST),
            runtime=None if runtime is None else text_of("runtime", runtime),
            backend=text_of("backend", backend),
        )
    )
