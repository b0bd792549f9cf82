"""The memory of a device of its own: what of a run lies there, and which ways keep its limit.

No device is needed: what it has is stated.
"""

import json
import math
from itertools import product

import pytest
from command_line import run_edgeq
from test_memory_plan import BALANCED, FAST, LLAMA_7B, PROCESS, RATES, mixture
from test_tuning_plan import SEVEN

from benchmarks.synthetic import SHAPES, make_config, write_checkpoint
from edgeq.errors import TooLittleMemory
from edgeq.planning import rates
from edgeq.planning.device_memory import DEVICE_WAYS, PLACES, Device
from edgeq.planning.memory import choose_way, loads_of_writing, peak_load
from edgeq.planning.moments import Process, moments
from edgeq.planning.time import block_seconds
from edgeq.planning.tuning import WAYS as TUNING_WAYS
from edgeq.planning.tuning import moments as tuning_moments
from edgeq.planning.tuning import plan_tuning
from edgeq.recipe.recipe import make_recipe
from edgeq.words import parse_size
from edgeq_backends.reference import ReferenceBackend
from edgeq_backends.torch.backend import TorchBackend

GB = 10**9
LARGE = Device(1000 * GB, 1000 * GB)


def loads(recipe=BALANCED, process=PROCESS, decoder=LLAMA_7B):
    return [peak_load(decoder, recipe, process, way, LARGE) for way in DEVICE_WAYS]


def test_every_part_of_every_moment_has_a_place():
    weighed = make_recipe({"token_weights": "gradient"})
    found = set()
    for decoder, recipe in product((LLAMA_7B, mixture(8)), (BALANCED, FAST, weighed)):
        for way in DEVICE_WAYS:
            found |= {
                part for moment in moments(decoder, recipe, PROCESS, way) for part in moment.parts
            }
    for _, load in loads_of_writing(LLAMA_7B, BALANCED, PROCESS, 8, LARGE):
        found |= {*load.host.parts, *load.device.parts}
    for to_tune in TUNING_WAYS:
        found |= {part for each in tuning_moments(SEVEN, PROCESS, to_tune) for part in each.parts}
    assert found - {"libraries, and room between arrays"} <= set(PLACES)


def test_less_of_the_device_takes_ways_that_put_less_there():
    totals = [load.device.total for load in loads()]
    assert totals == sorted(totals, reverse=True)
    for limit in totals:
        plan = choose_way(LLAMA_7B, BALANCED, PROCESS, None, device=Device(80 * GB, 80 * GB, limit))
        assert plan.on_device.total <= limit
        assert all(total > limit for total in totals[: DEVICE_WAYS.index(plan.way)])


def test_hidden_states_move_to_the_host_and_from_there_to_disk():
    """128 sequences of 2048 tokens have 2 x 4.3 GB of hidden states at 4096 numbers of 4 bytes."""
    recipe = make_recipe({"quality": "best", "samples": 128, "sequence_length": 2048})
    states = 2 * 128 * 2048 * 4096 * 4
    found = dict(zip(DEVICE_WAYS, loads(recipe), strict=True))
    for way, load in found.items():
        on_device = load.device.parts.get("hidden states", 0)
        held = peak_load(LLAMA_7B, recipe, Process(0, 8), way, LARGE).host.parts
        assert on_device == (0 if way.states_apart else states)
        assert held.get("hidden states on the host", 0) in (0, states * way.states_on_host)
    small = choose_way(LLAMA_7B, recipe, PROCESS, None, device=Device(20 * GB, 24 * GB))
    assert small.way.states_on_host and small.way.flow(None).states_on_host
    both = choose_way(LLAMA_7B, recipe, PROCESS, 8 * GB, device=Device(20 * GB, 24 * GB))
    assert both.way.states_on_disk and not both.way.states_on_host
    assert both.peak.total <= 8 * GB and both.on_device.total <= 20 * GB


def test_narrower_numbers_take_less_of_the_device():
    wide, single, half = (
        loads(process=Process(800 * 10**6, precision, 8, passes))[0].device.parts
        for precision, passes in ((8, 4), (4, 4), (4, 2))
    )
    assert wide["weights in the solve"] == 2 * single["weights in the solve"]
    assert single["hidden states"] == 2 * half["hidden states"]
    assert single["weights of a block"] == 2 * half["weights of a block"]
    # the float64 factor of the correction and copies to make it stay
    ratio = wide["second moments and factors"] / single["second moments and factors"]
    assert 1 < ratio < 2


@pytest.mark.parametrize("recipe", [BALANCED, FAST], ids=["balanced", "fast"])
def test_a_refused_limit_of_the_device_names_one_that_is_enough(recipe):
    def plan(limit, free=80 * GB, ram=None):
        return choose_way(LLAMA_7B, recipe, PROCESS, ram, device=Device(free, 80 * GB, limit))

    with pytest.raises(TooLittleMemory, match=r"--max-vram 1\.0 GB: this run needs at") as refused:
        plan(GB)
    assert refused.value.option == "--max-vram"
    size = parse_size(str(refused.value).split("at least ")[1].split(" there")[0], "")
    assert plan(size).on_device.total <= size
    assert plan(None).device_least == refused.value.least
    with pytest.raises(TooLittleMemory):
        plan(int(0.97 * size))
    with pytest.raises(TooLittleMemory, match=r"the device's 80\.0 GB 2\.0 GB are free") as full:
        plan(None, free=2 * GB)
    assert full.value.option == ""
    with pytest.raises(TooLittleMemory, match=r"--max-ram 1\.0 GB: this run needs at least") as ram:
        plan(size, ram=GB)
    assert plan(size, ram=ram.value.least).peak.total <= ram.value.least


def test_what_is_chosen_by_layer_is_solved_whole_on_a_device_too():
    chosen = make_recipe({"propagation_strength": "auto"})
    plan = choose_way(LLAMA_7B, chosen, PROCESS, None, device=Device(60 * GB, 80 * GB))
    assert plan.way.rows_at_once is None


def test_tuning_keeps_the_limit_of_a_device():
    whole = plan_tuning(SEVEN, PROCESS, None, None, LARGE)
    assert whole.way == TUNING_WAYS[0] and whole.on_device.total > 20 * GB
    assert whole.peak.total < 2 * GB  # the machine's memory holds the program
    limited = plan_tuning(SEVEN, PROCESS, None, None, Device(80 * GB, 80 * GB, whole.device_least))
    assert limited.on_device.total <= whole.device_least
    with pytest.raises(TooLittleMemory, match=r"--max-vram 1\.0 GB: tuning needs at least"):
        plan_tuning(SEVEN, PROCESS, None, None, Device(80 * GB, 80 * GB, GB))


def test_a_machine_without_cuda_has_no_device_memory():
    assert TorchBackend("cpu").device_memory() is None


def test_loops_over_columns_take_time_where_steps_do_not_fill_the_device():
    """The 7B shapes have inputs of 3 x 4096 and 11008 columns; balanced sweeps them thrice."""
    solved = {linear.tensor: linear.shape for linear in LLAMA_7B.linears()}
    endless = dict.fromkeys(RATES, math.inf)
    found = block_seconds(LLAMA_7B, BALANCED, {**endless, "columns": 1e4}, False, solved)
    assert BALANCED.sweep_count == 3
    assert sum(found.values()) == pytest.approx((1 + 3) * (3 * 4096 + 11008) / 1e4)


class Queueing(ReferenceBackend):
    """Computes like a device that works on by itself: time passes when results are read back."""

    def __init__(self, memory):
        self.now, self.waiting, self.memory = 0.0, 0.0, memory

    def device_memory(self):
        return self.memory

    def gram(self, X, Y):
        self.waiting += 0.5
        return super().gram(X, Y)

    def to_numpy(self, x):
        self.now, self.waiting = self.now + self.waiting, 0.0
        return super().to_numpy(x)


@pytest.mark.parametrize(("memory", "size"), [(None, 96), ((GB, GB), 128)])
def test_rates_count_what_a_device_has_queued(monkeypatch, memory, size):
    backend = Queueing(memory)
    monkeypatch.setattr(rates, "PROBE", 96)
    monkeypatch.setattr(rates, "DEVICE_PROBE", 128)
    monkeypatch.setattr(rates, "LAYER", (8, 128))
    monkeypatch.setattr("edgeq.planning.rates.time.perf_counter", lambda: backend.now)
    found = rates.measure_rates(backend)
    assert found["forward"] == pytest.approx(2 * size**3 / 0.5)
    assert set(found) == set(RATES)
    assert math.isinf(found["columns"]) == (memory is None)


@pytest.fixture
def stated(monkeypatch):
    """State what the device of the torch backend has."""

    monkeypatch.setattr(rates, "DEVICE_PROBE", rates.PROBE)
    monkeypatch.setattr(rates, "LAYER", (64, 128))

    def state(free, total=80 * GB):
        monkeypatch.setattr(TorchBackend, "device_memory", lambda self: (free, total))

    return state


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """The shapes of a 7B model: config and index, not a single weight."""
    folder = tmp_path_factory.mktemp("seven") / "llama-7b"
    return write_checkpoint(folder, make_config(**SHAPES["llama-2-7b"]), outline=True)


def planned(model, *words):
    result = run_edgeq("plan", model, "--backend", "cpu", *words)
    assert result.status == 0, result.err
    return result.out


def test_a_plan_shows_the_device_apart(stated, seven):
    stated(70 * GB)
    shown = " ".join(planned(seven).split())
    assert "of 80.0 GB 70.0 GB are free" in shown
    least = shown.split("the least, slower: --max-vram ")[1].split()[0]
    plan = json.loads(planned(seven, "--max-vram", least, "--json"))
    assert plan["device memory"]["peak"] <= parse_size(least, "")
    assert plan["device memory"]["peak"] == sum(plan["device memory"]["parts"].values())
    assert plan["memory"]["peak"] == sum(plan["memory"]["parts"].values())
    assert "weights in the solve" not in plan["memory"]["parts"]


def test_a_plan_that_no_device_holds_names_words_that_fit(stated, seven):
    stated(70 * GB)
    result = run_edgeq("plan", seven, "--backend", "cpu", "--max-vram", "4GB")
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert "--max-vram 4.0 GB: this run needs at least" in result.err
    words = result.err.split("or add ")[1].split(";")[0].split(" (")[0].split()
    plan = json.loads(planned(seven, "--max-vram", "4GB", *words, "--json"))
    assert plan["device memory"]["peak"] <= 4 * GB
    stated(GB // 10)
    result = run_edgeq("plan", seven, "--backend", "cpu")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "of the device's 80.0 GB 100 MB are free" in result.err
    assert "take --backend cpu or choose a smaller model" in result.err
