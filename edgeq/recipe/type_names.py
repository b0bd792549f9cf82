"""Names of llama.cpp's types and mixes as settings take them, in any spelling of their letters.

`edgeq.grids.types` says what each type is, `edgeq.recipe.mixes` what each mix is made of. Nothing
here loads NumPy: the options of the command line are made from these names.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edgeq.errors import BadInput
from edgeq.recipe.setting_rules import AUTOMATIC, DENSE_BITS, Rule

TYPES = (
    "Q2_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "TQ1_0",
    "TQ2_0",
)
"""The types that a layer can be solved on: those of `edgeq.grids.types`."""
BASES: Mapping[str, str] = {
    "Q2_K_S": "Q2_K",
    "Q2_K_M": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
}
"""The mixes, each with the type of the layers that it makes no exception for.

Q2_K_M is the mix that llama.cpp itself calls Q2_K, which here is the type alone.
"""
WIDTH = re.compile(r"(?:int|fp|bf|f)?-?(\d+)(?:[ -]?bits?)?", re.IGNORECASE)
"""What people call a number of bits: 4, int4, 4bit, fp16."""
CODEBOOKS = re.compile(r"IQ[123]_[A-Z]+")
NEAR_CODEBOOKS = {"1": ("TQ1_0", 2.6), "2": ("Q2_K_S", 2.8), "3": ("Q3_K_S", 3.4)}
"""Which type is nearest to the codebooks of so many bits, and which average."""
REPLACED = ("bits", "group_size", "zeros")
"""What a type says of a layer by itself, so that nothing else may."""


def type_rule(
    *others: str, mixes: bool = False, dense: bool = False, optional: bool = False
) -> Rule[Any]:
    """Allow names of types, and beside them mixes, other words, 16 for dense, or no value."""
    names = (*TYPES, *(BASES if mixes else ()))
    taken = (*names, *others)

    def normal(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if dense and value == str(DENSE_BITS):
            return DENSE_BITS
        return next((name for name in taken if name.lower() == value.lower()), value)

    def holds(value: Any) -> bool:
        known = normal(value)
        if isinstance(known, str):
            return known in taken
        is_dense = isinstance(known, int) and not isinstance(known, bool) and known == DENSE_BITS
        return (known is None and optional) or (dense and is_dense)

    what = "a type or mix" if mixes else "a type"
    more = "".join([*(f", {word!r}" for word in others), f", {DENSE_BITS}" if dense else ""])
    text = f"{what} of llama.cpp's ({', '.join(names)}){more}"
    return Rule(text, holds, str, normal=normal, hint=lambda value: hint(value, names))


def hint(value: Any, names: Sequence[str]) -> str:
    """Say what is wrong with a name, or which names are like it."""
    if not isinstance(value, str):
        return ""
    if CODEBOOKS.fullmatch(value.upper()):
        near, bits = NEAR_CODEBOOKS[value[2]]
        return (
            f"; {value.upper()} has codebooks of vectors, which edgeq does not make: "
            f"take {near}, or a budget of {bits} bits per weight"
        )
    width = WIDTH.fullmatch(value)
    if width:
        return f"; {value} is a number of bits: --bits {width[1]}, in recipes bits = {width[1]}"
    nearest = difflib.get_close_matches(value.upper(), names, n=3)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def hint_of_bits(value: Any) -> str:
    """Say what is meant by a number of bits that is none: a type, a width in words, an average."""
    if isinstance(value, float) and 1 < value < DENSE_BITS:
        return f"; for an average use --bits-per-weight {value:g}"
    if not isinstance(value, str):
        return ""
    named = next((name for name in (*TYPES, *BASES) if name.lower() == value.lower()), None)
    if named:
        return f'; {named} is a type: --type {named}, in recipes type = "{named}"'
    width = WIDTH.fullmatch(value)
    if width:
        return f"; did you mean {width[1]}?"
    average = re.fullmatch(r"\d+\.\d+", value)
    return f"; for an average use --bits-per-weight {value}" if average else ""


def check_type_alone(given: Mapping[str, Any], *, options: bool = False) -> None:
    """Refuse settings of one level that say a grid in two ways.

    Raises: BadInput.
    """

    def called(name: str) -> str:
        return f"--{name.replace('_', '-')}" if options else name

    named, equals = given.get("type"), "" if options else " ="
    both = [name for name in REPLACED if given.get(name) is not None]
    if named is not None and both:
        flag = option_of(both[0]) if options else both[0]
        raise BadInput(
            f"{called('type')}{equals} {named} says bits, groups and zeros itself; leave out {flag}"
        )
    chosen = given.get("embedding_type")
    if chosen is not None and given.get("embedding_bits") is not None:
        raise BadInput(
            f"{called('embedding_type')}{equals} {chosen} says bits and groups itself; "
            f"leave out {called('embedding_bits')}"
        )


def option_of(name: str) -> str:
    """Write one of the settings that a type replaces as its option."""
    return "--symmetric or --asymmetric" if name == "zeros" else f"--{name.replace('_', '-')}"


def check_options_beside(stated: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Refuse options that change groups or zeros of the type that a recipe file states.

    Raises: BadInput.
    """
    changed = [name for name in REPLACED if name in chosen]
    if stated.get("type") is not None and changed and not {"type", "bits"} & chosen.keys():
        flag = option_of(changed[0])
        raise BadInput(
            f"the recipe's type = {stated['type']!s:.60} says bits, groups and zeros itself; "
            f"leave out {flag}, or give --bits too"
        )


def check_types_are_asked(given: Mapping[str, Any], types: Collection[str | None]) -> None:
    """Refuse settings that go by types where no layer has one; else they would change nothing.

    types are those of the recipe and its overrides, None where bits are said.

    Raises: BadInput.
    """
    narrow = given.get("narrow_type", AUTOMATIC)
    if narrow != AUTOMATIC and not any(types):
        raise BadInput(
            f"narrow_type = {narrow} is for layers that a type does not fit, and none is to have "
            "a type; set type too, or leave out narrow_type"
        )
    if given.get("embedding_type") == AUTOMATIC and given.get("type") is None:
        raise BadInput(
            "embedding_type = auto goes by the type of linear layers, which is not set; "
            "set type, name a type such as Q6_K, or set embedding_bits instead"
        )


def without_replaced(stated: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a recipe file states of grids where options say it in the other way."""
    replaced: set[str] = set()
    if "type" in chosen:
        replaced |= {*REPLACED, "embedding_bits"} - {*chosen}
    if "bits" in chosen:
        replaced |= {"type", "narrow_type"}
        if stated.get("embedding_type") == AUTOMATIC:
            replaced.add("embedding_type")
    if "embedding_type" in chosen:
        replaced.add("embedding_bits")
    if "embedding_bits" in chosen:
        replaced.add("embedding_type")
    return {name: value for name, value in stated.items() if name not in replaced}
