"""Models by name, fetched by the hub's own client from a hub on this machine."""

import json
import shutil

import huggingface_hub
import pytest
from command_line import run_edgeq
from hub_server import hub
from safetensors.numpy import load_file, save_file

from edgeq.errors import BadInput
from edgeq.run.forecast import open_outline
from edgeq.sources import at_revision, open_source


@pytest.fixture
def served(tiny_directory, tmp_path, monkeypatch):
    """A hub with a model, which has files of other layouts beside its weights, and a branch."""
    main, old = tmp_path / "main", tmp_path / "old"
    shutil.copytree(tiny_directory, main)
    (main / "pytorch_model.bin").write_bytes(b"pickle")
    (main / "model.fp16.safetensors").write_bytes(b"another precision")
    (main / "onnx").mkdir()
    (main / "onnx" / "model.safetensors").write_bytes(b"another layout")
    shutil.copytree(tiny_directory, old)
    weights = load_file(old / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, old / "model.safetensors")
    with hub("owner/some-model", {"main": main, "v0.1/old": old}) as server:
        here = f"http://127.0.0.1:{server.server_port}"
        files = here + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", here)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def fetched(server):
    return {name for _, name in server.fetched}


def test_a_model_is_fetched_without_files_that_are_not_read(served, tiny_directory):
    source = open_source("owner/some-model")
    assert source.record.name == "some-model"
    beside = {path.name for path in tiny_directory.iterdir()}
    assert fetched(served) <= beside
    assert "model.safetensors" in fetched(served)
    served.fetched.clear()
    open_source("owner/some-model")
    assert not served.fetched  # it lies in the cache


def test_only_the_shards_that_the_index_names_are_fetched(served):
    folder = served.revisions["main"]
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    (folder / "model.safetensors").unlink()
    for file, members in parts.items():
        save_file({name: weights[name] for name in members}, folder / file)
    (folder / "model-3.safetensors").write_bytes(b"no part of it")
    index = {name: file for file, members in parts.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert set(open_source("owner/some-model").tensor_names()) == set(names)
    assert {name for name in fetched(served) if name.endswith("safetensors")} == set(parts)


def test_a_plan_fetches_no_weights(served):
    outline = open_outline("owner/some-model")
    assert outline.record.name == "some-model"
    assert "config.json" in fetched(served)
    assert not any(name.endswith(".safetensors") for name in fetched(served))


def test_a_revision_is_the_one_that_is_asked_for(served):
    name = next(iter(open_source("owner/some-model").tensor_names()))
    old = open_source(at_revision("owner/some-model", "v0.1/old"))
    assert old.record.name == "some-model"
    assert (old.read(name) == 2 * open_source("owner/some-model").read(name)).all()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("owner/some-model@v9", "'owner/some-model' has no revision 'v9'; give one of its branch"),
        ("owner/other", "the hub has no such public model"),
    ],
)
def test_what_the_hub_does_not_have_is_refused_in_one_line(served, model, words):
    with pytest.raises(BadInput, match=words) as refusal:
        open_source(model)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("model", "revision"), [("a/b@v1", "v2"), ("a/b", "")])
def test_two_revisions_or_none_are_refused(model, revision):
    with pytest.raises(BadInput, match="one revision is needed"):
        at_revision(model, revision)


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_a_revision_of_a_directory_is_refused(command, tiny_directory):
    result = run_edgeq(command, tiny_directory, "--revision", "main")
    assert result.status == 1
    assert "only a model on the hub has revisions" in result.err
