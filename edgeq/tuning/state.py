"""Where tuning stands, and how it is kept so that a run that was stopped goes on."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edgeq.files.storage import rename_when_stored
from edgeq.tuning.passes import Masters, TunedBlocks
from edgeq.types import Array

STATE_FILE = "tuning.safetensors"
KINDS = ("masters", "best", "means", "squares")


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
    """Where tuning stands: masters, Adam's moments, the best masters so far and the curve."""

    masters: Masters
    moments: dict[str, tuple[Array, Array]]
    best: Masters
    before: float
    least: float
    step: int = 0
    kept_step: int = 0
    unimproved: int = 0
    curve: list[Row] = field(default_factory=list)

    @classmethod
    def start(cls, blocks: TunedBlocks, before: float) -> "State":
        """Begin where everything is as it was solved."""
        zeros = blocks.zeros()
        moments = {key: (x, x) for key, x in zeros.items()}
        return cls(zeros, moments, dict(zeros), before, before, curve=[Row(0, None, before)])

    def note(self, loss: float, held_out: float | None) -> None:
        """Add a step to the curve, and keep its masters where held-out windows are best with."""
        self.curve.append(Row(self.step, loss, held_out))
        if held_out is None:
            return
        self.unimproved += 1
        if held_out < self.least:
            self.least, self.kept_step, self.unimproved = held_out, self.step, 0
            self.best = dict(self.masters)


def write_state(folder: Path, state: State, blocks: TunedBlocks, steps: int) -> None:
    """Save a state whole, or leave the one that is there."""
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
        "steps": steps,
        "kept_step": state.kept_step,
        "unimproved": state.unimproved,
        "curve": [[row.step, row.loss, row.held_out] for row in state.curve],
    }
    path = folder / STATE_FILE
    partial = folder / f".{STATE_FILE}.partial"
    save_file(tensors, partial, metadata={"edgeq": json.dumps(facts)})
    rename_when_stored(partial, path)


def read_state(folder: Path, blocks: TunedBlocks, steps: int) -> State | None:
    """Go on from what was saved; None where nothing is, or nothing of this run."""
    put = blocks.models.numbers.put
    try:
        with safe_open(folder / STATE_FILE, "numpy") as file:
            facts = json.loads((file.metadata() or {})["edgeq"])
            found: dict[str, dict[str, Array]] = {kind: {} for kind in KINDS}
            for key, free in blocks.free.items():
                for kind in KINDS:
                    array = file.get_tensor(f"{kind}.{key}")
                    if array.shape != free.part.start.shape:
                        return None
                    found[kind][key] = put(array)
        if facts["steps"] != steps:
            return None
        moments = {key: (found["means"][key], found["squares"][key]) for key in blocks.free}
        return State(
            found["masters"],
            moments,
            found["best"],
            facts["before"],
            facts["least"],
            facts["step"],
            facts["kept_step"],
            facts["unimproved"],
            [Row(*row) for row in facts["curve"]],
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
