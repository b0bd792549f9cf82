"""What tuning is planned to take: ways by memory, time by forward passes, text by tokens."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from test_memory_plan import run

from benchmarks.synthetic import SHAPES, make_config, write_checkpoint
from edgeq.architectures.record import read_record
from edgeq.calibration.windows import separate_windows
from edgeq.errors import BadInput, TooLittleMemory
from edgeq.planning.moments import Process
from edgeq.planning.tuning import WAYS, passes_of, peak_of, plan_tuning, sizes_of, tuning_seconds
from edgeq.recipe.layer_grids import grids_of_layers
from edgeq.recipe.recipe import make_recipe
from edgeq.run.tuning import drawing_recipe, windows_for
from edgeq.run.tuning_choice import choose_tuner
from edgeq.sources.outline import ModelOutline
from edgeq.streams.blockwise import share_windows
from edgeq.tuning.loop import Tuning

PROCESS = Process(800 * 10**6, 4)
TUNING = asdict(Tuning())


def sizes(shape, *, windows=274, tuning=TUNING, **recipe):
    decoder = read_record("llama", make_config(**SHAPES[shape])).decoder
    grids = grids_of_layers(list(decoder.linears()), make_recipe(recipe))
    return sizes_of(decoder, grids, windows=windows, length=512, tuning=tuning)


SEVEN = sizes("llama-2-7b", bits=3, group_size=64)


def test_less_memory_takes_another_way_and_a_refusal_names_what_is_enough():
    peaks = [peak_of(SEVEN, PROCESS, way).host.total for way in WAYS]
    assert peaks == sorted(peaks, reverse=True)
    for way, peak in zip(WAYS, peaks, strict=True):
        plan = plan_tuning(SEVEN, PROCESS, peak)
        assert (plan.way, plan.peak.total) == (way, peak)
    with pytest.raises(TooLittleMemory, match="tuning needs at least") as refused:
        plan_tuning(SEVEN, PROCESS, peaks[-1] - 1)
    assert plan_tuning(SEVEN, PROCESS, refused.value.least).way == WAYS[-1]


def test_without_a_limit_the_room_of_the_machine_decides_and_nothing_is_refused():
    assert plan_tuning(SEVEN, PROCESS, None).way == WAYS[0]
    assert plan_tuning(SEVEN, PROCESS, None, room=10**6).way == WAYS[-1]


def test_streamed_memory_does_not_grow_with_blocks_but_for_what_is_free():
    twice = replace(SEVEN.decoder, layers=SEVEN.decoder.layers * 2)
    longer = replace(SEVEN, decoder=twice)
    assert peak_of(longer, PROCESS, WAYS[-1]) == peak_of(SEVEN, PROCESS, WAYS[-1])
    resident = [peak_of(each, PROCESS, WAYS[0]).host.total for each in (longer, SEVEN)]
    assert resident[0] > 1.2 * resident[1]


def test_scales_of_groups_are_counted():
    columns = [linear.shape for linear in SEVEN.decoder.linears()]
    assert SEVEN.numbers == sum(rows * -(-width // 64) for rows, width in columns)
    offsets = sizes("llama-2-7b", bits=2, group_size=64, zeros="offset")
    assert offsets.numbers == 2 * SEVEN.numbers
    super_blocks = sizes("llama-2-7b", type="Q4_K")
    assert super_blocks.numbers == 2 * sum(rows * width // 256 for rows, width in columns)


def test_codes_that_move_take_18_bytes_each():
    free = {**TUNING, "free": (*TUNING["free"], "codes")}
    moving = sizes("llama-2-7b", tuning=free, bits=3, group_size=64)
    weights = sum(math.prod(linear.shape) for linear in SEVEN.decoder.linears())
    assert (moving.moved_codes, SEVEN.moved_codes) == (weights, 0)
    for way in WAYS:
        more = peak_of(moving, PROCESS, way).host.total - peak_of(SEVEN, PROCESS, way).host.total
        assert more == 18 * weights


def test_time_is_counted_in_forward_passes_of_the_tokens():
    training = SEVEN.windows - SEVEN.held_out
    resident, streamed = passes_of(SEVEN, WAYS[0]), passes_of(SEVEN, WAYS[-1])
    assert streamed - resident == TUNING["passes"] * training
    rates = {"forward": 1e12}
    seconds = tuning_seconds(SEVEN, WAYS[0], rates)
    assert seconds == pytest.approx(2 * tuning_seconds(SEVEN, WAYS[0], {"forward": 2e12}))
    tokens = SEVEN.windows * SEVEN.length
    assert seconds > 6 * tokens * 2 * 6.5e9 / 1e12  # once forward and back, twice


@pytest.mark.parametrize("tokens", [1, 512, 5_000, 131_072, 1_000_000])
def test_the_tokens_that_are_asked_for_are_tuned_on_and_more_are_held_out(tokens):
    count = windows_for(tokens, 512)
    held, training = share_windows(np.zeros((count, 1)), TUNING["held_out"])
    assert len(training) == max(1, round(tokens / 512))
    assert len(held) == math.ceil(TUNING["held_out"] * count)


def test_windows_are_drawn_with_the_seed_behind_that_of_the_solve():
    recipe = make_recipe({"seed": 7, "tune_tokens": 5120})
    drawn = drawing_recipe(recipe)
    assert (drawn.seed, drawn.samples) == (8, 11)
    assert drawing_recipe(make_recipe({"seed": 2**32 - 1})).seed == 0


@pytest.mark.parametrize(("tokens", "found"), [(1000, 20), (640, 20), (639, 19), (33, 1)])
def test_windows_apart_share_no_token_and_short_texts_give_fewer(tokens, found):
    windows = separate_windows(np.arange(tokens), samples=20, sequence_length=32, seed=3)
    assert windows.shape == (found, 32)
    assert len(np.unique(windows)) == windows.size
    assert (np.diff(windows, axis=1) == 1).all()
    again = separate_windows(np.arange(tokens), samples=20, sequence_length=32, seed=4)
    assert tokens in (640, 33) or (again != windows).any()


def test_a_text_without_one_window_is_refused():
    with pytest.raises(BadInput, match="31 tokens; at least one sequence of 32 is needed"):
        separate_windows(np.arange(31), samples=20, sequence_length=32, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [[], ["--tune-codes"], ["--max-ram", "1700MB"]],
    ids=["resident", "with codes", "streamed"],
)
def test_the_peak_of_tuning_is_within_15_percent_of_the_plan(tmp_path, more):
    shape = make_config(hidden=512, inner=1408, heads=8, blocks=6, vocabulary=16000, tied=True)
    model = write_checkpoint(tmp_path / "model", shape)
    words = [model, "--backend", "cpu", "--json", "--solver", "rtn", "--scales", "none"]
    words += ["--propagation-strength", 0, "--tune", "--tune-tokens", 16384, "--tune-passes", 1]
    words += more
    planned = json.loads(run("plan", *words)[0])
    _, peak = run("quantize", *words, "--output", tmp_path / "out")
    assert peak == pytest.approx(planned["memory"]["peak"], rel=0.15)


@pytest.fixture(scope="module")
def outline(tmp_path_factory):
    """A model of which only the description is there."""
    folder = tmp_path_factory.mktemp("outline")
    config = make_config(hidden=256, inner=512, heads=4, blocks=2)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return ModelOutline(folder)


@pytest.mark.parametrize(
    ("backend", "limit", "tunes", "note"),
    [
        ("cpu", None, True, "tuned, as model and gradients fit into memory"),
        ("cpu", 10**8, False, "not tuned: --max-ram 100 MB: tuning needs at least"),
        ("cpu", "streamed", False, "not tuned: model and gradients do not fit into memory; --tune"),
        ("cuda", "streamed", True, "tuned, as the device is a GPU"),
        ("reference", None, False, "not tuned: backend 'reference' does not tune"),
    ],
)
def test_auto_tunes_on_a_gpu_or_where_it_fits_and_says_so(outline, backend, limit, tunes, note):
    recipe = make_recipe({"tune": "auto", "tune_tokens": 2048})
    if limit == "streamed":
        sure = choose_tuner(outline, recipe, "cpu", PROCESS, None).plan
        limit = peak_of(sure.sizes, PROCESS, WAYS[-1]).host.total + 1
    choice = choose_tuner(outline, recipe, backend, PROCESS, limit)
    assert (choice.plan is not None) == tunes
    assert choice.note.startswith(note)


def test_a_recipe_that_tunes_is_refused_what_cannot_and_one_that_does_not_plans_nothing(outline):
    asked = make_recipe({"tune": True})
    with pytest.raises(TooLittleMemory):
        choose_tuner(outline, asked, "cpu", PROCESS, 10**8)
    assert choose_tuner(outline, make_recipe({}), "cpu", PROCESS, 10**8).plan is None
