"""From what a user names (a model, a backend, settings) to the objects of a run."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from edgeq.calibration import read_text
from edgeq.pipeline import Job
from edgeq.plan import asymmetric_zeros
from edgeq.protocols import ActivationSource, ModelSource
from edgeq.recipe import make_recipe
from edgeq.registry import ACTIVATIONS, BACKENDS, device_of, load, load_backend, load_exporters
from edgeq.streams import Flow
from edgeq.types import NumpyArray


def make_job(
    source: ModelSource,
    settings: Mapping[str, Any],
    *,
    backend: str = "auto",
    calibration: str | None = None,
    exports: Sequence[str] = (),
    export_options: Mapping[str, Any] | None = None,
    flow: Flow | None = None,
) -> Job:
    """A run of `edgeq.pipeline.quantize`; settings are those of `edgeq.recipe`, export_options those of the formats.

    zeros "asymmetric" becomes the kind of zero point that all exports hold without loss.
    """
    exporters = load_exporters(exports, export_options or {})
    settings = dict(settings)
    if settings.get("zeros") == "asymmetric":
        settings["zeros"] = asymmetric_zeros(exporters)
    recipe = make_recipe(settings)
    loaded = load_backend(backend)
    activations = partial(make_activations, loaded.name, flow=flow)
    return Job(source, recipe, loaded, activations, read_text(calibration), exporters)


def make_activations(
    backend: str, source: ModelSource, windows: NumpyArray, drift: bool, *, flow: Flow | None = None
) -> ActivationSource:
    """The calibration streams that go with a backend; flow is what the memory plan chose."""
    make = load(ACTIVATIONS[BACKENDS[backend].framework], "calibration")
    streams: ActivationSource = make(source, windows, drift=drift, flow=flow, **device_of(backend))
    return streams
