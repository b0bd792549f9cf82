"""The schedule for little memory gives what standing still gives, wherever the hidden states
lie.
"""

import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import models
import numpy as np
import pytest
from test_schedule import Toy, branching

from edgeq.commands.progress import Silent
from edgeq.errors import UnsupportedModel
from edgeq.registry import ACTIVATIONS, load
from edgeq.run.assembly import make_activations, make_job
from edgeq.run.pipeline import quantize
from edgeq.streams.blockwise import Flow
from edgeq.streams.hidden_states import StatesInMemory, StatesOnDisk, StatesOnHost
from edgeq.streams.recomputing import RecomputedStreams

WINDOW = 16
FRAMEWORKS = ("torch", "mlx")


def flows(folder):
    """Every other way through a model, at the batch size of the first."""
    tokens = 2 * WINDOW
    return {
        "standing": Flow("standing", tokens),
        "standing, states on disk": Flow("standing", tokens, folder),
        "recomputing": Flow("recomputing", tokens),
        "recomputing, states on disk": Flow("recomputing", tokens, folder),
        "recomputing, states on the host": Flow("recomputing", tokens, states_on_host=True),
    }


def visit(streams, blocks, replacements):
    """Every site's layers and inputs, while layers are replaced on the way."""
    seen = []
    for block in blocks:
        for site in streams.sites(block):
            pairs = [
                (None if X is None else np.asarray(X).copy(), np.asarray(X_hat).copy())
                for X, X_hat in site.batches()
            ]
            layers = []
            for layer in site.layers():
                layers.append(layer)
                if layer in replacements:
                    site.replace(layer, replacements[layer])
            seen.append((layers, pairs))
    return seen


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("drift", [1.0, 0.5, 0.0])
def test_all_flows_show_the_same_inputs_bit_by_bit(framework, drift, rng, tmp_path, one_thread):
    llama = models.tiny_llama()
    source, windows = models.MemorySource(llama), rng.integers(0, 40, (5, WINDOW))
    replaced = {
        name.removesuffix(".weight"): source.read(name)
        + 0.1 * rng.standard_normal(source.shape(name)).astype("f4")
        for name in source.tensor_names()
        if name.endswith("_proj.weight") and "v_proj" not in name  # layers may stay as they are
    }
    found = {}
    for name, flow in flows(tmp_path).items():
        make = load(ACTIVATIONS[framework], "calibration")
        found[name] = visit(
            make(source, windows, drift=drift, exact=True, flow=flow), source.blocks(), replaced
        )
    expected = found.pop("standing")
    assert len(expected) == 8
    for name, seen in found.items():
        for (layers, pairs), (expected_layers, expected_pairs) in zip(seen, expected, strict=True):
            assert layers == expected_layers, name
            for (X, X_hat), (expected_X, expected_X_hat) in zip(pairs, expected_pairs, strict=True):
                np.testing.assert_array_equal(X_hat, expected_X_hat, err_msg=name)
                assert (X is None) == (expected_X is None)
                if X is not None:
                    np.testing.assert_array_equal(X, expected_X, err_msg=name)
        assert [X is not None for X, _ in pairs] == [
            batch < math.ceil(drift * 5) / 2 for batch in range(len(pairs))
        ]
    assert not list(tmp_path.iterdir())  # the file of hidden states has no name


def test_all_flows_solve_the_same_codes(tmp_path, one_thread):
    source = models.MemorySource(
        models.glass_llama(),
        companions={"tokenizer.json": models.glass_tokenizer().to_str().encode()},
    )
    settings = {"samples": 8, "sequence_length": 64, "bits": 3}
    written = {}
    asked = flows(tmp_path)
    del asked["standing, states on disk"]  # whose inputs are compared above
    for name, flow in asked.items():
        activations = partial(make_activations, "cpu", flow=replace(flow, batch_tokens=128))
        job = make_job(source, settings, backend="cpu", calibration=("speeches",))
        job = replace(job, make_activations=activations)
        checkpoint = quantize(job, tmp_path / name, Silent())
        written[name] = [(checkpoint.path / file).read_bytes() for file in checkpoint.head["files"]]
    assert len({tuple(files) for files in written.values()}) == 1


def test_a_site_can_be_read_more_than_once(rng):
    source, windows = models.MemorySource(models.tiny_llama()), rng.integers(0, 40, (4, WINDOW))
    streams = make_activations("cpu", source, windows, True, flow=Flow("recomputing", 2 * WINDOW))
    for site in streams.sites(source.blocks()[0]):
        once, twice = ([np.asarray(X_hat).copy() for _, X_hat in site.batches()] for _ in range(2))
        np.testing.assert_array_equal(once, twice)


def recomputed(run, *inputs, full=(), weights=None):
    outputs = {}
    runs = [[lambda x=x: run(np.array([x])) for x in of_stream] for of_stream in (full, inputs)]

    def set_weight(layer, W):
        old, weights[layer] = weights[layer], W
        return old

    streams = RecomputedStreams(
        full=runs[0],
        quantized=runs[1],
        set_weight=set_weight,
        keep=lambda *place: outputs.__setitem__(place[:2], float(place[2][0])),
    )
    return streams, outputs


def test_passes_run_anew_with_the_weights_of_their_stream():
    toy = Toy([])
    streams, outputs = recomputed(toy.run, 1.0, 2.0, full=(1.0, 2.0), weights=toy.weights)
    visited = []
    for site in streams.sites():
        for layer in site.layers():
            visited.append((layer, [(float(X[0]), float(X_hat[0])) for X, X_hat in site.batches()]))
            if layer == "b":
                site.replace(layer, 20.0)
    assert visited == [
        ("a", [(1.0, 1.0), (2.0, 2.0)]),
        ("b", [(1.0, 1.0), (2.0, 2.0)]),
        ("c", [(11.0, 21.0), (22.0, 42.0)]),
    ]
    assert outputs == {(False, 0): 1100.0, (False, 1): 2200.0, (True, 0): 2100.0, (True, 1): 4200.0}


@pytest.mark.parametrize("inputs", [(1.0, -1.0), (-1.0, 1.0)])
def test_batches_that_go_different_ways_are_refused(inputs):
    toy = Toy([])
    streams, _ = recomputed(branching(toy, lambda x: x > 0), *inputs, weights=toy.weights)
    with pytest.raises(UnsupportedModel, match="same layers"):
        for site in streams.sites():
            list(site.batches())


def test_hidden_states_elsewhere_are_those_in_memory(tmp_path, rng):
    arrays = [
        rng.standard_normal((2, 8, 4)).astype("f4"),
        rng.standard_normal((1, 8, 4)).astype("f4"),
    ]
    stores: list[Any] = [
        StatesInMemory(),
        StatesOnHost(np.asarray, np.asarray),
        StatesOnDisk(tmp_path, np.asarray, np.asarray),
    ]
    for states in stores:
        for array in arrays:
            states.append(array)
        states.replace(0, arrays[0][::-1] * 2)
        assert len(states) == 2
        np.testing.assert_array_equal(states.read(0), arrays[0][::-1] * 2)
        np.testing.assert_array_equal(states.read(1), arrays[1])
    assert not list(tmp_path.iterdir())


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from edgeq.errors import BadInput
from edgeq.streams.hidden_states import StatesOnDisk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
states = StatesOnDisk(Path(sys.argv[1]), np.asarray, np.asarray)
states.append(np.arange(1000.0))
try:
    states.append(np.arange(1000.0))
except BadInput as error:
    print(error)
print(states.read(0)[-1], len(states))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of files")
def test_hidden_states_that_find_no_room_are_one_line_and_nothing_at_exit(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    line, rest = done.stdout.strip().split("\n")
    assert line.startswith("hidden states cannot be written in") and "raise --max-ram" in line
    assert rest == "999.0 1"
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())
