"""Change JSON so that it keeps a structure: values, keys, types, tokens that no type has."""

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DEEP = 100_000  # levels: far beyond any limit of recursion
LONG = 1 << 16


@dataclass(frozen=True, slots=True)
class Token:
    """Something that is written as it stands, such as NaN or an escape of half a surrogate pair."""

    text: str


NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    3,
    7,
    9,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    -(2**63),
    0.5,
    -0.0,
    1e-320,
    1e38,
    1e308,
    "",
    " ",
    "\0",
    "a\nb",
    "\x1b[2J",
    "x" * 300,
    "x" * LONG,
    "..",
    "../canary/kept.txt",
    "/dev/zero",
    "/etc/passwd",
    "model.safetensors",
    "\u2028\u202e",
    [],
    {},
    [None],
    [[]],
    [0] * 1000,
    Token("[" + '"x",' * LONG + '"x"]'),
    {"": ""},
    {"a": {"b": {"c": []}}},
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "BOOL",
    "I64",
    "U8",
    "U64",
    "F64",
    "BF16",
    "F16",
    "C64",
    "float8_e4m3fn",
    "bfloat16",
    "auto",
    "symmetric",
    "offset",
    "exact",
    "dense",
    "widened",
    "rescaled",
    "gguf",
    "onnx",
    "mlx",
    "qwen2",
    "mistral",
    "llama3",
    "yarn",
    Token("NaN"),
    Token("Infinity"),
    Token("-Infinity"),
    Token("1e999"),
    Token("-0"),
    Token("9" * 5000),
    Token('"\\ud800"'),
    Token('"\\udfff\\ud800"'),
    Token("[" * DEEP),
    Token("[" * 900 + "]" * 900),
    Token('{"a":' * 900 + "1" + "}" * 900),
    Token("01"),
    Token("'x'"),
    Token("/**/1"),
    Token('"\x01"'),
    Token(""),
)


def mutate_json(chance: random.Random, content: bytes) -> bytes:
    """Change one to three places of a JSON text."""
    tree = json.loads(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        tree = change_place(chance, tree)
    try:
        return dumped(tree).encode("utf-8", "surrogatepass")
    except RecursionError:  # a branch was put into itself
        return content[: len(content) // 2]


def change_place(chance: random.Random, tree: Any) -> Any:
    """Change a random place of a tree, in it; a new tree where its root is replaced."""
    places = list(places_of(tree))
    if not places or chance.random() < 0.02:
        return nasty(chance)
    holder, key = chance.choice(places)
    kind = chance.randrange(9)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        name = chance.choice((key + "x", "", "\0", "unknown", "../x", f"{key}\u202e", "x" * 300))
        holder[name] = holder.pop(key)
    elif kind == 2:
        other_holder, other_key = chance.choice(places)
        holder[key], other_holder[other_key] = other_holder[other_key], holder[key]
    elif kind == 3:
        holder[key] = other_type(chance, holder[key])
    elif kind in (4, 5):
        holder[key] = near(chance, holder[key])
    elif kind == 6 and isinstance(holder, dict):
        # written a second time, which JSON allows: the last one counts
        holder[Twin(key)] = near(chance, holder[key])
    else:
        holder[key] = nasty(chance)
    return tree


def nasty(chance: random.Random) -> Any:
    """Choose a value that readers may not expect, a new one each time."""
    return copy.deepcopy(chance.choice(NASTY))


class Twin(str):
    """A key that is equal to none, so that a dictionary holds it twice."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = str.__hash__


def places_of(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a tree: what holds it, and its key or index there."""
    stack, seen = [tree], set()
    while stack:
        holder = stack.pop()
        if id(holder) in seen:  # a branch was put into itself
            continue
        seen.add(id(holder))
        items: Any = ()
        if isinstance(holder, dict):
            items = list(holder.items())
        elif isinstance(holder, list):
            items = list(enumerate(holder[:500]))
        for key, value in items:
            yield holder, key
            if isinstance(value, dict | list):
                stack.append(value)


def other_type(chance: random.Random, value: Any) -> Any:
    """Give a value in another type: as text, in a list, as the keys of an object."""
    if isinstance(value, Token):
        return [value]
    changed = [str(value)[:1000], [value], {"value": value}, [value, value]]
    if isinstance(value, dict):
        changed.append(list(value.items())[:100])
    if isinstance(value, list):
        changed += [{str(place): item for place, item in enumerate(value)}, len(value)]
    if isinstance(value, int | float):
        changed += [float(value), -value, value != 0]
    return chance.choice(changed)


def near(chance: random.Random, value: Any) -> Any:
    """Give a value that is almost the same."""
    changed: list[Any] = [value]
    if isinstance(value, bool) or value is None:
        changed = [not value]
    elif isinstance(value, int):
        changed = [value + 1, value - 1, value * 2, value // 2, -value, value + 2**32]
    elif isinstance(value, float):
        changed = [value * 1.5, -value, value * 1e30, value / 1e30, value // 1]
    elif isinstance(value, str):
        place = chance.randrange(len(value) + 1)
        letters = ("", "x", "0", ".", "/", "\0", "é", "\ud800")
        changed = [value[:place] + letter + value[place + 1 :] for letter in letters]
    elif isinstance(value, list):
        changed = [value[:-1], value + value[:1], value[::-1], value * 2]
    elif isinstance(value, dict):
        changed = [dict(list(value.items())[: len(value) // 2])]
    return chance.choice(changed)


def dumped(tree: Any) -> str:
    """Write a tree as JSON with its tokens as they stand, without a limit of depth."""
    if isinstance(tree, Token):
        return tree.text
    if isinstance(tree, dict):
        inside = (f"{json.dumps(str(key))}: {dumped(value)}" for key, value in tree.items())
        return "{" + ", ".join(inside) + "}"
    if isinstance(tree, list | tuple):
        return "[" + ", ".join(map(dumped, tree)) + "]"
    return json.dumps(tree)
