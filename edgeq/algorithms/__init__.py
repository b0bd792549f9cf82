"""Algorithms, one paper or idea to a file; `edgeq.solving.steps` says when which one runs."""

SOLVERS = ("rtn", "gptq", "quantease")
"""What a recipe may name as its solver."""
