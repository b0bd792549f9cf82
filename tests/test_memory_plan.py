"""What is planned is what happens: ways of running are chosen by it, and processes take what it
says.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.synthetic import SHAPES, make_config, write_checkpoint
from edgeq.architectures.record import read_record
from edgeq.decoder import Experts, Mlp
from edgeq.errors import BadInput
from edgeq.planning.memory import WAYS, choose_way, choose_writing, peak_moment
from edgeq.planning.moments import Process, moments
from edgeq.planning.time import block_seconds
from edgeq.recipe.recipe import make_recipe
from edgeq.run.forecast import open_outline
from edgeq.sources import open_source
from edgeq.sources.outline import ModelOutline
from edgeq.types import LinearSpec
from edgeq.words import parse_size, show_size

PROCESS = Process(800 * 10**6, 8)
CONFIG = make_config(**SHAPES["llama-2-7b"])
LLAMA_7B = read_record("llama", CONFIG).decoder
BALANCED, FAST = (make_recipe({"quality": quality}) for quality in ("balanced", "fast"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8e9),
        ("8 gb", 8e9),
        ("8GiB", 8 * 2**30),
        ("500MB", 5e8),
        ("1.5G", 1.5e9),
        ("2TB", 2e12),
        ("40960", 40960),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text, "--max-ram") == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "-8GB",
        "8 apples",
        "0GB",
        "8GBB",
        "nan",
        "1e9",
        "8,5GB",
        400 * "9" + "GB",
        "2000000TB",
    ],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(BadInput, match=r"--max-ram .*: expected a size such as 8GB"):
        parse_size(text, "--max-ram")


def test_a_limit_is_kept_by_the_fastest_way_that_does():
    totals = [peak_moment(LLAMA_7B, FAST, PROCESS, way).total for way in WAYS]
    for limit in totals:
        plan = choose_way(LLAMA_7B, FAST, PROCESS, limit)
        assert plan.peak.total <= limit
        assert all(total > limit for total in totals[: WAYS.index(plan.way)])


def test_a_model_that_writes_its_text_is_whole_in_memory_where_it_may_be():
    plan = choose_way(LLAMA_7B, BALANCED, PROCESS, None, written=64)
    assert plan.peak.name == "the text that the model writes"
    assert plan.peak.parts["whole model"] == pytest.approx(4 * 6.74e9, rel=0.01)
    assert plan.writing is not None and plan.writing.resident is None


def test_a_model_that_is_too_large_writes_block_by_block_with_as_many_blocks_as_fit():
    """A block of the 7B model has 202 million weights; 131 million each are in the embedding and
    the head.
    """
    limit = 16 * 10**9
    plan = choose_way(LLAMA_7B, BALANCED, PROCESS, limit, written=64)
    writing, block = plan.writing, 4 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    assert writing is not None and writing.resident is not None
    one_more = PROCESS.resident + 4 * 2 * 32000 * 4096 + (writing.resident + 2) * block + 2**31
    assert plan.peak.total <= limit < one_more + 10**9
    # a text of 512 tokens has 512 x 32 x 2 x 4096 x 4 bytes of keys and values
    assert writing.together == 2**31 // (512 * 32 * 2 * 4096 * 4) == 4
    assert writing.readings == 64 // 4 * 511
    assert writing.read_bytes == (32 - writing.resident) * block
    assert writing.seconds == pytest.approx(writing.readings * writing.read_bytes / 1e9)
    assert f"{writing.resident} of 32 blocks" in writing.describe()
    with pytest.raises(BadInput, match="at least"):
        choose_way(LLAMA_7B, BALANCED, PROCESS, 10**9, written=64)
    assert choose_writing(LLAMA_7B, BALANCED, PROCESS, limit, 64) == writing
    assert choose_writing(LLAMA_7B, BALANCED, PROCESS, 10**9, 0) is None
    with pytest.raises(BadInput, match="at least"):
        choose_writing(LLAMA_7B, BALANCED, PROCESS, 10**9, 64)


@pytest.mark.parametrize(
    "settings", [{"propagation_strength": "auto"}, {"outlier_columns": 0.01}], ids=str
)
def test_what_is_chosen_by_layer_takes_more_and_is_never_solved_in_rows(settings):
    chosen = replace(BALANCED, **settings)
    assert (
        peak_moment(LLAMA_7B, chosen, PROCESS, WAYS[0]).total
        > peak_moment(LLAMA_7B, BALANCED, PROCESS, WAYS[0]).total
    )
    for limit in (None, 30 * 10**9):
        assert choose_way(LLAMA_7B, chosen, PROCESS, limit).way.rows_at_once is None


def test_without_a_limit_everything_stands_in_memory():
    assert choose_way(LLAMA_7B, BALANCED, PROCESS, None).way == WAYS[0]


@pytest.mark.parametrize("recipe", [BALANCED, FAST], ids=["balanced", "fast"])
def test_a_refusal_names_a_size_that_is_then_enough(recipe):
    with pytest.raises(BadInput, match="needs at least") as refused:
        choose_way(LLAMA_7B, recipe, PROCESS, 10**9)
    size = parse_size(str(refused.value).split("at least ")[1].split(" (")[0], "--max-ram")
    assert choose_way(LLAMA_7B, recipe, PROCESS, size).peak.total <= size
    with pytest.raises(BadInput):
        choose_way(LLAMA_7B, recipe, PROCESS, int(0.97 * size))


def test_sizes_are_shown_rounded_up_where_less_would_not_do():
    assert show_size(8.04e9) == "8.0 GB"
    assert parse_size(show_size(8.04e9, up=True), "") >= 8.04e9
    assert parse_size(show_size(512.2e6, up=True), "") >= 512.2e6


def test_more_tokens_take_more_memory_only_where_they_stand():
    more = replace(FAST, samples=4 * FAST.samples)
    standing, recomputing = WAYS[0], WAYS[-1]
    assert (
        peak_moment(LLAMA_7B, more, PROCESS, standing).total
        > peak_moment(LLAMA_7B, FAST, PROCESS, standing).total
    )
    assert peak_moment(LLAMA_7B, more, PROCESS, recomputing) == peak_moment(
        LLAMA_7B, FAST, PROCESS, recomputing
    )


def test_blocks_do_not_count_in_memory_but_in_time():
    longer = read_record("long", {**CONFIG, "num_hidden_layers": 320}).decoder
    assert peak_moment(longer, FAST, PROCESS, WAYS[0]) == peak_moment(
        LLAMA_7B, FAST, PROCESS, WAYS[0]
    )


def mixture(count, *, described=True, inner=1024):
    """The 7B shapes with a mixture in the place of each feed-forward part."""
    [layer, *_] = LLAMA_7B.layers
    width, sites = LLAMA_7B.hidden, [*layer.sites[:2]]
    for expert in range(count):
        for names, shape in ((("gate", "up"), (inner, width)), (("down",), (width, inner))):
            places = [f"mlp.experts.{expert}.{name}_proj" for name in names]
            sites.append(
                tuple(LinearSpec(name, f"{name}.weight", shape, expert=expert) for name in places)
            )
    experts = Experts(count, 2, inner)
    mlp = Mlp(inner, "silu", experts=experts) if described else None
    layers = (replace(layer, sites=tuple(sites), mlp=mlp),) * len(LLAMA_7B.layers)
    return replace(LLAMA_7B, layers=layers)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_more_experts_take_their_weights_and_codes_and_no_passes(way):
    """Passes stand at one expert after the other, which all tokens may reach."""
    few, many = (peak_moment(mixture(count), BALANCED, PROCESS, way) for count in (8, 32))
    weights = 24 * 3 * 1024 * LLAMA_7B.hidden
    assert many.total - few.total >= 4 * weights
    at = dict(passes_at_last_expert(32, way))
    for name, parts in passes_at_last_expert(8, way):
        standing = [of.get("standing passes", 0) for of in (at[name], parts)]
        assert standing[0] == pytest.approx(standing[1], rel=0.01)  # but for scores of routers
        assert at[name]["weights of a block"] - parts["weights of a block"] >= 4 * weights
    assert "moments to lend" in many.parts or many.name.startswith("stacking")


def passes_at_last_expert(count, way):
    for moment in moments(mixture(count), BALANCED, PROCESS, way):
        what, _, layer = moment.name.partition(f"mlp.experts.{count - 1}.")
        if layer:
            yield what + layer, moment.parts


def test_the_time_of_an_expert_is_that_of_the_tokens_that_reach_it_on_average():
    found = {}
    for count in (8, 32):
        decoder = mixture(count)
        solved = {linear.tensor: linear.shape for linear in decoder.linears()}
        found[count] = block_seconds(decoder, BALANCED, RATES, False, solved)
    for stage in ("forward passes", "statistics"):
        assert found[32][stage] == pytest.approx(found[8][stage])
    assert found[32]["factors"] > 3 * found[8]["factors"] / 2
    unknown = mixture(8, described=False)
    more = block_seconds(unknown, BALANCED, RATES, False, solved)
    assert more["forward passes"] > 1.5 * found[8]["forward passes"]


@pytest.fixture(scope="module")
def solved():
    """All linear layers of the 7B shapes."""
    return {linear.tensor: linear.shape for linear in LLAMA_7B.linears()}


RATES = {"forward": 1e11, "solve": 5e10, "factor": 2e10, "search": 3e7, "columns": math.inf}


def seconds_of(recipe, solved, rates=RATES, *, recomputing=False):
    return block_seconds(LLAMA_7B, recipe, rates, recomputing, solved)


def test_twice_the_rate_is_half_the_time_and_recomputing_takes_longer(solved):
    once = seconds_of(BALANCED, solved)
    fast = seconds_of(BALANCED, solved, {name: 2 * rate for name, rate in RATES.items()})
    for stage in ("forward passes", "statistics", "factors", "solve"):
        assert fast[stage] == pytest.approx(once[stage] / 2)
    again = seconds_of(BALANCED, solved, recomputing=True)
    assert again["forward passes"] > 2 * once["forward passes"]
    assert again["solve"] == once["solve"]


def test_time_counts_the_tokens_of_the_second_stream_and_the_layers_that_are_solved(solved):
    half, all_, one = (replace(BALANCED, propagation_share=share) for share in (0.5, 1.0, 0.0))
    once, second = seconds_of(one, solved), seconds_of(all_, solved)
    for stage in ("forward passes", "statistics"):
        assert seconds_of(half, solved)[stage] == pytest.approx((once[stage] + second[stage]) / 2)
    assert second["forward passes"] == pytest.approx(2 * once["forward passes"])
    without_down = {name: shape for name, shape in solved.items() if "down_proj" not in name}
    less = seconds_of(BALANCED, without_down)
    assert less["forward passes"] == seconds_of(BALANCED, solved)["forward passes"]
    assert (
        less["factors"] < seconds_of(BALANCED, solved)["factors"] / 3
    )  # 3 widths of 4096 are left of 11008 too
    assert sum(seconds_of(BALANCED, {}).values()) == 0


def test_an_outline_has_the_tensors_of_the_whole_model(tmp_path):
    config = make_config(hidden=64, inner=96, heads=4, blocks=2)
    whole = open_source(str(write_checkpoint(tmp_path / "whole", config)))
    outline = open_outline(str(write_checkpoint(tmp_path / "outline", config, outline=True)))
    assert isinstance(outline, ModelOutline)
    assert {name: outline.shape(name) for name in outline.tensor_names()} == {
        name: whole.shape(name) for name in whole.tensor_names()
    }
    assert [block.linears for block in outline.blocks()] == [
        block.linears for block in whole.blocks()
    ]
    assert all(
        outline.tensor_bytes(name) == whole.tensor_bytes(name) for name in whole.tensor_names()
    )
    assert open_outline(str(tmp_path / "whole")) is None
    with pytest.raises(BadInput, match="holds no weights"):
        outline.read("model.norm.weight")


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**7), ("vocab_size", 10**400), ("intermediate_size", 10**15)],
)
def test_an_outline_of_absurd_size_is_refused(tmp_path, key, value):
    config = make_config(hidden=64, inner=96, heads=4, blocks=2)
    folder = write_checkpoint(tmp_path / "m", config, outline=True)
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(BadInput, match=rf"config: {key} is 10*; it must be \d+ or less"):
        open_outline(str(folder))


def test_an_index_that_does_not_fit_its_config_is_refused(tmp_path):
    folder = write_checkpoint(
        tmp_path / "m", make_config(hidden=64, inner=96, heads=4, blocks=2), outline=True
    )
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"lacks 'model\.norm\.weight'"):
        open_outline(str(folder))
    content["weight_map"] |= {
        "model.norm.weight": "a.safetensors",
        "model.extra.weight": "a.safetensors",
    }
    index.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"lists 'model\.extra\.weight'"):
        open_outline(str(folder))


def run(*words):
    """A command in a process of its own: standard output and the peak of its resident set."""
    command = [sys.executable, "-m", "edgeq", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return out, used.ru_maxrss * 1024


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """One block, wide enough that arrays weigh more than the program."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    return write_checkpoint(folder, make_config(hidden=768, inner=2048, heads=8, blocks=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--quality", "balanced"),
        ("--quality", "fast", "--samples", 96),
        ("--quality", "balanced", "--max-ram", "1800MB"),
        ("--quality", "balanced", "--propagation-strength", "auto"),
        ("--quality", "balanced", "--outlier-columns", "0.01"),
    ],
    ids=["balanced", "fast", "limited", "auto", "outliers"],
)
def test_the_peak_is_within_15_percent_of_the_plan(wide, tmp_path, words):
    words = (wide, "--backend", "cpu", "--json", *words)
    planned = json.loads(run("plan", *words)[0])
    _, peak = run("quantize", *words, "--output", tmp_path / "out")
    assert peak == pytest.approx(planned["memory"]["peak"], rel=0.15)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_blocks(tmp_path):
    peaks = []
    for blocks in (4, 32):
        model = write_checkpoint(
            tmp_path / "model", make_config(hidden=256, inner=688, heads=4, blocks=blocks)
        )
        words = ("--backend", "cpu", "--quality", "fast", "--samples", 8, "--sequence-length", 256)
        peaks.append(run("quantize", model, "--output", tmp_path / f"out{blocks}", *words)[1])
        shutil.rmtree(model)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.05)
