"""The report of a run: what is stored is read back, also as the first release wrote it."""

import json

import numpy as np
import pytest

from edgeq.errors import BadInput
from edgeq.files.json_files import json_bytes
from edgeq.recipe.recipe import make_recipe
from edgeq.run.finished import notes
from edgeq.run.report import VERSION, RunReport, report_from
from edgeq.solving.layer import solve_without_statistics
from edgeq.solving.report import LayerReport, Stage
from edgeq.types import Grid
from edgeq_backends.reference import ReferenceBackend


def report_of_two_layers():
    layers = [
        LayerReport("up", (8, 4), 3, None, {Stage.NEAREST: 0.1 + 0.2, Stage.SOLVED: 1e-17}),
        LayerReport("down", (4, 8), 4, 32, {Stage.NEAREST: 0.5, Stage.REFITTED: 0.25}, 0.5, None),
    ]
    return RunReport({"model": 4.5}, 2048, layers, {"up.weight": 3})


def stored(report):
    return json.loads(json_bytes(report.plain()))


def test_a_report_comes_back_from_its_file_with_every_float():
    report = report_of_two_layers()
    assert report_from(stored(report), "it") == report
    assert report_from(stored(RunReport()), "it") == RunReport()


def test_the_version_stands_first():
    assert next(iter(stored(report_of_two_layers()).items())) == ("version", VERSION)


def test_a_report_of_the_first_release_has_no_version_and_is_read():
    old = stored(report_of_two_layers())
    del old["version"]
    assert report_from(old, "it") == report_of_two_layers()


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_a_report_of_another_version_is_refused_with_both(version):
    with pytest.raises(BadInput, match=rf"^it: a report of version {version!r}, .* reads 1"):
        report_from({**stored(report_of_two_layers()), "version": version}, "it")


PLAIN = {"name": "a", "shape": [1, 1], "bits": 4, "group_size": None, "losses": {}}


@pytest.mark.parametrize(
    "damage",
    [
        {"layers": None},
        {"layers": [3]},
        {"layers": [{"name": "up"}]},
        {"layers": [{"name": "up", "shape": [1, 1], "losses": {"melted": 1.0}}]},
        {"clamped": 3},
        {"bits_per_weight": 4.5},
        {"bits_per_weight": {"model": None}},
        {"clamped": {"up.weight": "three"}},
        {"calibration_tokens": "many"},
        {
            "layers": [
                {
                    "name": "a",
                    "shape": [1, 1],
                    "bits": 4,
                    "group_size": None,
                    "losses": {"solved": None},
                }
            ]
        },
        {
            "layers": [
                {"name": "a", "shape": [1, 1], "bits": 4, "group_size": None, "few_tokens": True}
            ]
        },
        {"layers": [{**PLAIN, "expert": 1}]},
        {"layers": [{**PLAIN, "expert": 1, "tokens": -1}]},
        {"layers": [{**PLAIN, "expert": True, "tokens": 5}]},
        {"layers": [{**PLAIN, "expert": 1, "tokens": 5, "lent_share": 1.5}]},
        {"layers": [{**PLAIN, "expert": 1, "tokens": 5, "lent_share": None}]},
        {"layers": [{**PLAIN, "lent_share": 0.5}]},
    ],
)
def test_what_is_no_report_is_refused_in_one_line(damage):
    with pytest.raises(BadInput, match=r"^it: not the report of a run") as caught:
        report_from({**stored(report_of_two_layers()), **damage}, "it")
    assert "\n" not in str(caught.value)


def test_the_worst_layers_are_those_with_the_largest_loss_after_their_last_stage():
    report = report_of_two_layers()
    report.layers.append(LayerReport("unmeasured", (4, 4), 16, None))
    assert [layer.name for layer in report.worst_layers(5)] == ["down", "up"]
    assert [layer.name for layer in report.worst_layers(1)] == ["down"]


def expert_layers(block, stacked=False):
    """Layers of a dense site and of two experts, as a block of a mixture is solved."""
    yield LayerReport(f"{block}.self_attn.o_proj", (4, 4), 4, None)
    for expert, tokens in enumerate((9, 0)):
        for leaf, lent in (("gate_proj", 0.0), ("up_proj", 0.0), ("down_proj", 0.75)):
            name = f"experts.{leaf}" if stacked else f"experts.{expert}.{leaf}"
            facts = {"expert": expert, "tokens": tokens, "lent_share": lent if tokens else 1.0}
            yield LayerReport(f"{block}.{name}", (4, 4), 4, None, **facts)


@pytest.mark.parametrize("stacked", [False, True])
def test_experts_are_listed_with_their_tokens_and_what_they_were_lent(stacked):
    layers = [*expert_layers("layers.0", stacked), *expert_layers("layers.1", stacked)]
    report = RunReport(layers=layers)
    assert report_from(stored(report), "it") == report
    assert [(each.name, each.tokens, each.lent_share) for each in report.experts] == [
        (f"layers.{block}.experts.{expert}", tokens, lent)
        for block in range(2)
        for expert, (tokens, lent) in enumerate([(9, 0.75), (0, 1.0)])
    ]


def test_few_and_no_tokens_of_experts_are_noted_once_for_all():
    found = notes(RunReport(layers=[*expert_layers("layers.0"), *expert_layers("layers.1")]), {})
    few = [note for note in found if "experts saw fewer than 2 tokens for each input" in note]
    none = [note for note in found if "saw no token" in note]
    assert len(few) == len(none) == 1
    assert few[0].startswith("4 of 4 experts") and "layers.0.experts.1 (0 tokens, 100% " in few[0]
    assert none[0].startswith("2 experts") and "layers.0.experts.1, layers.1.experts.1" in none[0]


def test_scales_at_the_limit_of_their_type_are_counted_by_name(rng):
    report, weight = RunReport(), rng.standard_normal((2, 64)).astype(np.float32)
    for name, factor in (("ordinary", 1.0), ("large", 1e12)):
        scaled = weight * np.float32(factor)
        layer = solve_without_statistics(scaled, Grid(4, 32), make_recipe({}), ReferenceBackend())
        report.note_clamped(name, scaled, layer)
    assert report.clamped == {"large": 4}
