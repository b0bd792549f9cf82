"""Check one solution in every format: equal hashes, equal bytes, and predictions when it is run.

    uv run python -m benchmarks.exports                     the demo at 4 bits (a few minutes)
    uv run python -m benchmarks.exports --checkpoint DIR    a checkpoint that is there already

Prints a table, also to benchmarks/results/exports.md, and exits 1 when something in it is not as it
must be. GPTQ exports are run only where GPTQModel is installed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.calibration.reading import read_text
from edgeq.calibration.windows import first_windows, tokenize
from edgeq.checkpoint.reader import Checkpoint
from edgeq.commands.progress import Silent
from edgeq.errors import NotInstalled
from edgeq.files.hashes import hash_files
from edgeq.files.ownership import MANIFEST_FILE
from edgeq.measuring.run_export import run_export
from edgeq.measuring.targets import model_logits
from edgeq.measuring.texts import EVALUATION_TEXT
from edgeq.measuring.verify import verify
from edgeq.registry import FORMATS, load_exporter
from edgeq.run.assembly import make_job
from edgeq.run.one_export import export
from edgeq.run.pipeline import quantize
from edgeq.sources import open_source
from edgeq.types import NumpyArray

RESULT = Path(__file__).parent / "results" / "exports.md"
# Rounding to nearest is quick, and all formats hold 4 bits in groups of 32 without loss.
SOLVE = {
    "bits": 4,
    "group_size": 32,
    "solver": "rtn",
    "scales": "none",
    "propagation_strength": 0.0,
}
TOKENS = 128
GENERATED = 32
PROMPT = "Gravity is"
LARGEST_DIFFERENCE = 1e-3  # of the largest logit
HEADER = (
    "format",
    "exact",
    "dense",
    "hashes",
    "bytes again",
    "differences",
    "read with",
    "runtime",
    "logits",
    "KL",
    "top 1",
)


@dataclass(frozen=True, slots=True)
class Line:
    """Holds what one check found, and whether it is as it must be."""

    text: str
    holds: bool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="a checkpoint of 4 bits, symmetric, groups of 32"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeq-exports-") as folder:
        if arguments.checkpoint:
            checkpoint = Checkpoint(arguments.checkpoint)
        else:
            checkpoint = solve(Path(folder) / "checkpoint")
        lines = [*format_lines(checkpoint, Path(folder)), *onnx_lines(checkpoint, Path(folder))]
    made = f"{checkpoint.record.name}, {described(checkpoint)}"
    text = f"Written by `python -m benchmarks.exports`: {made}.\n\n"
    text += "\n".join(line.text for line in lines) + "\n"
    RESULT.write_text(text, encoding="utf-8")
    print(text, end="")
    sys.exit(0 if all(line.holds for line in lines) else 1)


def solve(folder: Path) -> Checkpoint:
    """Quantize the demo model by plain rounding, as these checks ask not how codes were chosen."""
    return quantize(make_job(open_source("demo"), SOLVE, backend="cpu"), folder, Silent())


def described(checkpoint: Checkpoint) -> str:
    recipe = checkpoint.head["recipe"]
    return (
        f"{recipe['bits']} bits {recipe['zeros']}, "
        f"groups of {recipe['group_size']}, solver {recipe['solver']}"
    )


def format_lines(checkpoint: Checkpoint, folder: Path) -> Iterator[Line]:
    """Export to every format twice, and make a row of the table for each."""
    yield Line(row(HEADER), True)
    yield Line(row(["---"] * len(HEADER)), True)
    solved: Mapping[str, str] | None = None
    for name in FORMATS:
        for copy in ("first", "second"):
            export(checkpoint, load_exporter(name), folder / copy / name)
        exported = folder / "first" / name
        hashes = layer_hashes(exported)
        solved = solved or hashes
        again = with_manifest(exported) == with_manifest(folder / "second" / name)
        found = verify(exported, against=checkpoint.path)
        exact, dense = (found["statuses"].get(status, 0) for status in ("exact", "dense"))
        run, runs = run_cells(exported, checkpoint)
        differences = found["differences"]
        cells = [f"`{name}`", exact, dense, "equal" if hashes == solved else "DIFFERENT"]
        cells.append("equal" if again else "DIFFERENT")
        cells += [len(differences), found["library"], *run]
        whole = exact_layers(exported) and hashes == solved and again and not differences
        yield Line(row(cells), whole and runs)
    assert solved is not None
    yield Line(
        f"\nhashes: of the {len(solved)} quantized linear layers, "
        "compared with those of the first format.",
        True,
    )


def run_cells(exported: Path, checkpoint: Checkpoint) -> tuple[list[str], bool]:
    """Compare predictions in the format's runtime with transformers on the same weights."""
    try:
        run = run_export(exported, against=checkpoint.path, backend="cpu", sequence_length=TOKENS)
    except NotInstalled as error:
        return [f"not run ({str(error).split(';')[0]})", "", "", ""], True
    if run["kl"] is None:
        return [run["runtime"], "NaN", "NaN", "NaN"], False
    cells = [
        run["runtime"],
        f"{run['logit_difference']:.1e}",
        f"{run['kl']:.1e}",
        f"{run['top1_agreement']:.1%}",
    ]
    return cells, not run["differences"]


def onnx_lines(checkpoint: Checkpoint, folder: Path) -> Iterator[Line]:
    """Compare ONNX at level 0 with torch: all tokens at once, one by one, and when it generates."""
    level_0 = folder / "level 0"
    export(checkpoint, load_exporter("onnx", {"accuracy_level": 0}), level_0)
    torch = model_logits(checkpoint, "cpu")
    tokens = tokenize(checkpoint, read_text(None, default=EVALUATION_TEXT))
    ids = first_windows(tokens, windows=1, sequence_length=TOKENS)
    reference = next(iter(torch.logits(ids)))
    for how, found in onnx_logits(level_0, ids):
        difference = float(np.abs(found - reference).max() / np.abs(reference).max())
        same = float((found.argmax(-1) == reference.argmax(-1)).mean())
        text = (
            f"- ONNX Runtime at level 0, {TOKENS} tokens {how}: "
            f"logits within {difference:.1e} of the largest, "
            f"top token equal in {same:.1%}"
        )
        yield Line(text, difference < LARGEST_DIFFERENCE and same == 1.0)
    prompt, generated = genai_tokens(level_0)
    expected = list(prompt)
    for _ in range(GENERATED):
        expected.append(int(next(iter(torch.logits(np.array([expected]))))[-1].argmax()))
    equal = sum(a == b for a, b in zip(generated, expected[len(prompt) :], strict=True))
    said = json.dumps(decoded(checkpoint, [*prompt, *generated]))
    text = (
        f"- onnxruntime-genai, greedy: {equal} of {GENERATED} tokens equal to torch's "
        f"on the dequantized weights; {said}"
    )
    yield Line(text, equal == GENERATED)


def onnx_logits(exported: Path, ids: NumpyArray) -> Iterator[tuple[str, NumpyArray]]:
    """Compute logits in ONNX Runtime, all tokens at once and then one by one with the cache.

    Shapes: ids (1, tokens) -> (tokens, vocabulary).
    """
    from edgeq_backends.onnx_runtime import open_session  # noqa: PLC0415

    session = open_session(exported / "model.onnx")
    names = [value.name for value in session.get_outputs()]
    empty = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }

    def steps(width: int) -> Iterator[NumpyArray]:
        cache = empty
        for end in range(width, ids.shape[1] + 1, width):
            feeds = {
                "input_ids": ids[:, end - width : end],
                "attention_mask": np.ones((1, end), np.int64),
                **cache,
            }
            logits, *present = session.run(names, feeds)
            past = [name.replace("present", "past_key_values") for name in names[1:]]
            cache = dict(zip(past, present, strict=True))
            yield logits[0]

    yield "at once", np.concatenate(list(steps(ids.shape[1])))
    yield "one by one with the cache", np.concatenate(list(steps(1)))


def genai_tokens(exported: Path) -> tuple[list[int], list[int]]:
    """Generate greedily in onnxruntime-genai; give the prompt's tokens and those that follow."""
    import onnxruntime_genai as genai  # noqa: PLC0415

    model = genai.Model(str(exported))
    prompt = genai.Tokenizer(model).encode(PROMPT).tolist()
    settings = genai.GeneratorParams(model)
    length = len(prompt) + GENERATED
    settings.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return prompt, generator.get_sequence(0).tolist()[len(prompt) :]


def decoded(checkpoint: Checkpoint, ids: list[int]) -> str:
    from tokenizers import Tokenizer  # noqa: PLC0415

    text: str = Tokenizer.from_str(checkpoint.companions()["tokenizer.json"].decode()).decode(ids)
    return text


def manifest_of(exported: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((exported / MANIFEST_FILE).read_text())["tensors"]
    return entries


def is_layer(entry: Mapping[str, Any]) -> bool:
    return ".layers." in entry["source"] and entry["source"].endswith("_proj.weight")


def layer_hashes(exported: Path) -> dict[str, str]:
    """Read the hashes of the quantized linear layers from the manifest."""
    return {entry["source"]: entry["sha256"] for entry in manifest_of(exported) if is_layer(entry)}


def exact_layers(exported: Path) -> bool:
    return all(entry["status"] == "exact" for entry in manifest_of(exported) if is_layer(entry))


def with_manifest(exported: Path) -> dict[str, Any]:
    return {
        **hash_files(exported, but=(MANIFEST_FILE,)),
        MANIFEST_FILE: (exported / MANIFEST_FILE).read_bytes(),
    }


def row(cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
