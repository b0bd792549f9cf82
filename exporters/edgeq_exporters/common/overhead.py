"""Bound what an export holds beside its weights: headers, graphs, manifest, tokenizer, configs."""

from collections.abc import Mapping

from edgeq.decoder import ModelRecord

ENTRY = 1200  # bytes of a tensor in a header, a graph and a manifest: three names, hashes, sizes
FILES = 60_000  # bytes of configs, indices of shards and what a graph has beside its tensors
GROWN = 1.2  # companions are written again, indented in another way


def directory_overhead(record: ModelRecord, companions: Mapping[str, bytes]) -> int:
    """Count at most the bytes of an export's files beside those of its weights.

    Parts of a tensor (codes, scales, offsets) have places of their own.
    """
    tensors = len(record.decoder.tensor_shapes())
    files = sum(len(data) for data in companions.values())
    return FILES + int(GROWN * files) + 3 * ENTRY * tensors
