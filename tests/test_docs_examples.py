"""Every command and every Python example of README and docs runs, on a tiny model."""

import contextlib
import functools
import inspect
import io
import itertools
import re
import shutil
import sys
import textwrap
import warnings

import click
import documents
import numpy as np
import pytest
import torch
from command_line import finished
from documents import PROGRAM, blocks, lines
from short_texts import take_short_texts, write_short_texts
from tiny_models import SMALL_LLAMA, TEXT, tokenizer_files
from transformers import AutoConfig, AutoModelForCausalLM

import edgeq
from edgeq.calibration import reading
from edgeq.commands.main import cli
from edgeq.measuring.text_kinds import KINDS
from edgeq.sources import demo

SIZES = {
    **SMALL_LLAMA,
    "hidden_size": 128,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SHORT = ["--samples", "4", "--sequence-length", "32"]
LESS = {
    "quantize": [*SHORT, "--tune-tokens", "64"],
    "tune": ["--tokens", "64", "--sequence-length", "32"],
    "plan": SHORT,
    "allocate": SHORT,
    "imatrix": SHORT,
    "evaluate": ["--windows", "2", "--sequence-length", "32"],
    "generate": ["--max-tokens", "4"],
    "chat": ["--max-tokens", "4"],
}
"""What the test adds to a command so that it takes a second."""
FEWER = {"samples": 4, "sequence_length": 32}
LESS_IN_PYTHON = {
    "tune": {"tokens": 64, "sequence_length": 32},
    "quantize": FEWER,
    "plan": FEWER,
    "allocate": FEWER,
    "evaluate": {"windows": 2, "sequence_length": 32},
}
"""The same for functions."""
FIRST, RUN = "docs/quickstart.md", "SmolLM2-135M-Instruct-4bit"
"""The page that says which files a run writes, and where this one writes them."""
INDEPENDENT = "docs/reference/commands.md"
"""Here each example stands for itself; elsewhere they are typed one after the other."""
OTHER_RUNS = ("smollm2-3bit", "smollm2-4bit")
"""Runs that examples there start from, as copies of one."""
DEFAULT = {"README.md"}
"""Pages that every run of the tests runs; -m slow runs the others too."""


def to_run(page):
    return [
        block
        for block in blocks(page)
        if block.file or (block.language in ("sh", "python") and not block.reason)
    ]


PAGES = [
    pytest.param(page, marks=() if page in DEFAULT else pytest.mark.slow)
    for page in documents.pages()
    if to_run(page)
]


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """The models that the documents name, as tiny ones, and a text."""
    folder = tmp_path_factory.mktemp("shelf")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    directory = folder / "Llama-3.2-1B"
    model.save_pretrained(directory)
    for name, data in tokenizer_files(pad_token="<|pad|>", chat_template=TEMPLATE).items():
        (directory / name).write_bytes(data)
    write_short_texts(folder)
    for name in ("book.txt", f"data/{reading.CALIBRATION_TEXT}"):
        (folder / name).write_text(TEXT * 200, encoding="utf-8")
    for name in KINDS.values():  # a few windows each
        (folder / "data" / name).write_text(TEXT * 12, encoding="utf-8")
    made = folder / "made"
    text = ["--calibration", folder / "book.txt", *SHORT]
    finished("quantize", directory, "-o", made, "--export", "gguf", "--solver", "rtn", *text)
    (exported,) = (made / "gguf").glob("*.gguf")
    shutil.move(exported, folder / demo.DEMO_FILE)
    shutil.rmtree(made)
    return folder


@pytest.fixture
def desk(shelf, tmp_path, monkeypatch, one_thread):
    """A directory with what the documents start from, in which their commands run."""
    shutil.copytree(shelf / "Llama-3.2-1B", tmp_path / "Llama-3.2-1B")
    shutil.copy(shelf / "book.txt", tmp_path)
    shutil.copy(shelf / demo.DEMO_FILE, tmp_path / "theirs-Q4_K_M.gguf")
    monkeypatch.chdir(tmp_path)
    for name, less in LESS_IN_PYTHON.items():
        monkeypatch.setattr(edgeq, name, with_less(getattr(edgeq, name), less))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))  # what chat is told
    monkeypatch.setattr(demo, "find_demo", lambda: shelf / demo.DEMO_FILE)
    take_short_texts(monkeypatch, shelf)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_run(page, desk):
    names = {}
    for block in in_order(page):
        if page == INDEPENDENT and (desk / "smollm2").is_dir():
            for copied in OTHER_RUNS:
                shutil.copytree(desk / "smollm2", desk / copied, dirs_exist_ok=True)
        if block.file:
            (desk / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            run_python(block, names)
        else:
            for words in lines(block):
                assert words[0] == PROGRAM, f"{block.place}: {words[0]} does not run here"
                run_command(words[1:], block)
    if page == FIRST:
        named = re.findall(r"`([a-zA-Z0-9_./-]+\.[a-zA-Z]+)`", documents.read(page))
        assert len(named) > 5 and all((desk / RUN / name).is_file() for name in named), named


@pytest.mark.slow
def test_the_examples_of_functions_run(desk):
    examples = {name: example_of(getattr(edgeq, name)) for name in edgeq.__all__}
    examples = {name: code for name, code in examples.items() if code}
    assert {"evaluate", "export", "plan", "quantize", "quantize_layer"} <= set(examples)
    random = np.random.default_rng(0)
    names = {"edgeq": edgeq, "W": random.normal(size=(8, 64)), "X": random.normal(size=(99, 64))}
    run_code(examples.pop("quantize"), names, "quantize")
    shutil.rmtree(desk / "llama-4bit" / "gguf")
    run_code(examples.pop("export"), names, "export")
    for name, code in examples.items():
        run_code(code, names, name)


def example_of(function):
    """The code below "Example:" in a docstring."""
    text = inspect.getdoc(function) or ""
    found = re.search(r"^Example:\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    return textwrap.dedent(found[1]) if found else ""


def in_order(page):
    """The blocks of a page; where each stands for itself, what others start from comes first."""
    found = to_run(page)
    return sorted(found, key=starts_from_others) if page == INDEPENDENT else found


def starts_from_others(block):
    return next(lines(block))[1] != "quantize"


def run_command(words, block):
    words = list(itertools.takewhile(lambda word: word not in (">", ">>"), words))
    more = list(LESS.get(words[0], ()))
    if block.page == INDEPENDENT and "--force" in flags(words[0]):
        more.append("--force")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finished(*words, *more)


def flags(command):
    parameters = cli.commands[command].get_params(click.Context(cli))
    return {flag for parameter in parameters for flag in parameter.opts}


def with_less(function, less):
    @functools.wraps(function)
    def call(*arguments, **stated):
        return function(*arguments, **(stated | less))

    return call


def run_python(block, names):
    run_code(block.text, names, block.place)


def run_code(code, names, place):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exec(compile(code, place, "exec"), names)
