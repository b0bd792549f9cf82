"""What pages say, where it comes from, and what is done about files that are damaged."""

import base64
import hashlib
import html
import json
import os
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from page_data import KINDS, budget, layer, quality, run_report

from edgeq.errors import BadInput
from edgeq.files.ownership import foreign_entry, is_page
from edgeq.measuring.anchors import verdict
from edgeq.pages import shown
from edgeq.pages.compare_page import compare_page
from edgeq.pages.depth import LAST, layers_by_kind, place_of
from edgeq.pages.names import names_of
from edgeq.pages.run_page import run_page, write_run_page
from edgeq.pages.runs_page import runs_page
from edgeq.recipe.recipe import make_recipe
from edgeq.run.measured import Measured
from edgeq.solving.report import LayerReport, Stage

ROOT = Path(__file__).parent.parent.parent
PAGES = ROOT / "edgeq" / "pages"
VENDOR = PAGES / "vendor"
NOT_MEASURED = "Not measured. With the original as MODEL, this measures it:"


def words(page):
    """The text of a page as people read it, on one line."""
    body = page.decode("utf-8").partition("<main")[2].partition("</main>")[0]
    unbroken = body.replace("<wbr>", "")
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", unbroken)).split())


def drawn(page):
    """What page.js draws, by the name of the chart."""
    text = page.decode("utf-8")
    data = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text)[1]
    return {chart["id"]: chart for chart in json.loads(data)}


def view(chart, name):
    return next(each["series"] for each in chart["views"] if each["name"] == name)


def test_the_first_lines_say_what_became_of_the_model_in_plain_words(full_run):
    text = words(run_page(full_run))
    assert "takes 98.0 MB instead of 269 MB, 2.74 times smaller" in text
    assert f"{verdict(0.0865)}." in text
    assert "Its top token is another one in 1 of 8 cases" in text
    assert "KL divergence 0.0865 nats per token, 0.0800 to 0.0900" in text
    assert "Bits per weight 4.62 4.50 in linear layers" in text
    assert "Perplexity 31.50 the original has 30.25" in text
    assert "Why? Original Because. Quantized As." in text
    assert "At most 900 MB of memory were in use" in text and "Time, 78 s in all" in text
    assert "Not measured" not in text


def test_charts_have_the_numbers_of_the_report_and_of_the_measurement(full_run):
    charts = drawn(run_page(full_run))
    assert set(charts) == {"position", "windows", "budget", "errors", "strength"}
    layers = run_report().layers
    for name, stage in ((LAST, Stage.REFITTED), ("solved", Stage.SOLVED)):
        series = view(charts["errors"], name)
        assert [each["name"] for each in series] == [kind.rpartition(".")[2] for kind in KINDS]
        for each, kind in zip(series, KINDS, strict=True):
            expected = [
                [block, found.losses[stage]]
                for block in range(2)
                for found in layers
                if found.name == f"model.layers.{block}.{kind}"
            ]
            assert [point[:2] for point in each["points"]] == [
                pytest.approx(point, rel=1e-4) for point in expected
            ]
    gain = view(charts["errors"], "against rounding")
    assert {point[1] for each in gain for point in each["points"]} == {0.25}
    position = charts["position"]["views"][0]["series"][0]["points"]
    assert [(point[0], point[1]) for point in position] == [
        (8, 0.1),
        (pytest.approx((65 * 512) ** 0.5, rel=1e-4), 0.07),
    ]
    found = {each["name"]: each["points"] for each in charts["budget"]["views"][0]["series"]}
    assert found["chosen (predicted)"][0][:2] == [1_900_000, 0.02]
    assert found["chosen (measured)"][0][:2] == [1_900_000, 0.025]


def test_the_worst_layer_has_an_override_to_paste_behind_the_recipe(make_run):
    worst = layer("model.layers.0.mlp.down_proj", 0.6, 0.4)
    other = layer("model.layers.0.mlp.up_proj", 0.9, 0.2)
    for name, layers in (("a", [other, worst]), ("b", [worst, other])):
        page = run_page(make_run(name, report=run_report(layers=layers))).decode("utf-8")
        block = html.unescape(re.search(r"<pre[^>]*><code>(.*?)</code></pre>", page, re.DOTALL)[1])
        recipe = make_recipe(tomllib.loads(f"bits = 4\n{block}"))
        assert recipe.grid_of(worst.name).bits == 8
        assert recipe.grid_of(other.name).bits == 4


def test_what_was_not_measured_is_left_out_with_the_command_that_measures_it(make_run):
    page = run_page(make_run("a run"))
    text = words(page)
    assert f"{NOT_MEASURED} edgeq report 'a run' --reference MODEL" in text
    assert "Times were not stored with this run. edgeq quantize of this version" in text
    assert set(drawn(page)) == {"errors", "strength"}
    assert "KL divergence" not in text and "Perplexity" not in text and "Tasks" not in text


def test_a_run_without_errors_of_layers_says_so(make_run):
    layers = [LayerReport(f"model.layers.{n}.mlp.up_proj", (8, 8), 4, 32) for n in range(2)]
    page = run_page(make_run("rounded", run_report(layers=layers)))
    assert drawn(page) == {}
    assert "No error was measured: weights were rounded without calibration text" in words(page)


def test_what_was_unusual_is_on_the_page(make_run):
    layers = [
        layer("model.layers.0.up", 0.1, 0.05, damping=0.1, damping_retries=3),
        layer("model.layers.0.down", 0.1, 0.05, dead_columns=7),
        layer("model.layers.1.up", 0.1, 0.05, propagation_damping=1.0, few_tokens=True),
    ]
    clamped = {"model.layers.0.mlp.down_proj.weight": 5}
    report = run_report(layers=layers, kept_dense={"model.layers.*.router": 2}, clamped=clamped)
    text = words(run_page(make_run("unusual", report)))
    assert "model.layers.0.up: damping raised 3 times to 0.1" in text
    assert "model.layers.*.router 2" in text
    assert "model.layers.0.down 7" in text
    assert "model.layers.1.up 1, few tokens" in text
    assert "model.layers.0.mlp.down_proj.weight 5" in text


def test_what_can_be_done_better_is_on_the_page(make_run, full_run):
    bad = make_run("bad", run_report(layers=[layer("model.layers.0.up", 0.95, 0.9)]))
    text = words(run_page(bad))
    assert "What can be done better model.layers.0.up loses 90% of its output: keep it" in text
    assert "What can be done better" not in words(run_page(full_run))
    older = make_run("older", None, None, recipe={"bits": 4, "forgotten": 1})
    assert "What could be done better is not known: " in words(run_page(older))


def test_the_size_of_the_original_is_the_one_on_disk_and_the_one_at_16_bits(make_run):
    sizes = {"original": 98_000_000, "original at 16 bits": 269_000_000, "gguf": 84_000_000}
    text = words(run_page(make_run("sizes", None, Measured(sizes=sizes))))
    assert "takes 84.0 MB instead of 98.0 MB, 1.17 times smaller" in text
    assert "Size 84.0 MB was 98.0 MB, 269 MB at 16 bits" in text


def test_types_by_layer_are_laid_out_where_they_differ(make_run, full_run):
    layers = [
        LayerReport("model.layers.0.up", (8, 8), 4, 32, {Stage.SOLVED: 0.1}, type="Q4_K"),
        LayerReport("model.layers.1.up", (8, 8), 3, 32, {Stage.SOLVED: 0.1}),
    ]
    page = run_page(make_run("mixed", run_report(layers=layers)))
    assert '<td class="bits-4">Q4_K</td><td class="bits-3">3 bits</td>' in page.decode()
    assert "What each layer is stored in Rows are kinds" not in words(run_page(full_run))


def test_experts_of_a_block_are_shown_by_their_mean(make_run):
    expert = "model.layers.0.mlp.experts"
    layers = [
        layer(f"{expert}.{n}.{leaf}", 0.2, 0.1 * (n + 1), expert=n, tokens=9 - n)
        for n in range(2)
        for leaf in ("up", "down")
    ]
    page = run_page(make_run("experts", run_report(layers=layers)))
    series = view(drawn(page)["errors"], LAST)
    assert [(each["name"], each["points"]) for each in series] == [
        ("up", [[0, 0.15]]),
        ("down", [[0, 0.15]]),
    ]
    assert f"{expert}.1 8" in words(page)


def test_equal_input_gives_equal_bytes_and_no_time_of_day(full_run):
    first = write_run_page(full_run).read_bytes()
    assert write_run_page(full_run).read_bytes() == first == run_page(full_run)
    assert b"2026" not in first.partition(b'id="charts"')[0]
    assert str(full_run.path.parent).encode() not in first


def test_a_page_is_edgeqs_own_and_others_are_not_overwritten(make_run, tmp_path):
    checkpoint = make_run("own")
    page = write_run_page(checkpoint)
    assert is_page(page) and foreign_entry(checkpoint.path) is None
    page.write_text("<!doctype html><title>My thesis</title>")
    with pytest.raises(BadInput, match=r"is no page that edgeq wrote; move it away"):
        write_run_page(checkpoint)
    assert "thesis" in page.read_text()
    page.unlink()
    if os.name != "nt":
        (tmp_path / "elsewhere.html").write_text("mine")
        page.symlink_to(tmp_path / "elsewhere.html")
        with pytest.raises(BadInput, match=r"is no page that edgeq wrote"):
            write_run_page(checkpoint)
        assert (tmp_path / "elsewhere.html").read_text() == "mine"


@pytest.mark.parametrize(
    "damage",
    [
        {"curve": None},
        {"curve": [{"bytes": 1}]},
        {"curve": [{"bytes": "1", "predicted_kl": 0.1}]},
        {"curve": [{"bytes": 1, "predicted_kl": "small"}]},
        {"uniform": [{"type": ["Q"], "bytes": 1, "predicted_kl": 1, "best_of_size": 1}]},
        {"uniform": 3},
        {"measured": 3},
        {"measured": {"kl": None}},
        {"bytes": None},
        {"beside": None},
        {"notes": None},
        {"slack": "x"},
        {"spent": {"a": [1]}},
        {"spent": {"a": 1}},
        {"spent": ["a"]},
    ],
)
def test_a_damaged_budget_is_refused_in_one_line(make_run, damage):
    checkpoint = make_run("damaged", run_report(budget=budget() | damage))
    with pytest.raises(BadInput, match=r"budget .*cannot be read .*it is damaged") as caught:
        write_run_page(checkpoint)
    assert "\n" not in str(caught.value)
    assert not (checkpoint.path / "report.html").exists()


def test_measurements_with_gaps_are_shown_as_far_as_they_go(make_run):
    gaps = {"kl": None, "intervals": {"kl": None}, "windows": [{}], "by_position": [{}, {"kl": 1}]}
    gaps |= {"worst_tokens": [{}], "texts": [{}], "tasks": [{}], "top1_agreement": None}
    page = run_page(make_run("gaps", None, Measured(quality(**gaps), [{}], {})))
    assert "Perplexity 31.50" in words(page) and "None" not in words(page)
    assert "position" not in drawn(page)


def test_runs_come_on_one_page_with_what_differs(make_run, full_run):
    other = make_run("other", run_report(), Measured(quality(kl=0.2)), recipe={"bits": 3})
    page = runs_page([full_run, other, make_run("bare")])
    text, charts = words(page), drawn(page)
    points = {each["name"]: each["points"][0] for each in charts["sizes"]["views"][0]["series"]}
    assert points["full"] == [98_000_000, 0.0865, 0.08, 0.09, "full"]
    assert points["other"][1] == 0.2 and "bare" not in points
    assert "full: predicted" in points
    assert "The quality of bare was not measured." in text
    assert "edgeq report bare --reference MODEL" in text
    assert "bits 4 3 4" in text
    assert "different models" not in text
    for kind in ("mean of all layers", "q_proj"):
        assert [each["name"] for each in view(charts["errors"], kind)] == ["full", "other", "bare"]
    mean = view(charts["errors"], "mean of all layers")[0]["points"][0]
    expected = [layer.final_loss for layer in run_report().layers[: len(KINDS)]]
    assert mean[1] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_names_may_break_behind_dots_and_numbers_may_not(full_run, make_run):
    page = runs_page([full_run, make_run("a.b")]).decode("utf-8")
    assert '<th scope="row">a.<wbr>b</th>' in page
    assert "<td>98.0\N{NO-BREAK SPACE}MB</td>" in page and "<td>0.0865<small>" in page


def test_runs_of_different_models_are_shown_and_said_to_be_so(make_run, full_run):
    source = {"fingerprint": "another", "dtype": None}
    other = make_run("other", None, None, source=source, model="bigger")
    text = words(runs_page([full_run, other]))
    assert "These runs are of different models." in text
    assert "2 runs of model, bigger" in text


def test_a_comparison_names_the_closer_model_where_the_interval_is_clear():
    targets = [quality(name, kl=kl) for name, kl in (("a/x.gguf", 0.1), ("b/x.gguf", 0.2))]
    pairs = [
        {"a": "a/x.gguf", "b": "b/x.gguf", "kl_difference": -0.1, "interval": [-0.2, -0.05]},
        {"a": "b/x.gguf", "b": "a/x.gguf", "kl_difference": 0.1, "interval": [0.05, 0.2]},
        {"a": "a/x.gguf", "b": "b/x.gguf", "kl_difference": 0.0, "interval": [-0.1, 0.1]},
    ]
    page = compare_page({"reference": "transformers", "targets": targets, "pairs": pairs})
    text = words(page)
    assert "a/x.gguf b/x.gguf -0.1000 -0.2000 to -0.0500 a/x.gguf" in text
    assert "b/x.gguf a/x.gguf 0.1000 0.0500 to 0.2000 a/x.gguf" in text
    assert "0.0000 -0.1000 to 0.1000 no clear difference" in text
    assert page == compare_page({"reference": "transformers", "targets": targets, "pairs": pairs})


def test_numbers_of_numpy_are_drawn_as_those_of_python():
    numbers = {"kl": np.float64(0.5), "intervals": {"kl": [np.float64(0.25), np.float64(0.75)]}}
    positions = [{"from": 1, "to": 8, "kl": np.float64(0.5)}]
    targets = [quality(name, by_position=positions, **numbers) for name in ("a", "b")]
    sizes = drawn(compare_page({"targets": targets}))["sizes"]
    assert sizes["y"]["log"] is False
    assert sizes["views"][0]["series"][0]["points"] == [[98_000_000, 0.5, 0.25, 0.75, "a"]]


def test_a_measurement_of_today_without_reference_makes_a_page():
    found = {"target": "x", "runtime": "torch", "reference": None, "tokens": 100}
    found |= {"perplexity": float("inf"), "reference_perplexity": None, "kl": None}
    page = compare_page(found | {"top1_agreement": None})
    assert "--reference MODEL measures the KL divergence" in words(page)
    assert drawn(page) == {}


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["a/b/x.gguf", "c/y.gguf"], ["x.gguf", "y.gguf"]),
        (["a/b/x.gguf", "c/b/x.gguf"], ["a/b/x.gguf", "c/b/x.gguf"]),
        (["run/gguf", "run/mlx", "other/onnx"], ["run/gguf", "run/mlx", "other/onnx"]),
        (["x", "x", "x"], ["x", "x (2)", "x (3)"]),
        (["x.gguf", "a/x.gguf"], ["x.gguf", "a/x.gguf"]),
        (["a/gguf/model.gguf", "b/model.gguf"], ["a/gguf/model.gguf", "b/model.gguf"]),
        (["a/b/model.gguf"], ["b/model.gguf"]),
        (["gguf", ""], ["gguf", ""]),
        (["/", "/a"], ["/", "a"]),
    ],
)
def test_models_are_named_by_what_tells_them_apart(places, names):
    assert names_of(places) == names


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj", (3, "self_attn.q_proj")),
        ("transformer.h.12.mlp.c_fc", (12, "mlp.c_fc")),
        ("model.layers.3.mlp.experts.17.up_proj", (3, "mlp.experts.*.up_proj")),
        ("lm_head", (0, "lm_head")),
        ("a.²3.b", (0, "a.²3.b")),
        ("layers." + "9" * 400, (10**15 - 1, "")),
    ],
)
def test_a_name_says_block_and_kind(name, place):
    assert place_of(name) == place


def test_kinds_have_short_names_that_tell_them_apart():
    names = ("attn.c_proj", "mlp.c_proj", "mlp.c_fc", "mlp.shared.up", "mlp.experts.0.up")
    layers = [layer(f"h.0.{name}", 0.1) for name in names]
    assert [*layers_by_kind(layers)] == ["attn.c_proj", "mlp.c_proj", "c_fc", "shared.up", "*.up"]
    many = [layer(f"h.{block}.k{n}", 0.1) for block in range(2) for n in range(100)]
    assert len(layers_by_kind([*many, *layers])) == 24


@pytest.mark.parametrize(
    ("write", "number", "text"),
    [
        (shown.size, 98_400_000, "98.4 MB"),
        (shown.size, 1_234_000_000, "1.23 GB"),
        (shown.size, 999_999_999, "1.00 GB"),
        (shown.size, 999, "999 bytes"),
        (shown.size, None, "-"),
        (shown.nats, 0.08651, "0.0865"),
        (shown.nats, 0.00001234, "1.2e-05"),
        (shown.nats, 0, "0.0000"),
        (shown.percent, 0.875, "87.5%"),
        (shown.percent, 0.000123, "0.012%"),
        (shown.percent, 0.008, "0.80%"),
        (shown.seconds, 75, "75 s"),
        (shown.seconds, 600, "10 min"),
        (shown.perplexity, 21.3456, "21.35"),
        (shown.perplexity, 12345.6, "12,346"),
        (shown.perplexity, 1e9, "1.00e+09"),
    ],
)
def test_numbers_are_written_for_people(write, number, text):
    assert write(number).replace("\N{NO-BREAK SPACE}", " ") == text


def test_the_chart_library_is_the_one_that_is_stated_with_its_licences():
    """Otherwise run: uv run python scripts/vendor"""
    stated = json.loads((VENDOR / "echarts.json").read_text(encoding="utf-8"))
    library = (VENDOR / stated["file"]).read_bytes()
    assert hashlib.sha256(library).hexdigest() == stated["sha256"]
    assert b"</script" not in library and b"<!--" not in library and b"\r" not in library
    assert b"Apache License, Version 2.0" in library[:1000].replace(b"\n* ", b" ")
    assert "Apache License" in (VENDOR / "LICENSE").read_text(encoding="utf-8")
    assert "Mike Bostock" in (VENDOR / "LICENSE-d3").read_text(encoding="utf-8")
    notice = (VENDOR / "NOTICE").read_text(encoding="utf-8").splitlines()
    ours = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert notice[0] in ours and notice[1] in ours


def test_the_policy_of_a_page_lets_its_two_scripts_run_and_nothing_be_fetched(full_run):
    text = run_page(full_run).decode("utf-8")
    policy = html.unescape(
        re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)[1]
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    assert rules["script-src"].split() == [f"'sha256-{each}'" for each in hashes]
    assert len(hashes) == 2
    assert "img-src" not in rules and "connect-src" not in rules


def test_colours_are_the_same_in_the_dark_by_system_and_by_switch_and_lines_are_seen():
    style = (PAGES / "templates" / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root[^{]*\{\s*color-scheme: (\w+);([^}]*)\}", style)
    light, by_system, by_switch = [
        dict(re.findall(r"(--[\w-]+): ([^;]+);", block)) for _, block in blocks
    ]
    assert [name for name, _ in blocks] == ["light", "dark", "dark"]
    assert by_system == by_switch and set(light) == set(by_system)
    for colours in (light, by_system):
        for name in [f"--s{n}" for n in range(8)] + ["--bar"]:
            assert contrast(colours[name], colours["--card"]) >= 3  # WCAG 2: what is no text


def contrast(first, second):
    def luminance(colour):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(x * weight for x, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    dark, bright = sorted((luminance(first), luminance(second)))
    return (bright + 0.05) / (dark + 0.05)


def test_several_models_are_compared_text_by_text_and_one_in_all_numbers():
    texts = [{"name": name, "tokens": 9, "kl": kl, "perplexity": 8.5} for name, kl in TEXTS.items()]
    one, other = quality("one.gguf", texts=texts), quality("other.gguf", texts=texts[:1])
    assert "KL on one.gguf other.gguf code 0.5000 0.5000 prose 0.2500 -" in words(
        compare_page({"targets": [one, other]})
    )
    alone = words(compare_page({"targets": [one]}))
    assert "code 9 0.5000 8.500 - - prose 9 0.2500 8.500 - -" in alone


TEXTS = {"code": 0.5, "prose": 0.25}


def test_a_perplexity_stands_beside_the_originals_with_the_interval_of_their_ratio():
    ratio = {"perplexity_ratio": 1.0413, "intervals": {"perplexity_ratio": [1.03, 1.05]}}
    text = words(compare_page(quality(**ratio)))
    assert "Perplexity 31.50 1.041 times the original's 30.25, 1.03 to 1.05" in text
