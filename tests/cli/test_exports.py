"""Several exports of one solution, read back and verified from disk, as users do it."""

import json
import shutil

import pytest
from command_line import finished
from exported_files import gguf_in
from safetensors.numpy import load_file, save_file

from edgeq.checkpoint.certificate import write_sealed
from edgeq.files.ownership import foreign_entry
from edgeq.measuring.evaluate import find_export

FORMATS = ["gguf", "onnx", "mlx", "gptq", "compressed-tensors"]
WEIGHTS = (".gguf", ".data", ".safetensors")


@pytest.fixture(scope="module")
def solved(saved_model, quick, tmp_path_factory):
    """A checkpoint with an export in every format."""
    output = tmp_path_factory.mktemp("runs") / "run"
    exports = [word for name in FORMATS for word in ("--export", name)]
    finished("quantize", saved_model, "-o", output, *exports, *quick)
    return output


@pytest.fixture
def copy_of(solved, tmp_path):
    """A copy of an export that a test may damage."""
    return lambda name: shutil.copytree(solved / name, tmp_path / name)


def manifest_of(solved, name):
    return json.loads((solved / name / "manifest.json").read_text())


def test_one_solution_has_the_same_hashes_in_every_container(solved):
    entries = {
        name: {entry["source"]: entry for entry in manifest_of(solved, name)["tensors"]}
        for name in FORMATS
    }
    hashes = [
        {source: entry["sha256"] for source, entry in of_name.items()}
        for of_name in entries.values()
    ]
    assert all(of_name == hashes[0] for of_name in hashes)
    for of_name in entries.values():
        linear = [entry["status"] for source, entry in of_name.items() if "proj" in source]
        assert linear == ["exact"] * 14
    embedding = entries["gptq"]["model.embed_tokens.weight"]
    assert (embedding["status"], embedding["from"]) == ("dense", "8 bits, group 32, symmetric")
    assert embedding["largest_deviation"] == 0  # the model is in float32, and its export too


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_is_verified_from_disk_against_its_checkpoint(edgeq, solved, name):
    result = edgeq("verify", solved / name, "--against", solved, "--json")
    found = json.loads(result.out)
    assert (result.status, found["differences"]) == (0, [])
    assert len(found["tensors"]) == len(manifest_of(solved, name)["tensors"])
    assert found["largest_deviation"] < 1e-3
    library = {"gguf": "gguf 0.", "onnx": "onnx 1.", "mlx": "mlx 0.", "gptq": "edgeq"}
    assert found["library"].startswith(library.get(name, f"{name} 0."))


@pytest.mark.parametrize("name", ["gguf", "onnx", "mlx", "compressed-tensors"])
def test_an_export_runs_as_transformers_does_with_the_dequantized_weights(edgeq, solved, name):
    result = edgeq(
        "verify", solved / name, "--against", solved, "--run", "--backend", "cpu", "--json"
    )
    run = json.loads(result.out)["run"]
    assert (result.status, result.err) == (0, "")
    assert run["reference"].startswith("transformers 5.")
    assert run["exact_kl"] < 1e-6
    assert run["kl"] < 0.001
    assert run["logit_difference"] < 0.01


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "place", [0.2, 0.4, 0.6]
)  # the tables at the end of an ONNX file are no tensors
def test_one_changed_byte_is_found_and_named(edgeq, copy_of, name, place):
    folder = copy_of(name)
    file = next(file for file in folder.iterdir() if file.suffix in WEIGHTS)
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)
    result = edgeq("verify", folder)
    assert result.status == 1
    lines = result.out.strip().split("\n")
    assert lines[0] == f"file '{file.name}': its bytes are not those that were written"
    assert lines[1].startswith("tensor '") and "hash" in lines[1]
    assert lines[-1] == "2 differences"


def test_a_changed_config_is_found(edgeq, copy_of):
    folder = copy_of("gptq")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"bits": 4', '"bits": 8'))
    result = edgeq("verify", folder)
    assert result.status == 1 and "file 'config.json'" in result.out


def test_missing_added_and_unreadable_tensors_are_named(edgeq, copy_of):
    folder = copy_of("compressed-tensors")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors["extra"] = tensors.pop(f"{name}.weight_scale")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").unlink()
    (folder / "notes.txt").write_text("mine")
    out = edgeq("verify", folder).out
    for line in (
        "file 'tokenizer.json': missing",
        "file 'notes.txt': not part of",
        "tensor 'extra': the manifest does",
        f"tensor '{name}.weight': cannot be read",
    ):
        assert line in out


def test_a_checkpoint_that_the_export_was_not_made_from_is_noticed(edgeq, solved, tmp_path):
    other = shutil.copytree(solved, tmp_path / "other")
    file = other / "blocks" / "0001.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    result = edgeq("verify", solved / "mlx", "--against", other)
    lines = result.out.split("\n")
    assert result.status == 1
    assert "was made from another one" in lines[0]
    assert lines[1].startswith("tensor 'model.layers.1.") and "of the checkpoint" in lines[1]


def test_what_is_no_export_is_refused_in_one_line(edgeq, solved, tmp_path):
    assert "is not an export" in edgeq("verify", tmp_path).err
    line = edgeq("verify", solved).err
    assert "is a checkpoint, not an export; give one of its exports" in line
    assert edgeq("verify", solved / "mlx", "--run").status == 2


def test_the_list_says_what_fits_without_loss_and_why_not(edgeq, solved):
    rows = {
        row["name"]: row
        for row in json.loads(edgeq("export", "--list", solved, "--json").out)["formats"]
    }
    assert {name: rows[name]["fits"] for name in FORMATS} == dict.fromkeys(FORMATS, "without loss")
    assert rows["gptq"]["reason"] == "dense, as their codes say: model.embed_tokens.weight"
    assert rows["gptq"]["bits"] == [2, 3, 4, 8] and rows["mlx"]["groups"] == ["32", "64", "128"]
    text = edgeq("export", "--list").out
    assert "gptq: bits 2 3 4 8; groups 32 64 128 row; zero points symmetric integer" in text
    assert "fits" not in text


def test_the_list_names_what_keeps_a_checkpoint_out(edgeq, saved_model, quick, tmp_path):
    options = ["--bits", 3, "--group-size", "row", "--asymmetric", "--solver", "rtn"]
    edgeq("quantize", saved_model, "-o", tmp_path / "out", *options, *quick)
    rows = {
        row["name"]: row
        for row in json.loads(edgeq("export", "--list", tmp_path / "out", "--json").out)["formats"]
    }
    assert [rows[name]["fits"] for name in FORMATS] == [
        "with loss",
        "without loss",
        "no",
        "without loss",
        "no",
    ]
    assert "rounded again" in rows["gguf"]["reason"]
    assert "at most" not in rows["gguf"]["reason"]  # nothing was written yet
    assert "choose group_size 32, 64 or 128" in rows["mlx"]["reason"]
    assert "choose 2, 4 or 8" in rows["compressed-tensors"]["reason"]


def test_what_an_export_rounds_again_is_said_in_the_same_words_everywhere(
    edgeq, saved_model, quick, tmp_path
):
    out = tmp_path / "out"
    (tmp_path / "whole.toml").write_text('zeros = "integer"\nbits = 3\n', encoding="utf-8")
    options = ["--recipe", tmp_path / "whole.toml", "--export", "gguf", "--solver", "rtn", *quick]
    result = edgeq("quantize", saved_model, "-o", out, *options, "--json")
    assert result.status == 0, result.err
    run = json.loads(result.out)
    manifest = json.loads((out / "gguf" / "manifest.json").read_text(encoding="utf-8"))
    largest = max(each["largest_deviation"] for each in manifest["tensors"])
    said = f"layers.0.mlp.down_proj.weight; weights move by at most {largest:.1g}"
    assert largest > 0
    for texts in (run["notes"], run["advice"]):
        assert sum(said in text for text in texts) == 1
    for path in ("gguf/README.md", "report.html"):
        assert said in (out / path).read_text(encoding="utf-8")
    assert said in edgeq("formats", out).out
    assert run["result"].endswith("3bit-Q4_1.gguf")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--bits", 3],
            "format 'compressed-tensors': tensor 'model.layers.0.mlp.down_proj.weight'",
        ),
        (["--bits", 5], "format 'gptq'"),
        (["--group-size", 64], "in_features 96 is not a multiple of group_size 64; choose 32"),
        (["--asymmetric"], "leave out --asymmetric"),
    ],
)
def test_exports_that_cannot_all_hold_the_grid_are_refused_before_any_work(
    edgeq, saved_model, quick, tmp_path, options, words
):
    exports = [word for name in FORMATS for word in ("--export", name)]
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *exports, *options, *quick)
    assert result.status == 1 and words in result.err and result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_asymmetric_in_an_override_becomes_the_kind_that_the_export_holds(
    edgeq, saved_model, quick, tmp_path
):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[overrides]]\nlayers = "*.down_proj"\nzeros = "asymmetric"\n')
    given = ["--recipe", recipe, "--export", "gguf"]
    assert edgeq("quantize", saved_model, "-o", tmp_path / "out", *given, *quick).status == 0
    [override] = json.loads((tmp_path / "out" / "edgeq.json").read_text())["recipe"]["overrides"]
    assert override == {"layers": "*.down_proj", "zeros": "offset"}


def test_asymmetric_becomes_the_kind_that_all_exports_hold(edgeq, saved_model, quick, tmp_path):
    exports = ["--export", "gptq", "--export", "compressed-tensors"]
    assert (
        edgeq(
            "quantize", saved_model, "-o", tmp_path / "out", "--asymmetric", *exports, *quick
        ).status
        == 0
    )
    for name in ("gptq", "compressed-tensors"):
        result = edgeq("verify", tmp_path / "out" / name, "--against", tmp_path / "out", "--json")
        statuses = json.loads(result.out)["statuses"]
        assert result.status == 0 and set(statuses) == {"exact", "dense"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 10**400),
        ("bits", 9),
        ("bits", True),
        ("group_size", -1),
        ("zeros", "both"),
        ("scale_dtype", 5),
        ("largest_deviation", 10**400),
        ("largest_deviation", None),
    ],
)
def test_an_entry_of_a_manifest_that_states_no_grid_is_refused_in_one_line(
    edgeq, copy_of, field, value
):
    folder = copy_of("gguf")
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = next(entry for entry in manifest["tensors"] if entry["bits"] is not None)
    entry[field] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = edgeq("verify", folder)
    assert (result.status, result.out) == (1, "")
    assert "is not a manifest of edgeq's, or damaged; export again" in result.err


def test_a_missing_device_is_named_where_predictions_are_made(edgeq, solved):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    result = edgeq("evaluate", solved, "--backend", "cuda", "--windows", 1)
    assert result.status == 1
    assert result.err == "edgeq: backend 'cuda': torch finds no CUDA device; use --backend cpu\n"


@pytest.mark.parametrize("name", ["mlx", "onnx", "gptq", "compressed-tensors"])
def test_inspect_says_of_an_export_what_reads_it(edgeq, solved, name):
    result = edgeq("inspect", solved / name)
    assert result.status == 1
    assert f"of format '{name}', which edgeq verify {solved / name} reads back" in result.err


def test_a_run_is_told_in_lines_for_users_and_for_float32(edgeq, solved):
    result = edgeq("verify", solved / "gguf", "--against", solved, "--run")
    lines = result.out.splitlines()
    (start,) = (place for place, line in enumerate(lines) if "beside its checkpoint in" in line)
    assert lines[start].startswith("llama.cpp on 128 tokens")
    assert "as users run it, int8 activations: KL divergence" in lines[start + 1]
    assert lines[start + 2].startswith("  in float32: KL divergence ")
    assert "-" not in lines[start + 2].replace("e-", "")


def renamed(folder, name):
    """Call the file of a GGUF export otherwise, as a whole export of that name would."""
    file, path = gguf_in(folder), folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {
        name if known == file.name else known: digest for known, digest in manifest["files"].items()
    }
    write_sealed(path, manifest | {"file": name})
    return file.rename(folder / name)


def test_a_file_of_an_older_release_is_read_verified_and_replaced(edgeq, solved, tmp_path):
    """It was always called model.gguf."""
    run = shutil.copytree(solved, tmp_path / "run")
    new = gguf_in(run / "gguf").name
    old = renamed(run / "gguf", "model.gguf")
    assert edgeq("verify", run / "gguf", "--against", run).status == 0
    found = find_export(str(run / "gguf"))
    assert found is not None and found.path == old
    assert foreign_entry(run) is None
    assert edgeq("export", run, "--format", "gguf", "--force").status == 0
    assert gguf_in(run / "gguf").name == new == "tiny-Q4_0.gguf"


@pytest.mark.parametrize("name", ["../thesis.gguf", "a/b.gguf", "-o.gguf", ".gguf", "thesis.txt"])
def test_a_manifest_with_another_name_makes_no_file_edgeqs(solved, tmp_path, name):
    folder = shutil.copytree(solved / "gguf", tmp_path / "gguf")
    (folder / "a").mkdir()
    renamed(folder, name)
    assert foreign_entry(folder) is not None
