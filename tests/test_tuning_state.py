"""The state that a stopped tuning goes on from: as it was saved and of this tuning, or refused."""

import json

import models
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from solved_sources import SolvedSource

from edgeq.errors import BadInput
from edgeq.tuning.free import CODES, FREE
from edgeq.tuning.loop import TUNING, Tuning, tune
from edgeq.tuning.state import STATE_FILE, hash_of_state
from edgeq.types import Grid
from edgeq_backends.torch.tuning import torch_models

pytestmark = pytest.mark.usefixtures("one_thread")


class StoppedError(Exception):
    pass


def stop(what, done, total):
    """Stop behind the first step."""
    if what == TUNING:
        raise StoppedError


def tuned(folder, watch, question="this"):
    model = models.tiny_llama()
    source = models.MemorySource(model)
    solved = SolvedSource(source, Grid(4, 8, "symmetric", "float16"))
    windows = np.random.default_rng(1).integers(0, model.config.vocab_size, (5, 8))
    made = torch_models(source, solved, exact=True)
    options = {"watch": watch, "folder": folder, "question": question}
    tuning = Tuning(passes=1, step_windows=2, free=(*FREE, CODES))
    return tune(made, solved, windows, tuning, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file that a stopped tuning leaves."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.raises(StoppedError):
        tuned(folder, stop)
    return folder / STATE_FILE


def with_first(change):
    """Change the first array of a saved state, and keep all that is said of it."""

    def damage(path):
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        arrays = load_file(path)
        name = min(arrays)
        arrays[name] = change(arrays[name])
        save_file(arrays, path, metadata=metadata)

    return damage


def as_before_codes_moved(path):
    """Write a state as it once was: masters of the best step, not its numbers."""
    with safe_open(path, "numpy") as file:
        kept = json.loads(file.metadata()["edgeq"])
    arrays = load_file(path)
    for name in [name for name in arrays if name.startswith("kept.")]:
        key = name.removeprefix("kept.")
        del arrays[name]
        arrays[f"best.{key}"] = arrays[f"masters.{key}"]
    kept["sha256"] = hash_of_state(kept["state"], arrays, "this")
    save_file(arrays, path, metadata={"edgeq": json.dumps(kept)})


DAMAGE = {
    "before codes moved": as_before_codes_moved,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-8]),
    "empty": lambda path: path.write_bytes(b""),
    "no metadata": lambda path: save_file(load_file(path), path),
    "NaN": with_first(lambda x: np.full_like(x, np.nan)),
    "another type": with_first(lambda x: x.astype(np.float16)),
    "another shape": with_first(lambda x: np.ascontiguousarray(x[..., :1])),
    "of another tuning": lambda path: None,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_nothing_goes_on_from_a_damaged_state_or_one_of_another_tuning(saved, tmp_path, name):
    path = tmp_path / STATE_FILE
    path.write_bytes(saved.read_bytes())
    DAMAGE[name](path)
    before, seen = path.read_bytes(), []
    question = "another" if name == "of another tuning" else "this"
    with pytest.raises(BadInput, match=r"is damaged, or of another tuning \(.+\); remove this"):
        tuned(tmp_path, lambda *told: seen.append(told), question)
    assert not seen  # refused before any work
    assert path.read_bytes() == before
