"""What an algorithm takes fits into a problem, a solution and a few settings."""

import ast
from pathlib import Path

import pytest

import edgeq.algorithms

MOST_ARGUMENTS = 5
FILES = sorted(Path(edgeq.algorithms.__file__).parent.glob("*.py"))


def arguments_of(function):
    """Everything that a caller may give, without self and cls."""
    listed = function.args
    every = [*listed.posonlyargs, *listed.args, *listed.kwonlyargs, listed.vararg, listed.kwarg]
    names = [argument.arg for argument in every if argument is not None]
    return [name for name in names if name not in ("self", "cls")]


def functions_in(tree):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_function_takes_more_than_five_arguments(file):
    functions = functions_in(ast.parse(file.read_text(encoding="utf-8")))
    too_many = {
        getattr(function, "name", "lambda"): arguments_of(function)
        for function in functions
        if len(arguments_of(function)) > MOST_ARGUMENTS
    }
    assert not too_many


def test_arguments_of_every_kind_count():
    tree = ast.parse("def f(self, a, /, b, *c, d=1, **e): return lambda x: x")
    assert [arguments_of(function) for function in functions_in(tree)] == [[*"abdce"], ["x"]]
