"""One file per algorithm; the tables below are how recipes name them."""

from edgeq.algorithms.gptq import solve_columns
from edgeq.algorithms.qep import correct_weight
from edgeq.algorithms.rtn import round_to_nearest

SOLVERS = ("rtn", "gptq", "quantease")
__all__ = ["SOLVERS", "correct_weight", "round_to_nearest", "solve_columns"]
