"""The mix of calibration texts that ships with edgeq: its kinds and shares, and that it has nothing
of the texts that models are measured on.
"""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import models
import pytest
from tiny_models import tokenizer_files
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from edgeq.calibration.reading import read_text
from edgeq.calibration.shipped import DIALOGUE, KINDS, SHARES
from edgeq.calibration.texts import Text, make_calibration, read_texts
from edgeq.commands.options import CALIBRATION_OPTION
from edgeq.errors import BadInput
from edgeq.measuring.text_kinds import KINDS as MEASURED

ROOT = Path(__file__).parents[1]
DATA = ROOT / "edgeq" / "data"
RUN = 12  # words: sentences of a page, not phrases that any text may have
ALTERNATING = """\
{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}
{% endfor %}"""


def with_template(template):
    files = tokenizer_files(template=True)
    source = models.MemorySource(models.tiny_llama(vocab_size=320), companions=files)
    source.record = replace(source.record, template=template)
    return source


@pytest.fixture(scope="module")
def source():
    return with_template(None)


def runs_of(text):
    words = text.lower().split()
    return {" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}


def test_the_mix_shares_no_sentence_with_what_models_are_measured_on():
    measured = [DATA / name for name in MEASURED.values()]
    measured.append(ROOT / "benchmarks" / "data" / "factbook.txt")
    seen = set(chain.from_iterable(runs_of(file.read_text("utf-8")) for file in measured))
    assert len(seen) > 10**5
    mixed = [file for file in KINDS.values() if file.startswith("mix/")]
    assert len(mixed) == len(KINDS) - 1
    for file in mixed:
        text = (DATA / file).read_text("utf-8")
        if file.endswith(".jsonl"):
            chats = map(json.loads, text.splitlines())
            text = "\n".join(turn["content"] for chat in chats for turn in chat["messages"])
        shared = runs_of(text) & seen
        assert not shared, f"{file}: {sorted(shared)[:3]}"


def test_every_text_states_its_origin():
    stated = (DATA / "README.md").read_text("utf-8")
    for path in (DATA / "mix").iterdir():
        assert f"`{path.name}`" in stated or f"`mix/{path.name}`" in stated
    assert {f"mix/{path.name}" for path in (DATA / "mix").iterdir()} - {"mix/LICENSES.txt"} == {
        file for file in KINDS.values() if file.startswith("mix/")
    }


def test_help_names_the_kinds():
    @CALIBRATION_OPTION
    def command():
        pass

    [option] = vars(command)["__click_params__"]
    assert f"({', '.join(KINDS)})" in option.help


def test_the_mix_has_each_kind_by_its_share(source):
    texts = read_texts(("self", "mix=3"), source)
    assert texts[0] == Text("self", 1.0, None)
    assert [text.name for text in texts[1:]] == list(SHARES) == list(KINDS)
    total = sum(SHARES.values())
    for text in texts[1:]:
        assert text.share == pytest.approx(3 * SHARES[text.name] / total)
        assert text.is_shipped and text.in_mix
    plain = {kind: file for kind, file in KINDS.items() if kind != DIALOGUE}
    contents = {text.name: text.content for text in texts}
    assert all(contents[kind] == read_text(None, default=file) for kind, file in plain.items())


def test_a_kind_beside_the_mix_gets_both_shares(source):
    code, speeches, *others = read_texts(("code=2", "mix", "speeches"), source)
    part = 1 / sum(SHARES.values())
    assert (code.name, speeches.name) == ("code", "speeches")
    assert code.share == pytest.approx(2 + part * SHARES["code"])
    assert speeches.share == pytest.approx(1 + part * SHARES["speeches"])
    assert len(others) == len(KINDS) - 2 and not code.in_mix


@pytest.mark.parametrize("values", [("mix", "mix=2"), ("code", "code=2")])
def test_a_kind_named_twice_is_refused(source, values):
    with pytest.raises(BadInput, match="given twice"):
        read_texts(values, source)


def test_few_sequences_leave_kinds_of_the_mix_out_and_no_others(source):
    texts = [
        replace(text, content=str(text.content)[:3000]) for text in read_texts(("mix",), source)
    ]
    options = {"samples": 3, "sequence_length": 8, "seed": 0}
    calibration = make_calibration(source, texts, None, **options)
    assert [entry["samples"] for entry in calibration.texts] == [1, 1, 1]
    assert len(calibration.windows) == 3
    asked = [replace(text, in_mix=text.name != "chinese") for text in texts]
    with pytest.raises(BadInput, match=r"'chinese': with share .* it gets none"):
        make_calibration(source, asked, None, **options)


def test_dialogue_is_written_by_the_template_of_the_model():
    """As transformers writes each conversation."""
    lines = read_text(None, default=KINDS[DIALOGUE]).splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    [text] = read_texts((DIALOGUE,), with_template(ALTERNATING))
    saved = Tokenizer.from_str(tokenizer_files()["tokenizer.json"].decode())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=saved, eos_token="<|eos|>")
    options = {"chat_template": ALTERNATING, "tokenize": False}
    expected = [tokenizer.apply_chat_template(chat, **options) for chat in chats]
    assert text.content == "".join(expected)


def test_dialogue_names_who_speaks_where_there_is_no_template(source):
    [text] = read_texts((DIALOGUE,), source)
    first = json.loads(read_text(None, default=KINDS[DIALOGUE]).splitlines()[0])["messages"]
    asked, answered = first[0]["content"], first[1]["content"]
    assert str(text.content).startswith(f"User: {asked}\n\nAssistant: {answered}\n\n")


def test_a_template_that_refuses_is_named_with_what_helps():
    refusing = with_template("{{ raise_exception('only tools') }}")
    with pytest.raises(BadInput, match=r"dialogue: .*only tools.*name kinds without it") as caught:
        read_texts(("mix",), refusing)
    assert "\n" not in str(caught.value)
