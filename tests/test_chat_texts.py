"""Chat messages become the text that transformers makes of them, and its tokens."""

import json
from dataclasses import replace

import models
import pytest
from tiny_models import tokenizer_files
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from edgeq.calibration.reading import open_text
from edgeq.calibration.windows import tokenize
from edgeq.errors import BadInput

CHAT_ML = """\
{{ bos_token }}{% for message in messages %}
    {% generation %}
{{ '<|bos|>' if false }}{{ message['role'] + ': ' + message['content'] | trim }}{{ eos_token }}
    {% endgeneration %}
    {% if loop.last %}{% break %}{% endif %}
{% endfor %}"""
STRICT = """\
{% set n = namespace(count=0) %}{% for message in messages %}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}
{% endif %}
{% set n.count = n.count + 1 %}{{ message.content }}{{ eos_token }}
{% endfor %}{{ n.count }}"""
TOOLS = """\
{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}
{% if message.reasoning_content is defined %}<{{ message.reasoning_content }}>{% endif %}
{{ dict(a=message.role) | tojson(indent=1) }}{{ message.content }}{{ message | tojson }}
{% endfor %}{{ strftime_now('%Y') | length }}{{ unk_token is defined }}"""
PARTS = """\
{% for message in messages %}{{ message.role }}{% if message.content is string %}
{{ message.content }}{% else %}{% for part in message.content %}
[{{ part.type }}: {{ part.text }}]{% endfor %}{% endif %}{% endfor %}"""
USER, ASSISTANT = (
    {"role": "user", "content": " Why é & <b>?\n"},
    {"role": "assistant", "content": "Because 12.", "tool_calls": None, "thinking": "hm"},
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def source_with(template, **settings):
    files = tokenizer_files(template=True, **settings)
    source = models.MemorySource(models.tiny_llama(vocab_size=320), companions=files)
    source.record = replace(source.record, template=template)
    return source


def saved(folder, items, name="chat.jsonl"):
    lines = (json.dumps(item, ensure_ascii=False) for item in items)
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return str(folder / name)


def text_by_transformers(template, messages, **options):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_files()["tokenizer.json"].decode()),
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
    )
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, **options
    )


def refusal(path, source):
    with pytest.raises(BadInput) as caught:
        open_text(path, source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("template", [CHAT_ML, STRICT, TOOLS, PARTS])
@pytest.mark.parametrize(
    "messages", [[USER], [USER, ASSISTANT], [USER, ASSISTANT, USER, ASSISTANT]]
)
def test_messages_become_the_text_of_transformers(tmp_path, template, messages):
    source, expected = source_with(template), text_by_transformers(template, messages)
    path = saved(tmp_path, [{"messages": messages}])
    assert open_text(path, source) == expected
    twice = saved(tmp_path, [{"messages": messages}] * 2)
    assert open_text(twice, source) == 2 * expected
    array = tmp_path / "chat.json"
    array.write_text(json.dumps([{"messages": messages}] * 2, indent=1))
    assert open_text(str(array), source) == 2 * expected


def test_tools_of_an_item_reach_the_template(tmp_path):
    expected = text_by_transformers(TOOLS, [USER], tools=[TOOL])
    path = saved(tmp_path, [{"messages": [USER], "tools": [TOOL]}])
    assert open_text(path, source_with(TOOLS)) == expected


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_conversations_of_sharegpt_are_messages(tmp_path, key):
    item = {
        key: [
            {"from": "human", "value": USER["content"]},
            {"from": "gpt", "value": "Because 12.", "weight": None},
        ]
    }
    plain = [USER, {"role": "assistant", "content": "Because 12."}]
    expected = text_by_transformers(CHAT_ML, plain)
    assert open_text(saved(tmp_path, [item]), source_with(CHAT_ML)) == expected


@pytest.mark.parametrize("template", [CHAT_ML, PARTS])
def test_content_in_parts_is_joined_unless_the_template_reads_parts(tmp_path, template):
    parts = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}]
    joined = [{"role": "user", "content": "one, two"}]
    expected = text_by_transformers(template, messages if template == PARTS else joined)
    assert open_text(saved(tmp_path, [{"messages": messages}]), source_with(template)) == expected


def test_special_tokens_of_a_chat_become_their_ids_and_the_begin_of_text_comes_once(tmp_path):
    path = saved(tmp_path, [{"messages": [USER, ASSISTANT]}])
    source = source_with(CHAT_ML)
    ids = tokenize(source, open_text(path, source)).tolist()
    vocabulary = Tokenizer.from_str(source.companions()["tokenizer.json"].decode())
    begin, end = (vocabulary.token_to_id(token) for token in ("<|bos|>", "<|eos|>"))
    assert ids[0] == begin
    assert ids.count(begin) == 1
    assert ids.count(end) == 2


def test_texts_between_chats_stay_apart_from_other_texts_alone(tmp_path):
    items = [{"text": "a"}, {"text": "b"}, {"messages": [USER]}, {"text": "c"}]
    chat = text_by_transformers(CHAT_ML, [USER])
    assert open_text(saved(tmp_path, items), source_with(CHAT_ML)) == f"a\n\nb{chat}c"


@pytest.mark.parametrize(
    ("template", "item", "parts"),
    [
        (None, {"messages": [USER]}, ["line 2", "'in memory' has no chat template"]),
        (STRICT, {"messages": [ASSISTANT]}, ["line 2", "(roles must alternate)"]),
        ("{% if %}", {"messages": [USER]}, ["line 2", "cannot be read"]),
        ("{{ messages[7].content + 'a' }}", {"messages": [USER]}, ["line 2", "refuses"]),
        ("{{ ''.__class__.__mro__ }}", {"messages": [USER]}, ["line 2", "refuses"]),
        (CHAT_ML, {"messages": []}, ["line 2", "no messages"]),
        (CHAT_ML, {"messages": ["hi"]}, ["line 2", "message 1 is no object"]),
        (CHAT_ML, {"messages": [USER, {"content": "a"}]}, ["line 2", 'message 2 has no "role"']),
        (CHAT_ML, {"messages": [{"role": "user"}]}, ["line 2", 'message 1 has no "content"']),
        (CHAT_ML, {"messages": [{"role": "user", "content": 3}]}, ["is a JSON int"]),
        (
            CHAT_ML,
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            ["line 2", "a part 'image' without text"],
        ),
        (CHAT_ML, {"messages": [{"role": "user", "content": "\ud83d"}]}, ["line 2", "surrogate"]),
    ],
)
def test_messages_that_give_no_text_are_refused_with_their_line(tmp_path, template, item, parts):
    first = json.dumps({"text": "a"})
    (tmp_path / "chat.jsonl").write_text(f"{first}\n{json.dumps(item)}\n")
    message = refusal(str(tmp_path / "chat.jsonl"), source_with(template))
    assert all(part in message for part in [*parts, "chat.jsonl"])
