"""From what a user names (a model, a backend, settings) to the objects of a run.

The run itself is `edgeq.run.pipeline`, and how it fits into memory `edgeq.run.fitting`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeq.calibration.self_text import Wrote, written_windows
from edgeq.calibration.texts import (
    Calibration,
    ChosenTexts,
    Text,
    Windows,
    choose_texts,
    divide,
    make_calibration,
    most_at_once,
)
from edgeq.errors import BadInput
from edgeq.format_parts import Exporter
from edgeq.protocols import ActivationSource, ModelSource, TextWriter
from edgeq.recipe.layer_grids import asymmetric_zeros
from edgeq.recipe.recipe import Recipe, make_recipe
from edgeq.recipe.setting_rows import PLAIN
from edgeq.recipe.settings import TABLE
from edgeq.recipe.weighing import weighed_recipe
from edgeq.registry import (
    ACTIVATIONS,
    BACKENDS,
    GRADIENTS,
    TOKEN_GRADIENTS,
    WRITERS,
    device_of,
    find_tuner,
    load,
    load_backend,
    load_exporters,
)
from edgeq.run.pipeline import Job
from edgeq.sources import needing_gguf
from edgeq.sources.importance import Importance
from edgeq.streams.backward import Noted, Sensitivities
from edgeq.streams.blockwise import CALIBRATION_BATCH, Flow
from edgeq.types import NumpyArray

USUAL_LENGTH: int = TABLE["sequence_length"].defaults[PLAIN]
SHORTEST_LENGTH = 8  # of sequences that settings allow


def make_job(
    source: ModelSource,
    settings: Mapping[str, Any],
    *,
    backend: str = "auto",
    calibration: Sequence[str] = (),
    exports: Sequence[str] = (),
    export_options: Mapping[str, Any] | None = None,
    imatrix: Path | None = None,
    has_budget: bool = False,
) -> Job:
    """Assemble what `edgeq.run.pipeline.quantize` runs, from names and plain settings.

    settings are those of `make_recipe`, export_options those of the formats. calibration names
    texts as `edgeq.calibration.texts.choose_texts` takes them; without any, the default is read
    where it is needed. zeros "asymmetric" becomes the kind of zero point that all exports hold
    without loss, and scales are in bfloat16 where the model is, unless settings choose a type.
    imatrix is a file that weighs the search for scales; nothing is calibrated then. has_budget says
    that types are to be chosen by what they cost on text.

    Raises: BadInput and the other errors of `edgeq.errors`.
    """
    if imatrix is not None and calibration:
        raise BadInput(
            f"--imatrix with --calibration {calibration[0]!r}: an importance matrix weighs the "
            "search for scales where no text is calibrated on; give one of the two"
        )
    exporters = load_exporters(exports, export_options or {})
    recipe = chosen_recipe(settings, source, exporters, weighed=imatrix is not None)
    loaded = load_backend(backend, exact=recipe.exact)
    if recipe.tune is True:
        find_tuner(loaded.name)
    importance = None if imatrix is None else load_importance(imatrix, source)
    budgeted = has_budget and imatrix is None
    reads_text = bool(calibration) or recipe.needs_calibration or bool(recipe.tune) or budgeted
    chosen = texts_for(recipe, calibration, source) if reads_text else ChosenTexts(())
    windows = CalibrationMaker(loaded.name, chosen.texts)
    if recipe.token_weights != "none":
        load(TOKEN_GRADIENTS["torch"], "token_weights")  # missing, it would be found late
    return Job(
        source,
        recipe,
        loaded,
        partial(make_activations, loaded.name, exact=recipe.needs_exact_passes),
        windows,
        exporters,
        characters=most_at_once(chosen.texts),
        importance=importance,
        draw_apart=replace(windows, apart=True),
        measure_tokens=partial(measure_tokens, loaded.name),
        text_notes=chosen.notes,
    )


def texts_for(recipe: Recipe, calibration: Sequence[str], source: ModelSource) -> ChosenTexts:
    """Read the texts that are named, or the default, for the sequences of a recipe.

    A model is solved and tuned on the same.

    Raises: BadInput.
    """
    fewest = recipe.sequence_length + recipe.samples  # each sequence starts at a place of its own
    return choose_texts(calibration, source, fewest_tokens=fewest)


def chosen_recipe(
    settings: Mapping[str, Any],
    source: ModelSource,
    exporters: Sequence[Exporter],
    *,
    weighed: bool = False,
) -> Recipe:
    """Make a recipe from plain settings, for a model and its exports.

    weighed says that an importance matrix takes the place of calibration.

    Raises: BadInput.
    """
    fitting = with_length(with_scale_dtype(settings, source), source)
    settled = with_kind_of_zeros(fitting, exporters)
    return weighed_recipe(settled) if weighed else make_recipe(settled)


def load_importance(path: Path, source: ModelSource) -> Importance:
    """Read what an importance matrix says of a model.

    Raises: BadInput, UnsupportedModel, NotInstalled.
    """
    with needing_gguf("reading an importance matrix"):
        from edgeq.sources.imatrix import read_importance  # noqa: PLC0415
    return read_importance(path, source.record.decoder)


def with_scale_dtype(settings: Mapping[str, Any], source: ModelSource) -> dict[str, Any]:
    """Have scales in bfloat16 where the model is, unless the settings choose a type.

    Runtimes that compute in bfloat16 round scales to it when they load a file; float16 holds all
    but the smallest and largest of them.
    """
    chosen = {} if source.record.dtype != "bfloat16" else {"scale_dtype": source.record.dtype}
    return {**chosen, **settings}


def with_length(settings: Mapping[str, Any], source: ModelSource) -> dict[str, Any]:
    """Have sequences as long as the model reads where that is less than they usually are.

    Settings that choose a length keep it, and are refused where the model reads less.
    """
    longest = source.record.context
    is_shorter = longest is not None and SHORTEST_LENGTH <= longest < USUAL_LENGTH
    return {**({"sequence_length": longest} if is_shorter else {}), **settings}


def length_notes(recipe: Recipe, source: ModelSource) -> list[str]:
    """Say that sequences are as short as the model makes them, where they are."""
    length = recipe.sequence_length
    if not recipe.needs_calibration or not source.record.context == length < USUAL_LENGTH:
        return []
    return [f"sequences of {length} tokens instead of {USUAL_LENGTH}: the model reads no more"]


def with_kind_of_zeros(
    settings: Mapping[str, Any], exporters: Sequence[Exporter]
) -> dict[str, Any]:
    """Replace "asymmetric" by the kind of zero points it stands for, in overrides too.

    Raises: BadInput when the exports have no such kind in common.
    """
    settled = dict(settings)
    overrides = settings.get("overrides")
    if settled.get("zeros") == "asymmetric":
        settled["zeros"] = asymmetric_zeros(exporters)
    if isinstance(overrides, list | tuple):
        settled["overrides"] = [
            with_kind_of_zeros(item, exporters) if isinstance(item, Mapping) else item
            for item in overrides
        ]
    return settled


@dataclass(frozen=True, slots=True)
class CalibrationMaker:
    """Draws a recipe's token windows; the model's own text is written by the backend's framework.

    resident is how many blocks stay in memory meanwhile, None for the whole model. apart: see
    `edgeq.calibration.texts.make_calibration`.
    """

    backend: str
    texts: Sequence[Text]
    resident: int | None = None
    apart: bool = False

    def __call__(self, source: ModelSource, recipe: Recipe, wrote: Wrote) -> Calibration:
        framework = BACKENDS[self.backend].framework
        device = device_of(self.backend)
        kept = {} if self.resident is None else {"resident": self.resident}

        def make_writer(source: ModelSource, allowed: Windows, seed: int) -> TextWriter:
            make = load(WRITERS[framework], "self-written text")
            writer: TextWriter = make(source, allowed, seed, **device, **kept)
            return writer

        def write(count: int, length: int, seed: int) -> Windows:
            where = " ".join([framework, *device.values()])
            return written_windows(
                source, make_writer, wrote, framework=where, count=count, length=length, seed=seed
            )

        return make_calibration(
            source,
            self.texts,
            write,
            samples=recipe.samples,
            sequence_length=recipe.sequence_length,
            seed=recipe.seed,
            apart=self.apart,
        )

    def written(self, samples: int) -> int:
        """Count the sequences that the model writes itself."""
        counts = divide(samples, [text.share for text in self.texts])
        pairs = zip(self.texts, counts, strict=True)
        return sum(count for text, count in pairs if text.content is None)


def check_gradients() -> None:
    """Refuse a budget where the framework that runs models backward is missing.

    Raises: NotInstalled.
    """
    load(GRADIENTS["torch"], "a budget")


def measure_gradients(
    backend: str, source: ModelSource, windows: NumpyArray, seed: int, *, folder: Path | None
) -> Sensitivities:
    """Measure how much layers matter, in the one framework that runs models backward.

    Hidden states lie in a folder, or in memory without one.
    """
    measure = load(GRADIENTS["torch"], "a budget")
    found: Sensitivities = measure(
        source, windows, seed=seed, states_folder=folder, **gradient_device(backend)
    )
    return found


def measure_tokens(
    backend: str,
    source: ModelSource,
    windows: NumpyArray,
    recipe: Recipe,
    *,
    folder: Path | None = None,
    tokens_at_once: int = CALIBRATION_BATCH,
) -> Iterator[tuple[int, int, Noted]]:
    """Measure what tokens decide, in the one framework that runs models backward.

    Hidden states lie in a folder, those of all windows, or in memory without one, those of so many
    tokens.
    """
    measure = load(TOKEN_GRADIENTS["torch"], "token_weights")
    at_once = len(windows) if folder is not None else max(1, tokens_at_once // windows.shape[1])
    found: Iterator[tuple[int, int, Noted]] = measure(
        source,
        windows,
        seed=recipe.seed,
        squares=recipe.token_weights == "squares",
        at_once=at_once,
        states_folder=folder,
        **gradient_device(backend),
    )
    return found


def gradient_device(backend: str) -> dict[str, str]:
    """Give the argument that places torch where models run backward; the CPU has none."""
    return device_of(backend) if BACKENDS[backend].framework == "torch" else {}


def make_activations(
    backend: str,
    source: ModelSource,
    windows: NumpyArray,
    drift: float,
    *,
    exact: bool = False,
    flow: Flow | None = None,
) -> ActivationSource:
    """Make the calibration streams that go with a backend; flow is what the memory plan chose.

    exact: they run in float32 also where bfloat16 is faster.
    """
    make = load(ACTIVATIONS[BACKENDS[backend].framework], "calibration")
    streams: ActivationSource = make(
        source, windows, drift=drift, exact=exact, flow=flow, **device_of(backend)
    )
    return streams
