"""What a target of `edgeq evaluate` is, which runtime runs it, and what it reads.

Runtimes are backends, found by the registry. Measuring is `edgeq.measuring.evaluate`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput, reason_of
from edgeq.files.json_files import read_json
from edgeq.files.ownership import HEAD_FILE, MANIFEST_FILE
from edgeq.files.plain_files import refuse_odd_files, what_to_do
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


@dataclass(frozen=True, slots=True)
class Exported:
    """The format of an exported model and what its runtime opens."""

    kind: str
    path: Path


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
        config = read_json(self.path / "config.json", missing=NO_CONFIG, mend=EXPORT_AGAIN)
        stated = [config.get(key) for key in ("vocab_size", "max_position_embeddings")]
        vocabulary, context = (size if is_size(size) else None for size in stated)
        return StatedSizes(self.path.name, vocabulary, context)

    def companions(self) -> Mapping[str, bytes]:
        file = self.path / "tokenizer.json"
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


def in_runtime(exported: Exported, logits: LogitSource) -> TextModel:
    """Say what an exported file reads: its context may be cut to less than the original's.

    A runtime of single files says so itself, others go by config.json.
    """
    folder = exported.path if exported.path.is_dir() else exported.path.parent
    context = getattr(logits, "context", None)
    if context is None and (folder / "config.json").is_file():
        return DescribedDirectory(folder)
    return ExportedFile(StatedSizes(exported.path.name, None, context))


def described_export(target: str) -> DescribedDirectory:
    """Open the directory that an exported directory or file lies in, for its tokenizer."""
    path = Path(target).expanduser()
    return DescribedDirectory(path.parent if path.is_file() else path)


def open_model(name: str) -> ModelSource:
    """Open a quantized checkpoint, or whatever `open_source` opens."""
    path = Path(name).expanduser()
    return Checkpoint(path) if (path / HEAD_FILE).is_file() else open_source(name)


def open_target(
    target: str, exported: Exported | None, runtime: str, original: ModelSource | None
) -> ModelSource | None:
    """Open a target's tensors, or only its tokenizer, where needed and readable; else None."""
    if exported is None:
        return open_model(target)
    if find_format(exported.kind).is_model and (runtime in ACTIVATIONS or original is None):
        return open_source(str(exported.path))
    return None


def find_export(name: str) -> Exported | None:
    """Find the exported model that a target names: a single file, or the directory of an export."""
    path = Path(name).expanduser()
    suffixes = {each.suffix: each.name for each in all_formats() if each.suffix}
    if path.suffix.lower() in suffixes and path.is_file():
        return Exported(suffixes[path.suffix.lower()], path)
    if not (path / MANIFEST_FILE).is_file():
        return None
    kind = read_json(path / MANIFEST_FILE, mend=EXPORT_AGAIN).get("format")
    if not isinstance(kind, str) or kind not in FORMATS:
        return None
    refuse_odd_files(path)
    suffix = find_format(kind).suffix
    files = sorted(path.glob(f"*{suffix}")) if suffix else [path]
    return Exported(kind, files[0]) if files else None


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
