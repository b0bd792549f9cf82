"""Make the unharmed input of every reader: tiny models, and what edgeq writes of them.

Nothing here needs a framework: layers are rounded by the NumPy backend.
"""

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from benchmarks.fuzz.gguf_inputs import write_gguf
from benchmarks.synthetic import byte_tokenizer, make_config, random_tensor, shards_of
from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.ownership import temporary_of
from edgeq.measuring.evaluate import find_export
from edgeq.protocols import Site
from edgeq.registry import load_exporter
from edgeq.run.assembly import make_job
from edgeq.run.commits import Run
from edgeq.run.one_export import export
from edgeq.run.pipeline import Job, quantize
from edgeq.solving.report import LayerReport
from edgeq.sources import open_source
from edgeq.sources.imatrix import places_of
from edgeq.sources.imatrix_file import Entry, write_entries
from edgeq.streams.saved_states import HeldBatches, batch_name
from edgeq.types import BlockSpec, NumpyArray

Files = Mapping[str, bytes]

SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|turn|>")
VOCABULARY = 256 + len(SPECIAL_TOKENS)
ROUNDING: Mapping[str, Any] = {
    "solver": "rtn",
    "scales": "none",
    "propagation_strength": 0,
    "bits": 4,
    "group_size": 32,
}
ZEROS_OF = {
    "gguf": "offset",
    "mlx": "offset",
    "onnx": "integer",
    "gptq": "integer",
    "compressed-tensors": "integer",
}
"""The kind of zero points that one layer has in the exports, beside symmetric ones."""
ARCHITECTURES = {"gguf-windows": "gemma3", "gguf-experts": "qwen3moe"}
"""The architectures of further GGUF files, by the names of the inputs."""
CARD = """---
license: other # as below
license_name: 'small-1.0'
license_link: "LICENSE"
base_model:
- somebody/Base-1B
language: [en, de]
---
# Small
"""
RECIPE = """\
quality = "fast"
bits = 4
group_size = 32
zeros = "symmetric"
scale_dtype = "float16"
solver = "quantease"
sweeps = 4
samples = 2
sequence_length = 16
seed = 1
propagation_strength = 0.5
outlier_columns = 0.05

[[overrides]]
layers = "*.down_proj"
bits = 8
zeros = "integer"

[[overrides]]
layers = "model.layers.0.*"
bits = 16
"""
TEXT = "It's 2026: the café's 12345 mice don't sleep.\n\n  They'LL  run\t away!! x=1\n" * 4


class Stopping:
    """An observer that stops a run behind its first block."""

    def progressed(self, what: str, done: int = 0, total: int = 0) -> None: ...
    def begin(self, blocks: int, done: int) -> None: ...
    def solved(self, report: LayerReport) -> None: ...
    def evaluated(self, model: str, done: int, total: int) -> None: ...

    def finished_block(self, index: int) -> None:
        raise InterruptedError


class Quiet(Stopping):
    """An observer that says nothing."""

    def finished_block(self, index: int) -> None: ...


class TwoStates:
    """Hidden states of no stream, saved as real ones are."""

    def hold(self, let_go: Callable[[], None]) -> HeldBatches:
        def fetch() -> NumpyArray:
            return np.ones((2, 4, 32), np.float32)

        names = [batch_name(stream, 0) for stream in ("full", "quantized")]
        return HeldBatches([(name, lambda: fetch) for name in names], copies=True)

    def restore(self, folder: Path) -> None: ...
    def sites(self, block: BlockSpec) -> Iterator[Site]: ...


def rounding_job(source: Path, zeros: str = "symmetric", exports: tuple[str, ...] = ()) -> Job:
    """Assemble a run that rounds and needs no forward passes."""
    override = {"layers": "*.down_proj", "zeros": zeros}
    settings = {**ROUNDING, "overrides": [override]}
    return make_job(open_source(str(source)), settings, backend="reference", exports=exports)


def write_model(folder: Path) -> None:
    """Write a Llama of two blocks in three shards, with all files that may lie beside them."""
    folder.mkdir()
    config = make_config(hidden=32, inner=32, heads=2, key_heads=1, blocks=2, vocabulary=VOCABULARY)
    config |= {
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": 256,
        "eos_token_id": [257, 258],
        "rope_theta": 10000.0,
        "rope_scaling": None,
    }
    rng = np.random.default_rng(0)
    shards = shards_of(config)
    for file, shapes in shards.items():
        tensors = {
            name: random_tensor(rng, name, shape).astype(np.float32)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, shapes in shards.items() for name in shapes}
    tokenizer = Tokenizer.from_str(byte_tokenizer())
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    begin, end, turn = SPECIAL_TOKENS
    template = "{% for message in messages %}{{ message['content'] }}<|turn|>{% endfor %}"
    texts = {
        "model.safetensors.index.json": {"metadata": {"total_size": 1}, "weight_map": weight_map},
        "config.json": config,
        "tokenizer_config.json": {
            "bos_token": begin,
            "eos_token": {"content": end, "special": True},
            "pad_token": turn,
            "model_max_length": 64,
            "added_tokens_decoder": {"258": {"content": turn, "special": True}},
            "chat_template": template,
        },
        "special_tokens_map.json": {"bos_token": begin, "eos_token": {"content": end}},
        "added_tokens.json": {turn: 258},
        "generation_config.json": {
            "bos_token_id": 256,
            "eos_token_id": [257, 258],
            "temperature": 0.7,
            "do_sample": True,
        },
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def write_inputs(place: Path) -> None:
    """Write a folder of every input below `place`, each by its name."""
    place.mkdir()
    source = place / "source"
    write_model(source)
    write_texts(place / "calibration")
    write_matrices(source, place / "imatrix")
    (place / "card").mkdir()
    (place / "card" / "README.md").write_text(CARD, encoding="utf-8")
    write_tasks(place / "tasks")
    (place / "recipe").mkdir()
    (place / "recipe" / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    for zeros in ("offset", "integer"):
        quantize(rounding_job(source, zeros), place / zeros, Quiet())
    shutil.copytree(place / "integer", place / "checkpoint")
    for name, zeros in ZEROS_OF.items():
        export(Checkpoint(place / zeros), load_exporter(name), place / name)
    (place / "gguf-source").mkdir()
    written = find_export(str(place / "gguf"))
    assert written is not None
    shutil.copy(written.path, place / "gguf-source" / "model.gguf")
    for name, architecture in ARCHITECTURES.items():
        (place / name).mkdir()
        write_gguf(architecture, written.path, place / name / "model.gguf")
    write_run(source, place / "run")


def write_matrices(source: Path, folder: Path) -> None:
    """Write importance matrices of a model as files of both kinds."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    places = places_of(open_source(str(source)).record.decoder)
    entries = {
        name: Entry(rng.random((1, place.columns)), np.array([64.0]))
        for name, place in places.items()
    }
    with (folder / "new.gguf").open("wb") as file:
        write_entries(file, entries, datasets=["text.txt"], chunks=2, size=32)
    parts = [struct.pack("<i", len(entries))]
    for name, entry in entries.items():
        parts.append(struct.pack("<i", len(name)) + name.encode())
        parts.append(struct.pack("<ii", 2, entry.sums.size) + entry.sums.astype("<f4").tobytes())
    (folder / "old.dat").write_bytes(b"".join(parts))


def write_texts(folder: Path) -> None:
    """Write calibration texts: prose, JSON lines, a JSON array, chats."""
    folder.mkdir()
    records = [{"text": TEXT}, {"text": TEXT[::-1]}]
    chats = [{"messages": [{"role": "user", "content": TEXT}]}]
    lines = [json.dumps(record) for record in (*records, *chats)]
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "lines.jsonl").write_text("\n".join(lines[:2]), encoding="utf-8")
    (folder / "array.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")


def write_tasks(folder: Path) -> None:
    """Write tasks of several choices: JSON lines and a JSON array."""
    folder.mkdir()
    items = [
        {"question": TEXT, "choices": ["one", "two"], "answer": 1},
        {"context": TEXT, "choices": ["one", "two", "three"], "answer": "B"},
    ]
    lines = "\n".join(json.dumps(item) for item in items)
    (folder / "lines.jsonl").write_text(lines, encoding="utf-8")
    (folder / "array.json").write_text(json.dumps(items), encoding="utf-8")


def write_run(source: Path, folder: Path) -> None:
    """Write what an unfinished run leaves behind, with hidden states behind its first block."""
    output = folder / "out"
    folder.mkdir()
    finish = Run.finish
    try:
        Run.finish = lambda run, blocks, _: finish(run, blocks, TwoStates())  # type: ignore[method-assign]
        with suppress(InterruptedError):
            quantize(rounding_job(source), output, Stopping())
    finally:
        Run.finish = finish  # type: ignore[method-assign]
    assert (temporary_of(output) / "run.json").is_file()


def read_files(folder: Path) -> Files:
    """Read every file of an input, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
