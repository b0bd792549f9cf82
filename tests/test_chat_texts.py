"""Chat messages become the text that transformers makes of them, and its tokens."""

import json
import sys
from dataclasses import replace

import models
import pytest
from tiny_models import tokenizer_files
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from edgeq.architectures.chat_template import read_template
from edgeq.calibration import chat
from edgeq.calibration.reading import open_text, read_pieces
from edgeq.calibration.text_files import TextFile
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


ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 10 ** (10 ** 9) }}",
    "{% if false %}{{ 10 ** (10 ** 9) }}{% endif %}",
    "{% macro m() %}{% for a in range(99999) %}{{ [1] | sum }}{% endfor %}{% endmacro %}"
    "{% for a in range(99999) %}{% set x = m() %}{% endfor %}",
    "{{ range(100000) | batch(1) | map('tojson') | list | tojson | urlize | length }}" * 9,
    "{% set n = namespace(x=messages) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}"
    "{% endfor %}{{ n.x | tojson | length }}",
]
LARGE = [
    "{{ '' | center(3 * 10 ** 9) | length }}",
    "{{ '%3000000000d' % 1 }}",
    "{{ '{:3000000000}'.format(1) | length }}",
    "{{ ('a\n' * 10 ** 6) | indent(10 ** 4) | length }}",
    "{% set n = namespace(x='a') %}{% for a in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for a in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'a'.join('b' * 10 ** 4) | replace('a', 'b' * 10 ** 6) | length }}",
]
LONG = [
    "{{ ('a' * (3 * 10 ** 9)) | length }}",
    "{{ ((3 * 10 ** 9) * [1]) | length }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_does_not_end_is_refused_with_the_line_of_its_chat(
    tmp_path, monkeypatch, template
):
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    monkeypatch.setattr(chat, "LONGEST_TEXT", 10**12)
    path = saved(tmp_path, [{"text": "a"}, {"messages": [USER]}])
    message = refusal(path, source_with(template))
    assert "line 2: the model's chat template takes longer than 0.3 s for one chat" in message
    assert "fetch the model's template again" in message


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no memory of a process")
@pytest.mark.parametrize("template", LARGE)
def test_a_template_that_takes_all_memory_is_refused_with_the_line_of_its_chat(
    tmp_path, monkeypatch, template
):
    monkeypatch.setattr(chat, "MEMORY", 2**27)
    path = saved(tmp_path, [{"text": "a"}, {"messages": [USER]}])
    message = refusal(path, source_with(template))
    assert "line 2: the model's chat template takes more than 0.125 GiB of memory" in message


@pytest.mark.parametrize("template", LONG)
def test_a_template_that_writes_without_end_is_refused_with_the_line_of_its_chat(
    tmp_path, monkeypatch, template
):
    monkeypatch.setattr(chat, "LONGEST_TEXT", 10**5)
    path = saved(tmp_path, [{"text": "a"}, {"messages": [USER]}])
    message = refusal(path, source_with(template))
    assert "line 2: the model's chat template takes more than 100000 characters" in message


@pytest.fixture
def started(monkeypatch):
    """The processes of templates that are started; they are real ones."""
    processes = []
    start = chat.start_process

    def start_and_keep():
        processes.append(start())
        return processes[-1]

    monkeypatch.setattr(chat, "start_process", start_and_keep)
    return processes


def test_all_chats_of_a_text_share_one_process_that_ends_with_the_text(tmp_path, started):
    chats = [[USER | {"content": f"{number} \ud7ff🙂\x85"}, ASSISTANT] for number in range(500)]
    path = saved(tmp_path, [{"messages": messages} for messages in chats])
    text = open_text(path, source_with(CHAT_ML))
    assert text == "".join(text_by_transformers(CHAT_ML, messages) for messages in chats)
    assert [process.poll() is None for process in started] == [False]


def test_a_text_without_chats_starts_no_process(tmp_path, started):
    assert open_text(saved(tmp_path, [{"text": "a"}]), source_with(CHAT_ML)) == "a"
    assert started == []


def test_a_text_that_is_left_in_the_middle_ends_the_process(tmp_path, started):
    path = saved(tmp_path, [{"messages": [USER]}] * 3)
    pieces = read_pieces(TextFile.find(path), source_with(CHAT_ML))
    assert next(pieces) == text_by_transformers(CHAT_ML, [USER])
    pieces.close()
    assert [process.poll() is None for process in started] == [False]


def test_python_that_cannot_be_started_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path, [{"messages": [USER]}])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    assert "line 1: Python cannot be started" in refusal(path, source_with(CHAT_ML))


def test_tools_that_are_deeply_nested_reach_the_template(tmp_path):
    nested = "[" * 500 + "]" * 500
    line = json.dumps({"messages": [USER], "tools": "TOOLS"}).replace('"TOOLS"', nested)
    (tmp_path / "chat.jsonl").write_text(line)
    source = source_with("{{ tools | tojson }}")
    assert open_text(str(tmp_path / "chat.jsonl"), source) == nested


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_line_ends_of_a_template_file_are_read_as_transformers_reads_them(tmp_path, end):
    data = (CHAT_ML + "{{ 'a\n\nb' }}\n\n").replace("\n", end).encode()
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_files()["tokenizer.json"])
    (tmp_path / "chat_template.jinja").write_bytes(data)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    template = read_template({"chat_template.jinja": data})
    assert template == tokenizer.chat_template
    expected = text_by_transformers(tokenizer.chat_template, [USER])
    assert open_text(saved(tmp_path, [{"messages": [USER]}]), source_with(template)) == expected
