"""`edgeq imatrix` and `edgeq quantize --imatrix`, against transformers and by brute force."""

import json

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeq.checkpoint.reader import Checkpoint
from edgeq.run.assembly import make_job
from edgeq.run.imatrix import RUNNING
from edgeq.sources import open_source
from edgeq.sources.imatrix_file import Entry, read_entries, write_entries

pytestmark = pytest.mark.usefixtures("one_thread")

LEAVES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WINDOWS = {"samples": 4, "sequence_length": 32}
ROUNDED = ["--bits", "3", "--backend", "reference"]


def gguf_name(layer):
    block, _, leaf = layer.removeprefix("model.layers.").partition(".")
    return f"blk.{block}.{LEAVES[leaf]}.weight"


def tokens_of(model, text):
    """The windows that a run of these options calibrates on."""
    job = make_job(
        open_source(str(model)),
        {**RUNNING, **WINDOWS},
        backend="reference",
        calibration=[str(text)],
    )
    return job.make_calibration(job.source, job.recipe, lambda *_: None).windows


@torch.no_grad()
def seen_in_float64(model, text, kinds):
    """The inputs of the modules that `kinds` chooses by name, of transformers in float64."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    loaded.set_experts_implementation("eager")  # the others know no float64
    seen = {}
    for name, module in loaded.named_modules():
        if kinds(name):

            def note(_, args, result, name=name):
                seen[name] = (args[0].reshape(-1, args[0].shape[-1]).numpy(), result)

            module.register_forward_hook(note)
    loaded(input_ids=torch.from_numpy(tokens_of(model, text)), use_cache=False)
    return seen, {name: tensor.numpy() for name, tensor in loaded.state_dict().items()}


@pytest.fixture(scope="module")
def matrix(edgeq_once, saved_model, quick, tmp_path_factory):
    path = tmp_path_factory.mktemp("matrix") / "tiny.gguf"
    return path, edgeq_once("imatrix", saved_model, "-o", path, *quick, "--json")


@pytest.fixture(scope="module")
def edgeq_once():
    from command_line import finished  # noqa: PLC0415

    return finished


def test_sums_and_counts_are_those_of_transformers_in_float64(matrix, saved_model, text_file):
    path, result = matrix
    entries = read_entries(path)
    seen, _ = seen_in_float64(saved_model, text_file, lambda name: name.endswith("_proj"))
    assert entries.keys() == {gguf_name(name) for name in seen}
    for name, (x, _) in seen.items():
        entry = entries[gguf_name(name)]
        assert entry.counts.tolist() == [128]
        np.testing.assert_allclose(entry.sums[0], (x * x).sum(0), rtol=1e-5)
    told = json.loads(result.out)
    assert (told["entries"], told["tokens"]) == (14, 128)
    assert told["bytes"] == path.stat().st_size


def test_the_file_says_what_it_was_measured_on(matrix, text_file):
    fields = gguf.GGUFReader(matrix[0]).fields
    assert fields["imatrix.datasets"].contents() == [text_file.name]
    assert fields["imatrix.chunk_count"].contents() == 4
    assert fields["imatrix.chunk_size"].contents() == 32


FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}


@pytest.fixture(scope="module")
def mixture(save_model):
    return save_model("qwen3_moe", **FEW)


def test_experts_are_parts_of_one_entry_each_with_its_own_tokens(
    edgeq, mixture, quick, text_file, tmp_path
):
    path = tmp_path / "mixture.gguf"
    assert edgeq("imatrix", mixture, "-o", path, *quick).status == 0
    entries = read_entries(path)
    seen, state = seen_in_float64(
        mixture, text_file, lambda name: name.endswith(("mlp", "mlp.gate"))
    )
    for block in (0, 1):
        base = f"model.layers.{block}.mlp"
        x = seen[base][0]
        logits = x @ state[f"{base}.gate.weight"].T
        chosen = np.argsort(logits, axis=1)[:, -2:]
        for expert in range(4):
            rows = x[(chosen == expert).any(1)]
            stack = state[f"{base}.experts.gate_up_proj"][expert]
            gate, up = np.split(rows @ stack.T, 2, axis=1)
            inner = gate / (1 + np.exp(-gate)) * up
            for leaf, inputs in (("gate", rows), ("up", rows), ("down", inner)):
                entry = entries[f"blk.{block}.ffn_{leaf}_exps.weight"]
                assert entry.counts[expert] == len(rows)
                np.testing.assert_allclose(
                    entry.sums[expert], (inputs * inputs).sum(0), rtol=2e-5, atol=1e-9
                )


def weighted_error(model, checkpoint, squares):
    """What rounding costs by brute force: squares of errors by those of the inputs."""
    source, solved = open_source(str(model)), Checkpoint(checkpoint)
    total = {}
    for layer in source.record.decoder.linears():
        entry = squares[gguf_name(layer.name)]
        error = source.read(layer.tensor).astype(np.float64) - solved.read(layer.tensor)
        total[layer.name] = float(((error**2) @ entry.sums[0]).sum())
    return total


def write(path, entries):
    with path.open("wb") as file:
        write_entries(file, entries, datasets=["a"], chunks=1, size=8)
    return path


def uneven(entries, rng):
    """Sums of inputs of which some are a thousand times as large as others."""
    return {
        name: Entry(each.sums * 10 ** rng.uniform(-3, 3, each.sums.shape), each.counts)
        for name, each in entries.items()
    }


def test_weights_of_the_file_lower_the_error_that_they_weigh(
    edgeq, matrix, saved_model, tmp_path, rng
):
    entries = uneven(read_entries(matrix[0]), rng)
    alike = {name: Entry(np.ones_like(each.sums), each.counts) for name, each in entries.items()}
    files = {"own": write(tmp_path / "own", entries), "alike": write(tmp_path / "alike", alike)}
    losses = {}
    for name, file in files.items():
        out = tmp_path / f"out-{name}"
        result = edgeq("quantize", saved_model, "-o", out, "--imatrix", file, *ROUNDED)
        assert result.status == 0, result.err
        losses[name] = weighted_error(saved_model, out, entries)
    assert all(losses["own"][layer] < losses["alike"][layer] for layer in losses["own"])
    assert sum(losses["own"].values()) < 0.7 * sum(losses["alike"].values())


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("Q2_K", "Q4_K", "IQ4_XS")]


@pytest.mark.parametrize("kind", ["Q3_K", *SLOW])
def test_so_it_is_on_the_grids_of_llama_cpp(edgeq, save_model, tmp_path, rng, kind):
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    model = save_model("llama", **wide)
    alike = {
        f"blk.0.{leaf}.weight": Entry(np.ones((1, 256)), np.ones(1)) for leaf in LEAVES.values()
    }
    own = uneven(alike, rng)
    losses = []
    for name, entries in (("own", own), ("alike", alike)):
        file = write(tmp_path / name, entries)
        options = ["--imatrix", file, "--type", kind, "--backend", "reference"]
        result = edgeq("quantize", model, "-o", tmp_path / f"out-{name}", *options)
        assert result.status == 0, result.err
        losses.append(weighted_error(model, tmp_path / f"out-{name}", own))
    assert all(losses[0][layer] < losses[1][layer] for layer in losses[0])


def test_each_expert_is_rounded_by_its_own_weights(edgeq, mixture, tmp_path, rng):
    source = open_source(str(mixture))
    names = {f"blk.{b}.ffn_{leaf}_exps.weight": b for b in (0, 1) for leaf in ("gate", "down")}
    widths = {"gate": 64, "down": 32}
    entries = {
        name: Entry(10 ** rng.uniform(-3, 3, (4, widths[name.split("_")[1]])), np.ones(4))
        for name in names
    }
    turned = {name: Entry(each.sums[::-1], each.counts) for name, each in entries.items()}
    losses = []
    for kind, of_kind in (("own", entries), ("turned", turned)):
        file = write(tmp_path / kind, of_kind)
        out = tmp_path / f"out-{kind}"
        assert edgeq("quantize", mixture, "-o", out, "--imatrix", file, *ROUNDED).status == 0
        solved = Checkpoint(out)
        found = {}
        for layer in source.record.decoder.linears():
            leaf = layer.name.rpartition(".")[2].removesuffix("_proj")
            if layer.expert is None or leaf not in widths:
                continue
            block = layer.name.split(".")[2]
            weights = entries[f"blk.{block}.ffn_{leaf}_exps.weight"].sums[layer.expert]
            before, after = (layer.weight_in(each.read(layer.tensor)) for each in (source, solved))
            found[layer.name] = float((((before - after) ** 2) @ weights).sum())
        losses.append(found)
    assert len(losses[0]) == 16
    assert all(losses[0][name] < losses[1][name] for name in losses[0])


def test_both_kinds_of_files_and_any_scale_of_their_numbers_give_the_same(
    edgeq, matrix, saved_model, tmp_path
):
    entries = read_entries(matrix[0])
    parts = [np.int32(len(entries)).tobytes()]
    for name, each in entries.items():
        data = name.encode()
        parts += [np.int32(len(data)).tobytes(), data, np.int32([3, each.sums.size]).tobytes()]
        parts.append((each.sums * 1024).astype("<f4").tobytes())
    old = tmp_path / "old.dat"
    old.write_bytes(b"".join(parts))
    files = []
    for name, file in (("new", matrix[0]), ("old", old)):
        out = tmp_path / name
        assert edgeq("quantize", saved_model, "-o", out, "--imatrix", file, *ROUNDED).status == 0
        files.append((out / "blocks" / "0001.safetensors").read_bytes())
    assert files[0] == files[1]


def test_report_screen_and_head_say_what_weighed_and_what_did_not(
    edgeq, matrix, saved_model, tmp_path
):
    entries = read_entries(matrix[0])
    del entries["blk.1.ffn_up.weight"]
    entries["blk.9.ffn_up.weight"] = Entry(np.ones((1, 5)), np.ones(1))
    file = write(tmp_path / "some.gguf", entries)
    options = ["--imatrix", file, *ROUNDED]
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *options, "--json")
    assert result.status == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["imatrix"] == {
        "file": "some.gguf",
        "weighed": 13,
        "alike": ["model.layers.1.mlp.up_proj.weight"],
        "unseen": {},
        "unknown": ["blk.9.ffn_up.weight"],
    }
    notes = json.loads(result.out)["notes"]
    assert any("no text is calibrated on" in note for note in notes)
    assert any("1 tensors have no entry in 'some.gguf'" in note for note in notes)
    assert any("blk.9.ffn_up.weight" in note for note in notes)
    planned = json.loads(edgeq("plan", saved_model, *options, "--json").out)
    assert set(planned["notes"]) <= set(notes)
    assert "forward passes" not in planned["seconds"]["by stage of a block"]
    head = json.loads((tmp_path / "out" / "edgeq.json").read_text())
    assert head["imatrix"]["name"] == "some.gguf"
    assert head["calibration"] is None
    assert (head["recipe"]["solver"], head["recipe"]["scales"]) == ("rtn", "first")


def test_experts_without_tokens_and_inputs_of_zeros_are_rounded_like_all(
    edgeq, mixture, tmp_path, rng
):
    sums = rng.random((4, 64))
    sums[2], sums[3] = 0, 7
    found = []
    for name, of_name in (("some", [5.0, 5.0, 5.0, 0.0]), ("ones", [5.0] * 4)):
        values = sums if name == "some" else np.ones((4, 64))
        entry = Entry(values, np.array(of_name))
        file = write(tmp_path / name, {"blk.0.ffn_up_exps.weight": entry})
        options = ["--imatrix", file, *ROUNDED, "--asymmetric", "--json"]
        result = edgeq("quantize", mixture, "-o", tmp_path / f"out-{name}", *options)
        assert result.status == 0, result.err
        told = [text for text in json.loads(result.out)["notes"] if "no token" in text]
        assert len(told) == (name == "some")
        assert all(text.startswith("1 experts were reached by no token") for text in told)
        solved = Checkpoint(tmp_path / f"out-{name}")
        found.append(
            {
                layer.expert: layer.weight_in(solved.read(layer.tensor))
                for layer in solved.record.decoder.linears()
                if layer.expert is not None and layer.name.endswith("up_proj")
                if "layers.0" in layer.name
            }
        )
    some, ones = found
    assert [bool((some[each] == ones[each]).all()) for each in range(4)] == [0, 0, 1, 1]


def test_another_file_does_not_continue_a_run(edgeq, matrix, saved_model, tmp_path):
    options = ["quantize", saved_model, "-o", tmp_path / "out", *ROUNDED]
    assert edgeq(*options, "--imatrix", matrix[0]).status == 0
    assert edgeq(*options, "--imatrix", matrix[0], "--resume").status == 0
    entries = read_entries(matrix[0])
    other = write(tmp_path / matrix[0].name, entries)
    refused = edgeq(*options, "--imatrix", other, "--resume")
    assert refused.status == 1
    assert "importance matrix: it is another" in refused.err


CONFLICTS = {
    "--quality best": 'quality = "best"',
    "--solver gptq": 'solver = "gptq"',
    "--propagation-strength 0.5": "propagation_strength = 0.5",
    "--outlier-columns 0.1": "outlier_columns = 0.1",
    "--scales both": 'scales = "both"',
    "--scales none": 'scales = "none"',
    "--calibration default": "--calibration 'default'",
}


@pytest.mark.parametrize("command", ["quantize", "plan"])
@pytest.mark.parametrize("option", CONFLICTS)
def test_what_looks_at_activations_is_refused(
    edgeq, matrix, saved_model, tmp_path, option, command
):
    result = edgeq(
        command, saved_model, "-o", tmp_path / "out", "--imatrix", matrix[0], *option.split()
    )
    assert result.status == 1
    assert result.err.startswith("edgeq: --imatrix with ")
    assert CONFLICTS[option] in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("sweeps = 2", "sweeps = 2"),
        ("anneal_rounds = 1", "anneal_rounds = 1"),
        ('sweeps = "x"', "expected a whole number"),
        ('[[overrides]]\nlayers = "*"\npropagation_strength = 0.5', "propagation_strength = 0.5"),
        ('[[overrides]]\nlayers = "*"\noutlier_columns = 0.1', "outlier_columns = 0.1"),
        ('imatrix = "x"', "it is an option only: --imatrix"),
    ],
)
def test_so_it_is_in_a_recipe(edgeq, matrix, saved_model, tmp_path, stated, said):
    (tmp_path / "recipe.toml").write_text(stated)
    options = ["--imatrix", matrix[0], "--recipe", tmp_path / "recipe.toml"]
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *options)
    assert result.status == 1
    assert said in result.err


def test_the_settings_of_such_a_run_make_it_again(edgeq, matrix, saved_model, tmp_path):
    options = ["--imatrix", matrix[0], *ROUNDED]
    edgeq("quantize", saved_model, "-o", tmp_path / "first", *options)
    recipe = json.loads((tmp_path / "first" / "edgeq.json").read_text())["recipe"]
    lines = [f"{name} = {json.dumps(value)}" for name, value in recipe.items()]
    (tmp_path / "recipe.toml").write_text("\n".join(lines))
    again = ["--imatrix", matrix[0], "--backend", "reference", "--recipe", tmp_path / "recipe.toml"]
    result = edgeq("quantize", saved_model, "-o", tmp_path / "again", *again)
    assert result.status == 0, result.err
    for name in ("edgeq.json", "blocks/0000.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1, 63), "63 numbers and 1 counts"), ((2, 32), "64 numbers and 2 counts")],
)
def test_the_matrix_of_another_model_is_refused(edgeq, saved_model, tmp_path, shape, said):
    entry = Entry(np.ones(shape), np.ones(shape[0]))
    for name, words in (("blk.0.attn_q.weight", said), ("blk.7.attn_q.weight", "none of its 1")):
        file = write(tmp_path / "other", {name: entry})
        result = edgeq("quantize", saved_model, "-o", tmp_path / "out", "--imatrix", file)
        assert result.status == 1
        assert words in result.err
        assert "give the matrix of this model" in result.err


def test_a_model_without_names_in_llama_cpp_is_refused(edgeq, save_model, matrix, tmp_path):
    model = save_model("opt", ffn_dim=96, word_embed_proj_dim=64)
    for words in (["quantize", "--imatrix", matrix[0]], ["imatrix"]):
        result = edgeq(words[0], model, "-o", tmp_path / "out", *words[1:])
        assert result.status == 1
        assert "no names are known for a opt model" in result.err
    assert not list(tmp_path.iterdir())


def test_an_output_is_replaced_only_by_force_and_only_if_it_is_a_matrix(
    edgeq, saved_model, quick, tmp_path
):
    path = tmp_path / "x.gguf"
    path.write_text("mine")
    command = ["imatrix", saved_model, "-o", path, *quick]
    assert "exists" in edgeq(*command).err
    assert "--force replaces only such files" in edgeq(*command, "--force").err
    assert path.read_text() == "mine"
    write(path, {"blk.0.attn_q.weight": Entry(np.ones((1, 64)), np.ones(1))})
    assert edgeq(*command).status == 1
    assert edgeq(*command, "--force").status == 0
    assert len(read_entries(path)) == 14
    assert [each.name for each in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("place", [".", "missing/..", "file/x.gguf", "a" * 300, "x\udcff.gguf"])
def test_an_output_that_cannot_be_made_is_refused_before_any_work(
    edgeq, saved_model, tmp_path, place
):
    (tmp_path / "file").write_text("mine")
    result = edgeq("imatrix", saved_model, "-o", f"{tmp_path}/{place}")
    assert result.status == 1
    assert result.err.startswith("edgeq: output")
    assert result.err.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["inspect", "quantize", "plan", "imatrix"])
def test_a_matrix_is_not_taken_for_a_model(edgeq, matrix, tmp_path, command):
    output = [] if command == "inspect" else ["-o", tmp_path / "out"]
    result = edgeq(command, matrix[0], *output)
    assert result.status == 1
    assert "is a GGUF file of type 'imatrix'; give that of a model\n" in result.err
    assert not any(tmp_path.iterdir())
