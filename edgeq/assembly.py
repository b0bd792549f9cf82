"""From what a user names (a model, a backend, settings) to the objects of a run."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from edgeq.pipeline import Job
from edgeq.plan import asymmetric_zeros
from edgeq.protocols import ActivationSource, ModelSource, TextWriter
from edgeq.recipe import Recipe, make_recipe
from edgeq.registry import ACTIVATIONS, BACKENDS, WRITERS, device_of, load, load_backend, load_exporters
from edgeq.self_text import Wrote, written_windows
from edgeq.texts import Calibration, Text, Windows, make_calibration, read_texts
from edgeq.types import NumpyArray


def make_job(
    source: ModelSource,
    settings: Mapping[str, Any],
    *,
    backend: str = "auto",
    calibration: Sequence[str] = (),
    exports: Sequence[str] = (),
    export_options: Mapping[str, Any] | None = None,
) -> Job:
    """A run of `edgeq.pipeline.quantize`; settings are those of `edgeq.recipe`, export_options those of the formats.

    calibration names texts as `edgeq.texts.read_texts` takes them; without any, the one that ships with edgeq.
    zeros "asymmetric" becomes the kind of zero point that all exports hold without loss.
    """
    exporters = load_exporters(exports, export_options or {})
    settings = dict(settings)
    if settings.get("zeros") == "asymmetric":
        settings["zeros"] = asymmetric_zeros(exporters)
    recipe = make_recipe(settings)
    loaded = load_backend(backend)
    windows = partial(calibration_windows, loaded.name, read_texts(calibration))
    return Job(source, recipe, loaded, partial(make_activations, loaded.name), windows, exporters)


def calibration_windows(
    backend: str, texts: Sequence[Text], source: ModelSource, recipe: Recipe, wrote: Wrote
) -> Calibration:
    """What a recipe draws from its texts; text of the model's own is written by the framework of the backend."""
    framework, device = BACKENDS[backend].framework, device_of(backend)

    def make_writer(source: ModelSource, allowed: Windows, seed: int) -> TextWriter:
        writer: TextWriter = load(WRITERS[framework], "self-written text")(source, allowed, seed, **device)
        return writer

    def write(count: int, length: int, seed: int) -> Windows:
        where = " ".join([framework, *device.values()])
        return written_windows(source, make_writer, wrote, framework=where, count=count, length=length, seed=seed)

    return make_calibration(
        source, texts, write, samples=recipe.samples, sequence_length=recipe.sequence_length, seed=recipe.seed
    )


def make_activations(backend: str, source: ModelSource, windows: NumpyArray, drift: float) -> ActivationSource:
    """The calibration streams that go with a backend."""
    entry = ACTIVATIONS[BACKENDS[backend].framework]
    streams: ActivationSource = load(entry, "calibration")(source, windows, drift=drift, **device_of(backend))
    return streams
