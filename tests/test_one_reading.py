"""Contradictions in a model's files: settled as transformers' own loader settles them, and said."""

import json
import shutil

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from exported_files import gguf_in
from safetensors.numpy import load_file, save_file
from tiny_models import SMALL_LLAMA as MODEL
from tiny_models import byte_level_bpe, tokenizer_files
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from edgeq.architectures.record import Evidence, read_record
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.measuring.evaluate import evaluate
from edgeq.measuring.run_export import run_export
from edgeq.registry import load_exporter
from edgeq.run.assembly import make_job
from edgeq.run.one_export import export
from edgeq.run.pipeline import quantize
from edgeq.sources import open_source
from edgeq.sources.outline import ModelOutline
from edgeq_backends.llama_cpp import LlamaCppLogits, load_cyllama
from edgeq_backends.mlx.activations import MlxLogits
from edgeq_backends.torch.activations import TorchLogits

SIZES = {**MODEL, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1}
PLAINLY = {"solver": "rtn", "scales": "none", "propagation_strength": 0.0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "plain"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)).half()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(3 * parameter)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    write(folder, tokenizer_files(pad_token="<|pad|>"))
    return folder


@pytest.fixture
def folder(plain, tmp_path):
    """A model that a test may change."""
    return shutil.copytree(plain, tmp_path / "model")


def write(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)


def edit(folder, name="config.json", /, **changes):
    """Change keys of a JSON file; None of a key that is named `drop_NAME` removes it."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    for key, value in changes.items():
        if key.startswith("drop_"):
            content.pop(key.removeprefix("drop_"), None)
        else:
            content[key] = value
    path.write_text(json.dumps(content))


class Quiet:
    """Watches a run without a word."""

    def __getattr__(self, name):
        return lambda *args: None


def solved(folder, **settings):
    """A checkpoint of a model, by plain rounding."""
    settings = {"group_size": 32, "embedding_bits": 16, **PLAINLY, **settings}
    job = make_job(open_source(str(folder)), settings, backend="cpu")
    return quantize(job, folder.with_name("solved"), Quiet(), force=True)


def exported(checkpoint, name):
    folder = checkpoint.path / name
    export(checkpoint, load_exporter(name), folder, force=True)
    return folder


def original(folder, windows):
    """Predictions of transformers' own loader in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(windows), use_cache=False).logits.numpy()


def assert_read_as_transformers_does(folder, rng):
    windows = rng.integers(3, 290, (1, 40))
    expected = original(folder, windows)
    source = open_source(str(folder))
    for logits, close in ((TorchLogits(source), 1e-6), (MlxLogits(source), 1e-4)):
        found = np.stack(list(logits.logits(windows)))
        assert np.abs(found - expected).max() <= close * np.abs(expected).max()


def notes_of(folder):
    return " ".join(open_source(str(folder)).record.notes)


@pytest.mark.usefixtures("one_thread")
class TestHead:
    def test_a_head_of_its_own_is_kept_though_the_config_ties_it(self, folder, rng):
        edit(folder, tie_word_embeddings=True)
        assert_read_as_transformers_does(folder, rng)
        assert "the weights hold another head" in notes_of(folder)
        checkpoint = solved(folder)
        head = load_file(folder / "model.safetensors")["lm_head.weight"].astype(np.float32)
        assert not checkpoint.record.decoder.tied_head
        assert np.abs(checkpoint.read("lm_head.weight") - head).max() < np.abs(head).max() / 100
        for name in ("compressed-tensors", "gptq", "mlx", "onnx"):
            written = json.loads((exported(checkpoint, name) / "config.json").read_text())
            assert written["tie_word_embeddings"] is False
        reader = gguf.GGUFReader(gguf_in(exported(checkpoint, "gguf")))
        assert "output.weight" in {tensor.name for tensor in reader.tensors}

    @pytest.mark.parametrize("place", [0, 200, 319])
    def test_one_other_number_makes_another_head(self, folder, place):
        tensors = load_file(folder / "model.safetensors")
        head = tensors["model.embed_tokens.weight"].copy()
        head[place, -1] += 1
        save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
        edit(folder, tie_word_embeddings=True)
        assert not open_source(str(folder)).record.decoder.tied_head

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_a_copy_of_the_embedding_is_a_tied_head(self, folder, rng, dtype):
        tensors = load_file(folder / "model.safetensors")
        head = tensors["model.embed_tokens.weight"].astype(dtype)
        save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
        edit(folder, tie_word_embeddings=True)
        source = open_source(str(folder))
        assert source.record.decoder.tied_head
        assert "lm_head.weight" not in source.tensor_names()
        assert source.record.notes == ()

    def test_of_a_tied_pair_either_may_be_stored(self, folder, rng):
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.embed_tokens.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        edit(folder, tie_word_embeddings=True)
        assert_read_as_transformers_does(folder, rng)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            "rope_scaling (linear) is used",
        ),
        (
            {
                "rope_scaling": {"rope_type": "linear", "factor": 4.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            },
            "rope_scaling (linear) is used",
        ),
        (
            {"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 500.0}},
            "500.0 is used, as in transformers",
        ),
        (
            {
                "rope_scaling": {"type": "default", "rope_type": "linear", "factor": 4.0},
                "rope_theta": 300.0,
                "drop_rope_parameters": 1,
            },
            "",
        ),
        ({"rope_scaling": {}, "rope_theta": 300.0, "drop_rope_parameters": 1}, ""),
        ({"rope_scaling": None, "rope_theta": 300.0, "rope_parameters": None}, ""),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                },
                "rope_theta": 300.0,
                "drop_rope_parameters": 1,
            },
            "",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
                "original_max_position_embeddings": 16,
                "rope_theta": 300.0,
                "drop_rope_parameters": 1,
            },
            "",
        ),
    ],
)
def test_rotary_settings_that_contradict_each_other(folder, rng, changes, said):
    edit(folder, **changes)
    assert_read_as_transformers_does(folder, rng)
    assert said in notes_of(folder)
    assert bool(said) == bool(notes_of(folder))
    checkpoint = solved(folder)
    windows = rng.integers(3, 290, (1, 40))
    weights = np.stack(list(TorchLogits(checkpoint).logits(windows)))
    for name, close in (("gguf", 0.1), ("compressed-tensors", 1e-2)):
        written = exported(checkpoint, name)
        if name == "gguf":
            found = np.stack(list(LlamaCppLogits(gguf_in(written)).logits(windows)))
        else:
            found = original(written, windows)
        assert np.abs(found - weights).max() < close * np.abs(weights).max()


def test_rotary_settings_by_kind_of_layer_are_refused(folder):
    edit(folder, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e4}})
    with pytest.raises(BadInput, match="settings by kind of layer, which llama models do not"):
        open_source(str(folder))


class TestEnds:
    @pytest.fixture
    def chat(self, folder):
        """A model that ends its turns with a token which only its generation config names."""
        tokenizer = byte_level_bpe()
        tokenizer.add_special_tokens(["<|stop_turn|>"])
        self.turn = tokenizer.token_to_id("<|stop_turn|>")
        (folder / "tokenizer.json").write_text(tokenizer.to_str())
        edit(folder, "generation_config.json", bos_token_id=0, eos_token_id=[self.turn, 1])
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}<|stop_turn|>")
        return folder

    def test_all_ends_reach_every_format(self, chat):
        checkpoint = solved(chat)
        assert checkpoint.record.tokens.end == (1, self.turn)
        for name in ("gptq", "compressed-tensors", "mlx", "onnx"):
            written = exported(checkpoint, name)
            for file in ("config.json", "generation_config.json"):
                assert set(json.loads((written / file).read_text())["eos_token_id"]) == {
                    1,
                    self.turn,
                }
            assert (written / "chat_template.jinja").is_file()
        genai = json.loads((checkpoint.path / "onnx" / "genai_config.json").read_text())
        assert set(genai["model"]["eos_token_id"]) == {1, self.turn}
        written_file = gguf_in(exported(checkpoint, "gguf"))
        keys = {
            key: field.contents() for key, field in gguf.GGUFReader(written_file).fields.items()
        }
        assert keys["tokenizer.ggml.eos_token_id"] == 1
        assert keys["tokenizer.ggml.eot_token_id"] == self.turn
        assert keys["tokenizer.ggml.token_type"][self.turn] == gguf.TokenType.CONTROL
        assert keys["tokenizer.chat_template"] == (chat / "chat_template.jinja").read_text()
        assert stops_at(written_file, range(320)) == {1, self.turn}

    def test_ends_are_those_of_all_files_in_order(self, folder):
        edit(folder, eos_token_id=7)
        edit(folder, "tokenizer_config.json", eos_token="<|pad|>", eot_token="<tool>")
        edit(folder, "special_tokens_map.json", eos_token="<|bos|>")
        edit(folder, "generation_config.json", eos_token_id=[9, 7])
        tool = byte_level_bpe().token_to_id("<tool>")
        assert open_source(str(folder)).record.tokens.end == (0, 2, 9, 7, tool)
        assert AutoTokenizer.from_pretrained(folder).eos_token_id == 0

    def test_more_ends_than_gguf_has_keys_for_are_said(self, folder):
        edit(folder, "generation_config.json", eos_token_id=[1, 7, 8, 9])
        checkpoint = solved(folder)
        exporter = load_exporter("gguf")
        notes = exporter.notes(checkpoint.record, checkpoint.companions(), {})
        assert notes == ["GGUF has keys for 3 ends of text: llama.cpp will not stop at token 9"]
        assert stops_at(gguf_in(exported(checkpoint, "gguf")), range(320)) == {1, 7, 8}

    @pytest.mark.parametrize(
        "value", [[], "1", True, [1, "2"], {"a": 1}, 1.5, [True], [[1]], "x" * 1000]
    )
    def test_ids_that_are_none_are_refused_at_once(self, folder, value):
        edit(folder, "generation_config.json", eos_token_id=value)
        with pytest.raises(BadInput, match=r"generation_config\.json: eos_token_id is ") as refusal:
            open_source(str(folder))
        assert len(str(refusal.value)) < 200

    @pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
    @pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b'{"a": "\\ud800"}', b"[" * 9999, b""])
    def test_damaged_files_are_refused_at_once_by_name(self, folder, name, data):
        (folder / name).write_bytes(data)
        with pytest.raises(BadInput, match=name) as refusal:
            open_source(str(folder))
        assert "\n" not in str(refusal.value)

    def test_files_that_contradict_each_other_on_the_beginning_are_said(self, folder):
        edit(folder, bos_token_id=5)
        record = open_source(str(folder)).record
        assert record.tokens.begin == (0, 5)
        assert "bos_token_id 5, the tokenizer's files 0; 0 is used" in " ".join(record.notes)


def stops_at(file, ids):
    """The tokens at which llama.cpp stops."""
    llama = load_cyllama()
    vocabulary = LlamaCppLogits(file)._model.get_vocab()
    assert llama is not None
    return {id for id in ids if vocabulary.is_eog(id)}


def assert_tokens_of_transformers(folder):
    """Compare the tokens that are added to tokenizer.json, and a text with all of them."""
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_str(open_source(str(folder)).companions()["tokenizer.json"].decode())
    added = theirs.added_tokens_decoder
    assert {id: repr(token) for id, token in ours.get_added_tokens_decoder().items()} == {
        id: repr(token) for id, token in added.items()
    }
    text = "the mice ".join([" ", *(f" {token} " for token in added.values()), "run"])
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text, add_special_tokens=False).ids == ids


class TestAddedTokens:
    def declare(self, folder, **tokens):
        """Name tokens in tokenizer_config.json alone."""
        entries = {
            str(id): {"content": text.replace("_", "|"), "special": True}
            for text, id in tokens.items()
        }
        edit(folder, "tokenizer_config.json", added_tokens_decoder=entries)

    def test_a_token_that_only_the_config_has_is_known_everywhere(self, folder):
        size = byte_level_bpe().get_vocab_size()
        self.declare(folder, **{"<_im_end_>": size})
        edit(folder, "tokenizer_config.json", eos_token="<|im|end|>")
        theirs = AutoTokenizer.from_pretrained(folder)
        source = open_source(str(folder))
        ours = Tokenizer.from_str(source.companions()["tokenizer.json"].decode())
        text = "the mice<|im|end|> run<|eos|>"
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False).ids == ids
        assert theirs.eos_token_id == size in source.record.tokens.end
        file = gguf_in(exported(solved(folder), "gguf"))
        keys = {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}
        assert keys["tokenizer.ggml.tokens"][size] == "<|im|end|>"
        assert keys["tokenizer.ggml.token_type"][size] == gguf.TokenType.CONTROL
        assert keys["tokenizer.ggml.eos_token_id"] == size
        assert LlamaCppLogits(file).tokenize(text, parse_special=True) == ids

    @pytest.mark.parametrize(
        ("file", "changes"),
        [
            ("tokenizer_config.json", {"eot_token": "<x>"}),
            ("tokenizer_config.json", {"boi_token": "<x>", "image_token": "<y>"}),
            ("tokenizer_config.json", {"model_specific_special_tokens": {"eot_token": "<x>"}}),
            ("tokenizer_config.json", {"additional_special_tokens": ["<x>", "<y>"]}),
            ("tokenizer_config.json", {"extra_special_tokens": ["<x>", "<eos>"]}),
            ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<x>"}}),
            (
                "tokenizer_config.json",
                {"additional_special_tokens": ["<x>"], "extra_special_tokens": ["<y>"]},
            ),
            (
                "tokenizer_config.json",
                {"additional_special_tokens": ["<x>"], "extra_special_tokens": {"a_token": "<y>"}},
            ),
            ("special_tokens_map.json", {"additional_special_tokens": ["<x>", "<y>"]}),
            ("special_tokens_map.json", {"eos_token": "<x>", "pad_token": "<y>"}),
            ("added_tokens.json", {"<z>": 303, "<y>": 302, "<x>": 301}),
            ("added_tokens.json", {"<|eos|>": 1, "<x>": 305}),
        ],
    )
    def test_tokens_that_only_other_files_have_are_those_of_transformers(
        self, folder, file, changes
    ):
        edit(folder, file, **changes)
        assert_tokens_of_transformers(folder)

    @pytest.mark.parametrize("in_settings", [True, False])
    @pytest.mark.parametrize("flag", ["special", "lstrip", "rstrip", "normalized", "single_word"])
    def test_flags_of_the_settings_win_over_those_of_the_tokenizer(self, folder, flag, in_settings):
        tokenizer = byte_level_bpe()
        flags = {"special": False, "normalized": False} | {flag: not in_settings}
        tokenizer.add_tokens([AddedToken("<|im_end|>", **flags)])
        (folder / "tokenizer.json").write_text(tokenizer.to_str())
        entry = {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "normalized": False}
        entry |= {"single_word": False, "special": False} | {flag: in_settings}
        place = str(tokenizer.token_to_id("<|im_end|>"))
        edit(folder, "tokenizer_config.json", added_tokens_decoder={place: entry})
        assert_tokens_of_transformers(folder)

    @pytest.mark.parametrize("special", [True, False])
    def test_a_named_token_is_as_special_as_in_transformers(self, folder, special):
        tokenizer = byte_level_bpe()
        tokenizer.add_tokens([AddedToken("<|im_end|>", special=special, normalized=False)])
        (folder / "tokenizer.json").write_text(tokenizer.to_str())
        edit(folder, "tokenizer_config.json", eos_token="<|im_end|>")
        assert_tokens_of_transformers(folder)

    def test_an_end_of_turn_that_only_the_settings_name_reaches_llama_cpp(self, folder):
        edit(folder, "tokenizer_config.json", eot_token="<|stop|>")
        turn = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|stop|>")
        file = gguf_in(exported(solved(folder), "gguf"))
        assert stops_at(file, range(320)) == {1, turn}

    def test_a_token_with_another_id_is_used_as_transformers_does_and_said(self, folder):
        self.declare(folder, **{"<_im_end_>": 315})
        theirs = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im|end|>")
        source = open_source(str(folder))
        ours = Tokenizer.from_str(source.companions()["tokenizer.json"].decode())
        assert ours.token_to_id("<|im|end|>") == theirs != 315
        assert f"id 315 in the tokenizer's files, but {theirs}" in " ".join(source.record.notes)

    def test_a_token_beyond_the_embedding_is_left_out_and_said(self, folder):
        tokenizer = byte_level_bpe()
        tokenizer.add_tokens([f"<{index}>" for index in range(320 - tokenizer.get_vocab_size())])
        (folder / "tokenizer.json").write_text(tokenizer.to_str())
        edit(folder, "tokenizer_config.json", pad_token="[PAD]")
        source = open_source(str(folder))
        assert source.companions()["tokenizer.json"] == tokenizer.to_str().encode()
        assert "'[PAD]' of the tokenizer's files is left out" in " ".join(source.record.notes)

    def test_files_that_add_nothing_keep_their_bytes(self, folder):
        files = open_source(str(folder)).companions()
        assert files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()

    @pytest.mark.parametrize("entries", [5, {"x": {}}, {"1": 5}, {"1": {"content": 5}}, [1]])
    def test_entries_that_are_none_are_refused(self, folder, entries):
        edit(folder, "tokenizer_config.json", added_tokens_decoder=entries)
        with pytest.raises(BadInput, match="added_tokens_decoder must be an object"):
            open_source(str(folder))


class TestTemplate:
    def test_a_template_in_an_older_file_gets_the_one_that_runtimes_read(self, folder):
        edit(folder, "chat_template.json", chat_template="{{ messages }}")
        checkpoint = solved(folder)
        assert checkpoint.record.template == "{{ messages }}"
        for name in ("mlx", "gptq", "onnx", "compressed-tensors"):
            written = exported(checkpoint, name)
            assert (written / "chat_template.jinja").read_text() == "{{ messages }}"
        loaded = AutoTokenizer.from_pretrained(checkpoint.path / "mlx")
        assert loaded.chat_template == "{{ messages }}"

    def test_a_file_of_its_own_wins(self, folder):
        edit(folder, "tokenizer_config.json", chat_template="older")
        (folder / "chat_template.jinja").write_text("newer")
        assert open_source(str(folder)).record.template == "newer"
        assert AutoTokenizer.from_pretrained(folder).chat_template == "newer"


class TestDtype:
    @pytest.mark.parametrize(
        ("changes", "dtype"),
        [
            ({"torch_dtype": "auto", "dtype": None}, "float16"),
            ({"drop_dtype": 1}, "float16"),
            ({"dtype": "bfloat16"}, "bfloat16"),
            ({"dtype": "bfloat16", "torch_dtype": "float32"}, "bfloat16"),
            ({"drop_dtype": 1, "torch_dtype": "float32"}, "float32"),
            ({"dtype": "torch.bfloat16"}, "bfloat16"),
        ],
    )
    def test_it_is_the_configs_else_that_of_the_weights(self, folder, changes, dtype):
        edit(folder, **changes)
        assert open_source(str(folder)).record.dtype == dtype

    @pytest.mark.parametrize("value", ["float8_e4m3fn", "int8", "foo", 5, ["float16"], ""])
    def test_others_are_refused_in_one_line(self, folder, value):
        edit(folder, dtype=value)
        with pytest.raises(BadInput, match=r"config: dtype is .*; it must be one of float16, "):
            open_source(str(folder))

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_exports_keep_the_models_dtype_and_scales_that_survive_loading(self, folder, dtype):
        tensors = load_file(folder / "model.safetensors")
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
        save_file(
            {name: array.astype(kind) for name, array in tensors.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        edit(folder, dtype=dtype)
        checkpoint = solved(folder)
        assert checkpoint.record.dtype == dtype
        scales = {
            grid.scale_dtype for grid in map(checkpoint.grid, checkpoint.tensor_names()) if grid
        }
        assert scales == {"bfloat16" if dtype == "bfloat16" else "float16"}
        for name in ("mlx", "gptq", "compressed-tensors"):
            written = exported(checkpoint, name)
            stored = load_file(written / "model.safetensors")
            assert stored["model.norm.weight"].dtype == kind
            entries = json.loads((written / "manifest.json").read_text())["tensors"]
            assert {entry["status"] for entry in entries} == {"exact", "dense"}
        loaded = AutoModelForCausalLM.from_pretrained(checkpoint.path / "compressed-tensors")
        assert str(loaded.dtype) == f"torch.{dtype}"

    def test_scales_that_loading_would_round_are_stated_as_rounded(self, folder):
        edit(folder, dtype="bfloat16")
        checkpoint = solved(folder, scale_dtype="float16")
        written = exported(checkpoint, "compressed-tensors")
        entries = json.loads((written / "manifest.json").read_text())["tensors"]
        packed = [entry for entry in entries if "proj" in entry["source"]]
        assert {entry["status"] for entry in packed} == {"rescaled"}
        stored = load_file(written / "model.safetensors")
        for name, array in stored.items():
            if name.endswith("weight_scale"):
                rounded = array.astype(ml_dtypes.bfloat16).astype(array.dtype)
                np.testing.assert_array_equal(array, rounded)


class TestWindows:
    @pytest.mark.parametrize("kind", ["qwen2", "mistral"])
    def test_a_context_is_cut_to_the_window_where_a_runtime_knows_none(self, kind):
        config = {**SIZES, "model_type": kind, "rms_norm_eps": 1e-5, "sliding_window": 16}
        config |= {"use_sliding_window": True, "max_window_layers": 0}
        record = read_record("m", config, Evidence(tokenizer_files()))
        for name, words in (("gguf", "llama.cpp"), ("mlx", "mlx-lm")):
            (note,) = load_exporter(name).notes(record, tokenizer_files(), {})
            assert "cut to 16 tokens" in note
            assert words in note
        assert load_exporter("onnx").notes(record, {}, {}) == []

    @pytest.mark.usefixtures("one_thread")
    @pytest.mark.parametrize("name", ["gguf", "mlx"])
    def test_a_file_is_evaluated_within_its_context(self, folder, name):
        tensors = load_file(folder / "model.safetensors")
        for index in range(2):
            for projection, rows in (("q", 64), ("k", 32), ("v", 32)):
                name_of_bias = f"model.layers.{index}.self_attn.{projection}_proj.bias"
                tensors[name_of_bias] = np.full(rows, 0.1, np.float16)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
        edit(folder, model_type="qwen2", architectures=["Qwen2ForCausalLM"], **window)
        edit(folder, drop_layer_types=1)
        result = exported(solved(folder, bits=8), name)
        file = gguf_in(result) if name == "gguf" else result
        found = evaluate(str(file), reference=str(folder), windows=4)
        assert found["tokens"] == 4 * 16
        assert found["kl"] < 0.05
        ran = run_export(result, against=folder.with_name("solved"), backend="cpu")
        assert (ran["tokens"], ran["differences"]) == (16, [])
        with pytest.raises(BadInput, match="the model reads at most 16 tokens"):
            evaluate(str(file), reference=str(folder), windows=1, sequence_length=17)

    def test_a_window_as_long_as_the_context_cuts_nothing(self):
        config = {**SIZES, "model_type": "mistral", "rms_norm_eps": 1e-5, "sliding_window": 256}
        record = read_record("m", config)
        assert record.decoder.window is None
        assert load_exporter("mlx").notes(record, {}, {}) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen3", "attention_bias": True}, "the bias of self_attn.q_proj is not"),
        ({"model_type": "qwen2", "head_dim": 32}, "head_dim 32 of a qwen2 model is not hidden"),
    ],
)
@pytest.mark.parametrize("name", ["gguf", "mlx"])
def test_what_a_runtime_has_no_place_for_is_refused_before_the_run(changes, words, name):
    record = read_record("m", {**SIZES, "rms_norm_eps": 1e-5, **changes})
    shapes = {key: (shape, None) for key, shape in record.decoder.tensor_shapes().items()}
    assert words in str(load_exporter(name).reject_reason(record, tokenizer_files(), shapes))


class TestNames:
    def test_a_model_has_the_name_of_its_directory_or_link(self, folder, tmp_path, monkeypatch):
        cache = tmp_path / "models--acme--Fine-7B" / "snapshots"
        cache.mkdir(parents=True)
        snapshot = folder.rename(cache / "0123456789abcdef")
        (tmp_path / "My model").symlink_to(snapshot)
        assert open_source(str(snapshot)).record.name == "Fine-7B"
        assert open_source(str(tmp_path / "My model")).record.name == "My model"
        monkeypatch.chdir(snapshot)
        assert open_source(".").record.name == "Fine-7B"
        assert ModelOutline(snapshot).record.name == "Fine-7B"

    def test_the_name_goes_into_a_gguf_file(self, folder):
        file = gguf_in(exported(solved(folder.rename(folder.with_name("Fine 7B"))), "gguf"))
        assert gguf.GGUFReader(file).fields["general.name"].contents() == "Fine 7B"
        assert file.name.startswith("Fine-7B-Q")


def test_a_checkpoint_is_read_as_its_source_was(folder):
    edit(folder, tie_word_embeddings=True, rope_scaling={"rope_type": "linear", "factor": 2.0})
    edit(folder, "generation_config.json", eos_token_id=[7, 1])
    source, checkpoint = open_source(str(folder)), solved(folder)
    reopened = Checkpoint(checkpoint.path).record
    assert reopened == source.record
