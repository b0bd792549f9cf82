import numpy as np
import pytest

from edgeq.grids.packing import pack_words, unpack_words


@pytest.mark.parametrize("columns", [1, 3, 31, 32, 33, 64, 341])
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_back_from_words(rng, bits, columns):
    codes = rng.integers(0, 2**bits, (3, columns), dtype=np.uint8)
    words = pack_words(codes, bits)
    assert words.dtype == np.uint32
    assert words.shape == (3, -(-columns * bits // 32))
    np.testing.assert_array_equal(unpack_words(words, bits, columns), codes)


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_words_are_one_little_endian_stream_of_bits(rng, bits):
    codes = rng.integers(0, 2**bits, (2, 19), dtype=np.uint8)
    for row, words in zip(codes, pack_words(codes, bits), strict=True):
        stream = sum(int(code) << (bits * place) for place, code in enumerate(row))
        assert words.tobytes() == stream.to_bytes(4 * len(words), "little")


def test_four_bit_codes_are_nibbles_with_the_first_one_lowest():
    words = pack_words(np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9]], dtype=np.uint8), 4)
    assert words.tolist() == [[0x87654321, 0x00000009]]


def test_three_bit_codes_cross_word_borders():
    words = pack_words(np.array([[7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]], dtype=np.uint8), 3)
    assert words.tobytes() == b"\x07\x00\x00\x40\x01\x00\x00\x00"


def test_words_of_a_column_slice_or_in_other_memory_order_are_the_same(rng):
    codes = rng.integers(0, 8, (4, 40), dtype=np.uint8)
    np.testing.assert_array_equal(pack_words(np.asfortranarray(codes), 3), pack_words(codes, 3))
    np.testing.assert_array_equal(
        pack_words(codes[::2, 1::3], 3), pack_words(codes[::2, 1::3].copy(), 3)
    )
