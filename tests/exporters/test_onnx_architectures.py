"""ONNX graphs of every kind of model, compared with transformers on the dequantized weights:
whole texts, and steps with the cache.
"""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from solved_models import FOUR_BITS, shapes_of, solved, torch_logits
from tiny_models import ONE_BLOCK, tokenizer_files
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from benchmarks.architectures.rows import ROWS
from edgeq.architectures.record import read_record
from edgeq.errors import EdgeqError
from edgeq.measuring.verify import verify
from edgeq.runtime_names import RuntimeNames
from edgeq_exporters.onnx.architecture import why_not_decoder
from edgeq_exporters.onnx.exporter import OnnxExporter
from edgeq_exporters.onnx.feed_forward import ACTIVATIONS
from edgeq_exporters.onnx.graph import GraphBuilder
from edgeq_exporters.onnx.rotary import rotary_tables, tables_of

pytest.importorskip("onnxruntime", reason="needs onnxruntime", exc_type=ImportError)
import onnxruntime
from onnx_sessions import (
    advance,
    assert_alike,
    empty_cache,
    exported,
    onnx_logits,
    open_session,
    stepwise_logits,
)

TOKENS = 48  # beyond the windows of the rows
FIRST = 41  # cached before the single steps
CLOSE = 2e-5  # of the largest logit, all in float32
QUICK = ["gemma3_text", "phi3 / phi-4-mini", "cohere2", "nemotron", "granite"]
"""Between them: windows, all places of norms, both kinds, fused layers, parallel blocks, blocks
without rotary embedding, neighbouring columns, a part of a head, and all constants.
"""
LEAST = 40  # rows that the graph computes
GENERATED = ["gemma3_text", "phi3 / phi-4-mini", "smollm3", "granite", "qwen3", "cohere2"]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.05 * pair for pair in range(16)],
    "long_factor": [1.0 + 0.5 * pair for pair in range(16)],
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}


def of_row(row, **changes):
    """A transformers model of random weights; eager attention is the one that caps scores."""
    kind, settings = ROWS[row]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **settings | changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def assert_runs_like_transformers(model, export, file, ids):
    reference = torch_logits(model, export.weights(), ids)
    assert np.ptp(reference) > 0.5  # else anything would be close
    for found in (onnx_logits(file, ids), stepwise_logits(file, ids, first=FIRST)):
        assert np.abs(found - reference).max() < CLOSE * np.abs(reference).max()


@pytest.mark.parametrize("row", QUICK)
def test_a_kind_of_model_runs_like_transformers_and_is_read_back(rng, tmp_path, row):
    model = of_row(row)
    export = solved(model, rng, [FOUR_BITS])
    file = exported(export, tmp_path)
    onnx.checker.check_model(str(file), full_check=True)
    assert_runs_like_transformers(model, export, file, rng.integers(0, 320, (1, TOKENS)))
    found = verify(tmp_path)
    assert found["differences"] == [] and set(found["statuses"]) <= {"exact", "dense"}
    entries = json.loads((tmp_path / "manifest.json").read_text())["tensors"]
    assert {each["source"] for each in entries} == set(export.record.decoder.tensor_shapes())


@pytest.mark.slow
@pytest.mark.parametrize("qdq", [False, True], ids=["blocks", "qdq"])
def test_every_row_runs_like_transformers_or_is_refused_in_one_line(rng, tmp_path, qdq):
    computed = []
    for number, row in enumerate(ROWS):
        model = of_row(row)
        export = solved(model, rng, [FOUR_BITS])
        try:
            record = export.record
        except EdgeqError as error:
            assert "\n" not in str(error), row
            continue
        reason = OnnxExporter(qdq=qdq).reject_reason(record, export.files, shapes_of(export))
        if reason is not None:
            assert "\n" not in reason and "; " in reason, row
            continue
        folder = tmp_path / str(number)
        file = exported(export, folder, qdq=qdq)
        onnx.checker.check_model(str(file), full_check=True)
        assert_runs_like_transformers(model, export, file, rng.integers(0, 320, (1, TOKENS)))
        assert verify(folder)["differences"] == [], row
        computed.append(row)
    assert len(computed) >= LEAST


@pytest.mark.parametrize("row", ["gemma2", "cohere"])
def test_a_copied_head_is_found_behind_scaled_and_capped_logits(rng, tmp_path, row):
    model = of_row(row)
    export = solved(model, rng, [FOUR_BITS])
    exported(export, tmp_path, qdq=True)
    assert verify(tmp_path)["differences"] == []
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert "lm_head.weight" in {each.name for each in graph.initializer}


@pytest.mark.parametrize("row", ["stablelm", "hunyuan_v1_dense", "olmo"])
def test_texts_of_different_length_rotate_from_their_own_positions(rng, tmp_path, row):
    """Rotated by a node of their own, or (olmo) beside attention, without weights of norms."""
    model = of_row(row)
    export = solved(model, rng, [FOUR_BITS])
    session = open_session(exported(export, tmp_path), threads=1)
    texts, lengths = rng.integers(0, 320, (2, 20)), np.array([14, 9])
    mask = (np.arange(14) < lengths[:, None]).astype(np.int64)
    first = np.where(mask, texts[:, :14], 0)
    logits, cache = advance(session, empty_cache(session, 2), first, mask)
    reference = torch_logits(model, export.weights(), texts)
    for text, length in enumerate(lengths):
        assert_alike(logits[text, :length], reference[text, :length])
    for step in range(4):
        new = np.take_along_axis(texts, (lengths + step)[:, None], axis=1)
        mask = (np.arange(15 + step) < (lengths + step + 1)[:, None]).astype(np.int64)
        logits, cache = advance(session, cache, new, mask)
        for text, length in enumerate(lengths):
            assert_alike(logits[text, 0], reference[text, length + step])


@pytest.mark.parametrize("tokens", [20, 48], ids=["short", "long"])
def test_longrope_takes_its_factors_by_the_length_of_a_text(rng, tmp_path, tokens):
    model = of_row(
        "phi3 / phi-4-mini", rope_parameters=LONGROPE, original_max_position_embeddings=32
    )
    export = solved(model, rng, [FOUR_BITS])
    file = exported(export, tmp_path)
    ids = rng.integers(0, 320, (1, tokens))
    reference = torch_logits(model, export.weights(), ids)
    found = onnx_logits(file, ids)
    assert np.abs(found - reference).max() < CLOSE * np.abs(reference).max()


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_longrope_goes_on_by_long_factors_where_a_cached_text_becomes_long(rng, tmp_path):
    model = of_row(
        "phi3 / phi-4-mini", rope_parameters=LONGROPE, original_max_position_embeddings=32
    )
    export = solved(model, rng, [FOUR_BITS])
    file = exported(export, tmp_path)
    ids = rng.integers(0, 320, (1, 36))
    torch_logits(model, export.weights(), ids)  # loads the weights
    cache, parts = None, []
    with torch.no_grad():
        for start, end in [(0, 29), *((at, at + 1) for at in range(29, 36))]:
            new = torch.from_numpy(ids[:, start:end])
            found = model(new, past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            parts.append(found.logits.numpy())
    reference = np.concatenate(parts, axis=1)
    found = stepwise_logits(file, ids, first=29)
    assert np.abs(found - reference).max() < CLOSE * np.abs(reference).max()


@pytest.mark.parametrize(
    "rope",
    [
        YARN,
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        YARN | {"mscale": 0.7, "mscale_all_dim": 0.5, "factor": 40.0},
        YARN | {"attention_factor": 1.5},
        LONGROPE,
        LONGROPE | {"factor": 3.0},
        LONGROPE | {"attention_factor": 1.25},
    ],
)
def test_tables_have_the_frequencies_and_the_factor_of_transformers(rope):
    config = AutoConfig.for_model(
        ROWS["llama"][0], **ROWS["llama"][1] | {"rope_parameters": dict(rope)}
    )
    decoder = read_record("tiny", config.to_dict()).decoder
    (tables,) = tables_of(decoder)
    cosines, sines = rotary_tables(decoder, tables)
    starts = {1: 0} if tables.shorter is None else {1: 0, 256: tables.shorter}
    for length, start in starts.items():
        compute = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
        frequencies, factor = compute(config, torch.device("cpu"), seq_len=length)
        end = len(cosines) if length > 1 or len(starts) == 1 else starts[256]
        angles = torch.arange(end - start)[:, None].float() * frequencies
        np.testing.assert_allclose(cosines[start:end], angles.cos() * factor, atol=1e-4)
        np.testing.assert_allclose(sines[start:end], angles.sin() * factor, atol=1e-4)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (YARN | {"attention_factor": "1.5"}, "rope setting attention_factor is '1.5'"),
        (YARN | {"beta_fast": -1.0}, "rope setting beta_fast is -1.0"),
        (YARN | {"mscale": True}, "rope setting mscale is True"),
        (YARN | {"rope_theta": 1.0}, "needs a rope_theta other than 1"),
        (LONGROPE | {"short_factor": [0.0] * 16}, "rope setting short_factor has 0.0"),
        (LONGROPE | {"long_factor": ["1"] * 16}, "rope setting long_factor has '1'"),
        (LONGROPE | {"long_factor": 2.0}, "rope setting long_factor must be a list of 16"),
        (LONGROPE | {"original_max_position_embeddings": 1}, "embeddings above 1"),
    ],
)
def test_settings_that_no_table_follows_from_are_refused(rope, words):
    kind, settings = ROWS["llama"]
    config = {"model_type": kind, "rms_norm_eps": 1e-6} | settings | {"rope_parameters": rope}
    reason = str(why_not_decoder(read_record("tiny", config).decoder))
    assert words in reason and "; " in reason


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    builder = GraphBuilder({}, 0)
    ACTIVATIONS[name](builder, "value", "active")
    value, active = (
        helper.make_tensor_value_info(each, TensorProto.FLOAT, [None])
        for each in ("value", "active")
    )
    graph = helper.make_graph(builder.nodes, "activation", [value], [active])
    content = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    values = np.linspace(-6, 6, 101, dtype=np.float32)
    (found,) = session.run(None, {"value": values})
    np.testing.assert_allclose(found, ACT2FN[name](torch.from_numpy(values)), atol=2e-6)


def generated(folder, prompt, length):
    genai = pytest.importorskip(
        "onnxruntime_genai", reason="no wheel for this system", exc_type=ImportError
    )
    loaded = genai.Model(str(folder))
    settings = genai.GeneratorParams(loaded)
    settings.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(loaded, settings)
    generator.append_tokens(prompt.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0).tolist()


def assert_generates_what_transformers_does(rng, folder, row):
    model = of_row(row)
    export = solved(model, rng, [FOUR_BITS])
    export.files = tokenizer_files()
    exported(export, folder, accuracy_level=0)
    prompt = rng.integers(3, 300, (1, 40))
    torch_logits(model, export.weights(), prompt)  # loads the weights
    expected = model.generate(
        torch.from_numpy(prompt),
        attention_mask=torch.ones_like(torch.from_numpy(prompt)),
        do_sample=False,
        max_new_tokens=16,
        min_new_tokens=16,
        pad_token_id=2,
    )
    assert generated(folder, prompt[0], 56) == expected[0].tolist()


@pytest.mark.parametrize("row", GENERATED[:1])
def test_onnxruntime_genai_generates_what_transformers_does(rng, tmp_path, row):
    assert_generates_what_transformers_does(rng, tmp_path, row)


@pytest.mark.slow
def test_onnxruntime_genai_generates_what_transformers_does_for_every_row(rng, tmp_path):
    for number, row in enumerate(ROWS):
        try:
            decoder = read_record(row, of_row(row).config.to_dict()).decoder
        except EdgeqError:
            assert row not in GENERATED
            continue
        if why_not_decoder(decoder) is None:
            assert_generates_what_transformers_does(rng, tmp_path / str(number), row)
        else:
            assert row not in GENERATED


def decoder_of(row):
    kind, settings = ROWS[row]
    return read_record(row, AutoConfig.for_model(kind, **settings).to_dict()).decoder


def test_parallel_halves_may_have_norms_of_their_own(rng, tmp_path):
    """A Phi whose two halves have a norm each, of equal weights, is a Phi with one."""
    model = of_row("phi (2)")
    export = solved(model, rng, [FOUR_BITS])
    decoder = export.record.decoder
    layers = []
    for index, layer in enumerate(decoder.layers):
        (first,) = layer.norms
        second = dataclasses.replace(
            first, tensor="second.weight", bias="second.bias", place="before mlp"
        )
        layers.append(dataclasses.replace(layer, norms=(first, second)))
        for kind in ("weight", "bias"):
            block = f"model.layers.{index}"
            export.arrays[f"{block}.second.{kind}"] = export.arrays[
                f"{block}.input_layernorm.{kind}"
            ]
    weights = {name: each for name, each in export.weights().items() if "second" not in name}
    changed = WithDecoder(export, dataclasses.replace(decoder, layers=tuple(layers)))
    file = exported(changed, tmp_path)
    ids = rng.integers(0, 320, (1, TOKENS))
    reference = torch_logits(model, weights, ids)
    assert np.abs(onnx_logits(file, ids) - reference).max() < CLOSE * np.abs(reference).max()


@pytest.mark.parametrize("row", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_mixtures_are_refused_by_name(row):
    reason = str(why_not_decoder(decoder_of(row)))
    assert reason.startswith("a mixture of experts of a ")
    assert reason.endswith("the graph does not compute that; use another format")


def test_blocks_that_are_not_described_are_refused():
    decoder = decoder_of("llama")
    other = dataclasses.replace(decoder.layers[1], attention=None)
    reason = why_not_decoder(dataclasses.replace(decoder, layers=(decoder.layers[0], other)))
    assert str(reason).startswith("block 1 of a llama model is not described as attention and ")


def test_what_no_node_would_read_is_refused_by_its_name():
    decoder, place = decoder_of("llama"), "of a llama model: the graph has no place for it"
    positions = dataclasses.replace(decoder, others={"model.positions": (256, 128)})
    assert f"tensor 'model.positions' {place}" in str(why_not_decoder(positions))
    layer = dataclasses.replace(decoder.layers[0], others={"router": (4, 128)})
    routed = dataclasses.replace(decoder, layers=(layer, decoder.layers[1]))
    assert f"tensor 'model.layers.0.router' {place}" in str(why_not_decoder(routed))
    foreign = dataclasses.replace(decoder, traits=("a memory of its own",))
    assert str(why_not_decoder(foreign)).startswith("a memory of its own of a llama model: ")


def test_linear_layers_that_lie_in_parts_of_tensors_are_refused():
    decoder = decoder_of("llama")
    layer = decoder.layers[0]
    queries, *others = layer.sites[0]
    sites = ((dataclasses.replace(queries, transposed=True), *others), *layer.sites[1:])
    turned = dataclasses.replace(layer, sites=sites)
    reason = why_not_decoder(dataclasses.replace(decoder, layers=(turned, decoder.layers[1])))
    assert str(reason).startswith("linear layers of model.layers.0 in a llama model are not laid")


def test_a_model_that_genai_does_not_run_has_no_settings_for_it_and_a_note(rng, tmp_path):
    record = read_record("m", ONE_BLOCK)
    unnamed = dataclasses.replace(record.decoder, names=RuntimeNames("NewestForCausalLM"))
    (note,) = OnnxExporter().notes(dataclasses.replace(record, decoder=unnamed), {}, {})
    assert note == "onnxruntime-genai does not run model type llama; ONNX Runtime does"
    assert OnnxExporter().notes(record, {}, {}) == []
    export = solved(of_row("llama"), rng, [FOUR_BITS])
    export.files = {**tokenizer_files(), "genai_config.json": b"the source's own"}
    decoder = dataclasses.replace(export.record.decoder, names=RuntimeNames("Newest"))
    exported(WithDecoder(export, decoder), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "genai_config.json" not in names and {"tokenizer.json", "model.onnx"} <= names


class WithDecoder:
    """A solved model that is described otherwise."""

    def __init__(self, model, decoder):
        self._model = model
        self.record = dataclasses.replace(model.record, decoder=decoder)

    def __getattr__(self, name):
        return getattr(self._model, name)
