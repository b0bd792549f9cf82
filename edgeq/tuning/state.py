"""Where tuning stands, and how it is kept so that a run that was stopped goes on.

The hash of what is kept, and of what it is the state of, lies with it: nothing goes on from numbers
that were damaged, or are of another tuning.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgeq.errors import BadInput, reason_of
from edgeq.files.storage import rename_when_stored
from edgeq.tuning.passes import Masters, TunedBlocks
from edgeq.types import Array, NumpyArray

STATE_FILE = "tuning.safetensors"
KINDS = ("masters", "kept", "means", "squares")


@dataclass(frozen=True, slots=True)
class Row:
    """A step of tuning: its mean KL, and that of held-out windows behind it where it was measured.

    Step 0 is before all of them and has no loss of its own.
    """

    step: int
    loss: float | None
    held_out: float | None = None


@dataclass(slots=True)
class State:
    """Where tuning stands: masters, Adam's moments, the best numbers so far and the curve.

    best are numbers as they are stored: of codes, a quarter of the bytes of their masters.
    """

    masters: Masters
    moments: dict[str, tuple[Array, Array]]
    best: dict[str, Array]
    before: float
    least: float
    step: int = 0
    kept_step: int = 0
    unimproved: int = 0
    curve: list[Row] = field(default_factory=list)

    @classmethod
    def start(cls, blocks: TunedBlocks, masters: Masters, before: float) -> "State":
        """Begin at masters at which everything is as it was solved."""
        moments = {key: (x, x) for key, x in blocks.zeros().items()}
        best = blocks.stored(masters)
        return cls(masters, moments, best, before, before, curve=[Row(0, None, before)])

    def note(self, blocks: TunedBlocks, loss: float, held_out: float | None) -> None:
        """Add a step to the curve, and keep its numbers where held-out windows are best with."""
        self.curve.append(Row(self.step, loss, held_out))
        if held_out is None:
            return
        self.unimproved += 1
        if held_out < self.least:
            self.least, self.kept_step, self.unimproved = held_out, self.step, 0
            self.best = blocks.stored(self.masters)


def write_state(folder: Path, state: State, blocks: TunedBlocks, question: str) -> None:
    """Save a state whole, or leave the one that is there; question names what it is of."""
    get = blocks.models.numbers.get
    tensors: dict[str, Any] = {}
    for key in blocks.free:
        mean, square = state.moments[key]
        arrays = (state.masters[key], state.best[key], mean, square)
        tensors |= {
            f"{kind}.{key}": np.ascontiguousarray(get(array))
            for kind, array in zip(KINDS, arrays, strict=True)
        }
    facts = {
        "before": state.before,
        "least": state.least,
        "step": state.step,
        "kept_step": state.kept_step,
        "unimproved": state.unimproved,
        "curve": [[row.step, row.loss, row.held_out] for row in state.curve],
    }
    path = folder / STATE_FILE
    partial = folder / f".{STATE_FILE}.partial"
    stated = json.dumps(facts)
    kept = {"state": stated, "sha256": hash_of_state(stated, tensors, question)}
    # one key of metadata: more would be written in random order
    save_file(tensors, partial, metadata={"edgeq": json.dumps(kept)})
    rename_when_stored(partial, path)


def hash_of_state(stated: str, tensors: Mapping[str, NumpyArray], question: str) -> str:
    """Hash a state with the name of what it is of."""
    found = hashlib.sha256(f"{question}\n{stated}".encode())
    for name in sorted(tensors):
        found.update(f"\n{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        found.update(tensors[name].tobytes())
    return found.hexdigest()


def read_state(folder: Path, blocks: TunedBlocks, question: str) -> State | None:
    """Go on from what was saved; None where nothing is.

    Raises: BadInput for a state that is not as it was saved, or of another tuning.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        facts, arrays = _read_checked(path, question)
        put = blocks.models.numbers.put
        found = {kind: {key: put(arrays[f"{kind}.{key}"]) for key in blocks.free} for kind in KINDS}
        moments = {key: (found["means"][key], found["squares"][key]) for key in blocks.free}
        return State(
            found["masters"],
            moments,
            found["kept"],
            facts["before"],
            facts["least"],
            facts["step"],
            facts["kept_step"],
            facts["unimproved"],
            [Row(*row) for row in facts["curve"]],
        )
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadInput(
            f"unfinished tuning {str(path)!r} is damaged, or of another tuning "
            f"({reason_of(error)}); remove this file to tune from the start"
        ) from error


def _read_checked(path: Path, question: str) -> tuple[dict[str, Any], dict[str, NumpyArray]]:
    """Read what was saved, and compare it with its hash. Raises: ValueError where they differ."""
    with safe_open(path, "numpy") as file:
        kept = json.loads((file.metadata() or {})["edgeq"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    if kept["sha256"] != hash_of_state(kept["state"], arrays, question):
        raise ValueError("its hash is another")
    return json.loads(kept["state"]), arrays
