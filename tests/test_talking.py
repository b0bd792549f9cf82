"""Models write the tokens that an independent greedy loop chooses, in each of their runtimes."""

import json
import shutil

import models
import pytest
import torch
from talking import (
    CONTEXT,
    FORMATS,
    TEMPLATE,
    dequantized,
    greedy,
    quantized,
    save_chatting,
    set_ends,
    target_of,
)
from tiny_models import tokenizer_files
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from edgeq.errors import BadInput, EdgeqError, NotInstalled
from edgeq.registry import SPEAKERS, Entry
from edgeq.talking import Conversation, answer, open_talker, opening
from edgeq.talking.talker import Talker
from edgeq_backends.llama_cpp import float32_copy
from edgeq_backends.llama_cpp_speaking import LlamaCppSpeaker

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = "the mice run"
COUNT = 24
TARGETS = ("checkpoint", *FORMATS)
EXACT = [name for name in TARGETS if name != "gguf"]  # llama.cpp rounds activations to 8 bits
MESSAGES = [
    {"role": "system", "content": "Be a mouse. "},
    {"role": "user", "content": " Why é?"},
    {"role": "assistant", "content": "12."},
    {"role": "user", "content": "\U0001f42d"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talking")
    model = save_chatting(folder / "tiny")
    return model, quantized(model, folder / "solved", folder / "text.txt")


@pytest.fixture(scope="module")
def reference(made):
    return dequantized(*made)


@pytest.fixture(scope="module")
def talkers(made):
    """An open talker of every target."""
    found = {name: open_talker(target_of(made[1], name)) for name in TARGETS}
    yield found
    for talker in found.values():
        talker.__exit__(None, None, None)


def written(talker, prompt, count=COUNT, **options):
    reply = talker.reply(prompt, most_tokens=count, **options)
    return "".join(reply), reply


@pytest.mark.parametrize("name", EXACT)
def test_the_likeliest_tokens_are_those_of_the_dequantized_weights(talkers, reference, name):
    talker = talkers[name]
    for prompt in (PROMPT, "It's 2026", PROMPT):  # the cache of the one before is gone on from
        ids = talker.tokens_of(prompt)
        _, reply = written(talker, prompt)
        assert (reply.ids, reply.stopped) == (greedy(reference, ids, COUNT), "max-tokens")
        assert reply.tokens == COUNT


def test_llama_cpp_writes_them_too_where_it_computes_in_float32(made, reference):
    target = target_of(made[1], "gguf")
    with float32_copy(target, weights=10**6) as copy:
        speaker = LlamaCppSpeaker(copy, exact=True)
        with Talker(speaker, speaker.texts, "llama.cpp") as talker:
            for prompt in (PROMPT, "It's 2026", PROMPT):
                ids = talker.tokens_of(prompt)
                assert written(talker, prompt)[1].ids == greedy(reference, ids, COUNT)


def test_llama_cpp_chooses_what_is_likeliest_but_for_its_rounding(talkers, reference):
    talker = talkers["gguf"]
    ids = talker.tokens_of(PROMPT)
    _, reply = written(talker, PROMPT)
    with torch.no_grad():
        logits = reference(torch.tensor([[*ids, *reply.ids]])).logits[0, len(ids) - 1 : -1]
    lost = logits.max(dim=1).values - logits.gather(1, torch.tensor(reply.ids)[:, None])[:, 0]
    assert lost.max() < 0.05 * logits.abs().max()
    assert (lost == 0).sum() > 0.8 * COUNT


@pytest.mark.parametrize("runtime", ["torch", "mlx"])
def test_a_trained_model_goes_on_as_transformers_has_it(tmp_path, runtime):
    folder = models.save_glass(tmp_path / "glass")
    original = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode("The president of the", add_special_tokens=False).ids
    backend = {"torch": "cpu", "mlx": "mlx"}[runtime]
    with open_talker(str(folder), backend=backend) as talker:
        text, reply = written(talker, "The president of the", 16)
        assert (talker.runtime, talker.has_template) == (runtime, False)
    expected = original.generate(
        torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=None
    )
    assert reply.ids == expected[0, len(ids) :].tolist()
    assert text == tokenizer.decode(expected[0].tolist()).removeprefix(tokenizer.decode(ids))


@pytest.mark.parametrize("name", TARGETS)
def test_an_answer_ends_at_each_end_that_the_target_knows(made, talkers, tmp_path, name):
    solved = shutil.copytree(made[1], tmp_path / "solved")
    whole = written(talkers[name], PROMPT)[1].ids
    end = next(token for place, token in enumerate(whole) if place > 4 and token > 3)
    set_ends(solved, name, [end])
    with open_talker(target_of(solved, name)) as talker:
        _, reply = written(talker, PROMPT)
    assert reply.ids == whole[: whole.index(end)]
    assert reply.stopped == "end"


@pytest.mark.parametrize("name", ["checkpoint", "gguf", "onnx"])
def test_an_answer_ends_where_the_context_does(talkers, name):
    prompt = "the mice " * 10
    _, reply = written(talkers[name], prompt, 10 * CONTEXT)
    if reply.stopped != "end":
        assert reply.stopped == "context"
        assert reply.prompt_tokens + reply.tokens == CONTEXT


@pytest.mark.parametrize("name", ["checkpoint", "gguf"])
def test_a_prompt_that_fills_the_context_is_refused(talkers, name):
    with pytest.raises(BadInput, match=f"reads {CONTEXT} with its answer; shorten the prompt"):
        talkers[name].reply("the mice run " * CONTEXT)


@pytest.mark.parametrize("name", TARGETS)
def test_messages_become_the_tokens_that_transformers_makes_of_them(talkers, name):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_files()["tokenizer.json"].decode())
    )
    expected = tokenizer.apply_chat_template(
        MESSAGES, chat_template=TEMPLATE, add_generation_prompt=True, return_dict=False
    )
    assert talkers[name].tokens_of(MESSAGES) == expected
    one = tokenizer.apply_chat_template(
        MESSAGES[-1:], chat_template=TEMPLATE, add_generation_prompt=True, return_dict=False
    )
    assert talkers[name].tokens_of(MESSAGES[-1]["content"], chat=True) == one


def test_a_template_that_refuses_says_why(talkers):
    with pytest.raises(BadInput, match=r"chat template refuses .*no shouting"):
        talkers["mlx"].reply([{"role": "system", "content": "!"}, *MESSAGES[1:]])


def test_a_tokenizer_that_begins_texts_begins_prompts_but_not_chats(tmp_path):
    folder = save_chatting(tmp_path / "tiny")
    for name, data in tokenizer_files(template=True).items():
        (folder / name).write_bytes(data)
    with open_talker(str(folder)) as talker:
        assert talker.tokens_of(PROMPT)[0] == 0
        assert talker.tokens_of("")[:2] == [0]
        assert talker.tokens_of(MESSAGES)[:2] != [0, 0]


@pytest.mark.parametrize("name", FORMATS)
def test_exports_of_other_makers_are_recognised(made, talkers, tmp_path, name):
    folder = shutil.copytree(made[1] / name, tmp_path / "other")
    (folder / "manifest.json").unlink()
    with open_talker(str(folder)) as talker:
        assert talker.library == talkers[name].library
        assert written(talker, PROMPT, 8)[1].ids == written(talkers[name], PROMPT, 8)[1].ids


def test_onnx_runtime_alone_writes_the_same(made, talkers, tmp_path):
    folder = shutil.copytree(made[1] / "onnx", tmp_path / "onnx")
    (folder / "genai_config.json").unlink()
    with open_talker(str(folder)) as talker:
        assert talker.library.startswith("ONNX Runtime ")
        for prompt in (PROMPT, "It's 2026"):
            assert written(talker, prompt)[1].ids == written(talkers["onnx"], prompt)[1].ids
    assert talkers["onnx"].library.startswith("onnxruntime-genai ")


def test_settings_that_have_onnxruntime_genai_load_code_are_refused(made, tmp_path):
    folder = shutil.copytree(made[1] / "onnx", tmp_path / "onnx")
    settings = json.loads((folder / "genai_config.json").read_text())
    session = settings["model"]["decoder"]["session_options"]
    session["custom_ops_library"] = "./evil.so"
    (folder / "genai_config.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="'custom_ops_library' names code to run"):
        open_talker(str(folder))


def test_a_conversation_forgets_its_oldest_turns(talkers):
    talker = talkers["checkpoint"]
    conversation = Conversation(talker, system="Be.", most_tokens=4)
    forgotten = []
    for turn in range(12):
        reply = conversation.ask(f"the mice run {turn}")
        assert reply.prompt_tokens <= CONTEXT - 4
        conversation.answered("".join(reply))
        forgotten.append(conversation.forgotten)
        assert conversation.messages[0]["role"] == "user"
        assert conversation.messages[-2]["content"].endswith(str(turn))
    assert forgotten[0] == 0
    assert max(forgotten) == 2
    before = list(conversation.messages)
    with pytest.raises(BadInput, match="shorten the prompt"):
        conversation.ask("the mice " * CONTEXT)
    assert conversation.messages == before
    conversation.start_over(system="")
    assert conversation.ask(PROMPT).prompt_tokens == len(talker.tokens_of(PROMPT, chat=True))


def test_one_prompt_is_answered_in_one_call(made, talkers):
    text, reply = written(talkers["mlx"], PROMPT, 8, chat=True)
    assert answer(target_of(made[1], "mlx"), PROMPT, 8) == text
    assert text == text.lstrip()
    assert reply.tokens <= 8


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[]", b'{"model_type": "llama"}'])
def test_whatever_is_wrong_with_a_target_is_one_line(made, tmp_path, damage):
    folder = shutil.copytree(made[1] / "mlx", tmp_path / "mlx")
    (folder / "config.json").write_bytes(damage)
    with pytest.raises(EdgeqError) as caught:
        answer(str(folder), PROMPT)
    assert "\n" not in str(caught.value)


def test_a_missing_runtime_is_named_with_its_extra(made, monkeypatch):
    monkeypatch.setitem(SPEAKERS, "mlx-lm", Entry("edgeq_nowhere:Speaker", "mlx"))
    with pytest.raises(NotInstalled, match=r"runtime 'mlx-lm' needs edgeq_nowhere.*extra 'mlx'"):
        open_talker(target_of(made[1], "mlx"))


def test_a_model_that_memory_cannot_hold_is_refused_before_it_is_read(made, monkeypatch):
    monkeypatch.setattr(opening, "memory_of_machine", lambda: 300_000)
    with pytest.raises(BadInput, match=r"takes 0\.0 GB in float32.*give the export"):
        open_talker(str(made[0]))


def test_the_memory_of_this_machine_is_known():
    psutil = pytest.importorskip("psutil", reason="which accelerate brings")
    assert opening.memory_of_machine() == pytest.approx(psutil.virtual_memory().total, rel=0.01)


def test_a_seed_repeats_what_is_drawn_and_the_runtime_does_not_matter(talkers):
    drawn = [
        written(talkers[name], PROMPT, temperature=0.8, top_p=0.9, seed=seed)[1].ids
        for name, seed in (("checkpoint", 1), ("mlx", 1), ("checkpoint", 2))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != written(talkers["mlx"], PROMPT)[1].ids


def test_predictions_that_are_no_numbers_are_an_error(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.norm.weight.data[:] = 3e38
    model.save_pretrained(folder)
    with (
        open_talker(str(folder)) as talker,
        pytest.raises(BadInput, match="NaN or infinity, it cannot write"),
    ):
        list(talker.reply(PROMPT))
