"""Take a tiny model of every kind through every command and format, and write what came of it.

    uv run python -m benchmarks.architectures.matrix                 all rows, about 40 minutes
    uv run python -m benchmarks.architectures.matrix --only llama qwen3 gemma3_text
    uv run python -m benchmarks.architectures.matrix --backend cuda --formats gptq --out cuda.jsonl

Forward passes are compared with transformers' own, files in their runtimes with transformers on the
dequantized weights. Writes benchmarks/results/architectures.jsonl, a line per row, from which
scripts/document makes the table of docs/reference/models.md. Exits 1 for a crash, a wrong result,
or a linear layer that was silently kept dense.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.architectures.models import make_checkpoint
from benchmarks.architectures.rows import ROWS
from benchmarks.architectures.running import Outcome, run_edgeq, run_step
from edgeq.checkpoint.reader import Checkpoint
from edgeq.measuring.references import write_out
from edgeq.measuring.targets import model_logits
from edgeq.registry import FORMATS
from edgeq.sources import open_source

RESULT = Path(__file__).parent.parent / "results" / "architectures.jsonl"
CALIBRATION = ("--calibration", "speeches", "--samples", 4, "--sequence-length", 128)
SOLVE = ("--bits", 4, "--group-size", 32, *CALIBRATION)
TOKENS = 128
EQUAL = 1e-6  # of the largest logit: forward passes of one model
EMBEDDINGS = ("embed_tokens", "embed_in", "embed_out", "word_embeddings", "wte", "lm_head")
Row = dict[str, Any]


def main() -> None:
    """Run the rows that were asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(ROWS), metavar="ROW")
    parser.add_argument("--jobs", type=int, default=2, help="rows that run at once")
    parser.add_argument("--backend", default="cpu", help="what solves and runs forward passes")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.only if name not in ROWS]
    if unknown:
        sys.exit(f"no row is named {unknown[0]!r}; rows: {', '.join(ROWS)}")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "COLUMNS": "400"}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="edgeq-matrix-") as folder:
        task = Task(Path(folder), arguments.backend, arguments.formats)
        rows = list(run_rows(arguments.only, task, arguments.jobs))
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for line in summary(rows, arguments.formats):
        print(line)
    found = list(faults(rows))
    if found:
        sys.exit("\n".join(found))


@dataclass(frozen=True, slots=True)
class Task:
    """What is done with each row: where it lies meanwhile, what solves it, which exports follow."""

    folder: Path
    backend: str
    formats: Sequence[str]


def run_rows(names: Sequence[str], task: Task, jobs: int) -> Iterator[Row]:
    """Run rows in their order, some at once; each step is a process of its own."""
    forked = multiprocessing.get_context("fork")  # which has the slow imports already
    with ProcessPoolExecutor(jobs, mp_context=forked) as pool:
        for row in pool.map(partial(run_row, task), names):
            cells = {name: cell["state"] for name, cell in row.get("formats", {}).items()}
            print(row["name"], row["stages"], cells, flush=True)
            yield row


def run_row(task: Task, name: str) -> Row:
    """Take one kind of model through all commands."""
    kind, settings = ROWS[name]
    place = Path(tempfile.mkdtemp(dir=task.folder))
    source, made, row = place / "model", place / "made", {"name": name, "model_type": kind}
    source.mkdir()
    steps = {
        "make": lambda: run_step(make_checkpoint, kind, settings, source),
        "inspect": lambda: run_edgeq("inspect", source, "--json"),
        "plan": lambda: run_edgeq("plan", source, "--json", *CALIBRATION),
        "quantize": lambda: run_edgeq(
            "quantize", source, "-o", made, *SOLVE, "--backend", task.backend
        ),
    }
    row["stages"] = stages = {}
    for stage, step in steps.items():
        done = step()
        stages[stage] = done.kind if done.kind == "ok" else f"{done.kind}: {done.said}"
        if done.kind != "ok":
            break
    else:
        row["forward"] = result_of(run_step(compare_forwards, source, made, task.backend))
        row["formats"] = {form: run_format(made, form) for form in task.formats}
        for cell in row["formats"].values():
            cell["said"] = cell["said"].replace(f"{made}/", "")
    shutil.rmtree(place)
    return row


def run_format(made: Path, form: str) -> dict[str, Any]:
    """Export, read back and run one format; gives its state, what was said, and what differs."""
    done = run_edgeq("export", made, "--format", form)
    if done.kind != "ok":
        return {"state": done.kind, "said": done.said}
    checked = run_edgeq("verify", made / form, "--against", made, "--run", "--json")
    found = result_of(checked)
    if "run" in found:
        differences = found["differences"]
        run = {key: found["run"][key] for key in ("kl", "exact_kl", "logit_difference")}
        return {"state": "wrong" if differences else "ok", "said": "; ".join(differences), **run}
    plain = run_edgeq("verify", made / form, "--against", made, "--json")
    if plain.status == 0:
        return {"state": "written", "said": checked.said}
    return {"state": "wrong", "said": plain.said or plain.out[-300:]}


def result_of(done: Outcome) -> dict[str, Any]:
    """Read the JSON that a step printed; where it printed none, what it said."""
    try:
        found = json.loads(done.out)
    except ValueError:
        return {"failed": done.said}
    return dict(found)


def compare_forwards(source: Path, made: Path, backend: str) -> None:
    """Print how far edgeq's forward passes are from transformers', and which layers have no codes.

    Units: largest difference of logits as a share of the largest logit.
    """
    original, checkpoint = open_source(str(source)), Checkpoint(made)
    ids = np.random.default_rng(0).integers(3, 300, (1, TOKENS))
    with tempfile.TemporaryDirectory(prefix="edgeq-matrix-") as folder:
        write_out(checkpoint, Path(folder))
        found = {
            "source": distance(model_logits(original, backend).logits(ids), source, ids),
            "quantized": distance(model_logits(checkpoint, backend).logits(ids), Path(folder), ids),
        }
    dense = {
        name: math.prod(checkpoint.shape(name))
        for name in checkpoint.tensor_names()
        if checkpoint.grid(name) is None and len(checkpoint.shape(name)) > 1
    }
    listed = json.loads((made / "report.json").read_text(encoding="utf-8"))["kept_dense"]
    told = {name: size for name, size in dense.items() if starred(name) in listed}
    solved = sum(
        math.prod(linear.shape)
        for block in checkpoint.blocks()
        for linear in block.linears
        if checkpoint.grid(linear.tensor) is not None
    )
    missing = linear_weights(source) - solved
    silent = [name for name in dense if name not in told]
    if missing > sum(told.values()):
        silent.append(f"{missing} weights of linear layers")
    print(json.dumps({**found, "dense": sorted({*map(starred, told)}), "silent": silent}))


def starred(name: str) -> str:
    """Name a tensor without the numbers of blocks and experts, as reports do."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def distance(logits: Iterator[Any], folder: Path, ids: np.ndarray[Any, Any]) -> float:
    """Compare logits with those of transformers' own model of a directory."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids), use_cache=False).logits[0].numpy()
    return float(np.abs(next(logits) - expected).max() / np.abs(expected).max())


def linear_weights(source: Path) -> int:
    """Count the weights of all layers of transformers' model that multiply by a matrix.

    Head and embedding are left out, a stack of experts is counted by its parameters.
    """
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    count = 0
    for path, module in model.named_modules():
        is_linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
        if is_linear and path.rsplit(".", 1)[-1] not in EMBEDDINGS:
            count += module.weight.numel()
        for parameter in module._parameters.values():
            if parameter is not None and parameter.ndim == 3 and "conv" not in path:
                count += parameter.numel()
    return count


def summary(rows: Sequence[Row], formats: Sequence[str]) -> Iterator[str]:
    """Count rows by what came of them."""
    yield f"{len(rows)} rows"
    equal = sum(is_equal(row) for row in rows)
    yield f"forward passes equal to transformers' within {EQUAL:g}: {equal}"
    for form in formats:
        cells = [row["formats"][form]["state"] for row in rows if "formats" in row]
        counts = {state: cells.count(state) for state in sorted(set(cells))}
        yield f"{form}: " + ", ".join(f"{state} {count}" for state, count in counts.items())


def is_equal(row: Mapping[str, Any]) -> bool:
    """Say whether both forward passes of a row equal transformers'."""
    forward = row.get("forward", {})
    return all(forward.get(which, 1.0) <= EQUAL for which in ("source", "quantized"))


def faults(rows: Sequence[Row]) -> Iterator[str]:
    """Describe crashes, wrong results and layers that were silently kept dense."""
    for row in rows:
        for stage, state in row["stages"].items():
            if state.startswith("crash"):
                yield f"{row['name']}, {stage}: {state}"
        forward = row.get("forward", {})
        if "failed" in forward:
            yield f"{row['name']}, forward: {forward['failed']}"
        elif forward and not is_equal(row):
            yield f"{row['name']}: forward passes differ from transformers' ({forward})"
        for name in forward.get("silent", ()):
            yield f"{row['name']}: {name} is silently kept dense"
        for form, cell in row.get("formats", {}).items():
            if cell["state"] in ("crash", "wrong"):
                yield f"{row['name']}, {form}: {cell['state']}: {cell['said']}"


if __name__ == "__main__":
    main()
