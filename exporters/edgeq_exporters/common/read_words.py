"""Read codes back from 32-bit words, for the readers of exports.

MLX, GPTQ and compressed-tensors store a row of codes as one little-endian stream of bits.
Writers pack with `edgeq.grids.packing`, which this module does not use.
"""

import numpy as np

from edgeq.types import NumpyArray

WORD_BITS = 32


def codes_in_words(words: NumpyArray, bits: int, count: int) -> NumpyArray:
    """Read the first `count` codes of each row of words, by arithmetic on the words themselves.

    Shapes: words (rows, n), 32-bit of either sign -> codes (rows, count) uint8.
    Raises: IndexError when the words are too few.
    """
    if words.ndim != 2 or words.dtype.itemsize * 8 != WORD_BITS:
        raise IndexError(f"codes lie in {words.dtype} {list(words.shape)}, not in rows of words")
    if not 0 <= count * bits <= words.shape[1] * WORD_BITS:
        raise IndexError(f"{words.shape[1]} words do not hold {count} codes of {bits} bits")
    start = np.arange(count) * bits
    word, shift = start // WORD_BITS, (start % WORD_BITS).astype(np.uint64)
    wide = np.ascontiguousarray(words).view(np.uint32).astype(np.uint64)
    last = np.zeros((len(wide), 1), np.uint64)  # a code at the very end reaches into no next word
    following = np.concatenate([wide[:, 1:], last], axis=1)
    pairs = wide[:, word] | following[:, word] << np.uint64(WORD_BITS)
    codes: NumpyArray = (pairs >> shift & np.uint64(2**bits - 1)).astype(np.uint8)
    return codes
