"""What the site's Python reference takes from the running package instead of its sources.

Keyword arguments of functions come from tables, so signatures and docstrings are complete only
once the package is imported. Examples in docstrings become blocks of code.
"""

import inspect
import re
import textwrap
from typing import Any

import griffe

import edgeq

EXAMPLE = re.compile(r"^Example:\n((?:    .*\n|\n)+)", re.MULTILINE)


class FromThePackage(griffe.Extension):
    """Replace signature and docstring of each public function by those that users see."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Complete a function that `edgeq.__all__` names."""
        found = getattr(edgeq, func.name, None) if func.name in edgeq.__all__ else None
        if not inspect.isfunction(found) or func.path != f"{found.__module__}.{func.name}":
            return
        func.parameters = griffe.Parameters(
            *map(parameter, inspect.signature(found).parameters.values())
        )
        set_docstring(func, inspect.getdoc(found) or "")

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Make code of the examples of a class."""
        if cls.docstring:
            set_docstring(cls, cls.docstring.value)


def parameter(found: inspect.Parameter) -> griffe.Parameter:
    """Describe a parameter of the running function."""
    kinds = {
        inspect.Parameter.POSITIONAL_ONLY: griffe.ParameterKind.positional_only,
        inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
        inspect.Parameter.VAR_POSITIONAL: griffe.ParameterKind.var_positional,
        inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
        inspect.Parameter.VAR_KEYWORD: griffe.ParameterKind.var_keyword,
    }
    annotation = inspect.formatannotation(found.annotation).replace("os.PathLike", "PathLike")
    default = None if found.default is inspect.Parameter.empty else repr(found.default)
    return griffe.Parameter(
        found.name,
        kind=kinds[found.kind],
        annotation=re.sub(r"\b(?:edgeq|typing|collections|numpy)(?:\.\w+)*\.", "", annotation),
        default=default,
    )


def set_docstring(found: griffe.Object, text: str) -> None:
    """Give an object a docstring whose examples are blocks of code."""
    text = EXAMPLE.sub(fenced, text)
    if found.docstring is None:
        found.docstring = griffe.Docstring(text, parent=found)
    else:
        found.docstring.value = text


def fenced(example: re.Match[str]) -> str:
    """Put a fence around the code of an example."""
    code = textwrap.dedent(example[1]).strip("\n")
    block = textwrap.indent(f"```python\n{code}\n```", "    ")
    return f"Example:\n{block}\n\n"
