"""What a user is told of a run that did not go as usual."""

import re
from dataclasses import replace

import pytest

from edgeq.recipe.recipe import make_recipe
from edgeq.run.advice import advise, short_of_types
from edgeq.run.report import RunReport
from edgeq.solving.report import LayerReport, Stage
from edgeq.types import Grid

RECIPE = make_recipe({"samples": 8, "sequence_length": 128, "propagation_share": 0.25})
GRID = Grid(4, 32)
GRIDS = {"m.0.up.weight": ((64, 96), GRID), "embed.weight": ((320, 96), GRID)}
PLENTY = {"texts": [{"name": "text", "samples": 8, "tokens": 10**6}]}


def layer(name="m.0.up", loss=0.01, **facts):
    return LayerReport(name, (64, 96), 4, 32, {Stage.SOLVED: loss}, **facts)


def told(*layers, calibration=PLENTY, recipe=RECIPE, **facts):
    return advise(RunReport(layers=list(layers), **facts), GRIDS, recipe, calibration)


def test_of_a_run_as_usual_nothing_is_told():
    assert told(layer(), layer("m.0.down")) == []


def test_few_tokens_become_the_number_of_samples_that_would_do():
    (line,) = told(replace(layer(few_tokens=True), shape=(64, 1000)), layer("m.0.down"))
    assert line.startswith("Little calibration text: quality can improve; use --samples ")
    samples = int(line.split()[-1])
    # both streams run on a quarter of the tokens; two tokens are needed for each of 1000 inputs
    assert samples * 128 / 4 >= 2 * 1000 > (samples - 8) * 128 / 4


def test_where_the_text_does_not_hold_so_many_samples_a_longer_one_is_asked_for():
    short = {"texts": [{"name": "text", "samples": 8, "tokens": 2000}]}
    (line,) = told(replace(layer(few_tokens=True), shape=(64, 1000)), calibration=short)
    assert line.endswith("--samples 64 and a longer text (--calibration FILE)")
    overlapping = {"texts": [{"name": "mine.txt", "samples": 8, "tokens": 500}]}
    (line,) = told(layer(few_tokens=True), calibration=overlapping)
    assert "'mine.txt' is short (500 tokens)" in line and "--samples" not in line


def test_a_text_that_repeats_itself_is_to_be_replaced():
    repeats = {"texts": [{"name": "text", "samples": 8, "tokens": 10**6, "runs": 9}]}
    (line,) = told(layer(), calibration=repeats)
    assert "repeats itself" in line and "--calibration FILE" in line


def test_experts_that_few_tokens_reach_count_by_what_would_be_enough():
    few = layer("m.0.experts.1.up", expert=1, tokens=48, lent_share=0.8)
    (line,) = told(layer("m.0.experts.0.up", expert=0, tokens=500, lent_share=0.1), few)
    # 48 own tokens are a fifth; as many as the lent 192 are four times as many
    assert line.endswith("use --samples 32")
    unseen = layer("m.0.experts.1.up", expert=1, tokens=0, lent_share=1.0)
    (line,) = told(layer("m.0.experts.0.up", expert=0, tokens=500, lent_share=0.1), unseen)
    assert line.startswith("1 of 2 experts saw no calibration text")


@pytest.mark.parametrize("loss", [0.9, float("nan")])
def test_a_layer_that_is_lost_is_to_be_kept(loss):
    (line,) = told(layer(loss=loss), layer("m.0.down"), clamped={"m.0.up.weight": 192})
    assert line.startswith("m.0.up loses ")
    assert line.endswith("keep it as it is with --keep-dense m.0.up")


def test_many_clamped_scales_name_the_option_that_keeps_the_tensor():
    few, many = {"m.0.up.weight": 1}, {"m.0.up.weight": 9, "embed.weight": 99}
    assert told(layer(), clamped=few) == []
    of_layer, of_embedding = told(layer(), clamped=many)
    assert of_layer.endswith("use --keep-dense m.0.up")
    assert of_embedding.endswith("use --embedding-bits 16")


def test_inputs_that_no_text_reaches_ask_for_other_text():
    assert told(layer(dead_columns=1), layer("m.0.down"), layer("m.1.up")) == []
    (line,) = told(layer(dead_columns=10), layer("m.0.down"))
    assert re.search(r"leaves 5% of the model's inputs unused: .*--calibration FILE", line)


def test_raised_damping_is_told_where_many_layers_needed_it():
    layers = [layer(f"m.{number}.up") for number in range(20)]
    raised = layer("m.20.up", damping=0.1, damping_retries=1)
    assert told(*layers, raised) == []
    (line,) = told(layers[0], raised)
    assert "uniform (1 of 2 layers" in line


def test_types_that_take_over_are_told_in_one_line():
    first = "2 layers of 96 inputs lie on Q5_0: Q4_K needs a multiple of 256"
    assert short_of_types([]) == [] and short_of_types([first]) == [first]
    assert short_of_types([first, "x", "y"]) == [f"{first}; and 2 more such (--verbose)"]
