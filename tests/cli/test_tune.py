"""`edgeq tune` and `edgeq quantize --tune`: numbers move, sizes stay, nothing is half-written."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from command_line import finished
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import edgeq as library
from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.ownership import TIMED_FILES
from edgeq.run.tune_run import read_tuned
from edgeq.tuning import loop

THREE_BITS = ["--bits", "3", "--group-size", "32"]
LENGTH = 32
TUNING = ["--tokens", 1024, "--passes", 1, "--rate", 0.01]
CODES_TOO = ["--tokens", 1024, "--passes", 12, "--rate", 0.01, "--codes"]
IN_A_RUN = ["--tune", "--tune-tokens", 1024, "--tune-passes", 1, "--tune-rate", 0.01]


@pytest.fixture(scope="module", autouse=True)
def short_steps():
    """Steps of four windows, of which a little text has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeq.run.tuning.STEP_TOKENS", 4 * LENGTH)
        yield


@pytest.fixture(scope="module")
def solved(tmp_path_factory, saved_model, quick):
    """A checkpoint that was solved, and not tuned."""
    place = tmp_path_factory.mktemp("solved") / "solved"
    finished("quantize", saved_model, "-o", place, *quick, *THREE_BITS)
    return place


@pytest.fixture(scope="module")
def of_model(saved_model, text_file):
    """Options that name the original and the text."""
    return ["--reference", saved_model, "--calibration", text_file, "--backend", "cpu"]


@pytest.fixture(scope="module")
def tuned(solved, of_model, tmp_path_factory):
    """The same, tuned; with what the command printed."""
    place = tmp_path_factory.mktemp("tuned") / "tuned"
    result = finished("tune", solved, "-o", place, *of_model, *TUNING)
    return place, result


def tensor_files(folder):
    return [folder / name for name in json.loads((folder / "edgeq.json").read_text())["files"]]


def arrays(folder):
    """All stored arrays of a checkpoint by their names."""
    return {name: array for path in tensor_files(folder) for name, array in load_file(path).items()}


def contents(folder):
    """The bytes of every file that equal runs write equally."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.name not in TIMED_FILES
    }


def divergence(checkpoint, model_folder, text):
    """KL from the original by transformers in float32, on the beginning of a text."""
    tokens = Tokenizer.from_file(str(model_folder / "tokenizer.json")).encode(text).ids
    ids = torch.tensor(tokens[: 64 * LENGTH]).reshape(-1, LENGTH)
    original = AutoModelForCausalLM.from_pretrained(model_folder)
    wanted = original(ids).logits.log_softmax(-1)
    weights = {
        name: torch.from_numpy(checkpoint.read(name).astype(np.float32))
        for name in checkpoint.tensor_names()
    }
    original.load_state_dict(weights, strict=False)
    found = original(ids).logits.log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_codes_stay_and_the_model_comes_closer_to_its_original(
    solved, tuned, saved_model, text_file
):
    before, after = arrays(solved), arrays(tuned[0])
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert {name.rsplit(".", 1)[1] for name in changed} == {"scales", "weight"}
    assert all("norm" in name for name in changed if name.endswith(".weight"))
    assert all(before[name].dtype == after[name].dtype for name in before)
    text = text_file.read_text(encoding="utf-8")
    with torch.no_grad():
        old = divergence(Checkpoint(solved), saved_model, text)
        new = divergence(Checkpoint(tuned[0]), saved_model, text)
    assert new < 0.95 * old
    report = json.loads((tuned[0] / "report.json").read_text(encoding="utf-8"))["tuning"]
    assert report["before"] == pytest.approx(old, rel=0.2)
    assert report["after"] == pytest.approx(new, rel=0.2)


def test_codes_move_too_and_take_the_same_bytes(edgeq, solved, of_model, tmp_path):
    result = edgeq("tune", solved, "-o", tmp_path / "tuned", *of_model, *CODES_TOO)
    assert result.status == 0, result.err
    before, after = arrays(solved), arrays(tmp_path / "tuned")
    sizes = {name: (array.dtype, array.shape) for name, array in before.items()}
    assert {name: (array.dtype, array.shape) for name, array in after.items()} == sizes
    old, new = Checkpoint(solved), Checkpoint(tmp_path / "tuned")
    moved = count = 0
    for name in (linear.tensor for linear in new.record.decoder.linears()):
        codes = new.quantized(name).codes
        moved += int(np.count_nonzero(codes != old.quantized(name).codes))
        count += codes.size
    assert 0 < moved < count / 2
    head = new.head["tuned"]
    assert (head["codes"], head["moved_codes"]) == (count, moved)
    assert head["free"][-1] == "codes"
    assert f"and {moved:,} of {count:,} codes" in result.out


def test_a_tuned_symmetric_grid_stays_symmetric(tuned):
    checkpoint = Checkpoint(tuned[0])
    layer = checkpoint.quantized("model.layers.0.mlp.up_proj.weight")
    np.testing.assert_array_equal(layer.offsets, -layer.scales * layer.grid.middle)


def test_screen_head_page_and_card_say_what_was_gained(tuned):
    place, result = tuned
    head = json.loads((place / "edgeq.json").read_text(encoding="utf-8"))["tuned"]
    line = (
        f"tuned on 1,024 tokens: KL on held-out windows {head['before']:.3g} -> {head['after']:.3g}"
    )
    assert line in result.out
    assert line in (place / "README.md").read_text(encoding="utf-8")
    page = (place / "report.html").read_text(encoding="utf-8")
    assert line[1:] in page.replace("&gt;", ">")
    assert '"id":"tuning"' in page.replace(" ", "")
    assert head["texts"][0]["name"] == "some.txt"
    assert (head["passes"], head["rate"], head["tokens"]) == (1, 0.01, 1024)


def test_a_run_that_tunes_writes_what_tuning_its_result_does(
    edgeq, tuned, saved_model, quick, tmp_path
):
    result = edgeq("quantize", saved_model, "-o", tmp_path / "out", *quick, *THREE_BITS, *IN_A_RUN)
    assert result.status == 0, result.err
    assert "tuned on 1,024 tokens" in result.out
    found = arrays(tmp_path / "out")
    for name, array in arrays(tuned[0]).items():
        assert found[name].tobytes() == array.tobytes(), name


def stopping(monkeypatch, number):
    """Send Ctrl-C when the state is saved for that time."""
    saved, save = iter(range(1, 1000)), loop.write_state

    def then_stop(*arguments):
        save(*arguments)
        if next(saved) == number:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "write_state", then_stop)


def test_a_stopped_tuning_goes_on_to_the_same_bytes(
    edgeq, solved, of_model, tuned, tmp_path, monkeypatch
):
    arguments = ["tune", solved, "-o", tmp_path / "tuned", *of_model, *TUNING]
    with monkeypatch.context() as patched:
        stopping(patched, 2)
        result = edgeq(*arguments)
    assert result.status == 130
    assert "the last state is kept; to continue: edgeq tune " in result.err
    assert [path.name for path in tmp_path.iterdir()] == [".tuned.edgeq-partial"]
    refused = edgeq(*arguments)
    assert refused.status == 1
    assert "an unfinished tuning is there; add --resume to continue it" in refused.err
    other = edgeq(*arguments, "--rate", "0.02", "--resume")
    assert "is another one, with other --passes, --rate, --seed, or whether codes move" in other.err
    assert edgeq(*arguments, "--resume").status == 0
    assert contents(tmp_path / "tuned") == contents(tuned[0])
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


@pytest.mark.slow  # as above, inside of a run
def test_a_run_that_is_stopped_while_it_tunes_goes_on_to_the_same_bytes(
    edgeq, saved_model, quick, tmp_path, monkeypatch
):
    options = [*quick, *THREE_BITS, *IN_A_RUN]
    assert edgeq("quantize", saved_model, "-o", tmp_path / "whole", *options).status == 0
    arguments = ["quantize", saved_model, "-o", tmp_path / "out", *options]
    with monkeypatch.context() as patched:
        stopping(patched, 1)
        assert edgeq(*arguments).status == 130
    assert not (tmp_path / "out").exists()
    assert "an unfinished run (2 of 2 blocks) is there" in edgeq(*arguments).err
    assert edgeq(*arguments, "--resume").status == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_nothing_gained_changes_nothing_and_says_so(edgeq, solved, of_model, tmp_path):
    place = tmp_path / "tuned"
    result = edgeq("tune", solved, "-o", place, *of_model, "--tokens", 64, "--rate", 1)
    assert result.status == 0
    assert "gained nothing on held-out windows" in result.out
    for path in tensor_files(solved):
        assert (place / path.relative_to(solved)).read_bytes() == path.read_bytes()
    assert json.loads((place / "edgeq.json").read_text())["tuned"]["kept_step"] == 0


def test_python_does_the_same(solved, tuned, saved_model, text_file, tmp_path):
    told = []
    found = library.tune(
        solved,
        tmp_path / "tuned",
        reference=saved_model,
        calibration=text_file,
        backend="cpu",
        tokens=1024,
        passes=1,
        rate=0.01,
        progress=told.append,
    )
    assert found.is_gain
    assert found.kl_after < found.kl_before
    assert contents(tmp_path / "tuned") == contents(tuned[0])
    steps = [each for each in told if each.what == "tuning"]
    assert (steps[-1].done, steps[-1].total, steps[-1].unit) == (8, 8, "steps")
    assert "held-out KL" in steps[-1].detail


@pytest.fixture(scope="module")
def others(save_model, tmp_path_factory):
    """Models that are not the original, a text that is too short, and no checkpoint."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "short.txt").write_text("The mice run to the cafe. " * 3, encoding="utf-8")
    return {
        "narrow": save_model("llama", intermediate_size=64),
        "deep": save_model("llama", num_hidden_layers=3),
        "words": save_model("llama", vocab_size=328, tie_word_embeddings=True),
        "short": folder / "short.txt",
    }


REFUSED = {
    "narrow": (["--reference", "{narrow}"], "is 64 x 64, the checkpoint's 64 x 96"),
    "deep": (["--reference", "{deep}"], "it has 3 blocks, the checkpoint 2"),
    "words": (["--reference", "{words}"], "is 328 x 64, the checkpoint's 320 x 64"),
    "reference": (["--backend", "reference"], "'reference' solves, but does not tune; choose"),
    "short": (["--calibration", "{short}"], "give more text or a smaller --sequence-length"),
    "itself": (["-o", "{solved}"], "exists; choose another name with --output"),
    "rate": (["--rate", "2"], "--rate 2.0: expected a number from 1e-06 to 1"),
    "memory": (["--max-ram", "50MB"], "tuning needs at least"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_tuned_is_refused_in_one_line(
    edgeq, solved, saved_model, others, text_file, tmp_path, name
):
    words, why = REFUSED[name]
    given = {"--reference": saved_model, "--calibration": text_file, "-o": tmp_path / "out"}
    given |= {words[0]: words[1].format(**others, solved=solved)}
    options = [word for pair in given.items() for word in pair]
    before = contents(solved)
    result = edgeq("tune", solved, *options, "--tokens", 64)
    assert (result.status, result.out) == (1, "")
    line = result.err.strip().split("\n")[-1]
    assert line.startswith("edgeq: ")
    assert why in line
    assert not any(tmp_path.iterdir())
    assert contents(solved) == before


@pytest.mark.parametrize(
    ("option", "said"),
    [("--tune-codes", "floats and codes move"), ("--no-tune-codes", "floats move, codes stay")],
)
def test_a_plan_says_whether_codes_move(edgeq, saved_model, quick, option, said):
    result = edgeq("plan", saved_model, *quick, *THREE_BITS, "--tune", option)
    assert result.status == 0, result.err
    assert said in result.out


def test_a_model_is_no_checkpoint_to_tune(edgeq, saved_model, of_model):
    result = edgeq("tune", saved_model, *of_model)
    assert result.status == 1
    assert "is no checkpoint but a model; quantize it" in result.err


def test_a_checkpoint_without_its_report_is_refused_before_any_work(
    edgeq, solved, of_model, tmp_path
):
    place = shutil.copytree(solved, tmp_path / "solved")
    (place / "report.json").unlink()
    result = edgeq("tune", place, *of_model, "--tokens", 64)
    assert (result.status, result.out) == (1, "")
    assert "report.json': no such file" in result.err
    assert "reading the original" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["solved"]


def test_a_tuned_checkpoint_may_be_tuned_again_and_that_is_said(edgeq, tuned, of_model, tmp_path):
    place = shutil.copytree(tuned[0], tmp_path / "once")
    result = edgeq("tune", place, *of_model, "--tokens", 64, "--passes", 1)
    assert result.status == 0, result.err
    assert "the checkpoint was tuned before, on 1,024 tokens" in result.out
    said, _, work = result.err.partition("\n")  # before the work
    assert said.startswith("note: the checkpoint was tuned before")
    assert "tuning" in work
    head = json.loads((tmp_path / "once-tuned" / "edgeq.json").read_text(encoding="utf-8"))
    assert [each["tokens"] for each in head["tuned"]["earlier"]] == [1024]


def test_inspect_and_verify_take_a_tuned_checkpoint(edgeq, tuned):
    place = tuned[0]
    assert edgeq("inspect", place).status == 0
    assert edgeq("export", place, "--format", "gguf").status == 0
    verified = edgeq("verify", place / "gguf", "--against", place)
    assert verified.status == 0, verified.out


DAMAGED = {
    "earlier": ("edgeq.json", lambda plain: plain["tuned"].update(earlier=5), "'tuned' in edgeq"),
    "objects": ("edgeq.json", lambda plain: plain["tuned"].update(earlier=[5]), "'tuned' in edgeq"),
    "report": ("report.json", lambda plain: plain.pop("tuning"), "say different things"),
    "head": ("edgeq.json", lambda plain: plain.pop("tuned"), "say different things"),
    "codes": ("report.json", lambda plain: plain["tuning"].update(codes=-1), "whole numbers"),
    "a float": ("report.json", lambda plain: plain["tuning"].update(codes=0.5), "whole numbers"),
    "more codes": (
        "report.json",
        lambda plain: plain["tuning"].update(moved_codes=1),
        "more codes",
    ),
    "free": ("report.json", lambda plain: plain["tuning"].update(free=[5]), "named in words"),
    "of edgeq.json": (
        "edgeq.json",
        lambda plain: plain["tuned"].update(codes=-1),
        "'tuned' in edg",
    ),
}
"""What is changed in which file of a tuned checkpoint, and what is said then."""


@pytest.mark.parametrize("name", DAMAGED)
def test_a_tuned_checkpoint_says_how_it_was_tuned_or_is_refused(tuned, tmp_path, name):
    file, damage, why = DAMAGED[name]
    place = shutil.copytree(tuned[0], tmp_path / "tuned")
    plain = json.loads((place / file).read_text(encoding="utf-8"))
    damage(plain)
    (place / file).write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(library.BadInput, match=why):
        read_tuned(Checkpoint(place))


def test_a_checkpoint_that_was_tuned_before_codes_moved_opens(tuned, tmp_path):
    place = shutil.copytree(tuned[0], tmp_path / "tuned")
    for file, key in (("edgeq.json", "tuned"), ("report.json", "tuning")):
        plain = json.loads((place / file).read_text(encoding="utf-8"))
        del plain[key]["codes"], plain[key]["moved_codes"]
        (place / file).write_text(json.dumps(plain), encoding="utf-8")
    found = read_tuned(Checkpoint(place))
    assert (found.codes, found.moved_codes) == (0, 0)


FREE = {
    "Q4_K": ("gguf", ["--type", "Q4_K"], {"super_scales", "super_minima"}),
    "Q3_K": ("gguf", ["--type", "Q3_K"], {"super_scales"}),
    "Q4_1": ("gguf", ["--type", "Q4_1"], {"scales", "offsets"}),
    "mlx": ("mlx", ["--bits", "4", "--group-size", "64"], {"scales", "offsets"}),
    "onnx": ("onnx", ["--bits", "4", "--asymmetric"], {"scales"}),
    "gptq": ("gptq", ["--bits", "4", "--asymmetric"], {"scales"}),
    "compressed-tensors": ("compressed-tensors", ["--bits", "4"], {"scales"}),
}
"""Formats with settings that they hold, and the parts of layers that are free then."""


@pytest.fixture(scope="module")
def wide(save_model):
    """A model whose layers are as wide as super-blocks."""
    return save_model("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1)


@pytest.mark.slow  # GGUF by default, above
@pytest.mark.parametrize("name", FREE)
def test_every_format_holds_a_tuned_checkpoint(edgeq, wide, quick, of_model, tmp_path, name):
    format_name, options, parts = FREE[name]
    if "offsets" in parts and format_name == "mlx":
        (tmp_path / "recipe.toml").write_text('zeros = "offset"\n', encoding="utf-8")
        options = [*options, "--recipe", tmp_path / "recipe.toml"]
    solved, tuned = tmp_path / "solved", tmp_path / "tuned"
    rounded = [*quick, "--solver", "rtn"]  # so that much is to be gained
    assert edgeq("quantize", wide, "-o", solved, *rounded, *options).status == 0
    named = ["--reference", wide, *of_model[2:]]
    result = edgeq("tune", solved, "-o", tuned, *named, *CODES_TOO)
    assert result.status == 0, result.err
    before, after = arrays(solved), arrays(tuned)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert {name.rsplit(".", 1)[1] for name in changed} - {"weight"} == parts | {"codes"}
    exported = edgeq("export", tuned, "--format", format_name, "-o", tmp_path / "out")
    assert exported.status == 0, exported.err
    verified = edgeq("verify", tmp_path / "out", "--against", tuned)
    assert verified.status == 0, verified.out
