"""What a target of `edgeq evaluate` is, which runtime runs it, and what it reads.

Runtimes are backends, found by the registry. Measuring is `edgeq.measuring.evaluate`.
"""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput, UnsupportedModel, reason_of
from edgeq.files.json_files import read_json
from edgeq.files.ownership import HEAD_FILE, MANIFEST_FILE
from edgeq.files.plain_files import refuse_odd_files, what_to_do
from edgeq.measuring.foreign import (
    CONFIG_FILE,
    GENAI_FILE,
    RUNS,
    Exported,
    exported_file,
    foreign_directory,
    parts_of,
    refused_method,
)
from edgeq.protocols import LogitSource, ModelSource, TextModel
from edgeq.registry import (
    ACTIVATIONS,
    BACKENDS,
    FORMATS,
    LOGITS,
    all_formats,
    choose_backend,
    device_of,
    find,
    find_format,
    load,
)
from edgeq.sources import open_source

NO_CONFIG = "an export has one beside its weights"
EXPORT_AGAIN = "export it again"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class StatedSizes:
    """The sizes that a text has to fit in a model of which only the config is read."""

    name: str
    vocabulary: int | None
    context: int | None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class DescribedDirectory:
    """A model directory of which only config and tokenizer are read."""

    path: Path

    @property
    def record(self) -> StatedSizes:
        config = stated_sizes(self.path)
        stated = [config.get(key) for key in ("vocab_size", "max_position_embeddings")]
        vocabulary, context = (size if is_size(size) else None for size in stated)
        return StatedSizes(self.path.name, vocabulary, context)

    def companions(self) -> Mapping[str, bytes]:
        file = self.path / TOKENIZER_FILE
        try:
            return {file.name: file.read_bytes()} if file.is_file() else {}
        except OSError as error:
            raise BadInput(
                f"{str(file)!r} cannot be read ({reason_of(error)}); {what_to_do(error)}"
            ) from error


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file as far as texts are measured for it: the context that its runtime finds in it."""

    record: StatedSizes

    def companions(self) -> Mapping[str, bytes]:
        return {}


def is_size(value: Any) -> bool:
    """Say whether a config states a size: JSON's true and numbers below 1 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def stated_sizes(folder: Path) -> Mapping[str, Any]:
    """Read the sizes of an exported model: of its config.json, else as onnxruntime-genai has them.

    Raises: BadInput for a directory without either.
    """
    if not (folder / CONFIG_FILE).exists() and (folder / GENAI_FILE).is_file():
        stated = read_json(folder / GENAI_FILE, mend=EXPORT_AGAIN).get("model")
        sizes = stated if isinstance(stated, dict) else {}
        return sizes | {"max_position_embeddings": sizes.get("context_length")}
    return read_json(folder / CONFIG_FILE, missing=NO_CONFIG, mend=EXPORT_AGAIN)


def folder_of(path: Path) -> Path:
    """Find the directory with the config of an export: its own, or the one that a graph's lies in.

    Repositories of ONNX models hold their graphs one directory below.
    """
    folder = path if path.is_dir() else path.parent
    beside = any((folder / name).is_file() for name in (CONFIG_FILE, GENAI_FILE, TOKENIZER_FILE))
    is_below = not beside and (folder.parent / CONFIG_FILE).is_file()
    return folder.parent if is_below else folder


def in_runtime(exported: Exported, logits: LogitSource) -> TextModel:
    """Say what an exported file reads: its context may be cut to less than the original's.

    A runtime of single files says so itself, others go by config.json.
    """
    folder = folder_of(exported.path)
    context = getattr(logits, "context", None)
    is_described = any((folder / name).is_file() for name in (CONFIG_FILE, GENAI_FILE))
    if context is None and is_described:
        return DescribedDirectory(folder)
    return ExportedFile(StatedSizes(exported.path.name, None, context))


def described_export(target: str) -> DescribedDirectory:
    """Open the directory that an exported directory or file lies in, for its tokenizer."""
    exported = find_export(target)
    path = Path(target).expanduser() if exported is None else exported.path
    return DescribedDirectory(folder_of(path))


def open_model(name: str) -> ModelSource:
    """Open a quantized checkpoint, or whatever `open_source` opens."""
    path = Path(name).expanduser()
    return (
        Checkpoint(path)
        if (path / HEAD_FILE).is_file()
        else open_source(name, also="a checkpoint, an export, ")
    )


def open_target(
    target: str, exported: Exported | None, runtime: str, original: ModelSource | None
) -> ModelSource | None:
    """Open a target's tensors, or only its tokenizer, where needed and readable; else None.

    Raises: BadInput for weights that are packed as no runtime here runs them.
    """
    if exported is None:
        method = refused_method(Path(target).expanduser())
        try:
            return open_model(target)
        except (BadInput, UnsupportedModel) as error:
            if method is None:
                raise
            raise BadInput(
                f"{target!r}: its weights are packed by {method!r}, which nothing here runs; "
                f"give an export for one of these: {RUNS}"
            ) from error
    if find_format(exported.kind).is_model and (runtime in ACTIVATIONS or original is None):
        return open_source(str(exported.path))
    return None


def find_export(name: str) -> Exported | None:
    """Find the exported model that a target names: a single file, or the directory of an export.

    Without a manifest of edgeq's it is recognised by what lies in it.

    Raises: BadInput for one part of several, and for several models to choose from.
    """
    path = Path(name).expanduser()
    suffixes = {each.suffix: each.name for each in all_formats() if each.suffix}
    if path.suffix.lower() in suffixes and path.is_file():
        return exported_file(path, suffixes[path.suffix.lower()])
    if not (path / MANIFEST_FILE).is_file():
        return foreign_directory(path)
    kind = read_json(path / MANIFEST_FILE, mend=EXPORT_AGAIN).get("format")
    if not isinstance(kind, str) or kind not in FORMATS:
        return foreign_directory(path)
    refuse_odd_files(path)
    suffix = find_format(kind).suffix
    files = sorted(path.glob(f"*{suffix}")) if suffix else [path]
    return Exported(kind, files[0]) if files else None


def bytes_of_export(exported: Exported) -> int:
    """Count the bytes of the files that hold the weights of an export."""
    path = exported.path
    if path.is_dir():
        files = list(path.glob("*.safetensors"))
    elif exported.kind == "gguf":
        files = parts_of(path)
    else:
        files = [each for each in path.parent.glob(f"{glob.escape(path.name)}*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def choose_runtime(
    target: str, exported: Exported | None, runtime: str | None, backend: str
) -> str:
    """Choose what runs a target: the named runtime, else the one that goes with it.

    Raises: BadInput when the named runtime cannot.
    """
    if runtime is None:
        return runtime_of([exported.kind] if exported else [], backend)
    find(LOGITS, runtime, "runtime")
    kinds = [each.name for each in all_formats() if each.runtime == runtime]
    if kinds and (exported is None or exported.kind not in kinds):
        named = " or ".join(map(repr, kinds))
        raise BadInput(
            f"runtime {runtime!r} runs exports of format {named}, which {target!r} is not"
        )
    if runtime in ACTIVATIONS and exported is not None and not find_format(exported.kind).is_model:
        raise BadInput(
            f"runtime {runtime!r} cannot read {target!r}, an export of format {exported.kind!r}; "
            f"leave out --runtime, or give the checkpoint it was made from"
        )
    return runtime


def runtime_of(formats: Sequence[str], backend: str) -> str:
    """Name what runs the result of a run: that of its first export, else the backend's framework.

    Raises: BadInput for a format without a runtime.
    """
    if not formats:
        return BACKENDS[choose_backend(backend)].framework
    runtime = find_format(formats[0]).runtime
    if not runtime:
        raise BadInput(
            f"no runtime for format {formats[0]!r}; formats with one: {runnable_names()}"
        )
    return runtime


def runnable_names() -> str:
    """List the formats that something installed with edgeq can run."""
    return ", ".join(each.name for each in all_formats() if each.runtime)


def check_runtime(name: str) -> None:
    """Check a runtime by its name before work starts.

    Raises: BadInput if it is unknown, NotInstalled if it is missing.
    """
    load(find(LOGITS, name, "runtime"), f"runtime {name!r}").check_installed()


def model_logits(source: ModelSource, backend: str) -> LogitSource:
    """Open a model that predicts in the framework of a backend."""
    backend = choose_backend(backend)
    return forward_logits(source, BACKENDS[backend].framework, backend)


def forward_logits(source: ModelSource, framework: str, backend: str) -> LogitSource:
    """Open a model that predicts in a framework, on the backend's device if it has that one."""
    options = device_of(backend) if BACKENDS[backend].framework == framework else {}
    logits: LogitSource = load(LOGITS[framework], "evaluation")(source, **options)
    return logits
