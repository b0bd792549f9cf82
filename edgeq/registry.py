"""Names of backends, formats and runtimes to the code behind them, imported on demand.

This is the only module that knows backends and exporters, and it knows them as strings. A format
has one line here; what it holds and takes is said by its own description.
"""

import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgeq.errors import BadInput, NotInstalled, reason_of
from edgeq.format_parts import Exporter, ExportReader, Format
from edgeq.protocols import Backend
from edgeq.words import install

if TYPE_CHECKING:
    from edgeq.decoder import Decoder  # which loads NumPy, and --help reads this module

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """Says where something lies ("module:attribute") and how it is made.

    extra installs what its module imports; arguments are those that it is made with.
    """

    target: str
    extra: str = ""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """Names a backend, the framework of its forward passes, and the device it runs them on.

    tunes says whether that framework also tunes for it what it has solved.
    """

    entry: Entry
    framework: str
    device: str | None = None
    tunes: bool = True


def _torch(device: str, extra: str) -> BackendEntry:
    entry = Entry("edgeq_backends.torch.backend:TorchBackend", extra, (device,))
    return BackendEntry(entry, "torch", device)


BACKENDS = {
    "cuda": _torch("cuda", "cuda"),
    "cpu": _torch("cpu", "cpu"),
    "mps": _torch("mps", "cpu"),
    "mlx": BackendEntry(Entry("edgeq_backends.mlx.backend:MlxBackend", "mlx"), "mlx"),
    "reference": BackendEntry(
        Entry("edgeq_backends.reference:ReferenceBackend", "cpu"), "torch", "cpu", tunes=False
    ),
}
BACKENDS_MEANT = {
    "gpu": "cuda (NVIDIA), mps or mlx (Apple)",
    "nvidia": "cuda",
    "rocm": "cuda, which torch calls AMD's GPUs too",
    "metal": "mps or mlx",
    "apple": "mlx or mps",
    "torch": "cpu, cuda or mps",
    "pytorch": "cpu, cuda or mps",
    "numpy": "reference",
}
"""What people call backends, and which they mean."""
ACTIVATIONS = {
    "torch": Entry("edgeq_backends.torch.activations:TorchActivations", "cuda"),
    "mlx": Entry("edgeq_backends.mlx.activations:MlxActivations", "mlx"),
}
WRITERS = {
    "torch": Entry("edgeq_backends.torch.writer:TorchWriter", "cuda"),
    "mlx": Entry("edgeq_backends.mlx.writer:MlxWriter", "mlx"),
}
GRADIENTS = {
    "torch": Entry("edgeq_backends.torch.gradients:torch_sensitivities", "cuda"),
}
"""What runs a model backward; backends of other frameworks use it on the CPU."""
TOKEN_GRADIENTS = {
    "torch": Entry("edgeq_backends.torch.gradients:torch_tokens", "cuda"),
}
"""What measures tokens while it runs a model backward, for all backends as above."""
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
SPEAKERS = {
    "torch": Entry("edgeq_backends.torch.speaking:TorchSpeaker", "cuda"),
    "mlx": Entry("edgeq_backends.mlx.speaking:MlxSpeaker", "mlx"),
    "llama.cpp": Entry("edgeq_backends.llama_cpp_speaking:LlamaCppSpeaker", "llama-cpp"),
    "mlx-lm": Entry("edgeq_backends.mlx.speaking:MlxLmSpeaker", "mlx"),
    "onnxruntime": Entry("edgeq_backends.onnx_speaking:open_speaker", "onnx"),
    "gptqmodel": Entry("edgeq_backends.torch.speaking:GptqModelSpeaker", "cuda"),
    "compressed-tensors": Entry(
        "edgeq_backends.torch.speaking:CompressedTensorsSpeaker", "compressed-tensors"
    ),
}
"""What writes text token by token, by runtime: a framework takes a source, others take a path."""
TUNERS = {
    "torch": Entry("edgeq_backends.torch.tuning:torch_models", "cuda"),
    "mlx": Entry("edgeq_backends.mlx.tuning:mlx_models", "mlx"),
}
"""What runs a checkpoint and its original forward and back, by framework."""
REFERENCES = {
    "transformers": Entry("edgeq_backends.torch.originals:TransformersLogits", "cuda"),
    "llama.cpp": Entry("edgeq_backends.llama_cpp:LlamaCppLogits", "llama-cpp"),
}
"""What reads an original model, so that targets are measured against a reading of its own."""
DESCRIBERS = {
    "transformers": Entry("edgeq_backends.torch.structure:describe", "cuda"),
}
"""What describes models whose family `edgeq.architectures` has no file for."""
COMPLETERS = {
    "transformers": Entry("edgeq_backends.torch.empty:with_silent_sizes", "cuda"),
}
"""What knows the sizes that a config takes where it is silent."""
FORMATS = {
    "gguf": "edgeq_exporters.gguf.format:FORMAT",
    "mlx": "edgeq_exporters.mlx.format:FORMAT",
    "onnx": "edgeq_exporters.onnx.format:FORMAT",
    "gptq": "edgeq_exporters.hugging_face.formats:GPTQ",
    "compressed-tensors": "edgeq_exporters.hugging_face.formats:COMPRESSED_TENSORS",
}
"""Where the `edgeq.protocols.Format` of each format lies; it says everything else."""
PROGRAMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ollama": ("Ollama", ("gguf",)),
    "lmstudio": ("LM Studio", ("gguf", "mlx")),
    "llamacpp": ("llama.cpp", ("gguf",)),
    "llama": ("llama.cpp", ("gguf",)),
    "ggml": ("llama.cpp", ("gguf",)),
    "koboldcpp": ("KoboldCpp", ("gguf",)),
    "jan": ("Jan", ("gguf",)),
    "gpt4all": ("GPT4All", ("gguf",)),
    "llamafile": ("llamafile", ("gguf",)),
    "mlxlm": ("mlx-lm", ("mlx",)),
    "onnxruntime": ("ONNX Runtime", ("onnx",)),
    "onnxruntimegenai": ("onnxruntime-genai", ("onnx",)),
    "ort": ("ONNX Runtime", ("onnx",)),
    "genai": ("onnxruntime-genai", ("onnx",)),
    "transformersjs": ("Transformers.js", ("onnx",)),
    "gptqmodel": ("GPTQModel", ("gptq",)),
    "autogptq": ("AutoGPTQ", ("gptq",)),
    "vllm": ("vLLM", ("compressed-tensors", "gptq")),
    "sglang": ("SGLang", ("compressed-tensors", "gptq")),
    "transformers": ("transformers", ("compressed-tensors", "gptq")),
    "huggingface": ("transformers", ("compressed-tensors", "gptq")),
    "hf": ("transformers", ("compressed-tensors", "gptq")),
    "llmcompressor": ("vLLM", ("compressed-tensors",)),
}
"""Programs by their names in small letters and digits, and which formats they read."""


def load(entry: Entry, what: str) -> Any:
    """Import what an entry names.

    Raises: NotInstalled with the extra when that fails.
    """
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
    """Look an entry up by name.

    Raises: BadInput listing the known names.
    """
    if name not in table:
        near = get_close_matches(name.lower(), table, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"{what} {name!r} is not known; choose one of {', '.join(table)}{hint}")
    return table[name]


def describe_model(config: Mapping[str, Any]) -> "Decoder":
    """Describe a model of any family that a library can run, as far as its layers go.

    Raises: UnsupportedModel, BadInput, or NotInstalled where the library is missing.
    """
    describe = load(DESCRIBERS["transformers"], f"model_type {config.get('model_type')!r:.60}")
    decoder: Decoder = describe(config)
    return decoder


def with_silent_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a config by the sizes that its type takes where it is silent, if a library says.

    Configs inside of larger ones state only what differs from these.
    """
    try:
        complete = load(COMPLETERS["transformers"], "the sizes of a config")
    except NotInstalled:
        return dict(config)
    completed: dict[str, Any] = complete(config)
    return completed


def choose_backend(name: str) -> str:
    """Say what "auto" stands for on this machine; any other name stands for itself.

    That is MLX on Apple silicon or where torch is missing, else CUDA if there is some, else cpu.

    Raises: BadInput for a name that is not known.
    """
    if name != "auto":
        meant = BACKENDS_MEANT.get(name.lower())
        if meant:
            raise BadInput(f"backend {name!r} is not known; use {meant}")
        find({"auto": None, **BACKENDS}, name, "backend")
        return name
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    if (apple or not _is_installed("torch")) and _is_installed("mlx_lm"):
        return "mlx"
    return "cuda" if _cuda_is_available() else "cpu"


def device_of(backend: str) -> dict[str, str]:
    """Give the argument that places forward passes, where their framework takes one."""
    device = BACKENDS[backend].device
    return {} if device is None else {"device": device}


def can_tune(backend: str) -> bool:
    """Say whether a backend tunes what it has solved."""
    return BACKENDS[backend].tunes and BACKENDS[backend].framework in TUNERS


def find_tuner(backend: str) -> Entry:
    """Find what tunes for a backend.

    Raises: BadInput naming those that tune.
    """
    if not can_tune(backend):
        others = ", ".join(filter(can_tune, BACKENDS))
        raise BadInput(f"backend {backend!r} solves, but does not tune; choose one of {others}")
    return TUNERS[BACKENDS[backend].framework]


def load_backend(name: str, *, exact: bool = False) -> Backend:
    """Make a backend by name; see `choose_backend` for "auto".

    exact: it computes in the widest precision that it has, and not in one that is as good.
    """
    name = choose_backend(name)
    entry = BACKENDS[name].entry
    backend: Backend = load(entry, f"backend {name!r}")(*entry.arguments, exact=exact)
    return backend


def format_read_by(program: str) -> tuple[str, tuple[str, ...]] | None:
    """Say how a program is called and which formats it reads; None where it is not known.

    Users give the names of programs in the place of formats, in any spelling.
    """
    return PROGRAMS.get(re.sub(r"[^a-z0-9]", "", program.lower()))


def find_format(name: str) -> Format:
    """Look a format up by name.

    Raises: BadInput listing the known ones.
    """
    program, read = format_read_by(name) or ("", ())
    if name not in FORMATS and program:
        raise BadInput(
            f"format {name!r} is not known; {program} reads {' and '.join(read)}; choose one of "
            f"{', '.join(FORMATS)}"
        )
    described: Format = load(Entry(find(FORMATS, name, "format")), f"format {name!r}")
    return described


def all_formats() -> list[Format]:
    """List every format, in the order of the table."""
    return [find_format(name) for name in FORMATS]


def load_exporter(name: str, options: Mapping[str, Any] | None = None) -> Exporter:
    """Make the exporter of a format; an option that is None was not given.

    Raises: BadInput for an option that the format does not have.
    """
    described = find_format(name)
    given = {option: value for option, value in (options or {}).items() if value is not None}
    check_format_options([name], given)
    make = load(Entry(described.exporter, described.extra), f"format {name!r}")
    exporter: Exporter = make(**given)
    return exporter


def load_exporters(names: Sequence[str], options: Mapping[str, Any]) -> list[Exporter]:
    """Make exporters by name, each once and with those options that its format has.

    Raises: BadInput for an option that none of them has.
    """
    check_format_options(names, options)
    return [load_exporter(name, options_of(name, options)) for name in dict.fromkeys(names)]


def load_reader(name: str, directory: Path) -> ExportReader:
    """Make the reader of an export in a directory; see `edgeq.format_parts.ExportReader`."""
    described = find_format(name)
    make = load(Entry(described.reader, described.extra), f"verifying {name!r}")
    reader: ExportReader = make(directory)
    return reader


def options_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the options that a format has."""
    known = _option_names(find_format(name))
    return {option: value for option, value in options.items() if option in known}


def check_format_options(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse an option that was given and that no format among these has.

    Raises: BadInput.
    """
    for option, value in options.items():
        if value is None or any(option in options_of(name, options) for name in names):
            continue
        having = ", ".join(each.name for each in all_formats() if option in _option_names(each))
        flag = f"--{option.replace('_', '-')}"
        asked = " or ".join(names) or "no export"
        raise BadInput(f"option {flag} is one of format {having}, not of {asked}; leave it out")


def _option_names(described: Format) -> set[str]:
    return {option.name for option in described.options}


def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


def _cuda_is_available() -> bool:
    try:
        return bool(import_module("torch").cuda.is_available())
    except ImportError:
        return False
