"""Read tensors so that damage is found, and named, where it enters."""

from collections import Counter
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from edgeq.decoder import Decoder
from edgeq.errors import DamagedModel
from edgeq.protocols import ModelSource
from edgeq.types import BlockSpec, LinearSpec, NumpyArray

STACKS_AT_ONCE = 2  # of a mixture: what reads its input, and what comes behind


def read_tensor(source: ModelSource, name: str) -> NumpyArray:
    """Read a tensor as the source stores it.

    Raises: DamagedModel when it holds NaN or infinity, and where a linear layer or an embedding is
    all zeros; one that a grid has rounded to them may be.
    """
    tensor = source.read(name)
    largest = largest_magnitude(tensor)
    if np.isfinite(largest) and (largest > 0 or may_be_zeros(source, name)):
        return tensor
    found = "holds NaN or infinity"
    if largest == 0:
        found = "is all zeros, as an interrupted download leaves it"
    raise DamagedModel(
        f"tensor {name!r} of {source.record.name!r} {found}; fetch the checkpoint again"
    )


def largest_magnitude(tensor: NumpyArray) -> float:
    """Find the largest absolute value of a tensor of floats; NaN or infinity where it has some.

    Floats without their sign bit are in the order of whole numbers: two fast passes, and no copy.
    """
    if not tensor.size:
        return 0.0
    bits = 8 * tensor.dtype.itemsize
    sign = 1 << (bits - 1)
    of_positive = max(0, int(tensor.view(f"i{bits // 8}").max()))
    of_negative = max(0, int(tensor.view(f"u{bits // 8}").max()) - sign)
    largest = np.array(max(of_positive, of_negative), dtype=f"u{bits // 8}")
    return float(largest.view(tensor.dtype))


def may_be_zeros(source: ModelSource, name: str) -> bool:
    """Say whether a sound tensor may hold nothing but zeros: any but linear layers and embeddings.

    Biases may, convolutions and others, and the weights of norms unless it is known that nothing is
    added to them.
    """
    grid_of = getattr(source, "grid", None)  # of a quantized checkpoint
    if grid_of is not None and grid_of(name) is not None:
        return True
    return not (is_multiplied(source.record.decoder, name) or is_plain_norm(source, name))


def is_plain_norm(source: ModelSource, name: str) -> bool:
    """Say whether a tensor is the weight of a norm that is known to be multiplied as it is."""
    decoder = source.record.decoder
    if decoder.norm_offset or any(layer.mlp is None for layer in decoder.layers):
        return False
    inner = name.removeprefix(f"{decoder.blocks}.").partition(".")[2]
    in_block = any(norm.tensor == inner for norm in decoder.layers[0].norms)
    return name == decoder.final_norm or in_block


def is_multiplied(decoder: Decoder, name: str) -> bool:
    """Say whether a tensor is an embedding, a head, or the weights of linear layers."""
    return name in (decoder.embedding, decoder.head) or decoder.linear_of(name) is not None


def read_weight(source: ModelSource, name: str) -> NumpyArray:
    """Read a tensor in float32.

    Raises: DamagedModel, as `read_tensor` does.
    """
    return read_tensor(source, name).astype(np.float32, copy=False)


def read_matrix(source: ModelSource, name: str) -> NumpyArray:
    """Read a tensor in float32 as the matrix that is solved, outputs before inputs.

    Raises: DamagedModel, as `read_tensor` does.
    """
    weight, linear = read_weight(source, name), source.record.decoder.linear_of(name)
    return weight if linear is None else linear.matrix_of(weight)


def read_linear(source: ModelSource, linear: LinearSpec) -> NumpyArray:
    """Read the weight of a linear layer in float32, out of the tensor that holds it.

    Shapes: (out, in).
    Raises: DamagedModel, as `read_tensor` does.
    """
    return linear.weight_in(read_weight(source, linear.tensor))


def weight_reader(source: ModelSource, block: BlockSpec) -> Callable[[LinearSpec], NumpyArray]:
    """Make what reads the weights of a block's layers, in float32.

    A tensor that holds several of them is kept until others are read.
    """
    shared = Counter(linear.tensor for linear in block.linears)
    keep = lru_cache(maxsize=STACKS_AT_ONCE)(partial(read_weight, source))

    def read(linear: LinearSpec) -> NumpyArray:
        if shared[linear.tensor] > 1:
            return linear.weight_in(keep(linear.tensor))
        return read_linear(source, linear)

    return read
