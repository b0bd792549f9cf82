"""The card, the licence and the Modelfile that go with a model, as what users have reads them."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import chdir, redirect_stdout
from typing import Any

import gguf
import pytest
import yaml
from command_line import finished
from exported_files import gguf_in
from huggingface_hub import ModelCard
from tiny_models import tokenizer_files

from edgeq.checkpoint.reader import Checkpoint
from edgeq.commands.main import cli
from edgeq.files.ownership import foreign_entry
from edgeq.measuring.evaluate import find_export
from edgeq.measuring.verify import verify
from edgeq.run.card import renew_cards
from edgeq.run.measured import Measured, write_measured
from edgeq.sources import open_source

FORMATS = ["gguf", "onnx", "mlx", "gptq", "compressed-tensors"]
PLAIN = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0", "--backend", "cpu"]
TERMS = {
    "LICENSE": b"Do what you like.\n",
    "USE_POLICY.md": b"Be kind.\n",
    "Notice.txt": b"By us.\n",
}
CARD = """---
license: other  # see below
license_name: 'small-1.0'
license_link: LICENSE
base_model:
- somebody/Base-1B
language: [en, de]
widget:
  - text: "a: b"
---
# Small
"""


@pytest.fixture(scope="module")
def source(saved_model, tmp_path_factory):
    """A model in the hub's cache, with a card, terms and a chat template."""
    snapshots = tmp_path_factory.mktemp("cards") / "models--somebody--Small-1B" / "snapshots"
    folder = shutil.copytree(saved_model, snapshots / "0123456789abcdef")
    files = tokenizer_files(pad_token="<|pad|>", chat_template="{{ messages[0].content }}")
    for name, data in {**files, **TERMS, "README.md": CARD.encode()}.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def solved(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("cards") / "out"
    exports = [word for name in FORMATS for word in ("--export", name)]
    finished("quantize", source, "-o", output, *PLAIN, *exports)
    return output


@pytest.fixture
def copy(solved, tmp_path):
    return shutil.copytree(solved, tmp_path / "out")


def front_matter(path):
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])


@pytest.mark.parametrize("place", [".", *FORMATS])
def test_a_card_states_base_model_and_licence_as_the_hub_reads_them(solved, place):
    stated = front_matter(solved / place / "README.md")
    library = {"gguf": "gguf", "onnx": "onnx", "mlx": "mlx", ".": "edgeq"}.get(place)
    assert stated["tags"] == list(dict.fromkeys(["edgeq"] if place == "." else [place, "edgeq"]))
    assert stated["library_name"] == (library or "transformers")
    data = ModelCard.load(solved / place / "README.md").data
    assert (data.base_model, data.license, data.language) == (
        "somebody/Small-1B",
        "other",
        ["en", "de"],
    )
    assert (data.license_name, data.license_link) == ("small-1.0", "LICENSE")
    assert stated["pipeline_tag"] == "text-generation"
    assert stated["base_model_relation"] == "quantized"


UPLOADED = {name: f"4bit-{name}" for name in FORMATS} | {".": "4bit-edgeq", "gguf": "Q4_0-GGUF"}


@pytest.mark.parametrize("place", [".", *FORMATS])
def test_terms_go_wherever_the_model_goes_and_no_path_does(solved, source, place):
    for name, data in TERMS.items():
        assert (solved / place / name).read_bytes() == data
    text = (solved / place / "README.md").read_text(encoding="utf-8")
    assert (
        ", ".join(sorted(TERMS)) in text and f"hf upload OWNER/Small-1B-{UPLOADED[place]} ." in text
    )
    assert "edgeq evaluate . --reference somebody/Small-1B" in text
    assert re.search(r"size \| \d+\.\d\d MB", text)
    assert str(source) not in text and str(solved) not in text and "20" + "26" not in text


def test_a_gguf_file_states_origin_and_licence_by_the_specification(solved):
    fields = gguf.GGUFReader(gguf_in(solved / "gguf")).fields
    keys = {key: field.contents() for key, field in fields.items()}
    general, ancestor = gguf.Keys.General, gguf.Keys.General.BASE_MODEL_REPO_URL.format(id=0)
    assert keys[general.LICENSE] == "other" and keys[general.LICENSE_NAME] == "small-1.0"
    assert keys[general.LICENSE_LINK] == "LICENSE" and keys[general.LANGUAGES] == ["en", "de"]
    assert keys[general.SOURCE_REPO_URL] == "https://huggingface.co/somebody/Small-1B"
    assert keys[general.BASE_MODEL_COUNT] == 1
    assert keys[ancestor] == "https://huggingface.co/somebody/Base-1B"
    read = open_source(str(gguf_in(solved / "gguf"))).record.origin
    assert read == Checkpoint(solved).record.origin  # a file is read as it was written


SNIPPETS = {
    ("gguf", "cyllama"): "cyllama",
    ("onnx", "onnxruntime_genai"): "onnxruntime_genai",
    ("onnx", "onnxruntime as ort"): "onnxruntime",
    ("mlx", "mlx_lm"): "mlx_lm",
    ("compressed-tensors", "transformers"): "transformers",
}


@pytest.mark.parametrize(
    ("name", "library"),
    [
        pytest.param(*key, marks=[pytest.mark.slow] if key[1] == "transformers" else [])
        for key in SNIPPETS
    ],
)
def test_python_in_a_card_runs_as_it_stands_there(solved, name, library):
    pytest.importorskip(SNIPPETS[name, library])
    text = (solved / name / "README.md").read_text(encoding="utf-8")
    imported = re.compile(rf"^(import|from) {library}\b", re.MULTILINE)
    (script,) = filter(imported.search, code_in(text, "python"))
    shown = io.StringIO()
    with chdir(solved / name), redirect_stdout(shown):
        for _ in range(5):  # a random model may begin with an end, where the library draws
            exec(compile(script, "README.md", "exec"), {"__name__": "__main__"})
            if shown.getvalue().strip():
                break
    assert shown.getvalue().strip()


@pytest.mark.parametrize("place", [".", *FORMATS])
def test_commands_of_edgeq_in_a_card_are_commands(solved, place):
    text = (solved / place / "README.md").read_text(encoding="utf-8")
    lines = [line for block in code_in(text, "") for line in block.splitlines()]
    typed = [shlex.split(line) for line in lines if line.startswith("edgeq ")]
    assert typed and {words[1] for words in typed} <= set(cli.commands)
    for words in typed:
        assert words[2] == "." or (solved / place / words[2]).is_file()


@pytest.mark.slow
def test_commands_of_mlx_in_a_card_run(solved):
    text = (solved / "mlx" / "README.md").read_text(encoding="utf-8")
    lines = [line for block in code_in(text, "") for line in block.splitlines()]
    found = [shlex.split(line) for line in lines if line.startswith("mlx_lm.")]
    assert len(found) == 2
    for program, *words in found:
        module = [sys.executable, "-m", "mlx_lm", program.removeprefix("mlx_lm.")]
        run = subprocess.run(
            [*module, *words, "--max-tokens", "4"],
            cwd=solved / "mlx",
            input="hello\nq\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr


def code_in(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def parsed_modelfile(text):
    """Read a Modelfile by its documented grammar: an instruction and its argument on each line."""
    found = []
    for line in text.splitlines():
        instruction, _, argument = line.partition(" ")
        if instruction == "PARAMETER":
            name, _, argument = argument.partition(" ")
            instruction = f"PARAMETER {name}"
        quoted = re.fullmatch('"([^"]*)"', argument)
        assert instruction.split()[0] in ("FROM", "PARAMETER", "LICENSE")
        assert quoted or not set(' "') & set(argument)
        found.append((instruction, quoted[1] if quoted else argument))
    return found


def test_a_modelfile_names_the_file_its_context_and_its_ends(solved):
    commands = parsed_modelfile((solved / "gguf" / "Modelfile").read_text(encoding="utf-8"))
    keys = {
        key: f.contents() for key, f in gguf.GGUFReader(gguf_in(solved / "gguf")).fields.items()
    }
    assert commands[0] == ("FROM", f"./{gguf_in(solved / 'gguf').name}")
    assert dict(commands)["PARAMETER num_ctx"] == str(keys["llama.context_length"])
    stops = [argument for name, argument in commands if name == "PARAMETER stop"]
    end = keys["tokenizer.ggml.tokens"][keys["tokenizer.ggml.eos_token_id"]]
    assert end in stops and len(set(stops)) == len(stops)
    assert commands[-1] == ("LICENSE", "small-1.0")
    text = (solved / "gguf" / "README.md").read_text(encoding="utf-8")
    assert f"n_ctx={keys['llama.context_length']}" in text  # no more than the model reads
    assert "ollama create small-1b-q4_0 -f ./Modelfile\nollama run small-1b-q4_0\n" in text


def test_everything_in_an_export_is_hashed_and_may_be_replaced(edgeq, copy):
    for name in FORMATS:
        stated = json.loads((copy / name / "manifest.json").read_text())["files"]
        assert {*stated, "manifest.json"} == set(os.listdir(copy / name))
        assert verify(copy / name, against=copy)["differences"] == []
        before = (copy / name / "README.md").read_bytes()
        assert edgeq("export", copy, "--format", name, "--force").status == 0
        assert (copy / name / "README.md").read_bytes() == before  # equal exports are equal bytes
    assert foreign_entry(copy) is None


@pytest.mark.parametrize("place", ["README.md", "gguf/Modelfile"])
def test_what_people_wrote_into_a_card_is_never_replaced(edgeq, source, copy, place):
    path = copy / place
    path.write_text(path.read_text(encoding="utf-8") + "\nMy own findings.\n", encoding="utf-8")
    assert foreign_entry(copy) == place
    refused = edgeq("quantize", source, "-o", copy, *PLAIN, "--force")
    assert (refused.status, refused.err.count("\n")) == (1, 1) and path.name in refused.err
    assert "My own findings." in path.read_text(encoding="utf-8")
    if place != "README.md":
        assert edgeq("export", copy, "--format", "gguf", "--force").status == 1
        found = find_export(str(copy / "gguf"))
        options = ["--windows", 1, "--sequence-length", 16, "--backend", "cpu"]
        assert edgeq("evaluate", found.path.parent, *options).status == 0
        assert (
            edgeq("quantize", source, "-o", copy, *PLAIN, "--export", "gguf", "--resume").status
            == 0
        )


def test_what_is_measured_later_comes_into_the_cards(edgeq, copy):
    checkpoint = Checkpoint(copy)
    quality: dict[str, Any] = {
        "kl": 0.0865,
        "top1_agreement": 0.86,
        "perplexity": 23.1,
        "reference_perplexity": 21.0,
    }
    quality |= {"runtime": "llama.cpp", "tokens": 4096, "intervals": {"kl": [0.08, 0.093]}}
    quality |= {"target": str(gguf_in(copy / "gguf"))}
    write_measured(checkpoint, Measured(quality))
    (copy / "mlx" / "README.md").write_text("mine")
    renew_cards(checkpoint)
    for place in (".", *FORMATS):
        text = (copy / place / "README.md").read_text(encoding="utf-8")
        assert ("KL divergence 0.0865 nats per token (95 %: 0.08 to 0.093)" in text) == (
            place != "mlx"
        )
        own, other = "measured on these files, in llama.cpp", "measured on the gguf export of the"
        assert (own in text) == (place == "gguf")
        assert (other in text) == (place not in ("gguf", "mlx"))
    for name in FORMATS:
        different = verify(copy / name, against=copy)["differences"]
        assert len(different) == (name == "mlx")
    assert foreign_entry(copy) == "mlx/README.md"


def test_what_was_not_finite_is_left_out_of_a_card(copy):
    """Infinity is stored as null."""
    checkpoint = Checkpoint(copy)
    for left_out in ({"perplexity": float("inf")}, {"reference_perplexity": None}):
        quality = {"kl": 5.5, "runtime": "torch", "perplexity": 9, "reference_perplexity": 9}
        write_measured(checkpoint, Measured(quality | left_out))
        renew_cards(checkpoint)
        for place in (".", "mlx"):
            text = (copy / place / "README.md").read_text(encoding="utf-8")
            assert "KL divergence 5.5 nats per token; 0 is equal" in text
            assert "perplexity" not in text
            assert "None" not in text


HOSTILE = {
    "no front matter": b"# A model\nlicense: mit\n",
    "never closed": b"---\nlicense: mit\n" + b"a: b\n" * 100_000,
    "no text": b"---\nlicense: \xff\xfe\n---\n",
    "binary": bytes(range(256)) * 100,
    "anchors": b"---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: *b\n---\n",
    "nested": b"---\nlicense: " + b"[" * 50_000 + b"\n---\n",
    "a program": b"---\nlicense: !!python/object/apply:os.system [touch planted]\n---\n",
    "a mapping": b"---\nlicense:\n  name: mit\n---\n",
    "escapes": b'---\nlicense: "m\\x1bit"\n---\n',
    "another word": b"---\nlicense: <b>MIT</b> | x\nlicense_name: a\x1b[2Jb\n---\n",
    "endless": b"---\nlicense: " + b"m" * 10_000 + b"\n---\n",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_card_that_says_nothing_readable_leaves_the_licence_unknown(source, tmp_path, content):
    folder = shutil.copytree(source, tmp_path / "model")
    (folder / "README.md").write_bytes(content)
    origin = open_source(str(folder)).record.origin
    assert (origin.license, origin.license_name, origin.repository) == (None, None, None)


def test_cards_and_terms_that_are_no_files_or_huge_do_not_hurt(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "model")
    (folder / "README.md").unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "README.md")
    (folder / "LICENSES").mkdir()
    (folder / "LICENSE.txt").symlink_to(folder / "missing")
    with (folder / "LICENSE-MODEL").open("wb") as file:
        file.truncate(1 << 40)  # takes no room
    (folder / "LICENSE.py").write_text("import os")
    record = open_source(str(folder)).record
    assert {name for name in record.files if name not in tokenizer_files()} - {
        "generation_config.json"
    } == set(TERMS)
    assert [note.split()[0] for note in record.notes if "left out; copy" in note] == [
        "LICENSE-MODEL",
        "LICENSE.txt",
    ]


def test_a_licence_that_nobody_stated_is_said_to_be_unknown(saved_model, tmp_path):
    finished("quantize", saved_model, "-o", tmp_path / "out", *PLAIN, "--export", "gguf")
    unnamed = "`edgeq evaluate . --reference MODEL` compares it with the original; MODEL is the"
    for place in ("out", "out/gguf"):
        text = (tmp_path / place / "README.md").read_text(encoding="utf-8")
        assert "Licence: not stated by the base model." in text and unnamed in text
        assert not {"license", "base_model"} & front_matter(tmp_path / place / "README.md").keys()
    head = json.loads((tmp_path / "out" / "edgeq.json").read_text())
    del head["origin"]  # as releases without cards wrote it
    (tmp_path / "out" / "edgeq.json").write_text(json.dumps(head))
    finished("export", tmp_path / "out", "--format", "mlx")


def test_no_path_of_a_machine_goes_into_a_checkpoint_or_an_export(edgeq, saved_model, tmp_path):
    """Libraries save where they found a model, and people write paths into cards."""
    home = tmp_path / "home-of-somebody"
    folder = shutil.copytree(saved_model, home / "models" / "small")
    for name, data in tokenizer_files(name_or_path=str(folder), vocab_file="~/v.txt").items():
        (folder / name).write_bytes(data)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        stated = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(stated | {"_name_or_path": str(folder)}))
    card = f"license: other\nlicense_name: mine\nlicense_link: {folder}/LICENSE"
    (folder / "README.md").write_text(f"---\n{card}\nbase_model: {folder}\n---\n")
    text = home / "notes.txt"
    text.write_text(" ".join(f"{n} mice run from {n * n} cats" for n in range(200)))
    output = home / "out"
    exports = [word for name in FORMATS for word in ("--export", name)]
    calibration = ["--calibration", text, "--samples", 2, "--sequence-length", 16]
    finished("quantize", folder, "-o", output, "--backend", "cpu", *calibration, *exports)
    result = edgeq("report", output, "--reference", folder)
    assert result.status == 0, result.err
    written = [path for path in output.rglob("*") if path.is_file()]
    assert len(written) > 30
    assert [path for path in written if home.name.encode() in path.read_bytes()] == []
    assert "vocab_file" not in json.loads((output / "tokenizer_config.json").read_text())
    assert json.loads((output / "measured.json").read_text())["quality"]["target"] == "."


def test_layers_that_a_file_widens_are_said_wherever_it_is_chosen(edgeq, source, tmp_path):
    said = "stores these 14 layers of 3 bits as 4 bits: same size as 4 bits, lower quality"
    out = tmp_path / "out"
    options = [*PLAIN, "--bits", "3", "--embedding-bits", "7"]
    shown = edgeq("plan", source, *options, "--export", "gguf", "--export", "onnx").out
    plan = " ".join(shown.split())
    assert plan.count(said) == 2 and "embedding and head of 7 bits as 8 bits" in plan
    run = edgeq("quantize", source, "-o", out, *options, "--export", "gguf", "--json")
    notes = json.loads(run.out)["notes"]
    assert sum(said in note for note in notes) == 1 and "--bits 4" in " ".join(notes)
    assert any(
        said in note
        for note in json.loads(edgeq("formats", out, "--json").out)["formats"][0]["notes"]
    )
    assert said in (out / "gguf" / "README.md").read_text(encoding="utf-8")
    four = tmp_path / "four"
    finished(
        "quantize",
        source,
        "-o",
        four,
        *PLAIN,
        "--bits",
        4,
        "--embedding-bits",
        8,
        "--export",
        "gguf",
    )
    sizes = [
        sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(gguf_in(each / "gguf")).tensors)
        for each in (out, four)
    ]
    assert sizes[0] == sizes[1]  # the note says the truth
