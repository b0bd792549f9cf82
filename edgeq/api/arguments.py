"""Read the arguments of functions, and say what is wrong with them in the words of Python.

The same run functions serve the command line, and their messages name its options. Here these
become the arguments that stand for them.
"""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from edgeq.errors import BadInput, EdgeqError
from edgeq.recipe.setting_rules import shown

PathLike = str | os.PathLike[str]

FLAGS = {"force", "resume", "evaluate", "run"}
"""Options without a value: arguments that are True."""
OPTION = re.compile(
    r"--(?P<name>[a-z]+(?:-[a-z]+)*)(?: (?P<word>fast|balanced|best|cpu|cuda|mps|mlx|reference|rtn"
    r"|gptq|quantease)\b| (?=[\d'\"]))?"
)
COMMAND = re.compile(r"\b(?:edgeq|llama-\w+|pip|uv) [a-z-]+ .*?(?=; |$)")
"""A command to type in a shell, which stays as it is."""
SYMMETRIC = "--symmetric or --asymmetric"


def in_python_words(text: str) -> str:
    """Write the arguments of functions where a message names options of the command line."""
    parts, end = [], 0
    for command in COMMAND.finditer(text):
        parts += [_arguments(text[end : command.start()]), command[0]]
        end = command.end()
    return "".join([*parts, _arguments(text[end:])])


def _arguments(text: str) -> str:
    return OPTION.sub(_argument, text.replace(SYMMETRIC, "zeros"))


def _argument(found: re.Match[str]) -> str:
    name = found["name"].replace("-", "_")
    if name in FLAGS:
        return f"{name}=True{found[0][len(name) + 2 :]}"
    if name in {"symmetric", "asymmetric"}:
        return f'zeros="{name}"'
    if found["word"]:
        return f'{name}="{found["word"]}"'
    return f"{name}=" if found[0].endswith(" ") else name


@contextmanager
def python_words() -> Iterator[None]:
    """Have the errors of what is called inside name arguments instead of options."""
    try:
        yield
    except EdgeqError as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (in_python_words(error.args[0]), *error.args[1:])
        raise


def check_names(function: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse keyword arguments that a function does not have, as Python does, with the nearest one.

    Raises: TypeError.
    """
    for name in given:
        if name not in known:
            by_letters = {each.lower(): each for each in sorted(known)}
            near = difflib.get_close_matches(name.lower(), by_letters, n=1, cutoff=0.0)
            nearest = by_letters[near[0]]
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; "
                f"did you mean {nearest!r}?"
            )


def text_of(name: str, value: object) -> str:
    """Read an argument that is text.

    Raises: BadInput.
    """
    if not isinstance(value, str) or not value:
        raise BadInput(f"{name} = {short(value)}: expected a text that is not empty")
    return value


def path_text(name: str, value: object) -> str:
    """Read a name or path as the command line does, with ~ for the home directory.

    Raises: BadInput.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise BadInput(f"{name} = {short(value)}: expected a path, as a str or os.PathLike")
    text = os.fspath(value)
    if not text or "\0" in text:
        raise BadInput(f"{name} = {short(text)}: expected a path that is not empty, without NUL")
    return os.path.expanduser(text)


def path_of(name: str, value: object) -> Path:
    """Read a path; see `path_text`."""
    return Path(path_text(name, value))


def optional_path(name: str, value: object) -> Path | None:
    """Read a path that may be None."""
    return None if value is None else path_of(name, value)


def listed(name: str, value: object) -> tuple[Any, ...]:
    """Read one thing, or several in a list or tuple; None for nothing.

    Raises: BadInput.
    """
    if value is None:
        return ()
    if isinstance(value, str | os.PathLike):
        return (value,)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return tuple(value)
    raise BadInput(f"{name} = {short(value)}: expected a str, or a list of them")


def texts_of(name: str, value: object) -> tuple[str, ...]:
    """Read names: a str, or a list of them.

    Raises: BadInput.
    """
    return tuple(text_of(name, item) for item in listed(name, value))


def paths_of(name: str, value: object) -> tuple[str, ...]:
    """Read names of texts: strings as the command line takes them, or paths, which are files.

    Raises: BadInput.
    """
    found = []
    for item in listed(name, value):
        text = path_text(name, item)
        is_path = not isinstance(item, str)
        # a Path has lost the ./ in front by which a file is told from the words self and default
        found.append(
            os.path.join(os.curdir, text) if is_path and os.path.basename(text) == text else text
        )
    return tuple(found)


def switch_of(name: str, value: object) -> bool:
    """Read True or False.

    Raises: BadInput.
    """
    if not isinstance(value, bool):
        raise BadInput(f"{name} = {short(value)}: expected True or False")
    return value


def whole_of(name: str, value: object, least: int) -> int:
    """Read a whole number, at least as large as a bound.

    Raises: BadInput.
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{name} = {short(value)}: expected a whole number of {least} or more")
    return value


def size_of(name: str, value: object) -> str | None:
    """Read a size: words such as "8GB", or a number of bytes; None for none.

    Raises: BadInput.
    """
    if value is None or isinstance(value, str):
        return value
    return f"{whole_of(name, value, 1)}B"


def number_of(name: str, value: object) -> float:
    """Read a number.

    Raises: BadInput.
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{name} = {short(value)}: expected a number")
    return float(value)


def plain(value: object) -> object:
    """Turn a number of NumPy's into one of Python's; leave everything else."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def short(value: object) -> str:
    """Write a value for a message, cut where it is long."""
    return f"{shown(value):.80}"
