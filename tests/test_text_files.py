"""What a text file holds is told by its content, and what is no text is refused in one line."""

import gzip
import hashlib
import io
import json
import os
import sys
import zipfile

import pytest

from edgeq.calibration import reading, text_files
from edgeq.calibration.json_items import JsonReader
from edgeq.calibration.reading import LongText, open_text, read_text
from edgeq.errors import BadInput

TEXTS = ["one\ntwo \u2028", "für 'vier'", "", 'a "quoted" [1, 2] {"x": 3} \\ and \U0001f42d']
JOINED = "\n\n".join(TEXTS)
ITEMS = [{"id": 1, "text": text} for text in TEXTS]
LINES = "\n".join(json.dumps(item, ensure_ascii=False) for item in ITEMS)


def refusal(path):
    with pytest.raises(BadInput) as caught:
        open_text(str(path))
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=[1, 7, 64, text_files.CHUNK])
def chunk(request, monkeypatch):
    """How many bytes are read at once: every place may be a seam."""
    monkeypatch.setattr(text_files, "CHUNK", request.param)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("A.JSONL", LINES),
        ("a.NdJson", LINES.replace("\n", "\r\n")),
        ("a.json", LINES),
        ("a.txt", LINES),
        ("noextension", "\ufeff \n" + LINES),
        ("b.json", json.dumps(ITEMS)),
        ("b.JSON", json.dumps(ITEMS, indent=2, ensure_ascii=False)),
        ("b.txt", json.dumps(ITEMS)),
        ("b.jsonl", json.dumps(ITEMS, indent=1)),
        ("c.json", json.dumps(TEXTS)),
        ("c.txt", " " + json.dumps(TEXTS, ensure_ascii=False) + "\n"),
        ("d.json", "\n".join(json.dumps(item, indent=1) for item in ITEMS)),
    ],
)
@pytest.mark.usefixtures("chunk")
def test_items_of_json_give_their_texts_whatever_the_file_is_called(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert open_text(str(tmp_path / name)) == JOINED


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a"}\n\nend',
        "[Verse 1]\nIt is late",
        "[1] Smith, [2] Jones",
        "{\\bf bold}",
        '{"name": "the only object, and none with text"}',
        '["quoted"] he said',
        "{% if a %} b",
        "[",
        "{",
        '[{"a": 1}] was the answer'[1:],
    ],
)
def test_prose_that_begins_like_json_is_prose(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    assert open_text(str(tmp_path / "a.txt")) == content


@pytest.mark.usefixtures("chunk")
def test_text_is_read_as_python_reads_it(tmp_path):
    content = "\ufeffé\r\nb\rc\r\r\n\U0001f42d\u2028x\ufeff\n"
    (tmp_path / "a.txt").write_text(content, encoding="utf-8", newline="")
    expected = (tmp_path / "a.txt").read_text(encoding="utf-8-sig")
    assert open_text(str(tmp_path / "a.txt")) == expected


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.json", '[{"text": "a"}, {"text": 3}]', 'item 2: no "text" string'),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "item 2: not JSON (',' or ']' is missing"),
        ("a.json", '[{"text": "a"}, ]', "item 2: not JSON"),
        ("a.json", '[{"text": "a"}', "item 2: not JSON"),
        ("a.json", '[{"text": "a"}] end', "item 2: not JSON (text follows"),
        ("a.json", "[]", "empty"),
        ("a.json", "", "empty"),
        ("a.json", '{"data": [1]}', "it has 'data'"),
        ("a.json", "plain", "neither a JSON array nor JSON lines"),
        ("a.json", "[1, 2]", 'item 1: no "text"'),
        ("a.json", '[["a"]]', 'item 1: no "text"'),
        ("a.txt", '[{"prompt": "a"}, {"prompt": "b"}]', "it has 'prompt'"),
        ("a.txt", '{"prompt": "a"}\n{"prompt": "b"}', 'line 1: no "text" string (it has \'pro'),
        ("a.txt", '{"text": "a"}\n{"text": b}', "line 2: not JSON"),
        ("a.txt", '[{"text": "\\ud83d"}]', "item 1: half of a surrogate pair"),
        ("a.jsonl", '"a"\n"b"', 'line 1: no "text"'),
        ("a.CSV", "a,b\n1,2\n", "it is CSV"),
        ("a.tsv", "a\tb\n", "it is CSV"),
    ],
)
def test_json_that_gives_no_text_is_refused_with_its_place(tmp_path, name, content, part):
    (tmp_path / name).write_text(content)
    assert part in refusal(tmp_path / name)


def zipped():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", "text")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (gzip.compress(b"text", mtime=0), "compressed (gzip)"),
        (zipped(), "a zip archive"),
        (b"PAR1\x15\x04", "a Parquet table"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"GGUF\x03\0\0\0", "a model (GGUF)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        ("some text".encode("utf-16"), "it is UTF-16; convert it"),
        ("some text".encode("utf-16-be"), "a zero byte at byte 0"),
        ("some text".encode("utf-32"), "it is UTF-32"),
        (b"text\0text", "a zero byte at byte 4"),
        (b"\xef\xbb\xbftext\0", "a zero byte at byte 7"),
        (b"\xef\xbb\xbfcaf\xe9 is", "not UTF-8 at byte 6"),
        (b"a" * 100 + b"\xf0\x9f\x90", "not UTF-8 at byte 100"),
        (bytes(range(1, 128)) * 20, "of its 2540 bytes are control characters"),
    ],
)
@pytest.mark.usefixtures("chunk")
def test_what_is_no_text_is_refused_with_what_it_is(tmp_path, content, part):
    (tmp_path / "a.txt").write_bytes(content)
    assert part in refusal(tmp_path / "a.txt")


def test_an_item_that_is_too_long_to_be_held_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeq.calibration.json_items.LONGEST_VALUE", 1000)
    monkeypatch.setattr(text_files, "CHUNK", 100)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "b" * 5000}]))
    assert "item 2: not JSON (longer than 1000 characters" in refusal(tmp_path / "a.json")


def test_values_are_dropped_once_they_are_read():
    item = json.dumps({"text": "a" * 100})
    reader = JsonReader(item + "\n" for _ in range(1000))
    longest = 0
    for value in reader.values():
        longest = max(longest, len(reader._held))
        assert len(value["text"]) == 100
    assert longest < 3 * len(item)
    assert reader.line == 1001


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    assert "it is a pipe" in refusal(tmp_path / "a.txt")


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no device files")
def test_a_device_is_refused():
    with pytest.raises(BadInput, match=r"text '/dev/zero': it is a device"):
        open_text("/dev/zero")


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert "symbolic links" in refusal(tmp_path / "a.txt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_file_without_permission_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.txt").chmod(0)
    assert "permission denied" in refusal(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_long_text_is_not_held_and_is_what_a_held_one_would_be(tmp_path, monkeypatch, name):
    texts = [f"{number} mice. é" * 20 for number in range(50)]
    items = [{"text": text} for text in texts]
    forms = {
        "a.txt": "\n\n".join(texts),
        "a.jsonl": "\n".join(json.dumps(item) for item in items),
        "a.json": json.dumps(items),
    }
    path = tmp_path / name
    path.write_text(forms[name], encoding="utf-8")
    whole = open_text(str(path))
    assert whole == "\n\n".join(texts)
    monkeypatch.setattr(reading, "LONGEST_WHOLE", 1000)
    monkeypatch.setattr(reading, "KEPT_END", 100)
    monkeypatch.setattr(text_files, "CHUNK", 64)
    text = open_text(str(path))
    assert isinstance(text, LongText)
    assert text.characters == len(whole)
    assert text.sha256 == hashlib.sha256(whole.encode()).hexdigest()
    assert "".join(text.read()) == whole == read_text(str(path))
    for count in (0, 1, 99, 100, 101, 3000, len(whole)):
        assert text.last(count) == whole[len(whole) - count :]


def test_a_long_text_that_changes_before_it_is_cut_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONGEST_WHOLE", 10)
    path = tmp_path / "a.txt"
    path.write_text("some words and more")
    text = open_text(str(path))
    assert isinstance(text, LongText)
    path.write_text("other words than before")
    with pytest.raises(BadInput, match="was changed while it was read; run the command again"):
        next(text.read())
