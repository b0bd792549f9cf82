"""Names of backends, formats and runtimes to the code behind them, imported on demand."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from edgeq.errors import BadInput, NotInstalled
from edgeq.protocols import Backend, Exporter


@dataclass(frozen=True, slots=True)
class Entry:
    """Where something lies ("module:attribute"), the extra that installs what it needs, arguments to make it with."""

    target: str
    extra: str
    arguments: tuple[str, ...] = ()


BACKENDS = {
    "cuda": Entry("edgeq_backends.torch:TorchBackend", "cuda", ("cuda",)),
    "cpu": Entry("edgeq_backends.torch:TorchBackend", "cuda", ("cpu",)),
    "mps": Entry("edgeq_backends.torch:TorchBackend", "cuda", ("mps",)),
    "reference": Entry("edgeq_backends.reference:ReferenceBackend", "cuda"),
}
ACTIVATIONS = Entry("edgeq_backends.torch_activations:TorchActivations", "cuda")
LOGITS = {
    "torch": Entry("edgeq_backends.torch_activations:TorchLogits", "cuda"),
    "llama.cpp": Entry("edgeq_backends.llama_cpp:LlamaCppLogits", "llama-cpp"),
}
EXPORTERS = {"gguf": Entry("edgeq_exporters.gguf:GgufExporter", "gguf")}


def load(entry: Entry, what: str) -> Any:
    """The attribute an entry names. Raises: NotInstalled naming the extra when its import fails."""
    module, _, attribute = entry.target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        advice = f"run: pip install 'edgeq[{entry.extra}]'"
        raise NotInstalled(f"{what} needs {error.name}, which is not installed; {advice}") from error
    except ImportError as error:
        raise NotInstalled(f"{what} cannot be loaded ({error}); run: pip install -U 'edgeq[{entry.extra}]'") from error


def find(table: dict[str, Entry], name: str, what: str) -> Entry:
    """An entry by name. Raises: BadInput listing the known names."""
    if name not in table:
        raise BadInput(f"{what} {name!r} is not known; choose one of {', '.join(table)}")
    return table[name]


def load_backend(name: str) -> Backend:
    """A backend by name; "auto" takes CUDA where there is a device, else the CPU."""
    if name == "auto":
        name = "cuda" if _cuda_is_available() else "cpu"
    entry = find({"auto": BACKENDS["cpu"], **BACKENDS}, name, "backend")
    backend: Backend = load(entry, f"backend {name!r}")(*entry.arguments)
    return backend


def load_exporter(name: str) -> Exporter:
    """An exporter by the name of its format."""
    exporter: Exporter = load(find(EXPORTERS, name, "format"), f"format {name!r}")()
    return exporter


def _cuda_is_available() -> bool:
    try:
        return bool(import_module("torch").cuda.is_available())
    except ImportError:
        return False
