"""Tune a finished checkpoint on what its original predicts."""

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

from edgeq.api.arguments import (
    PathLike,
    check_names,
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
from edgeq.api.documenting import documented
from edgeq.api.progress import ProgressCallback, Teller
from edgeq.api.quantizing import AGAIN
from edgeq.api.request import ARGUMENTS as OF_RUNS
from edgeq.api.request import Argument
from edgeq.api.results import TuneResult
from edgeq.recipe.settings import OF_TUNING, TABLE
from edgeq.run.fitting import Sizes
from edgeq.run.spending import Place
from edgeq.run.tune_run import TuneAsked, default_tuned, prepare_tuning, run_tuning


class TuneArguments(TypedDict, total=False):
    """Keyword arguments of `edgeq.tune`, named like the options of the command."""

    tokens: int | None
    passes: int | None
    rate: float | None
    codes: bool | None
    seed: int | None
    sequence_length: int | None
    calibration: PathLike | Sequence[PathLike]
    exact: bool
    max_ram: str | int | None
    max_vram: str | int | None
    backend: str
    force: bool
    resume: bool


ARGUMENTS: Mapping[str, Argument] = {
    **{
        name: Argument(None, f"{TABLE[of_recipe].help} Unset, as the checkpoint's recipe has it.")
        for name, of_recipe in OF_TUNING.items()
    },
    "calibration": Argument(
        (), "Tune on this text, or several, each perhaps with its share, as `quantize` takes them."
    ),
    "exact": Argument(False, "Pass in float32 throughout, also where bfloat16 is faster."),
    "max_ram": OF_RUNS["max_ram"],
    "max_vram": OF_RUNS["max_vram"],
    "backend": Argument("auto", 'Compute with "auto", "cuda", "cpu", "mps" or "mlx".'),
    "force": OF_RUNS["force"],
    "resume": Argument(False, "Continue a tuning that was stopped, with the same arguments."),
    "progress": OF_RUNS["progress"],
}


@documented(TuneArguments, ("progress",), ARGUMENTS)
@python_words()
def tune(
    checkpoint: PathLike,
    output: PathLike | None = None,
    *,
    reference: PathLike,
    progress: ProgressCallback | None = None,
    **arguments: Unpack[TuneArguments],
) -> TuneResult:
    """Tune a checkpoint so that it predicts what its original does.

    Scales, offsets and norms move, with codes=True a few codes too; sizes stay. It does what
    `edgeq tune` does, byte for byte, and prints nothing.

    Example:
        found = edgeq.tune("llama-4bit", "llama-4bit-tuned", reference="./Llama-3.2-1B")
        print(found.kl_before, found.kl_after)

    Args:
        checkpoint: The directory that `quantize` wrote, or its result.
        output: Write to this directory; must not exist. Without one, CHECKPOINT-tuned.
        reference: The original that the checkpoint was made from, as `quantize` takes it.
        KEYWORDS

    Returns:
        Where the tuned checkpoint lies, and what was gained on windows that were held out.

    Raises:
        BadInput: An argument or file that cannot be worked with; nothing is written then.
        UnsupportedModel: A kind of model that cannot be tuned.
        NotInstalled: A backend whose extra is missing.
        TypeError: An argument that is not known, with the nearest name.
    """
    check_names("tune", arguments, {"checkpoint", "output", "reference", *ARGUMENTS})
    given = {name: default.default for name, default in ARGUMENTS.items()} | dict(arguments)
    settings = {}
    for name, of_recipe in OF_TUNING.items():
        if given[name] is not None:
            TABLE[of_recipe].rule.check(f"{name} =", given[name])
            settings[of_recipe] = given[name]
    opened = path_of("checkpoint", checkpoint)
    asked = TuneAsked(
        opened,
        path_text("reference", reference),
        Place(
            optional_path("output", output) or default_tuned(opened),
            switch_of("force", given["force"]),
            switch_of("resume", given["resume"]),
        ),
        settings,
        paths_of("calibration", given["calibration"]),
        text_of("backend", given["backend"]),
        Sizes(size_of("max_ram", given["max_ram"]), size_of("max_vram", given["max_vram"])),
        switch_of("exact", given["exact"]),
    )
    job = prepare_tuning(asked)
    return TuneResult.from_run(close_tuning(run_tuning(job, Teller(progress), again=AGAIN)))
