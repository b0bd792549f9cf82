"""Algorithms, one paper or idea to a file; `edgeq.solving.steps` says when which one runs."""
