"""Tune a finished checkpoint on what its original predicts."""

from collections.abc import Sequence
from typing import Any

from edgeq.api.arguments import (
    PathLike,
    optional_path,
    path_of,
    path_text,
    paths_of,
    python_words,
    size_of,
    switch_of,
    text_of,
)
from edgeq.api.closing import close_tuning
from edgeq.api.progress import ProgressCallback, Teller
from edgeq.api.quantizing import AGAIN
from edgeq.api.results import TuneResult
from edgeq.api.settings import checked_settings
from edgeq.run.spending import Place
from edgeq.run.tune_run import TuneAsked, default_tuned, prepare_tuning, run_tuning


@python_words()
def tune(  # noqa: PLR0913 (one argument per option of the command)
    checkpoint: PathLike,
    output: PathLike | None = None,
    *,
    reference: PathLike,
    tokens: int | None = None,
    passes: int | None = None,
    rate: float | None = None,
    seed: int | None = None,
    sequence_length: int | None = None,
    calibration: PathLike | Sequence[PathLike] = (),
    exact: bool = False,
    max_ram: str | int | None = None,
    backend: str = "auto",
    force: bool = False,
    resume: bool = False,
    progress: ProgressCallback | None = None,
) -> TuneResult:
    """Tune scales, offsets and norms of a checkpoint so that it predicts what its original does.

    Codes and sizes stay. It does what `edgeq tune` does, byte for byte, and prints nothing.

    Example:
        found = edgeq.tune("llama-4bit", "llama-4bit-tuned", reference="./Llama-3.2-1B")
        print(found.kl_before, found.kl_after)

    Args:
        checkpoint: The directory that `quantize` wrote, or its result.
        output: Write to this directory; must not exist. Without one, CHECKPOINT-tuned.
        reference: The original that the checkpoint was made from, as `quantize` takes it.
        tokens: Tune on this many tokens of text; unset, as the checkpoint's recipe has it.
        passes: Pass this often over them.
        rate: Move scales by about this share of their size in a step.
        seed: Draw windows of text, and their order, from this seed.
        sequence_length: Read this many tokens per window.
        calibration: Tune on this text, or several, as `quantize` takes them.
        exact: Pass in float32 throughout, also where bfloat16 is faster.
        max_ram: Stay within this much memory, as "8GB" or bytes: slower where it must be.
        backend: Compute with "auto", "cuda", "cpu" or "mps".
        force: Replace an output that edgeq wrote before.
        resume: Continue a tuning that was stopped, with the same arguments.
        progress: Is called with an `edgeq.Progress` after each step.

    Returns:
        Where the tuned checkpoint lies, and what was gained on windows that were held out.

    Raises:
        BadInput: An argument or file that cannot be worked with; nothing is written then.
        UnsupportedModel: A kind of model that cannot be tuned.
        NotInstalled: A backend whose extra is missing.
    """
    opened = path_of("checkpoint", checkpoint)
    place = Place(
        optional_path("output", output) or default_tuned(opened),
        switch_of("force", force),
        switch_of("resume", resume),
    )
    given: dict[str, Any] = {
        "tune_tokens": tokens,
        "tune_passes": passes,
        "tune_rate": rate,
        "seed": seed,
        "sequence_length": sequence_length,
    }
    asked = TuneAsked(
        opened,
        path_text("reference", reference),
        place,
        checked_settings({name: value for name, value in given.items() if value is not None}),
        paths_of("calibration", calibration),
        text_of("backend", backend),
        size_of("max_ram", max_ram),
        switch_of("exact", exact),
    )
    job = prepare_tuning(asked)
    return TuneResult.from_run(close_tuning(run_tuning(job, Teller(progress), again=AGAIN)))
