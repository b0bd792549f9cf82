"""Runs that name no text: on the mix, without the kinds that a model cannot use, which is said."""

import json

import pytest
from command_line import finished
from short_texts import take_short_texts, write_short_texts
from tiny_models import english_tokenizer

import edgeq as library
from edgeq.calibration.shipped import KINDS

SHORT = ["--samples", "30", "--sequence-length", "16", "--backend", "cpu"]
QUICKLY = [*SHORT, "--quality", "fast"]
NOTE = "calibration text is the mix without russian ("
LEFT = [kind for kind in KINDS if kind not in ("russian", "chinese")]


@pytest.fixture(scope="module", autouse=True)
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    write_short_texts(folder)
    with pytest.MonkeyPatch.context() as patch:
        take_short_texts(patch, folder)
        yield


@pytest.fixture
def english(model):
    """A model whose tokenizer knows the characters of English alone."""
    (model / "tokenizer.json").write_text(english_tokenizer().to_str())
    return model


@pytest.fixture
def refusing(model):
    """A model whose chat template refuses messages."""
    (model / "chat_template.jinja").write_text("{{ raise_exception('only tools') }}")
    return model


def texts_of(folder):
    found = json.loads((folder / "edgeq.json").read_text())["calibration"]["texts"]
    return [text["name"] for text in found]


def flat(result):
    return " ".join((result.out + result.err).split())


def test_a_run_that_names_no_text_takes_all_kinds(edgeq, saved_model, tmp_path):
    result = finished("quantize", saved_model, "-o", tmp_path / "out", *QUICKLY, "--json")
    assert texts_of(tmp_path / "out") == list(KINDS)
    assert not any("mix without" in note for note in json.loads(result.out)["notes"])
    again = [*QUICKLY, "--calibration", "mix", "--resume", "--json"]
    assert edgeq("quantize", saved_model, "-o", tmp_path / "out", *again).status == 0


def test_a_run_leaves_out_what_the_tokenizer_cannot_write_and_says_so(english, tmp_path):
    result = finished("quantize", english, "-o", tmp_path / "out", *QUICKLY, "--json")
    assert texts_of(tmp_path / "out") == LEFT
    [note] = [note for note in json.loads(result.out)["notes"] if NOTE in note]
    assert "chinese (" in note and "\n" not in note
    planned = json.loads(finished("plan", english, *QUICKLY, "--json").out)
    assert note in planned["notes"]
    assert NOTE in flat(finished("plan", english, *QUICKLY))
    assert NOTE in flat(finished("quantize", english, "-o", tmp_path / "other", *QUICKLY))
    run = library.quantize(
        english, tmp_path / "third", samples=30, sequence_length=16, backend="cpu", quality="fast"
    )
    assert note in run.notes


def test_an_importance_matrix_is_of_the_same_texts(english, tmp_path):
    place = tmp_path / "some.gguf"
    result = json.loads(finished("imatrix", english, "-o", place, *SHORT, "--json").out)
    assert [text["name"] for text in result["texts"]] == LEFT
    assert any(NOTE in note for note in result["notes"])


def test_a_model_is_tuned_on_the_same_texts(english, tmp_path):
    out, tuned = tmp_path / "out", tmp_path / "tuned"
    finished("quantize", english, "-o", out, *QUICKLY, "--bits", "3", "--group-size", "32")
    words = ["--reference", english, "--tokens", "480", "--passes", "1", "--backend", "cpu"]
    result = json.loads(finished("tune", out, "-o", tuned, *words, "--json").out)
    assert {text["name"] for text in result["tuned"]["texts"]} == set(LEFT)
    assert any(NOTE in note for note in result["notes"])


def test_a_template_that_refuses_messages_leaves_dialogue_out(edgeq, refusing, tmp_path):
    result = finished("quantize", refusing, "-o", tmp_path / "out", *QUICKLY, "--json")
    assert texts_of(tmp_path / "out") == [kind for kind in KINDS if kind != "dialogue"]
    [note] = [note for note in json.loads(result.out)["notes"] if "mix without" in note]
    assert "without dialogue (the model's chat template refuses the messages (only tools))" in note
    named = ["--calibration", "mix"]
    refused = edgeq("quantize", refusing, "-o", tmp_path / "other", *QUICKLY, *named)
    assert refused.status == 1 and "only tools" in refused.err


def test_the_mix_by_its_name_is_refused_by_the_kind(edgeq, english, tmp_path):
    named = ["--calibration", "mix"]
    result = edgeq("quantize", english, "-o", tmp_path / "out", *QUICKLY, *named)
    [line] = [line for line in result.err.splitlines() if line.startswith("edgeq: ")]
    assert result.status == 1 and "--calibration 'russian': " in line
    assert not (tmp_path / "out").exists()


def test_plain_rounding_needs_no_text(refusing, tmp_path):
    rounding = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0"]
    command = ["quantize", refusing, "-o", tmp_path / "out", *rounding, "--backend", "cpu"]
    assert not any("mix" in note for note in json.loads(finished(*command, "--json").out)["notes"])


def test_a_budget_needs_text_for_plain_rounding_too(saved_model, tmp_path):
    rounding = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0"]
    out = tmp_path / "chosen.toml"
    finished("allocate", saved_model, "-o", out, *rounding, *SHORT, "--file-size", "1GB")
    assert out.is_file()
