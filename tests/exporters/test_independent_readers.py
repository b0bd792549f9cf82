"""Mistakes of a writer are found by its reader, even those that the core's own code undoes."""

import sys

import numpy as np
import pytest
from solved_models import KINDS, solved, tiny
from tiny_models import tokenizer_files

import edgeq_exporters.gguf.exporter as gguf_exporter
import edgeq_exporters.onnx.blocks as onnx_blocks
from edgeq.errors import BadInput
from edgeq.grids import packing
from edgeq.measuring.verify import verify
from edgeq.registry import load_exporter
from edgeq.runtime_names import GgufNames
from edgeq.types import Grid
from edgeq_exporters.common.read_words import codes_in_words


def exported(name, folder, rng, *, grid=None, kind="llama", dense=np.float32, **changes):
    model = solved(tiny(kind, vocab_size=320, **changes), rng, [grid, Grid(4, 32)], dense=dense)
    model.files = tokenizer_files()
    load_exporter(name).write(model, folder)
    return folder


def found_in(folder):
    """The tensors that `edgeq verify` finds something about."""
    lines = verify(folder)["differences"]
    assert all(line.startswith("tensor '") for line in lines)
    return {line.split("'")[1] for line in lines}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (kind, changes)
        for kind in KINDS
        for changes in ({}, {"head_dim": 48}, {"num_key_value_heads": 4})
        if (kind, changes) != ("qwen2", {"head_dim": 48})  # which llama.cpp does not know
    ],
)
def test_rows_of_a_gguf_file_are_found_by_the_rule_of_llama_cpp(rng, tmp_path, kind, changes):
    assert found_in(exported("gguf", tmp_path, rng, kind=kind, **changes)) == set()


def everywhere(monkeypatch, name, wrong):
    """Replace a function wherever it was imported, as a mistake inside of it would show."""
    for module in [each for key, each in sys.modules.items() if key.startswith("edgeq")]:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, wrong)


def in_order(source_name, decoder):
    return None


def rolled(source_name, decoder):
    return np.roll(np.arange(128), 1) if ".q_proj." in source_name else None


@pytest.mark.parametrize("wrong", [in_order, rolled])
@pytest.mark.parametrize("grid", [None, Grid(4, 32)], ids=["some dense", "all quantized"])
def test_a_writer_with_a_wrong_row_order_fails_verification(
    rng, tmp_path, monkeypatch, wrong, grid
):
    everywhere(monkeypatch, "row_order", wrong)
    found = found_in(exported("gguf", tmp_path, rng, grid=grid))
    assert found == {f"blk.{block}.attn_{part}.weight" for block in range(2) for part in "qk"}


def test_a_writer_that_orders_rows_where_llama_cpp_does_not_fails_verification(
    rng, tmp_path, monkeypatch
):
    everywhere(monkeypatch, "row_order", rolled)
    found = found_in(exported("gguf", tmp_path, rng, kind="qwen2"))
    parts = [f"blk.{block}.attn_q.{part}" for block in range(2) for part in ("weight", "bias")]
    assert found == set(parts)


def test_an_architecture_whose_row_order_is_not_known_is_refused(rng, tmp_path, monkeypatch):
    names = GgufNames("mpt", adjacent_rotary=True, rope_kinds=("default",))
    monkeypatch.setattr(gguf_exporter, "names_of", lambda decoder: names)
    exported("gguf", tmp_path, rng)
    with pytest.raises(BadInput, match="order of rows is not known for architecture 'mpt'"):
        verify(tmp_path)


RIGHT_PACK, RIGHT_UNPACK = packing.pack_words, packing.unpack_words


def pack_turned(codes, bits):
    """Codes from the last column to the first: `unpack_turned` undoes it."""
    return RIGHT_PACK(codes[:, ::-1], bits)


def unpack_turned(words, bits, columns):
    return RIGHT_UNPACK(words, bits, columns)[:, ::-1]


@pytest.mark.parametrize("name", ["mlx", "gptq", "compressed-tensors"])
@pytest.mark.parametrize("zeros", ["symmetric", "integer"])
def test_a_packing_that_only_the_core_can_undo_fails_verification(
    rng, tmp_path, monkeypatch, name, zeros
):
    exporter = load_exporter(name)
    exported(name, tmp_path, rng, grid=Grid(4, 32))  # loads the reader
    assert found_in(tmp_path) == set()
    everywhere(monkeypatch, "pack_words", pack_turned)
    everywhere(monkeypatch, "unpack_words", unpack_turned)
    model = solved(tiny(vocab_size=320), rng, [Grid(4, 32, zeros)])
    model.files = tokenizer_files()
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    exporter.write(model, wrong)
    assert {tensor for tensor in found_in(wrong) if "proj" in tensor} == {
        tensor for tensor in model.layers if "proj" in tensor
    }


def test_onnx_blocks_with_codes_in_another_order_fail_verification(rng, tmp_path, monkeypatch):
    right = onnx_blocks.pack_rows
    everywhere(monkeypatch, "pack_rows", lambda codes, bits: right(codes[:, ::-1], bits))
    found = found_in(exported("onnx", tmp_path, rng, grid=Grid(2, 32)))
    assert len([tensor for tensor in found if "proj" in tensor]) == 14


@pytest.mark.parametrize("bits", range(2, 9))
def test_words_are_read_bit_by_bit(rng, bits):
    codes = rng.integers(0, 2**bits, (3, 37))
    words = np.zeros((3, -(-37 * bits // 32)), np.int64)
    for row, column, bit in np.ndindex(3, 37, bits):
        place = column * bits + bit
        words[row, place // 32] |= (codes[row, column] >> bit & 1) << (place % 32)
    for kind in (np.uint32, np.int32):
        stored = words.astype(np.uint32).view(kind)
        np.testing.assert_array_equal(codes_in_words(stored, bits, 37), codes)
