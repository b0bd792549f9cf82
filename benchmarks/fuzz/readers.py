"""Read an input as edgeq does: one function for each kind, which says whether it was accepted.

What is refused raises EdgeqError; whatever else comes out of a reader is an escape.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.inputs import ARCHITECTURES, ROUNDING, ZEROS_OF, Quiet, rounding_job
from edgeq.calibration.texts import make_calibration, read_texts
from edgeq.calibration.windows import load_tokenizer, tokenize
from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.ownership import MANIFEST_FILE, temporary_of
from edgeq.measuring.inspection import inspect_model
from edgeq.measuring.targets import described_export, find_export
from edgeq.measuring.tasks import read_task, requests_of
from edgeq.measuring.texts import length_of_windows
from edgeq.measuring.verify import verify
from edgeq.protocols import ModelSource, TextModel
from edgeq.recipe.layer_grids import plan_grids
from edgeq.recipe.recipe import make_recipe, read_recipe
from edgeq.registry import load_exporter
from edgeq.run.assembly import make_job
from edgeq.run.one_export import export
from edgeq.run.pipeline import quantize
from edgeq.run.report import read_report
from edgeq.run.resume import is_unfinished, stored_run
from edgeq.sources import open_source
from edgeq.sources.model_card import origin_of, read_origin
from edgeq.sources.reading import read_tensor
from edgeq.streams.saved_states import SavedStream

RUN_SHARE = 0.25  # of the sources that are accepted, how many are also quantized and exported


class Escape(Exception):
    """Something that no reader may do, in a few words."""


@dataclass(frozen=True, slots=True)
class Case:
    """A mutant on disk: its folder, where an output may go, and what was changed.

    inputs is where the unharmed inputs lie; chance draws which way it is read.
    """

    folder: Path
    output: Path
    inputs: Path
    changed: str
    chance: random.Random
    same: bool
    """Whether the change left all that the changed file says as it was."""

    sealed: bool
    """Whether the file's hash of itself was made right again, which hides changes in it."""


def read_source(case: Case) -> None:
    use_source(open_source(str(case.folder)), case)


def read_gguf_source(case: Case) -> None:
    use_source(open_source(str(case.folder / "model.gguf")), case)


def use_source(source: ModelSource, case: Case) -> None:
    """Read everything of a model, ask all exporters, and quantize and export some."""
    for name in source.tensor_names():
        read_tensor(source, name)
        source.stored_as(name)
        source.tensor_bytes(name)
    source.blocks()
    source.fingerprint()
    companions = source.companions()
    grids = plan_grids(source, make_recipe(ROUNDING))
    for name in ZEROS_OF:
        load_exporter(name).reject_reason(source.record, companions, grids)
    tokenize(source, "It's 2026: two <|turn|> cafés")
    if case.chance.random() < RUN_SHARE:
        name = case.chance.choice(tuple(ZEROS_OF))
        job = make_job(source, ROUNDING, backend="reference", exports=(name,))
        checkpoint = quantize(job, case.output, Quiet())
        export(checkpoint, load_exporter(name), case.output / name)


def read_matrix(case: Case) -> None:
    """Read importance matrices of both kinds, and round by one that is accepted."""
    path = case.folder / case.changed
    source = open_source(str(case.inputs / "source"))
    settings = {"bits": 4, "group_size": 32}
    job = make_job(source, settings, backend="reference", imatrix=path)
    if case.chance.random() < RUN_SHARE:
        quantize(job, case.output, Quiet())


def read_recipe_file(case: Case) -> None:
    settings = read_recipe(str(case.folder / "recipe.toml"))
    recipe = make_recipe(settings)
    plan_grids(open_source(str(case.inputs / "source")), recipe)


def read_calibration(case: Case) -> None:
    texts = read_texts([str(case.folder / case.changed)])
    source = open_source(str(case.inputs / "source"))
    make_calibration(source, texts, no_text, samples=2, sequence_length=16, seed=0)


def read_tasks(case: Case) -> None:
    """Read tasks, and tokenize them for a model."""
    task = read_task(str(case.folder / case.changed))
    requests_of(task, open_source(str(case.inputs / "source")), 4096)


def no_text(count: int, length: int, seed: int) -> Any:
    raise AssertionError("no text is written")


def read_checkpoint(case: Case) -> None:
    """Read everything of a checkpoint, and export it in one of the formats."""
    checkpoint = Checkpoint(case.folder)
    for name in checkpoint.tensor_names():
        checkpoint.read(name)
    checkpoint.solution_fingerprint()
    inspect_model(str(case.folder))
    name = case.chance.choice(tuple(ZEROS_OF))
    export(checkpoint, load_exporter(name), case.output)
    read_report(checkpoint)


class SavedStates:
    """Streams that read hidden states back as real ones do."""

    def restore(self, folder: Path) -> None:
        for name in ("full", "quantized"):
            SavedStream(folder, name).read((2, 4, 32), np.dtype(np.float32))


def resume_run(case: Case) -> None:
    """Continue an unfinished run to its end, and read its hidden states first."""
    output = case.folder / "out"
    folder = temporary_of(output)
    if is_unfinished(folder):
        run = stored_run(folder)
        run.check_files()
        run.restore(SavedStates())
    quantize(rounding_job(case.inputs / "source"), output, Quiet(), resume=True)


def read_export(case: Case) -> None:
    """Verify an export, half of the time against its checkpoint."""
    name = case.folder.name
    compared = case.sealed or case.chance.random() < 0.5
    against = case.inputs / ZEROS_OF[name] if compared else None
    find_export(str(case.folder))
    stated = os.path.lexists(case.folder / MANIFEST_FILE)  # unless the mutant took it away
    if stated and case.chance.random() < RUN_SHARE:  # as one that another maker wrote
        (case.folder / MANIFEST_FILE).rename(case.folder / "kept.json")
        try:
            if find_export(str(case.folder)) is not None:
                check_sizes(described_export(str(case.folder)))
        finally:
            (case.folder / "kept.json").rename(case.folder / MANIFEST_FILE)
    result = verify(case.folder, against=against)
    json.dumps(result)
    if not result["differences"] and not case.same:
        raise Escape(f"changed, and verified {'without' if against is None else 'against'}")
    if result["differences"]:
        raise Refused


def read_card(case: Case) -> None:
    """Read the origin of a model from its card, which never fails; the checkpoint holds it."""
    origin = read_origin(case.folder, "owner/name")
    if origin_of(json.loads(json.dumps(origin.plain()))) != origin:
        raise Escape("an origin is not read back as it was written")


def check_sizes(model: TextModel) -> None:
    """Read what a model states of its sizes, and its tokenizer where it has one."""
    length_of_windows([model], None)
    if model.companions():
        load_tokenizer(model)


class Refused(Exception):
    """A difference that `edgeq verify` found."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A kind of input: the function that reads it, and which of its files are changed how often."""

    read: Callable[[Case], None]
    weights: Mapping[str, int] | None = None
    """By the start of a file's path; files that none names are left alone. None: all alike."""


SOURCE_WEIGHTS = {
    "model-00001": 3,
    "model-00002": 3,
    "model.safetensors.index.json": 4,
    "config.json": 12,
    "tokenizer.json": 6,
    "tokenizer_config.json": 4,
    "special_tokens_map.json": 2,
    "added_tokens.json": 1,
    "generation_config.json": 4,
    "chat_template.jinja": 1,
}
EXPORT_WEIGHTS = {
    "manifest.json": 10,
    "config.json": 3,
    "model": 6,
    "source-": 6,  # the GGUF file, which is called after the model
    "model.safetensors.index.json": 1,
    "genai_config.json": 1,
    "tokenizer.json": 1,
}
READERS: Mapping[str, Reader] = {
    "source": Reader(read_source, SOURCE_WEIGHTS),
    "gguf-source": Reader(read_gguf_source),
    **{name: Reader(read_gguf_source) for name in ARCHITECTURES},
    "recipe": Reader(read_recipe_file),
    "imatrix": Reader(read_matrix),
    "calibration": Reader(read_calibration),
    "card": Reader(read_card),
    "tasks": Reader(read_tasks),
    "checkpoint": Reader(
        read_checkpoint, {"": 1, "edgeq": 4, "config": 3, "blocks": 3, "report": 3}
    ),
    "run": Reader(resume_run, {".out.edgeq-partial/run.json": 6, ".out.edgeq-partial/": 1}),
    **{name: Reader(read_export, EXPORT_WEIGHTS) for name in ZEROS_OF},
}


def sealed(name: str, content: bytes) -> bytes:
    """Make the hash of a forged file right again, as one who forges it would."""
    try:
        tree = json.loads(content)
        if name.endswith(MANIFEST_FILE):
            kept = {key: value for key, value in tree.items() if key != "sha256"}
        else:
            kept = {key: tree[key] for key in ("run", "progress")}
        text = json.dumps(kept, sort_keys=True).encode()
        return json.dumps(tree | {"sha256": hashlib.sha256(text).hexdigest()}).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return content


def says_the_same(name: str, before: bytes, after: bytes) -> bool:
    """Say whether a changed file states what it stated before; only a manifest's layout is free."""
    if before == after:
        return True
    if name != MANIFEST_FILE:
        return False
    try:
        return plain(before) == plain(after)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return False


def plain(content: bytes) -> str:
    """Lay a manifest out in one way, without its hash; order and decimals of zero are free."""
    tree = dict(json.loads(content, parse_float=number))
    if isinstance(tree.get("tensors"), list):
        tree["tensors"] = sorted(tree["tensors"], key=json.dumps)
    return json.dumps({key: value for key, value in tree.items() if key != "sha256"})


def number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value
