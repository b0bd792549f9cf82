"""Contexts that a format cannot count, or whose tables would fill memory, are refused early."""

import pytest
from solved_models import FOUR_BITS, shapes_of, solved, tiny
from tiny_models import tokenizer_files

from edgeq.errors import BadInput
from edgeq.registry import load_exporter


def reason(name, rng, context):
    model = solved(tiny(vocab_size=320), rng, [FOUR_BITS])
    model.config = {**model.config, "max_position_embeddings": context}
    exporter = load_exporter(name)
    return exporter.reject_reason(model.record, tokenizer_files(), shapes_of(model))


@pytest.mark.parametrize("context", [2**31, 2**32, 2**40])
def test_contexts_that_gguf_cannot_count_are_refused_with_the_config(rng, context):
    assert reason("gguf", rng, 2**31 - 1) is None
    with pytest.raises(BadInput, match=f"max_position_embeddings is {context}; it must be"):
        reason("gguf", rng, context)


@pytest.mark.parametrize("context", [2**23, 2**28, 2**31 - 1])
def test_onnx_writes_no_rotary_tables_of_gigabytes(rng, context):
    found = reason("onnx", rng, context)
    assert f"rotary tables of all {context} positions" in found
    assert "lower max_position_embeddings" in found and "\n" not in found


def test_a_million_positions_of_heads_of_128_are_written(rng):
    # heads of 32 here: four times as many positions have tables of the same size
    assert reason("onnx", rng, 4 * 2**20) is None
    assert reason("onnx", rng, 4 * 2**20 + 1) is not None
