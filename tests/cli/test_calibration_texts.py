"""`--calibration`, several times and with text that the model writes itself, as users type it."""

import hashlib
import json
import os

import numpy as np
import pytest
from tiny_models import TEXT

SHORT = ["--samples", "6", "--sequence-length", "32"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "edgeq"


def calibration_of(folder):
    return json.loads((folder / "edgeq.json").read_text())["calibration"]


@pytest.mark.parametrize("backend", ["cpu", "mlx", "reference"])
def test_the_model_writes_its_own_text_once_and_the_same_run_writes_the_same_bytes(
    edgeq, saved_model, text_file, cache, tmp_path, backend
):
    if backend == "mlx":
        pytest.importorskip("mlx.core", reason="MLX has no build for this system")
    options = [
        *SHORT,
        "--backend",
        backend,
        "--calibration",
        "self",
        "--calibration",
        f"{text_file}=2",
    ]
    first = edgeq("quantize", saved_model, "-o", tmp_path / "first", *options)
    assert first.status == 0
    assert "writing text, token 64/64" in first.err
    second = edgeq("quantize", saved_model, "-o", tmp_path / "second", *options)
    assert "writing" not in second.err
    for file in ("edgeq.json", "blocks/0001.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    own, book = calibration_of(tmp_path / "first")["texts"]
    [kept] = cache.iterdir()
    tokens = np.load(kept, allow_pickle=False)
    assert own == {
        "name": "self",
        "share": 1,
        "samples": 2,
        "tokens": 64,
        "sha256": hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest(),
    }
    assert (book["name"], book["share"], book["samples"]) == (text_file.name, 2, 4)
    assert book["sha256"] == hashlib.sha256(text_file.read_bytes()).hexdigest()


def test_the_solution_depends_on_what_the_model_wrote(edgeq, saved_model, text_file, tmp_path):
    for name, text in (("own", "self"), ("file", text_file)):
        edgeq(
            "quantize",
            saved_model,
            "-o",
            tmp_path / name,
            *SHORT,
            "--backend",
            "cpu",
            "--calibration",
            text,
        )
    own, file = (calibration_of(tmp_path / name)["sha256"] for name in ("own", "file"))
    assert own != file
    blocks = [
        (tmp_path / name / "blocks" / "0000.safetensors").read_bytes() for name in ("own", "file")
    ]
    assert blocks[0] != blocks[1]


def test_nothing_is_written_by_a_model_that_is_only_rounded(edgeq, saved_model, cache, tmp_path):
    rounding = [
        "--solver",
        "rtn",
        "--scales",
        "none",
        "--propagation-strength",
        "0",
        "--backend",
        "cpu",
    ]
    assert (
        edgeq(
            "quantize", saved_model, "-o", tmp_path / "out", *rounding, "--calibration", "self"
        ).status
        == 0
    )
    assert calibration_of(tmp_path / "out") is None
    assert not cache.exists()


def test_a_home_directory_is_understood_in_front_of_a_share(
    edgeq, saved_model, text_file, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(text_file.parent))
    options = [*SHORT, "--backend", "cpu", f"--calibration=~/{text_file.name}=2"]
    assert edgeq("quantize", saved_model, "-o", tmp_path / "out", *options).status == 0
    assert calibration_of(tmp_path / "out")["texts"][0]["share"] == 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["self=0"], "above 0"),
        (["self=x"], "above 0"),
        (["self", "self=2"], "given twice"),
        (["nowhere.txt"], "text 'nowhere.txt'"),
        (["nowhere.txt=2"], "text 'nowhere.txt'"),
        (["self=0.001"], "none of the 4"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_line(refuse, saved_model, values, reason):
    """The text file of every refused run is among the texts as well."""
    assert reason in refuse(
        saved_model, *(word for value in values for word in ("--calibration", value))
    )


LINES = [
    f"{number} mice run to the {7 * number} caf\u00e9s, and they don't sleep."
    for number in range(99)
]
QUICKLY = ["--quality", "fast", "--backend", "cpu"]


def test_the_same_lines_give_the_same_windows_in_every_form(edgeq, saved_model, tmp_path):
    items = [{"text": line} for line in LINES]
    forms = {
        "plain.txt": "\n\n".join(LINES),
        "array.json": json.dumps(items),
        "UPPER.JSONL": "\n".join(map(json.dumps, items)),
        "array.txt": json.dumps(items),
        "lines.txt": "\n".join(map(json.dumps, items)),
        "strings.json": json.dumps(LINES, indent=1),
    }
    found = set()
    for name, content in forms.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        out = tmp_path / f"out-{name}"
        command = ["quantize", saved_model, "-o", out, *SHORT, *QUICKLY]
        result = edgeq(*command, "--calibration", tmp_path / name)
        assert result.status == 0, result.err
        calibration = calibration_of(out)
        found.add((calibration["sha256"], calibration["texts"][0]["sha256"]))
    expected = hashlib.sha256("\n\n".join(LINES).encode()).hexdigest()
    assert [text for _, text in found] == [expected]


def test_a_long_text_is_calibrated_and_evaluated_on(edgeq, saved_model, tmp_path):
    """Also says nothing of overlapping sequences, since these do not overlap."""
    text = tmp_path / "corpus.txt"
    text.write_text("\n".join(LINES * 500), encoding="utf-8")
    out = tmp_path / "out"
    result = edgeq("quantize", saved_model, "-o", out, *SHORT, *QUICKLY, "--calibration", text)
    assert result.status == 0, result.err
    assert "overlap" not in result.out
    [entry] = calibration_of(out)["texts"]
    assert entry["tokens"] == 6 * 32
    assert entry["sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    words = ["evaluate", out, "--reference", saved_model, "--backend", "cpu", "--json"]
    long, short = (
        json.loads(edgeq(*words, "--text", path).out) for path in (text, shortened(text))
    )
    assert long["kl"] > 0
    for name in ("kl", "perplexity", "top1_agreement", "tokens", "intervals"):
        assert long[name] == short[name]


def shortened(path):
    """The same text, short enough to be held."""
    short = path.with_name("short.txt")
    short.write_text("\n".join(LINES * 10), encoding="utf-8")
    return short


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("only_special.txt", b"<|eos|>" * 3000, ["one token over and over ('<|eos|>')"]),
        ("two.txt", b"ab" * 3000, ["only 2 different tokens"]),
        ("a.csv", b"text,label\nhello,1\n", ["it is CSV", "JSON lines"]),
        ("a.txt.gz", b"\x1f\x8b\x08\x00", ["compressed (gzip)"]),
        ("a.txt", "text".encode("utf-16"), ["UTF-16", "convert it to UTF-8"]),
        ("a.txt", b"te\0xt", ["zero byte at byte 2"]),
        ("a.json", b'[{"text": 3}]', ["item 1", '"text"']),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "a"}]}', ["no chat template"]),
    ],
)
def test_texts_that_look_fine_and_are_not_are_refused(
    refuse, saved_model, tmp_path, name, content, parts
):
    (tmp_path / name).write_bytes(content)
    line = refuse(saved_model, "--calibration", tmp_path / name)
    assert all(part in line for part in [f"{name}'", *parts])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_as_a_text_is_refused_by_every_command(edgeq, refuse, saved_model, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    assert "it is a pipe" in refuse(saved_model, "--calibration", tmp_path / "pipe.txt")
    for command in (
        ["plan", saved_model, "--calibration", tmp_path / "pipe.txt"],
        ["evaluate", saved_model, "--text", tmp_path / "pipe.txt"],
    ):
        result = edgeq(*command)
        assert result.status == 1
        assert result.err.count("\n") == 1
        assert "it is a pipe" in result.err


def test_an_evaluation_text_of_one_token_is_refused(edgeq, saved_model, tmp_path):
    (tmp_path / "eos.txt").write_text("<|eos|>" * 3000)
    result = edgeq("evaluate", saved_model, "--text", tmp_path / "eos.txt")
    assert result.status == 1
    assert "evaluation text: its sequences hold one token over and over" in result.err


def test_padding_and_truncation_of_the_tokenizer_file_change_nothing(
    edgeq, model, saved_model, text_file, tmp_path
):
    content = json.loads((model / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 5,
        "strategy": "LongestFirst",
        "stride": 9,
    }
    content["padding"] = {
        "strategy": {"Fixed": 5000},
        "direction": "Right",
        "pad_to_multiple_of": 0,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "<|pad|>",
    }
    (model / "tokenizer.json").write_text(json.dumps(content))
    for name, each in (("plain", saved_model), ("padded", model)):
        out = tmp_path / name
        command = ["quantize", each, "-o", out, *SHORT, *QUICKLY, "--calibration", text_file]
        assert edgeq(*command).status == 0
    plain, padded = (calibration_of(tmp_path / name) for name in ("plain", "padded"))
    assert padded == plain


def test_a_text_that_repeats_itself_is_noted(edgeq, saved_model, tmp_path):
    (tmp_path / "line.txt").write_text(TEXT * 200)
    command = ["quantize", saved_model, "-o", tmp_path / "out", *SHORT, *QUICKLY, "--json"]
    command += ["--samples", "20"]
    result = edgeq(*command, "--calibration", tmp_path / "line.txt")
    assert result.status == 0
    notes = json.loads(result.out)["notes"]
    assert any(
        "'line.txt' repeats itself: its 20 sequences of 32 hold only" in note for note in notes
    )


def test_messages_become_text_by_the_template_that_lies_with_the_model(edgeq, model, tmp_path):
    """Against the same text written out."""
    (model / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    )
    chats = [{"messages": [{"role": "user", "content": line}]} for line in LINES]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, chats)))
    (tmp_path / "chat.txt").write_text(
        "".join(f"<|bos|>user: {line}" for line in LINES), encoding="utf-8"
    )
    found = []
    for name in ("chat.jsonl", "chat.txt"):
        command = ["quantize", model, "-o", tmp_path / f"out-{name}", *SHORT, *QUICKLY]
        result = edgeq(*command, "--calibration", tmp_path / name)
        assert result.status == 0, result.err
        found.append(calibration_of(tmp_path / f"out-{name}")["sha256"])
    assert found[0] == found[1]
