"""`edgeq verify --run`: an export in its runtime beside the checkpoint that it was made from.

It runs twice. In float32 throughout its predictions are those of the dequantized weights, so a
wrong scale, row, name or constant shows on any model. As users run it, activations are rounded,
which costs some models little and others much; what it may cost is measured in the reference.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np

from edgeq.calibration.reading import read_text
from edgeq.calibration.windows import begin_ids, first_windows, tokenize
from edgeq.checkpoint.reader import Checkpoint
from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput
from edgeq.measuring.foreign import Exported
from edgeq.measuring.manifest import read_manifest
from edgeq.measuring.quality import compare
from edgeq.measuring.references import check_reference, opened_checkpoint
from edgeq.measuring.targets import check_runtime, find_export, in_runtime, runnable_names
from edgeq.measuring.texts import EVALUATION_TEXT
from edgeq.protocols import LogitSource
from edgeq.registry import LOGITS, find_format, load
from edgeq.types import NumpyArray, Rounding, ScaleDtype

# Nats per token between a file that computes in float32 and the weights it was made from. Right
# files stay below 1e-7 where they hold what was solved, and below 1e-4 where their manifest states
# that something was rounded again. Two rows of one matrix exchanged cost 4e-5 and more.
SAME_KL = 1e-5
ROUNDED_KL = 1e-3
# Times the cost of rounding that the reference measures. Right files in llama.cpp and ONNX Runtime
# take up to 2 times of it. Half precision takes up to 3 in torch, where sums are in float32 and
# rounded too, and other runtimes round in other places.
SMALLEST_COST = 1e-3  # below it a few roundings that fall the other way are all there is
ROUNDING_FACTORS = {"int8": 4.0, "float16": 20.0, "bfloat16": 20.0}

SHORTEST_RUN = 2  # tokens: one to read, and one to predict from it

Logits = Sequence[NumpyArray]


class Runtime(LogitSource, Protocol):
    """A runtime over an exported file: as users run it, or made with exact=True, in float32.

    Made with the path of the file or directory.
    """

    rounding: Rounding | None
    """How it rounds activations; None where it computes in float32."""


def run_export(
    folder: Path,
    *,
    against: Path,
    backend: str = "auto",
    windows: int = 1,
    sequence_length: int = 128,
) -> dict[str, Any]:
    """Run an export in its runtime beside the checkpoint's weights in transformers.

    Units: logit_difference is the largest one, as a share of the largest logit; kl, exact_kl (the
    same in float32) and allowed_kl in nats per token. They are None where the runtime predicts
    something that is no number.
    """
    exported, runtime = runtime_of_export(folder)
    check_runtime(runtime)
    checkpoint = Checkpoint(against)
    check_reference(checkpoint)
    tokens = tokenize(checkpoint, read_text(None, default=EVALUATION_TEXT))
    make = load(LOGITS[runtime], f"runtime {runtime!r}")
    used: Runtime = make(exported.path)
    contexts = (checkpoint.record.context, in_runtime(exported, used).record.context)
    length = min([sequence_length, *(size for size in contexts if size is not None)])
    if length < SHORTEST_RUN:
        given = "the model reads at most" if length < sequence_length else "sequence length"
        raise BadInput(f"{given} {length} tokens; at least {SHORTEST_RUN} are needed")
    begin = begin_ids(checkpoint)
    ids = first_windows(tokens, windows=windows, sequence_length=length, begin=begin)
    rounding = used.rounding
    found = list(used.logits(ids))
    del used  # a large model is not in memory twice
    held = held_dense(folder)
    with opened_checkpoint(checkpoint, backend, held=held) as reference:
        library = reference.library
        expected = list(reference.logits(ids))
        rounded = list(reference.logits(ids, rounding=rounding)) if rounding else expected
    exact = list(make(exported.path, exact=True).logits(ids))
    exact_allowed = allowed = SAME_KL if holds_the_solution(folder) else ROUNDED_KL
    if rounding is not None:
        cost = cost_of_rounding(ids, expected, rounded)
        allowed += SMALLEST_COST + ROUNDING_FACTORS[rounding.kind] * cost
    result = {"runtime": runtime, "reference": library, "tokens": int(ids.size)}
    result |= {"activations": "float32" if rounding is None else rounding.kind}
    result |= measured(ids, found, expected)
    result |= {"allowed_kl": allowed, "exact_kl": measured(ids, exact, expected)["kl"]}
    result |= {"allowed_exact_kl": exact_allowed}
    return result | {"differences": list(differences(result))}


def held_dense(folder: Path) -> dict[str, ScaleDtype]:
    """List the tensors that an export holds as numbers and not as their codes, with their type.

    By their bytes `edgeq.measuring.verify` compares them; here they are rounded alike on both
    sides, as a mixture of experts turns the smallest difference of an embedding into other ways.

    Raises: BadInput for a directory without a manifest.
    """
    kinds = get_args(ScaleDtype)
    names: dict[str, ScaleDtype] = {CODE_NAMES[kind]: kind for kind in kinds}
    return {
        entry["source"]: names[entry["type"]]
        for entry in read_manifest(folder)["tensors"]
        if "from" in entry and entry["type"] in names
    }


def holds_the_solution(folder: Path) -> bool:
    """Say whether an export's manifest states that no tensor of codes was rounded again.

    Raises: BadInput for a directory without a manifest.
    """
    held = held_dense(folder)
    entries = read_manifest(folder)["tensors"]
    return all(entry["largest_deviation"] == 0 or entry["source"] in held for entry in entries)


def runtime_of_export(folder: Path) -> tuple[Exported, str]:
    """Find what runs an export, and the file or directory that it is given.

    Raises: BadInput for a format without a runtime.
    """
    exported = find_export(str(folder))
    runtime = None if exported is None else find_format(exported.kind).runtime
    if exported is None or not runtime:
        raise BadInput(f"no runtime for {str(folder)!r}; formats with one: {runnable_names()}")
    return exported, runtime


def cost_of_rounding(ids: NumpyArray, expected: Logits, rounded: Logits) -> float:
    """Measure what rounding activations as the runtime does costs the right weights.

    Nothing is allowed for a rounding under which they predict no numbers.

    Units: nats per token.
    """
    found = measured(ids, rounded, expected)["kl"]
    return 0.0 if found is None else max(0.0, float(found))


def measured(ids: NumpyArray, found: Logits, expected: Logits) -> dict[str, float | None]:
    """Compare logits with the reference's; None where one is no number.

    Units: logit_difference is a share of the reference's largest logit, unless all of them are 0.
    """
    if not all(np.isfinite(logits).all() for logits in found):
        return dict.fromkeys(("kl", "top1_agreement", "logit_difference"))
    quality = compare(ids, found, expected)
    pairs = list(zip(found, expected, strict=True))
    difference = max(float(np.abs(got - right).max()) for got, right in pairs)
    scale = max(float(np.abs(right).max()) for right in expected)
    return {
        "kl": quality.kl,
        "top1_agreement": quality.top1_agreement,
        "logit_difference": difference / scale if scale else difference,
    }


def differences(result: Mapping[str, Any]) -> Iterator[str]:
    """Describe what of a run is not as it must be: what was measured, and what is allowed."""
    runtime, activations = result["runtime"], result["activations"]
    runs = {
        "in float32": ("exact_kl", result["allowed_exact_kl"]),
        f"as users run it ({activations} activations)": ("kl", result["allowed_kl"]),
    }
    for how, (key, allowed) in runs.items():
        found = result[key]
        if found is None:
            yield (
                f"runtime '{runtime}' {how}: predicts NaN or infinity; the dequantized weights "
                "predict numbers"
            )
        elif not found <= allowed:
            yield (
                f"runtime '{runtime}' {how}: KL divergence {found:.3g} to the dequantized weights, "
                f"allowed is {allowed:.3g}"
            )
