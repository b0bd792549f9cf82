"""The one reading of a config: what the record says, what is refused, and that no other is."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_models import ONE_BLOCK, tokenizer_files

import edgeq
from edgeq.architectures.families import families_named
from edgeq.architectures.record import read_record
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.runtime_names import RuntimeNames
from edgeq.sources.reading import read_linear
from edgeq.types import LinearSpec
from edgeq_exporters.gguf.exporter import GgufExporter
from edgeq_exporters.mlx.exporter import MlxExporter

ROOT = Path(edgeq.__file__).parent.parent
QWEN2 = ONE_BLOCK | {"model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": True}


def windows(**changes):
    decoder = read_record("m", ONE_BLOCK | changes).decoder
    return [layer.attention.window for layer in decoder.layers]


def test_a_record_says_what_the_config_says():
    config = ONE_BLOCK | {"bos_token_id": 1, "eos_token_id": [2, 3], "torch_dtype": "bfloat16"}
    record = read_record("small", config)
    assert (record.name, record.dtype, record.vocabulary, record.context) == (
        "small",
        "bfloat16",
        320,
        64,
    )
    assert (record.tokens.begin, record.tokens.end, record.tokens.pad) == ((1,), (2, 3), ())
    decoder = record.decoder
    assert decoder.tied_head
    assert decoder.head not in decoder.tensor_shapes()
    assert [linear.tensor for linear in decoder.linears()][-1] == (
        "model.layers.0.mlp.down_proj.weight"
    )
    assert decoder.tensor_shapes()["model.layers.0.mlp.gate_proj.weight"] == (32, 32)


def test_nothing_that_is_done_to_a_config_reaches_the_record():
    config = ONE_BLOCK | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    record = read_record("small", config)
    config["rope_scaling"]["factor"] = 99.0
    handed_out = record.config()
    handed_out["rope_scaling"]["factor"] = 77.0
    handed_out["hidden_size"] = 1
    assert record.config()["rope_scaling"]["factor"] == 2.0
    assert record.decoder.layers[0].attention.rope.settings["factor"] == 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.name = "other"  # type: ignore[misc] # which is the point


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "intermediate_size"])
@pytest.mark.parametrize("value", [None, "32", 0, -1, True, 2**40])
def test_a_size_that_is_none_is_refused_by_name(key, value):
    with pytest.raises(BadInput, match=f"config: {key} is "):
        read_record("m", ONE_BLOCK | {key: value})


@pytest.mark.parametrize("make", [lambda inner: [inner], lambda inner: {"a": inner}])
@pytest.mark.parametrize("levels", [60, 400, 5000])
def test_a_config_that_is_nested_without_end_is_refused_by_name(make, levels):
    value = 1
    for _ in range(levels):
        value = make(value)
    with pytest.raises(BadInput, match="config: note is nested more than 50 levels deep"):
        read_record("m", ONE_BLOCK | {"note": value})


def test_more_blocks_than_any_model_has_are_refused():
    with pytest.raises(BadInput, match="num_hidden_layers is 2000000000; it must be 10000 or less"):
        read_record("m", ONE_BLOCK | {"num_hidden_layers": 2_000_000_000})


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "linear"}, "rope type 'linear' lacks factor"),
        (
            {"rope_type": "llama3", "factor": 8.0},
            "lacks low_freq_factor, high_freq_factor; ",
        ),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor is 'half'"),
    ],
)
def test_rope_settings_that_say_too_little_are_refused(rope, words):
    with pytest.raises(BadInput, match=words):
        read_record("m", ONE_BLOCK | {"rope_parameters": rope})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_window_layers": "abc"}, "max_window_layers is 'abc'; it must be a whole number"),
        ({"max_window_layers": -1}, "max_window_layers is -1"),
        ({"max_window_layers": 2.5}, "max_window_layers is 2.5"),
        ({"max_window_layers": False}, "max_window_layers is False"),
        ({"max_window_layers": float("inf")}, "max_window_layers is inf"),
        ({"sliding_window": "8"}, "sliding_window is '8'"),
        ({"use_sliding_window": "yes"}, "use_sliding_window is 'yes'; it must be true or false"),
        ({"layer_types": 5}, "layer_types is 5; it must be a list of names"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 blocks, but .* is 4"),
    ],
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_windows_of_another_kind_are_refused_by_name(model_type, changes, words):
    with pytest.raises(BadInput, match=words):
        read_record("m", QWEN2 | {"model_type": model_type} | changes)


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps", "partial_rotary_factor"])
def test_a_number_that_no_float_holds_is_refused_in_a_short_line(key):
    with pytest.raises(BadInput, match=f"config: {key} is 1000") as refusal:
        read_record("m", ONE_BLOCK | {key: 10**400})
    assert len(str(refusal.value)) < 150


def test_a_low_frequency_factor_above_the_high_one_is_refused():
    rope = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    rope |= {"low_freq_factor": 4.0, "high_freq_factor": 1.0}
    with pytest.raises(BadInput, match=r"low_freq_factor is 4.0 and high_freq_factor 1.0"):
        read_record("m", ONE_BLOCK | {"rope_parameters": rope})


def test_other_models_and_quantized_ones_are_refused():
    words = "'gemma9' is not known to transformers .*; did you mean gemma"
    with pytest.raises(UnsupportedModel, match=words):
        read_record("m", ONE_BLOCK | {"model_type": "gemma9"})
    with pytest.raises(UnsupportedModel, match="quantized already"):
        read_record("m", ONE_BLOCK | {"quantization_config": {"bits": 4}})


def test_windows_are_those_of_transformers():
    assert windows(model_type="mistral") == [4096]
    assert windows(model_type="mistral", sliding_window=None) == [None]
    assert windows(model_type="mistral", sliding_window=12) == [12]
    assert windows(sliding_window=12) == [None]
    assert windows(**QWEN2) == [None] * 4  # from block 28 on
    assert windows(**QWEN2, max_window_layers=2, sliding_window=8) == [None, None, 8, 8]
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows(**QWEN2, layer_types=kinds, sliding_window=8) == [8, None, 8, None]
    full = ["full_attention"] * 4
    assert windows(**QWEN2 | {"use_sliding_window": False}, layer_types=full) == [None] * 4
    assert windows(**QWEN2, layer_types=full, sliding_window=None) == [None] * 4
    assert windows(**QWEN2, layer_types=kinds) == [4096, None, 4096, None]


@pytest.mark.parametrize(
    ("exporter", "runtime"),
    [(GgufExporter(), "gguf"), (MlxExporter(), "mlx")],
)
def test_a_model_that_a_runtime_has_no_name_for_is_refused_by_its_exporter(exporter, runtime):
    record = read_record("m", ONE_BLOCK)
    unknown = dataclasses.replace(
        record.decoder, model_type="newest", names=RuntimeNames("NewestForCausalLM")
    )
    reason = exporter.reject_reason(
        dataclasses.replace(record, decoder=unknown), tokenizer_files(), {}
    )
    assert reason.startswith("model_type 'newest' is not supported; ")
    assert all(name in reason for name in families_named(runtime))
    assert "newest" not in reason.partition(";")[2]


class OneTensor:
    """A source of one tensor."""

    def __init__(self, tensor):
        self.record, self._tensor = read_record("m", ONE_BLOCK), tensor

    def read(self, tensor_name):
        assert tensor_name == "T"
        return self._tensor


def test_a_linear_layer_is_read_out_of_whatever_tensor_holds_it():
    fused = np.arange(24, dtype=np.float16).reshape(6, 4)
    middle = read_linear(OneTensor(fused), LinearSpec("l", "T", (2, 4), rows=(2, 4)))
    np.testing.assert_array_equal(middle, fused[2:4])
    assert middle.dtype == np.float32
    turned = read_linear(OneTensor(fused), LinearSpec("l", "T", (4, 6), transposed=True))
    np.testing.assert_array_equal(turned, fused.T)
    stack = np.arange(48, dtype=np.float32).reshape(2, 6, 4)
    expert = LinearSpec("l", "T", (2, 6), rows=(1, 3), transposed=True, expert=1)
    np.testing.assert_array_equal(read_linear(OneTensor(stack), expert), stack[1].T[1:3])


def reads_of_a_config(path):
    """Places where a module takes the config of a record without copying it, or any other."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr == "stated":
            yield node.lineno
        if isinstance(node, ast.Subscript | ast.Attribute):
            if isinstance(node.value, ast.Attribute) and node.value.attr == "config":
                yield node.lineno


def test_nothing_outside_of_its_room_looks_into_a_config():
    """Those that are allowed ask the config of a transformers model, which is the library's own."""
    allowed = {
        f"torch/{name}.py" for name in ("writer", "names", "recording", "structure", "speaking")
    }
    for folder in ("edgeq", "backends/edgeq_backends", "exporters/edgeq_exporters"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            where = path.relative_to(ROOT / folder).as_posix()
            if where.startswith("architectures/") or where in {*allowed, "decoder.py"}:
                continue
            assert list(reads_of_a_config(path)) == [], path
