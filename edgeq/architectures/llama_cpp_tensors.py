"""Say which tensors a GGUF file has for those of a checkpoint, and what is done to their values.

It reads both ways: whoever writes a file makes it by these rules, whoever reads one undoes them.
Names come from the table of the gguf library, which the caller looks them up in.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeq.architectures.features import GROUPED
from edgeq.decoder import Attention, Decoder, Layer
from edgeq.types import LinearSpec

Rows = npt.NDArray[np.intp]
Find = Callable[[str], str | None]
"""Gives llama.cpp's name for a tensor of a checkpoint, or None."""
PREFIX = "transformer."  # which some checkpoints have and the table of names has not


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of a GGUF file, and the tensors of a checkpoint that it is made of.

    sources is one tensor, or one for each expert, by their numbers; stacked: they then lie along a
    first axis of their own. rows has the order in which the file stores the rows of each source:
    its row i is row rows[i] of the source; None for the same order. transposed: the checkpoint has
    inputs before outputs. added is what the file's values are larger by.
    """

    name: str
    sources: tuple[str, ...]
    stacked: bool = False
    rows: Rows | None = None
    transposed: bool = False
    added: float = 0.0


def file_tensors(decoder: Decoder, find: Find) -> list[FileTensor]:
    """List the tensors of a file in the order of execution; those without a name are left out."""
    linears = {linear.tensor: linear for linear in decoder.linears()}
    norms = set(norm_weights(decoder))
    found: dict[str, FileTensor] = {}
    for tensor in decoder.tensor_shapes():
        linear = linears.get(tensor)
        number = None if linear is None or len(linear.stored_shape) == 3 else linear.expert
        name = find_name(tensor if number is None else without_number(tensor, number), find)
        if name is None:
            continue
        if name in found and number is not None:
            before = found[name]
            found[name] = replace(before, sources=(*before.sources, tensor))
            continue
        found[name] = FileTensor(
            name,
            (tensor,),
            stacked=number is not None,
            rows=row_order(tensor, decoder),
            transposed=linear is not None and linear.transposed,
            added=decoder.norm_offset if tensor in norms else 0.0,
        )
    return list(found.values())


def find_name(tensor: str, find: Find) -> str | None:
    """Look a name up as the checkpoint has it, and in the spellings that the table has instead."""
    spellings = (tensor, tensor.removeprefix(PREFIX), tensor.replace("correction_bias", "bias"))
    return next((name for name in map(find, spellings) if name is not None), None)


def without_number(tensor: str, expert: int) -> str:
    """Name what all experts have in common: "mlp.experts.5.up_proj.weight" without its number."""
    before, _, behind = tensor.rpartition(f".{expert}.")
    return f"{before}.{behind}"


def norm_weights(decoder: Decoder) -> Iterator[str]:
    """Name the weights of all norms."""
    for index, layer in enumerate(decoder.layers):
        for norm in layer.norms:
            yield f"{decoder.block_name(index)}.{norm.tensor}"
    if decoder.final_norm:
        yield decoder.final_norm


def row_order(source_name: str, decoder: Decoder) -> Rows | None:
    """Give the order in which GGUF stores the rows of a tensor; None for the checkpoint's order.

    Most checkpoints rotate rows of q and k that lie half a head apart. For some architectures
    llama.cpp rotates neighbouring rows instead: each head then goes from [2, rotated / 2] to
    [rotated / 2, 2]. It wants all queries, then all keys, then all values, where some checkpoints
    have a group of query heads with its key and value after the other.

    Shapes: (out,).
    """
    names, layer = decoder.names.gguf, layer_of(source_name, decoder)
    if names is None or layer is None or layer.attention is None:
        return None
    place = input_number(source_name, layer.sites[0])
    if place is None:
        return None
    if len(layer.sites[0]) == 1:
        return ungrouped_rows(layer.attention) if GROUPED in decoder.traits else None
    if place == 2 or names.adjacent_rotary == decoder.rope.adjacent:
        return None
    attention = layer.attention
    heads = (attention.heads, attention.key_heads)[place]
    rows = adjacent_rows(heads, attention.head_size, int(attention.head_size * decoder.rope.part))
    return rows if names.adjacent_rotary else reversed_rows(rows)


def layer_of(tensor: str, decoder: Decoder) -> Layer | None:
    """Find the block that a tensor lies in; None for those outside of the blocks."""
    index, _, _ = tensor.removeprefix(f"{decoder.blocks}.").partition(".")
    inside = tensor.startswith(f"{decoder.blocks}.{index}.") and index.isdecimal()
    return decoder.layers[int(index)] if inside and int(index) < len(decoder.layers) else None


def input_number(tensor: str, site: tuple[LinearSpec, ...]) -> int | None:
    """Find which layer of a site a tensor is the weight or bias of; None for none."""
    for number, linear in enumerate(site):
        if tensor.endswith((f".{linear.tensor}", f".{linear.bias}")):
            return number
    return None


def adjacent_rows(heads: int, size: int, rotated: int) -> Rows:
    """Put rows that lie half of the rotated ones apart beside each other, head by head."""
    rows = np.arange(heads * size, dtype=np.intp).reshape(heads, size)
    turned = rows[:, :rotated].reshape(heads, 2, -1).swapaxes(1, 2).reshape(heads, -1)
    return np.concatenate([turned, rows[:, rotated:]], axis=1).reshape(-1)


def ungrouped_rows(attention: Attention) -> Rows:
    """Order the rows of fused queries, keys and values by these three instead of by groups."""
    groups, size = attention.key_heads, attention.head_size
    count = groups * (attention.heads // groups + 2) * size
    rows = np.arange(count, dtype=np.intp).reshape(groups, -1, size)
    parts = (rows[:, :-2], rows[:, -2], rows[:, -1])
    return np.concatenate([part.reshape(-1) for part in parts])


def reversed_rows(rows: Rows) -> Rows:
    """Give the order that undoes another: data[rows][reversed_rows(rows)] is data again."""
    return np.argsort(rows).astype(np.intp)
