"""Pack codes into machine words and back: one little-endian bit stream per row.

That is the layout of the quantized checkpoint; formats with another one lay out their own.
"""

import numpy as np
import numpy.typing as npt

WORD_BITS = 32


def pack_words(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint32]:
    """Lay each row's codes out as one bit stream, lowest bit first, filled up with zeros.

    Shapes: codes (out, in) -> words (out, ceil(in * bits / 32)).
    """
    rows, columns = codes.shape
    bits_of_codes = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little")
    stream = bits_of_codes.reshape(rows, columns * bits)
    words = -(-columns * bits // WORD_BITS)
    padded = np.packbits(stream, axis=1, bitorder="little")
    padded = np.pad(padded, ((0, 0), (0, words * 4 - padded.shape[1])))
    return np.ascontiguousarray(padded).view("<u4")


def unpack_words(words: npt.NDArray[np.uint32], bits: int, columns: int) -> npt.NDArray[np.uint8]:
    """Undo `pack_words`.

    Shapes: words (out, n) -> codes (out, columns).
    """
    as_bytes = words.astype("<u4").view(np.uint8)
    stream = np.unpackbits(as_bytes, axis=1, count=columns * bits, bitorder="little")
    bits_of_codes = stream.reshape(words.shape[0], columns, bits)
    return np.packbits(bits_of_codes, axis=2, bitorder="little")[:, :, 0]
