"""The last screen of a run, drawn at several widths."""

import io
from dataclasses import replace
from pathlib import Path

import pytest

from edgeq.commands.finished_screen import MOST_ADVICE, show_finished
from edgeq.commands.screen import PlainConsole
from edgeq.measuring import anchors
from edgeq.measuring.anchors import Anchor, Anchors
from edgeq.run.finished import FinishedRun
from edgeq.run.report import RunReport
from edgeq.solving.report import LayerReport, Stage

QUALITY = {
    "target": "out/gguf/small-Q4_0.gguf",
    "runtime": "llama.cpp",
    "reference": "transformers",
    "tokens": 8192,
    "perplexity": 20.1,
    "reference_perplexity": 20.0,
    "kl": 0.009,
    "top1_agreement": 0.95,
    "intervals": {"kl": None, "perplexity": None, "top1_agreement": None},
    "windows": [{"text": "reference text"}] * 16,
    "texts": [],
    "tasks": [],
    "notes": [],
    "bytes": 76 * 10**6,
    "bits_per_weight": None,
}
LONG = "one answer of many words " * 20
FINISHED = FinishedRun(
    model="small",
    original="./small",
    output=Path("out"),
    exports={"gguf": "out/gguf/small-Q4_0.gguf"},
    sizes={
        "original": 98 * 10**6,
        "original at 16 bits": 269 * 10**6,
        "checkpoint": 77 * 10**6,
        "gguf": 76 * 10**6,
    },
    report=RunReport(
        {"linear layers": 4.5, "model": 4.6},
        layers=[LayerReport("m.0.up", (4, 4), 4, 32, {Stage.SOLVED: 0.01})],
    ),
    notes=["a detail of little use"],
    seconds={"solve": 3.0},
    grids={"linear layers": {"4 bits, group 32, symmetric": 7}},
    advice=["Little calibration text: quality can improve; use --samples 64"],
    is_chat=True,
    quality=QUALITY,
    answers=[{"prompt": "Why?", "original": "Because\nof light.", "quantized": LONG}],
    page=Path("out/report.html"),
)


@pytest.fixture(autouse=True)
def made_up_place(monkeypatch, tmp_path):
    """An export on disk, and anchors."""
    (tmp_path / "out" / "gguf").mkdir(parents=True)
    for name in ("small-Q4_0.gguf", "Modelfile", "README.md"):
        (tmp_path / "out" / "gguf" / name).touch()
    monkeypatch.chdir(tmp_path)
    found = Anchors("SmolLM2-135M", "text", (Anchor("Q5_K_M", 5.7, 0.009),))
    monkeypatch.setattr(anchors, "anchors_for", lambda _: found)


def shown(finished, width=80, **options):
    file = io.StringIO()
    console = PlainConsole(
        file=file, width=width, force_terminal=True, color_system=None, markup=False, emoji=False
    )
    show_finished(console, finished, **options)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_verdict_comes_first_and_nothing_is_cut(width):
    text = shown(FINISHED, width)
    flat = " ".join(text.split())
    assert flat.startswith(
        "small: very close to the original: KL 0.009, about as close as llama.cpp's Q5_K_M (of "
        "SmolLM2-135M)"
    )
    for part in (
        "98 MB (269 MB at 16 bits) before, 76 MB now; 4.52 bits per weight",
        "asked Why?",
        "original Because of light.",
        "quantized one answer of many",
        "out/gguf/small-Q4_0.gguf",
        "out/report.html",
        "use --samples 64",
        "talk to it: edgeq chat out/gguf/small-Q4_0.gguf",
        "llama-cli -m out/gguf/small-Q4_0.gguf",
    ):
        assert part in flat
    assert "a detail of little use" not in flat and "m.0.up" not in flat
    commands = ("talk to it: ", "in ", "with ")  # whole, to be pasted
    assert all(len(line) <= width for line in text.splitlines() if not line.startswith(commands))
    assert len(text.splitlines()) <= (22 if width == 60 else 20)


def test_all_else_comes_when_asked_for():
    text = shown(FINISHED, verbose=True)
    assert "a detail of little use" in text and "m.0.up" in text
    assert "4 bits, group 32" in text and "8192 tokens" in text


def test_without_a_measurement_no_verdict_is_made_up_and_the_command_is_named():
    text = " ".join(shown(replace(FINISHED, quality=None, answers=())).split())
    assert "has not been measured" in text and "KL" not in text
    assert "measure it: edgeq evaluate out/gguf/small-Q4_0.gguf --reference ./small" in text


def test_equal_answers_are_shown_once_and_missing_ones_are_explained():
    equal = replace(FINISHED, answers=[{"prompt": "Why?", "original": "So.", "quantized": "So."}])
    assert "both write" in shown(equal) and shown(equal).count("So.") == 1
    missing = replace(FINISHED, answers=(), unanswered="it takes 28 GB of memory to write")
    assert "no answers  it takes 28 GB" in shown(missing)


def test_an_original_in_16_bits_is_as_large_as_it_lies_on_disk():
    whole = replace(FINISHED, sizes={**FINISHED.sizes, "original": 269 * 10**6})
    assert "269 MB before, 76 MB now" in shown(whole)


def test_models_without_a_template_are_given_a_beginning_and_a_checkpoint_names_its_export():
    bare = replace(FINISHED, is_chat=False, exports={}, next_format="gguf")
    text = " ".join(shown(bare).split())
    assert "edgeq generate out 'Once upon a time'" in text
    assert "edgeq export out --format gguf" in text and "77 MB now" in text


def test_of_much_advice_the_first_is_shown_and_the_rest_is_counted():
    many = replace(FINISHED, advice=[f"advice {number}" for number in range(9)])
    text = shown(many)
    assert all((f"advice {number}" in text) == (number < MOST_ADVICE) for number in range(9))
    assert f"{9 - MOST_ADVICE} more notes" in text


def test_names_of_somebody_else_are_not_obeyed():
    assert "\x1b[31m" not in shown(replace(FINISHED, model="\x1b[31mred", advice=["[bold]x"]))


def test_a_budget_says_in_one_line_what_it_predicts_and_what_one_type_would():
    uniform = [{"type": "Q3_K", "bytes": 9, "predicted_kl": 0.04, "best_of_size": 0.03}]
    budget = {"predicted_kl": 0.0312, "limit": 10, "uniform": uniform}
    spent = replace(FINISHED, report=replace(FINISHED.report, budget=budget))
    assert "KL 0.0312 predicted; Q3_K for all layers: 0.04" in shown(spent)
    none = replace(FINISHED, report=replace(FINISHED.report, budget=budget | {"limit": 8}))
    assert "no one type for all layers keeps within it" in shown(none)
