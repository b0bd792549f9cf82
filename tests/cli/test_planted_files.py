"""What lies in the directory of an export and was not written there is neither loaded nor run."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from command_line import finished
from exported_files import gguf_in

from edgeq.errors import BadInput
from edgeq_backends.mlx.runtime import MlxLmLogits
from edgeq_backends.torch.directories import CompressedTensorsLogits, load_model

FORMATS = ["gguf", "onnx", "mlx", "compressed-tensors"]
WEIGHTS = (".gguf", ".onnx", ".safetensors")


class Bomb:
    """A pickle that leaves a file behind where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "loaded"))


@pytest.fixture(scope="module")
def solved(saved_model, quick, tmp_path_factory):
    output = tmp_path_factory.mktemp("planted") / "run"
    exports = [word for name in FORMATS for word in ("--export", name)]
    finished("quantize", saved_model, "-o", output, *exports, *quick)
    return output


@pytest.fixture
def trap(tmp_path):
    """Where a planted file leaves its trace."""
    return tmp_path / "trace"


@pytest.fixture
def copy_of(solved, tmp_path):
    return lambda name: shutil.copytree(solved / name, tmp_path / name)


def plant(folder, name, trap):
    if name.endswith(".py"):
        (folder / name).write_text(f"from pathlib import Path\nPath({str(trap)!r}).touch()\n")
        return
    if name == "adapter_config.json":
        (folder / name).write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": ""}))
        name = "adapter_model.bin"
    (folder / name).write_bytes(pickle.dumps(Bomb(trap)))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "adapter_config.json", "model.pt", "modeling.py"]
)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_planted_file_is_named_before_anything_is_loaded(
    edgeq, solved, copy_of, trap, kind, name
):
    folder = copy_of(kind)
    plant(folder, name, trap)
    result = edgeq("evaluate", folder, "--reference", solved, "--backend", "cpu")
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert "not part of the export" in result.err
    run = edgeq("verify", folder, "--against", solved, "--run", "--backend", "cpu")
    assert run.status == 1 and "not part of the export" in run.out and "KL" not in run.out
    assert not trap.exists()


def test_a_second_file_that_would_be_opened_first_is_refused(edgeq, solved, copy_of):
    folder = copy_of("gguf")
    shutil.copy(gguf_in(folder), folder / "a.gguf")
    result = edgeq("evaluate", folder, "--reference", solved, "--backend", "cpu")
    assert result.status == 1 and "file 'a.gguf': not part of the export" in result.err
    found = edgeq("verify", folder, "--against", solved)
    assert found.status == 1 and "names the file 'tiny-" in found.out
    assert "a runtime opens 'a.gguf'" in found.out


@pytest.mark.parametrize("kind", FORMATS)
def test_a_changed_file_is_named_before_anything_is_loaded(edgeq, solved, copy_of, kind):
    folder = copy_of(kind)
    file = next(file for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    result = edgeq("evaluate", folder, "--reference", solved, "--backend", "cpu")
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert f"'{file.name}': its bytes are not those that were written" in result.err


def test_a_single_file_is_checked_by_the_manifest_beside_it(edgeq, solved, copy_of):
    folder = copy_of("gguf")
    (folder / "notes.txt").write_text("mine")  # of no concern to who opens one file
    options = ["--windows", 1, "--sequence-length", 32, "--reference", solved, "--backend", "cpu"]
    assert edgeq("evaluate", gguf_in(folder), *options).status == 0
    file = gguf_in(folder)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    result = edgeq("evaluate", file, *options)
    assert result.status == 1 and "its bytes are not those that were written" in result.err
    (folder / "manifest.json").unlink()  # a file of somebody else's
    assert edgeq("evaluate", file, *options).status == 0


def test_transformers_is_given_safetensors_only(copy_of, trap):
    folder = copy_of("compressed-tensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    plant(folder, "pytorch_model.bin", trap)
    with pytest.raises(BadInput, match="transformers cannot load it"):
        load_model(folder)
    assert not trap.exists()


def test_an_adapter_is_refused(copy_of, trap):
    folder = copy_of("compressed-tensors")
    plant(folder, "adapter_config.json", trap)
    with pytest.raises(BadInput, match=r"holds 'adapter_config\.json'.*remove it"):
        load_model(folder)
    assert not trap.exists()


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_code_that_a_directory_brings_is_not_run_by_transformers(copy_of, trap):
    folder = copy_of("compressed-tensors")
    plant(folder, "modeling.py", trap)
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    CompressedTensorsLogits(folder)
    assert not trap.exists()


def test_code_that_a_directory_brings_is_not_run_by_mlx_lm(copy_of, trap):
    folder = copy_of("mlx")
    plant(folder, "modeling.py", trap)
    change_config(folder, model_file="modeling.py")
    with pytest.raises(BadInput, match=r"'model_file' in its config\.json is code to run"):
        MlxLmLogits(folder)
    assert not trap.exists()
