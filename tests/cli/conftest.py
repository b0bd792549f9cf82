"""A model that quantizes in a second, and a way to run commands as a user does."""

import shutil
import signal

import pytest
import torch
from command_line import run_edgeq
from tiny_models import SMALL_LLAMA, TEXT, tokenizer_files
from transformers import AutoConfig, AutoModelForCausalLM

QUICK = ["--samples", "4", "--sequence-length", "32", "--backend", "cpu"]


@pytest.fixture(autouse=True)
def heeding_ctrl_c():
    """Jobs that a shell started in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def edgeq():
    """Run `edgeq ARGUMENTS`; gives status, standard output and standard error."""
    return run_edgeq


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text(TEXT * 200, encoding="utf-8")
    return path


SIZES = {**SMALL_LLAMA, "max_position_embeddings": 128}


@pytest.fixture(scope="session")
def save_model(tmp_path_factory):
    """Save a small random model of a kind that transformers knows, with a tokenizer; gives its
    directory.
    """

    def save(model_type, **settings):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **{**SIZES, **settings})
        )
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.data.normal_()
        folder = tmp_path_factory.mktemp("model") / "tiny"
        model.save_pretrained(folder)
        for name, data in tokenizer_files().items():
            (folder / name).write_bytes(data)
        return folder

    return save


@pytest.fixture(scope="session")
def saved_model(save_model):
    return save_model("llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def quick(text_file):
    """Options that make a run short."""
    return [*QUICK, "--calibration", str(text_file)]


@pytest.fixture
def model(saved_model, tmp_path):
    """A copy of the model that a test may damage."""
    return shutil.copytree(saved_model, tmp_path / "damaged")


@pytest.fixture
def refuse(edgeq, tmp_path, quick):
    """Run `edgeq quantize` and check that it is refused in one line; gives that line.

    Nothing is left but the blocks that were finished before, and only where the line says so.
    """

    def run(model, *options):
        before = sorted(tmp_path.rglob("*"))
        result = edgeq("quantize", model, "--output", tmp_path / "out", *quick, *options)
        assert result.status == 1
        assert result.out == ""
        *progress, line = result.err.strip().split("\n")
        assert line.startswith("edgeq: ")
        assert all(text.startswith("block ") for text in progress)
        unfinished = tmp_path / ".out.edgeq-partial"
        assert unfinished.exists() == (" blocks are kept; to continue: " in line)
        shutil.rmtree(unfinished, ignore_errors=True)
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run
