"""Change the bytes of an input: anywhere, or where its format has lengths, counts and types."""

import json
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

import onnx

from benchmarks.fuzz.json_text import NASTY, mutate_json

Mutation = Callable[[random.Random, bytes], bytes]

EXTREMES = (0, 1, 2, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
WIDE_EXTREMES = (*EXTREMES, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TOML_VALUES = (
    *("-1", "0", "1", "3", "16", "17", "1e400", "-inf", "nan", "0.1", "9223372036854775807"),
    *("9223372036854775808", "1_0", "0x10", '""', '"row"', '"auto"', '"x"', "[]", "{}", "true"),
    *("1979-05-27", "[1, [2]]", '"\\u0000"', '"\\ud800"', "{a.b = 1}", "[[1]]", "'", '"""x'),
    *("9" * 5000, "[" * 5000, '"both"', '"best"', '["*"]', "{layers = '*'}"),
)


def mutate_bytes(chance: random.Random, content: bytes, *, header: int = 512) -> bytes:
    """Change one to three places, most of them among the first `header` bytes."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        change_bytes(chance, data, header)
    return bytes(data)


def change_bytes(chance: random.Random, data: bytearray, header: int) -> None:
    """Change one place, in the bytes themselves."""
    reach = min(header, len(data)) if chance.random() < 0.8 else len(data)
    place = chance.randrange(reach) if reach else 0
    kind = chance.randrange(8)
    if not data or kind == 0:
        data[place:place] = chance.randbytes(chance.choice((1, 4, 8, 100)))
    elif kind == 1:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == 2:
        data[place] = chance.choice((0, 1, 10, 34, 92, 127, 128, 192, 237, 255))
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        del data[place : place + chance.choice((1, 2, 4, 8, 32))]
    elif kind == 5:
        other, length = chance.randrange(len(data)), chance.choice((1, 4, 8, 32))
        moved = bytes(data[place : place + length])
        data[other : other + len(moved)] = moved
    elif kind == 6:
        put_number(chance, data, place, chance.choice((4, 8)))
    else:
        data[place:place] = data[place : place + chance.choice((8, 64, 1000))]


def put_number(chance: random.Random, data: bytearray, place: int, size: int) -> None:
    """Write an extreme number, or one near that which is there."""
    before = int.from_bytes(data[place : place + size], "little")
    values = WIDE_EXTREMES if size == 8 else EXTREMES
    number = chance.choice((*values, before + 1, before - 1, before * 2, before + 2**20))
    data[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")


def mutate_text_json(chance: random.Random, content: bytes) -> bytes:
    """Change JSON by its structure, or by bytes now and then."""
    if chance.random() < 0.1:
        return mutate_bytes(chance, content, header=len(content))
    return mutate_json(chance, content)


def mutate_lines(chance: random.Random, content: bytes) -> bytes:
    """Change a line of JSON lines, or bytes."""
    if chance.random() < 0.4:
        return mutate_bytes(chance, content, header=len(content))
    lines = content.split(b"\n")
    place = chance.randrange(len(lines))
    lines[place] = mutate_json(chance, lines[place])
    return b"\n".join(lines)


def mutate_safetensors(chance: random.Random, content: bytes) -> bytes:
    """Change the header by its structure and state its new length, or change bytes."""
    length = int.from_bytes(content[:8], "little")
    if chance.random() < 0.4:
        return mutate_bytes(chance, content, header=8 + length)
    header = mutate_header(chance, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def mutate_header(chance: random.Random, header: bytes) -> bytes:
    """Change a safetensors header; half of the time the type of a tensor, or the grids of edgeq."""
    tree = json.loads(header)
    tensors = [name for name in tree if name != "__metadata__"]
    kind = chance.randrange(6)
    if kind == 0:
        tree[chance.choice(tensors)]["dtype"] = chance.choice(
            (
                "F8_E4M3",
                "F8_E5M2",
                "F8_E8M0",
                "F4",
                "F16",
                "BF16",
                "F64",
                "I64",
                "U8",
                "BOOL",
                "C64",
            )
        )
    elif kind == 1:
        place = tree[chance.choice(tensors)]
        place["shape"] = chance.choice(([], place["shape"][::-1], [1, *place["shape"]], [0]))
    elif kind == 2 and "edgeq" in tree.get("__metadata__", {}):
        grids = tree["__metadata__"]["edgeq"]
        changed = mutate_json(chance, grids.encode()).decode("utf-8", "replace")
        tree["__metadata__"]["edgeq"] = changed
    else:
        return mutate_json(chance, header)
    return json.dumps(tree).encode()


def mutate_gguf(chance: random.Random, content: bytes) -> bytes:
    """Change a number or text of a GGUF header where it lies, or bytes."""
    if chance.random() < 0.3:
        return mutate_bytes(chance, content, header=12_000)
    data = bytearray(content)
    fields = fields_of_gguf(content)
    for _ in range(chance.choice((1, 1, 2))):
        kind, place, size = chance.choice(fields)
        if kind == "number" or chance.random() < 0.5:
            put_number(chance, data, place, size if kind == "number" else 8)
        else:
            wide = max(size, 1)
            data[place + 8 + chance.randrange(wide)] = chance.randrange(256)
    return bytes(data)


SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
MOST_ITEMS = 4  # of an array, as fields: vocabularies would outweigh all else


def fields_of_gguf(content: bytes) -> list[tuple[str, int, int]]:
    """List the numbers and texts of a GGUF header: kind, first byte, size in bytes.

    A text's size is that of its letters, which follow eight bytes of length.
    """
    found = [("number", 4, 4), ("number", 8, 8), ("number", 16, 8)]
    tensors, pairs = struct.unpack_from("<QQ", content, 8)
    place = 24

    def text(*, kept: bool = True) -> None:
        nonlocal place
        length = int.from_bytes(content[place : place + 8], "little")
        if kept:
            found.append(("text", place, length))
        place += 8 + length

    def number(size: int, *, kept: bool = True) -> int:
        nonlocal place
        if kept:
            found.append(("number", place, size))
        place += size
        return int.from_bytes(content[place - size : place], "little")

    def value(kind: int, *, kept: bool = True) -> None:
        if kind == 8:
            text(kept=kept)
        elif kind == 9:
            inner, count = number(4), number(8)
            for index in range(count):
                value(inner, kept=index < MOST_ITEMS)
        else:
            number(SIZES[kind], kept=kept)

    for _ in range(pairs):
        text()
        value(number(4))
    for _ in range(tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return found


def mutate_onnx(chance: random.Random, content: bytes) -> bytes:
    """Change nodes, attributes and initializers of a graph, or bytes."""
    if chance.random() < 0.3:
        return mutate_bytes(chance, content, header=len(content))
    model = onnx.ModelProto.FromString(content)
    change_node(chance, model) if chance.random() < 0.5 else change_initializer(chance, model)
    return model.SerializeToString()


def change_node(chance: random.Random, model: Any) -> None:
    """Change what a node reads, computes or is told."""
    node = chance.choice(model.graph.node)
    kind = chance.randrange(5)
    if kind == 0:
        model.graph.node.remove(node)
    elif kind == 1 and node.input:
        place = chance.randrange(len(node.input))
        other = chance.choice(model.graph.node)
        node.input[place] = chance.choice(("", "x", *other.input, *other.output))
    elif kind == 2 and node.input:
        del node.input[chance.randrange(len(node.input)) :]
    elif kind == 3 and node.attribute:
        attribute = chance.choice(node.attribute)
        attribute.i = chance.choice((-1, 0, 1, 2, 3, 8, 16, 64, 2**31, 2**63 - 1))
    else:
        node.op_type = chance.choice(("MatMul", "Gather", "Slice", "Add", "", "MatMulNBits"))


def change_initializer(chance: random.Random, model: Any) -> None:
    """Change type, shape, name or place of an initializer."""
    tensor = chance.choice(model.graph.initializer)
    kind = chance.randrange(6)
    if kind == 0:
        tensor.data_type = chance.choice((0, 1, 2, 5, 8, 10, 11, 16, 17, 21, 22, 23, 99, 2**31 - 1))
    elif kind == 1 and tensor.dims:
        place = chance.randrange(len(tensor.dims))
        tensor.dims[place] = chance.choice((-1, 0, 1, 2**31, 2**40, 2**62))
    elif kind == 2:
        tensor.name = chance.choice(("", "x", "\0", chance.choice(model.graph.initializer).name))
    elif kind == 3:
        model.graph.initializer.remove(tensor)
    elif tensor.external_data:
        entry = chance.choice(tensor.external_data)
        numbers = [str(number) for number in (-1, 1, 2**40, 2**64)]
        entry.value = chance.choice(
            ("", "x", "../canary/kept.txt", "/dev/zero", "/etc/passwd", "manifest.json", *numbers)
        )
    else:
        tensor.raw_data = chance.randbytes(chance.choice((0, 1, 4, 1000)))


def mutate_toml(chance: random.Random, content: bytes) -> bytes:
    """Change a line of a recipe, or bytes."""
    if chance.random() < 0.3:
        return mutate_bytes(chance, content, header=len(content))
    lines = content.decode().split("\n")
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.randrange(len(lines))
        name, separator, _ = lines[place].partition(" = ")
        kind = chance.randrange(6)
        if kind == 0:
            del lines[place]
        elif kind == 1:
            lines.insert(chance.randrange(len(lines) + 1), lines[place])
        elif kind == 2:
            lines[place] = chance.choice(("[overrides]", "[[x]]", "x = 1", "[[overrides]]", "]"))
        elif separator:
            lines[place] = f"{name} = {chance.choice(TOML_VALUES)}"
        if not lines:
            lines = [""]
    return "\n".join(lines).encode()


BY_ENDING: Mapping[str, Mutation] = {
    ".json": mutate_text_json,
    ".jsonl": mutate_lines,
    ".safetensors": mutate_safetensors,
    ".gguf": mutate_gguf,
    ".onnx": mutate_onnx,
    ".toml": mutate_toml,
}

__all__ = ["BY_ENDING", "NASTY", "mutate_bytes", "mutate_text_json"]
