"""Names of backends, formats and runtimes to the code behind them, imported on demand."""

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from edgeq.errors import BadInput, NotInstalled, install, reason_of
from edgeq.protocols import Backend, Exporter

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where something lies ("module:attribute"), the extra that installs what it needs, arguments
    to make it with.
    """

    target: str
    extra: str = ""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """A backend, the framework that runs forward passes for it, and the device it runs them on."""

    entry: Entry
    framework: str
    device: str | None = None


def _torch(device: str) -> BackendEntry:
    return BackendEntry(
        Entry("edgeq_backends.torch.backend:TorchBackend", "cuda", (device,)), "torch", device
    )


BACKENDS = {
    "cuda": _torch("cuda"),
    "cpu": _torch("cpu"),
    "mps": _torch("mps"),
    "mlx": BackendEntry(Entry("edgeq_backends.mlx.backend:MlxBackend", "mlx"), "mlx"),
    "reference": BackendEntry(
        Entry("edgeq_backends.reference:ReferenceBackend", "cuda"), "torch", "cpu"
    ),
}
ACTIVATIONS = {
    "torch": Entry("edgeq_backends.torch.activations:TorchActivations", "cuda"),
    "mlx": Entry("edgeq_backends.mlx.activations:MlxActivations", "mlx"),
}
WRITERS = {
    "torch": Entry("edgeq_backends.torch.writer:TorchWriter", "cuda"),
    "mlx": Entry("edgeq_backends.mlx.writer:MlxWriter", "mlx"),
}
LOGITS = {
    "torch": Entry("edgeq_backends.torch.activations:TorchLogits", "cuda"),
    "mlx": Entry("edgeq_backends.mlx.activations:MlxLogits", "mlx"),
    "llama.cpp": Entry("edgeq_backends.llama_cpp:LlamaCppLogits", "llama-cpp"),
    "mlx-lm": Entry("edgeq_backends.mlx.runtime:MlxLmLogits", "mlx"),
    "onnxruntime": Entry("edgeq_backends.onnx_runtime:OnnxRuntimeLogits", "onnx"),
    "gptqmodel": Entry("edgeq_backends.torch.directories:GptqModelLogits", "cuda"),
    "compressed-tensors": Entry(
        "edgeq_backends.torch.directories:CompressedTensorsLogits", "compressed-tensors"
    ),
}
RUNTIMES = {
    "gguf": "llama.cpp",
    "mlx": "mlx-lm",
    "onnx": "onnxruntime",
    "gptq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
}
"""What runs the files of a format."""
EXPORTERS = {
    "gguf": Entry("edgeq_exporters.gguf.exporter:GgufExporter", "gguf"),
    "mlx": Entry("edgeq_exporters.mlx.exporter:MlxExporter", "mlx"),
    "onnx": Entry("edgeq_exporters.onnx.exporter:OnnxExporter", "onnx"),
    "gptq": Entry("edgeq_exporters.hugging_face.gptq:GptqExporter"),
    "compressed-tensors": Entry(
        "edgeq_exporters.hugging_face.compressed_tensors:CompressedTensorsExporter"
    ),
}
FORMAT_OPTIONS = {"onnx": ("accuracy_level", "qdq")}
"""By format: arguments that its exporter can be made with."""
READERS = {
    "gguf": Entry("edgeq_exporters.gguf.reader:GgufReader", "gguf"),
    "mlx": Entry("edgeq_exporters.mlx.reader:MlxReader"),
    "gptq": Entry("edgeq_exporters.hugging_face.read_gptq:GptqReader"),
    "compressed-tensors": Entry(
        "edgeq_exporters.hugging_face.read_compressed_tensors:CompressedTensorsReader"
    ),
    "onnx": Entry("edgeq_exporters.onnx.reader:OnnxReader", "onnx"),
}
"""What reads the exports of a format back from disk; see `edgeq.protocols.ExportReader`."""


def load(entry: Entry, what: str) -> Any:
    """The attribute an entry names. Raises: NotInstalled naming the extra when its import fails."""
    module, _, attribute = entry.target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise NotInstalled(
            f"{what} needs {error.name}, which is not installed; {install(entry.extra)}"
        ) from error
    except ImportError as error:
        raise NotInstalled(
            f"{what} cannot be loaded ({reason_of(error)}); {install(entry.extra)}"
        ) from error


def find(table: Mapping[str, T], name: str, what: str) -> T:
    """An entry by name. Raises: BadInput listing the known names."""
    if name not in table:
        raise BadInput(f"{what} {name!r} is not known; choose one of {', '.join(table)}")
    return table[name]


def choose_backend(name: str) -> str:
    """What "auto" stands for: MLX on Apple silicon or where torch is missing, else CUDA if there is
    some, else cpu.
    """
    if name != "auto":
        find({"auto": None, **BACKENDS}, name, "backend")
        return name
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    if (apple or not _is_installed("torch")) and _is_installed("mlx_lm"):
        return "mlx"
    return "cuda" if _cuda_is_available() else "cpu"


def device_of(backend: str) -> dict[str, str]:
    """The argument that places forward passes, where their framework takes one."""
    device = BACKENDS[backend].device
    return {} if device is None else {"device": device}


def load_backend(name: str) -> Backend:
    """A backend by name; see `choose_backend` for "auto"."""
    name = choose_backend(name)
    entry = BACKENDS[name].entry
    backend: Backend = load(entry, f"backend {name!r}")(*entry.arguments)
    return backend


def load_exporter(name: str, options: Mapping[str, Any] | None = None) -> Exporter:
    """An exporter by the name of its format, made with options; None is an option that was not
    given.

    Raises: BadInput for an option that the format does not have.
    """
    entry = find(EXPORTERS, name, "format")
    given = {option: value for option, value in (options or {}).items() if value is not None}
    check_format_options([name], given)
    exporter: Exporter = load(entry, f"format {name!r}")(**given)
    return exporter


def load_exporters(names: Sequence[str], options: Mapping[str, Any]) -> list[Exporter]:
    """Exporters by name, each once and made with those options that its format has.

    Raises: BadInput for an option that none of them has.
    """
    check_format_options(names, options)
    return [load_exporter(name, options_of(name, options)) for name in dict.fromkeys(names)]


def options_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a format has."""
    return {
        option: value for option, value in options.items() if option in FORMAT_OPTIONS.get(name, ())
    }


def check_format_options(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Raises: BadInput for an option that was given and that no format among these has."""
    for option, value in options.items():
        if value is None or any(option in FORMAT_OPTIONS.get(name, ()) for name in names):
            continue
        having = ", ".join(name for name, known in FORMAT_OPTIONS.items() if option in known)
        flag = f"--{option.replace('_', '-')}"
        asked = " or ".join(names) or "no export"
        raise BadInput(f"option {flag} is one of format {having}, not of {asked}; leave it out")


def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


def _cuda_is_available() -> bool:
    try:
        return bool(import_module("torch").cuda.is_available())
    except ImportError:
        return False
