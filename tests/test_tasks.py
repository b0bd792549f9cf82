"""Tasks of several choices, against a loop over transformers' logits, one choice at a time."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from command_line import finished
from models import save_small_llama
from tiny_models import byte_level_bpe, tokenizer_files
from transformers import AutoModelForCausalLM

from edgeq.errors import BadInput
from edgeq.measuring.evaluate import evaluate, evaluate_all
from edgeq.measuring.tasks import read_task

ITEMS: list[dict[str, Any]] = [
    {"question": "What do mice eat?", "choices": ["cheese", "stones and iron", "9"], "answer": 0},
    {
        "context": "The 12 mice run to ",
        "choices": ["the cafes", "a", "nowhere at all"],
        "answer": "B",
    },
    {"context": "It's 2026:", "choices": ["no", " yes, and it's a long one"], "answer": "no"},
    {"question": "x=1 and y=2?", "choices": ["x", "y", "xy", "!!"], "answer": 3},
    {"context": "don't\n", "choices": ["sleep", "they'LL run away"], "answer": 1},
    {"context": "They'LL  run\t", "choices": ["away", "12345 12345 12345"], "answer": "A"},
]
SHORT = {"windows": 1, "sequence_length": 16, "backend": "cpu", "text": "dialogue"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_llama(tmp_path_factory.mktemp("model") / "first", seed=0)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same model with other weights, so that it answers otherwise."""
    return save_small_llama(tmp_path_factory.mktemp("model") / "second", seed=1)


@pytest.fixture
def task(tmp_path):
    return written(tmp_path / "mice.jsonl", ITEMS)


def written(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def expected(folder, begin=()):
    """Shares of items that are answered rightly, by the sum and by the mean over characters."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = byte_level_bpe()
    right = by_length = 0
    for item in ITEMS:
        context = item.get("context") or f"Question: {item['question']}\nAnswer:"
        sums = []
        for choice in item["choices"]:
            spaced = context[-1].isspace() or choice[0].isspace()
            text = context + ("" if spaced else " ") + choice
            whole = tokenizer.encode(text, add_special_tokens=False).ids
            first = len(tokenizer.encode(context.rstrip(), add_special_tokens=False).ids)
            ids = [*begin, *whole]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].double()
            log_probabilities = torch.log_softmax(logits, dim=-1)
            places = range(len(begin) + first, len(ids))
            sums.append(sum(float(log_probabilities[at - 1, ids[at]]) for at in places))
        answer = item["answer"]
        if isinstance(answer, str):
            named = (
                item["choices"].index(answer) if answer in item["choices"] else "ABCD".find(answer)
            )
            answer = named
        lengths = [len(choice) for choice in item["choices"]]
        right += int(np.argmax(sums)) == answer
        by_length += int(np.argmax(np.divide(sums, lengths))) == answer
    return right / len(ITEMS), by_length / len(ITEMS)


def test_choices_are_scored_by_what_they_add_to_their_context(model, other, task):
    found = evaluate(str(other), reference=str(model), tasks=[str(task)], **SHORT)
    [result] = found["tasks"]
    assert (result["name"], result["items"]) == ("mice", len(ITEMS))
    assert (result["accuracy"], result["accuracy_by_length"]) == pytest.approx(expected(other))
    reference = (result["reference_accuracy"], result["reference_accuracy_by_length"])
    assert reference == pytest.approx(expected(model))
    low, high = result["interval"]
    assert 0 <= low <= result["accuracy"] <= high <= 1
    assert high - low > 0.3  # six questions tell little


def test_a_text_begins_as_the_tokenizer_begins_it(tmp_path, task):
    folder = save_small_llama(tmp_path / "begun", seed=2)
    for name, data in tokenizer_files(template=True).items():
        (folder / name).write_bytes(data)
    [result] = evaluate(str(folder), reference=None, tasks=[str(task)], **SHORT)["tasks"]
    found = (result["accuracy"], result["accuracy_by_length"])
    assert found == pytest.approx(expected(folder, begin=(0,)))
    assert result["reference_accuracy"] is None


def test_several_targets_answer_the_same_items(model, other, task):
    found = evaluate_all([str(model), str(other)], reference=None, tasks=[str(task)], **SHORT)
    accuracies = [target["tasks"][0]["accuracy"] for target in found["targets"]]
    assert accuracies == pytest.approx([expected(model)[0], expected(other)[0]])


def test_accuracy_is_shown_beside_the_original_s(model, task):
    words = ["--windows", 1, "--sequence-length", 16, "--backend", "cpu", "--text", "code"]
    shown = finished("evaluate", model, "--reference", model, "--tasks", task, *words).out
    said = " ".join(shown[shown.index("mice") :].split())
    share = f"{expected(model)[0]:.1%}"
    assert f"{share} right" in said
    assert f"original {share}" in said


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "item 2: no question with choices"),
        ({"question": "q", "answer": 0}, "item 2: no question with choices"),
        ({"question": "  ", "context": " ", "choices": ["a", "b"], "answer": 0}, None),
        ({"question": "q", "choices": ["a"], "answer": 0}, "two or more different texts"),
        ({"question": "q", "choices": ["a", "a"], "answer": 0}, "two or more different texts"),
        ({"question": "q", "choices": ["a", " "], "answer": 0}, "two or more different texts"),
        ({"question": "q", "choices": ["a", 3], "answer": 0}, "two or more different texts"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "answer 2 is none of 2 choices"),
        ({"question": "q", "choices": ["a", "b"], "answer": -1}, "answer -1 is none"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "answer True is none"),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "answer 'C' is none"),
        ({"question": "q", "choices": ["a", "b"]}, "answer None is none"),
        (["q"], "item 2: no question with choices"),
    ],
)
def test_an_item_that_cannot_be_asked_is_named(tmp_path, item, said):
    path = written(tmp_path / "bad.jsonl", [ITEMS[0], item])
    if said is None:
        assert read_task(str(path)).items[1].context.startswith("Question:")
        return
    with pytest.raises(BadInput, match=said):
        read_task(str(path))


@pytest.mark.parametrize("content", ["", "not JSON at all", "[]"])
def test_a_file_without_items_is_refused(tmp_path, content):
    path = tmp_path / "tasks.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"tasks\.jsonl"):
        read_task(str(path))


def test_an_item_that_is_longer_than_the_model_reads_is_refused(model, tmp_path):
    long = {"context": "mice run " * 100, "choices": ["a", "b"], "answer": 0}
    path = written(tmp_path / "long.jsonl", [*ITEMS, long])
    with pytest.raises(BadInput, match=r"item 7: \d+ tokens; the models read at most 128"):
        evaluate(str(model), reference=None, tasks=[str(path)], **SHORT)


@pytest.mark.parametrize("key", ["question", "choices"])
def test_half_a_character_is_named(model, tmp_path, key):
    """JSON's escapes can write it, and no tokenizer reads it."""
    item = {**ITEMS[0], key: "\ud800" if key == "question" else ["a", "\ud800"]}
    path = written(tmp_path / "half.jsonl", [item])
    with pytest.raises(BadInput, match=r"a text holds '\\ud800', which is no character"):
        evaluate(str(model), reference=None, tasks=[str(path)], **SHORT)
