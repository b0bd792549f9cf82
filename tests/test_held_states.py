"""Hidden states that are held behind a block are saved as they were there, whatever runs on."""

import ml_dtypes
import models
import numpy as np
import pytest
import torch

from edgeq.registry import ACTIVATIONS, load
from edgeq.streams.blockwise import CalibrationStreams, Flow
from edgeq_backends.torch.model import StreamedModel

WINDOW = 16
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source():
    return models.MemorySource(models.tiny_llama())


@pytest.fixture
def windows(rng):
    return rng.integers(0, 40, (5, WINDOW))


def pass_block(streams, block, rng):
    """Run both streams through a block, the quantized one with other weights."""
    for site in streams.sites(block):
        for layer in site.layers():
            if layer.endswith(("v_proj", "down_proj")):
                shape = next(each.shape for each in block.linears if each.name == layer)
                site.replace(layer, rng.standard_normal(shape).astype(np.float32))


def saved(held, folder):
    """Save what is held, and read the files with NumPy alone."""
    folder.mkdir()
    names = [name for name, _ in held.save(folder)]
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    return {name: np.load(folder / name) for name in sorted(names)}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


def flows(folder):
    tokens = 2 * WINDOW
    return {
        "standing": Flow("standing", tokens),
        "standing, states on host": Flow("standing", tokens, states_on_host=True),
        "standing, states on disk": Flow("standing", tokens, folder),
        "recomputing": Flow("recomputing", tokens),
        "recomputing, states on disk": Flow("recomputing", tokens, folder),
    }


@pytest.mark.parametrize("framework", ["torch", "mlx"])
@pytest.mark.parametrize("flow", flows(None))
def test_states_may_be_saved_while_the_next_block_runs(
    source, windows, rng, tmp_path, framework, flow
):
    """Who holds them is asked to let go before they change; else they stay as they are."""
    make = load(ACTIVATIONS[framework], "calibration")
    streams = make(source, windows, flow=flows(tmp_path)[flow])
    first, second = source.blocks()
    pass_block(streams, first, rng)
    at_once = streams.hold(lambda: None)
    at_once.begin()
    expected = saved(at_once, tmp_path / "expected")
    assert len(expected) == 6 and not any((expected[name] == 0).all() for name in expected)
    found, holding = [], []
    holding.append(streams.hold(lambda: found.append(saved(holding[0], tmp_path / "states"))))
    holding[0].begin()
    pass_block(streams, second, rng)
    if flow in ("standing", "standing, states on host"):
        assert found == []
        found.append(saved(holding[0], tmp_path / "states"))
    assert len(found) == 1
    assert_equal(found[0], expected)


def test_states_in_bfloat16_come_back_bit_by_bit_and_in_float32(source, windows, rng, tmp_path):
    def streams_in(kind):
        model = StreamedModel(source, "cpu", kind)
        return CalibrationStreams(model, windows, flow=Flow("standing", 2 * WINDOW))

    streams = streams_in(torch.bfloat16)
    pass_block(streams, source.blocks()[0], rng)
    held = streams.hold(lambda: None)
    held.begin()
    expected = saved(held, tmp_path / "first")
    assert all(name.endswith("-bfloat16.npy") for name in expected)
    for kind in (torch.bfloat16, torch.float32):
        other = streams_in(kind)
        other.restore(tmp_path / "first")
        again = other.hold(lambda: None)
        again.begin()
        found = saved(again, tmp_path / str(kind))
        if kind == torch.float32:
            assert all(values.dtype == np.float32 for values in found.values())
            found = {
                name.replace(".npy", "-bfloat16.npy"): values.astype(ml_dtypes.bfloat16).view("u2")
                for name, values in found.items()
            }
        assert_equal(found, expected)
