"""From what a user names (a model, a backend, settings) to the objects that do the work."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgeq.calibration import first_windows, read_text, tokenize
from edgeq.checkpoint import HEAD_FILE, Checkpoint
from edgeq.errors import BadInput
from edgeq.evaluation import Quality, compare
from edgeq.pipeline import Job, check_length
from edgeq.plan import asymmetric_zeros
from edgeq.protocols import ActivationSource, LogitSource, ModelSource
from edgeq.recipe import make_recipe
from edgeq.registry import ACTIVATIONS, LOGITS, find, load, load_backend, load_exporter
from edgeq.sources import open_source
from edgeq.types import NumpyArray

EVALUATION_TEXT = "evaluation.txt"
MANIFEST_FILE = "manifest.json"
DEVICES = {"reference": "cpu"}


def make_job(
    source: ModelSource,
    settings: Mapping[str, Any],
    *,
    backend: str = "auto",
    calibration: str | None = None,
    exports: Sequence[str] = (),
) -> Job:
    """A run of `edgeq.pipeline.quantize`; settings are those of `edgeq.recipe`.

    zeros "asymmetric" becomes the kind of zero point that all exports hold without loss.
    """
    exporters = [load_exporter(name) for name in exports]
    settings = dict(settings)
    if settings.get("zeros") == "asymmetric":
        settings["zeros"] = asymmetric_zeros(exporters)
    recipe = make_recipe(settings)
    loaded = load_backend(backend)
    return Job(source, recipe, loaded, partial(make_activations, loaded.name), read_text(calibration), exporters)


def make_activations(backend: str, source: ModelSource, windows: NumpyArray, drift: bool) -> ActivationSource:
    """The calibration streams that go with a backend."""
    device = DEVICES.get(backend, backend)
    streams: ActivationSource = load(ACTIVATIONS, "calibration")(source, windows, device=device, drift=drift)
    return streams


def open_model(name: str) -> ModelSource:
    """A quantized checkpoint, or whatever `open_source` opens."""
    path = Path(name).expanduser()
    return Checkpoint(path) if (path / HEAD_FILE).is_file() else open_source(name)


def find_gguf(name: str) -> Path | None:
    """The GGUF file that a target names: itself, or the one in an export's directory."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path
    if (path / MANIFEST_FILE).is_file():
        files = sorted(path.glob("*.gguf"))
        return files[0] if files else None
    return None


def evaluate(
    target: str,
    *,
    reference: str | None,
    text: str | None,
    windows: int,
    sequence_length: int,
    runtime: str | None = None,
    backend: str = "auto",
) -> tuple[Quality, str]:
    """The quality of a checkpoint, model or GGUF file, and the runtime that ran it.

    A GGUF file runs in llama.cpp unless another runtime is named; everything else runs in torch.
    """
    gguf = find_gguf(target)
    chosen = runtime or ("llama.cpp" if gguf else "torch")
    check_runtime(chosen)
    if chosen == "llama.cpp" and gguf is None:
        raise BadInput(f"runtime 'llama.cpp' runs GGUF files, not {target!r}; export it with --format gguf first")
    original = open_model(reference) if reference is not None else None
    # llama.cpp reads its file itself: only the words that nobody else tokenizes need it opened here
    source = open_model(str(gguf or target)) if chosen == "torch" or original is None else original
    tokens = tokenize(original or source, read_text(text, default=EVALUATION_TEXT))
    ids = first_windows(tokens, windows=windows, sequence_length=sequence_length)
    for model in filter(None, (source, original)):
        check_length(model, sequence_length)
    logits = torch_logits(source, backend) if chosen == "torch" else llama_cpp_logits(gguf)
    references = torch_logits(original, backend).logits(ids) if original is not None else None
    return compare(ids, logits.logits(ids), references), chosen


def check_runtime(name: str) -> None:
    """Raises: BadInput for an unknown runtime, NotInstalled for one that is not there; before work starts."""
    load(find(LOGITS, name, "runtime"), f"runtime {name!r}").check_installed()


def torch_logits(source: ModelSource, backend: str) -> LogitSource:
    name = load_backend(backend).name
    logits: LogitSource = load(LOGITS["torch"], "evaluation")(source, device=DEVICES.get(name, name))
    return logits


def llama_cpp_logits(gguf: Path | None) -> LogitSource:
    logits: LogitSource = load(LOGITS["llama.cpp"], "runtime 'llama.cpp'")(gguf)
    return logits
