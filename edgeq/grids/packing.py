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
    eights = -(-columns // 8)
    filled = np.pad(codes, ((0, 0), (0, 8 * eights - columns)))
    fields = np.uint64((2**bits - 1) * 0x0101010101010101)
    lanes = np.ascontiguousarray(filled).view("<u8") & fields  # eight codes, a byte each
    for width in (8, 16, 32):  # move the upper half of every two lanes down to the lower one
        lower = np.uint64((2**width - 1) * (2**64 - 1) // (2 ** (2 * width) - 1))
        upper = lanes & ~lower
        upper >>= np.uint64(width - bits * width // 8)
        lanes &= lower
        lanes |= upper
    packed = lanes.view(np.uint8).reshape(rows, eights, 8)[:, :, :bits].reshape(rows, -1)
    words = -(-columns * bits // WORD_BITS)
    stream = np.zeros((rows, 4 * words), np.uint8)
    used = min(packed.shape[1], stream.shape[1])
    stream[:, :used] = packed[:, :used]
    return stream.view("<u4")


def unpack_words(words: npt.NDArray[np.uint32], bits: int, columns: int) -> npt.NDArray[np.uint8]:
    """Undo `pack_words`.

    Shapes: words (out, n) -> codes (out, columns).
    """
    as_bytes = words.astype("<u4").view(np.uint8)
    stream = np.unpackbits(as_bytes, axis=1, count=columns * bits, bitorder="little")
    bits_of_codes = stream.reshape(words.shape[0], columns, bits)
    return np.packbits(bits_of_codes, axis=2, bitorder="little")[:, :, 0]
