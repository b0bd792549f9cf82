"""`edgeq generate` and `edgeq chat`: what is written where, and what is refused."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time

import pytest
from talking import CONTEXT, quantized, save_chatting, target_of

from edgeq.commands.plain_text import visible_text
from edgeq.talking import open_talker

PROMPT = "the mice run"
SHORT = ["--max-tokens", 8]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talking")
    model = save_chatting(folder / "tiny", context=8192)
    return quantized(model, folder / "solved", folder / "text.txt", ["gguf", "mlx"])


@pytest.fixture(scope="module")
def target(made):
    return target_of(made, "gguf")


@pytest.fixture
def typed(monkeypatch):
    """Have standard input hold a text."""

    def type_in(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))

    return type_in


def written(target, prompt, **options):
    with open_talker(target) as talker:
        return "".join(talker.reply(prompt, most_tokens=8, **options))


def test_generate_writes_the_answer_alone_on_standard_output(edgeq, target):
    result = edgeq("generate", target, PROMPT, *SHORT)
    assert result.status == 0
    assert result.out == visible_text(written(target, PROMPT, chat=True)).removesuffix("\n") + "\n"
    assert "stopped after 8 tokens; --max-tokens allows more\n8 tokens in " in result.err
    assert " tokens per second, llama.cpp (cyllama " in result.err
    raw = edgeq("generate", target, PROMPT, *SHORT, "--raw")
    assert raw.out == visible_text(written(target, PROMPT)).removesuffix("\n") + "\n" != result.out


def test_generate_reads_the_prompt_from_standard_input_and_prints_json(edgeq, target, typed):
    typed(f"{PROMPT} é\n".encode())
    result = edgeq("generate", target, "-", *SHORT, "--json", "--system", "Be.")
    found = json.loads(result.out)
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": f"{PROMPT} é"}]
    assert found["prompt"] == f"{PROMPT} é"
    assert found["text"] == written(target, messages)
    assert (found["tokens"], found["stopped"]) == (8, "max-tokens")
    assert found["runtime"].startswith("llama.cpp")
    assert found["tokens_per_second"] == pytest.approx(8 / found["seconds"])
    assert result.err == ""


def refused(edgeq, *arguments):
    result = edgeq(*arguments)
    assert result.status == 1
    assert result.out == ""
    assert result.err.startswith("edgeq: ")
    assert result.err.count("\n") == 1
    return result.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--raw", "--system", "Be."], "--system with --raw"),
        (["--temperature", "-1"], "temperature -1: give 0"),
        (["--top-p", "0"], "top-p 0: give a share"),
        (["--system", "No!"], "no shouting"),
        (["--runtime", "mlx-lm"], "runtime 'mlx-lm' runs exports of format 'mlx'"),
        (["--runtime", "vllm"], "runtime 'vllm' is not known; choose one of torch, "),
    ],
)
def test_generate_refuses_in_one_line(edgeq, target, options, said):
    assert said in refused(edgeq, "generate", target, PROMPT, *options)


def test_prompts_that_are_no_text_are_refused(edgeq, target, typed):
    assert "which is no character; give UTF-8" in refused(edgeq, "generate", target, "a\udcffb")
    assert "the prompt is empty" in refused(edgeq, "generate", target, "", "--raw")
    typed(b"\xff")
    assert "standard input is no UTF-8 text" in refused(edgeq, "generate", target, "-")
    typed(b"\xff")
    assert "standard input is no UTF-8 text" in refused(edgeq, "chat", target)


@pytest.mark.parametrize("words", [["generate", "-"], ["chat"]])
def test_standard_input_that_is_closed_is_said(edgeq, target, monkeypatch, words):
    monkeypatch.setattr(sys, "stdin", None)
    result = edgeq(words[0], target, *words[1:])
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "edgeq: standard input is closed; " in result.err


def test_targets_that_are_none_are_refused(edgeq, tmp_path):
    for command in (["generate", tmp_path / "no", PROMPT], ["chat", tmp_path / "no"]):
        assert "does not exist" in refused(edgeq, *command)
        assert "holds no weights" in refused(edgeq, command[0], tmp_path, *command[2:])


def test_a_model_without_a_template_goes_on_and_does_not_chat(edgeq, tmp_path):
    folder = save_chatting(tmp_path / "tiny", template=None)
    found = json.loads(edgeq("generate", folder, PROMPT, *SHORT, "--json").out)
    assert found["text"] == written(str(folder), PROMPT)
    said = refused(edgeq, "chat", folder)
    assert "has no chat template" in said
    assert f"edgeq generate {folder}" in said
    assert "has no chat template" in refused(edgeq, "generate", folder, PROMPT, "--system", "Be.")


def test_what_a_terminal_would_obey_is_written_visibly():
    face, joined = "\U0001f468\u200d\U0001f469", "\u0645\u06cc\u200c\u062e"
    text = f"\x1b[31mred\x07 a\tb\r\n\u202eabc {face} {joined}\u2028"
    shown = f"\\x1b[31mred\\x07 a\tb\\r\n\\u202eabc {face} {joined}\\u2028"
    assert visible_text(text) == shown


def test_chat_answers_lines_of_a_file_with_what_was_said_before(edgeq, target, typed):
    typed(f"{PROMPT}\n\n/reset\n/no\n{PROMPT}\n12 cafes\n/exit\nnever\n".encode())
    result = edgeq("chat", target, *SHORT, "--temperature", 0)
    first = written(target, PROMPT, chat=True)
    said = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": first}]
    second = written(target, [*said, {"role": "user", "content": "12 cafes"}])
    lines = [visible_text(text).removesuffix("\n") + "\n" for text in (first, first, second)]
    assert (result.status, result.out) == (0, "".join(lines))
    assert "started over\n/no is no command; /reset starts over" in result.err


def test_chat_says_what_it_forgets(edgeq, tmp_path, typed):
    folder = save_chatting(tmp_path / "tiny")
    typed(f"{PROMPT}\n".encode() * 12)
    result = edgeq("chat", folder, *SHORT, "--system", "Be.")
    assert result.status == 0
    assert f"the oldest 2 messages are forgotten: the model reads {CONTEXT} tokens" in result.err


STARTING = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "edgeq", "chat", *sys.argv[1:]])
"""
"""Makes a pseudo-terminal the one of its process, so that Ctrl-C at it is a signal."""


class Terminal:
    """`edgeq chat` in a process of its own at a pseudo-terminal."""

    def __init__(self, *arguments):
        self.master, terminal = pty.openpty()
        settings = termios.tcgetattr(terminal)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, settings)
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTING, *map(str, arguments)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(terminal)
        self.shown = ""

    def wait_for(self, pattern, seconds=60):
        """Read until a pattern is shown; gives what stands before it."""
        until = time.monotonic() + seconds
        while (found := re.search(pattern, self.shown)) is None:
            left = max(0, until - time.monotonic())
            if not select.select([self.master], [], [], left)[0]:
                pytest.fail(f"{pattern!r} is not shown, but {self.shown[-500:]!r}")
            self.shown += os.read(self.master, 65536).decode("utf-8", "replace")
        before, self.shown = self.shown[: found.start()], self.shown[found.end() :]
        return before

    def type(self, text):
        os.write(self.master, text.encode())


@pytest.fixture
def terminal():
    """Start a chat; it is ended after the test, whatever came of it."""
    started = []

    def start(*arguments):
        started.append(Terminal(*arguments))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
        os.close(each.master)


@pytest.mark.slow
def test_at_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(target, terminal):
    chat = terminal(target, "--max-tokens", 8000, "--temperature", 1, "--top-p", 1)
    assert "Ctrl-C stops an answer" in chat.wait_for("> ")
    chat.type(f"{PROMPT}\n")
    chat.wait_for(r"\w")
    chat.type("\x03")
    assert "--max-tokens" not in chat.wait_for("stopped\r\n> ")
    chat.type("half a li\x03")
    chat.wait_for("Ctrl-D or /exit ends\r\n> ")
    chat.type("/reset\n")
    chat.wait_for("started over\r\n> ")
    chat.type("\x04")
    assert chat.process.wait(60) == 0
