"""What `edgeq evaluate` says of several targets, against plain loops over transformers' logits."""

import json
import math
from importlib import resources

import models
import numpy as np
import pytest
import torch
from command_line import finished, run_edgeq
from tiny_models import byte_level_bpe
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from edgeq.checkpoint.reader import Checkpoint
from edgeq.commands.evaluation_screen import fitting_names, pair_words
from edgeq.errors import BadInput
from edgeq.measuring.evaluate import evaluate, evaluate_all
from edgeq.measuring.quality import compare
from edgeq.measuring.references import opened_reference
from edgeq.measuring.targets import find_export, open_model
from edgeq.registry import LOGITS, load

PLAINLY = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0"]
QUICK = ["--samples", "2", "--sequence-length", "32", "--backend", "cpu", *PLAINLY]
RUNTIMES = {"gguf": "llama.cpp", "mlx": "mlx-lm", "onnx": "onnxruntime"}
SIZES = {"windows": 3, "sequence_length": 64, "backend": "cpu"}
SHORT = {**SIZES, "text": "dialogue"}
WORDS = ["--windows", 3, "--sequence-length", 64, "--backend", "cpu", "--text", "dialogue"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small random model of peaked predictions, with a tokenizer that every format holds."""
    return models.save_small_llama(tmp_path_factory.mktemp("model") / "original")


@pytest.fixture(scope="module")
def four_bits(original, tmp_path_factory):
    """A checkpoint of it with an export for each runtime that all of them hold exactly."""
    out = tmp_path_factory.mktemp("runs") / "four"
    exports = [word for name in RUNTIMES for word in ("--export", name)]
    grid = ["--bits", 4, "--group-size", 32, "--embedding-bits", 8]
    finished("quantize", original, "-o", out, *grid, *exports, *QUICK)
    return out


@pytest.fixture(scope="module")
def eight_bits(original, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "eight"
    finished("quantize", original, "-o", out, "--bits", 8, "--group-size", 32, *QUICK)
    return out


@pytest.fixture(scope="module")
def result(original, four_bits, eight_bits):
    """Two checkpoints compared on two texts."""
    targets, texts = [str(four_bits), str(eight_bits)], ["dialogue", "code"]
    return evaluate_all(targets, reference=str(original), text=texts, **SIZES)


def tokens_of(name):
    """The tokens of a text that ships with edgeq."""
    text = (resources.files("edgeq") / "data" / f"{name}.txt").read_text(encoding="utf-8")
    return byte_level_bpe().encode(text, add_special_tokens=False).ids


def windows_of(name):
    """Its first windows."""
    ids = tokens_of(name)
    return np.array(ids[: 3 * 64]).reshape(3, 64)


def plain_log_probabilities(model, windows):
    with torch.no_grad():
        logits = model(torch.from_numpy(windows)).logits.numpy().astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def expected(original, four_bits, eight_bits):
    """Windows, and log probabilities of the original and both checkpoints, in float64."""
    windows = np.concatenate([windows_of("dialogue"), windows_of("code")])
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()
    found = [plain_log_probabilities(model, windows)]
    for path in (four_bits, eight_bits):
        checkpoint = Checkpoint(path)
        weights = {
            name: checkpoint.read(name).astype(np.float32) for name in checkpoint.tensor_names()
        }
        found.append(plain_log_probabilities(models.with_weights(model, weights), windows))
    return windows, found


def losses_of(log_probabilities, windows):
    """Mean loss of each window, token by token."""
    return [
        np.mean([-p[place, ids[place + 1]] for place in range(len(ids) - 1)])
        for p, ids in zip(log_probabilities, windows, strict=True)
    ]


def divergence(p, q):
    return (np.exp(p) * (p - q)).sum(axis=-1)


def test_every_window_has_its_divergence_losses_and_agreement(result, expected):
    windows, (original, *others) = expected
    for target, q in zip(result["targets"], others, strict=True):
        rows = target["windows"]
        assert [row["text"] for row in rows] == ["dialogue"] * 3 + ["code"] * 3
        kl = divergence(original, q).mean(axis=1)
        assert [row["kl"] for row in rows] == pytest.approx(list(kl), rel=1e-3, abs=1e-7)
        assert [row["loss"] for row in rows] == pytest.approx(losses_of(q, windows), rel=1e-4)
        reference = [row["reference_loss"] for row in rows]
        assert reference == pytest.approx(losses_of(original, windows), rel=1e-4)
        agreed = (original.argmax(axis=-1) == q.argmax(axis=-1)).sum(axis=1)
        assert [row["agreed"] for row in rows] == list(agreed)
        assert target["kl"] == pytest.approx(kl.mean(), rel=1e-3)
        assert target["perplexity"] == pytest.approx(
            math.exp(np.mean(losses_of(q, windows))), rel=1e-4
        )


def test_positions_are_averaged_from_the_first_token_to_the_last(result, expected):
    _, (original, four, _) = expected
    per_token = divergence(original, four).mean(axis=0)
    bins = result["targets"][0]["by_position"]
    assert [(each["from"], each["to"]) for each in bins] == [(1, 8), (9, 16), (17, 32), (33, 64)]
    for each in bins:
        mean = per_token[each["from"] - 1 : each["to"]].mean()
        assert each["kl"] == pytest.approx(mean, rel=1e-3)


def test_the_worst_tokens_stand_in_their_context(result, expected, original):
    windows, (reference, four, _) = expected
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(original / "tokenizer.json"))
    per_token = divergence(reference, four)[:, :-1]
    window, place = np.unravel_index(per_token.argmax(), per_token.shape)
    worst = result["targets"][0]["worst_tokens"]
    assert len(worst) == 12
    assert [each["kl"] for each in worst] == sorted((e["kl"] for e in worst), reverse=True)
    first, ids = worst[0], windows[window]
    assert first["kl"] == pytest.approx(per_token.max(), rel=1e-3)
    assert first["token"] == tokenizer.decode([ids[place + 1]])
    assert str(tokenizer.decode(ids[: place + 1])).endswith(first["before"])
    assert first["original_says"] == tokenizer.decode([reference[window, place].argmax()])
    assert first["target_says"] == tokenizer.decode([four[window, place].argmax()])


def test_each_text_is_measured_by_itself(result, expected):
    _, (original, four, _) = expected
    texts = result["targets"][0]["texts"]
    assert [(each["name"], each["tokens"]) for each in texts] == [("dialogue", 192), ("code", 192)]
    kl = divergence(original, four).mean(axis=1)
    assert texts[0]["kl"] == pytest.approx(kl[:3].mean(), rel=1e-3)
    assert texts[1]["kl"] == pytest.approx(kl[3:].mean(), rel=1e-3)


def test_pairs_are_differences_on_the_same_windows(result, expected):
    windows, (original, four, eight) = expected
    [pair] = result["pairs"]
    kl = divergence(original, four).mean() - divergence(original, eight).mean()
    assert pair["kl_difference"] == pytest.approx(kl, rel=1e-3)
    low, high = pair["interval"]
    assert 0 < low < kl < high
    loss = np.mean(losses_of(four, windows)) - np.mean(losses_of(eight, windows))
    assert pair["perplexity_ratio"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_every_average_lies_in_its_interval(result):
    for target in result["targets"]:
        for name, (low, high) in target["intervals"].items():
            assert low <= target[name] <= high, name


def test_one_target_alone_says_what_it_says_among_others(result, original, four_bits):
    alone = evaluate(str(four_bits), reference=str(original), text=["dialogue", "code"], **SIZES)
    beside = result["targets"][0]
    assert alone["kl"] == pytest.approx(beside["kl"], rel=1e-6)
    assert alone["worst_tokens"][0] == beside["worst_tokens"][0]
    assert alone.keys() == beside.keys()


def test_the_size_is_that_of_the_files(result, four_bits, original):
    target = result["targets"][0]
    weights = sum(path.stat().st_size for path in four_bits.rglob("*.safetensors"))
    assert target["bytes"] <= weights
    assert 4.5 < target["bits_per_weight"] < 9


def test_progress_counts_windows_of_all_models(original, four_bits):
    seen = []
    targets = [str(four_bits), str(four_bits / "gguf")]
    evaluate_all(
        targets, reference=str(original), progress=lambda *call: seen.append(call[1:]), **SHORT
    )
    done = [each for each, _ in seen]
    assert {total for _, total in seen} == {9}
    assert done == sorted(done)
    assert done[-1] == 9


def test_without_a_reference_targets_are_compared_by_perplexity(four_bits, eight_bits):
    found = evaluate_all([str(four_bits), str(eight_bits)], reference=None, **SHORT)
    [pair] = found["pairs"]
    assert (found["reference"], pair["kl_difference"], pair["interval"]) == (None, None, None)
    a, b = (target["perplexity"] for target in found["targets"])
    assert pair["perplexity_ratio"] == pytest.approx(a / b, rel=1e-6)
    assert found["targets"][0]["by_position"] == []


def test_one_checkpoint_has_the_same_divergence_in_every_runtime(original, four_bits):
    """Computed in float32 everywhere, so that nothing but the weights counts."""
    windows = windows_of("dialogue")
    with opened_reference(open_model(str(original)), "cpu") as opened_original:
        reference = list(opened_original.logits(windows))
    opened = {"torch": load(LOGITS["torch"], "torch")(Checkpoint(four_bits))}
    opened["mlx"] = load(LOGITS["mlx"], "mlx")(Checkpoint(four_bits))
    for name, runtime in RUNTIMES.items():
        path = find_export(str(four_bits / name)).path
        opened[runtime] = load(LOGITS[runtime], runtime)(path, exact=True)
    kl = {
        name: compare(windows, each.logits(windows), reference).kl for name, each in opened.items()
    }
    print(kl)
    for name, found in kl.items():
        assert found == pytest.approx(kl["torch"], rel=0.01), name


def test_as_shipped_runtimes_differ_by_no_more_than_their_rounding(original, four_bits):
    targets = [str(four_bits), *(str(four_bits / name) for name in RUNTIMES)]
    found = evaluate_all(targets, reference=str(original), **SHORT)["targets"]
    kl = {each["runtime"]: each["kl"] for each in found}
    print(kl)
    assert set(kl) == {"torch", *RUNTIMES.values()}
    for runtime, each in kl.items():
        assert each == pytest.approx(kl["torch"], rel=0.1), runtime


def test_a_table_says_what_is_closer_to_the_original(original, four_bits, eight_bits):
    words = ["--reference", original, *WORDS]
    shown = finished("evaluate", four_bits, eight_bits, *words).out
    assert "eight is closer to the original than four, by 0." in shown
    assert all(len(line) <= 80 for line in shown.splitlines()[:3])
    one = finished("evaluate", four_bits, *words).out
    assert "KL divergence" in one
    assert " to " in one


def test_a_page_is_written_where_it_is_asked_for(original, eight_bits, tmp_path):
    page = tmp_path / "page.html"
    words = ["--reference", original, "--html", page, *WORDS]
    assert "written" in finished("evaluate", eight_bits, *words).err
    assert b"eight" in page.read_bytes()
    refused = run_edgeq("evaluate", eight_bits, *words)
    assert (refused.status, refused.out) == (1, "")
    assert "pass --force to replace it" in refused.err
    page.write_text("mine")
    assert run_edgeq("evaluate", eight_bits, *words, "--force").status == 1
    assert page.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": "poetry"}, "no such file, and no kind of text that ships"),
        ({"text": ["code", "nowhere/a.txt"]}, "nowhere/a.txt"),
        ({"tasks": ["nowhere.jsonl"]}, "nowhere.jsonl"),
        ({"runtime": "onnxruntime"}, "which"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(original, options, said):
    called = []
    with pytest.raises(BadInput, match=said):
        evaluate(
            str(original),
            reference=str(original),
            progress=lambda *call: called.append(call),
            **{**SHORT, **options},
        )
    assert called == []


def test_another_vocabulary_under_the_same_ids_is_refused(original, eight_bits, tmp_path):
    """As if a maker had trained a tokenizer of the same size anew."""
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for file in original.iterdir():
        (swapped / file.name).write_bytes(file.read_bytes())
    content = json.loads((original / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    ids = tokens_of("dialogue")
    by_id = {number: text for text, number in vocabulary.items()}
    first, other = by_id[ids[0]], by_id[ids[1]]
    vocabulary[first], vocabulary[other] = vocabulary[other], vocabulary[first]
    (swapped / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BadInput, match="has another tokenizer: token"):
        evaluate_all([str(eight_bits), str(swapped)], reference=str(original), **SHORT)


def test_names_are_cut_from_the_left_or_numbered_where_that_makes_two_alike():
    assert fitting_names(["long/name", "b"], 9) == ["long/name", "b"]
    assert fitting_names(["models/long-name", "b"], 9) == ["…ong-name", "b"]
    assert fitting_names(["one/model.gguf", "two/model.gguf"], 9) == ["#1", "#2"]


@pytest.mark.parametrize(("low", "high"), [(-0.25, -0.125), (0.125, 0.25)])
def test_a_difference_is_stated_in_the_order_of_its_sentence(low, high):
    names = {"a": "near", "b": "far"} if high < 0 else {"a": "far", "b": "near"}
    pair = {"a": "a", "b": "b", "kl_difference": (low + high) / 2, "interval": [low, high]}
    said = "near is closer to the original than far, by 0.1875 (0.1250 to 0.2500)"
    assert pair_words(pair, names) == said
    ratio = {"perplexity_ratio": 2 ** (8 * (low + high) / 3), "kl_difference": None}
    ratio["perplexity_ratio_interval"] = [2 ** (8 * low), 2 ** (8 * high)]
    said = "near predicts the text better than far, with 0.5000 times its perplexity"
    assert pair_words(pair | ratio, names) == f"{said} (0.2500 to 0.5000)"
